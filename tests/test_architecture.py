"""The rules of docs/architecture.md, read off the source."""
from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "idcodeformer").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
TRAINING = sorted((ROOT / "training").rglob("*.py"))
WEBUI = [*sorted((ROOT / "sdwebui").rglob("*.py")), *sorted((ROOT / "scripts").rglob("*.py"))]
# Imported only inside the functions that need them.
HEAVY = {"cv2", "PIL", "facexlib", "onnx", "onnxruntime", "insightface", "torchvision", "spandrel", "tqdm", "scipy",
         "av", "ray", "pyarrow", "fsspec"}
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "execution"}
WEBUIS = {"modules", "modules_forge", "backend", "ldm_patched", "launch", "gradio", "fastapi", "pydantic"}
HOST = COMFYUI | WEBUIS
ROOMS = {"nodes", "training", "sdwebui", "scripts"}  # beside the core
# The rooms in the order in which a picture passes them: a room imports only itself and rooms above it in this list.
LAYERS = [
    {"errors", "types", "__version__"},
    {"geometry", "networks", "runtime", "files"},
    {"weights"},
    {"detection", "identity", "restoration"},
    {"compositing", "report", "guidance"},
    {"pipeline"},
    {"batch", "video"},
    {"bulk"},
    {"cli", "__main__"},
]


def imports(path: Path, top_level_only: bool = False) -> list[tuple[int, str, int]]:
    """(level, module, line) of every import; imports under TYPE_CHECKING do not run and do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[tuple[int, str, int]] = []

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if top_level_only and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if isinstance(child, ast.Import):
                found.extend((0, alias.name, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                names = [child.module] if child.module else [alias.name for alias in child.names]
                found.extend((child.level, name or "", child.lineno) for name in names)
            visit(child)

    visit(tree)
    return found


def layer(module: str) -> int:
    return next(n for n, names in enumerate(LAYERS) if module in names)


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_core_imports_in_one_direction(path: Path) -> None:
    inside = path.relative_to(ROOT / "idcodeformer").parts
    own = inside[0].removesuffix(".py")
    for level, module, line in imports(path):
        first = module.split(".")[0]
        if level == 0:
            assert first not in HOST | ROOMS | {"idcodeformer"}, where(path, line)
        elif level == len(inside) and own != "__init__":  # a sibling in the package's top folder
            assert first not in HOST | {"nodes", "training", "idcodeformer"}, where(path, line)
        elif level == len(inside) and own != "__init__" and first != own:  # another room
            assert layer(first) <= layer(own), f"{where(path, line)}: {own} must not import {first}"
        assert level <= len(inside), f"{where(path, line)} reaches outside the package"


@pytest.mark.parametrize("path", CORE + NODES + WEBUI, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    heavy = [where(path, line) for _, module, line in imports(path, True) if module.split(".")[0] in HEAVY]
    assert not heavy


@pytest.mark.parametrize("path", NODES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nodes_know_the_core_and_not_the_training(path: Path) -> None:
    for level, module, line in imports(path):
        first = module.split(".")[0]
        barred = ROOMS - {"nodes"} if level else ROOMS | WEBUIS | {"idcodeformer"}
        assert first not in barred, where(path, line)


@pytest.mark.parametrize("path", WEBUI, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_webuis_door_knows_the_core_through_one_file_and_the_host_through_another(path: Path) -> None:
    for level, module, line in imports(path):
        first = module.split(".")[0]
        assert first not in (ROOMS - {"sdwebui"} if level else ROOMS | COMFYUI | {"idcodeformer"}), where(path, line)
        assert first != "idcodeformer" or path.stem == "core", f"{where(path, line)}: ask sdwebui/core.py"
        assert first not in WEBUIS - {"gradio", "fastapi", "pydantic"} or path.stem == "host", where(path, line)


def test_training_does_not_know_the_doors() -> None:
    doors = HOST | ROOMS - {"training"}
    wrong = [where(p, n) for p in TRAINING for level, m, n in imports(p) if not level and m.split(".")[0] in doors]
    assert not wrong


@pytest.mark.parametrize("path", CORE + NODES + TRAINING + WEBUI, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_hidden_or_run_from_text(path: Path) -> None:
    """No edits of sys.path, no eval or exec, no pip, no pickle that is trusted, no exception swallowed whole."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        spot = where(path, getattr(node, "lineno", 0))
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "os.system"), spot
            assert not called.startswith("sys.path."), spot
            if called == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), spot
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(step, (ast.Pass, ast.Continue)) for step in node.body)
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            assert not (silent and broad), spot
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            named = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert "pip" not in named, spot


def test_import_is_cheap() -> None:
    """Importing the package, and building its parsers, loads nothing heavy and no model."""
    code = (
        "import sys, torch; before = set(sys.modules); import idcodeformer, idcodeformer.cli as c; c.build_parser();"
        "from idcodeformer import FacePipeline, load_restorer, load_detector, load_recogniser, load_parser;"
        f"print(sorted({{m.split('.')[0] for m in set(sys.modules) - before}} & {HEAVY | {'safetensors', 'numba'}!r}))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_core_works_below_a_folder_with_a_dash(tmp_path: Path) -> None:
    """As ComfyUI loads it: a package whose name is the path of the pack's folder."""
    pack = tmp_path / "ID-CodeFormer_x_1"
    pack.mkdir()
    (pack / "idcodeformer").symlink_to(ROOT / "idcodeformer", target_is_directory=True)
    (pack / "__init__.py").write_text("from .idcodeformer import load_restorer\nfrom .idcodeformer.cli import main\n")
    code = (
        "import importlib.util as u, sys\n"
        f"spec = u.spec_from_file_location('pack-x', {str(pack / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(pack)!r}])\n"
        "module = u.module_from_spec(spec); sys.modules['pack-x'] = module; spec.loader.exec_module(module)\n"
        "assert 'idcodeformer' not in sys.modules; print(module.load_restorer.__module__)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == "pack-x.idcodeformer.restoration.codeformer", run.stderr


def test_the_document_names_modules_that_exist() -> None:
    rows = re.findall(r"^\| `(\w+)/` \| (.*) \|$", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.M)
    rooms = {room: text for room, text in rows if (ROOT / "idcodeformer" / room).is_dir()}
    here = {path.name for path in (ROOT / "idcodeformer").iterdir() if (path / "__init__.py").is_file()}
    assert set(rooms) == here
    for room, text in rooms.items():
        for name in re.findall(r"`(\w+)/?`", text):
            places = [ROOT / "idcodeformer" / room / name, ROOT / "idcodeformer" / room / f"{name}.py"]
            assert any(place.exists() for place in places), f"{room}: {name}"
