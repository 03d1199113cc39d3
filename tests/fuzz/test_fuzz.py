"""A small share of the bad inputs of `make fuzz`, and the faults that they found, each by itself."""
from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from idcodeformer.errors import BadImage, CorruptWeights, MissingWeights, UnsupportedWeights
from idcodeformer.weights.loading import build
from idcodeformer.weights.reading import read_state
from tests.fuzz.harness import AREAS, Runner, build_case, run_cases

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured through /proc")


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.close()


SHARE = {"images": 30, "weights": 25, "people": 5, "configs": 8, "reports": 8, "lists": 12}


@pytest.mark.parametrize(("area", "count"), SHARE.items())
def test_a_bad_file_is_refused_in_a_sentence_and_harms_nothing(runner: Runner, area: str, count: int) -> None:
    if area == "lists":
        pytest.importorskip("pyarrow", reason="lists of archives are read with it")
    assert run_cases((area,), 1_000_000, count, runner) == []


def test_a_case_is_the_same_every_time() -> None:
    for area in AREAS:
        assert build_case(area, 7) == build_case(area, 7) != build_case(area, 8)


def _archive(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3")
    return path


TOWER = b"(K\x01t" + b"2\x86" * 60  # a tuple of itself twice, sixty times: 120 bytes, 2**60 leaves


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02}" + TOWER + b"K\x01s.",
        b"\x80\x02}(" + TOWER + b"K\x01u.",
        b"\x80\x02(" + TOWER + b"K\x01d.",
        b"\x80\x02ccollections\nOrderedDict\n](" + TOWER + b"K\x01tatR.",
        b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\n" + TOWER + b"X\x03\0\0\0cpuK\x01tQ.",
        b"\x80\x04\x8f(" + TOWER + b"\x90.",
        b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".",
    ],
)  # fmt: skip
def test_a_pickle_costs_no_more_than_its_bytes(tmp_path: Path, pickled: bytes) -> None:
    with pytest.raises((CorruptWeights, UnsupportedWeights), match="weights.pth"):
        read_state(_archive(tmp_path / "weights.pth", pickled))


def test_a_small_archive_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(100_000_000))
    with pytest.raises(CorruptWeights, match="unpack to 1000000"):
        read_state(tmp_path / "bomb.pth")


def test_tensors_larger_than_their_file_are_refused_and_tied_ones_are_not(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1 << 32)}, tmp_path / "wide.pth")
    with pytest.raises(CorruptWeights, match="claims tensors of 17179869184"):
        read_state(tmp_path / "wide.pth")
    tied = torch.rand(5_000_000)
    torch.save({"a": tied, "b": tied, "c": tied}, tmp_path / "tied.pth")
    assert torch.equal(read_state(tmp_path / "tied.pth")[0]["c"], tied)


def test_a_config_without_end_is_left_out(tmp_path: Path) -> None:
    laughs: list = []
    for _ in range(60):
        laughs = [laughs, laughs]
    circle: list = []
    circle.append(circle)
    for config in ({"a": laughs}, {"a": circle}, {"a": torch.zeros(1)}):
        torch.save({"config": config, "params": {"w": torch.ones(2)}}, tmp_path / "w.pth")
        state, metadata = read_state(tmp_path / "w.pth")
        assert "config" not in metadata and torch.equal(state["w"], torch.ones(2))
    torch.save({"config": {"nf": 64}, "params": {"w": torch.ones(2)}}, tmp_path / "w.pth")
    assert json.loads(read_state(tmp_path / "w.pth")[1]["config"]) == {"nf": 64}


def test_a_graph_that_leads_back_to_itself_ends(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Mul", ["x", "w"], ["a"]), helper.make_node("Mul", ["a", "w"], ["x"])]
    pixels = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "g", [pixels], [], [helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])])
    (tmp_path / "ring.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(UnsupportedWeights, match="circle"):
        build(tmp_path / "ring.onnx")


def test_a_postscript_file_is_never_handed_to_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    from idcodeformer.files.reading import read

    called: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: called.append(given))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file closefile\nshowpage\n%%EOF\n"
    (tmp_path / "photo.png").write_bytes(eps)
    with pytest.raises(BadImage, match="photo.png is not a picture that can be read"):
        read(tmp_path / "photo.png")
    assert not called


def test_the_limit_of_pixels_is_ours_and_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from idcodeformer.errors import BadOption
    from idcodeformer.files.limits import lift_pillows_limit
    from idcodeformer.files.reading import read

    Image.new("1", (2000, 1000)).save(tmp_path / "wide.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as some hosts do
    monkeypatch.setenv("IDCODEFORMER_MAX_PIXELS", "1_000_000")
    with pytest.raises(BadImage, match="more than 1 megapixels.*IDCODEFORMER_MAX_PIXELS"):
        read(tmp_path / "wide.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)
    monkeypatch.setenv("IDCODEFORMER_MAX_PIXELS", "3000000")
    with pytest.raises(BadImage, match="megapixels"):
        read(tmp_path / "wide.png")
    lift_pillows_limit()
    assert read(tmp_path / "wide.png").size == (1000, 2000)
    monkeypatch.setenv("IDCODEFORMER_MAX_PIXELS", "many")
    with pytest.raises(BadOption, match="give a number of pixels"):
        read(tmp_path / "wide.png")


def test_a_name_that_is_too_long_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from idcodeformer.cli import main
    from training.config import ConfigError, load_config

    long = str(tmp_path / ("x" * 300))
    for line in (["restore", long], ["people", long], ["restore", long, "--model", long]):
        assert main(line) == 1
        told = capsys.readouterr().err
        assert "does not exist" in told and "Traceback" not in told
    with pytest.raises(MissingWeights, match="no file"):
        read_state(long)
    with pytest.raises(ConfigError, match="no configuration"):
        load_config(long)
