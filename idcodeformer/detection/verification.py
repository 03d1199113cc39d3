"""Whether a finding is a face, which way up it is, and that no face is found twice: the same for every detector.

A detector finds faces in rock and sand with scores up to 0.99, and takes the mouth of a head that is upside down for
its eyes. An upright crop tells them apart: a face is seen in it with a probability near 1, a pattern not at all, a head
that is upside down better once it is turned. Only where a finding is doubtful it is looked at in four directions.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..files.pixels import floats
from ..geometry.face_shape import face_distance
from ..geometry.resizing import resize
from ..geometry.templates import ffhq_template, fit_similarity
from ..geometry.warping import warp
from ..types import DetectOptions, Face, Faces
from .landmarks import BEST, SIDE, See, face_size, settle, to_image, vote
from .suppression import suppress

_PLAIN = 0.2  # residual of the landmarks, in eye distances, up to which it needs none; half the faces have 0.07
_LIKE_A_FACE = 0.36  # and above which it is no face; profiles reach 0.31
_ROOM = 1.5  # side of the turned crops in lengths of the box
_WEIGHT = 10.0  # of the residual against the log-odds of the probability, where directions are compared
_AT_ONCE = 8  # faces whose turned crops are looked at together
_WHOLE = 384  # px: the longer side of a picture that is turned because nothing was found in it
_WHOLE_TURNED = 640  # px: of one that is turned because a face in it is
_WHOLE_BEST = 256  # findings of a turned picture at most
_IN_BOX = ((0.26, 0.4), (0.74, 0.4), (0.5, 0.6), (0.3, 0.75), (0.7, 0.75))  # landmarks, in lengths of the box
_SAME = 0.7  # of the face's own ellipse: nearer to the middle of a face no other face has its middle
_NMS = 0.4  # intersection over union


@dataclass(frozen=True)
class Trust:
    """What the probabilities of a detector mean."""

    clear: float  # probability above which a face needs no further look
    face: float  # probability in an upright crop (mean of the crop and its mirror image) below which it is no face


def residual(points: Tensor) -> Tensor:
    """[N]: how far landmarks [N,5,2] lie from the FFHQ template after the best similarity, root mean square, in eye
    distances of the template. Points that are not finite give infinity."""
    template = ffhq_template(512)
    eyes = float(np.linalg.norm(template[0] - template[1]))
    out = torch.full((len(points),), math.inf)
    for number, face in enumerate(points.cpu().double().numpy()):
        if np.isfinite(face).all():
            fit = fit_similarity(face, template)
            off = face @ fit[:, :2].T + fit[:, 2] - template
            out[number] = float(np.sqrt((off**2).sum(1).mean())) / eyes
    return out


def verify(
    see: See,
    images: Sequence[Tensor],
    faces: Sequence[Faces],
    device: torch.device,
    options: DetectOptions,
    trust: Trust,
) -> tuple[Faces, ...]:
    """``faces`` of ``images`` ([3,H,W] each), best first, each once, with steady landmarks named by the person's own
    left and right, whichever way the head lies. Boxes and scores stay. What is no face is left out, or with
    ``options.doubtful`` has a ``doubt``.

    ``see`` looks at crops with the detector's network, which works on ``device``. Pictures without a face, or with
    turned ones, are looked at again turned; faces found there must score ``options.confidence``.
    """
    checked = _checked(see, images, faces, device, trust)
    turned = _turned_pictures(see, images, checked, options.confidence)
    if any(turned):
        more = _checked(see, images, turned, device, trust)
        checked = [(*first, *(f for f in second if not f.doubt)) for first, second in zip(checked, more, strict=True)]
    return tuple(_once([f for f in found if options.doubtful or not f.doubt]) for found in checked)


def confirmed(
    see: See, images: Sequence[Tensor], faces: Sequence[Faces], device: torch.device, trust: Trust
) -> tuple[Faces, ...]:
    """``faces`` that something else has found, in their order, each with landmarks as seen here and a ``doubt`` where
    no face is seen. Their own landmarks need only be about right (``face_in_box``)."""
    return tuple(_checked(see, images, faces, device, trust))


def face_in_box(box: Tensor, score: float = 1.0) -> Face:
    """A face of which only the box [4] is known, with the landmarks that an upright one would have in it."""
    size = box[2:] - box[:2]
    return Face(box, score, box[:2] + torch.tensor(_IN_BOX) * size)


def _checked(
    see: See, images: Sequence[Tensor], faces: Sequence[Faces], device: torch.device, trust: Trust
) -> list[Faces]:
    """Every face with its landmarks settled, turned where it is seen better so, and its doubt."""
    flat = [(number, face) for number, found in enumerate(faces) for face in found]
    if not flat:
        return [()] * len(images)
    index = torch.tensor([number for number, _ in flat])
    points = torch.stack([face.landmarks for _, face in flat])
    points, sure = settle(see, images, points, index, device)
    off = residual(points)
    doubtful = (sure < trust.clear) | (off > _PLAIN)
    doubtful = (doubtful & points.flatten(1).isfinite().all(1)).nonzero().flatten()
    boxes = torch.stack([face.box for _, face in flat])
    if len(doubtful):
        looked = _look_closely(see, images, boxes[doubtful], index[doubtful], device)
        better = _merit(*looked[1:]) > _merit(sure[doubtful], off[doubtful])
        for mine, new in zip((points, sure, off), looked, strict=True):
            mine[doubtful[better]] = new[better]
    out: list[list[Face]] = [[] for _ in images]
    for n, (number, face) in enumerate(flat):
        doubt = _doubt(float(sure[n]), float(off[n]), trust)
        out[number].append(replace(face, landmarks=points[n].clone(), doubt=doubt))
    return [tuple(found) for found in out]


def _look_closely(
    see: See, images: Sequence[Tensor], boxes: Tensor, index: Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Landmarks [N,5,2], probability and residual [N] of what lies in ``boxes`` [N,4], in the best of four directions;
    where nothing is seen the probability is 0."""
    points, seen = _best_direction(see, images, boxes, index)
    sure, off = torch.zeros(len(boxes)), torch.full((len(boxes),), math.inf)
    places = seen.nonzero().flatten()
    if len(places):
        points[places], sure[places] = settle(see, images, points[places], index[places], device)
        off[places] = residual(points[places])
    return points, sure, off


def _doubt(sure: float, off: float, trust: Trust) -> str:
    """Why a finding is taken for no face; empty for a face. Landmarks that are not numbers are told elsewhere."""
    if math.isinf(off):
        return ""
    if sure < trust.face:
        return f"no face is seen when looked at closely (probability {sure:.2f})"
    if off > _LIKE_A_FACE:
        return f"its landmarks do not lie as in a face ({off:.2f} eye distances off)"
    return ""


def _merit(sure: Tensor, off: Tensor) -> Tensor:
    """How well a face is seen: log-odds of its probability, less for landmarks that lie oddly."""
    return torch.logit(sure.clamp(1e-4, 1 - 1e-4)) - _WEIGHT * off


def _best_direction(see: See, images: Sequence[Tensor], boxes: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Landmarks [N,5,2] of the faces in ``boxes`` [N,4] as the best of four directions shows them, and whether any
    does [N]."""
    points, seen = torch.zeros(len(boxes), 5, 2), torch.zeros(len(boxes), dtype=torch.bool)
    for start in range(0, len(boxes), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        matrices = _turned_squares(boxes[part], SIDE)
        crops = warp(images, matrices.flatten(0, 1), index[part].repeat_interleave(4), SIDE)
        middle = torch.full((2,), (SIDE - 1) / 2)
        there, sure = (t.cpu() for t in vote(*see(crops, BEST), middle))
        there, sure = there.double().unflatten(0, (-1, 4)), sure.float().unflatten(0, (-1, 4))
        merit = _merit(sure, residual(there.flatten(0, 1)).view_as(sure)).masked_fill(sure == 0, -math.inf)
        best = merit.argmax(1)
        row = torch.arange(len(best))
        points[part] = to_image(there[row, best], matrices[row, best]).float()
        seen[part] = sure[row, best] > 0
    return points, seen


def _turned_squares(boxes: Tensor, side: int) -> Tensor:
    """Maps [N,4,2,3] of squares around ``boxes`` to crops of ``side`` px, turned by 0, 90, 180 and 270 degrees."""
    boxes = boxes.double()
    length = (boxes[:, 2:] - boxes[:, :2]).amax(1).clamp(min=1e-3)
    scale = (side / _ROOM) / length
    turns = torch.arange(4, dtype=torch.float64) * (math.pi / 2)
    cos, sin = turns.cos().round(), turns.sin().round()
    rotation = torch.stack([cos, -sin, sin, cos], 1).view(4, 2, 2)
    linear = scale[:, None, None, None] * rotation
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    shift = (side - 1) / 2 - (linear @ middle[:, None, :, None])
    return torch.cat([linear, shift], 3)


def _turned_pictures(
    see: See, images: Sequence[Tensor], faces: Sequence[Faces], confidence: float
) -> list[Faces]:
    """What pictures show when turned: in all three directions where nothing was found, else as most faces lie."""
    out: list[Faces] = []
    for image, found in zip(images, faces, strict=True):
        sure = [face for face in found if not face.doubt]
        if not sure:
            out.append(_look_turned(see, image, (1, 2, 3), _WHOLE, confidence))
            continue
        turns = _quarters(torch.stack([face.landmarks for face in sure])).tolist()
        most = max(set(turns), key=turns.count)
        out.append(_look_turned(see, image, (most,), _WHOLE_TURNED, confidence) if most else ())
    return out


def _quarters(points: Tensor) -> Tensor:
    """[N] by how many quarters a picture must be turned, as ``_turned_squares`` does, for these faces to be upright."""
    down = points[:, 3:].mean(1) - points[:, :2].mean(1)
    angle = torch.atan2(down[:, 0], down[:, 1]).nan_to_num()
    return (angle / (math.pi / 2)).round().long() % 4


def _look_turned(see: See, image: Tensor, turns: tuple[int, ...], side: int, confidence: float) -> Faces:
    """Faces [each a finding] of one picture in a square of ``side`` px, turned by these quarters."""
    height, width = image.shape[1:]
    scale = min(1.0, side / max(height, width))
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels = floats(image[None]) if small == (height, width) else resize(image[None], small)
    views, maps = [], []
    longest = max(small)
    ratio = torch.tensor([small[1] / width, small[0] / height], dtype=torch.float64)
    for turn in turns:
        turned = torch.rot90(pixels, -turn, (2, 3))
        views.append(F.pad(turned, (0, longest - turned.shape[3], 0, longest - turned.shape[2])))
        maps.append(_map_of_turn(turn, small, ratio))
    scores, boxes, points = (t.cpu() for t in see(torch.cat(views), _WHOLE_BEST))
    out: list[Face] = []
    for view, matrix in enumerate(maps):
        good = scores[view] > confidence
        kept = suppress(boxes[view][good], scores[view][good], _NMS)
        corners = to_image(boxes[view][good][kept].double().unflatten(1, (2, 2)), matrix[None].expand(len(kept), 2, 3))
        low, high = corners.amin(1), corners.amax(1)
        places = to_image(points[view][good][kept].double(), matrix[None].expand(len(kept), 2, 3))
        for score, a, b, five in zip(scores[view][good][kept].tolist(), low, high, places, strict=True):
            out.append(Face(torch.cat([a, b]).float(), score, five.float()))
    return tuple(out)


def _map_of_turn(turn: int, small: tuple[int, int], ratio: Tensor) -> Tensor:
    """[2,3] from px of the picture to px of its reduced copy (height, width) = ``small`` after these quarter turns."""
    height, width = small
    rotation = {
        0: [[1, 0, 0], [0, 1, 0]],
        1: [[0, -1, height - 1], [1, 0, 0]],
        2: [[-1, 0, width - 1], [0, -1, height - 1]],
        3: [[0, 1, 0], [-1, 0, width - 1]],
    }[turn]
    matrix = torch.tensor(rotation, dtype=torch.float64)
    linear = matrix[:, :2] * ratio
    return torch.cat([linear, (matrix[:, :2] @ (0.5 * ratio - 0.5) + matrix[:, 2])[:, None]], 1)


def _once(faces: Sequence[Face]) -> Faces:
    """Best first, and without findings whose middle lies well inside a better face."""
    order = sorted(faces, key=lambda face: (bool(face.doubt), -face.score))
    kept: list[Face] = []
    owners = np.empty((0, 2, 3))  # of the kept faces that are in no doubt
    for face in order:
        finite = bool(face.landmarks.isfinite().all())
        if finite and _inside(face.landmarks.double().mean(0).numpy(), owners):
            continue
        kept.append(face)
        if finite and not face.doubt and float(face_size(face.landmarks[None])) >= 1e-3:
            fit = fit_similarity(face.landmarks.double().numpy(), ffhq_template(1))
            owners = np.concatenate([owners, fit[None]])
    return tuple(sorted(kept, key=lambda face: -face.score))


def _inside(middle: np.ndarray, owners: np.ndarray) -> bool:
    """Whether a point [2] lies where only a face can be that one of ``owners`` [N,2,3] maps to a crop of one pixel."""
    x, y = torch.from_numpy(owners[:, :, :2] @ middle + owners[:, :, 2] + 0.5).unbind(1)
    return bool((face_distance(x, y) < _SAME).any())
