"""Models that the host moves away while a node still needs them."""
from __future__ import annotations

import gc
import weakref

import pytest
import torch


def sizes(pack) -> list[int]:
    """How many models each request asked for."""
    return [count for count, _ in pack.mm.state.requests]


@pytest.fixture
def evicting(pack, model):
    """A host that keeps only what the last request named, as with --disable-smart-memory."""
    pack.mm.state.smart_memory = False
    pack.mm.state.requests.clear()
    return pack


def test_restore_faces_asks_once_for_all_that_it_needs(evicting, run, model, portrait) -> None:
    plain = run("RestoreFaces", model=model, image=portrait)
    assert sizes(evicting) == [3]  # restorer, recogniser, detector
    evicting.mm.state.smart_memory = True
    kept = run("RestoreFaces", model=model, image=portrait)
    assert torch.equal(plain[0], kept[0]) and "restored" in plain[-1]


def test_the_memory_of_the_faces_is_asked_for(evicting, run, model, portrait) -> None:
    from idcodeformer.runtime.memory import bytes_per_face

    run("RestoreFaces", model=model, image=portrait)
    faces = evicting.sub("restore")._FACES_AT_ONCE
    assert evicting.mm.state.requests[0][1] == max(256 << 20, faces * bytes_per_face(model.config))


def test_detect_faces_by_reference_survives(evicting, run, model, group, member) -> None:
    values = dict(image=group, reference=member, order="reference", keep="largest")
    chosen = run("DetectFaces", **values)[0]
    assert sizes(evicting)[0] == 2
    evicting.mm.state.smart_memory = True
    again = run("DetectFaces", **values)[0]
    assert torch.equal(chosen.faces[0][0].box, again.faces[0][0].box)


@pytest.mark.parametrize("linked", [True, False])
def test_identity_score_survives(evicting, run, model, portrait, linked) -> None:
    more = {"model": model} if linked else {}
    mean = run("IdentityScore", reference=portrait, candidate=portrait, **more)[0]
    assert sizes(evicting)[0] == 2 and mean == pytest.approx(1.0, abs=1e-3)


def test_what_goes_in_the_middle_of_a_run_comes_back_with_the_rest(pack, run, model, portrait, monkeypatch) -> None:
    """An upscaler, or another prompt's model, takes the place of ours between two stages.

    The restorer's engine holds tensors of its own on a GPU, so only the others can be missed.
    """
    pack.mm.state.smart_memory = False
    original = pack.sub("restore").PreviewingRestorer.__call__

    def steals(self, *args, **kwargs):
        for loaded in list(pack.mm.state.loaded):
            if loaded.model.network is not model._restorer.network:
                pack.mm.unload(loaded)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(pack.sub("restore").PreviewingRestorer, "__call__", steals)
    text = run("RestoreFaces", model=model, image=portrait)[-1]
    assert "identity to the input" in text and len(pack.mm.state.loaded) == 3


def test_weights_go_with_the_loader_output(pack, run, portrait) -> None:
    """Neither the hook nor the group that was loaded together keeps a network alive."""
    loaded = run("Loader", model_name="tiny_codeformer.safetensors", recogniser="tiny_recogniser.safetensors")[0]
    run("RestoreFaces", model=loaded, image=portrait)
    network = weakref.ref(loaded.managed_recogniser.managed.network)
    pack.mm.state.loaded.clear()
    pack.mm.state.requests.clear()
    gc.disable()
    try:
        del loaded
        assert network() is None
    finally:
        gc.enable()
