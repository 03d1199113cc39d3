"""The entry in the host's list of face restorers, inside a generation and outside of any."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from webui_parts import ROOT, Door, Generation


def start(door: Door, generation: Generation) -> Any:
    """The host's always-on script at the beginning of a generation."""
    (data,) = door.scripts.scripts_data
    script = data.script_class()
    assert script.show(False) is door.scripts.AlwaysVisible
    script.process(generation)
    return script


def test_only_the_faces_change(door: Door, group: np.ndarray) -> None:
    door.settings(model="mini_id_codeformer")
    picture = np.pad(group, ((60, 60), (60, 60), (0, 0)), mode="edge")
    result = door.restorer.restore(picture)
    assert result.dtype == np.uint8 and result.shape == picture.shape
    change = np.abs(result.astype(int) - picture).max(axis=2)
    assert (change[:20] == 0).all() and (change[:, -20:] == 0).all()  # the background is the same to the level
    columns = np.flatnonzero(change.max(axis=0) > 10)
    assert columns.min() < 220 and columns.max() > 540  # the first and the last of four faces


def test_scores_reach_the_infotext_of_each_picture(
    door: Door, group: np.ndarray, portrait: np.ndarray, generation: Generation
) -> None:
    door.settings()
    script = start(door, generation)
    door.restorer.restore(group)
    texts = dict(generation.extra_generation_params)
    assert texts["Steps"] == 20 and texts["ID-CodeFormer"] == "4 of 4 faces restored"
    scores = [float(score) for score in texts["ID-CodeFormer identity"].split()]
    assert len(scores) == 4 and all(0.3 < score < 1 for score in scores)
    assert texts["ID-CodeFormer model"] == "mini_id_codeformer"
    door.restorer.restore(np.full_like(portrait, 128))
    assert generation.extra_generation_params["ID-CodeFormer"] == "no face found"
    assert "ID-CodeFormer identity" not in generation.extra_generation_params  # the last picture's
    script.postprocess(generation, None)
    door.restorer.restore(portrait)
    assert generation.extra_generation_params["ID-CodeFormer"] == "no face found"  # that generation is through


def test_fidelity_is_the_hosts_weight_unless_told_otherwise(door: Door) -> None:
    settings = door.sub("settings")
    door.settings()
    door.shared.opts.data["code_former_weight"] = 0.3
    assert settings.wishes().fidelity == 0.3
    assert settings.wishes(0.9).fidelity == 0.9  # a caller's own
    door.settings(host_weight=False, fidelity=0.7)
    assert settings.wishes().fidelity == 0.7


def test_all_settings_reach_the_core(door: Door, portrait: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    core = door.sub("core")
    seen = {}

    def restore(pipeline, picture, wishes, person, progress):
        seen.update(wishes=wishes, person=person)
        raise core.BadImage("enough")

    monkeypatch.setattr(core, "restore", restore)
    door.settings(
        host_weight=False, fidelity=0.25, visibility=0.5, minimum_identity=0.4, gray="force",
        reference=str(ROOT / "idcodeformer/assets/portrait.jpg"), guidance_steps=9, guidance_strength=0.6,
        large_faces="keep", grain="off", colour="adain",
    )  # fmt: skip
    with pytest.raises(core.BadImage):
        door.restorer.restore(portrait)
    options = seen["wishes"].restore_options()
    assert (options.w, options.strength, options.min_identity, options.gray) == (0.25, 0.5, 0.4, "force")
    assert (options.large_faces, options.grain, options.colour) == ("keep", "off", "adain")
    assert [each.recogniser for each in seen["person"]] == ["mini_recogniser", "mobileface_v2"]
    guidance = seen["wishes"].guidance()
    assert (guidance.steps, guidance.strength) == (9, 0.6)
    door.settings(guidance_steps=9, reference="")
    assert door.sub("settings").wishes().guidance() is None  # nobody to guide towards


def test_a_picture_that_cannot_be_restored_goes_on_with_the_reason(
    door: Door, portrait: np.ndarray, generation: Generation, capsys: pytest.CaptureFixture
) -> None:
    door.settings(model="gone.pth")
    start(door, generation)
    result = door.restorer.restore(portrait)
    assert result is portrait
    (comment,) = generation.comments
    assert "gone.pth" in comment and str(door.models / "Codeformer") in comment
    assert generation.extra_generation_params["ID-CodeFormer"].startswith("not restored: There is no gone.pth")
    assert "gone.pth" in capsys.readouterr().out


def test_the_user_may_have_the_job_stopped(door: Door, portrait: np.ndarray, generation: Generation) -> None:
    settings = door.sub("settings")
    door.settings(model="gone.pth", on_error=settings.STOP)
    start(door, generation)
    with pytest.raises(door.sub("core").MissingWeights, match="gone.pth"):
        door.restorer.restore(portrait)


def test_outside_a_generation_the_error_is_raised(door: Door, portrait: np.ndarray) -> None:
    """Nobody would see a comment there: another extension calls, or a generation that ended by an error is gone."""
    door.settings(model="gone.pth")
    start(door, Generation())
    with pytest.raises(door.sub("core").MissingWeights):
        door.restorer.restore(portrait)


def test_an_inner_generation_hides_the_outer_while_it_lasts(door: Door) -> None:
    jobs = door.sub("processing").Jobs()
    outer, inner = Generation(), Generation()
    jobs.begin(outer)
    jobs.begin(inner)
    assert jobs.running() is inner
    jobs.end(inner)
    assert jobs.running() is outer
    jobs.end(outer)
    assert jobs.running() is None


@pytest.mark.parametrize("button", ["interrupted", "skipped"])
def test_interrupt_leaves_the_picture(door: Door, portrait: np.ndarray, generation: Generation, button: str) -> None:
    door.settings()
    start(door, generation)
    setattr(door.shared.state, button, True)
    assert door.restorer.restore(portrait) is portrait
    assert generation.extra_generation_params["ID-CodeFormer"] == "interrupted"


@pytest.mark.parametrize("wrong", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_what_is_no_picture_is_named(door: Door, wrong: np.ndarray) -> None:
    door.settings()
    with pytest.raises(door.sub("core").BadImage, match="give RGB bytes"):
        door.restorer.restore(wrong)


def test_settings_go_back_in_from_the_infotext(door: Door, group: np.ndarray, generation: Generation) -> None:
    """The host turns infotext fields into overrides of the options that name them."""
    door.settings(visibility=0.6, grain="on")
    door.shared.opts.data["code_former_weight"] = 0.35
    start(door, generation)
    door.restorer.restore(group)
    labels = door.shared.opts.data_labels
    fields = {info.infotext: name for name, info in labels.items() if info.infotext}
    written = {
        fields[key]: value for key, value in generation.extra_generation_params.items() if key in fields
    }
    assert written == {
        "id_codeformer_model": "mini_id_codeformer", "id_codeformer_fidelity": "0.35",
        "id_codeformer_host_weight": "False", "id_codeformer_visibility": "0.6",
        "id_codeformer_grain": "on",
    }  # fmt: skip


def test_models_are_loaded_once_and_the_old_one_goes(
    door: Door, portrait: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, loaded = door.sub("core"), []
    real = core.load
    monkeypatch.setattr(core, "load", lambda kind, *rest: loaded.append(kind) or real(kind, *rest))
    door.settings()
    for _ in range(2):
        door.restorer.restore(portrait)
    assert sorted(loaded) == ["detector", "parser", "recogniser", "restorer"]
    door.settings(model="mini_codeformer")
    door.restorer.restore(portrait)
    assert sorted(loaded) == ["detector", "parser", "recogniser", "restorer", "restorer"]
    models = door.restorer._models
    assert set(models._held) == {"detector", "parser", "recogniser", "restorer"}
    door.callbacks.fire("script_unloaded")
    assert not models._held


class Elsewhere:
    """A network on a device that this machine does not have."""

    device = None

    def __init__(self, place: Any) -> None:
        self.place = place


@pytest.fixture
def on_a_gpu(door: Door, monkeypatch: pytest.MonkeyPatch) -> Callable[[Door], Any]:
    """Models of a host whose device is cuda, with networks that only say where they are."""
    import torch

    def make(door: Door) -> Any:
        core = door.sub("core")
        door.devices.device_codeformer = torch.device("cuda:0")
        monkeypatch.setattr(core, "load", lambda kind, file, device, precision: Elsewhere(device))
        monkeypatch.setattr(core, "moved", lambda part, device, precision: Elsewhere(device))
        return door.sub("models").Models()

    return make


def test_networks_leave_the_card_where_the_host_says_so(door: Door, on_a_gpu: Callable) -> None:
    models = on_a_gpu(door)
    part = models.part("restorer", "mini_id_codeformer")
    models.rest()
    assert models.part("restorer", "mini_id_codeformer") is part and part.place.type == "cuda"
    door.shared.opts.data["face_restoration_unload"] = True
    models.rest()
    assert models._held["restorer"].part.place.type == "cpu" and door.devices.collected
    assert models.part("restorer", "mini_id_codeformer").place.type == "cuda"


@pytest.mark.parametrize("kind", ["forge", "reforge"])
def test_forges_memory_management_is_asked_for_room(make_door: Callable[[str], Door], kind: str) -> None:
    import importlib

    import torch

    door = make_door(kind)
    host = door.sub("host")
    name = {"forge": "backend.memory_management", "reforge": "ldm_patched.modules.model_management"}[kind]
    host.make_room(123, torch.device("cpu"))
    host.make_room(456, torch.device("cuda"))
    assert importlib.import_module(name).freed == [(456, torch.device("cuda"))]


def test_a1111_has_no_memory_management_to_ask(door: Door) -> None:
    import torch

    door.sub("host").make_room(456, torch.device("cuda"))


@pytest.mark.parametrize(("flag", "precision"), [("no_half", "fp32"), ("all_in_fp32", "fp32"), ("xformers", "auto")])
def test_full_precision_of_the_host_is_ours(door: Door, flag: str, precision: str) -> None:
    setattr(door.shared.cmd_opts, flag, True)
    assert door.sub("host").precision() == precision


def test_the_device_is_the_hosts(make_door: Callable[[str], Door]) -> None:
    import torch

    door = make_door("sdnext")
    assert door.sub("host").device() == torch.device("cpu")
    door.devices.device = torch.device("cuda:1")
    assert door.sub("host").device() == torch.device("cuda:1")


def test_files_of_the_hosts_folders_are_offered(door: Door, tmp_path: Path) -> None:
    files = door.sub("files")
    elsewhere = tmp_path / "elsewhere"
    for folder, names in {
        door.models / "Codeformer": ["codeformer-v0.1.0.pth", "readme.txt"],
        door.models / "GFPGAN": ["GFPGANv1.4.pth", "detection_Resnet50_Final.pth", "parsing_parsenet.pth"],
        door.models / "insightface": ["w600k_r50.onnx", "det_10g.onnx"],
        elsewhere: ["mine.safetensors"],
    }.items():
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
    door.shared.cmd_opts.codeformer_models_path = str(elsewhere)
    assert files.choices("restorer")[3:] == ["codeformer-v0.1.0.pth", "mine.safetensors"]
    assert files.choices("detector")[1:] == ["det_10g.onnx", "detection_Resnet50_Final.pth"]
    assert files.choices("recogniser") == ["mini_recogniser", "mobileface_v2", "w600k_r50.onnx", "none"]
    assert files.locate("restorer", "automatic") == door.models / "Codeformer" / "codeformer-v0.1.0.pth"
    assert files.parser_file() == door.models / "GFPGAN" / "parsing_parsenet.pth"
    assert door.restorer.cmd_dir == str(elsewhere)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.pth", "C:\\x.pth", "a/../../b.pth"])
def test_a_name_cannot_leave_the_hosts_folders(door: Door, name: str) -> None:
    with pytest.raises(door.sub("core").MissingWeights, match="choose one from the list"):
        door.sub("files").locate("restorer", name)
