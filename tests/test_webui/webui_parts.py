"""What the tests of the extension share: where things are, a host with the extension in it, a generation."""
from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "id_codeformer.py"
DOUBLE = ROOT / "tests" / "webui_double"
HOSTS = ("a1111", "forge", "reforge", "sdnext")
PACKAGE = "id_codeformer_extension"


class Door(SimpleNamespace):
    """A host with the extension in it: ``shared``, ``callbacks``, ``scripts`` of the host, and what we registered."""

    def load(self) -> ModuleType:
        """Execute the script, as at the start and at Reload UI."""
        self.script = self.scripts.load_script(str(SCRIPT))
        return self.script

    def sub(self, name: str) -> ModuleType:
        """A module of the extension."""
        return importlib.import_module(f"{PACKAGE}.sdwebui.{name}")

    @property
    def entry(self) -> Any:
        """A new Extras entry."""
        return self.script.ExtrasEntry()

    @property
    def restorer(self) -> Any:
        """Our face restorer in the host's list."""
        (found,) = [one for one in self.shared.face_restorers if one.name() == "ID-CodeFormer"]
        return found

    def settings(self, **values: Any) -> None:
        """Open the settings page, then set options of ours."""
        self.callbacks.fire("ui_settings")
        self.shared.opts.data.update({f"id_codeformer_{name}": value for name, value in values.items()})


class Generation:
    """What the host's StableDiffusionProcessing offers to a restorer."""

    def __init__(self) -> None:
        self.extra_generation_params: dict[str, Any] = {"Steps": 20}
        self.comments: list[str] = []
        self.override_settings: dict[str, Any] = {}
        self.restore_faces = None

    def comment(self, text: str) -> None:
        self.comments.append(text)

    def __eq__(self, other: object) -> bool:
        raise ValueError("the host's class compares tensors")
