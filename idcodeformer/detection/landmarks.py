"""Landmarks looked at again in an upright crop of each face: steadier, and right for faces that lie on their side.

A detector's landmarks depend on how large and how tilted a face is in the picture: with RetinaFace mobile0.25 they are
off by 3 to 5 % of the eye distance, and by a third of it where the head is turned by 90 degrees. In a crop that is
aligned by these landmarks the face is upright and of the size the network knows best, and can be mirrored and averaged.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..geometry.templates import ffhq_template, fit_similarity, invert
from ..geometry.warping import warp
from ..types import Faces

SIDE = 192  # px of the crop; the face is about 110 px tall in it
MIRRORED = (1, 0, 2, 4, 3)  # which landmark each becomes in a mirrored face
_ROUNDS = 6  # most faces settle in one or two; those on their side need more
_SETTLED = 0.05  # of the eye distance: a face whose landmarks moved less is not looked at again
_SURE = 0.5  # probability below which what is seen in the crop is not taken for the face
_BEST = 32  # findings per crop that may vote
_FACES = 8  # per forward pass on the CPU; mirrored, they are 0.6 Mpx
_FACES_GPU = 128

See = Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]]
"""Crops [N,3,S,S] and a number K -> the K best findings of each: scores [N,K], boxes [N,K,4] and landmarks [N,K,5,2],
in px of the crop at pixel centres."""


def refine(see: See, images: Sequence[Tensor], faces: Sequence[Faces], device: torch.device) -> tuple[Faces, ...]:
    """``faces`` of ``images`` ([3,H,W] each) with landmarks seen in upright crops; boxes and scores stay.

    A face that the crop does not show keeps its landmarks. Mirroring shows which way a face is turned, so even faces
    upside down mostly come out upright.
    """
    places = [(i, k) for i, found in enumerate(faces) for k in range(len(found))]
    points = {place: faces[place[0]][place[1]].landmarks for place in places}
    moving = [place for place in places if bool(points[place].isfinite().all())]
    step = _FACES if device.type == "cpu" else _FACES_GPU
    for _ in range(_ROUNDS):
        still: list[tuple[int, int]] = []
        for start in range(0, len(moving), step):
            part = moving[start : start + step]
            before = torch.stack([points[place] for place in part])
            after = _round(see, images, before, torch.tensor([image for image, _ in part]))
            size = (before[:, 0] - before[:, 1]).norm(dim=1).maximum((before[:, 0] - before[:, 3]).norm(dim=1))
            moved = (after - before).norm(dim=2).mean(1) > _SETTLED * size
            points.update(zip(part, after, strict=True))
            still += [place for place, again in zip(part, moved.tolist(), strict=True) if again]
        moving = still
    return tuple(
        tuple(replace(face, landmarks=points[i, k].clone()) for k, face in enumerate(found))
        for i, found in enumerate(faces)
    )


def _round(see: See, images: Sequence[Tensor], landmarks: Tensor, index: Tensor) -> Tensor:
    """Landmarks [N,5,2] of the images, seen once more in crops that these landmarks align."""
    template = ffhq_template(SIDE)
    fits = [fit_similarity(face, template) for face in landmarks.cpu().double().numpy()]
    matrices = torch.from_numpy(np.stack(fits))
    crops = warp(images, matrices, index, SIDE)
    middle = torch.tensor(template.mean(0), dtype=torch.float32)
    seen, sure = _vote(*see(torch.cat([crops, crops.flip(3)]), _BEST), middle)
    rows = torch.cat([seen.flatten(1), sure[:, None]], 1).cpu().double()  # one transfer
    there, back = rows[:, :10].unflatten(1, (5, 2)).chunk(2)
    back = back[:, list(MIRRORED)] * torch.tensor([-1.0, 1.0]) + torch.tensor([SIDE - 1.0, 0.0])
    weights = rows[:, 10].reshape(2, -1, 1, 1)
    total = weights.sum(0)
    mean = (there * weights[0] + back * weights[1]) / total.clamp(min=1e-6)
    inverse = invert(matrices)
    in_image = (mean @ inverse[:, :, :2].mT + inverse[:, None, :, 2]).float()
    return torch.where(total > 0, in_image, landmarks)


def _vote(scores: Tensor, boxes: Tensor, landmarks: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """Mean landmarks [N,5,2] of all findings of the face in the middle, and its score [N], 0 where there is none."""
    middle = middle.to(boxes.device)
    around = (boxes[..., :2] < middle).all(-1) & (boxes[..., 2:] > middle).all(-1)
    scores = scores * around * (scores > _SURE)
    best, where = scores.max(1)
    box = boxes[torch.arange(len(boxes), device=boxes.device), where][:, None]
    shared = torch.minimum(boxes[..., 2:], box[..., 2:]) - torch.maximum(boxes[..., :2], box[..., :2])
    area = shared.clamp(min=0).prod(-1)
    union = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (box[..., 2:] - box[..., :2]).prod(-1) - area
    weight = scores * (area > 0.5 * union) * (scores >= 0.8 * best[:, None])
    mean = (landmarks * weight[..., None, None]).sum(1) / weight.sum(1).clamp(min=1e-6)[:, None, None]
    return mean, best
