"""Restored crops -> pictures: sampled, masked and blended on the device, only where a face is.

The arithmetic of one output pixel with background b, restored face c and mask m is b + m * (c - b), as in the
reference. Differences from it, all on purpose: the matrices are applied at pixel centres at every upscale (the
reference is half an output pixel off above 1); a face that shrinks is anti-aliased; where faces overlap the result does
not depend on their order; nothing is rounded to 8 bit on the way.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import BadImage, BadOption
from ..files.pixels import floats
from ..geometry.resizing import resize
from ..geometry.warping import read_at
from ..types import Crops, Faces, Progress, RestoreOptions, Upscaler
from . import masks
from .grain import add_grain, areas, grainy_faces, surroundings
from .neighbours import own_part
from .parsing import soft_mask
from .plan import Box, Group, PastePlan, Region, moved, overlap, plan_paste

_TILE = 1 << 21  # output px blended at once: bounds the memory of a face that fills an 8K picture
_UNTOUCHED = 0.5 / 255  # mean change of a crop up to which it counts as not restored at all
_PARSE_SIDE = 128  # px; the parse mask is blurred by 15.6 px of 512, so a quarter of the side loses nothing
_PARSED = 8  # crops parsed at once
_NEAR = 0.2  # of the crop's side: how far from a face's centre it gives way to a neighbour's crop


@dataclass(frozen=True, eq=False)
class _Layer:
    """One face, ready to be sampled. Its colour at a pixel is what is sampled plus ``kept`` * background."""

    source: Tensor  # [4,s,s], RGB and mask
    kept: Tensor  # scalar


def paste(
    images: Tensor | Sequence[Tensor],
    crops: Crops,
    restored: Tensor,
    options: RestoreOptions | None = None,
    parser: Callable[[Tensor], Tensor] | None = None,
    user_masks: Sequence[Tensor | None] | None = None,
    background: Upscaler | Sequence[Tensor] | None = None,
    progress: Progress | None = None,
    device: torch.device | None = None,
    faces: Sequence[Faces] | None = None,
    own_detail: Sequence[bool] | None = None,
    in_place: bool = False,
    monochrome: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Put ``restored`` [N,3,S,S] into ``images`` ([B,3,H,W] or a sequence of [3,H,W], RGB in [0,1] or uint8).

    Returns the images [3,round(H*upscale),round(W*upscale)] and masks [1,...] of the share of each pixel that was
    replaced, on the devices of ``images``. uint8 that keeps its size stays uint8: only what surrounds a face is float
    meanwhile, and rounded. Every other result is float32. ``parser(restored) -> labels [N,S,S]`` limits each face to
    ``options.parse_classes``. ``user_masks``: [H,W] or [1,H,W] per image, or None. ``background``: the images already
    enlarged, or a callable [1,3,H,W] -> [1,3,k*H,k*W] that enlarges them (and the faces, with
    ``options.face_upsample``); None = bicubic. ``device`` does the work; None = where ``restored`` lies.
    ``faces``, all that were found in each image: a mask keeps to its own face and off every other, restored or not,
    unless ``options.mask_shape`` is "square". Without ``faces`` it fills the square, as the reference's does.
    A crop that restoring changed by less than half a grey level on average leaves its place as it was. Where
    ``own_detail`` is true for a face, what its crop does not show of the picture stays: the change alone is added.
    ``in_place``: float32 and uint8 pictures that keep their size and device are written into, and are the results.
    ``monochrome`` [N]: what ``is_monochrome`` says of the crops, where that is known.
    """
    options = options or RestoreOptions()
    plan = plan_paste(crops, options.upscale, faces if options.mask_shape == "face" else None)
    parsed = None
    if parser is not None and len(crops):
        most = 1 if restored.device.type == "cpu" else _PARSED  # one face stays in the cache
        parts = (soft_mask(parser(part), options.parse_classes, side=_PARSE_SIDE) for part in restored.split(most))
        parsed = torch.cat(list(parts))
    return paste_planned(
        images, plan, crops.pixels, restored, options, parsed, user_masks, background, progress, device, own_detail,
        in_place, monochrome,
    )  # fmt: skip


def paste_planned(
    images: Tensor | Sequence[Tensor],
    plan: PastePlan,
    pixels: Tensor,
    restored: Tensor,
    options: RestoreOptions | None = None,
    parsed: Tensor | None = None,
    user_masks: Sequence[Tensor | None] | None = None,
    background: Upscaler | Sequence[Tensor] | None = None,
    progress: Progress | None = None,
    device: torch.device | None = None,
    own_detail: Sequence[bool] | None = None,
    in_place: bool = False,
    monochrome: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """``paste`` after the host has done its part: from here on nothing waits for the device.

    ``pixels`` [N,3,S,S] are the crops before restoring, ``parsed`` [N,1,Q,Q] comes from ``parse.soft_mask``.
    """
    options = options or RestoreOptions()
    _check(images, plan, pixels, restored, user_masks, background)
    device = device or restored.device
    kept = own_detail or [False] * len(restored)
    enlarge = background if callable(background) and options.face_upsample else None
    out: list[Tensor] = []
    shares: list[Tensor] = []
    for number, (image, size, groups) in enumerate(zip(images, plan.sizes, plan.groups)):
        kind = image.dtype if background is None and tuple(image.shape[1:]) == size else None
        if kind == torch.uint8:
            canvas = image.to(device, copy=not in_place)
        elif kind == torch.float32 and in_place and image.device == device:
            canvas = image.clamp_(0, 1)
        elif background is None or callable(background):
            canvas = enlarged(image.to(device), size, background)
        else:
            canvas = background[number].to(device, torch.float32, copy=True)
        own = None if user_masks is None else user_masks[number]
        limit = None if own is None else masks.user_mask(own.to(device), size, number)
        share = _zeros(size, device)
        grainy = grainy_faces(groups, pixels, kept, options, canvas, monochrome)
        for box, here in areas(groups, grainy, size):
            area, origin = floats(_view(canvas, box)), box[:2]  # of floats it is a view
            part = _view(share, box)
            found = [(r, moved(r.box, origin)) for group in here for r in group.regions if r.face in grainy]
            clean = [surroundings(area, place) for _, place in found]
            for group in here:
                layers = {
                    r.face: _layer(r, pixels, restored, parsed, enlarge, plan, device, kept[r.face])
                    for r in group.regions
                }
                for tile in _tiles(group.box):
                    _blend(area, part, origin, tile, group, layers, limit, plan, options.strength)
            for (region, place), before in zip(found, clean):
                add_grain(area, before, part, place, 1000 * number + region.face, colour=grainy[region.face])
            if canvas.dtype == torch.uint8:
                _view(canvas, box).copy_(area.mul_(255).round_())
        out.append(canvas.to(image.device))
        shares.append(share.to(image.device))
        if progress:
            progress(number + 1, len(plan.sizes), "pasting")
    return tuple(out), tuple(shares)


def _zeros(size: tuple[int, int], device: torch.device) -> Tensor:
    """[1,H,W]. On a CPU from NumPy, whose zeros take no memory before something is written to them."""
    if device.type != "cpu":
        return torch.zeros(1, *size, device=device)
    return torch.from_numpy(np.zeros((1, *size), np.float32))


def enlarged(image: Tensor, size: tuple[int, int], upscaler: Upscaler | None = None) -> Tensor:
    """A copy of ``image`` [3,H,W] at ``size`` = (height, width): by ``upscaler``, then bicubic to the exact size."""
    if upscaler is None and tuple(image.shape[1:]) == tuple(size):
        return floats(image).clamp(0, 1)
    picture = image[None]
    if upscaler is not None:
        picture = upscaler(floats(picture)).to(image.device, torch.float32)
        if picture.ndim != 4 or picture.shape[:2] != (1, 3):
            raise BadImage(f"The upscaler returned {list(picture.shape)}; it must return [1,3,k*H,k*W].")
    if tuple(picture.shape[2:]) != tuple(size):
        picture = resize(picture, size, "bicubic")
    return picture[0].clamp_(0, 1) if upscaler is None else picture[0].clamp(0, 1)


def _untouched(before: Tensor, after: Tensor) -> Tensor:
    """Scalar: 1 for a face that restoring left alone, 0 for every other; a soft step, decided on the device.

    Sampling a crop and sampling it back costs sharpness. Where nothing was restored that would be the only effect, so
    such a face gets back what sampling lost; a restored one never does, it would bring back the input's noise.
    """
    return (2 - (after - before).abs_().mean() / _UNTOUCHED).clamp(0, 1)


def _layer(
    region: Region,
    pixels: Tensor,
    restored: Tensor,
    parsed: Tensor | None,
    enlarge: Upscaler | None,
    plan: PastePlan,
    device: torch.device,
    own_detail: bool,
) -> _Layer:
    """The crop and its mask at about the density of the output."""
    i = region.face
    source = restored[i : i + 1].to(device, torch.float32)
    kept = torch.zeros((), device=source.device)
    if enlarge is not None and not own_detail:
        source = enlarge(source).to(device, torch.float32)
    elif restored.shape == pixels.shape:
        before = pixels[i : i + 1].to(device)
        kept = torch.ones_like(kept) if own_detail else _untouched(before, source)
        if device.type != "cpu" or bool(kept):  # elsewhere asking would make the host wait
            source = source - kept * before  # sampling is linear: one serves the face and what it would lose
    side = source.shape[-1]
    if plan.antialias:
        side = min(side, max(1, round(plan.crop_size / region.density)))
    if side < source.shape[-1]:
        source = resize(source, (side, side), "bicubic")
    mask = masks.soft_square(region, plan.crop_size, plan.upscale, side, source.device)[None, None]
    if parsed is not None:
        shown = parsed[i : i + 1].to(device)
        mask = torch.minimum(mask, resize(shown, (side, side)))
    elif plan.face_shaped:
        mask = torch.minimum(mask, masks.face_mask(side, source.device))
    if region.neighbours:
        mask = torch.minimum(mask, own_part(region.neighbours, side, source.device))
    return _Layer(torch.cat([source, mask], 1)[0], kept)


def _tiles(box: Box) -> list[Box]:
    x0, y0, x1, y1 = box
    rows = max(1, _TILE // (x1 - x0))
    return [(x0, y, x1, min(y + rows, y1)) for y in range(y0, y1, rows)]


def _view(canvas: Tensor, box: Box, origin: tuple[int, int] = (0, 0)) -> Tensor:
    x0, y0, x1, y1 = box
    return canvas[:, y0 - origin[1] : y1 - origin[1], x0 - origin[0] : x1 - origin[0]]


def _blend(
    canvas: Tensor,
    share: Tensor,
    origin: tuple[int, int],
    tile: Box,
    group: Group,
    layers: dict[int, _Layer],
    limit: Tensor | None,
    plan: PastePlan,
    strength: float,
) -> None:
    """Write one tile of an area that begins at ``origin``. Overlapping faces are averaged by mask and nearness to their
    centres; what is not covered by any, 1 - cover = product of (1 - mask), stays background: no order enters."""
    under, cover = _view(canvas, tile, origin), _view(share, tile, origin)
    if len(group.regions) == 1:
        face, mask, _ = _sample(layers[group.regions[0].face], group.regions[0], tile, plan.crop_size, limit)
        cover.copy_(mask).mul_(strength)
        lost = cover * (1 - layers[group.regions[0].face].kept)
        under.mul_(1 - lost).addcmul_(cover, face).clamp_(0, 1)
        return
    colour, weight, kept = torch.zeros_like(under), torch.zeros_like(cover), torch.zeros_like(cover)
    bare = torch.ones_like(cover)
    for region in group.regions:
        part = overlap(region.box, tile)
        if part is None:
            continue
        layer = layers[region.face]
        face, mask, grid = _sample(layer, region, part, plan.crop_size, limit)
        distance = grid.square().sum(-1) / (2 * _NEAR) ** 2  # squared; the crop is 2 wide in grid coordinates
        importance = mask / (1 + distance.square())
        _view(colour, part, tile[:2]).addcmul_(importance, face)
        _view(kept, part, tile[:2]).add_(importance * layer.kept)
        _view(weight, part, tile[:2]).add_(importance)
        _view(bare, part, tile[:2]).mul_(1 - mask)
    cover.copy_(1 - bare).mul_(strength)
    weight.clamp_(min=1e-12)
    under.mul_(1 - cover * (1 - kept / weight)).addcmul_(cover / weight, colour).clamp_(0, 1)


def _sample(
    layer: _Layer, region: Region, part: Box, crop_size: int, limit: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour [3,h,w] and mask [1,h,w] of one face in the output px ``part``, and the grid [h,w,2] they were read at."""
    x0, y0, x1, y1 = part
    device = layer.source.device
    x = torch.arange(x1 - x0, device=device, dtype=torch.float32)
    y = torch.arange(y1 - y0, device=device, dtype=torch.float32)[:, None]
    grid = torch.empty(y1 - y0, x1 - x0, 2, device=device)
    for axis in (0, 1):
        along_x, along_y, shift = (2 * v / crop_size for v in region.to_crop[3 * axis : 3 * axis + 3])
        # The corner is added on the host in double precision; far from it float32 would lose hundredths of a pixel.
        corner = along_x * x0 + along_y * y0 + shift + 1 / crop_size - 1
        torch.add(along_x * x, along_y * y + corner, out=grid[..., axis])
    sampled = read_at(layer.source, grid, "zeros")
    mask = sampled[3:]
    if limit is not None:
        mask = torch.minimum(mask, _view(limit, part))
    return sampled[:3], mask, grid


def _check(
    images: Tensor | Sequence[Tensor],
    plan: PastePlan,
    pixels: Tensor,
    restored: Tensor,
    user_masks: Sequence[Tensor | None] | None,
    background: Upscaler | Sequence[Tensor] | None,
) -> None:
    """Shapes only: looking at values would make the host wait."""
    count = len(plan.sizes)
    if len(images) != count:
        raise BadOption(f"{len(images)} images for crops of {count}; give the images that were aligned.")
    if restored.ndim != 4 or len(restored) != len(pixels) or restored.shape[1] != 3:
        raise BadImage(f"Restored faces are {list(restored.shape)}, the crops {list(pixels.shape)}; give one per crop.")
    if user_masks is not None and len(user_masks) != count:
        raise BadOption(f"{len(user_masks)} masks for {count} images; give one (or None) per image.")
    if background is not None and not callable(background):
        given = [tuple(b.shape) for b in background]
        wanted = [(3, *size) for size in plan.sizes]
        if given != wanted:
            raise BadImage(f"Backgrounds are {given}; for this upscale they must be {wanted}.")
