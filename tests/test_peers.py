"""Other runtimes on the exported network compute what the network computes."""
from __future__ import annotations

import sys

import pytest
import torch
from test_execution import TINY, build, faces

from benchmarks import network, peers


def test_every_runtime_here_agrees_with_the_network():
    pytest.importorskip("onnx")
    if not any(peers.find_spec(name) for name in ("onnxruntime", "openvino")):
        pytest.skip("neither ONNX Runtime nor OpenVINO is installed")
    net, x = build(TINY), faces(TINY, 1)
    image, logits, _ = net(x, 0.5, True)
    found = peers.peers(net, x, 0.5)
    assert found
    for name, run in found.items():
        ours, our_logits = run()
        assert (ours - image).abs().max() < 1e-3, name
        assert torch.equal(our_logits.argmax(2), logits.argmax(2)), name


def test_without_them_the_table_has_our_own_rows(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["network", "--rounds", "1"])
    monkeypatch.setattr(network, "load", lambda path: build(TINY))
    seen = []
    monkeypatch.setattr(network, "table", lambda title, header, rows: seen.extend(rows))
    network.main()
    assert [row[0] for row in seen][:3] == ["plain eager fp32", "the module (SDPA, inference mode)", "engine fp32"]
    assert all(row[5] == 0 for row in seen[:3])
