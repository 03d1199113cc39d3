"""Tiled upscaling: no seams, halved tiles where memory runs out, sentences where the file is no upscaler."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from idcodeformer.errors import BadOption, MissingWeights, UnsupportedWeights
from idcodeformer.restoration.upscaling import TiledUpscaler, load_upscaler


def blurred_double(x: Tensor) -> Tensor:
    """Twice the size, each output pixel depending on 11 x 11 input pixels."""
    kernel = torch.ones(3, 1, 11, 11) / 121
    return F.interpolate(F.conv2d(F.pad(x, (5, 5, 5, 5), "replicate"), kernel, groups=3), scale_factor=2)


@pytest.mark.parametrize("tile", [0, 64, 100])
def test_tiles_leave_no_seam(tile: int) -> None:
    image = torch.rand(2, 3, 150, 210, generator=torch.Generator().manual_seed(0))
    done = TiledUpscaler(blurred_double, 2, torch.device("cpu"), tile)(image)
    torch.testing.assert_close(done, blurred_double(image).clamp(0, 1))


def test_tiles_are_halved_where_memory_runs_out() -> None:
    sides: list[int] = []

    def hungry(x: Tensor) -> Tensor:
        sides.append(max(x.shape[-2:]))
        if sides[-1] > 200:
            raise RuntimeError("CUDA out of memory")
        return blurred_double(x)

    image = torch.rand(1, 3, 300, 300, generator=torch.Generator().manual_seed(0))
    done = TiledUpscaler(hungry, 2, torch.device("cpu"), 400)(image)
    torch.testing.assert_close(done, blurred_double(image).clamp(0, 1))
    assert sides[0] == 300 and max(sides[2:]) <= 200


def test_other_errors_are_not_taken_for_memory() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        TiledUpscaler(broken, 2, torch.device("cpu"))(torch.rand(1, 3, 100, 100))


def test_missing_file_and_bad_tile(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="gone.pth"):
        load_upscaler(tmp_path / "gone.pth", "cpu")
    with pytest.raises(BadOption, match="at least 64"):
        load_upscaler("realesrgan_x2plus", "cpu", tile=10)


def test_a_file_that_is_no_upscaler(tmp_path: Path, tiny_recogniser: Path) -> None:
    """Without spandrel the sentence names the package; with it, the file."""
    with pytest.raises((BadOption, UnsupportedWeights), match="spandrel"):
        load_upscaler(tiny_recogniser, "cpu")
