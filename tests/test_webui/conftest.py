"""The extension loaded as each WebUI loads it, against the host double."""
from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import pytest
from webui_parts import DOUBLE, PACKAGE, ROOT, Door, Generation

_DOUBLED = ("modules", "gradio", "backend", "ldm_patched", "launch", "webui", "installer", PACKAGE)


def _forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in _DOUBLED]:
        del sys.modules[name]


@pytest.fixture
def make_door(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], Door]]:
    """Start a host by its name, with the extension loaded."""
    monkeypatch.setenv("HOST_DOUBLE_BASE", str(tmp_path))
    (tmp_path / "models").mkdir()
    _forget()

    def make(kind: str = "a1111") -> Door:
        for folder in ("common", kind):
            monkeypatch.syspath_prepend(str(DOUBLE / folder))
        importlib.invalidate_caches()
        parts = {name: importlib.import_module(f"modules.{name}") for name in ("shared", "scripts", "devices")}
        callbacks = importlib.import_module("modules.script_callbacks")
        door = Door(kind=kind, models=tmp_path / "models", callbacks=callbacks, **parts)
        door.load()
        return door

    yield make
    _forget()


@pytest.fixture
def door(make_door: Callable[[str], Door]) -> Door:
    """A1111 with the extension."""
    return make_door("a1111")


@pytest.fixture(scope="session")
def portrait() -> np.ndarray:
    """uint8 [300,300,3], one face of about 150 px."""
    return _picture("portrait.jpg", (300, 300), 5)


@pytest.fixture(scope="session")
def group() -> np.ndarray:
    """uint8 [177,640,3], four faces of about 100 px."""
    return _picture("group.jpg", (640, 177), 3)


def _picture(name: str, size: tuple[int, int], blur: int) -> np.ndarray:
    """Shows one px in ``blur`` of its detail: sharp faces would stay as they are."""
    from PIL import Image

    photo = Image.open(ROOT / "idcodeformer" / "assets" / name).convert("RGB")
    small = photo.resize((size[0] // blur, size[1] // blur), Image.LANCZOS)
    return np.array(small.resize(size, Image.BICUBIC))


@pytest.fixture
def generation() -> Generation:
    return Generation()
