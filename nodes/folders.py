"""Which weight files the combos offer, and where a chosen one is.

Folders are asked for at every call: some packs assign ``folder_names_and_paths["facerestore_models"]`` anew and so drop
what others had added before. So ``models/<folder>`` and the folders of extra_model_paths.yaml are searched as well.
"""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..idcodeformer.errors import IDCodeFormerError, MissingWeights
from .extra_paths import configured_folders

OWN_FOLDER = "idcodeformer"
_TORCH = (".safetensors", ".pth", ".pt", ".ckpt")
_ONNX = (".onnx",)


@dataclass(frozen=True)
class Kind:
    """One sort of weights: its folders under models/, its file types, the embedded ones, and what else lives there."""

    folders: tuple[str, ...]
    extensions: tuple[str, ...]
    built_in: dict[str, str]  # what the combo says -> name in the registry
    foreign: tuple[str, ...]  # beginnings of the names of other networks' files in the same folders
    preferred: str = "\0"  # files whose name contains this come before the built-in ones


KINDS = {
    "restorer": Kind(
        ("facerestore_models", OWN_FOLDER),
        _TORCH,
        {
            "ID-CodeFormer mini 128 px, built in": "mini_id_codeformer",
            "CodeFormer mini 128 px, built in": "mini_codeformer",
        },
        ("gfpgan", "gpen", "restoreformer", "realesrgan", "retinaface", "detection_", "parsing_", "mobilefacenet"),
        "codeformer",
    ),
    "detector": Kind(
        ("facedetection", "insightface", "facexlib", OWN_FOLDER),
        _TORCH + _ONNX,
        {"RetinaFace mobile0.25, built in": "retinaface_mobile0.25"},
        (
            "parsing_", "yolo", "codeformer", "gfpgan", "w600k", "glint", "genderage", "1k3d68", "2d106det",
            "inswapper", "alignment_", "assessment_", "headpose_", "matting_", "recognition_", "arcface", "ms1mv",
        ),
    ),
    "recogniser": Kind(
        ("insightface", OWN_FOLDER),
        _TORCH + _ONNX,
        {"mini recogniser, built in": "mini_recogniser"},
        ("det_", "scrfd", "genderage", "1k3d68", "2d106det", "inswapper", "codeformer", "retinaface", "parsing_"),
    ),
    "parser": Kind(("facedetection", "facexlib", OWN_FOLDER), _TORCH, {}, ()),
}  # fmt: skip


def register() -> None:
    """Make our folders known to the host, adding to what is there and replacing nothing."""
    import folder_paths

    for key in dict.fromkeys(key for kind in KINDS.values() for key in kind.folders):
        folder_paths.add_model_folder_path(key, os.path.join(folder_paths.models_dir, key))
        paths, extensions = folder_paths.folder_names_and_paths[key]
        if not extensions:  # a new key starts with an empty set, which means every file, also readme.txt
            wanted = {extension for kind in KINDS.values() if key in kind.folders for extension in kind.extensions}
            folder_paths.folder_names_and_paths[key] = (paths, wanted)


def search_folders(kind: str) -> list[Path]:
    """Where files of this kind may be, best first: the host's folders of each key, models/<key>, the core's own."""
    import folder_paths

    from ..idcodeformer.weights.store import cache_folder, own_folders

    found: list[Path] = []
    for key in KINDS[kind].folders:
        known = folder_paths.folder_names_and_paths.get(key, ((), ()))[0]
        found += [*map(Path, known), Path(folder_paths.models_dir, key), *configured_folders(key)]
    return list(dict.fromkeys([*found, *own_folders(), cache_folder()]))


def choices(kind: str) -> list[str]:
    """What the combo offers: preferred files, the built-in ones, then the rest; paths inside a folder with "/"."""
    spec = KINDS[kind]
    names = sorted({name for folder in search_folders(kind) for name in _files(folder, spec)}, key=str.lower)
    first = [name for name in names if spec.preferred in PurePosixPath(name).name.lower()]
    return first + list(spec.built_in) + [name for name in names if name not in first]


def _files(folder: Path, spec: Kind) -> list[str]:
    names = []
    for parent, _, files in os.walk(folder, followlinks=True):
        for file in files:
            if file.lower().endswith(spec.extensions) and not file.lower().startswith(spec.foreign):
                names.append(Path(parent, file).relative_to(folder).as_posix())
    return names


def locate(kind: str, name: str) -> Path:
    """The file behind a combo's value. Raises MissingWeights: which file, where it belongs, where it comes from."""
    from ..idcodeformer.weights.store import find

    spec = KINDS[kind]
    if name in spec.built_in:
        return find(spec.built_in[name], kind)
    relative = PurePosixPath(name.replace("\\", "/"))
    folders = search_folders(kind)
    if relative.is_absolute() or ".." in relative.parts or ":" in name:
        raise MissingWeights(f"'{name}' is no file name in models/{spec.folders[0]}; choose one from the list.")
    for folder in folders:
        if (folder / relative).is_file():
            return folder / relative
    return find(relative.name, kind, folders)


def problem_with(kind: str, name: str | None) -> str | None:
    """Why this value of a combo cannot be used, in a sentence; None where it can, or where it is linked."""
    try:
        if name is not None:
            locate(kind, name)
    except IDCodeFormerError as error:
        return str(error)
    return None


def fingerprint_of(kind: str, name: str | None) -> str:
    """Changes when the file behind the name does, or comes or goes, so that the host loads it again."""
    try:
        path = locate(kind, name) if name else None
    except IDCodeFormerError:
        path = None
    if path is None:
        return f"{name}: not there"
    stat = path.stat()
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
