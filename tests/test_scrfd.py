"""SCRFD through the real insightface and ONNX Runtime, with a graph in SCRFD's layout that finds white squares."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from idcodeformer.detection import SCRFDDetector, load_detector
from idcodeformer.types import DetectOptions

pytest.importorskip("insightface", reason="optional: pip install insightface onnxruntime")
onnx = pytest.importorskip("onnx")

STRIDE = 16  # px; the level on which the planted network finds faces
POINTS = ((-1, -1), (1, -1), (0, 0), (-0.8, 1), (0.8, 1))  # strides from the anchor


@pytest.fixture(scope="module")
def scrfd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine outputs as SCRFD's: scores, distances to the box's sides and landmarks at strides 8, 16 and 32.

    The score is the mean of red over a cell, from 0 where that is black to 1 where it is white.
    """
    from onnx import TensorProto, helper

    nodes, constants, outputs = [], [], []

    def constant(name: str, values: object) -> str:
        constants.append(onnx.numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    constants.append(onnx.numpy_helper.from_array(np.array([-1, 1], np.int64), "column"))
    zero = constant("zero", 0)
    pick = constant("red", np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1))
    nodes.append(helper.make_node("Conv", ["input", pick], ["red_plane"]))
    rows = {"score": 1, "box": 4, "points": 10}
    values = {"box": [2.0] * 4, "points": np.ravel(POINTS)}
    for stride in (8, 16, 32):
        nodes.append(helper.make_node("AveragePool", ["red_plane"], [f"m{stride}"], kernel_shape=[stride] * 2,
                                      strides=[stride] * 2))
        nodes.append(helper.make_node("Max", [f"m{stride}", zero], [f"p{stride}"]))
        nodes.append(helper.make_node("Mul", [f"p{stride}", constant(f"on{stride}", float(stride == STRIDE))],
                                      [f"s{stride}"]))
        nodes.append(helper.make_node("Reshape", [f"s{stride}", "column"], [f"one{stride}"]))
        second = constant(f"second{stride}", [[1.0, 0.9]])  # two anchors in a place, the second one less sure
        nodes.append(helper.make_node("Mul", [f"one{stride}", second], [f"two{stride}"]))
        nodes.append(helper.make_node("Reshape", [f"two{stride}", "column"], [f"score{stride}"]))
        for kind in ("box", "points"):
            start = constant(f"{kind}_at{stride}", np.zeros((1, rows[kind])))
            nodes.append(helper.make_node("MatMul", [f"score{stride}", start], [f"{kind}_none{stride}"]))
            told = constant(f"{kind}_is{stride}", np.reshape(values[kind], (1, -1)))
            nodes.append(helper.make_node("Add", [f"{kind}_none{stride}", told], [f"{kind}{stride}"]))
    for kind, width in rows.items():
        outputs += [helper.make_tensor_value_info(f"{kind}{s}", TensorProto.FLOAT, ["n", width]) for s in (8, 16, 32)]
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])
    graph = helper.make_graph(nodes, "scrfd", [image], outputs, constants)
    file = tmp_path_factory.mktemp("scrfd") / "det_10g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    return file


def picture(height: int, width: int, *cells: tuple[int, int, float], size: int = STRIDE) -> Tensor:
    """Black [3,height,width] with squares of a brightness at rows and columns of cells."""
    image = torch.zeros(3, height, width)
    for row, column, light in cells:
        image[:, row * size : (row + 1) * size, column * size : (column + 1) * size] = light
    return image


def test_boxes_landmarks_and_scores_are_those_of_the_picture(scrfd: Path) -> None:
    detector = SCRFDDetector(scrfd, "cpu", steady=False)
    wide = picture(640, 1280, (5, 10, 1.0), (12, 30, 0.95), size=32)  # looked at in half its size
    found = detector([picture(640, 640, (10, 12, 1.0)), wide, picture(64, 64)], DetectOptions(confidence=0.7))
    assert [len(here) for here in found] == [1, 2, 0]
    face = found[0][0]
    assert face.box.tolist() == [192 - 32, 160 - 32, 192 + 32, 160 + 32]
    expected = np.array([192, 160]) + STRIDE * np.array(POINTS)
    np.testing.assert_allclose(face.landmarks.numpy(), expected, atol=1e-4)
    assert face.score == pytest.approx(1.0, abs=0.01)  # white is (255 - 127.5) / 128
    assert [face.score for face in found[1]] == pytest.approx([1.0, 0.89], abs=0.02)
    assert found[1][0].box.tolist() == [320 - 64, 160 - 64, 320 + 64, 160 + 64]
    assert found[1][1].box.tolist() == [960 - 64, 384 - 64, 960 + 64, 384 + 64]


def test_red_is_the_first_channel(scrfd: Path) -> None:
    image = picture(640, 640, (10, 12, 1.0))
    only = torch.zeros_like(image)
    detector = SCRFDDetector(scrfd, "cpu", steady=False)
    assert len(detector([only.index_copy(0, torch.tensor([0]), image[:1])])[0]) == 1
    assert len(detector([only.index_copy(0, torch.tensor([2]), image[:1])])[0]) == 0


def test_confidence_is_a_level_of_each_call(scrfd: Path) -> None:
    detector = load_detector(scrfd, "cpu")
    image = picture(640, 640, (10, 12, 0.95))
    assert [len(detector([image], DetectOptions(confidence=c))[0]) for c in (0.5, 0.95, 0.5)] == [1, 0, 1]


def test_landmarks_are_seen_again_in_upright_crops(scrfd: Path) -> None:
    """The planted landmarks are upright about their anchor, so crop and mirrored crop agree on a mean in between."""
    image = picture(640, 640, (10, 12, 1.0))
    image[:, 140:200, 170:230] = 1.0  # several cells, so that a crop at another scale meets some
    once, again = (SCRFDDetector(scrfd, "cpu", steady=steady)([image])[0] for steady in (False, True))
    assert len(once) == len(again) > 0
    for before, after in zip(once, again):
        assert torch.equal(before.box, after.box) and before.score == after.score
    moved = [float((a.landmarks - b.landmarks).norm(dim=1).mean()) for a, b in zip(once, again)]
    assert max(moved) > 0.5


def test_a_file_of_one_working_size_is_looked_at_in_that_size(scrfd: Path, tmp_path: Path) -> None:
    model = onnx.load(scrfd)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 640
    onnx.save(model, tmp_path / "det_10g.onnx")
    detector, options = SCRFDDetector(tmp_path / "det_10g.onnx", "cpu"), DetectOptions(doubtful=True)
    (faces,) = detector([picture(640, 640, (10, 12, 1.0))], options)  # its crops show no whole face
    assert len(faces) == 1
