"""Whose pixels are whose: where faces stand cheek to cheek, each mask ends where the other face is nearer.

Nearness is the distance from the middle of a face in sizes of that face (``geometry.face_shape``), so that a small face
before a large one keeps its own.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..geometry.face_shape import FACE_AXES, FACE_CENTRE, face_distance
from ..geometry.templates import fit_lmeds
from ..types import Crops, Face, Faces

_OWN = 0.35  # of the ellipse: a found face with its middle this near to that of a crop is the crop's own
_BLEND = 0.15  # of the ellipse, over which a mask falls to zero at the border to a neighbour
_GRID = np.stack(np.meshgrid(*[np.linspace(0, 1, 9)] * 2), -1).reshape(-1, 2)  # points of a crop, in its sides


@dataclass(frozen=True)
class Neighbour:
    """Another face that is nearer to some part of a crop than the crop's own."""

    to_theirs: tuple[float, float, float, float, float, float]  # crop -> their crop, in sides of each, row by row
    restored: bool  # then both are blended into each other; a face that is left alone is not touched at all


def neighbours(crops: Crops, faces: Sequence[Faces]) -> tuple[tuple[Neighbour, ...], ...]:
    """The neighbours of every crop among the other crops and ``faces`` (of every image, restored or not)."""
    own = _in_sides(crops.matrices.detach().cpu().double().numpy(), crops.size)
    index = crops.image_index.cpu().numpy()
    out: list[tuple[Neighbour, ...]] = [()] * len(crops)
    for image, here in enumerate(faces):
        mine = np.flatnonzero(index == image)
        if len(mine):
            left = _not_among(here, own[mine])
            every = np.concatenate([own[mine], left])
            for place, crop in enumerate(mine):
                out[crop] = _near(every, place, restored=len(mine))
    return tuple(out)


def own_part(near: Sequence[Neighbour], side: int, device: torch.device | str = "cpu") -> Tensor:
    """[side,side] in 0..1 over a crop: 0 where a neighbour that is left alone is nearer, 0.5 at the border to one that
    is restored too, 1 well inside the own part."""
    axis = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side
    x, y = axis[None], axis[:, None]
    mine, own = face_distance(x, y), torch.ones(side, side, device=device)
    for neighbour in near:
        xx, xy, x0, yx, yy, y0 = neighbour.to_theirs
        ahead = (face_distance(xx * x + xy * y + x0, yx * x + yy * y + y0) - mine) / _BLEND
        if neighbour.restored:
            own = torch.minimum(own, 0.5 + 0.5 * ahead)
        else:  # the mask is sampled between its pixels: zero must be reached one pixel before the border
            scale = math.sqrt(abs(xx * yy - xy * yx))
            own = torch.minimum(own, ahead - math.sqrt(2) * (1 + scale) / (FACE_AXES[0] * side * _BLEND))
    return own.clamp(0, 1)


def _in_sides(matrices: np.ndarray, size: int) -> np.ndarray:
    """Maps [N,2,3] to px of crops -> to sides of crops, 0..1 from border to border."""
    scaled = matrices / size
    scaled[:, :, 2] += 0.5 / size
    return scaled


def _not_among(faces: Sequence[Face], own: np.ndarray) -> np.ndarray:
    """Maps [M,2,3] of those ``faces`` that no crop (maps ``own`` [K,2,3]) shows in its middle."""
    real = [face for face in faces if not face.doubt and bool(face.landmarks.isfinite().all())]
    if not real:
        return np.zeros((0, 2, 3))
    maps = _in_sides(fit_lmeds(torch.stack([face.landmarks for face in real])).double().numpy(), 512)
    middles = np.stack([_inverse(one) @ (*FACE_CENTRE, 1.0) for one in maps])
    away = [_distance(middles @ crop[:, :2].T + crop[:, 2]) > _OWN for crop in own]
    return maps[np.all(away, axis=0)]


def _near(every: np.ndarray, place: int, restored: int) -> tuple[Neighbour, ...]:
    """Those faces of an image that come first somewhere in the crop at ``place``; the first ``restored`` are crops."""
    back = np.vstack([_inverse(every[place]), [0, 0, 1]])
    mine, found = _distance(_GRID), []
    for number, other in enumerate(every):
        if number == place:
            continue
        map_there = other @ back
        theirs = _distance(_GRID @ map_there[:, :2].T + map_there[:, 2])
        if (theirs < mine + 2 * _BLEND).any():
            found.append(Neighbour(tuple(map_there.ravel().tolist()), number < restored))
    return tuple(found)


def _distance(points: np.ndarray) -> np.ndarray:
    """``face_distance`` of points [...,2] on the host."""
    return np.sqrt((((points - FACE_CENTRE) / FACE_AXES) ** 2).sum(-1))


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Inverse [2,3] of an affine map [2,3]."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.hstack([linear, -linear @ matrix[:, 2:]])
