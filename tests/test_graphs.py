"""Recorded passes: what is replayed is what would have run, and nothing fails quietly. No GPU is needed here."""
from __future__ import annotations

import pytest
import torch
from test_execution import TINY, build, faces

from idcodeformer.restoration.engine.execution import ModuleEngine
from idcodeformer.restoration.engine.graphs import Graphs


class Tape:
    """Records as CUDA does: a replay reads the recorded inputs and weights, and writes the recorded outputs."""

    def __init__(self, error: Exception | None = None):
        self.error, self.records, self.replays = error, 0, 0

    def record(self, function, inputs):
        if self.error:
            raise self.error
        self.records += 1
        outputs = tuple(output.clone() for output in function(*inputs))

        def replay() -> None:
            self.replays += 1
            for mine, new in zip(outputs, function(*inputs)):
                mine.copy_(new)

        return outputs, replay


def engine(tape: Tape) -> ModuleEngine:
    return ModuleEngine(build(TINY), torch.device("cpu"), "fp32", recorder=tape)


def test_replays_are_what_would_have_run():
    tape = Tape()
    recorded, plain = engine(tape), ModuleEngine(build(TINY), torch.device("cpu"), "fp32")
    kept = []
    for seed, w in enumerate((0.3, 0.8, 0.8, 1.0)):
        x = faces(TINY).roll(seed, 3)
        found, expected = recorded(x, w, True), plain(x, w, True)
        for mine, wanted in zip(found, expected):
            torch.testing.assert_close(mine, wanted, atol=2e-5, rtol=1e-5)
        kept.append((found[0], found[0].clone()))
    assert tape.records == 2 and tape.replays == 6  # encode and decode; every w by one recording
    assert all(torch.equal(image, before) for image, before in kept)  # later replays leave earlier results alone
    recorded(faces(TINY), 0.0), recorded(faces(TINY), 0.0)
    assert torch.equal(recorded(faces(TINY), 0.0)[0], plain(faces(TINY), 0.0)[0])
    assert tape.records == 3  # without fusion is another pass


def test_each_face_its_own_w_and_each_batch_size_its_own_recording():
    tape = Tape()
    recorded, plain = engine(tape), ModuleEngine(build(TINY), torch.device("cpu"), "fp32")
    for count in (1, 3, 1, 3, 3):
        x, w = faces(TINY, count), torch.linspace(0, 1, count)
        torch.testing.assert_close(recorded(x, w)[0], plain(x, w)[0], atol=2e-5, rtol=1e-5)
    assert tape.records == 4


def test_moved_weights_are_recorded_anew():
    """A host that offloads the network frees the memory that a recording reads."""
    tape = Tape()
    recorded = engine(tape)
    for _ in range(2):
        recorded(faces(TINY), 0.5)
    before = tape.records
    for p in recorded.module.parameters():
        p.data = p.data * 0.5
    expected = recorded.module(faces(TINY), torch.full((2,), 0.5))[0]
    torch.testing.assert_close(recorded(faces(TINY), 0.5)[0], expected, atol=1e-4, rtol=1e-5)
    assert tape.records == 2 * before
    module = recorded.module
    module.encoder.blocks[0].weight = torch.nn.Parameter(module.encoder.blocks[0].weight * 2, requires_grad=False)
    expected = module(faces(TINY), torch.full((2,), 0.5))[0]
    torch.testing.assert_close(recorded(faces(TINY), 0.5)[0], expected, atol=1e-4, rtol=1e-5)


def test_only_so_many_are_kept():
    tape = Tape()
    graphs = Graphs(tape, torch.nn.Identity(), most=2)
    for size in (1, 1, 2, 2, 3, 3, 3, 1):
        assert torch.equal(graphs("double", lambda x: (x * 2,), [torch.ones(size)])[0], torch.full((size,), 2.0))
    assert len(graphs) == 2 and tape.records == 4  # the size that was used least was dropped, and came again
    graphs.clear()
    assert len(graphs) == 0


def test_what_cannot_be_recorded_runs_and_says_so():
    recorded, plain = engine(Tape(RuntimeError("operation not permitted"))), build(TINY)
    x = faces(TINY)
    recorded(x, 0.5)
    with pytest.warns(RuntimeWarning, match="operation not permitted"):
        found = recorded(x, 0.5)[0]
    torch.testing.assert_close(found, plain(x, torch.full((2,), 0.5))[0], atol=2e-5, rtol=1e-5)
    assert recorded.graphs.error == "operation not permitted" and len(recorded.graphs) == 0


def test_memory_that_runs_out_is_given_back_and_passes():
    tape = Tape()
    recorded = engine(tape)
    for _ in range(2):
        recorded(faces(TINY, 1), 0.5)
    recorded(faces(TINY, 4), 0.5)
    tape.error = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(RuntimeError, match="out of memory"):
        recorded(faces(TINY, 4), 0.5)
    assert len(recorded.graphs) == 0 and recorded.graphs.error is None
    tape.error = None
    assert recorded(faces(TINY, 1), 0.5)[0].isfinite().all()
