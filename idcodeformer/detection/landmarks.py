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
from ..types import Face, Faces

SIDE = 192  # px of the crop; the face is about 110 px tall in it
MIRRORED = (1, 0, 2, 4, 3)  # which landmark each becomes in a mirrored face
_ROUNDS = 6  # most faces settle in one or two; those on their side need more
_SETTLED = 0.05  # of the eye distance: a face whose landmarks moved less is not looked at again
_SURE = 0.5  # probability below which what is seen in the crop is not taken for the face
BEST = 32  # findings per crop that may vote
_FACES = 8  # per forward pass on the CPU; mirrored, they are 0.6 Mpx
_FACES_GPU = 128

See = Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]]
"""Crops [N,3,S,S] and a number K -> the K best findings of each: scores [N,K], boxes [N,K,4] and landmarks [N,K,5,2],
in px of the crop at pixel centres."""


def refine(see: See, images: Sequence[Tensor], faces: Sequence[Faces], device: torch.device) -> tuple[Faces, ...]:
    """``faces`` of ``images`` ([3,H,W] each) with landmarks as ``settle`` gives them; boxes and scores stay."""
    flat = [(number, face) for number, found in enumerate(faces) for face in found]
    if not flat:
        return tuple(() for _ in faces)
    index = torch.tensor([number for number, _ in flat])
    points, _ = settle(see, images, torch.stack([face.landmarks for _, face in flat]), index, device)
    out: list[list[Face]] = [[] for _ in faces]
    for (number, face), seen in zip(flat, points, strict=True):
        out[number].append(replace(face, landmarks=seen.clone()))
    return tuple(tuple(found) for found in out)


def settle(
    see: See, images: Sequence[Tensor], points: Tensor, index: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Landmarks [N,5,2] of faces in ``images[index]`` ([3,H,W] each) as seen in upright crops, and how sure of each
    the last look was [N]: the mean of the face's probability in the crop and in its mirror image, 0 where unseen.

    A face that the crop does not show keeps its landmarks. ``device`` is where ``see`` works; all else is on the CPU.
    """
    points, sure = points.clone(), torch.zeros(len(points))
    moving = [n for n in range(len(points)) if bool(points[n].isfinite().all())]
    step = _FACES if device.type == "cpu" else _FACES_GPU
    for _ in range(_ROUNDS):
        still: list[int] = []
        for start in range(0, len(moving), step):
            part = moving[start : start + step]
            before = points[part]
            after, sure[part] = _round(see, images, before, index[part])
            moved = (after - before).norm(dim=2).mean(1) > _SETTLED * face_size(before)
            points[part] = after
            still += [n for n, again in zip(part, moved.tolist(), strict=True) if again]
        moving = still
    return points, sure


def face_size(points: Tensor) -> Tensor:
    """[N] px: the distance between the eyes or from eye to mouth, whichever is longer, so that a profile has one."""
    return (points[:, 0] - points[:, 1]).norm(dim=1).maximum((points[:, 0] - points[:, 3]).norm(dim=1))


def _round(see: See, images: Sequence[Tensor], landmarks: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Landmarks [N,5,2] of the images, seen once more in crops that these landmarks align, and how surely."""
    template = ffhq_template(SIDE)
    fits = [fit_similarity(face, template) for face in landmarks.cpu().double().numpy()]
    matrices = torch.from_numpy(np.stack(fits))
    crops = warp(images, matrices, index, SIDE)
    middle = torch.tensor(template.mean(0), dtype=torch.float32)
    seen, sure = vote(*see(torch.cat([crops, crops.flip(3)]), BEST), middle)
    rows = torch.cat([seen.flatten(1), sure[:, None]], 1).cpu().double()  # one transfer
    there, back = rows[:, :10].unflatten(1, (5, 2)).chunk(2)
    back = back[:, list(MIRRORED)] * torch.tensor([-1.0, 1.0]) + torch.tensor([SIDE - 1.0, 0.0])
    weights = rows[:, 10].reshape(2, -1, 1, 1)
    total = weights.sum(0)
    mean = (there * weights[0] + back * weights[1]) / total.clamp(min=1e-6)
    in_image = to_image(mean, matrices).float()
    return torch.where(total > 0, in_image, landmarks), total.flatten().float() / 2


def to_image(points: Tensor, matrices: Tensor) -> Tensor:
    """Points [N,K,2] of crops as points of the images; ``matrices`` [N,2,3] map image -> crop."""
    inverse = invert(matrices)
    return points @ inverse[:, :, :2].mT + inverse[:, None, :, 2]


def vote(scores: Tensor, boxes: Tensor, landmarks: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
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
