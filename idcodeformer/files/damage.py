"""Damage that Pillow decodes without a word."""
from __future__ import annotations

import struct
import zlib

_PIXELS = (b"IDAT", b"fdAT")
_SIGNATURE = 8  # bytes of a PNG before its first chunk


def has_torn_pixels(data: bytes) -> bool:
    """Whether a chunk of pixels in the bytes of a PNG does not fit its checksum (PNG specification, section 5.3)."""
    view, at = memoryview(data), _SIGNATURE
    while at + 12 <= len(view):
        length = struct.unpack_from(">I", view, at)[0]
        end = at + 8 + length
        if end + 4 > len(view):
            break  # truncated, which decoders tell
        body = view[at + 4 : end]
        if body[:4] in _PIXELS and zlib.crc32(body) != struct.unpack_from(">I", view, end)[0]:
            return True
        at = end + 4
    return False
