"""Finding faces: the reference's decoding, exact mapping to the picture, tiny faces, odd pictures."""
from __future__ import annotations

import math
import os
import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou, nms

from idcodeformer.detection import RetinaFaceDetector, SCRFDDetector, load_detector, scrfd
from idcodeformer.detection.landmarks import MIRRORED, SIDE, face_size, settle, vote
from idcodeformer.detection.outside import as_bytes
from idcodeformer.detection.retinaface import NMS_THRESHOLD, _facts, _merge, _View, _whole, decode, priors
from idcodeformer.detection.suppression import suppress
from idcodeformer.errors import BadImage, MissingWeights, OutOfMemory, UnsupportedWeights
from idcodeformer.geometry.templates import ffhq_template
from idcodeformer.types import DetectOptions, Face

GOLDENS = Path(__file__).parent / "data" / "retinaface_post.npz"


def photo(root: Path, name: str) -> Tensor:
    with Image.open(root / "idcodeformer" / "assets" / name) as image:
        return torch.tensor(np.asarray(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def resized(image: Tensor, height: int, width: int) -> Tensor:
    return nn.functional.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)


@pytest.fixture(scope="module")
def detector() -> RetinaFaceDetector:
    return load_detector(device="cpu")


@pytest.fixture(scope="module")
def group(root: Path) -> Tensor:
    return photo(root, "group.jpg")


@pytest.fixture(scope="module")
def portrait(root: Path) -> Tensor:
    return photo(root, "portrait.jpg")


# ---------------------------------------------------------------- the reference's post-processing
def test_priors_decode_and_nms_match_the_reference() -> None:
    goldens = np.load(GOLDENS)
    height, width = int(goldens["height"]), int(goldens["width"])
    anchors = priors(height, width)
    assert len(anchors) == sum(-(-height // s) * -(-width // s) * 2 for s in (8, 16, 32))
    assert np.abs(anchors[:: int(goldens["priors_step"])].numpy() - goldens["priors_sample"]).max() < 1e-6
    offsets, points = torch.tensor(goldens["offsets"]), torch.tensor(goldens["points"])
    boxes, landmarks = decode(anchors[goldens["index"]], offsets, points)
    scores = torch.tensor(goldens["scores"])
    kept = suppress(boxes * torch.tensor([width, height] * 2), scores, NMS_THRESHOLD)
    assert kept.tolist() == goldens["kept"].tolist()
    extent = torch.tensor([width, height], dtype=torch.float32)
    boxes, landmarks = boxes.unflatten(1, (2, 2)) * extent, landmarks * extent
    rows = torch.cat([boxes.flatten(1), scores[:, None], landmarks.flatten(1)], 1)[kept]
    assert np.abs(rows.numpy() - goldens["result"]).max() < 1e-3


def test_suppression_is_torchvisions() -> None:
    draw = torch.Generator().manual_seed(5)
    corner, side = torch.rand(300, 2, generator=draw) * 60 - 5, torch.rand(300, 2, generator=draw) * 30 + 1
    boxes, scores = torch.cat([corner, corner + side], 1), torch.rand(300, generator=draw)
    groups = torch.randint(0, 3, (300,), generator=draw)
    for overlap in (0.1, 0.4):
        assert suppress(boxes, scores, overlap).tolist() == nms(boxes, scores, overlap).tolist()
        expected = batched_nms(boxes, scores, groups, overlap).tolist()
        assert suppress(boxes, scores - 2, overlap, groups.float()).tolist() == expected
    assert suppress(boxes[:0], scores[:0], 0.4).tolist() == []
    assert suppress(boxes[:1], scores[:1], 0.4, groups[:1]).tolist() == [0]


@pytest.mark.parity
@pytest.mark.parametrize("network", ["retinaface", "retinaface_mobile0.25"])
def test_raw_outputs_match_the_goldens(network: str) -> None:
    from idcodeformer.weights.loading import build

    folder = os.environ["IDCODEFORMER_PARITY"]
    sys.path.insert(0, folder)
    import recipe

    goldens = np.load(os.path.join(folder, "facenets.npz"))
    detector = RetinaFaceDetector(build(recipe.torch_state_dict(network), "retinaface"), "cpu")
    for seed, height, width in ((4, 256, 320), (8, 301, 422)):
        bgr = torch.tensor(recipe.image_u8(seed, height, width)).permute(2, 0, 1)[None].float() / 255
        boxes, scores, points = detector.raw(bgr.flip(1))
        for name, mine in (("loc", boxes), ("landms", points)):
            assert np.abs(mine[0].numpy() - goldens[f"{network}/{height}x{width}/{name}"]).max() < 1e-4
        assert np.abs(scores[0].numpy() - goldens[f"{network}/{height}x{width}/conf"][:, 1]).max() < 1e-4


def test_unsteadied_findings_are_those_of_facexlib(detector: RetinaFaceDetector, portrait: Tensor) -> None:
    retinaface = pytest.importorskip("facexlib.detection.retinaface")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it names a torchvision argument by its old name
        reference = retinaface.RetinaFace("mobile0.25", device=torch.device("cpu")).eval()
    reference.load_state_dict(detector.network.state_dict())
    image = (resized(portrait, 640, 640) * 255).round() / 255
    plain = RetinaFaceDetector(detector.network, "cpu", steady=False)
    pixels = np.ascontiguousarray((image.flip(0) * 255).round().permute(1, 2, 0).numpy())
    with torch.no_grad():
        theirs = torch.tensor(reference.detect_faces(pixels, 0.8, NMS_THRESHOLD))
    mine = plain([image])[0]
    assert len(mine) == len(theirs) == 1
    # facexlib hands out edge coordinates (the first pixel's centre is 0.5); ours are pixel centres.
    assert torch.allclose(mine[0].box + 0.5, theirs[0, :4], atol=5e-3)
    assert torch.allclose(mine[0].landmarks + 0.5, theirs[0, 5:].reshape(5, 2), atol=5e-3)
    assert mine[0].score == pytest.approx(float(theirs[0, 4]), abs=1e-5)


# ---------------------------------------------------------------- what is found, and where
def test_finds_the_four_people(detector: RetinaFaceDetector, group: Tensor) -> None:
    faces = sorted(detector([group])[0], key=lambda face: float(face.box[0]))
    assert len(faces) == 4
    for face, middle in zip(faces, (157, 443, 725, 1000), strict=True):
        assert 0.9 < face.score <= 1 and face.box.dtype == face.landmarks.dtype == torch.float32
        assert abs(float(face.box[0] + face.box[2]) / 2 - middle) < 20
        assert 70 < face.eye_distance < 100
        left, right, nose, left_mouth, right_mouth = face.landmarks.tolist()
        assert left[0] < nose[0] < right[0] and left_mouth[0] < right_mouth[0]
        assert max(left[1], right[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


def test_scores_are_probabilities_in_order_and_confidence_is_a_threshold(
    detector: RetinaFaceDetector, group: Tensor
) -> None:
    picture = group.clone()
    picture[:, 150:, 300:600] = 0.5  # of the second face only the forehead and the eyes are left
    every = detector([picture], DetectOptions(confidence=0.02))[0]
    scores = [face.score for face in every]
    assert len(every) >= 3 and scores == sorted(scores, reverse=True)
    assert 0.02 < scores[-1] and 0.9 < scores[0] <= 1
    strict = detector([picture], DetectOptions(confidence=scores[1]))[0]
    assert [face.score for face in strict] == scores[:1]
    assert detector([picture], DetectOptions(confidence=1.0)) == ((),)


@pytest.mark.parametrize("factor", [2, 3])
def test_points_scale_about_pixel_centres(detector: RetinaFaceDetector, portrait: Tensor, factor: int) -> None:
    """The same working picture, reached from another size, gives the same points of the picture."""
    small = resized(portrait, 300, 300)
    large = small.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    detector_once = RetinaFaceDetector(detector.network, "cpu", second_look=False)
    one, other = detector_once([small])[0][0], detector_once([large])[0][0]
    difference = (one.landmarks + 0.5) * factor - 0.5 - other.landmarks
    assert difference.norm(dim=1).mean() < 0.02 * other.eye_distance
    assert difference.mean(0).abs().max() < 0.006 * other.eye_distance  # half a pixel of the small picture is 0.012


def mirrored(faces: Sequence[Face], width: int) -> list[Tensor]:
    """Landmarks of the faces of a mirrored picture as they would lie in the picture, from left to right."""
    back = [f.landmarks[list(MIRRORED)] * torch.tensor([-1.0, 1.0]) + torch.tensor([width - 1.0, 0.0]) for f in faces]
    return sorted(back, key=lambda points: float(points[2, 0]))


def test_looking_again_steadies_the_landmarks(detector: RetinaFaceDetector, group: Tensor) -> None:
    """Distance between the landmarks of the picture and of its mirror image, looked at once and again."""
    unsteadiness = {}
    for steady in (True, False):
        which = RetinaFaceDetector(detector.network, "cpu", steady=steady)
        there, back = which([group, group.flip(2)])
        there = sorted(there, key=lambda f: float(f.landmarks[2, 0]))
        pairs = zip(there, mirrored(back, group.shape[2]), strict=True)
        errors = [float((points - f.landmarks).norm(dim=1).mean()) / f.eye_distance for f, points in pairs]
        unsteadiness[steady] = sum(errors) / 4
    assert unsteadiness[True] < min(0.03, 0.7 * unsteadiness[False])


@pytest.mark.parametrize("turns", [1, 3])
def test_a_face_on_its_side_has_its_landmarks_there(
    detector: RetinaFaceDetector, portrait: Tensor, turns: int
) -> None:
    upright = detector([portrait])[0][0]
    turned = detector([torch.rot90(portrait, turns, (1, 2))])[0][0]
    points = turned.landmarks
    for _ in range(turns):  # rot90 takes (x, y) to (y, W-1-x); undo that
        points = torch.stack([portrait.shape[2] - 1 - points[:, 1], points[:, 0]], 1)
    assert (points - upright.landmarks).norm(dim=1).mean() < 0.05 * upright.eye_distance


def test_looking_again_moves_landmarks_only_where_the_crop_shows_the_face(group: Tensor) -> None:
    points, index = torch.tensor(ffhq_template(64)).float()[None], torch.zeros(1, dtype=torch.long)
    wanted = torch.tensor(ffhq_template(SIDE)).float()
    box = torch.tensor([0.0, 0, SIDE - 1, SIDE - 1])

    def shifted(crops: Tensor, best: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sees the face 1.5 px to the right of the template; in the mirrored half accordingly to the left."""
        assert crops.shape == (2, 3, SIDE, SIDE)
        there = wanted + torch.tensor([1.5, 0.0])
        back = there[list(MIRRORED)] * torch.tensor([-1.0, 1.0]) + torch.tensor([SIDE - 1.0, 0.0])
        return torch.tensor([[0.9], [0.7]]), box.expand(2, 1, 4), torch.stack([there, back])[:, None]

    def blind(crops: Tensor, best: int) -> tuple[Tensor, Tensor, Tensor]:
        scores, boxes, landmarks = shifted(crops, best)
        return scores * 0.5, boxes, landmarks

    device = torch.device("cpu")
    seen, sure = settle(shifted, [group], points, index, device)
    assert torch.allclose(seen, points + torch.tensor([1.5 * 64 / SIDE, 0]), atol=1e-3)
    assert sure.tolist() == pytest.approx([0.8])  # the mean of both looks
    unseen, unsure = settle(blind, [group], points, index, device)
    assert torch.equal(unseen, points) and unsure.tolist() == [0]
    broken, unsure = settle(shifted, [group], torch.full((1, 5, 2), float("nan")), index, device)
    assert broken.isnan().all() and unsure.tolist() == [0]
    assert settle(shifted, [group, group], points[:0], index[:0], device)[0].shape == (0, 5, 2)


def test_a_batch_of_any_sizes_is_what_each_picture_gives(detector: RetinaFaceDetector, portrait: Tensor) -> None:
    images = [portrait, resized(portrait, 300, 200), torch.zeros(3, 40, 30), portrait.flip(2)]
    together = detector(images)
    assert [len(faces) for faces in together] == [1, 1, 0, 1]
    for image, faces in zip(images, together, strict=True):
        for mine, alone in zip(faces, detector([image])[0], strict=True):
            assert torch.allclose(mine.landmarks, alone.landmarks, atol=0.05) and abs(mine.score - alone.score) < 1e-4
    stacked = detector(torch.stack([portrait, portrait.flip(2)]))
    assert torch.allclose(stacked[1][0].landmarks, together[3][0].landmarks, atol=0.05)


# ---------------------------------------------------------------- large pictures
def test_the_second_look_finds_tiny_faces_once_and_anywhere(detector: RetinaFaceDetector, portrait: Tensor) -> None:
    """Faces of 17 px over a large picture, some of them where tiles overlap, and one that is 160 px wide."""
    picture = torch.full((3, 1500, 1700), 0.4)
    tiny = resized(portrait, 54, 54)
    spots = [(x, y) for y in (60, 620, 800, 1400) for x in (40, 700, 930, 1640)]
    for x, y in spots:
        picture[:, y : y + 54, x : x + 54] = tiny
    picture[:, 880:1380, 200:700] = resized(portrait, 500, 500)
    first = RetinaFaceDetector(detector.network, "cpu", second_look=False)([picture])[0]
    both = detector([picture])[0]
    assert len(first) < 5
    assert len(both) == len(spots) + 1
    box = detector([portrait])[0][0].box * (54 / 600)
    for x, y in spots:
        inside = [f for f in both if x < float(f.landmarks[2, 0]) < x + 54 and y < float(f.landmarks[2, 1]) < y + 54]
        assert len(inside) == 1
        assert box_iou((box + torch.tensor([x, y, x, y]))[None], inside[0].box[None]) > 0.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (3, 3), (100, 20000), (4000, 2)])
def test_pictures_of_any_shape_go_through(detector: RetinaFaceDetector, shape: tuple[int, int]) -> None:
    assert detector([torch.full((3, *shape), 0.3)]) == ((),)


def test_a_face_in_a_strip_is_found(detector: RetinaFaceDetector, portrait: Tensor) -> None:
    strip = torch.full((3, 100, 6000), 0.4)
    strip[:, :, 3000:3100] = resized(portrait, 100, 100)
    faces = detector([strip])[0]
    assert len(faces) == 1 and 3030 < float(faces[0].landmarks[2, 0]) < 3070


def test_no_picture_is_no_face(detector: RetinaFaceDetector) -> None:
    assert detector([]) == () and detector(torch.zeros(0, 3, 64, 64)) == ()


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.full((3, 9, 9), float("nan")), "NaN"),
        (torch.full((3, 9, 9), float("inf")), "NaN or infinite"),
        (torch.zeros(3, 9, 9, dtype=torch.int16), "convert it to float"),
        (torch.full((3, 9, 9), 200.0), "0..1"),
        (torch.zeros(4, 9, 9), "RGB"),
        (torch.zeros(9, 9), "RGB"),
        (torch.zeros(3, 0, 9), "no pixels"),
        (np.zeros((3, 9, 9)), "RGB"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_number(detector: RetinaFaceDetector, image: object, words: str) -> None:
    with pytest.raises(BadImage, match=words) as caught:
        detector([torch.zeros(3, 9, 9), image])
    assert "Image 1" in str(caught.value)


def test_one_nan_in_a_large_picture_is_seen(detector: RetinaFaceDetector) -> None:
    image = torch.zeros(3, 500, 500)
    image[1, 250, 123] = float("nan")
    with pytest.raises(BadImage, match="NaN"):
        detector([image])


# ---------------------------------------------------------------- memory
class Hungry(nn.Module):
    """A network that sees nothing and runs out of memory above a number of pictures."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen = most, []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if len(x) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        self.seen.append(len(x))
        count = len(priors(*x.shape[2:]))
        return torch.zeros(len(x), count, 4), torch.zeros(len(x), count, 2), torch.zeros(len(x), count, 10)


def test_batches_are_halved_where_memory_runs_out() -> None:
    network = Hungry(2)
    RetinaFaceDetector(network, "cpu").raw(torch.zeros(5, 3, 64, 64))
    assert sum(network.seen) == 5 and max(network.seen) <= 2
    with pytest.raises(OutOfMemory, match="device cpu"):
        RetinaFaceDetector(Hungry(0), "cpu").raw(torch.zeros(2, 3, 64, 64))


def test_other_errors_of_the_network_are_not_hidden() -> None:
    class Broken(Hungry):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        RetinaFaceDetector(Broken(1), "cpu").raw(torch.zeros(1, 3, 64, 64))


# ---------------------------------------------------------------- loading
def test_loading_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=r"detection_Resnet50_Final.pth.*https://"):
        load_detector("retinaface_resnet50")
    with pytest.raises(MissingWeights, match="nowhere.pth"):
        load_detector(tmp_path / "nowhere.pth")
    with pytest.raises(UnsupportedWeights, match="parsenet"):
        load_detector("parsenet")


class FakeSCRFD:
    """What insightface.model_zoo.get_model returns, as far as it is used."""

    det_thresh = 0.0
    session = types.SimpleNamespace(get_inputs=lambda: [types.SimpleNamespace(shape=[1, 3, "?", "?"])])

    def prepare(self, ctx_id: int, **options: object) -> None:
        self.ctx_id, self.options = ctx_id, options

    def detect(self, pixels: np.ndarray, input_size: object = None) -> tuple[np.ndarray, np.ndarray]:
        assert pixels.dtype == np.uint8 and pixels.flags["C_CONTIGUOUS"]
        self.sizes = [*getattr(self, "sizes", []), input_size]
        self.blue = getattr(self, "blue", int(pixels[0, 0, 0]))
        side = len(pixels)
        faces = [[1, 2, 6, 7, 0.6], [13, 4, 30, 40, 0.95]] if side == 20 else [[0, 0, side, side, 0.9]]
        rows = np.array(faces, dtype=np.float32)
        rows = rows[rows[:, 4] > self.det_thresh]
        template = ffhq_template(1).astype(np.float32) + 0.5  # of the unit square; crops show it where it belongs
        return rows, rows[:, None, :2] + template * (rows[:, None, 2:4] - rows[:, None, :2])


@pytest.fixture
def insightface(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Stands in for the package: ``insightface(model)`` is what it makes of every file, and was asked ``asked``."""
    file = tmp_path / "det_10g.onnx"
    file.write_bytes(b"onnx")

    def stand_in(model: object) -> tuple[Path, dict]:
        asked: dict = {}
        zoo = types.ModuleType("insightface.model_zoo")
        zoo.get_model = lambda path, **options: asked.update(path=path, **options) or model  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "insightface", types.ModuleType("insightface"))
        monkeypatch.setitem(sys.modules, "insightface.model_zoo", zoo)
        return file, asked

    return stand_in


def test_scrfd_goes_through_insightface(insightface) -> None:
    model = FakeSCRFD()
    file, asked = insightface(model)
    detector = load_detector(file, "cpu")
    assert isinstance(detector, SCRFDDetector) and asked["path"] == str(file)
    image = torch.tensor([0.0, 0.5, 1.0])[:, None, None].expand(3, 20, 30)
    faces = detector([image, image], DetectOptions(confidence=0.5))
    assert model.blue == 255 and len(faces) == 2
    assert [face.score for face in faces[0]] == pytest.approx([0.95, 0.6])
    assert faces[0][0].box.tolist() == [13, 4, 30, 40] and not faces[0][0].doubt
    assert len(detector([image], DetectOptions(confidence=0.9))[0]) == 1


@pytest.mark.parametrize("device, number", [("cpu", -1), ("cuda", 0), ("cuda:1", 1)])
def test_scrfd_is_prepared_for_its_device(insightface, monkeypatch, device: str, number: int) -> None:
    model = FakeSCRFD()
    file, asked = insightface(model)
    monkeypatch.setattr(scrfd, "resolve_device", torch.device)  # there need be no such card
    SCRFDDetector(file, device, side=320)
    assert asked["providers"] == ["CUDAExecutionProvider"] * (device != "cpu") + ["CPUExecutionProvider"]
    assert model.ctx_id == number and model.options == {"input_size": (320, 320), "det_thresh": 0.5}


@pytest.mark.parametrize("fixed", [False, True])
def test_scrfd_sees_pictures_in_its_working_size_and_crops_in_their_own(insightface, fixed: bool) -> None:
    """Unless its file has one size for all."""
    model = FakeSCRFD()
    if fixed:
        model.session = types.SimpleNamespace(get_inputs=lambda: [types.SimpleNamespace(shape=[1, 3, 640, 640])])
    SCRFDDetector(insightface(model)[0], "cpu")([torch.rand(3, 20, 30)])
    assert model.sizes[0] is None and len(model.sizes) > 1
    assert set(model.sizes[1:]) == ({None} if fixed else {(SIDE, SIDE)})


def test_scrfd_without_landmarks_or_without_a_file_is_a_sentence(insightface, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = insightface(FakeSCRFD())
    monkeypatch.setattr(FakeSCRFD, "detect", lambda *_, **__: (np.zeros((0, 5), np.float32), None))
    with pytest.raises(UnsupportedWeights, match="gives no landmarks"):
        SCRFDDetector(file, "cpu")([torch.zeros(3, 64, 64)])
    file.unlink()
    with pytest.raises(MissingWeights, match="is not there; put det_10g.onnx"):
        SCRFDDetector(file, "cpu")


def test_scrfd_without_insightface_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "insightface", None)
    monkeypatch.setitem(sys.modules, "insightface.model_zoo", None)
    (tmp_path / "det_10g.onnx").write_bytes(b"onnx")
    with pytest.raises(MissingWeights, match="pip install insightface"):
        load_detector("scrfd", "cpu", folders=[tmp_path])


@pytest.mark.parametrize("made", [None, object()])
def test_a_file_that_is_no_detector_is_refused(insightface, made: object) -> None:
    with pytest.raises(UnsupportedWeights, match="det_10g.onnx is not an insightface detector"):
        SCRFDDetector(insightface(made)[0], "cpu")


def test_looking_again_at_known_faces_moves_their_landmarks_alone(detector: RetinaFaceDetector, group: Tensor) -> None:
    (found,) = detector([group])
    aside = [Face(f.box, f.score, f.landmarks + torch.tensor([0.15 * f.eye_distance, 0.0])) for f in found]
    empty, back = detector.look_again([group, group], [(), tuple(aside)])
    assert empty == ()
    for face, seen in zip(found, back, strict=True):
        assert (seen.landmarks - face.landmarks).norm(dim=1).mean() < 0.03 * face.eye_distance
        assert torch.equal(seen.box, face.box) and seen.score == face.score


# ---------------------------------------------------------------- what the network is shown


class Watching(nn.Module):
    """A network that sees nothing and remembers its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.seen.append(x.clone())
        count = len(priors(*x.shape[2:]))
        return torch.zeros(len(x), count, 4), torch.zeros(len(x), count, 2), torch.zeros(len(x), count, 10)


def shown(*images: Tensor) -> list[Tensor]:
    network = Watching()
    RetinaFaceDetector(network, "cpu", steady=False)(list(images))
    return network.seen


@pytest.mark.parametrize(
    ("size", "first"),
    [
        ((320, 400), (640, 800)), ((1000, 500), (1280, 640)), ((640, 640), (640, 640)), ((100, 20000), (10, 2048)),
        ((4000, 2), (2048, 1)), ((900, 900), (640, 640)), ((955, 955), (640, 640)),
    ],
)  # fmt: skip
def test_the_first_look_has_its_short_side_at_640_px(size: tuple[int, int], first: tuple[int, int]) -> None:
    """And no long side beyond 2048, strips are looked at again in tiles; what is not half as large again is not."""
    look, *more = shown(torch.zeros(3, *size))
    assert tuple(look.shape) == (1, 3, *first) and bool(more) == (min(first) < 640)


def test_small_pictures_go_together_as_far_as_the_cache_reaches() -> None:
    assert [len(x) for x in shown(*[torch.zeros(3, 640, 640)] * 5, torch.zeros(3, 640, 800))] == [2, 2, 1, 1]
    levels = torch.tensor([0.1, 0.5, 0.9])[:, None, None].expand(3, 640, 640)
    (seen,) = shown(levels)
    wanted = torch.tensor([0.9, 0.5, 0.1]) * 255 - torch.tensor([104.0, 117.0, 123.0])  # blue first
    assert torch.allclose(seen[0, :, 9, 9], wanted, atol=1e-3)


@pytest.mark.parametrize("size", [(970, 970), (1100, 2600), (1792, 1800)])
def test_the_tiles_of_the_second_look_cover_the_picture_and_overlap(size: tuple[int, int]) -> None:
    """Their pixels tell where each was cut."""
    height, width = size
    y, x = torch.arange(height) / height, torch.arange(width) / width
    _, *tiles = shown(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width), torch.zeros(size)]))
    assert tiles
    for length, lines in ((width, [tile[2, 0] + 123 for tile in torch.cat(tiles)]),
                          (height, [tile[1, :, 0] + 117 for tile in torch.cat(tiles)])):  # fmt: skip
        starts = [(round(float(line[0]) / 255 * length), len(line)) for line in lines]
        spans = sorted({(start, start + count) for start, count in starts})
        assert all(count <= 1024 for _, count in starts)
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all(one[1] - other[0] >= 255 for one, other in zip(spans, spans[1:]))
        assert len(spans) == max(1, math.ceil((length - 256) / (1024 - 256)))  # as few as fit


def test_a_face_that_a_tile_cuts_is_left_to_its_neighbour() -> None:
    """A tile from the middle of the picture to its right and lower edge: only left and above something is cut."""
    view = _View(0, (900, 1600), (600, 300), (600, 1000), tile=True)
    facts = torch.tensor([_facts(view, torch.zeros(3, 450, 800))])
    assert facts[0].tolist() == [0, 1, 600, 300, 2, 2, 0, 0, math.inf, math.inf]
    left = _View(0, (900, 1600), (0, 0), (600, 1000), tile=True)
    assert _facts(left, torch.zeros(3, 900, 1600))[4:] == [1, 1, -math.inf, -math.inf, 1000, 600]

    def whole(*box: float) -> bool:
        return bool(_whole(torch.tensor(box).view(1, 2, 2), facts)[0])

    assert whole(0, 0, 90, 90) and whole(900, 500, 1010, 610)  # a box may reach beyond the picture
    assert not whole(-0.5, 0, 90, 90) and not whole(0, -0.5, 90, 90)
    assert whole(10, 10, 234, 100) and not whole(10, 10, 235, 100) and not whole(10, 10, 100, 235)  # 224 px


def row(tile: float, score: float, *box: float) -> Tensor:
    return torch.tensor([0.0, tile, score, *box, *[0.0] * 10])


def test_an_eye_seen_as_a_face_in_a_tile_is_left_out() -> None:
    """What lies by more than four fifths in a face of the first look; a face of the first look never."""
    face = row(0, 0.9, 100, 100, 300, 300)
    within, nearly, beside = (row(1, 0.8, x, 150, x + 50, 200) for x in (110, 262, 400))
    small = row(0, 0.7, 200, 120, 240, 160)
    (found,) = _merge(torch.stack([face, within, nearly, beside, small]), 1)
    assert [(round(f.score, 1), int(f.box[0])) for f in found] == [(0.9, 100), (0.8, 262), (0.8, 400), (0.7, 200)]


def test_of_one_face_in_both_looks_the_tiles_finding_stays() -> None:
    (found,) = _merge(torch.stack([row(0, 0.95, 10, 10, 40, 40), row(1, 0.9, 11, 10, 41, 41)]), 1)
    assert [round(f.score, 2) for f in found] == [0.9]


def test_findings_of_the_face_in_the_middle_vote() -> None:
    """Those that overlap the best one by half and are four fifths as sure; each counts by its probability."""
    boxes = torch.tensor([[20.0, 20, 80, 80], [22, 20, 82, 80], [21, 20, 81, 80], [45, 45, 60, 60], [60, 20, 99, 80]])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.88, 0.99]])
    points = torch.arange(5.0).view(1, 5, 1, 1).expand(1, 5, 5, 2)
    mean, best = vote(scores, boxes[None], points, torch.tensor([50.0, 50.0]))
    assert torch.allclose(mean, torch.full((1, 5, 2), 0.8 / 1.7), atol=1e-5) and best.item() == pytest.approx(0.9)
    mean, best = vote(scores * 0.5, boxes[None], points, torch.tensor([50.0, 50.0]))  # none is sure
    assert best.item() == 0 and mean.abs().max() == 0


def test_the_size_of_a_face_in_profile_is_from_eye_to_mouth() -> None:
    front = torch.tensor([[0.0, 0], [30, 0], [15, 10], [0, 24], [30, 24]])
    profile = torch.tensor([[0.0, 0], [3, 4], [15, 10], [18, 24], [3, 24]])
    assert face_size(torch.stack([front, profile])).tolist() == pytest.approx([30, 30])


@pytest.mark.parametrize(("moves", "rounds"), [(0.5, 1), (4.0, 6)])
def test_landmarks_are_looked_at_until_they_settle(moves: float, rounds: int) -> None:
    """Ten faces, eight of them at a time; each look moves them on by as many px of the picture."""
    spots = torch.arange(10.0).view(10, 1, 1) * torch.tensor([40.0, 0.0])
    points, looks = torch.tensor(ffhq_template(64)).float() + spots, []
    wanted, box = torch.tensor(ffhq_template(SIDE)).float(), torch.tensor([0.0, 0, SIDE - 1, SIDE - 1])

    def see(crops: Tensor, best: int) -> tuple[Tensor, Tensor, Tensor]:
        count = len(crops) // 2
        looks.append(count)
        there = wanted + torch.tensor([moves * SIDE / 64, 0.0])
        back = there[list(MIRRORED)] * torch.tensor([-1.0, 1.0]) + torch.tensor([SIDE - 1.0, 0.0])
        found = torch.cat([there.expand(count, 1, 5, 2), back.expand(count, 1, 5, 2)])
        return torch.full((2 * count, 1), 0.9), box.expand(2 * count, 1, 4), found

    seen, _ = settle(see, [torch.zeros(3, 64, 500)], points, torch.zeros(10, dtype=torch.long), torch.device("cpu"))
    assert looks == [8, 2] * rounds
    assert torch.allclose(seen, points + torch.tensor([moves * rounds, 0.0]), atol=0.02)


def test_other_runtimes_get_every_grey_level_blue_first() -> None:
    levels = torch.arange(256.0).view(1, 1, 256) / 255
    pixels = as_bytes(torch.cat([levels, levels.flip(2), torch.full_like(levels, 2.0)]))
    assert pixels.shape == (1, 256, 3) and pixels[0, :, 2].tolist() == list(range(256))
    assert pixels[0, :, 1].tolist() == list(range(255, -1, -1)) and (pixels[..., 0] == 255).all()
