"""Which weight files the combos offer, and where a chosen one is.

Folders are asked for at every call: some packs assign ``folder_names_and_paths["facerestore_models"]`` anew and so drop
what others had added before. So ``models/<folder>`` and the folders of extra_model_paths.yaml are searched as well.
"""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Sequence

from ..idcodeformer.errors import IDCodeFormerError, MissingWeights
from .extra_paths import configured_folders

OWN_FOLDER = "idcodeformer"
PEOPLE_FOLDER = "people"  # in it: galleries that Load Person has saved, no weights
_TORCH = (".safetensors", ".pth", ".pt", ".ckpt")
_ONNX = (".onnx",)
_LONGEST = 255  # characters of a name; asking a file system for longer ones fails


@dataclass(frozen=True)
class Kind:
    """One sort of weights: its folders under models/, its file types, the embedded ones, and what else lives there."""

    folders: tuple[str, ...]
    extensions: tuple[str, ...]
    built_in: dict[str, str]  # what the combo says -> name in the registry
    foreign: tuple[str, ...]  # beginnings of the names of other networks' files in the same folders
    preferred: str = "\0"  # files whose name contains this come before the built-in ones
    sign: str = ""  # and which hold a tensor of this name
    inside: str = ""  # the folder within those folders
    also: tuple[str, ...] = ()  # folders where other packs and ComfyUI-Manager put such files
    also_named: tuple[str, ...] = ()  # beginnings of the names that count there


KINDS = {
    "restorer": Kind(
        ("facerestore_models", OWN_FOLDER),
        _TORCH,
        {
            "ID-CodeFormer mini 128 px, built in": "mini_id_codeformer",
            "CodeFormer mini 128 px, built in": "mini_codeformer",
        },
        ("gpen", "realesrgan", "retinaface", "detection_", "parsing_", "mobilefacenet"),
        "codeformer",
        "position_emb",
    ),
    "detector": Kind(
        ("facedetection", "insightface", "facexlib", OWN_FOLDER),
        _TORCH + _ONNX,
        {"RetinaFace mobile0.25, built in": "retinaface_mobile0.25"},
        (
            "parsing_", "yolo", "codeformer", "gfpgan", "w600k", "glint", "genderage", "1k3d68", "2d106det",
            "inswapper", "alignment_", "assessment_", "headpose_", "matting_", "recognition_", "arcface", "ms1mv",
        ),
        also=("facerestore_models", "detection"),
        also_named=("detection_resnet50", "detection_mobilenet", "retinaface", "det_", "scrfd"),
    ),
    "recogniser": Kind(
        ("insightface", OWN_FOLDER),
        _TORCH + _ONNX,
        {"mini recogniser, built in": "mini_recogniser", "MobileFace V2, built in": "mobileface_v2"},
        ("det_", "scrfd", "genderage", "1k3d68", "2d106det", "inswapper", "codeformer", "retinaface", "parsing_"),
    ),
    "parser": Kind(("facedetection", "facexlib", OWN_FOLDER), _TORCH, {}, (), also=("facerestore_models",)),
    "people": Kind((OWN_FOLDER,), (".safetensors",), {}, (), inside=PEOPLE_FOLDER),
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
    from ..idcodeformer.weights.store import cache_folder, own_folders

    spec = KINDS[kind]
    found = [folder for key in (*spec.folders, *spec.also) for folder in _folders_of(key)]
    return list(dict.fromkeys(folder / spec.inside for folder in [*found, *own_folders(), cache_folder()]))


def _folders_of(key: str) -> list[Path]:
    import folder_paths

    known = folder_paths.folder_names_and_paths.get(key, ((), ()))[0]
    return [*map(Path, known), Path(folder_paths.models_dir, key), *configured_folders(key)]


class Choices(list):
    """A combo that says why it refuses a value. The host compares with ``in`` and shows the list as text.

    A method that validates would be blamed on every input that it takes; the list is blamed on its own input alone. A
    file that exists counts although it is not listed: under another spelling, or under one of its known names.
    """

    def __init__(self, kind: str, names: Sequence[str]):
        super().__init__(names)
        self._kind, self._refused = kind, ""

    def __contains__(self, value: object) -> bool:
        if list.__contains__(self, value):
            return True
        problem = problem_with(self._kind, value)
        self._refused = problem or ""
        return problem is None

    def __str__(self) -> str:
        return f"{list(self)}. {self._refused}" if self._refused else repr(list(self))


def choices(kind: str, *more: str, first: Sequence[str] = ()) -> Choices:
    """What the combo offers: ``first``, preferred files, the built-in ones, the rest, ``more``; paths with "/"."""
    from .peek import names_tensor

    spec = KINDS[kind]
    places = {name: folder / name for folder in reversed(search_folders(kind)) for name in _files(folder, spec)}
    names = sorted(places, key=str.lower)
    best = [
        name for name in names
        if spec.preferred in PurePosixPath(name).name.lower() and names_tensor(places[name], spec.sign)
    ]  # fmt: skip
    return Choices(kind, [*first, *best, *spec.built_in, *(name for name in names if name not in best), *more])


def _files(folder: Path, spec: Kind) -> list[str]:
    names = []
    also = folder in (other for key in spec.also for other in _folders_of(key))
    named = spec.also_named if also and spec.also_named else ("",)
    for parent, inner, files in os.walk(folder, followlinks=True):
        if Path(parent) == folder and folder.name == OWN_FOLDER and PEOPLE_FOLDER in inner:
            inner.remove(PEOPLE_FOLDER)
        for file in files:
            name = file.lower()
            if name.endswith(spec.extensions) and name.startswith(named) and not name.startswith(spec.foreign):
                names.append(Path(parent, file).relative_to(folder).as_posix())
    return names


def hint() -> list[str]:
    """Where only the built-in restorers are there: which file to get for 512 px, its terms, and its folder."""
    from ..idcodeformer.weights.registry import by_name

    if set(choices("restorer")) != set(KINDS["restorer"].built_in):
        return []
    weight = by_name("codeformer")
    return [
        "The built-in models suit faces up to about 128 px.",
        f"For 512 px: {weight.file} from {weight.source} ({weight.terms}) into {search_folders('restorer')[0]}",
    ]


def locate(kind: str, name: str) -> Path:
    """The file behind a combo's value. Raises MissingWeights: which file, where it belongs, where it comes from."""
    from ..idcodeformer.weights.store import find

    spec = KINDS[kind]
    if name in spec.built_in:
        return find(spec.built_in[name], kind)
    relative = PurePosixPath(name.replace("\\", "/"))
    folders = search_folders(kind)
    if relative.is_absolute() or ".." in relative.parts or ":" in name or not 0 < len(name) <= _LONGEST:
        shown = name if len(name) <= _LONGEST else name[:60] + "..."
        raise MissingWeights(f"'{shown}' is no file name in models/{spec.folders[0]}; choose one from the list.")
    for folder in folders:
        if (folder / relative).is_file():
            return folder / relative
    try:
        if spec.inside:
            raise MissingWeights(name)
        return find(relative.name, kind, folders)
    except MissingWeights as error:
        raise MissingWeights(_missing(name, spec, folders[0])) from error


def parser_file() -> Path:
    """ParseNet's file where it is there, else the built-in parser's."""
    from ..idcodeformer.compositing.parsing import find_parser

    return find_parser(search_folders("parser"))


def _missing(name: str, spec: Kind, folder: Path) -> str:
    """Which file, where it comes from where that is known, and where it belongs."""
    from ..idcodeformer.weights.registry import by_file

    weight = by_file(PurePosixPath(name).name)
    if weight is None:
        where = " or ".join("/".join(filter(None, ("models", key, spec.inside))) for key in spec.folders)
        return f"There is no file {name} in {where}; put it there, or choose one from the list."
    return f"{weight.file} is missing. Get {weight.source} ({weight.terms}) and put {weight.file} into {folder}."


def problem_with(kind: str, name: object) -> str | None:
    """Why this value of a combo cannot be used, in a sentence; None where it can."""
    if not isinstance(name, str) or not name:
        return f"{'Nothing' if name is None or name == '' else name} is no file name; choose one from the list."
    try:
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
    return f"{name}: not there" if path is None else fingerprint(path)


def fingerprint(path: Path) -> str:
    """Changes when the file does."""
    stat = path.stat()
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
