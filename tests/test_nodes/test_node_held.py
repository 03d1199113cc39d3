"""What is computed again when something changes, counted; what is held, and when it is given up."""
from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.test_nodes.conftest import NAME


def module(pack, name):
    return __import__("sys").modules[f"{NAME}.idcodeformer.{name}"]


@pytest.fixture
def calls(pack, model, run, portrait, monkeypatch):
    """How often each step of the core ran."""
    run("RestoreFaces", model=model, image=torch.zeros_like(portrait))  # imports all that is patched here
    seen: Counter = Counter()
    engine = module(pack, "restoration.engine.execution").StripEngine
    retina = module(pack, "detection").RetinaFaceDetector
    recogniser = module(pack, "identity.recogniser").IdentityRecogniser

    def counted(owner, attribute, name):
        original = getattr(owner, attribute)

        def call(*args, **kwargs):
            seen[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, call)

    counted(engine, "encode", "encode")
    counted(engine, "decode", "decode")
    counted(module(pack, "networks.codeformer").CodeFormer, "predict", "transformer")
    counted(module(pack, "geometry.alignment"), "align", "align")
    counted(retina, "__call__", "detect")
    counted(recogniser, "__call__", "embed")
    return seen


class Halver:
    scale = 2

    def to(self, device):
        return self

    def __call__(self, x):
        return torch.nn.functional.interpolate(x, scale_factor=2)


CHANGES = [
    {"fidelity": 0.3},
    {"fidelity": 0.5, "visibility": 0.5},
    {"upscale_factor": 2.0},
    {"upscale_factor": 2.0, "upscale_model": Halver(), "face_upsample": True},
    {"colour": "adain"},
    {"colour_match": False},
    {"gray_mode": "force"},
    {"min_identity": 0.1},
    {"paste_classes": "whole square"},
]


def test_what_does_not_matter_to_it_is_not_computed_again(run, model, portrait, calls):
    first = run("RestoreFaces", model=model, image=portrait)
    assert calls == {"detect": 1, "align": 1, "encode": 1, "transformer": 1, "decode": 1, "embed": 2}
    for change in CHANGES:
        calls.clear()
        again = run("RestoreFaces", model=model, image=portrait.clone(), **change)
        assert set(calls) <= {"decode", "embed"} and calls["decode"] == 1 and calls["embed"] <= 1, change
        same = again[0].shape == first[0].shape and torch.equal(again[0], first[0])
        assert same == ("min_identity" in change), change
    calls.clear()
    assert torch.equal(run("RestoreFaces", model=model, image=portrait)[0], first[0])
    assert calls == {"decode": 1}


def test_results_are_those_of_a_run_that_holds_nothing(run, model, portrait, found):
    given = {"model": model, "image": portrait, "faces": found(portrait)}
    changes = [CHANGES[n] for n in (0, 3, 6)]
    held = [run("RestoreFaces", **given, **change) for change in changes]
    for change, before in zip(changes, held):
        model.held.clear()
        plain = run("RestoreFaces", **given, **change)
        assert all(torch.equal(a, b) for a, b in zip(plain[:4], before[:4])) and plain[4] == before[4], change


def test_another_picture_face_or_border_is_computed(run, model, portrait, calls):
    run("RestoreFaces", model=model, image=portrait)
    dotted = portrait.clone()
    dotted[0, 200, 200] = 1 - dotted[0, 200, 200]
    calls.clear()
    run("RestoreFaces", model=model, image=dotted)
    assert calls["detect"] == calls["encode"] == calls["align"] == 1
    calls.clear()
    run("RestoreFaces", model=model, image=portrait, border="constant")
    assert calls["align"] == 1 and calls["detect"] == 0
    found = run("DetectFaces", image=portrait)[0]
    moved = type(found)(((_moved(found.faces[0][0]),),), ((),), found.size)
    calls.clear()
    run("RestoreFaces", model=model, image=portrait, faces=moved)
    assert (calls["detect"], calls["align"], calls["encode"]) == (0, 1, 1)


def _moved(face):
    return type(face)(face.box + 9, face.score, face.landmarks + 9)


def test_frames_of_a_clip_are_held_one_by_one(run, model, portrait, grey, calls):
    frames = torch.cat([portrait, torch.zeros_like(portrait), portrait.flip(2)])
    first = run("RestoreFaces", model=model, image=frames)
    calls.clear()
    turned = run("RestoreFaces", model=model, image=frames.flip(0))
    assert set(calls) == {"decode"}
    assert all(torch.equal(turned[0][2 - n], first[0][n]) for n in range(3))
    calls.clear()
    run("RestoreFaces", model=model, image=torch.cat([frames, portrait * 0.9]))
    assert calls["encode"] == calls["align"] == 1


@pytest.mark.parametrize("spare", [0, -1])
def test_crops_of_many_bytes_are_made_again(pack, run, model, portrait, found, calls, monkeypatch, spare):
    """A crop is three planes of four bytes; what is just allowed is held, a byte more is not."""
    holding, faces = pack.sub("holding"), found(portrait)
    size = 64  # px of the crops of ``model``
    monkeypatch.setattr(holding, "_MOST_CROPS", 3 * 4 * size * size * len(faces.faces[0]) + spare)
    run("RestoreFaces", model=model, image=portrait, faces=faces)
    calls.clear()
    run("RestoreFaces", model=model, image=portrait, faces=faces, fidelity=0.1)
    assert calls["align"] == (1 if spare else 0)


def test_two_nodes_of_one_model_share_what_is_held(pack, run, model, portrait, calls):
    run("RestoreFaces", model=model, image=portrait, fidelity=0.2)
    calls.clear()
    run("RestoreFaces", model=model, image=portrait, fidelity=0.9)  # ``run`` makes a node for each call
    assert calls["encode"] == calls["detect"] == 0


def test_what_is_held_is_bounded(pack):
    held = pack.sub("held").Held(10_000)
    for number in range(20):
        held.put(number, number, [torch.zeros(500)])
    assert len(held) == 3 and held.nbytes == 9000 and held.get(19) == 19 and held.get(16) is None
    held.get(17)
    held.put(20, 20, [torch.zeros(500)])
    assert held.get(17) == 17 and held.get(18) is None  # the least recently used one went
    held.put(20, 21, [torch.zeros(500)])
    assert held.get(20) == 21 and held.nbytes == 9000
    held.put("large", 0, [torch.zeros(5000)])
    assert held.get("large") is None and len(held) == 3
    held.clear()
    assert held.nbytes == 0 and len(held) == 0


def test_given_up_where_memory_is_short(pack, run, model, portrait, monkeypatch):
    run("RestoreFaces", model=model, image=portrait)
    assert model.held.nbytes > 64 * 64 * 12
    monkeypatch.setattr(module(pack, "runtime.memory"), "free_bytes", lambda device: 100 << 20)
    model.held.make_room(torch.device("cpu"))
    assert len(model.held) == 0


def test_given_up_when_memory_runs_out(pack, run, model, portrait, monkeypatch):
    run("RestoreFaces", model=model, image=portrait)

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(module(pack, "restoration.engine.execution").StripEngine, "decode", full)
    with pytest.raises(pack.errors.OutOfMemory):
        run("RestoreFaces", model=model, image=portrait)
    assert len(model.held) == 0


def test_given_up_when_the_host_takes_the_weights_away(pack, run, model, portrait):
    """/free, or another model that needs the card."""
    pack.mm.state.offload = "meta"
    first = run("RestoreFaces", model=model, image=portrait)
    assert len(model.held)
    pack.mm.unload_all_models()
    assert len(model.held) == 0
    assert torch.equal(run("RestoreFaces", model=model, image=portrait)[0], first[0])


def test_batches_of_a_card_are_held_face_by_face(pack, model):
    """Where several faces go through at once, each is found again alone and in another order."""
    restorer = model.restorer.ready()
    crops = torch.rand(3, 3, 64, 64)
    whole = restorer.encode(crops)
    turned = restorer.encode(crops.flip(0))
    one = restorer.encode(crops[1:2])
    assert torch.equal(turned.quant, whole.quant.flip(0)) and torch.equal(one.logits, whole.logits[1:2])
    for side, feature in whole.features.items():
        assert torch.equal(turned.features[side], feature.flip(0))
        assert one.features[side].untyped_storage().nbytes() == feature[1:2].numel() * 4
    calls = []
    engine, encode = restorer._engine, restorer._engine.encode
    engine.encode = lambda x: (calls.append(len(x)), encode(x))[1]
    restorer.encode(crops)
    restorer.encode(torch.cat([crops, torch.rand(1, 3, 64, 64)]))
    assert calls == [4]
