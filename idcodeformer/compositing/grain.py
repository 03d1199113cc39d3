"""Grain, halftone and paper around a face are measured in the picture and put back over the restored face.

A network takes grain for damage, and a clean face in a grainy print shows as a patch. The power spectrum of the
smoothest blocks around the face is measured, and new noise of what the restored face lacks of it is added. A regular
pattern, such as the screen of a printed photograph, would be a patch too if its dots stood elsewhere: of that the
picture's own frequencies come back. Everything stays on the device; no value is looked at.
"""
from __future__ import annotations

from collections.abc import Container, Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from ..files.pixels import floats
from ..restoration.tone import is_monochrome, luminance
from ..types import RestoreOptions
from .plan import Box, Group, around, joined

_BLOCK = 16  # px; periods up to a third of that are told apart
_SLOWEST = 2  # cycles per block below which a spectrum shows shading, not grain
_SMOOTHEST = 0.2  # share of blocks that are taken for free of the picture's own detail
_MOST_BLOCKS = 40  # along a side
_TILE = 512  # px; the noise repeats after that, which nobody sees in noise
_LEAST, _SURE = 0.6 / 255, 1.2 / 255  # rms between which grain begins to count; 8-bit steps alone have 0.3 / 255
# Grain lies everywhere alike, detail does not: between these ratios of a block in twenty to one in five it is believed.
_UNEVEN, _EVEN = 0.35, 0.55
_MOST_RAISE = 1.6  # by which the smoothest blocks may stand for all
_TOLERANCE = 1.3  # of grain inside the face against around it, that still counts as equal
_DARK, _LIGHT = 0.04, 0.96  # mean of a block beyond which grain is clipped away
_WEAK = 0.02  # of the strongest frequency, up to which one does not belong to a regular pattern
_LAGS = (20, 60)  # px over which a regular pattern is asked to repeat
_WAYS = 8  # directions in all of which it has to: an edge repeats along itself only
_REPEATS = (0.18, 0.32)  # autocorrelation between which it is believed: pictures reach 0.14, printed ones begin at 0.4
_REPEATS_IN_COLOUR = (0.38, 0.46)  # one colour photograph in 700 reaches 0.36, colour prints begin at 0.47
_ENOUGH = 512  # px of a face, along a side, that are looked at
_GLANCE, _MAY_REPEAT = 176, 0.25  # px of a colour face, and what they have to reach for a look at all of it


def add_grain(
    canvas: Tensor, before: Tensor, share: Tensor | None, box: Box, seed: int, amount: float = 1.0,
    colour: Tensor | float = 0.0,
) -> None:  # fmt: skip
    """Add to ``canvas`` [3,H,W] in [0,1], inside ``box``, the grain of ``before`` around it.

    ``before`` is the ``surroundings`` of the box without the face, ``share`` [1,H,W] what was replaced of each pixel
    (None: all of a crop, whose grain is measured in all of ``before``), ``amount`` in [0,1]. Where face and
    surroundings differ in grain the lesser counts; where there is none, none is added. ``colour`` is 1 where only the
    dots of a print shall come back, if that is what they surely are: noise in colour is rather the camera's.
    """
    x0, y0, x1, y1 = box
    around = _grown(box, canvas.shape[1:])
    window = (slice(None), slice(around[1], around[3]), slice(around[0], around[2]))
    if min(around[2] - around[0], around[3] - around[1]) < 2 * _BLOCK:
        return
    now = surroundings(canvas, box)
    there, here = _Blocks(before), _Blocks(now)
    if share is None:
        outside = inside = torch.ones_like(there.level, dtype=torch.bool)
    else:
        covered = there.mean_of(share[window][0])
        outside, inside = covered < 0.05, covered > 0.9
    wanted = there.grain(outside)
    own = there.smoothest(inside)[0].sum()
    believed = _believed(own)
    limit = believed * (_TOLERANCE * own / wanted.sum().clamp(min=1e-12)).clamp(max=1)
    inner = (slice(y0 - around[1], y1 - around[1]), slice(x0 - around[0], x1 - around[0]))
    regular = there.strong(inside) * believed * _repeats(before[inner], colour)
    lacking = (wanted * limit - here.smoothest(inside)[0]).clamp(min=0)
    beside = F.max_pool2d(F.pad(regular[None, None], (1, 1, 1, 1), mode="circular"), 3, 1)[0, 0]
    noise = _noise(lacking * (1 - beside), seed, (y1 - y0, x1 - x0))
    part = (slice(None), slice(y0, y1), slice(x0, x1))
    pattern = _passed(before - now, regular)[(None, *inner)]  # what pasting took of it, however much was replaced
    if share is not None:
        mixed = share[part]  # of the picture's own grain (1 - mixed)^2 is there still
        noise = noise * (2 * mixed - mixed.square()).clamp(min=0).sqrt()
    canvas[part] += noise * (amount * (1 - colour)) + pattern * (amount > 0)
    canvas[part].clamp_(0, 1)


def is_screened(canvas: Tensor, box: Box) -> Tensor:
    """Scalar: whether ``canvas`` [3,H,W] in [0,1] or uint8 shows the dots of a colour print inside ``box``."""
    x0, y0, x1, y1 = box
    plane = luminance(floats(canvas[None, :, y0:y1, x0:x1]))[0]
    if plane.device.type == "cpu" and bool(_alike(plane, _GLANCE) < _MAY_REPEAT):  # a tenth of the time
        return torch.zeros((), dtype=torch.bool)
    return _repeats(plane, 1.0) > 0


def surroundings(canvas: Tensor, box: Box) -> Tensor:
    """[h,w] luminance of ``canvas`` [3,H,W] in ``box`` and around it, as far as grain is looked for."""
    x0, y0, x1, y1 = _grown(box, canvas.shape[1:])
    return luminance(canvas[None, :, y0:y1, x0:x1])[0]


def areas(
    groups: Sequence[Group], grainy: Container[int], size: tuple[int, int]
) -> list[tuple[Box, list[Group]]]:
    """Boxes that share no pixel, each with the groups in it and all that is looked at for the grain of their faces, if
    these are among ``grainy``, in a picture of ``size`` = (height, width)."""
    boxes = []
    for number, group in enumerate(groups):
        looked = [_grown(region.box, size) for region in group.regions if region.face in grainy]
        boxes.append((reduce(around, looked, group.box), number))
    return [(box, [groups[number] for number in sorted(members)]) for box, members in joined(boxes)]


def _grown(box: Box, size: tuple[int, int]) -> Box:
    """``box`` and half its side, at least three blocks, around it; inside a picture of ``size`` = (height, width)."""
    x0, y0, x1, y1 = box
    reach = max(max(x1 - x0, y1 - y0) // 4, 3 * _BLOCK)
    return max(0, x0 - reach), max(0, y0 - reach), min(size[1], x1 + reach), min(size[0], y1 + reach)


class _Blocks:
    """The power spectra of overlapping blocks of a plane [H,W]."""

    def __init__(self, plane: Tensor):
        self.step = max(_BLOCK // 2, max(plane.shape) // _MOST_BLOCKS)
        blocks = self._cut(plane)
        self.level = blocks.mean((1, 2))
        axis = torch.hann_window(_BLOCK + 2, periodic=False, device=plane.device)[1:-1]
        taper = axis * axis[:, None]
        spectra = torch.fft.fft2((blocks - self.level[:, None, None]) * taper).abs().square()
        cycles = torch.fft.fftfreq(_BLOCK, 1 / _BLOCK, device=plane.device)
        fast = (cycles.square() + cycles.square()[:, None]) >= _SLOWEST**2
        # Scaled so that the sum of a spectrum is the variance.
        self.spectra = spectra * fast / (taper.square().sum() * _BLOCK**2)

    def _cut(self, plane: Tensor) -> Tensor:
        return plane.unfold(0, _BLOCK, self.step).unfold(1, _BLOCK, self.step).reshape(-1, _BLOCK, _BLOCK)

    def mean_of(self, plane: Tensor) -> Tensor:
        """Mean of another plane [H,W] over each block."""
        return self._cut(plane).mean((1, 2))

    def smoothest(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """[16,16] mean spectrum of the smoothest of the ``chosen`` blocks, and how even they are in [0,1]."""
        valid = chosen & (self.level > _DARK) & (self.level < _LIGHT)
        power = self.spectra.sum((1, 2))
        ordered = torch.where(valid, power, torch.inf).sort().values
        count = valid.sum()
        few, some = (self._at(ordered, count, share) for share in (0.05, _SMOOTHEST))
        weight = (valid & (power <= some)).float()
        mean = (self.spectra * weight[:, None, None]).sum(0) / weight.sum().clamp(min=1)
        return mean, (few / some.clamp(min=1e-12)).nan_to_num(0, 0, 0).clamp(0, 1)

    def grain(self, chosen: Tensor) -> Tensor:
        """[16,16] spectrum of what lies alike in all of the ``chosen`` blocks, 0 where that is nothing."""
        mean, ratio = self.smoothest(chosen)
        # Of a normal distribution of relative width s these are 1 - 1.64 s and 1 - 0.84 s, the mean below it 1 - 1.4 s.
        width = (1 - ratio) / (1.64 - 0.84 * ratio)
        raised = mean * (1 / (1 - 1.4 * width).clamp(min=1e-3)).clamp(max=_MOST_RAISE)
        return raised * _believed(mean.sum()) * ((ratio - _UNEVEN) / (_EVEN - _UNEVEN)).clamp(0, 1)

    def strong(self, chosen: Tensor) -> Tensor:
        """[16,16] in [0,1]: the frequencies that hold the power of the ``chosen`` blocks, each block counting alike."""
        power = self.spectra.sum((1, 2))
        weight = (chosen & (self.level > _DARK) & (self.level < _LIGHT) & (power > _LEAST**2)).float()
        even = (self.spectra / power.clamp(min=1e-12)[:, None, None] * weight[:, None, None]).sum(0)
        return ((even / even.max().clamp(min=1e-12) - _WEAK) / _WEAK).clamp(0, 1)

    @staticmethod
    def _at(ordered: Tensor, count: Tensor, share: float) -> Tensor:
        """The value at ``share`` of the first ``count``."""
        place = (count * share).long().clamp(0, len(ordered) - 1)
        return ordered.gather(0, place[None])[0]


def _believed(variance: Tensor) -> Tensor:
    """Scalar in [0,1]: whether a variance is more than rounding."""
    return ((variance.sqrt() - _LEAST) / (_SURE - _LEAST)).clamp(0, 1)


def _noise(spectrum: Tensor, seed: int, size: tuple[int, int]) -> Tensor:
    """[1,h,w] Gaussian noise of ``spectrum`` [16,16], whose sum is its variance."""
    device = spectrum.device
    tile = min(_TILE, -(-max(size) // _BLOCK) * _BLOCK)
    white = _white(tile, seed, device)
    density = _at_frequencies(spectrum, (tile, tile))
    density = density * (spectrum.sum() / density.mean().clamp(min=1e-20))
    plane = torch.fft.ifft2(torch.fft.fft2(white) * density.sqrt()).real
    repeats = [-(-side // tile) for side in size]
    return plane.repeat(*repeats)[None, : size[0], : size[1]]


def _repeats(plane: Tensor, colour: Tensor | float) -> Tensor:
    """Scalar in [0,1]: whether [H,W] holds one pattern that repeats in all directions, like the screen of a print; with
    ``colour`` it has to be surer."""
    low, high = (mono + colour * (sure - mono) for mono, sure in zip(_REPEATS, _REPEATS_IN_COLOUR))
    return ((_alike(plane, _ENOUGH) - low) / (high - low)).clamp(0, 1)


def _alike(plane: Tensor, enough: int) -> Tensor:
    """Scalar: the best autocorrelation of the fine part of [H,W], of which ``enough`` px along a side are looked at, in
    that one of ``_WAYS`` directions where it is least."""
    height, width = (min(side, enough) for side in plane.shape)
    top, left = (plane.shape[0] - height) // 2, (plane.shape[1] - width) // 2
    part = plane[None, None, top : top + height, left : left + width]
    broad = F.avg_pool2d(F.avg_pool2d(F.pad(part, (8, 8, 8, 8), mode="replicate"), (1, 17), 1), (17, 1), 1)
    fast = (part - broad)[0, 0]
    most = 3 * fast.abs().median()  # a few edges shall not outweigh it
    fast = fast.clamp(-most, most)
    reach = min(_LAGS[1], min(height, width) // 2)
    size = (height + reach, width + reach)
    like = torch.fft.irfft2(torch.fft.rfft2(fast, s=size).abs().square(), s=size)
    lags = torch.arange(-reach, reach + 1, device=plane.device)
    like = like[lags.remainder(size[0])[:, None], lags.remainder(size[1])]
    y, x = lags[:, None].float(), lags.float()
    like = like / ((height - y.abs()) * (width - x.abs()))  # of so many pairs of px
    lag = (y.square() + x.square()).sqrt()
    way = torch.remainder(torch.atan2(y, x) / torch.pi, 1) * _WAYS
    there = (lag >= _LAGS[0]) & (lag <= reach)
    best = [torch.where(there & (way >= n) & (way < n + 1), like, -torch.inf).max() for n in range(_WAYS)]
    return torch.stack(best).min() / like[reach, reach].clamp(min=1e-12)


def _passed(plane: Tensor, share: Tensor) -> Tensor:
    """``plane`` [H,W] filtered: ``share`` [16,16] in [0,1] of each frequency. Mirrored at its edges."""
    height, width = plane.shape
    edged = F.pad(plane[None, None], (_BLOCK,) * 4, mode="reflect")[0, 0]
    passed = torch.fft.ifft2(torch.fft.fft2(edged) * _at_frequencies(share, tuple(edged.shape))).real
    return passed[_BLOCK : _BLOCK + height, _BLOCK : _BLOCK + width]


def _at_frequencies(values: Tensor, size: tuple[int, int]) -> Tensor:
    """[16,16] values of frequencies, in the order of an FFT, between those of an FFT of ``size``: [h,w], at least 0."""
    wrapped = F.pad(torch.fft.fftshift(values)[None, None], (1, 1, 1, 1), mode="circular")
    cycles = (torch.fft.fftshift(torch.fft.fftfreq(side, 1 / _BLOCK, device=values.device)) for side in size)
    y, x = ((each + _BLOCK / 2 + 1.5) * 2 / (_BLOCK + 2) - 1 for each in cycles)
    grid = torch.stack(torch.broadcast_tensors(x, y[:, None]), -1)[None]
    return torch.fft.ifftshift(F.grid_sample(wrapped, grid, "bilinear", align_corners=False)[0, 0]).clamp(min=0)


def _white(side: int, seed: int, device: torch.device) -> Tensor:
    """[side,side] Gaussian noise, the same on every device: a generator's would have to travel there first.

    Two rounds of multiplying and folding 32-bit numbers (xxHash's avalanche), then Box & Muller 1958.
    """
    count = torch.arange(2 * side * side, device=device, dtype=torch.int64) + 1
    bits = (count * 2654435761 + seed * 668265263 + 374761393) & 0xFFFFFFFF
    for factor in (2246822519, 3266489917):
        bits = ((bits ^ (bits >> 15)) * factor) & 0xFFFFFFFF
    uniform = ((bits ^ (bits >> 16)).float() + 0.5) / 2**32
    first, second = uniform.view(2, side, side)
    return (-2 * first.clamp(1e-9, 1).log()).sqrt() * (2 * torch.pi * second).cos()


def give_grain(
    restored: Tensor, before: Tensor, number: int, options: RestoreOptions, gray: Tensor | None
) -> None:
    """Put the grain of an aligned crop ``before`` [3,S,S] into ``restored`` [3,S,S], where ``options`` ask for it."""
    if options.grain == "off":
        return
    whole = (0, 0, before.shape[-1], before.shape[-2])
    colour = 0.0 if options.grain == "on" or gray is None else _colour_of(gray[number], before, whole)
    if colour is not None:
        add_grain(restored, surroundings(before, whole), None, whole, number, options.strength, colour)


def _colour_of(gray: Tensor, picture: Tensor, box: Box) -> Tensor | None:
    """0 for a face that is monochrome, 1 for one of which only the dots of a print come back; None where there is no
    print."""
    colour = 1 - gray.to(picture.device, torch.float32)
    # Only on the CPU asking does not make the host wait.
    given = picture.device.type != "cpu" or not bool(colour) or bool(is_screened(picture, box))
    return colour if given else None


def grainy_faces(
    groups: Sequence[Group],
    pixels: Tensor,
    kept: Sequence[bool],
    options: RestoreOptions,
    canvas: Tensor,
    monochrome: Tensor | None,
) -> dict[int, Tensor | float]:
    """Faces that get grain, with 1 for those of which only the dots of a print come back; one that kept its own detail
    has kept its grain."""
    regions = [region for group in groups for region in group.regions if not kept[region.face]]
    if options.grain == "off":
        return {}
    if options.grain == "on":
        return {region.face: 0.0 for region in regions}
    device = canvas.device
    out: dict[int, Tensor | float] = {}
    for r in regions:
        gray = is_monochrome(pixels[r.face : r.face + 1].to(device))[0] if monochrome is None else monochrome[r.face]
        if (colour := _colour_of(gray, canvas, r.box)) is not None:
            out[r.face] = colour
    return out
