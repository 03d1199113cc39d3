"""The colours of a restored face are the input's: monochrome stays so, and no cast comes from the network."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry.face_shape import crop_distance
from ..geometry.resizing import block_means
from ..types import GrayMode, RestoreOptions
from .bands import AT_ONCE, block_for, enlarged, in_parts, low_pass
from .shown import keep_shown
from .toning import Toning, fit_toning, reduced

_STAIN = 32  # the side of a crop over the sigma of chroma that is the print's, beside its tone
_LOW_BAND = 8  # the side of a crop over the sigma of what counts as its colour
_FEWEST = 64  # px of the side to which a crop is reduced for that
_FACE_WHOLE, _FACE_END = 0.8, 1.0  # distances from the middle between which a face goes over into its surroundings
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def is_monochrome(pixels: Tensor) -> Tensor:
    """[N] bool: a face [N,3,S,S] has one chroma for each luminance, as in black and white, sepia, cyanotype or tinted
    pictures, apart from noise and a slow change over the crop.

    The reference asks for a small variance of the channel differences over the whole picture: a sepia photograph
    fails, a warm face in a gray scene passes. Here each face is asked; see ``toning``.
    """
    parts = [_toning(some).monochrome for some in pixels.split(AT_ONCE)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool, device=pixels.device)


def _toning(pixels: Tensor) -> Toning:
    """The toning of crops [N,3,S,S], which are reduced before their luminance is taken: three times as quick."""
    small = reduced(pixels)
    return fit_toning(small, luminance(small))


def luminance(pixels: Tensor) -> Tensor:
    """[N,S,S] luma of RGB [N,3,S,S]."""
    red, green, blue = _LUMA  # plain numbers: a tensor of them would have to travel to the device first
    return red * pixels[:, 0] + green * pixels[:, 1] + blue * pixels[:, 2]


def match_gray(
    restored: Tensor,
    pixels: Tensor,
    mode: GrayMode = "auto",
    contrast: bool = True,
    monochrome: Tensor | None = None,
) -> Tensor:
    """Restored faces [N,3,S,S] in [0,1]; those of monochrome ``pixels`` keep only luminance, in the tone of the input.

    Each luminance gets the chroma that it has in the input crop, and what slow chroma lies beside that there, a stain
    or a yellowed border, stays. With ``contrast`` mean and standard deviation of luminance become the input's, as in
    the reference. Clipped to [0,1]; without the clip, as in the reference, such pictures came out black. ``mode``:
    "force" takes every face for monochrome, "off" none. Decided on the device. ``monochrome`` [N]: what
    ``is_monochrome`` says of ``pixels``, where that is known.
    """
    if mode == "off" or len(restored) == 0:
        return restored
    out = restored
    known = mode == "auto" and monochrome is not None and monochrome.device.type == "cpu"
    for start in range(0, len(restored), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        if known and not bool(monochrome[some].any()):  # type: ignore[index]
            continue
        matched = _match(restored[some], pixels[some], mode, contrast)
        if matched is not None:
            out = restored.clone() if out is restored else out  # nothing is copied where no face is gray
            out[some] = matched
    return out


def _match(restored: Tensor, pixels: Tensor, mode: GrayMode, contrast: bool) -> Tensor | None:
    """None where no face is monochrome, as far as that can be known without waiting for the device."""
    toning = _toning(pixels)
    gray = toning.monochrome if mode == "auto" else None
    if gray is not None and gray.device.type == "cpu" and not bool(gray.any()):
        return None
    before, luma = luminance(pixels), luminance(restored)
    if contrast:
        l_var, l_mean = torch.var_mean(luma, dim=(1, 2), keepdim=True)
        c_var, c_mean = torch.var_mean(before, dim=(1, 2), keepdim=True)
        luma = (luma - l_mean) * (c_var / (l_var + 1e-10)).sqrt() + c_mean
    beside = pixels - before[:, None] - toning.chroma(before)
    beside = low_pass(beside, pixels.shape[-1] / _STAIN)
    toned = (luma[:, None] + toning.chroma(luma) + beside).clamp(0, 1)
    return toned if gray is None else torch.where(gray[:, None, None, None], toned, restored)


def match_tone(
    restored: Tensor,
    pixels: Tensor,
    options: RestoreOptions,
    monochrome: Tensor | None = None,
    ws: Sequence[float | None] | None = None,
) -> Tensor:
    """Restored faces [N,3,S,S] in [0,1] in the colours of the input crops ``pixels``, as ``options`` ask.

    Monochrome first (``gray``; ``monochrome`` as in ``match_gray``), then the low band (``colour``), which matches
    contrast where it can be seen, and what else the input shows. ``ws``: the fidelity of each face, None for a network
    without; by default that of ``options``.
    """
    if options.colour != "low_band":
        return match_gray(restored, pixels, options.gray, True, monochrome)
    if monochrome is None and options.gray == "auto":
        monochrome = is_monochrome(pixels)
    gray = monochrome if options.gray == "auto" else None
    if options.gray == "force":
        gray = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
    toned = match_low_band(match_gray(restored, pixels, options.gray, False, monochrome), pixels)
    return keep_shown(toned, pixels, [options.w] * len(pixels) if ws is None else ws, gray)


def match_low_band(restored: Tensor, pixels: Tensor) -> Tensor:
    """Restored faces [N,3,S,S] in [0,1] whose low band is that of ``pixels``, clipped.

    What the network adds below a Gaussian of an eighth of the side is not detail but a cast. Face and surroundings are
    averaged apart, so that a wall of another colour does not shine into the face.
    """
    if len(restored) == 0:
        return restored
    side = pixels.shape[-1]
    # What is that smooth is known from means over blocks, to a tenth of a grey level: a tenth of the time at 512 px.
    block = block_for(side, _FEWEST)
    face = ((_FACE_END - crop_distance(side, pixels.device)) / (_FACE_END - _FACE_WHOLE)).clamp(0, 1)[None, None]
    inside = block_means(face, block)
    around = 1 - inside
    sigma = side / block / _LOW_BAND
    weights = [low_pass(mask, sigma).clamp(min=1e-6) for mask in (inside, around)]
    out = torch.empty_like(restored)
    for some in in_parts(len(restored), restored.device):
        missing = block_means(pixels[some], block) - block_means(restored[some], block)
        of_face, of_rest = (low_pass(missing * m, sigma) / w for m, w in zip((inside, around), weights))
        apart, rest = enlarged(torch.stack([of_face - of_rest, of_rest]), block)
        out[some] = torch.addcmul(restored[some], face, apart).add_(rest).clamp_(0, 1)
    return out
