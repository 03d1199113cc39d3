"""Licences of the dependencies: all that is installed is on the list, and SECURITY.md names what is required."""
from __future__ import annotations

import importlib.util
import re
import sys
from email.message import Message
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("packaging")


@pytest.fixture(scope="module")
def audit(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", root / "tools/audit.py")
    assert spec and spec.loader
    module = sys.modules["audit"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_installed_dependency_has_a_licence_on_the_list(audit: ModuleType) -> None:
    packages = {package.name: package for package in audit.installed(audit.direct())}
    assert {"torch", "numpy", "pillow", "tqdm", "facexlib", "filterpy"} <= set(packages)  # the last by facexlib alone
    assert {name: package.licence for name, package in packages.items() if not package.good} == {}


def test_required_packages_are_told_with_their_licence(audit: ModuleType, root: Path) -> None:
    told = (root / "SECURITY.md").read_text(encoding="utf-8").lower()
    for line in audit.direct():
        assert re.search(rf"\b{re.split('[^A-Za-z0-9_-]', line)[0].lower()}\b", told), line


@pytest.mark.parametrize(
    ("licence", "good"),
    [("MIT", True), ("BSD-3-Clause AND Zlib", True), ("", False), ("GPL-3.0-or-later", False), ("LGPL-2.1", False),
     ("MIT OR AGPL-3.0", False), ("CC-BY-NC-4.0", False), ("Some licence of ours", False), ("Apache 2.0", True)],
)  # fmt: skip
def test_what_is_on_the_list(audit: ModuleType, licence: str, good: bool) -> None:
    assert audit.Package("x", "1", licence).good is good


def test_where_a_licence_stands(audit: ModuleType) -> None:
    about = Message()
    about["License"] = "Copyright (c) somebody\nand so on"
    assert audit.licence_of(about) == "Copyright (c) somebody"
    about["Classifier"] = "License :: OSI Approved"
    about["Classifier"] = "License :: OSI Approved :: BSD License"
    assert audit.licence_of(about) == "BSD License"
    about["License-Expression"] = "0BSD"
    assert audit.licence_of(about) == "0BSD"


@pytest.mark.parametrize(
    ("printed", "code", "told"),
    [
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', 0, "0 known holes in 1 packages; 0 could"),
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]}]}', 1,
         "a 1: X-1, mended in 2"),
        ('{"dependencies": [{"name": "a", "skip_reason": "not found"}]}', 2, "1 could not be looked up"),
        ("", 2, "could not ask (no network)"),
    ],
)  # fmt: skip
def test_what_pip_audit_says_is_passed_on(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    printed: str, code: int, told: str,
) -> None:  # fmt: skip
    answer = SimpleNamespace(stdout=printed, stderr="no network")
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: answer)
    assert audit.advisories() == code and told in capsys.readouterr().out
