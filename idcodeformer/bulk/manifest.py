"""The manifest at the target: one Parquet row for every picture and for every face, in pieces that appear whole.

A piece holds the rows of a few pictures whose results lie there already, so that a picture is done exactly when a piece
names it. Pieces are named by their pictures: one that is written twice replaces itself.
"""
from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BadTarget, first_line
from .listing import digest, in_part
from .places import Place

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

MANIFEST, WORK, RUN = "manifest", "_bulk", "_bulk/run.json"
FAILED, SET_ASIDE = "failed", "set aside"
_PICTURE = {"kind": "string", "key": "string", "status": "string", "reason": "string", "output": "string",
            "person": "string", "seconds": "float", "width": "int32", "height": "int32", "faces": "int32",
            "input_sha256": "string", "model_sha256": "string", "options_sha256": "string"}  # fmt: skip
_FACE = {"frame": "int32", "face": "int32", "x0": "float", "y0": "float", "x1": "float", "y1": "float",
         "score": "float", "w": "float", "id_sim_input": "float", "id_sim_before": "float", "id_sim_after": "float",
         "guidance": "string", "guided_by": "string", "judged_by": "string"}  # fmt: skip


def schema() -> pyarrow.Schema:
    """Columns of the manifest: those of pictures, then those that faces have besides."""
    import pyarrow

    return pyarrow.schema([(name, getattr(pyarrow, kind + "32" if kind == "float" else kind)())
                           for name, kind in (_PICTURE | _FACE).items()])  # fmt: skip


def encode(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as a Parquet file; columns that a row lacks are null."""
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema()), buffer, compression="zstd")
    return buffer.getvalue()


def folder_of(part: tuple[int, int]) -> str:
    """Each part of a source keeps pieces of its own, so that several runs may fill one target at once."""
    return MANIFEST if part == (1, 1) else f"{MANIFEST}/{part[0]:04d}-of-{part[1]:04d}"


def write_piece(place: Place, part: tuple[int, int], rows: Sequence[dict[str, Any]]) -> None:
    """Add the rows of some pictures. Raises BadTarget."""
    keys = sorted({row["key"] for row in rows})
    place.write(f"{folder_of(part)}/piece-{digest(chr(10).join(keys))}.parquet", encode(rows))


def read_rows(place: Place, columns: list[str] | None = None, folder: str = MANIFEST) -> Iterator[dict[str, Any]]:
    """Every row, a piece at a time; a picture that several pieces name (a run was killed while it joined them) comes
    once. Raises BadTarget for a damaged piece."""
    seen: set[bytes] = set()
    for name in place.names(folder):
        rows = _read_piece(place, name, columns)
        here = {row["key"]: bytes.fromhex(digest(row["key"])) for row in rows}
        doubled = {key for key, short in here.items() if short in seen}
        seen.update(here.values())
        yield from (row for row in rows if row["key"] not in doubled)


def _read_piece(place: Place, name: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    data = place.read(name)
    if data is None or not name.endswith(".parquet"):
        return []
    try:
        table = parquet.ParquetFile(io.BytesIO(data)).read(columns=columns)
        rows = table.cast(_over_columns(table)).select(columns or table.column_names).to_pylist()
        if not all(row["kind"] and row["key"] for row in rows):
            raise KeyError("a row without a name")
    except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
        told = first_line(error)[:200]
        raise BadTarget(f"{place.url_of(name)} is damaged ({told}); delete it, and run the line again.") from error
    return rows


def _over_columns(table: pyarrow.Table) -> pyarrow.Schema:
    """The types that the columns of a piece ought to have; a column of another version stays as it is."""
    import pyarrow

    known = schema()
    return pyarrow.schema([known.field(f.name) if f.name in known.names else f for f in table.schema])


def done(place: Place, part: tuple[int, int] = (1, 1)) -> np.ndarray:
    """Sorted digests (32 hex digits) of this part's pictures that need no more work: 32 bytes for each."""
    import numpy as np

    parts = [np.array([], dtype="S32")]
    for name in place.names(MANIFEST):
        rows = _read_piece(place, name, ["kind", "key"])
        keys = (row["key"] for row in rows if row["kind"] == "picture")
        parts.append(np.array([digest(key) for key in keys if in_part(key, part)], dtype="S32"))
    return np.unique(np.concatenate(parts))


def join(place: Place, part: tuple[int, int], drop_failed: bool = False) -> None:
    """Make one piece of many, so that a later run opens few files. ``drop_failed`` forgets pictures that failed.

    The joined piece is there before the others go: killed between, a picture is named twice and read once.
    """
    from pyarrow import Table, parquet

    names = place.names(folder_of(part))
    names = [name for name in names if name.rpartition("/")[0] == folder_of(part)]
    if len(names) < 2 and not drop_failed:
        return
    buffer, seen = io.BytesIO(), set()
    with parquet.ParquetWriter(buffer, schema(), compression="zstd") as writer:
        for name in names:
            rows = _read_piece(place, name)
            keys = {row["key"] for row in rows}
            bad = {row["key"] for row in rows if row["kind"] == "picture" and row["status"] in (FAILED, SET_ASIDE)}
            rows = [row for row in rows if row["key"] not in seen and not (drop_failed and row["key"] in bad)]
            seen |= keys
            writer.write_table(Table.from_pylist(rows, schema()))
    joined = f"{folder_of(part)}/joined-{uuid.uuid4().hex}.parquet"
    place.write(joined, buffer.getvalue())
    for name in names:
        place.remove(name)


def claim(
    place: Place, told: dict[str, Any], options_sha256: str, usual: dict[str, Any], write: bool = True
) -> None:
    """Note at the target which options its results have. Raises BadTarget where it holds those of others.

    An option that the target's version of this program did not have counts as its default in ``usual``: an archive is
    gone on with after an update. Nothing is written where ``write`` is False.
    """
    data = place.read(RUN)
    if data is None and not write:
        return
    if data is None:
        if place.names(MANIFEST):
            raise BadTarget(f"{place.url} has a manifest, but its {RUN} is gone; name another target.")
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        note = {"version": 1, "made": made, "options_sha256": options_sha256, "options": told}
        place.write(RUN, json.dumps(note, indent=1).encode())
        return
    try:
        there = json.loads(data)["options"]
        if not isinstance(there, dict):
            raise ValueError("no options in it")
        changed = _changed(_over(usual, there), told)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = first_line(error)[:200]
        raise BadTarget(f"{place.url_of(RUN)} is damaged ({why}); name another target.") from error
    if changed:
        others = f"{place.url} holds results of other options: {', '.join(changed)}"
        raise BadTarget(f"{others}; name another target, or ask for the same.")


def _over(usual: Any, given: Any) -> Any:
    """``given``, with the values of ``usual`` where it has none."""
    if not (isinstance(usual, dict) and isinstance(given, dict)):
        return given
    return usual | {name: _over(usual.get(name), value) for name, value in given.items()}


def _changed(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [each for key in keys for each in _changed(old.get(key), new.get(key), f"{name}.{key}" if name else key)]
    if old == new:
        return []
    if name.endswith("_sha256"):
        return [f"another {name.removesuffix('_sha256')} file"]
    return [f"{name} ({old} there, {new} asked)"]
