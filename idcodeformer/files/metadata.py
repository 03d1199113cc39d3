"""What a picture file says besides its pixels: EXIF, XMP, comments, texts, colorimetry; read, corrected, written."""
from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

_ORIENTATION, _EXIF_IFD, _WIDTH_TAG, _HEIGHT_TAG = 0x0112, 0x8769, 0xA002, 0xA003
# TIFF 6.0: sizes, samples, strips, tiles, JPEG, colour layout; XMP, Photoshop blocks and profiles lie elsewhere.
_STORAGE_TAGS = frozenset(
    (254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291, 292)
    + (293, 301, 317, 320, 321, 322, 323, 324, 325, 330, 332, 334, 336, 338, 339, 340, 341, 342, 347, 512, 513, 514)
    + (515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 700, 34377, 34675, 37724)
)
_XMP_KEY = "XML:com.adobe.xmp"  # of PNG (XMP specification, part 3, section 1.1.5)
_XMP_MARK = b"http://ns.adobe.com/xap/1.0/\0"  # of JPEG (section 1.1.3)
_MOST_IN_SEGMENT = 65533  # bytes of a JPEG segment behind its length
_MOST_COMMENT = 60000  # bytes; older Pillows encode a JPEG through a buffer of 64 kB
_RESOLUTION = 0x011A  # TIFF tag
_MOST_DPI = 65535  # of JPEG; PNG holds more
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>))([1-8])")


@dataclass(frozen=True)
class Notes:
    """What programs and people wrote into a file, apart from EXIF and ICC profile."""

    xmp: bytes = b""
    comment: bytes = b""  # of JPEG and GIF
    texts: tuple[tuple[str, str], ...] = ()  # of PNG: keyword and text
    gamma: float | None = None  # of PNG: the gAMA chunk
    chromaticity: tuple[float, ...] | None = None  # of PNG: white, red, green, blue as x and y, the cHRM chunk


def read_notes(image: Image) -> Notes:
    """The notes of an open picture whose pixels have been read. What is broken is left out."""
    info = image.info
    texts = dict(getattr(image, "text", None) or {}) if image.format == "PNG" else {}
    comment = info.get("comment", b"")
    chromaticity = info.get("chromaticity")
    return Notes(
        _XMP_ORIENTATION.sub(rb"\g<1>1", _xmp_of(image)),
        _bytes(comment),
        tuple((k, str(v)) for k, v in texts.items() if k != _XMP_KEY and not k.startswith("Raw profile type")),
        float(info["gamma"]) if image.format == "PNG" and info.get("gamma") else None,
        tuple(map(float, chromaticity)) if chromaticity else None,
    )


def dpi_of(image: Image) -> tuple[float, float] | None:
    """The resolution, where it is one that every format can hold; a damaged file claims any number."""
    if image.format == "TIFF" and _RESOLUTION not in getattr(image, "tag_v2", {}):
        return None  # Pillow says 1 dpi of such a file
    try:
        wide, high = (float(value) for value in image.info.get("dpi") or ())
    except (TypeError, ValueError, ArithmeticError):
        return None
    return (wide, high) if 0 < wide <= _MOST_DPI and 0 < high <= _MOST_DPI else None


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    return bytes(value) if isinstance(value, (bytes, bytearray, tuple, list)) else b""


def _xmp_of(image: Image) -> bytes:
    """The packet, wherever the format and the version of Pillow keep it."""
    info = image.info
    if found := info.get("xmp") or info.get(_XMP_KEY) or getattr(image, "tag_v2", {}).get(700):
        return _bytes(found)
    for name, data in getattr(image, "applist", None) or ():
        if name == "APP1" and data.startswith(_XMP_MARK):
            return data[len(_XMP_MARK) :]
    return b""


def png_chunks(notes: Notes) -> list[tuple[bytes, bytes]]:
    """(kind, body) of the chunks that hold ``notes``, in an order that stands before the pixels."""
    chunks = []
    if notes.chromaticity and len(notes.chromaticity) == 8:
        chunks.append((b"cHRM", struct.pack(">8I", *(round(value * 100000) for value in notes.chromaticity))))
    if notes.gamma:
        chunks.append((b"gAMA", struct.pack(">I", round(notes.gamma * 100000))))
    if notes.xmp:
        chunks.append((b"iTXt", _XMP_KEY.encode() + b"\0\0\0\0\0" + notes.xmp))
    texts = dict(notes.texts)
    if notes.comment and "Comment" not in texts:
        texts["Comment"] = _decoded(notes.comment)
    return chunks + [_text_chunk(key, text) for key, text in texts.items()]


def _decoded(comment: bytes) -> str:
    try:
        return comment.decode("utf-8")
    except UnicodeDecodeError:
        return comment.decode("latin-1")


def _text_chunk(key: str, text: str) -> tuple[bytes, bytes]:
    """tEXt where Latin-1 holds the text, else compressed iTXt (PNG specification, section 11.3.4)."""
    name = key.encode("latin-1", "replace")[:79] or b"Comment"
    try:
        return b"tEXt", name + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", name + b"\0\1\0\0\0" + zlib.compress(text.encode("utf-8", "replace"))


def jpeg_comment(notes: Notes) -> bytes:
    """The comment, or the text that a PNG calls so; cut where it is longer than 60 kB."""
    return (notes.comment or dict(notes.texts).get("Comment", "").encode("utf-8", "replace"))[:_MOST_COMMENT]


def with_jpeg_xmp(data: bytes, xmp: bytes) -> bytes:
    """A JPEG file with the packet in a segment of its own; one that is too large for a segment is left out."""
    body = _XMP_MARK + xmp
    if not xmp or len(body) > _MOST_IN_SEGMENT:
        return data
    at = 2
    while data[at : at + 2] in (b"\xff\xe0", b"\xff\xe1"):  # behind JFIF and EXIF
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return data[:at] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[at:]


def orientation_of(image: Image) -> int:
    """1 to 8 by EXIF, else by XMP; 1 where the EXIF block is broken or holds anything else."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow raises a dozen kinds on a broken block; the picture is not lost for it
        value = None
    if value is None and (found := _XMP_ORIENTATION.search(_xmp_of(image))):
        value = int(found[2])
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright_exif(image: Image) -> bytes | None:
    """The EXIF block for a picture that has been turned upright; the copy in ``image`` changes too.

    What describes the stored pixels (sizes, strips, compression, colour layout of a TIFF, places in the picture) is
    wrong in the result and left out. A broken block is left out whole.
    """
    try:
        exif = image.getexif()
        for tag in _STORAGE_TAGS & set(exif):
            del exif[tag]
        if _ORIENTATION in exif:
            exif[_ORIENTATION] = 1
        detail = exif.get_ifd(_EXIF_IFD)
        for tag in (_WIDTH_TAG, _HEIGHT_TAG, 0x9214, 0xA214):  # sizes; subject area and place
            detail.pop(tag, None)
        return exif.tobytes() if exif else None
    except Exception:  # Pillow raises a dozen kinds on a broken block; the picture is not lost for it
        return None


def exif_for(block: bytes, width: int, height: int, kind: str) -> bytes | None:
    """The EXIF block for a file of that size in px; None where it cannot be kept.

    A JPEG holds 64 kB of it, so the largest entries (maker notes, previews) are left out there until it fits.
    """
    from PIL.Image import Exif

    try:
        exif = Exif()
        exif.load(block)
        detail = exif.get_ifd(_EXIF_IFD)
        if detail:
            detail[_WIDTH_TAG], detail[_HEIGHT_TAG] = width, height
        packed = exif.tobytes()
        while kind == "JPEG" and len(packed) > _MOST_IN_SEGMENT and _drop_largest(exif):
            packed = exif.tobytes()
    except Exception:  # a block that Pillow reads and cannot write
        return None if kind == "JPEG" and len(block) > _MOST_IN_SEGMENT else block
    return packed if kind != "JPEG" or len(packed) <= _MOST_IN_SEGMENT else None


def _drop_largest(exif: Exif) -> bool:
    """Take out the entry with the most bytes; False where none is left."""
    parts = [exif, exif.get_ifd(_EXIF_IFD)]
    sizes = [(len(_bytes(value)) if not isinstance(value, (int, float)) else 8, n, tag)
             for n, part in enumerate(parts) for tag, value in part.items()
             if not (n == 0 and tag in (_EXIF_IFD, _ORIENTATION))]  # fmt: skip
    if not sizes:
        return False
    _, where, tag = max(sizes)
    del parts[where][tag]
    return True
