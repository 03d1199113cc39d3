"""Lists of pictures for ``bulk``, and the files of a bulk run's target."""
from __future__ import annotations

import io
import json
import random
from typing import Any

from .damage import damage

URLS = ("a.jpg", "in/b.png", "", "s3://bucket/a.jpg", "nonsense://x", "http://host/a.jpg?x=1", "../a.jpg",
        "/etc/passwd", "C:\\a.jpg", "a\0b.jpg", "\ud7ff.jpg", "x" * 400, ".", "..", "//",
        "a.jpg\nb.jpg", '"a', "\ufeffa.jpg")  # fmt: skip
IDS = ("7", "", "../x", "a/../../x", "..\\x", "/abs", "a" * 400, "a\0", "007", "-1", "1e5", "nan", " ", "7")
COLUMNS = ("url", "path", "file", "image", "id", "person", "a", "", "URL")


def make_list(rng: random.Random) -> tuple[str, bytes]:
    """A list of pictures, or a piece or the note of a target's manifest."""
    make = rng.choice((_csv, _text, _parquet, _piece, _note))
    name, data = make(rng)
    return name, damage(data, rng) if rng.random() < 0.4 else data


def _rows(rng: random.Random) -> list[dict[str, Any]]:
    columns = rng.choice((("url",), ("url", "id"), ("url", "id", "person"), tuple(rng.sample(COLUMNS, 3))))
    values = {"url": URLS, "path": URLS, "id": IDS}
    return [{name: rng.choice(values.get(name, ("Ada", "", "\0", "x" * 300))) for name in columns}
            for _ in range(rng.choice((0, 1, 5, 40)))]  # fmt: skip


def _csv(rng: random.Random) -> tuple[str, bytes]:
    rows = _rows(rng)
    lines = [",".join(rows[0])] if rows else ["url,id"]
    lines += [rng.choice((",", ",", ",", ";", "\t")).join(row.values()) for row in rows]
    if rng.random() < 0.2:
        lines.append(rng.choice(('"' + "a" * 5000, ",,,,,,,,", "\0" * 20, "a" * 3_000_000, "url" + ",x" * 20_000)))
    return "list.csv", "\n".join(lines).encode(rng.choice(("utf-8", "utf-8", "utf-16", "utf-8-sig")))


def _text(rng: random.Random) -> tuple[str, bytes]:
    lines = [rng.choice(URLS) for _ in range(rng.choice((0, 1, 5)))]
    return "list.txt", rng.choice(("\n", "\r\n", "\0")).join(lines).encode(rng.choice(("utf-8", "utf-16", "utf-32")))


def _table(rows: list[dict[str, Any]], rng: random.Random) -> bytes:
    import pyarrow
    from pyarrow import parquet

    odd = rng.choice((None, None, None, 5, 1.5, True, b"\xff\xfe", ["a.jpg"], {"a": 1}))
    if odd is not None and rows:
        name = rng.choice(list(rows[0]))
        rows = [row | {name: odd} for row in rows]
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, compression=rng.choice(("zstd", "none", "snappy")))
    return buffer.getvalue()


def _parquet(rng: random.Random) -> tuple[str, bytes]:
    return "list.parquet", _table(_rows(rng), rng)


def _piece(rng: random.Random) -> tuple[str, bytes]:
    rows = [{"kind": rng.choice(("picture", "face")), "key": rng.choice(URLS), "status": "restored", "faces": 1}
            for _ in range(rng.choice((1, 5)))]  # fmt: skip
    for name in rng.sample(list(rows[0]), rng.choice((0, 0, 1))):
        rows = [{key: value for key, value in row.items() if key != name} for row in rows]
    return "manifest/piece.parquet", _table(rows, rng)


def _note(rng: random.Random) -> tuple[str, bytes]:
    options = rng.choice(({}, {"options": {"w": 0.8}}, None, 5, [], {"options": None}, {"options": {"w": [1]}}))
    text = rng.choice((json.dumps({"version": 1, "options_sha256": "x", "options": options}), "{}", "", "null", "[]",
                       "[" * 100_000, '{"options": ' + "9" * 5000 + "}"))  # fmt: skip
    return "_bulk/run.json", text.encode()
