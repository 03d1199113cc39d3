"""Which files the combos offer, where they are found, what the user reads about a wrong one, when one is read again."""
from __future__ import annotations

import os
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch

from tests.test_nodes.conftest import TINY, TINY_RECOGNISER, refusal


def offered(node, name):
    return node.INPUT_TYPES()["required"][name][0]


def test_files_and_built_in_models_are_offered(pack):
    names = offered(pack.nodes.Loader, "model_name")
    assert names[0] == TINY
    assert "ID-CodeFormer mini 128 px, built in" in names and "CodeFormer mini 128 px, built in" in names
    recognisers = offered(pack.nodes.Loader, "recogniser")
    assert TINY_RECOGNISER in recognisers and "mini recogniser, built in" in recognisers and "none" in recognisers


def test_other_networks_files_are_not_offered(pack):
    for name in ("GPEN-BFR-512.pth", "notes.txt", "readme.md"):
        (pack.models / "facerestore_models" / name).write_bytes(b"x")
    names = offered(pack.nodes.Loader, "model_name")
    assert not {"GPEN-BFR-512.pth", "notes.txt", "readme.md"} & set(names)


def test_extra_folders_are_honoured_even_after_another_pack_overwrote_the_key(pack, tmp_path):
    extra = tmp_path / "elsewhere"
    (extra / "sub").mkdir(parents=True)
    (extra / "sub" / "codeformer_x.pth").write_bytes(b"x")
    pack.folder_paths.add_model_folder_path("facerestore_models", str(extra))
    assert "sub/codeformer_x.pth" in offered(pack.nodes.Loader, "model_name")
    pack.folder_paths.folder_names_and_paths["facerestore_models"] = ([str(extra)], {".pth"})
    names = offered(pack.nodes.Loader, "model_name")
    assert TINY in names and "sub/codeformer_x.pth" in names


def test_extra_model_paths_are_read_where_the_table_lost_them(pack, tmp_path, monkeypatch):
    for folder in ("base/restorers", "absolute"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"codeformer_{folder[0]}.pth").write_bytes(b"x")
    file = tmp_path / "extra.yaml"
    lines = f"restorers\n    {tmp_path / 'absolute'}"
    file.write_text(f"mine:\n  base_path: base\n  facerestore_models: |\n    {lines}\nempty:\n")
    monkeypatch.setattr(sys.modules["comfy.cli_args"].args, "extra_model_paths_config", [[str(file)]])
    pack.folder_paths.folder_names_and_paths["facerestore_models"] = ([], {".pth"})
    assert {"codeformer_b.pth", "codeformer_a.pth"} <= set(offered(pack.nodes.Loader, "model_name"))


def test_detectors_where_other_packs_put_them_are_offered_and_nothing_else_there(pack, monkeypatch):
    folders = pack.sub("folders")
    built_in = folders.locate("detector", pack.sub("managed").BUILT_IN_DETECTOR)
    for folder in ("facerestore_models", "detection"):
        (pack.models / folder).mkdir(exist_ok=True)
        for name in (f"detection_Resnet50_{folder}.pth", f"other_{folder}.pth", f"codeformer_{folder}.pth"):
            (pack.models / folder / name).write_bytes(built_in.read_bytes())
    try:
        names = offered(pack.nodes.DetectFaces, "detector")
        assert {"detection_Resnet50_facerestore_models.pth", "detection_Resnet50_detection.pth"} <= set(names)
        assert not [name for name in names if name.startswith(("other_", "codeformer_"))]
        there = folders.locate("detector", "detection_Resnet50_detection.pth")
        assert there == pack.models / "detection" / "detection_Resnet50_detection.pth"
        assert "detection" not in pack.folder_paths.folder_names_and_paths  # looked into, not claimed
    finally:
        for folder in ("facerestore_models", "detection"):
            for file in (pack.models / folder).glob(f"*_{folder}.pth"):
                file.unlink()


def test_a_better_model_is_hinted_at_where_only_the_built_in_ones_are(pack, monkeypatch):
    node = pack.nodes.Loader
    built_in = "CodeFormer mini 128 px, built in"
    chosen = {"model_name": built_in, "precision": "auto", "recogniser": "none"}
    assert node().load(**chosen)["ui"] == {"text": []}  # a file of the user's is there
    folders = pack.sub("folders")
    monkeypatch.setattr(folders, "_files", lambda *_: [])
    told = " ".join(node().load(**chosen)["ui"]["text"])
    assert "codeformer.pth from https://" in told and "S-Lab" in told
    assert str(pack.models / "facerestore_models") in told


@pytest.mark.parametrize("name", ["DetectFaces", "RestoreFaces", "IdentityScore", "Person", "Loader"])
def test_without_install_the_first_error_names_it(pack, run, portrait, monkeypatch, request, name):
    loading = sys.modules[pack.module.__name__ + ".idcodeformer.weights.loading"]
    given = {
        "DetectFaces": {"image": portrait}, "IdentityScore": {"reference": portrait, "candidate": portrait},
        "Person": {"photos": portrait}, "Loader": {"model_name": TINY},
    }  # fmt: skip
    if name == "RestoreFaces":
        given[name] = {"image": portrait, "model": request.getfixturevalue("model")}

    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'facexlib'", name="facexlib")

    monkeypatch.setattr(loading, "build", missing)
    with pytest.raises(pack.errors.MissingPackage, match="'facexlib' is missing: install.py .*install.py\""):
        run(name, **given[name])


def test_precision_that_this_machine_lacks_is_refused_in_words(pack):
    choices = offered(pack.nodes.Loader, "precision")
    assert list(choices) == ["auto", "fp32", "bf16", "fp16"]
    assert "auto" in choices and "fp32" in choices and "int8" not in choices
    if "fp16" not in choices:  # on a CPU
        assert "fp16" in str(choices) and "precision" in str(choices).lower()


@pytest.mark.parametrize("value", [None, 5, "", ["codeformer.pth"]])
def test_a_name_that_is_no_name_is_refused_before_running(pack, value):
    for name in ("model_name", "recogniser"):
        assert "is no file name; choose one from the list" in str(refusal(pack.nodes.Loader, name, value))


def test_a_name_that_no_file_system_takes_is_refused_briefly(pack):
    said = str(refusal(pack.nodes.Loader, "model_name", "a" * 5000)).rpartition("]. ")[2]
    assert said.endswith("aaa...' is no file name in models/facerestore_models; choose one from the list.")
    assert len(said) < 200


def test_registering_adds_and_replaces_nothing(pack):
    table = pack.folder_paths.folder_names_and_paths
    table["facedetection"] = (["/theirs"], {".theirs"})
    pack.sub("folders").register()
    assert table["facedetection"] == (["/theirs", str(pack.models / "facedetection")], {".theirs"})
    assert ".safetensors" in table["idcodeformer"][1] and ".txt" not in table["idcodeformer"][1]


def test_missing_model_is_refused_with_file_folder_and_source(pack):
    said = refusal(pack.nodes.Loader, "model_name", "codeformer.pth")
    assert "codeformer.pth" in said and "facerestore_models" in said and "https://" in said


@pytest.mark.parametrize("name", ["../../secret.pth", "/etc/passwd", "C:\\x.pth", "..\\x.pth"])
def test_names_that_leave_the_folder_are_refused(pack, name):
    assert "choose one from the list" in refusal(pack.nodes.Loader, "model_name", name)


def test_windows_and_unix_separators_name_the_same_file(pack, tmp_path):
    (pack.models / "facerestore_models" / "old").mkdir(exist_ok=True)
    file = pack.models / "facerestore_models" / "old" / "codeformer_y.pth"
    file.write_bytes(b"x")
    assert pack.sub("folders").locate("restorer", "old\\codeformer_y.pth") == file


def test_linked_inputs_are_not_judged(pack):
    """The host does not look a linked value up in the list, and a method that validates would be asked about it."""
    assert not hasattr(pack.nodes.Loader, "VALIDATE_INPUTS")


def test_corrupt_file_says_so(pack, run):
    file = pack.models / "facerestore_models" / "codeformer_bad.safetensors"
    file.write_bytes(b"not a model at all")
    with pytest.raises(pack.errors.CorruptWeights, match="codeformer_bad"):
        run("Loader", model_name=file.name, recogniser="none")


def test_another_network_says_what_it_is(pack, run):
    name = "codeformer_really_a_recogniser.safetensors"
    recogniser = (pack.models / "insightface" / TINY_RECOGNISER).read_bytes()
    (pack.models / "facerestore_models" / name).write_bytes(recogniser)
    with pytest.raises(pack.errors.UnsupportedWeights, match="MobileFaceNet"):
        run("Loader", model_name=name, recogniser="none")


def test_pickle_with_code_is_never_run(pack, run, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"params_ema": Evil()}, pack.models / "facerestore_models" / "codeformer_evil.pth")
    with pytest.raises(pack.errors.UnsafeWeights):
        run("Loader", model_name="codeformer_evil.pth", recogniser="none")
    assert not (tmp_path / "owned").exists()


def test_changed_file_changes_the_fingerprint_and_nothing_else_does(pack):
    node = pack.nodes.Loader
    first = node.IS_CHANGED(model_name=TINY, precision="fp32", recogniser="none")
    assert first == node.IS_CHANGED(model_name=TINY, precision="fp32", recogniser="none")
    file = pack.models / "facerestore_models" / TINY
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1_000_000))
    changed = node.IS_CHANGED(model_name=TINY, precision="fp32", recogniser="none")
    assert isinstance(first, str) and changed != first
    (pack.models / "facedetection" / "parsing_parsenet.pth").write_bytes(b"x")  # now Restore Faces would use it
    assert node.IS_CHANGED(model_name=TINY, precision="fp32", recogniser="none") != changed
    (pack.models / "facedetection" / "parsing_parsenet.pth").unlink()


def test_networks_are_loaded_wholly_and_belong_to_the_output(pack, model):
    pack.sub("managed").load_together([model.restorer])
    restorer = model.restorer.ready()
    (patcher,) = pack.mm.state.loaded
    assert patcher.model.network is restorer.network
    assert all(p.device.type == "cpu" for p in restorer.network.parameters())


@pytest.mark.parametrize("platform, trims", [("linux", True), ("linux", False), ("win32", True)])
def test_memory_is_returned_where_the_allocator_can(pack, monkeypatch, platform, trims):
    import ctypes

    asked: list[int] = []
    library = SimpleNamespace(malloc_trim=asked.append) if trims else SimpleNamespace()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr("sys.platform", platform)
    pack.sub("host")._return_memory()
    assert asked == ([0] if platform == "linux" and trims else [])


def test_memory_is_returned_after_the_weights_are_gone(pack, run, monkeypatch):
    """The order in which the output's parts go decides whether the allocator has anything to return."""
    alive = []
    monkeypatch.setattr(pack.sub("host"), "_return_memory", lambda: alive.append(weights() is not None))
    model = run("Loader", model_name=TINY, recogniser=TINY_RECOGNISER)[0]
    pack.sub("managed").load_together([model.restorer, model.recogniser])
    model.restorer.ready(), model.recogniser.ready()
    weights = weakref.ref(model.restorer.managed.network)
    pack.mm.reset()
    del model
    assert alive == [False]


def test_weights_left_on_another_device_are_fetched(pack, model):
    """--novram leaves them where they are although a full load was asked for."""
    pack.mm.state.novram = True
    managed = model.restorer.managed
    managed.device = torch.device("meta")  # a device that every machine has
    pack.sub("managed").load_together([model.restorer])
    assert {p.device.type for p in managed.network.parameters()} == {"meta"}


def test_force_fp32_is_honoured(pack, run, monkeypatch):
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: True)  # whatever this CPU has
    pack.mm.FORCE_FP32 = True
    assert run("Loader", model_name=TINY, recogniser="none", precision="bf16")[0].precision == "fp32"
    pack.mm.FORCE_FP32 = False
    assert run("Loader", model_name=TINY, recogniser="none", precision="bf16")[0].precision == "bf16"
