"""install.py and tools/environment.py: what they would do, decided without installing anything."""
from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"checked_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def installer(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """install.py, with every call of pip forbidden unless a test replaces it."""

    def forbidden(*arguments: str) -> None:
        raise AssertionError(f"pip was called: {arguments}")

    module = load(root / "install.py")
    monkeypatch.setattr(module, "pip", forbidden)
    return module


@pytest.mark.parametrize(
    ("present", "cuda", "system", "machine", "wanted"),
    [
        ({}, True, "Linux", "x86_64", "onnxruntime-gpu"),
        ({}, True, "Windows", "AMD64", "onnxruntime-gpu"),
        ({}, True, "Linux", "aarch64", "onnxruntime"),
        ({}, False, "Linux", "x86_64", "onnxruntime"),
        ({}, False, "Darwin", "arm64", "onnxruntime"),
        ({"onnxruntime": "1.20"}, True, "Linux", "x86_64", None),
        ({"onnxruntime-gpu": "1.20"}, False, "Linux", "x86_64", None),
        ({"onnxruntime-directml": "1.20"}, True, "Windows", "AMD64", None),
    ],
)
def test_one_onnxruntime(
    installer: ModuleType, present: dict, cuda: bool, system: str, machine: str, wanted: str | None
) -> None:
    assert installer.choose_onnxruntime(present, cuda, system, machine) == wanted


def test_only_additions_and_one_of_a_kind(installer: ModuleType) -> None:
    planned = [
        ("insightface", "2.1"),
        ("onnxruntime", "1.32"),  # pulled by insightface
        ("onnxruntime-gpu", "1.32"),  # chosen
        ("opencv-python", "5.0"),  # the headless one is there
        ("NumPy", "9.0"),  # would be a replacement
        ("torch", "9.0"),
        ("nvidia-cublas", "13"),
        ("scikit_image", "0.26"),
    ]
    present = {"numpy": "1.26.4", "opencv-python-headless": "4.10"}
    kept = installer.keep_only_additions(planned, present, {"insightface", "onnxruntime-gpu"})
    assert kept == ["insightface==2.1", "onnxruntime-gpu==1.32", "scikit-image==0.26"]


def test_nothing_is_called_where_nothing_is_missing(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(installer, "has", lambda module: True)
    monkeypatch.setattr(installer, "installed", lambda: {"onnxruntime": "1.32"})
    assert installer.install(dry_run=False, with_insightface=True) == 0
    assert "everything needed is there" in capsys.readouterr().out


def test_a_missing_torch_is_left_to_the_host(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(installer, "has", lambda module: module != "torch")
    assert installer.install(dry_run=False, with_insightface=True) == 1
    assert "pytorch.org" in capsys.readouterr().out


def test_installed_versions_are_held_while_planning(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def pip(*arguments: str) -> subprocess.CompletedProcess:
        held, report = (Path(arguments[arguments.index(flag) + 1]) for flag in ("-c", "--report"))
        seen.append(held.read_text())
        report.write_text('{"install": [{"metadata": {"name": "tqdm", "version": "4.0"}}]}')
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(installer, "pip", pip)
    assert installer.plan(["tqdm"], {"numpy": "1.26.4", "torch": "2.5.1+cu124"}) == [("tqdm", "4.0")]
    assert seen == ["numpy==1.26.4\ntorch==2.5.1+cu124"]


def test_optional_packages_that_fail_do_not_fail_the_pack(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    failed = subprocess.CompletedProcess((), 1, "", "ERROR: no matching distribution\n")
    monkeypatch.setattr(installer, "pip", lambda *arguments: failed)
    monkeypatch.setattr(installer, "has", lambda module: module != "insightface")
    assert installer.install(dry_run=False, with_insightface=True) == 0
    assert "without insightface" in capsys.readouterr().out


def test_it_runs_from_any_folder_and_offline(root: Path, tmp_path: Path) -> None:
    line = [sys.executable, str(root / "install.py"), "--dry-run", "--without-insightface"]
    run = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "built-in weights: " in run.stdout and "retinaface" in run.stdout
    assert not list(tmp_path.iterdir())


def test_requirements_hold_no_pins_and_nothing_that_fights(root: Path) -> None:
    lines = [line.strip() for line in (root / "requirements.txt").read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    assert {"torch", "facexlib", "opencv-python", "numpy", "safetensors"} <= {line.split(">=")[0] for line in lines}
    for line in lines:
        assert not line.startswith("-") and "<" not in line and "==" not in line
        assert not line.startswith(("insightface", "onnxruntime", "basicsr", "gfpgan"))


def test_a_stamp_spares_the_second_call(root: Path, tmp_path: Path) -> None:
    environment = load(root / "tools/environment.py")
    run, dev = tmp_path / "run.txt", tmp_path / "dev.txt"
    run.write_text("torch\n")
    dev.write_text("pytest\n")
    assert not environment.stamped(tmp_path, [run])
    (tmp_path / "ready.txt").write_text(environment.digest(tmp_path, [run, dev]) + "\n")
    assert environment.stamped(tmp_path, [run, dev])
    dev.write_text("pytest\nruff\n")
    assert not environment.stamped(tmp_path, [run, dev])


def test_an_old_python_is_told_what_to_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = load(root / "tools/environment.py")
    monkeypatch.setattr(environment.sys, "version_info", (3, 8, 1))
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    with pytest.raises(environment.SetupError, match="3.10 to 3.13"):
        environment.base_python()


def test_a_broken_torch_pair_is_told_and_left_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    environment = load(root / "tools/environment.py")
    answers = {
        "find_spec('torch')": (0, "/site/torch"),
        "find_spec('torchvision')": (0, ""),
        "nms": (1, "RuntimeError: operator torchvision::nms does not exist"),
        "metadata": (0, "torch 2.13.0+cpu torchvision 0.28.0"),
    }
    monkeypatch.setattr(environment, "ask", lambda _, code: next(v for key, v in answers.items() if key in code))
    assert environment.torch_of("python3") is None
    told = capsys.readouterr().out
    assert "torch 2.13.0+cpu torchvision 0.28.0" in told and "nms does not exist" in told


@pytest.mark.parametrize(
    ("files", "webui"),
    [
        (["launch.py", "modules/launch_utils.py"], True),  # A1111, Forge, reForge
        (["launch.py", "installer.py", "modules/__init__.py"], True),  # SD.Next
        (["main.py", "folder_paths.py"], False),  # ComfyUI
    ],
)
def test_the_host_is_found_by_its_folder(
    installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], webui: bool
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("launch", "installer", "modules", "modules.launch_utils"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("INDEX_URL", "file:///mirror")
    try:
        assert installer.under_webui() is webui
        assert installer.index_options() == (["--index-url", "file:///mirror"] if webui else [])
    finally:
        sys.modules.pop("modules", None)


def test_every_extra_has_its_file_and_what_errors_ask_for_is_in_one(root: Path) -> None:
    from idcodeformer.files.finding import OPTIONAL

    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    files = dict(re.findall(r'optional-dependencies\.(\w+) = \{ file = \["([^"]+)"\] \}', text))
    packages = {name: (root / file).read_text(encoding="utf-8").split() for name, file in files.items()}
    assert {package for _, package in OPTIONAL.values()} == set(packages["heic"])
    named = set(re.findall(r"pip install (?:-U )?\\?[\"']?([\w\-]+)", "\n".join(
        file.read_text(encoding="utf-8") for file in (root / "idcodeformer").rglob("*.py")
    )))  # fmt: skip
    known = {re.split(r"[\[<>=]", line)[0] for lines in packages.values() for line in lines}
    required = {re.split(r"[<>=]", line)[0] for line in (root / "requirements.txt").read_text().split()}
    assert named - {"package"} <= known | required, named - known - required


def test_the_floor_is_the_least_that_requirements_allow(root: Path) -> None:
    """What `make test-floor` installs is what requirements.txt promises to work with."""
    promised = dict(line.split(">=") for line in (root / "requirements.txt").read_text().split())
    pinned = dict(line.split("==") for line in (root / "tests/floor.txt").read_text().split() if "==" in line)
    assert set(promised) <= set(pinned)
    for name, version in promised.items():
        assert pinned[name] == version or pinned[name].startswith(version + "."), name


def test_the_host_for_tests_is_found_with_its_own_python(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = load(root / "tools/comfy.py")
    host = tmp_path / "ComfyUI"
    monkeypatch.setenv("COMFYUI_DIR", str(host))
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    with pytest.raises(SystemExit, match="No ComfyUI in .*COMFYUI_DIR="):
        tool.host_folder()
    (host / "comfy").mkdir(parents=True)
    (host / "main.py").touch()
    own = host / "venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert tool.host_folder() == host.resolve()
    tried: list[Path] = []
    monkeypatch.setattr(tool, "runs", lambda python, _: tried.append(python) or python == own)
    assert tool.host_python(host) == own and tried == [own]
    monkeypatch.setattr(tool, "runs", lambda *_: False)
    monkeypatch.setattr(tool, "made", lambda where: where / "made")
    assert tool.host_python(host) == host / "made"
    monkeypatch.setenv("COMFYUI_PYTHON", "/mine/python")
    assert tool.host_python(host) == Path("/mine/python")


@pytest.mark.parametrize(
    ("present", "works", "written"),
    [
        ({"opencv-python": "5.0", "opencv-python-headless": "4.13"}, False, "opencv-python-headless==4.13"),
        ({"opencv-python": "5.0"}, False, "opencv-python-headless==5.0"),
        ({"opencv-contrib-python": "4.9"}, False, "opencv-contrib-python-headless==4.9"),
        ({"opencv-python": "5.0", "opencv-python-headless": "5.0"}, True, None),
        ({"opencv-python-headless": "5.0"}, False, None),
    ],
)
def test_a_cv2_without_its_gl_library_is_mended(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, present: dict, works: bool, written: str | None
) -> None:
    state, calls = {"works": works}, []

    def pip(*arguments: str) -> subprocess.CompletedProcess:
        calls.append(arguments)
        state["works"] = True
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(installer, "pip", pip)
    monkeypatch.setattr(installer, "has", lambda module: True)
    monkeypatch.setattr(installer, "installed", lambda: {"onnxruntime": "1.32", **present})
    monkeypatch.setattr(installer, "choose_opencv", lambda system: "opencv-python-headless")  # no libGL here
    monkeypatch.setattr(installer, "imports", lambda module: state["works"])
    assert installer.install(dry_run=True, with_insightface=False) == 0 and not calls
    assert installer.install(dry_run=False, with_insightface=False) == 0
    assert [call[-1] for call in calls] == ([written] if written else [])
    if written:
        assert {"--force-reinstall", "--no-deps"} <= set(calls[0])


def test_a_cv2_that_cannot_be_mended_is_told(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(installer, "pip", lambda *a: subprocess.CompletedProcess(a, 1, "", "ERROR: no such file"))
    monkeypatch.setattr(installer, "has", lambda module: True)
    monkeypatch.setattr(installer, "installed", lambda: {"opencv-python": "5.0"})
    monkeypatch.setattr(installer, "choose_opencv", lambda system: "opencv-python-headless")
    monkeypatch.setattr(installer, "imports", lambda module: False)
    assert installer.install(dry_run=False, with_insightface=False) == 1
    assert "apt install libgl1" in capsys.readouterr().out
