"""Faces that a network would soften: which they are, and what is done with them instead of softening them in silence.

A network with crops of S px shows nothing finer than its pixels. Where the picture has more of them in a face, and uses
them, the restored face is a blurred one; and a smaller face that shows all its pixels loses some of what it shows. How
much that costs: docs/large-faces.md.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..detection.selection import Selection
from ..geometry.resizing import resize
from ..types import Crops, RestoreOptions
from ..weights.registry import by_name, largest_face, sharpest_face, smallest_sharp_face
from ..weights.store import download_folder
from .small import QUARTILE, SHARP_AT_ITS_SIZE, VISIBLE, is_blocky, sharpness_at_its_size

_BLOCKS = 16  # along a side of the crop, in which detail is looked for
# rms in [0,1] of ``fine_detail`` above which a face is sharp: inputs reduced to 1.5 px of a 128-px crop show 0.0157
# (median), to 2 px 0.0117. Restoring the former loses by every measure, the latter nearly breaks even.
SHARP = 0.013
# The same over the deviation of the face's luminance, for dim and faded pictures: medians 0.092 and 0.072.
_SHARP_SHARE = 0.085
_NOISY = 4.0 / 255  # rms of even noise in a crop: sharp ones break even at 3.5 levels, with 5.5 they gain
_LARGER = 1.25  # times the network's side from which size is the reason


@dataclass(frozen=True)
class LargeFace:
    """What becomes of a face that the network would soften."""

    kept: bool  # restored, but under its own detail; else it stays as it was
    reason: str


def fine_detail(pixels: Tensor) -> Tensor:
    """[N] rms in [0,1] of what a 3-px mean takes away from crops [N,3,S,S], seen at 128 px, without even noise.

    Noise and grain lie in every block alike, so the lower quartile of the blocks' energy is taken off; eyes, hair and
    brows are what remains.
    """
    return detail_and_noise(pixels)[0]


def detail_to_lose(pixels: Tensor, scales: Sequence[float]) -> Tensor:
    """[N] for ``judge_track``: above ``SHARP`` for crops [N,3,128,128] that would lose; 0 for noisy, not large ones."""
    fits = torch.tensor([scale <= largest_face(128) for scale in scales], device=pixels.device)
    detail, noise = detail_and_noise(pixels)
    detail = detail.masked_fill((noise > _NOISY) & fits, 0)
    small = [n for n, scale in enumerate(scales) if _is_small(scale, 128)]
    if small:
        there = torch.tensor(small, device=pixels.device)
        sharp = sharpness_at_its_size(pixels[there], [scales[n] for n in small])
        detail[there] = SHARP / SHARP_AT_ITS_SIZE * sharp
    return detail


def detail_and_noise(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """``fine_detail``, and the rms of the even noise beside it, [N] each."""
    small = F.interpolate(pixels.float(), (128, 128), mode="area") if pixels.shape[-1] != 128 else pixels.float()
    luma = small.mean(1, keepdim=True)
    energy = (luma - F.avg_pool2d(luma, 3, 1, 1, count_include_pad=False)).square()
    blocks = F.adaptive_avg_pool2d(energy, _BLOCKS).flatten(1)
    noise = blocks.quantile(0.25, 1) / QUARTILE
    return (blocks.mean(1) - noise).clamp(min=0).sqrt(), noise.sqrt()


def _is_sharp(pixels: Tensor, detail: Tensor) -> Tensor:
    """[N] bool: crops [N,3,S,S] in [0,1] of that ``fine_detail`` show some that a network of their size would lose, be
    they bright or dim."""
    side = pixels.shape[-1]
    middle = pixels[:, :, side // 5 : side * 7 // 8, side * 2 // 9 : side * 7 // 9].float().mean(1)
    contrast = middle.flatten(1).std(1)
    return (detail > SHARP) | (detail > _SHARP_SHARE * contrast) & (detail > VISIBLE)


def scales_of(matrices: Tensor) -> list[float]:
    """Picture px per crop px of maps [N,2,3] picture -> crop."""
    linear = matrices[:, :, :2].detach().cpu().double()
    return [abs(float(torch.linalg.det(m))) ** -0.5 for m in linear]


def judge_large(
    pixels: Tensor, scales: Sequence[float], options: RestoreOptions, part: Callable[[int], Tensor] | None = None
) -> list[LargeFace | None]:
    """For crops [N,3,S,S] with ``scales`` picture px per crop px: None where they are restored as any other.

    ``part(n)``: the picture [3,H,W] around a crop, where the blocks of JPEG are looked for.
    """
    side, mode = pixels.shape[-1], options.large_faces
    limit = _limit(side, mode)
    large = [n for n, scale in enumerate(scales) if mode != "restore" and scale > limit]
    small = [n for n, scale in enumerate(scales) if _asks_small(options) and _is_small(scale, side)]
    out: list[LargeFace | None] = [None] * len(scales)
    if small:
        asked = pixels[torch.tensor(small, device=pixels.device)]
        found = sharpness_at_its_size(asked, [scales[n] for n in small]).tolist()
        for n in (n for n, sharpness in zip(small, found) if sharpness >= SHARP_AT_ITS_SIZE):
            if part is None or not is_blocky(part(n)):
                out[n] = LargeFace(False, _small_reason(round(scales[n] * side)))
    if not large:
        return out
    sharp = [True] * len(large)
    if mode == "auto":
        asked = pixels[torch.tensor(large, device=pixels.device)]
        detail, noise = detail_and_noise(asked)
        noisy, sharp = (noise > _NOISY).tolist(), _is_sharp(asked, detail).tolist()
        # A large one would lose more by size than noise costs.
        sharp = [it_is and (scales[n] > largest_face(side) or not bad) for n, it_is, bad in zip(large, sharp, noisy)]
    for n, it_is in zip(large, sharp):
        if it_is:
            out[n] = LargeFace(mode == "keep", _reason(round(scales[n] * side), side, mode))
    return out


def fitted(pictures: Tensor, side: int, options: RestoreOptions) -> tuple[Tensor, LargeFace | None]:
    """Aligned pictures [N,3,H,W] of one size as crops [N,3,side,side], and what becomes of them where they are sharp.

    They are judged together: the frames of one animation are restored or left alike.
    """
    high, wide = pictures.shape[-2:]
    if not len(pictures):
        return pictures, None
    same = (high, wide) == (side, side)
    seen = pictures if same else F.interpolate(pictures, (side, side), mode="area")
    # A smaller picture comes back enlarged, so that it is not asked whether it is sharp at its size.
    options = replace(options, upscale=1.0 if min(high, wide) >= side else 2.0)
    judged = judge_large(seen, [min(high, wide) / side] * len(seen), options)
    crops = pictures if same else resize(pictures, (side, side)).clamp(0, 1)
    return crops, next((face for face in judged if face is not None), None)


def under_own_detail(pictures: Tensor, crops: Tensor, restored: Tensor) -> Tensor:
    """Pictures [N,3,H,W] with what restoring changed in their crops [N,3,S,S], and no detail lost."""
    change = resize(restored - crops, (int(pictures.shape[-2]), int(pictures.shape[-1])), "bicubic")
    return (pictures + change).clamp(0, 1)


def judge_track(detail: float, scale: float, side: int, options: RestoreOptions) -> LargeFace | None:
    """As ``judge_large``, for a face whose ``detail_to_lose`` and scale (picture px per crop px) are known."""
    mode = options.large_faces
    if _asks_small(options) and _is_small(scale, side):
        return LargeFace(False, _small_reason(round(scale * side))) if detail >= SHARP else None
    if mode == "restore" or scale <= _limit(side, mode) or (mode == "auto" and detail <= SHARP):
        return None
    return LargeFace(mode == "keep", _reason(round(scale * side), side, mode))


def without_left(
    crops: Crops, chosen: list[Selection], large: list[LargeFace | None]
) -> tuple[Crops, list[Selection], list[LargeFace | None]]:
    """What is restored at all: large faces that stay as they were go over to those that were not chosen."""
    left = {n for n, face in enumerate(large) if face is not None and not face.kept}
    if not left:
        return crops, chosen, large
    selections, first = [], 0
    for selection in chosen:
        rest = [n for n in range(len(selection.faces)) if first + n not in left]
        dropped = dict(selection.dropped)
        for n, number in enumerate(selection.indices):
            if n not in rest:
                dropped[number] = large[first + n].reason  # type: ignore[union-attr]
        faces, indices = (tuple(part[n] for n in rest) for part in (selection.faces, selection.indices))
        selections.append(Selection(faces, indices, tuple(sorted(dropped.items()))))
        first += len(selection.faces)
    places = [n for n in range(len(large)) if n not in left]
    return crops.only(places), selections, [large[n] for n in places]


def _limit(side: int, mode: str) -> float:
    """Picture px per crop px from which faces are asked about: by sharpness, or by size alone."""
    return min(sharpest_face(side), largest_face(side)) if mode == "auto" else largest_face(side)


def _asks_small(options: RestoreOptions) -> bool:
    """Whether small faces may stay: where the picture is enlarged, restoring adds what enlarging lacks."""
    return options.large_faces == "auto" and options.upscale <= 1


def _is_small(scale: float, side: int) -> bool:
    return smallest_sharp_face(side) <= scale <= min(sharpest_face(side), largest_face(side))


def _small_reason(face: int) -> str:
    return (
        f"sharp at its size ({face} px): restoring would change it and add nothing; enlarge the picture (upscale 2), "
        "or choose large faces: restore"
    )


def _reason(face: int, side: int, mode: str) -> str:
    if mode == "keep":
        return f"larger ({face} px) than the {side} px of this network: restored under its own detail"
    if face > side * _LARGER:
        reason = f"larger ({face} px) than the {side} px of this network, which would soften it"
    else:
        reason = f"as sharp ({face} px) as this network of {side} px can make it, which would soften it"
    if side < 512:
        better = by_name("codeformer")
        reason += (
            f"; put {better.file} (512 px) into {download_folder()}, in ComfyUI models/{better.folder}, "
            "or choose large faces: restore"
        )
    return reason
