"""A mark in every result that tells which file it was made from, so that a later run does not take it for another's."""
from __future__ import annotations

import hashlib
import re
import struct
import zlib
from pathlib import Path

_MARK = b"IDCodeFormer source "
_PATTERN = re.compile(re.escape(_MARK) + rb"([0-9a-f]{32})")
_PIECE = 1 << 16  # bytes at each end of a file


def fingerprint(source: Path | bytes) -> str:
    """32 hex digits of size, start and end of a file: quick for a folder of thousands, and different for two photos."""
    if isinstance(source, bytes):
        size, head, tail = len(source), source[:_PIECE], source[-_PIECE:]
    else:
        size = source.stat().st_size
        with source.open("rb") as file:
            head = file.read(_PIECE)
            file.seek(max(0, size - _PIECE))
            tail = file.read()
    return hashlib.sha256(struct.pack("<Q", size) + head + tail).hexdigest()[:32]


def origin_of(result: Path) -> str:
    """The fingerprint that a result bears, "" where it has none."""
    size = result.stat().st_size
    with result.open("rb") as file:
        head = file.read(256)
        file.seek(max(0, size - 256))
        found = _PATTERN.search(head) or _PATTERN.search(file.read())
    return found[1].decode() if found else ""


def with_origin(data: bytes, kind: str, origin: str) -> bytes:
    """An encoded picture with the mark, in a place that each format has for programs' own data."""
    mark = _MARK + origin.encode()
    if kind == "PNG":  # an ancillary, private chunk, not safe to copy (PNG specification, section 5.4), before IEND
        chunk = struct.pack(">I", len(mark)) + b"idCF" + mark + struct.pack(">I", zlib.crc32(b"idCF" + mark))
        return b"".join((memoryview(data)[:-12], chunk, memoryview(data)[-12:]))
    if kind == "JPEG":  # APP9 behind SOI and the JFIF segment
        at = 4 + struct.unpack_from(">H", data, 4)[0] if data[2:4] == b"\xff\xe0" else 2
        return data[:at] + b"\xff\xe9" + struct.pack(">H", len(mark) + 2) + mark + data[at:]
    if kind == "WEBP":  # an unknown chunk at the end (WebP container specification, "Unknown Chunks")
        body = data[8:] + b"idCF" + struct.pack("<I", len(mark)) + mark
        return b"RIFF" + struct.pack("<I", len(body)) + body
    if kind == "GIF":  # an application extension (GIF89a, section 26) before the trailer
        return data[:-1] + b"\x21\xff\x0bIDCODEF1.00" + bytes([len(mark)]) + mark + b"\0" + data[-1:]
    return data
