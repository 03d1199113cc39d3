"""Where weight files are: finding them, checking them, listing them. Nothing here touches the network."""
from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import CorruptWeights, MissingWeights, UnsupportedWeights
from . import registry
from .download import download as download
from .registry import Weight

EMBEDDED = Path(__file__).parent / "embedded"
VARIABLE = "IDCODEFORMER_MODELS"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".onnx")
SEE_LIST = "See: python -m idcodeformer models list"
PathLike = str | os.PathLike


@dataclass(frozen=True)
class Found:
    """A weight file that is there."""

    name: str  # the registry's name, else the file's own
    path: Path
    weight: Weight | None  # its row, where it has one
    embedded: bool = False


@dataclass(frozen=True)
class Verdict:
    """What comparing a file with the registry gave. "unknown" = no hash is known, so nothing can be said."""

    path: Path
    status: Literal["verified", "altered", "unknown"]
    sha256: str
    expected: str | None
    detail: str


def cache_folder() -> Path:
    """Where downloads go: the platform's cache folder of the user."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        return base / "idcodeformer" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "idcodeformer"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "idcodeformer"


def own_folders() -> list[Path]:
    """The folders of ``$IDCODEFORMER_MODELS`` (separated as in PATH)."""
    return [Path(p).expanduser() for p in os.environ.get(VARIABLE, "").split(os.pathsep) if p.strip()]


def search_folders(folders: Sequence[PathLike] = ()) -> list[Path]:
    """All folders searched, in order: the variable's, the caller's (ComfyUI's), the user cache, the embedded set."""
    return [*own_folders(), *map(Path, folders), cache_folder(), EMBEDDED]


def download_folder() -> Path:
    """Where a download goes unless the caller says otherwise."""
    return (own_folders() or [cache_folder()])[0]


def _candidates(names: Sequence[str], sub: str, folders: Sequence[PathLike]) -> Iterator[Path]:
    """Every place of a file. A folder may be ComfyUI's models folder, the sub-folder itself, or any one between."""
    parts = Path(sub).parts
    tails = [Path(*parts[i:]) for i in range(len(parts), -1, -1)]  # the empty tail first
    for folder in search_folders(folders):
        for name in names:
            for tail in tails:
                yield folder / tail / name


def _names(weight: Weight) -> list[str]:
    """File names under which a row may lie: its own, common others, and what ``models convert`` makes of it."""
    converted = Path(weight.file).with_suffix(".safetensors").name
    return list(dict.fromkeys([weight.file, *weight.aliases, converted, f"{weight.name}.safetensors"]))


def find(name_or_path: PathLike, kind: str | None = None, folders: Sequence[PathLike] = ()) -> Path:
    """The file of a path, a registry name, or a bare file name in one of the folders searched.

    ``kind`` is a registry kind, or "restorer", "detector" or "parser": a name of another kind is refused. Raises
    MissingWeights naming file, URL and folder, or UnsupportedWeights.
    """
    text = os.fspath(name_or_path)
    path = Path(text).expanduser()
    if os.path.isfile(path):  # unlike Path's, no error for a name that is too long
        return path
    weight = next((w for w in registry.WEIGHTS if w.name == text), None) or registry.by_file(text)
    if weight is None:
        return _find_file(path, folders)
    kinds = registry.kinds_of(kind)
    if kinds and weight.kind not in kinds:
        raise UnsupportedWeights(f"{weight.name} is a {weight.kind}, not a {kind}. {SEE_LIST}")
    for candidate in _candidates(_names(weight), weight.folder, folders):
        if os.path.isfile(candidate):
            return candidate
    raise MissingWeights(missing_sentence(weight, folders))


def _find_file(path: Path, folders: Sequence[PathLike]) -> Path:
    if path.suffix.lower() not in SUFFIXES and len(path.parts) == 1:
        registry.by_name(str(path))  # neither a file nor a name: raises with the nearest names
    if not path.is_absolute():
        for candidate in _candidates([str(path)], "", folders):
            if os.path.isfile(candidate):
                return candidate
    where = "" if path.is_absolute() else f" in {', '.join(map(str, search_folders(folders)[:-1]))}"
    raise MissingWeights(f"There is no file {path}{where}. Give the full path, or a name. {SEE_LIST}")


def missing_sentence(weight: Weight, folders: Sequence[PathLike] = ()) -> str:
    """Which file is missing, where it comes from and where to put it."""
    target = Path(list(folders)[0]) if len(folders) else download_folder()
    if weight.embedded:
        return f"{weight.file} comes with this package but is not in {EMBEDDED}; install the package again."
    how = f"Run: python -m idcodeformer models download {weight.name} - or get"
    if not weight.urls and not weight.archive:
        how = "Get"
    return f"{weight.file} is missing. {how} {weight.source} ({weight.terms}) and put {weight.file} into {target}."


def available(kind: str | None = None, folders: Sequence[PathLike] = ()) -> list[Found]:
    """Every known file that is there, in search order, and every other weight file lying in those folders of that kind.

    A file of no row counts where its safetensors metadata names an architecture of ``kind`` (any known one for None).
    """
    kinds = registry.kinds_of(kind)
    found: dict[Path, Found] = {}
    for weight in registry.WEIGHTS:
        if kinds and weight.kind not in kinds:
            continue
        for path in _candidates(_names(weight), weight.folder, folders):
            if path.is_file() and path not in found:
                found[path] = Found(weight.name, path, weight, path.parent == EMBEDDED)
    for folder in search_folders(folders):
        for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
            if path not in found and _is_kind(path, kinds):
                found[path] = Found(path.stem, path, None, folder == EMBEDDED)
    return list(found.values())


def _is_kind(path: Path, kinds: Sequence[str]) -> bool:
    from .loading import ARCHITECTURES
    from .reading import read_metadata

    try:
        name = read_metadata(path).get("architecture")
    except CorruptWeights:
        return False  # a list is not the place to complain; loading the file will
    return any(a.name == name and (not kinds or a.kind in kinds) for a in ARCHITECTURES)


def sha256_of(path: PathLike) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def verify(path: PathLike, weight: Weight | None = None) -> Verdict:
    """Compare a file with its row (by file name, unless given). Only an equal sha256 gives "verified"."""
    path = Path(path)
    if not path.is_file():
        raise MissingWeights(f"There is no file {path}.")
    weight = weight or registry.by_file(path.name)
    digest = sha256_of(path)
    if weight is None:
        known = next((w for w in registry.WEIGHTS if w.sha256 == digest), None)
        if known is not None:
            return Verdict(path, "verified", digest, digest, f"this is {known.name} under another name")
        return Verdict(path, "unknown", digest, None, "the registry has no file of this name")
    if weight.sha256 is None:
        return Verdict(path, "unknown", digest, None, "no sha256 of this file is known, so it cannot be verified")
    if digest == weight.sha256:
        return Verdict(path, "verified", digest, digest, "sha256 as registered")
    size = path.stat().st_size
    detail = f"sha256 {digest}, registered {weight.sha256}; {size} bytes, registered {weight.bytes or 'unknown'}"
    return Verdict(path, "altered", digest, weight.sha256, detail)
