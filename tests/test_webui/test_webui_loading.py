"""How the extension comes into a host and leaves it, and that it hides nothing of the host's."""
from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest
from webui_parts import DOUBLE, HOSTS, PACKAGE, ROOT, SCRIPT, Door

# What the hosts import by these names from their own folder (A1111, Forge, reForge, SD.Next), or from repositories/.
TAKEN = {
    "webui", "launch", "modules", "modules_forge", "scripts", "backend", "ldm_patched", "installer", "extensions",
    "extensions_builtin", "k_diffusion", "k_diff", "packages_3rdparty", "spaces", "ldm", "sgm", "models", "data",
    "configs", "localizations", "html", "javascript", "cli", "pipelines", "test", "ui", "wiki",
    "download_supported_configs",
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTS)
def test_loading_does_no_work(make_door: Callable[[str], Door], kind: str) -> None:
    make_door(kind)
    loaded = {name for name in sys.modules if name.startswith(PACKAGE)}
    assert f"{PACKAGE}.sdwebui.host" in loaded
    assert not {name for name in loaded if name.startswith(f"{PACKAGE}.idcodeformer")}
    assert "gradio" not in sys.modules and f"{PACKAGE}.nodes" not in loaded


@pytest.mark.parametrize("kind", ["a1111", "forge", "reforge"])
def test_one_restorer_however_often_scripts_are_loaded(make_door: Callable[[str], Door], kind: str) -> None:
    door = make_door(kind)
    first = door.restorer
    door.load()
    names = [one.name() for one in door.shared.face_restorers]
    assert names == ["CodeFormer", "GFPGAN", "ID-CodeFormer"]
    assert door.restorer is not first
    assert [data.script_class.__name__ for data in door.scripts.scripts_data] == ["ScoresInInfotext"]
    assert [data.script_class.name for data in door.scripts.postprocessing_scripts_data] == ["ID-CodeFormer"]


def test_unloading_takes_the_restorer_away(door: Door) -> None:
    door.callbacks.fire("script_unloaded")
    assert [one.name() for one in door.shared.face_restorers] == ["CodeFormer", "GFPGAN"]


def test_sdnext_gets_the_extras_entry_alone(make_door: Callable[[str], Door]) -> None:
    door = make_door("sdnext")
    assert not hasattr(door.shared, "face_restorers")
    assert door.scripts.scripts_data == []
    assert [data.script_class.name for data in door.scripts.postprocessing_scripts_data] == ["ID-CodeFormer"]
    door.settings()
    offered = {name.removeprefix("id_codeformer_") for name in door.shared.opts.data_labels}
    assert offered == {"model", "detector", "recogniser", "gray"}  # what the Extras entry and the API read


def test_a1111_takes_our_folder_off_the_path_and_forge_does_not(make_door: Callable[[str], Door]) -> None:
    make_door("a1111")
    assert str(ROOT) not in sys.path[:1]


def test_forge_leaves_our_folder_on_the_path(make_door: Callable[[str], Door]) -> None:
    make_door("forge")
    assert sys.path[0] == str(ROOT)
    import webui  # the host's, not a package of ours

    assert webui.HOST is True


def test_no_top_level_name_of_ours_is_taken() -> None:
    """A folder without __init__.py hides nothing: a module or package further on the path goes before it."""
    ours = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {"idcodeformer", "nodes", "training", "sdwebui"} <= ours
    assert not ours & TAKEN
    assert not (ROOT / "scripts" / "__init__.py").exists()


@pytest.mark.parametrize("kind", HOSTS)
def test_with_both_on_the_path_each_finds_its_own(kind: str, tmp_path: Path) -> None:
    """Our folder first, as Forge leaves it: the host still finds its modules, and ours keep their names."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "host_script.py").write_text("HOST = True\n")
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], *sys.argv[2:]]\n"
        "import importlib.util, webui, launch, modules.shared, scripts.host_script\n"
        "assert webui.HOST and launch.HOST and scripts.host_script.HOST and modules.shared.opts\n"
        "print(*(importlib.util.find_spec(name).origin for name in ('nodes', 'training')))"
    )
    path = [str(ROOT), str(DOUBLE / kind), str(DOUBLE / "common"), str(tmp_path)]
    env = {**os.environ, "HOST_DOUBLE_BASE": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code, *path], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(ROOT / "nodes" / "__init__.py"), str(ROOT / "training" / "__init__.py")]


def test_the_script_is_alone_in_its_folder_and_imports_nothing_of_ours_by_name() -> None:
    assert [path.name for path in (ROOT / "scripts").iterdir() if path.name != "__pycache__"] == [SCRIPT.name]
    named = {
        alias.name.split(".")[0] if isinstance(node, ast.Import) else (node.module or "").split(".")[0]
        for node in ast.walk(ast.parse(SCRIPT.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert named <= sys.stdlib_module_names


def test_settings_of_the_restorer(door: Door) -> None:
    door.settings()
    labels = door.shared.opts.data_labels
    assert {info.section for info in labels.values()} == {("id_codeformer", "ID-CodeFormer")}
    assert labels["id_codeformer_model"].component_args()["choices"][0] == "automatic"
    assert labels["id_codeformer_reference"].restrict_api  # a path on the host's machine
    assert labels["id_codeformer_fidelity"].infotext == "ID-CodeFormer fidelity"


@pytest.mark.parametrize(
    ("option", "chosen", "label"),
    [("localization", "None", "Model"), ("localization", "zh_CN", "模型"), ("ui_locale", "zh-Hans", "模型")],
)
def test_texts_follow_the_language_of_the_page(door: Door, option: str, chosen: str, label: str) -> None:
    door.shared.opts.data[option] = chosen
    door.settings()
    assert door.shared.opts.data_labels["id_codeformer_model"].label == label


def test_both_languages_have_every_text() -> None:
    import json
    import re

    texts = [json.loads((ROOT / "locales" / name / "webui.json").read_text("utf-8")) for name in ("en", "zh")]
    assert texts[0].keys() == texts[1].keys()
    assert all(text.strip() for both in texts for text in both.values())
    source = "".join(path.read_text("utf-8") for path in (ROOT / "sdwebui").glob("*.py"))
    used = set(re.findall(r'text\("([a-z_.]+)"\)', source))
    modes = re.findall(r'"(\w+)": settings\.[A-Z]', source)  # those that a loop adds, in both places
    used |= {f"extras.{name}" for name in modes}
    options = re.findall(r'_add\("(\w+)"', source) + modes
    used |= {f"settings.{name}{end}" for name in options for end in ("", ".about")}
    assert used == texts[0].keys()


def test_axes_are_added_once(door: Door) -> None:
    grid = door.scripts.add_xyz_grid()
    door.callbacks.fire("before_ui")
    door.callbacks.fire("before_ui")
    labels = [axis.label for axis in grid.axis_options]
    assert labels == ["Nothing"] + [f"[ID-CodeFormer] {name}" for name in ("fidelity", "guidance steps", "model")]


def test_an_axis_restores_with_its_value(door: Door, generation) -> None:
    grid = door.scripts.add_xyz_grid()
    door.callbacks.fire("before_ui")
    fidelity, steps, model = grid.axis_options[1:]
    steps.apply(generation, 7, [7])
    fidelity.apply(generation, 0.3, [0.3])
    model.apply(generation, "mini_codeformer", [])
    assert generation.restore_faces is True
    door.settings()
    door.shared.opts.data.update(generation.override_settings)  # as the host does for each cell
    assert door.shared.opts.face_restoration_model == "ID-CodeFormer"
    assert door.sub("settings").wishes().fidelity == 0.3  # not the host's weight of 0.5
    assert door.shared.opts.data["id_codeformer_guidance_steps"] == 7
    assert door.sub("settings").choice().restorer == "mini_codeformer"
    assert model.choices()[:3] == ["automatic", "mini_id_codeformer", "mini_codeformer"]
