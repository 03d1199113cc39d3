"""Models that the host moves away, and what a run builds, keeps and copies."""
from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.test_nodes.conftest import defaults


@pytest.fixture(params=["--disable-smart-memory", "a card nearly full"])
def evicting(pack, request):
    """A host that moves to another device what the present request does not name: wholly, or a part of it."""
    pack.mm.state.offload = "meta"
    if request.param.startswith("--"):
        pack.mm.state.disable_smart_memory = True
    else:
        pack.mm.state.capacity = 260 << 20  # the activations that are asked for, and some weights
    return pack.mm.state


def test_the_double_evicts(pack, evicting):
    """Else the tests below could not fail."""
    managed = pack.sub("managed")
    first = managed.detector_part(managed.BUILT_IN_DETECTOR)
    second = managed.recogniser_part(managed.BUILT_IN_RECOGNISER)
    managed.load_together([first])
    if evicting.capacity:
        evicting.capacity = (256 << 20) + second.managed.patcher.size() + first.managed.patcher.size() // 2
    managed.load_together([second])
    where = [p.device.type for p in first.managed.network.parameters()]
    assert "meta" in where and ("cpu" in where) == bool(evicting.capacity)
    first.ready()
    assert {p.device.type for p in first.managed.network.parameters()} == {"cpu"}


def test_restore_faces_where_models_are_evicted(run, pack, model, portrait, member, evicting):
    plain = run("RestoreFaces", model=model, image=portrait)
    for _ in range(2):
        again = run("RestoreFaces", model=model, image=portrait, reference=member, min_identity=0.0)
        assert torch.equal(plain[0], again[0]) and "like the reference" in again[4]


def test_detect_faces_where_models_are_evicted(pack, model, group, member, evicting):
    node = pack.nodes.DetectFaces()
    for _ in range(2):  # the second time nothing is built, which would bring the weights along
        faces = execute(node, image=group, keep="reference", reference=member, model=model)[0]
        assert faces.count == 1 and len(faces.left_out) == 3


@pytest.mark.parametrize("linked", [True, False])
def test_identity_score_where_models_are_evicted(pack, model, portrait, member, evicting, linked):
    node = pack.nodes.IdentityScore()
    for reference in (portrait, portrait * 0.9):  # another one, so that it is detected and embedded again
        given = {"model": model} if linked else {}
        assert execute(node, reference=reference, candidate=portrait, **given)[0] > 0.9


def test_one_request_for_all_that_a_run_needs_and_its_memory(run, pack, model, portrait):
    run("RestoreFaces", model=model, image=portrait)
    ((patchers, memory),) = pack.mm.state.requests
    networks = [patcher.model.network for patcher in patchers]
    parts = (model.restorer, model.detector(), model.recogniser, model.parser())
    assert networks == [part.managed.network for part in parts]
    assert memory == 256 << 20  # 4 faces of the 64-px network need 25 MB, less than detection may
    model.config = type(model.config)(**{**vars(model.config), "img_size": 512, "nf": 64})
    run("RestoreFaces", model=model, image=portrait[:, :32], faces=run("DetectFaces", image=portrait[:, :32])[0])
    assert pack.mm.state.requests[-1][1] == 4 * 12 * 512 * 512 * 64 * 4


def test_evicted_between_two_stages(pack, model, portrait, run, monkeypatch):
    """Another thread, or an upscaler's own request, may have taken the room meanwhile."""
    pack.mm.state.offload = "meta"
    plain = run("RestoreFaces", model=model, image=portrait)[0]
    pack.utils.hook = lambda value, total, preview: pack.mm.unload_all_models()
    assert torch.equal(run("RestoreFaces", model=model, image=portrait)[0], plain)


@pytest.fixture
def builds(pack, monkeypatch):
    """The kinds of network that are built, one after another, and engines."""
    made = []
    loading = __import__("sys").modules[pack.module.__name__ + ".idcodeformer.weights.loading"]
    engine = __import__("sys").modules[pack.module.__name__ + ".idcodeformer.restoration.engine.execution"]
    build, init = loading.build, engine.StripEngine.__init__
    monkeypatch.setattr(loading, "build", lambda path, kind=None: (made.append(kind), build(path, kind))[1])
    monkeypatch.setattr(engine.StripEngine, "__init__", lambda *a, **k: (made.append("engine"), init(*a, **k))[1])
    return made


def execute(node, **values):
    result = getattr(node, node.FUNCTION)(**{**defaults(type(node)), **values})
    return result["result"] if isinstance(result, dict) else result


def test_a_second_run_builds_nothing(pack, model, portrait, member, builds):
    detect, restore, score = (getattr(pack.nodes, n)() for n in ("DetectFaces", "RestoreFaces", "IdentityScore"))

    def everything(confidence):
        execute(detect, image=portrait, confidence=confidence, order="reference", reference=member)
        execute(restore, model=model, image=portrait)
        execute(score, reference=portrait, candidate=member)

    everything(0.8)
    assert sorted(builds) == ["engine", "parser", "recogniser", "recogniser"] + ["retinaface"] * 3
    everything(0.7)
    assert len(builds) == 7


def test_a_changed_detector_file_is_read_again(pack, portrait, builds):
    import os
    import shutil

    embedded = pack.sub("folders").locate("detector", pack.sub("managed").BUILT_IN_DETECTOR)
    file = pack.models / "facedetection" / f"mine{embedded.suffix}"
    shutil.copy(embedded, file)
    node = pack.nodes.DetectFaces()
    for ns in (1_000, 1_000, 2_000):
        os.utime(file, ns=(ns, ns))
        assert execute(node, image=portrait, detector=file.name)[1] == 1
    assert builds == ["retinaface", "retinaface"]
    file.unlink()


def test_what_a_node_keeps_goes_with_it(pack, portrait):
    """On /free the host drops its nodes and their outputs; without a collector run, the weights go at once."""
    nodes = [pack.nodes.DetectFaces(), pack.nodes.IdentityScore()]
    execute(nodes[0], image=portrait)
    execute(nodes[1], reference=portrait, candidate=portrait)
    networks = [patcher.model.network for patcher in pack.mm.state.loaded]
    assert len(networks) == 3
    seen = [weakref.ref(network) for network in networks]
    del networks
    gc.collect()
    gc.disable()
    try:
        pack.mm.unload_all_models()
        pack.mm.reset()
        nodes.clear()
        assert [ref() for ref in seen] == [None] * 3
    finally:
        gc.enable()


class Bytes(TorchDispatchMode):
    """Counts the bytes of new storages of at least one frame."""

    def __init__(self, least):
        super().__init__()
        self.least, self.made, self.largest = least, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in _dense((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for t in _dense(result):
            if t.untyped_storage()._cdata not in given:
                size = t.untyped_storage().nbytes()
                if size >= self.least:
                    self.made += 1
                    self.largest = max(self.largest, size)
        return result


def _dense(tree):
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [t for t in leaves if isinstance(t, torch.Tensor) and t.layout == torch.strided]


@pytest.mark.parametrize("name", ["DetectFaces", "RestoreFaces"])
def test_a_clip_is_never_copied_whole(pack, run, model, monkeypatch, name):
    """Besides the outputs (one IMAGE, one MASK) no tensor is as large as a quarter of the clip."""
    convert, faces = pack.sub("convert"), pack.sub("faces")
    monkeypatch.setattr(convert, "_PIXELS_AT_ONCE", 2 * 256 * 256)
    frames = torch.rand(24, 256, 256, 3)
    none = faces.FoundFaces(((),) * 24, ((),) * 24, (256, 256))
    given = {"model": model, "faces": none} if name == "RestoreFaces" else {"keep": "all"}
    if name == "DetectFaces":
        monkeypatch.setattr(faces, "find", lambda *a, **k: none)
    quarter = math.prod(frames.shape)
    pack.sub("managed").load_together([model.restorer])
    model.restorer.ready()  # its weights are no copy of the clip
    with Bytes(quarter) as seen:
        result = run(name, image=frames, **given)
    image = result[0] if name == "RestoreFaces" else result[2]
    assert torch.allclose(image, frames, atol=1 / 255)
    assert seen.made == 2 and seen.largest == 4 * quarter  # the outputs
