"""A look into a weight file, cheap enough for every listing: is it whole, and does it hold a tensor of some name?"""
from __future__ import annotations

import json
import zipfile
from pathlib import Path

_HEAD = 8 << 20  # bytes; names and shapes of a legacy pickle come before its numbers
_LARGEST_HEADER = 100_000_000  # bytes of a safetensors header


def names_tensor(path: Path, name: str) -> bool:
    """Whether this .safetensors or torch file is whole, as far as its ends tell, and names such a tensor.

    Nothing is unpickled. False for a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
            if head[8:9] == b"{":
                return name in _safetensors(path, int.from_bytes(head[:8], "little"))
            if head[:1] == b"\x80":
                return name.encode() in file.read(_HEAD)
        if head[:2] == b"PK":
            with zipfile.ZipFile(path) as archive:
                entry = next(entry for entry in archive.namelist() if entry.endswith("data.pkl"))
                return name.encode() in archive.read(entry)
    except (OSError, ValueError, zipfile.BadZipFile, StopIteration, KeyError, TypeError):
        pass
    return False


def _safetensors(path: Path, length: int) -> str:
    """The names in the header, where the file is as long as the header says."""
    if length > _LARGEST_HEADER:
        return ""
    with path.open("rb") as file:
        file.seek(8)
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = max(entry["data_offsets"][1] for entry in header.values())
    return " ".join(header) if path.stat().st_size == 8 + length + end else ""
