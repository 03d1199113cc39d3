"""Where in the output each face goes: worked out on the host, once per batch, from the matrices alone.

Nothing here touches a picture, so that the device never waits for the host while faces are pasted.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Sequence, TypeVar

import numpy as np

from ..errors import BadOption
from ..types import Crops, Faces
from .neighbours import Neighbour, neighbours

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in output px; x1, y1 are the first outside
_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Region:
    """Where one face goes."""

    face: int  # index into the crops
    box: Box  # output px that the crop covers
    to_crop: tuple[float, float, float, float, float, float]  # output px -> crop px, row by row
    density: float  # crop px per output px
    visible: float  # side in output px of a square as large as the part inside the picture
    neighbours: tuple[Neighbour, ...] = ()  # whose pixels this face leaves alone


@dataclass(frozen=True)
class Group:
    """Faces whose boxes touch, and the box around them."""

    box: Box
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class PastePlan:
    """All that pasting needs to know of the geometry; plain numbers."""

    crop_size: int  # px
    upscale: float  # output px per input px
    sizes: tuple[tuple[int, int], ...]  # (height, width) of every output image
    groups: tuple[tuple[Group, ...], ...]  # of every image
    antialias: bool = True  # False samples points of a face that shrinks, as the reference does
    face_shaped: bool = False  # masks without parsing end around the face; False: they fill the crop's square


def output_size(height: int, width: int, upscale: float) -> tuple[int, int]:
    """(height, width) after upscaling: exactly the rounded product, at least 1 px."""
    return max(1, round(height * upscale)), max(1, round(width * upscale))


def plan_paste(crops: Crops, upscale: float = 1.0, faces: Sequence[Faces] | None = None) -> PastePlan:
    """The places of all ``crops`` in their images enlarged by ``upscale``; one transfer if matrices are on a device.

    With ``faces``, all that were found in every image, masks keep to their own face; without, to their square.
    """
    matrices = crops.matrices.detach().cpu().double().numpy()
    index = crops.image_index.cpu().tolist()
    if len(matrices) != len(crops) or len(index) != len(crops):
        counts = f"{len(crops)} crops, {len(matrices)} matrices, {len(index)} image indices"
        raise BadOption(f"{counts}; give one of each per face.")
    sizes = tuple(output_size(*size, upscale) for size in crops.image_sizes)
    found: list[list[Region]] = [[] for _ in sizes]
    for face, (matrix, image) in enumerate(zip(matrices, index)):
        region = _region(face, matrix, crops.size, crops.image_sizes[image], sizes[image])
        if region is not None:
            found[image].append(region)
    if faces is not None:
        if len(faces) != len(sizes):
            raise BadOption(f"{len(faces)} lists of faces for {len(sizes)} images; give one (maybe empty) per image.")
        near = neighbours(crops, faces)
        found = [[replace(region, neighbours=near[region.face]) for region in regions] for regions in found]
    groups = tuple(_group(regions) for regions in found)
    return PastePlan(crops.size, upscale, sizes, groups, face_shaped=faces is not None)


def _region(
    face: int, matrix: np.ndarray, crop_size: int, size_in: tuple[int, int], size_out: tuple[int, int]
) -> Region | None:
    """None where the crop lies wholly outside the picture."""
    # The scale is that of the resized picture, side by side: rounding the size may make it differ from the upscale.
    scale = np.array([size_out[1] / size_in[1], size_out[0] / size_in[0]])
    linear = matrix[:, :2] / scale
    shift = matrix[:, 2] + matrix[:, :2] @ (0.5 / scale - 0.5)  # centre x of the output is (x + 0.5) / scale - 0.5
    if not np.isfinite(matrix).all() or abs(np.linalg.det(linear)) < 1e-12:
        raise BadOption(f"The matrix of face {face} cannot be inverted; leave that face out.")
    low, high = -0.5, crop_size - 0.5
    corners = np.array([[low, low], [high, low], [high, high], [low, high]])
    outline = (corners - shift) @ np.linalg.inv(linear).T
    seen = clip_to_picture(outline, size_out[1], size_out[0])
    if len(seen) < 3:
        return None
    (x0, y0), (x1, y1) = np.ceil(seen.min(0) - 1e-9), np.floor(seen.max(0) + 1e-9)
    box = max(0, int(x0)), max(0, int(y0)), min(size_out[1], int(x1) + 1), min(size_out[0], int(y1) + 1)
    if box[0] >= box[2] or box[1] >= box[3]:
        return None
    to_crop = (*linear[0], shift[0], *linear[1], shift[1])
    density = math.sqrt(abs(np.linalg.det(linear)))
    return Region(face, box, tuple(float(v) for v in to_crop), density, math.sqrt(polygon_area(seen)))


def clip_to_picture(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """The part [K,2] of a convex polygon inside the pixels of a picture, by Sutherland and Hodgman 1974."""
    for axis, bound, sign in ((0, -0.5, 1), (0, width - 0.5, -1), (1, -0.5, 1), (1, height - 0.5, -1)):
        inside = sign * (polygon[:, axis] - bound)
        kept: list[np.ndarray] = []
        for i in range(len(polygon)):
            j = (i + 1) % len(polygon)
            if inside[i] >= 0:
                kept.append(polygon[i])
            if (inside[i] >= 0) != (inside[j] >= 0):
                share = inside[i] / (inside[i] - inside[j])
                kept.append(polygon[i] + share * (polygon[j] - polygon[i]))
        polygon = np.array(kept).reshape(-1, 2)
    return polygon


def polygon_area(polygon: np.ndarray) -> float:
    """Area of a simple polygon [K,2] by the shoelace formula."""
    x, y = polygon.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _group(regions: Sequence[Region]) -> tuple[Group, ...]:
    """Join regions until no two groups share a pixel: only faces that meet have to be blended with each other."""
    return tuple(Group(box, tuple(members)) for box, members in joined([(each.box, each) for each in regions]))


def joined(parts: Sequence[tuple[Box, _Part]]) -> list[tuple[Box, list[_Part]]]:
    """Boxes, joined until none shares a pixel with another, with what lies in each."""
    groups: list[tuple[Box, list[_Part]]] = []
    for box, part in parts:
        members = [part]
        meeting = [g for g in groups if overlap(g[0], box)]
        while meeting:
            groups = [g for g in groups if not any(g is m for m in meeting)]
            for other, others in meeting:
                box = around(box, other)
                members = others + members
            meeting = [g for g in groups if overlap(g[0], box)]
        groups.append((box, members))
    return groups


def around(a: Box, b: Box) -> Box:
    """The smallest box with both in it."""
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def moved(box: Box, origin: Sequence[int]) -> Box:
    """``box`` in px from ``origin`` = (x, y)."""
    return box[0] - origin[0], box[1] - origin[1], box[2] - origin[0], box[3] - origin[1]


def overlap(a: Box, b: Box) -> Box | None:
    """The pixels two boxes share, or None."""
    box = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return box if box[0] < box[2] and box[1] < box[3] else None
