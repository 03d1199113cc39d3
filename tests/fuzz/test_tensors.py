"""Tensors, faces and options of every kind through the pipeline: a result that is one, or one of our errors."""
from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from idcodeformer.errors import IDCodeFormerError
from idcodeformer.pipeline import FacePipeline
from idcodeformer.restoration.codeformer import load_restorer
from idcodeformer.types import DetectOptions, Face, RestoreOptions

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
NUMBERS = st.sampled_from([0.0, 0.5, 1.0, -0.01, 1.2, 255.0, -1e30, 1e38, float("nan"), float("inf"), -float("inf")])
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64,
                          torch.bool, torch.complex64])  # fmt: skip
SIDES = st.sampled_from([0, 1, 2, 3, 4, 31, 64])
SHAPES = st.one_of(st.lists(SIDES, max_size=5), st.tuples(st.just(3), SIDES, SIDES).map(list))
PLACES = st.sampled_from([0.0, 0.3, 20.0, 40.0, 63.0, -500.0, 1e9, 1e38, float("nan"), float("inf")])


@st.composite
def tensors(draw) -> torch.Tensor:
    tensor = torch.full(draw(SHAPES), 0.5)
    for _ in range(draw(st.integers(0, 2))):
        if tensor.numel():
            tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(NUMBERS)
    tensor = tensor.to(draw(DTYPES))
    return tensor.transpose(-1, -2) if tensor.ndim > 1 and draw(st.booleans()) else tensor


@st.composite
def faces(draw) -> Face:
    points = [[22.0, 25.0], [42.0, 25.0], [32.0, 36.0], [24.0, 46.0], [40.0, 46.0]]
    box = [12.0, 8.0, 52.0, 58.0]
    for _ in range(draw(st.integers(0, 3))):
        points[draw(st.integers(0, 4))][draw(st.integers(0, 1))] = draw(PLACES)
        box[draw(st.integers(0, 3))] = draw(PLACES)
    return Face(torch.tensor(box), draw(st.sampled_from([0.9, 0.0, float("nan")])), torch.tensor(points))


@st.composite
def options(draw) -> dict[str, object]:
    numbers = {"w": (0.5, -1.0, 2.0, float("nan")), "strength": (1.0, 0.0, 7.0, float("nan")),
               "upscale": (1.0, 0.3, 2.0, 0.0, float("inf"), float("nan")), "batch_size": (0, 1, -1)}  # fmt: skip
    return {name: draw(st.sampled_from(values)) for name, values in numbers.items() if draw(st.booleans())}


@pytest.fixture(scope="module")
def pipeline(tiny_restorer: Path) -> FacePipeline:
    return FacePipeline(load_restorer(tiny_restorer, "cpu"))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.data())
def test_a_result_or_a_sentence(pipeline: FacePipeline, data: st.DataObject) -> None:
    image, chosen = data.draw(tensors()), data.draw(options())
    some = tuple(data.draw(st.lists(faces(), max_size=2)))
    try:
        asked = RestoreOptions(**chosen)  # type: ignore[arg-type]
        result = pipeline([image], asked, data.draw(st.sampled_from([None, DetectOptions()])), faces=[some])
    except IDCodeFormerError as error:
        assert str(error).strip().endswith(".") and len(str(error)) > 15
        return
    out = result.images[0]
    assert out.shape == (3, *(round(side * asked.upscale) for side in image.shape[1:]))
    assert bool(torch.isfinite(out).all()) and 0 <= float(out.min()) and float(out.max()) <= 1
    assert len(result.report) == len(some)
