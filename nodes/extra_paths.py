"""What extra_model_paths.yaml says, whoever has changed the host's table of folders since it was read."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def configured_folders(key: str) -> list[Path]:
    """The folders that the user's files give for ``key`` ("facerestore_models", say); they need not exist."""
    return [folder for file in _files() for folder in _folders(file, key)]


def _files() -> list[Path]:
    """The file beside main.py, and those of --extra-model-paths-config."""
    import folder_paths
    from comfy.cli_args import args

    given = getattr(args, "extra_model_paths_config", None) or []
    named = [Path(name) for names in given for name in names]
    return [file for file in (Path(folder_paths.__file__).parent / "extra_model_paths.yaml", *named) if file.is_file()]


def _folders(file: Path, key: str) -> list[Path]:
    import yaml

    sections = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    found: list[Path] = []
    for section in sections.values():
        lines = section.get(key) if isinstance(section, dict) else None
        if isinstance(lines, str):
            base = _base(section, file)
            found += [Path(os.path.normpath(base / line)) for line in lines.split("\n") if line]
    return found


def _base(section: dict[str, Any], file: Path) -> Path:
    """What relative folders of a section are relative to; an absolute one wins over it, as for the host."""
    written = os.path.expandvars(os.path.expanduser(str(section.get("base_path", ""))))
    return file.resolve().parent / written
