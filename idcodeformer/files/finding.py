"""Which files of a folder are pictures, which of them can be read, and which are passed over on purpose."""
from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadImage

EXTENSIONS = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .jfi .jif .mpo .webp .bmp .dib .tif .tiff .gif .tga .jp2 .j2k .jpx .jpf .ppm "
    ".pgm .pbm .pnm .avif .avifs .heic .heif .hif .jxl".split()
)
# Endings whose decoder may be missing: Pillow's name of the format, and the optional package that has it.
OPTIONAL = {
    ".heic": ("HEIF", "pillow-heif"),
    ".heif": ("HEIF", "pillow-heif"),
    ".hif": ("HEIF", "pillow-heif"),
    ".avif": ("AVIF", "pillow-avif-plugin"),
    ".avifs": ("AVIF", "pillow-avif-plugin"),
    ".jxl": ("JXL", "pillow-jxl-plugin"),
}
# Clips, which only ``look_through`` with ``clips`` finds.
CLIPS = frozenset(".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .mts .m2ts .wmv .flv .ogv .3gp".split())
_MODULES = {"pillow-heif": "pillow_heif", "pillow-avif-plugin": "pillow_avif", "pillow-jxl-plugin": "pillow_jxl"}
_UNREAD = frozenset(
    ".psd .psb .xcf .svg .eps .ai .pdf .exr .hdr .jxr .wdp .raw .dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf "
    ".rw2 .raf .pef .srw .x3f .3fr .iiq .dcr .kdc .mrw .erf .ico .icns .pcx .sgi .dds .fits .djvu .cin .dpx .pfm "
    ".ras .xbm .xpm .jng .mng .bpg .qoi .flif .insp .jps".split()
)
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"\xff\x0a", b"\0\0\0\x0cJXL ")
_SIGNATURES += (b"\0\0\0\x0cjP  ",)


@dataclass(frozen=True)
class Found:
    """What lies in the folders and files that were named."""

    pictures: list[tuple[Path, Path]]  # (file, its path relative to the folder that was named)
    unread: list[tuple[Path, str]]  # (picture that is not read, why and what helps)


def find_pictures(paths: Iterable[str | Path], recursive: bool = False) -> list[tuple[Path, Path]]:
    """(file, its path relative to the folder that was named) of every picture; see ``look_through``."""
    return look_through(paths, recursive).pictures


def look_through(paths: Iterable[str | Path], recursive: bool = False, clips: bool = False) -> Found:
    """Every picture of the files and folders named, sorted by name within a folder.

    A file that is named itself is taken whatever its ending. In a folder, hidden files (names with a leading dot, so
    macOS metadata too) are passed over, and pictures that cannot be read are listed. Raises BadImage for a path that
    does not exist, a folder that cannot be listed and a folder without pictures. With ``clips`` they count as pictures.
    """
    found = Found([], [])
    for path in map(Path, paths):
        if not os.path.isdir(path):  # unlike Path's, no error for a name that is too long
            if not os.path.exists(path):
                raise BadImage(f"{path} does not exist; check the path.")
            found.pictures.append((path, Path(path.name)))
            continue
        here = Found([], [])
        for file in _files(path, recursive, here.unread):
            why = _why_no_clip(file) if clips and file.suffix.lower() in CLIPS else _why_unread(file)
            if why is None:
                here.pictures.append((file, file.relative_to(path)))
            elif why:
                here.unread.append((file, why))
        if not here.pictures:
            unread = "; ".join(f"{file.name}: {why}" for file, why in here.unread[:3])
            hint = "" if recursive else ", or add --recursive for its sub-folders"
            more = f" Not read: {unread}" if unread else ""
            raise BadImage(f"The folder {path} holds no picture that can be read; name another{hint}.{more}")
        found.pictures.extend(here.pictures)
        found.unread.extend(here.unread)
    return found


def _files(folder: Path, recursive: bool, unread: list[tuple[Path, str]]) -> list[Path]:
    """Everything in ``folder`` that is neither hidden nor a folder, sorted."""

    def told(error: OSError) -> None:
        if Path(error.filename or folder) == folder:
            raise BadImage(f"The folder {folder} cannot be listed ({error.strerror}); check permissions.") from error
        unread.append((Path(error.filename), f"cannot be listed ({error.strerror}); check its permissions"))

    files: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=told):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX") * recursive
        files += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _why_unread(file: Path) -> str | None:
    """None for a picture that is read, "" for what is no picture, else a sentence."""
    ending = file.suffix.lower()
    if ending in EXTENSIONS:
        if not file.is_file():
            return "is a broken link or no regular file"
        return _missing_decoder(ending)
    if ending in _UNREAD:
        return f"{ending} is not read; save it as PNG, TIFF or JPEG first"
    return "has a picture inside, but no ending of one; rename it, or name it itself" if _is_picture(file) else ""


def _why_no_clip(file: Path) -> str | None:
    from importlib.util import find_spec

    if not file.is_file():
        return "is a broken link or no regular file"
    return None if find_spec("av") else "clips need PyAV; run: pip install av"


def _missing_decoder(ending: str) -> str | None:
    if ending not in OPTIONAL:
        return None
    kind, package = OPTIONAL[ending]
    return None if decoder_is_there(kind, package) else f"needs another decoder; run: pip install {package}"


def decoder_is_there(kind: str, package: str) -> bool:
    """Whether Pillow reads ``kind``, after loading the optional ``package`` where it is installed."""
    from importlib import import_module

    from PIL import Image

    Image.init()
    if kind in Image.OPEN:
        return True
    try:
        module = import_module(_MODULES[package])
    except ImportError:
        return False
    if kind == "HEIF":
        module.register_heif_opener()
    return kind in Image.OPEN


def _is_picture(file: Path) -> bool:
    try:
        if not file.is_file():
            return False
        with file.open("rb") as stream:
            head = stream.read(16)
    except OSError:
        return False
    inside = head[4:11] in (b"ftyphei", b"ftypavi") or head[:4] + head[8:12] == b"RIFFWEBP"
    return inside or head.startswith(_SIGNATURES)
