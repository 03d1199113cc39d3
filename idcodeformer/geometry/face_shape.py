"""What an aligned crop holds without looking at it: how far each point lies from the middle of the face.

The crop is aligned by five points, so that the face lies in the same ellipse in all of them.
"""
from __future__ import annotations

import torch
from torch import Tensor

# In crop sides. Measured against label maps of aligned photographs (skin, brows, eyes, nose, mouth).
FACE_CENTRE = (0.5, 0.55)
FACE_AXES = (0.285, 0.375)  # half the width and half the height of a face from ear to ear and from hairline to chin


def face_distance(x: Tensor, y: Tensor) -> Tensor:
    """Distance of points (in crop sides, 0..1) from the middle of the face: below 1 inside its ellipse."""
    across = (x - FACE_CENTRE[0]) / FACE_AXES[0]
    down = (y - FACE_CENTRE[1]) / FACE_AXES[1]
    return (across.square() + down.square()).sqrt()


def crop_distance(side: int, device: torch.device | str | None = None) -> Tensor:
    """[side,side] ``face_distance`` of every pixel of a crop."""
    axis = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side
    return face_distance(axis, axis[:, None])
