"""What is no face, which way up a face is, and faces that are found twice."""
from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from idcodeformer.detection import RetinaFaceDetector, load_detector, select, verification
from idcodeformer.detection.verification import (
    Trust,
    _doubt,
    _look_turned,
    _quarters,
    _turned_squares,
    confirmed,
    residual,
    verify,
)
from idcodeformer.geometry.templates import ffhq_template
from idcodeformer.types import DetectOptions, Face

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def detector() -> RetinaFaceDetector:
    return load_detector(device="cpu")


@pytest.fixture(scope="module")
def unverified(detector: RetinaFaceDetector) -> RetinaFaceDetector:
    return RetinaFaceDetector(detector.network, "cpu", steady=False)


@pytest.fixture(scope="module")
def portrait(root: Path) -> Tensor:
    return opened(root, "portrait.jpg")


def opened(root: Path, name: str) -> Tensor:
    with Image.open(root / "idcodeformer/assets" / name) as image:
        return torch.tensor(np.asarray(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def stone(seed: int, sigma: float) -> Tensor:
    """[3,256,256] smooth noise, as weathered rock is."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal((256, 256)), (0, 0), sigma)
    return torch.from_numpy(np.clip(noise / noise.std() * 0.18 + 0.5, 0, 1)).float().expand(3, -1, -1).contiguous()


def turned(image: Tensor, degrees: float, side: int) -> tuple[Tensor, np.ndarray]:
    """The image turned about its middle on a grey square of ``side`` px, and the map [2,3] of its points."""
    height, width = image.shape[1:]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    matrix[:, 2] += [(side - width) / 2, (side - height) / 2]
    pixels = image.permute(1, 2, 0).numpy()
    out = cv2.warpAffine(pixels, matrix, (side, side), borderValue=(0.5, 0.5, 0.5))
    return torch.from_numpy(out).permute(2, 0, 1), matrix


def test_the_residual_is_zero_for_the_template_and_ignores_where_it_lies() -> None:
    template = torch.tensor(ffhq_template(100)).float()
    eyes = float((template[0] - template[1]).norm())
    spun = template.flip(1) * torch.tensor([-2.0, 2.0]) + 7
    off = template.clone()
    off[2, 0] += 0.5 * eyes
    values = residual(torch.stack([template, spun, off, torch.full((5, 2), float("nan"))]))
    assert values[:2].tolist() == pytest.approx([0, 0], abs=1e-5)
    assert 0.15 < values[2] < 0.5 / 5**0.5  # half an eye distance on one of five points, less what the fit takes
    assert values[3] == float("inf")


@pytest.mark.parametrize(("seed", "sigma"), [(2, 10), (5, 10), (7, 8)])
def test_stone_is_no_face_and_the_reason_is_told(
    detector: RetinaFaceDetector, unverified: RetinaFaceDetector, seed: int, sigma: float
) -> None:
    picture = stone(seed, sigma)
    assert max(face.score for face in unverified([picture])[0]) > 0.95
    assert detector([picture]) == ((),)
    found = detector([picture], DetectOptions(doubtful=True))[0]
    chosen = select(found, DetectOptions(), (256, 256))
    assert found and not chosen.faces and len(chosen.dropped) == len(found)
    assert all(reason.startswith("no face is seen when looked at closely") for _, reason in chosen.dropped)


@pytest.mark.parametrize("degrees", [90, 135, 180, 240])
def test_a_head_is_found_however_it_lies(detector: RetinaFaceDetector, portrait: Tensor, degrees: float) -> None:
    """The landmarks bear the person's own names, so that the aligned crop is upright."""
    small = F.interpolate(portrait[None], (240, 240), mode="bilinear", antialias=True)[0]
    upright = detector([small])[0][0]
    picture, matrix = turned(small, degrees, 400)
    found = detector([picture])[0]
    assert len(found) == 1
    wanted = upright.landmarks.double().numpy() @ matrix[:, :2].T + matrix[:, 2]
    error = np.linalg.norm(found[0].landmarks.numpy() - wanted, axis=1)
    assert error.max() < 0.1 * upright.eye_distance
    x0, y0, x1, y1 = found[0].box.tolist()
    assert x0 < wanted[2, 0] < x1 and y0 < wanted[2, 1] < y1


def test_a_scan_upside_down_shows_all_its_faces(detector: RetinaFaceDetector, root: Path) -> None:
    group = opened(root, "group.jpg")
    upright = sorted(detector([group])[0], key=lambda face: float(face.box[0]))
    height, width = group.shape[1:]
    found = detector([torch.rot90(group, 2, (1, 2))])[0]
    back = [torch.tensor([width - 1.0, height - 1.0]) - face.landmarks for face in found]
    back.sort(key=lambda points: float(points[2, 0]))
    assert len(back) == len(upright) == 4
    for points, face in zip(back, upright, strict=True):
        assert (points - face.landmarks).norm(dim=1).max() < 0.1 * face.eye_distance


def test_a_face_in_a_tight_crop_is_found_once(
    detector: RetinaFaceDetector, unverified: RetinaFaceDetector, root: Path
) -> None:
    group = opened(root, "group.jpg")
    face = detector([group])[0][3]
    margin = 0.4 * face.eye_distance
    x0, y0 = (face.landmarks.amin(0) - margin).int().tolist()
    x1, y1 = (face.landmarks.amax(0) + margin).int().tolist()
    tight = group[:, y0:y1, x0:x1]
    tight = F.interpolate(tight[None], (100, round(100 * tight.shape[2] / tight.shape[1])), mode="bilinear")[0]
    assert len(unverified([tight])[0]) == 2
    assert len(detector([tight])[0]) == 1


def seen_everywhere(crops: Tensor, best: int) -> tuple[Tensor, Tensor, Tensor]:
    """A face that fits the template in every crop."""
    side = crops.shape[-1]
    points = torch.tensor(ffhq_template(side)).float().expand(len(crops), 1, 5, 2)
    boxes = torch.tensor([0.2, 0.2, 0.8, 0.9]).mul(side).expand(len(crops), 1, 4)
    return torch.full((len(crops), 1), 0.9999), boxes, points


def placed(x: float, y: float, side: float, score: float) -> Face:
    points = torch.tensor(ffhq_template(100)).float() * (side / 100) + torch.tensor([x, y])
    return Face(torch.tensor([x, y, x + side, y + side]), score, points)


def test_of_findings_that_share_their_middle_the_best_stays_and_neighbours_both() -> None:
    first, again = placed(20, 20, 60, 0.9), placed(22, 21, 58, 0.97)
    larger, beside = placed(0, 0, 100, 0.85), placed(56, 20, 60, 0.8)
    trust = Trust(0.995, 0.6)
    everything = (first, again, larger, beside)
    found = verify(seen_everywhere, [torch.zeros(3, 140, 140)], [everything], CPU, DetectOptions(), trust)[0]
    assert [face.score for face in found] == [0.97, 0.8]


def test_what_is_not_clearly_seen_is_looked_at_closely_and_the_better_view_stays(monkeypatch) -> None:
    faces = (placed(0, 0, 40, 0.9), placed(50, 0, 40, 0.9), placed(0, 50, 40, 0.9))
    asked: list[list[float]] = []

    def settle(see, images, points, index, device):
        return points.clone(), torch.tensor([0.95, 0.3, 0.89])  # clear from 0.9 on

    def closer(see, images, boxes, index, device):
        asked.append(boxes[:, :2].flatten().tolist())
        odd = torch.full((2, 5, 2), 7.0)
        return odd, torch.tensor([0.99, 0.2]), torch.tensor([0.01, 0.01])

    monkeypatch.setattr(verification, "settle", settle)
    monkeypatch.setattr(verification, "_look_closely", closer)
    (found,) = confirmed(seen_everywhere, [torch.zeros(3, 99, 99)], [faces], CPU, Trust(0.9, 0.6))
    assert asked == [[50, 0, 0, 50]]
    assert found[1].landmarks.eq(7).all() and found[1].doubt == ""  # seen better so
    assert torch.equal(found[2].landmarks, faces[2].landmarks) and torch.equal(found[0].landmarks, faces[0].landmarks)


@pytest.mark.parametrize("side", [384, 60])
def test_what_a_turned_picture_shows_lies_where_it_is(side: int) -> None:
    """A bright spot of a picture of 100 x 60 px, seen in each of three turned views, shrunk or not."""
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(100.0), indexing="ij")
    image = torch.exp(-((x - 70) ** 2 + (y - 20) ** 2) / 18).expand(3, -1, -1)
    spreads = []

    def see(views: Tensor, best: int) -> tuple[Tensor, Tensor, Tensor]:
        places = []
        for view in views[:, 0]:
            total = view.sum()
            places.append([float((view.sum(0) * torch.arange(view.shape[1])).sum() / total),
                           float((view.sum(1) * torch.arange(view.shape[0])).sum() / total)])  # fmt: skip
            spreads.append(view.shape)
        spot = torch.tensor(places)[:, None]
        boxes = torch.cat([spot - torch.tensor([5.0, 3.0]), spot + torch.tensor([5.0, 3.0])], 2)
        found = torch.cat([boxes, boxes + 40], 1), torch.stack([spot] * 2, 1).expand(-1, 2, 5, 2)
        return torch.tensor([[0.9, 0.4]]).expand(len(views), 2), *found

    faces = _look_turned(see, image, (1, 2, 3), side, 0.5)
    assert len(faces) == 3 and all(shape == (min(side, 100),) * 2 for shape in spreads)
    scale = 100 / min(side, 100)
    for face, (across, down) in zip(faces, ((6, 10), (10, 6), (6, 10))):
        assert face.score == pytest.approx(0.9)
        assert (face.landmarks - torch.tensor([70.0, 20.0])).abs().max() < 0.15 * scale
        x0, y0, x1, y1 = face.box.tolist()
        assert (x1 - x0, y1 - y0) == pytest.approx((across * scale, down * scale), abs=0.01)
        assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((70, 20), abs=0.15 * scale)


def test_a_picture_is_turned_as_most_of_its_faces_lie() -> None:
    points = torch.tensor(ffhq_template(100)).float()
    turns = [points]
    for _ in range(3):
        turns.append(torch.stack([99 - turns[-1][:, 1], turns[-1][:, 0]], 1))  # by a quarter, clockwise as seen
    assert _quarters(torch.stack(turns)).tolist() == [0, 3, 2, 1]
    assert _quarters(torch.stack(turns) + torch.tensor([700.0, 20.0])).tolist() == [0, 3, 2, 1]  # wherever they lie
    for number, one in enumerate(turns):
        boxes = torch.tensor([[0.0, 0, 99, 99]])
        matrix = _turned_squares(boxes, 192)[0, int(_quarters(one[None])[0])]
        upright = one.double() @ matrix[:, :2].T + matrix[:, 2]
        eyes, mouth = upright[:2].mean(0), upright[3:].mean(0)
        assert mouth[1] > eyes[1] + 20 and upright[0, 0] < upright[1, 0], number
        assert float((upright.mean(0) - 95.5).abs().max()) < 40


def test_a_doubt_names_its_reason_and_a_face_has_none() -> None:
    trust = Trust(0.9, 0.6)
    assert _doubt(0.6, 0.3, trust) == "" == _doubt(0.1, math.inf, trust)
    assert "no face is seen" in _doubt(0.59, 0.1, trust) and "probability 0.59" in _doubt(0.59, 0.1, trust)
    assert "0.40 eye distances off" in _doubt(0.99, 0.4, trust)
