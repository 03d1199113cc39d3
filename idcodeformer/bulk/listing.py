"""The pictures of a source, one after another: a folder, an address, or a list of them as Parquet, CSV or text."""
from __future__ import annotations

import hashlib
import io
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import BadImage, BadOption, first_line
from ..files.finding import EXTENSIONS
from .places import filesystem, read_url, walk

LISTS = (".parquet", ".csv", ".txt")
_COLUMNS = ("url", "path", "file", "image")  # of a list, the first that is there names the pictures


@dataclass(frozen=True)
class Item:
    """One picture: the name that it and its result have in the target, where it lies, and who is on it ("" unknown)."""

    key: str
    url: str
    person: str = ""


def digest(key: str) -> str:
    """32 hex digits of a picture's name."""
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def in_part(key: str, part: tuple[int, int]) -> bool:
    """Whether a picture belongs to this run's share; the same for the same name, whatever else there is."""
    return int(digest(key)[:8], 16) % part[1] == part[0] - 1


def result_name(key: str, ending: str) -> str:
    """The name of a picture's result: its own with ``ending`` added, where it does not have that.

    No two pictures share one (a.jpg and a.png become a.jpg.png and a.png), which needs no look at the others.
    """
    stem, own = posixpath.splitext(key)
    if own.lower() not in EXTENSIONS:
        return f"{key}.raw{ending}"
    if own == ending and posixpath.splitext(stem)[1].lower() not in (*EXTENSIONS, ".raw"):
        return key
    return key + ending


def items(source: str, skip: str = "") -> Iterator[Item]:
    """The pictures of ``source``. ``skip`` is a folder (of results) that is passed over where it lies inside.

    Raises BadOption for an address that is not known, BadImage for one where nothing is, or a list without pictures.
    """
    if posixpath.splitext(source.lower())[1] in LISTS:
        yield from _listed(source)
        return
    fs, root = filesystem(source)
    remote = "://" in source
    if source.lower().startswith(("http://", "https://")) and not _names_a_picture(source):
        raise BadImage(f"{source} is no folder that can be listed; give a list: a .txt with an address a line.")
    if not fs.exists(root):
        raise BadImage(f"{source} does not exist; check the address.")
    if fs.isfile(root):
        yield Item(posixpath.basename(root), fs.unstrip_protocol(root) if remote else root)
        return
    left_out = filesystem(skip)[1].rstrip("/") if skip else None
    base = root.rstrip("/")
    for folder, names in walk(fs, root):
        here = folder.rstrip("/")
        if left_out is not None and (here == left_out or here.startswith(left_out + "/")):
            continue
        for name in names:
            if not name.startswith(".") and posixpath.splitext(name)[1].lower() in EXTENSIONS:
                path = f"{here}/{name}"
                yield Item(path[len(base) :].lstrip("/"), fs.unstrip_protocol(path) if remote else path)


def _names_a_picture(url: str) -> bool:
    return posixpath.splitext(url.partition("?")[0])[1].lower() in EXTENSIONS


def _listed(source: str) -> Iterator[Item]:
    folder = posixpath.dirname(source)
    seen: set[bytes] = set()
    for row in _rows(source):
        url = next((str(row[name]) for name in _COLUMNS if row.get(name)), "")
        if not url:
            continue
        if "://" not in url and not posixpath.isabs(url):
            url = posixpath.join(folder, url)
        key = str(row.get("id") or "") or url.partition("://")[2].partition("?")[0] or url
        key = key.lstrip("/")
        if not key:
            raise BadOption(f"{source} names {url!r}, which is no picture; take it out of the list.")
        if ".." in key.split("/") or "\\" in key or "\0" in key:
            raise BadOption(f"{source} names a picture {key!r}, which lies outside the target; give it another id.")
        if (short := bytes.fromhex(digest(key))) in seen:
            raise BadOption(f"{source} names {key!r} twice; give each picture an id of its own in a column 'id'.")
        seen.add(short)
        yield Item(key, url, str(row.get("person") or ""))


def _rows(source: str) -> Iterator[dict[str, Any]]:
    """The rows of a list, a part of it at a time."""
    import pyarrow
    from pyarrow import csv, parquet

    data = read_url(source)
    try:
        if source.lower().endswith(".txt"):
            lines = (line.strip() for line in data.decode("utf-8-sig").splitlines())
            yield from ({"url": line} for line in lines if line and not line.startswith("#"))
            return
        if source.lower().endswith(".csv"):
            text = csv.ConvertOptions(column_types={name: "string" for name in (*_COLUMNS, "id", "person")})
            parts = csv.open_csv(io.BytesIO(data), convert_options=text)
        else:
            parts = parquet.ParquetFile(io.BytesIO(data)).iter_batches(4096)
        for number, part in enumerate(parts):
            if number == 0:
                _check_columns(source, part.schema)
            yield from part.to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        told = first_line(error)[:200]
        raise BadImage(f"{source} is no list of pictures ({told}); make it again.") from error


def _check_columns(source: str, schema: Any) -> None:
    """Raise BadOption where no column names the pictures, or one of ours holds no texts (an id may be a number)."""
    from pyarrow import types

    if not set(_COLUMNS) & set(schema.names):
        raise BadOption(f"{source} has no column {' or '.join(_COLUMNS)}; name the one with the pictures so.")
    for field in schema:
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        text = types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)
        text |= field.name == "id" and types.is_integer(kind)
        if field.name in (*_COLUMNS, "person", "id") and not text:
            raise BadOption(f"{source}: the column {field.name} holds {field.type}; make it one of texts.")
