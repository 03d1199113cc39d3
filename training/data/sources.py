"""Where images come from: folders of any depth, a table of files, or tar shards in the WebDataset layout.

Shards are read by position, not streamed: their members are indexed once at the start, so that order, resume and worker
count behave exactly as with folders. They have to lie on a local or mounted disk and be uncompressed.
"""
from __future__ import annotations

import csv
import glob
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from ..config.schema import DataConfig
from ..errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
MIN_SHARE = 0.5  # an image whose side is under this share of the network's would only teach blur


@dataclass(frozen=True)
class Entry:
    """An image file, or the bytes ``offset : offset + length`` of a tar shard."""

    path: Path
    identity: str
    member: str = ""
    offset: int = 0
    length: int = -1

    @property
    def name(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    def read(self) -> np.ndarray:
        """The encoded file, uint8 [bytes]. Raises OSError."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return np.frombuffer(file.read(self.length), np.uint8)


def list_images(config: DataConfig) -> list[Entry]:
    """All images in an order that depends on their names only. Raises DataError naming the folder or file at fault."""
    if config.shards:
        entries = [entry for path in expand(config.shards) for entry in index_shard(path, config.labels)]
        where = ", ".join(config.shards)
    elif not config.roots:
        raise DataError("data.roots names no folder. Give one: data.roots=[/folder/of/aligned/faces]")
    else:
        for key, folders in (("data.roots", config.roots), ("data.extra", config.extra)):
            for folder in folders:
                if not Path(folder).is_dir():
                    raise DataError(f"There is no folder {folder}. Check {key}.")
        entries = _from_table(config) if config.list_csv else _from_folders(config.roots)
        for number, folder in enumerate(config.extra):
            own = _from_folders([folder])
            entries += [Entry(e.path, f"extra {number}/{e.path.relative_to(folder).as_posix()}") for e in own]
        where = ", ".join(config.roots) + (f" by {config.list_csv}, split {config.split}" if config.list_csv else "")
    if not entries:
        raise DataError(f"No image in {where} (looked at any depth for {', '.join(sorted(SUFFIXES))}).")
    return entries[: config.limit] if config.limit else entries


def _from_folders(roots: list[str]) -> list[Entry]:
    """The identity of a face is the name of its folder."""
    entries = []
    for root in map(Path, roots):
        found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        entries += [Entry(p, p.parent.name) for p in found]
    return entries


def _from_table(config: DataConfig) -> list[Entry]:
    root = Path(config.roots[0])
    table = root / str(config.list_csv)
    if not table.is_file():
        raise DataError(f"There is no table {table}. Check data.list_csv, or set it to null to take every image.")
    with open(table, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        lacking = {"path", *(["split"] if config.split is not None else [])} - set(rows.fieldnames or ())
        if lacking:
            raise DataError(f"{table} has no column {', '.join(sorted(lacking))}; its first line names the columns.")
        wanted = [row for row in rows if config.split is None or row["split"] == config.split]
    return [Entry(root / row["path"], row.get("identity") or Path(row["path"]).parent.name) for row in wanted]


def expand(patterns: list[str]) -> list[Path]:
    """Shard files of names, globs and number ranges such as ``faces-{0000..0069}.tar``."""
    paths: list[Path] = []
    for pattern in patterns:
        if re.match(r"\w{2,}:", pattern):
            raise DataError(f"{pattern} is not a file. Download or mount the shards, and give their paths.")
        span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
        if span:
            first, last = span.groups()
            numbers = (f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1))
            paths += expand([pattern[: span.start()] + n + pattern[span.end() :] for n in numbers])
            continue
        found = [Path(pattern)] if Path(pattern).is_file() else [Path(p) for p in sorted(glob.glob(pattern))]
        if not found:
            raise DataError(f"There is no shard {pattern}. Check data.shards.")
        paths += found
    return paths


def index_shard(path: Path, classes: bool = False) -> list[Entry]:
    """The images of a tar file; with ``classes`` the identity is what ``<key>.cls`` says, else the folder."""
    images: list[tarfile.TarInfo] = []
    labels: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:  # "r:" refuses compression: a member of those has no offset
            for member in tar:
                if member.isfile() and PurePosixPath(member.name).suffix.lower() in SUFFIXES:
                    images.append(member)
                elif classes and member.isfile() and member.name.endswith(".cls"):
                    content = tar.extractfile(member)
                    assert content is not None
                    labels[_key(member.name)] = content.read().decode("utf-8", "replace").strip()
    except tarfile.TarError as error:
        raise DataError(f"{path} is not an uncompressed tar file ({error}). Make it again, or take it out.") from error
    return [
        Entry(path, labels.get(_key(m.name), PurePosixPath(m.name).parent.name), m.name, m.offset_data, m.size)
        for m in images
    ]


def _key(name: str) -> str:
    """What members of one sample share: the path up to the first dot of the file name (WebDataset's rule)."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.')[0]}"


def read_image(source: Path | Entry, size: int) -> np.ndarray:
    """uint8 RGB [size,size,3] of an aligned square face. Raises ValueError saying why the file is of no use."""
    try:
        data = (source if isinstance(source, Entry) else Entry(source, "")).read()
    except OSError as error:
        raise ValueError(f"cannot be opened ({error.strerror or error})") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise ValueError("not readable as an image")
    height, width = image.shape[:2]
    if min(height, width) < size * MIN_SHARE:
        raise ValueError(f"{width}x{height} is too small for {size} px")
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = image[top : top + side, left : left + side]
    if side != size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)
    return np.ascontiguousarray(image[..., ::-1])
