"""Which weight files the host's folders hold, and where a chosen one is."""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from . import host

AUTOMATIC = "automatic"  # codeformer.pth where the host has it, else the built-in restorer
NONE = "none"
_EXTENSIONS = (".safetensors", ".pth", ".pt", ".ckpt", ".onnx")
_PUBLISHED = "codeformer"


@dataclass(frozen=True)
class Kind:
    """One sort of weights: folders under models/, the argument that may name another, the built-in ones, and what
    tells its files from others in the same folders."""

    folders: tuple[str, ...]
    argument: str
    built_in: tuple[str, ...]
    beginnings: tuple[str, ...] = ()  # of its files' names in folders shared with others; empty: any
    foreign: tuple[str, ...] = ()  # beginnings of the names of other networks' files


KINDS = {
    "restorer": Kind(
        ("Codeformer", "idcodeformer"),
        "codeformer_models_path",
        ("mini_id_codeformer", "mini_codeformer"),
        foreign=(
            "det_", "detection_", "parsing_", "gfpgan", "gpen", "restoreformer", "realesrgan", "retinaface", "arcface",
            "mobilefacenet", "recognition_", "w600k", "glint", "ms1mv", "scrfd", "vqgan",
        ),
    ),
    "detector": Kind(
        ("GFPGAN", "idcodeformer", "insightface"),
        "gfpgan_models_path",
        ("retinaface_mobile0.25",),
        ("detection_", "retinaface", "mobilenet0.25", "det_", "scrfd"),
    ),
    "recogniser": Kind(
        ("insightface", "idcodeformer", "GFPGAN"),
        "",
        ("mini_recogniser", "mobileface_v2"),
        ("w600k", "glint", "auraface", "ms1mv", "arcface", "recognition_", "mobilefacenet"),
    ),
    "parser": Kind(("GFPGAN", "idcodeformer"), "gfpgan_models_path", (), ("parsing_",)),
}  # fmt: skip


def folders(kind: str) -> list[Path]:
    """Where files of this kind may lie, best first; a missing file belongs into the first."""
    spec = KINDS[kind]
    named = host.argument(spec.argument) if spec.argument else None
    own = [host.models_folder() / name for name in spec.folders]
    return list(dict.fromkeys([*([Path(named)] if named else []), *own]))


def choices(kind: str) -> list[str]:
    """What a list offers: the built-in ones, then the files found, as paths inside their folder with "/"."""
    found = sorted({name for folder in folders(kind) for name in _files(folder, KINDS[kind])}, key=str.lower)
    first = [AUTOMATIC] if kind == "restorer" else []
    return [*first, *KINDS[kind].built_in, *found, *([NONE] if kind == "recogniser" else [])]


def second_recogniser(first: str) -> str | None:
    """The recogniser that guides where ``first`` scores: one that a user has put there before a built-in one."""
    built_in = KINDS["recogniser"].built_in
    others = [name for name in choices("recogniser") if name not in (first, NONE)]
    return min(others, key=lambda name: name in built_in, default=None)


def _files(folder: Path, spec: Kind) -> list[str]:
    names = []
    for parent, _, files in os.walk(folder, followlinks=True):
        for file in files:
            lower = file.lower()
            ours = lower.startswith(spec.beginnings) if spec.beginnings else not lower.startswith(spec.foreign)
            if ours and lower.endswith(_EXTENSIONS):
                names.append(Path(parent, file).relative_to(folder).as_posix())
    return names


def locate(kind: str, name: str) -> Path:
    """The file behind a value of the list. Raises MissingWeights: which file, where it belongs, where it comes from."""
    from .core import MissingWeights, find

    where = folders(kind)
    if name == AUTOMATIC:
        try:
            return find(_PUBLISHED, kind, where)
        except MissingWeights:
            name = KINDS[kind].built_in[0]
    relative = Path(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or ":" in name:
        raise MissingWeights(f"'{name}' is no file in {where[0]}; choose one from the list.")
    for folder in where:
        if (folder / relative).is_file():
            return folder / relative
    if relative.suffix.lower() in _EXTENSIONS:
        raise MissingWeights(f"There is no {name} in {where[0]}; put it there, or choose another from the list.")
    return find(name, kind, where)


def parser_file() -> Path:
    """ParseNet's file where the host, or a download, has put it, else the built-in parser's."""
    from .core import find_parser

    return find_parser(folders("parser"))
