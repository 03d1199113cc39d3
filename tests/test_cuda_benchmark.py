"""The one command for a GPU, gone through without one."""
from __future__ import annotations

import json

import pytest
import torch

from benchmarks import cuda, cuda_parts
from benchmarks.cuda_parts import Card, least_traffic, operations
from benchmarks.weights import seeded


def test_a_rehearsal_goes_through_every_part(tmp_path, capsys):
    cuda.main(["--rehearse", "--json", str(tmp_path / "cuda.json")])
    results = json.loads((tmp_path / "cuda.json").read_text(encoding="utf-8"))
    assert results["rehearsal"] is True and results["benchmark"] == "cuda"
    assert [row["passed"] for row in results["parity"]] == [True]
    assert results["parity"][0]["codes changed"] == 0 and results["parity"][0]["max error"] < 1e-4
    assert [(row["way"], row["batch"]) for row in results["speed"]] == [("eager", 1), ("eager", 2)]
    for row in results["speed"]:
        assert row["faces/s"] == pytest.approx(1e3 / row["ms/face"])
        assert 0 < row["decoder share of peak"] and row["note"] == ""
    assert results["pipeline"][0]["faces"] == 1 and results["pipeline"][0]["s/picture"] > 0
    assert results["guidance"][0]["steps"] == 2
    assert results["waits"][0]["waits"] is None and results["memory"][0]["MB"] is None  # not told by a CPU
    assert "Parity" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path, capsys):
    cuda.main(["--json", str(tmp_path / "cuda.json")])
    assert "nothing was measured" in capsys.readouterr().out and not (tmp_path / "cuda.json").exists()


def test_a_way_that_fails_says_why_and_the_others_go_on(monkeypatch):
    options = cuda.options_of(["--rehearse"])
    network, card = seeded(cuda.TINY), Card("cpu")
    real = cuda_parts._ways

    def ways(*given):
        broken = card.engine(network, "fp32")

        def encode(x):
            raise RuntimeError("no compiler\nand a long trace")

        broken.encode = encode
        yield "torch.compile", broken
        yield from real(*given)

    monkeypatch.setattr(cuda_parts, "_ways", ways)
    rows = cuda_parts.speed(card, network, options, [{"what": "fp32", "TFLOP/s": 0.001}])
    assert [row["note"] for row in rows] == ["no compiler", "no compiler", "", ""]
    assert rows[0]["faces/s"] is None and rows[2]["faces/s"] > 0


def test_arithmetic_and_traffic_are_counted():
    network = torch.nn.Module()
    network.generator = torch.nn.Conv2d(4, 8, 3, padding=1, bias=False)
    network.encoder = torch.nn.Conv2d(3, 4, 1)
    network.forward = lambda x, w, adain: network.generator(network.encoder(x))
    x = torch.zeros(1, 3, 10, 10)
    assert operations(lambda: network(x, 0.5, True)) == 2 * 100 * (3 * 4 + 9 * 4 * 8)
    encoder, decoder = least_traffic(network, x, 0.5, 2)
    assert encoder == 4 * (300 + 400 + 16) and decoder == 2 * (400 + 800 + 288)


def test_parity_is_judged(monkeypatch):
    """A wrong image or another code does not pass."""
    options, card = cuda.options_of(["--rehearse"]), Card("cpu")
    network = seeded(cuda.TINY)
    wrong = seeded(cuda.TINY)
    wrong.generator.blocks[-1].bias += 0.01
    real = card.engine
    monkeypatch.setattr(card, "engine", lambda given, *rest: real(wrong, *rest))
    assert cuda_parts.parity(card, network, options)[0]["passed"] is False
