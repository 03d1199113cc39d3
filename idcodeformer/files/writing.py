"""Tensors to files: all that the source file held is written back, and no file is ever half written."""
from __future__ import annotations

import io
import os
import re
import secrets
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadImage, BadOption
from .marks import mark_alone, with_comment_mark, with_xmp_mark
from .metadata import Notes, exif_for, jpeg_comment, png_chunks, with_jpeg_xmp
from .origin import with_origin
from .pixels import to_image, to_levels
from .reading import Picture

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".avif": "AVIF"}
_LARGEST_SIDE = {"WEBP": 16383, "JPEG": 65500, "GIF": 65535, "AVIF": 65536}  # px, of the formats themselves
_LONGEST_OF_OLD = 65_535  # ms
_LONGEST = 655_350  # ms that a frame of a GIF stands; APNG and WebP hold more, an APNG's claim may be 18 hours
_PARTIAL = re.compile(r"\..{0,40}\.[0-9a-f]{12}\.partial", re.DOTALL)
_GRAY_TOLERANCE = 0.5 / 255  # channels closer than half a level are one channel


def write(path: str | Path, picture: Picture, overwrite: bool = False) -> Path:
    """Write ``picture`` in the format that the ending of ``path`` names (png, jpg, webp; gif and avif for animations).

    ICC profile, EXIF, XMP, comments and texts, as far as the format has a place for them, resolution and alpha go
    along; 16-bit pictures stay so in PNG; a gray file stays gray where the frames are. Raises BadOption where the
    format cannot hold the picture, BadImage where pixels are not finite, where the file exists and ``overwrite`` is
    False, and where the folder cannot be written.
    """
    return write_bytes(path, encode(path, picture), overwrite)


def encode(name: str | Path, picture: Picture) -> bytes:
    """The bytes of the file that ``write`` would make of ``picture`` under that name."""
    path = Path(name)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise BadOption(f"{path.name}: pictures are written as {', '.join(sorted(FORMATS))}; choose one of these.")
    ends = torch.stack(picture.frames.aminmax())  # NaN passes on, and nothing is copied
    if not bool(torch.isfinite(ends).all()):
        raise BadImage(f"The result for {path} holds NaN or infinite pixels and is not written; try precision fp32.")
    if picture.alpha is not None and kind == "JPEG":
        raise BadOption(f"{path.name} would lose its transparency as JPEG; choose the format png or webp.")
    check_size(path, picture.size[1], picture.size[0])
    data = _encode(picture, kind)
    return with_origin(data, kind, picture.origin) if picture.origin else data


def check_size(path: Path, width: int, height: int) -> None:
    """Raise BadOption where the format of ``path`` cannot hold a picture of this size (px)."""
    kind = FORMATS.get(path.suffix.lower(), "")
    most = _LARGEST_SIDE.get(kind)
    if most is not None and max(width, height) > most:
        raise BadOption(
            f"{path.name} would be {width}x{height} px, and {kind} holds at most {most} px a side; choose the format "
            "png, or a lower upscale."
        )


def clear_partials(folder: Path) -> None:
    """Remove what killed runs left half written in ``folder`` and below; a file that is being written stays."""
    for root, _, names in os.walk(folder):
        for name in names:
            file = Path(root, name)
            if _PARTIAL.fullmatch(name) and not _is_in_use(file):
                with suppress(OSError):  # of another user, or another run was quicker
                    file.unlink()


def _lock(descriptor: int) -> bool:
    """Take the file for this process; False where another holds it. The lock ends with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows removes no open file anyway
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_in_use(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return not _lock(stream.fileno())
    except OSError:
        return True


def write_bytes(path: str | Path, data: bytes, overwrite: bool = False) -> Path:
    """Write a whole file or nothing: to a temporary file beside it, then renamed. Errors as for ``write``."""
    path = Path(path)
    make_folder(path.parent)
    if path.exists() and not overwrite:
        raise BadImage(f"{path} exists already; add --overwrite, or name another output folder.")
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(6)}.partial")
    try:
        with open(temporary, "xb") as file:
            _lock(file.fileno())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise BadImage(f"{path} cannot be written ({error.strerror}); free space or name another folder.") from error
    finally:
        with suppress(OSError):  # after the rename, or where it could not even be made, it is not there
            temporary.unlink()
    return path


def make_folder(folder: Path) -> Path:
    """Make ``folder`` and its parents. Raises BadImage where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadImage(f"The folder {folder} cannot be made ({error.strerror}); name another output folder.") from error
    if not os.access(folder, os.W_OK):
        raise BadImage(f"The folder {folder} cannot be written; name another output folder.")
    return folder


def _encode(picture: Picture, kind: str) -> bytes:
    if len(picture.frames) > 1:
        return _encode_animation(picture, kind)
    if kind not in ("PNG", "JPEG", "WEBP"):
        raise BadOption(f"{kind} is written for animations only; choose the format png, jpg or webp.")
    gray = picture.gray and bool(_spread(picture.frames) <= _GRAY_TOLERANCE)
    # A profile of gray tones does not describe RGB pixels, and the reverse.
    icc = picture.icc if gray == picture.gray else None
    if picture.bits == 16 and kind == "PNG":
        return _encode_png16(picture, gray, icc)
    frame = picture.frames[0][:1] if gray and kind != "WEBP" else picture.frames[0]
    image = to_image(frame, None if picture.alpha is None else picture.alpha[0])
    buffer = io.BytesIO()
    image.save(buffer, kind, **_settings(picture, kind, icc))
    del image  # as large as the file's bytes, which are copied next
    data = buffer.getvalue()
    if kind != "JPEG":
        return data
    whole = with_jpeg_xmp(data, with_xmp_mark(picture.notes).xmp)
    return whole if len(whole) > len(data) else with_jpeg_xmp(data, mark_alone(picture.notes))


def _settings(picture: Picture, kind: str, icc: bytes | None) -> dict[str, Any]:
    extra: dict[str, Any] = {"icc_profile": icc} if icc else {}
    height, width = picture.size
    if picture.exif and (exif := exif_for(picture.exif, width, height, kind)):
        extra["exif"] = exif
    if picture.dpi and kind != "WEBP":
        extra["dpi"] = tuple(float(value) for value in picture.dpi)
    if kind == "PNG":
        extra["pnginfo"] = _png_info(picture.notes)
    elif kind == "WEBP" and (xmp := with_xmp_mark(picture.notes).xmp):
        extra["xmp"] = xmp
    elif kind == "JPEG" and (comment := jpeg_comment(picture.notes)):
        extra["comment"] = comment
    quality = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95, "method": 4}}
    return extra | quality.get(kind, {"compress_level": 4})


def _png_info(notes: Notes) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for kind, body in png_chunks(notes):
        info.add(kind, body)
    return info


def _encode_animation(picture: Picture, kind: str) -> bytes:
    if kind == "JPEG":
        raise BadOption("JPEG holds one frame; choose png or webp for an animation, or no format: it keeps its own.")
    alphas = [None] * len(picture.frames) if picture.alpha is None else list(picture.alpha)
    images = [to_image(frame, alpha) for frame, alpha in zip(picture.frames, alphas)]
    buffer = io.BytesIO()
    durations = _standing(picture) or 100
    extra: dict[str, Any] = {"icc_profile": picture.icc} if picture.icc else {}
    if kind == "WEBP":
        extra["lossless"] = True
    if kind == "GIF":
        extra["disposal"] = 2 if picture.alpha is not None else 0
    if (loop := picture.loop if kind == "GIF" else _plays(picture.loop)) is not None:
        extra["loop"] = loop
    height, width = picture.size
    if picture.exif and kind != "GIF" and (exif := exif_for(picture.exif, width, height, kind)):
        extra["exif"] = exif
    if kind == "PNG":
        extra["pnginfo"] = _png_info(picture.notes)
    elif kind in ("WEBP", "AVIF") and (xmp := with_xmp_mark(picture.notes).xmp):
        extra["xmp"] = xmp
    elif kind == "GIF" and (comment := with_comment_mark(picture.notes).comment):
        extra["comment"] = comment
    if picture.poster and kind == "PNG":
        extra["default_image"] = True
    elif picture.poster:
        images = images[1:]
    extra |= {"save_all": True, "append_images": images[1:]}
    try:
        images[0].save(buffer, kind, duration=durations, **extra)
    except struct.error:  # older Pillows hold the time of an APNG's frame in 16 bits of ms
        buffer = io.BytesIO()
        images[0].save(buffer, kind, duration=_standing(picture, _LONGEST_OF_OLD), **extra)
    return buffer.getvalue()


def _plays(loop: int | None) -> int:
    """How often APNG and WebP say that frames are shown, 0 for ever: a GIF counts the rounds after the first."""
    return 1 if loop is None else loop and min(loop + 1, 65535)


def _standing(picture: Picture, most: int = _LONGEST) -> list[int]:
    """ms of each frame, as every format holds them; the encoders make one frame of equal neighbours."""
    frames = picture.frames
    if sum(picture.durations) > most and any(map(torch.equal, frames, frames[1:])):
        most //= len(frames)
    return [min(ms, most) for ms in picture.durations]


def _spread(frames: Tensor) -> Tensor:
    """The largest difference between the channels of a pixel, looked for a strip at a time."""
    return torch.stack([(rows.amax(1) - rows.amin(1)).amax() for rows in frames.split(256, dim=2)]).amax()


def _encode_png16(picture: Picture, gray: bool, icc: bytes | None) -> bytes:
    """Pillow writes no 16-bit colour and OpenCV no metadata, so the chunks are added to OpenCV's file."""
    import cv2

    alpha = None if picture.alpha is None else picture.alpha[0]
    levels = to_levels(picture.frames[0][:1] if gray and alpha is None else picture.frames[0], 65535, alpha)
    if levels.shape[2] > 1:
        levels[:, :, :3] = levels[:, :, 2::-1]
    done, encoded = cv2.imencode(".png", levels, [cv2.IMWRITE_PNG_COMPRESSION, 4])
    del levels
    if not done:
        raise BadImage("OpenCV could not encode a 16-bit PNG; choose the format jpg or webp.")
    data, extra = memoryview(encoded), b""
    if icc:
        extra += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    if picture.dpi:
        extra += _chunk(b"pHYs", struct.pack(">IIB", *(round(float(value) / 0.0254) for value in picture.dpi), 1))
    height, width = picture.size
    if picture.exif and (exif := exif_for(picture.exif, width, height, "PNG")):
        extra += _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    extra += b"".join(_chunk(kind, body) for kind, body in png_chunks(picture.notes))
    header_end = 8 + 25  # signature, then the IHDR chunk (PNG specification, sections 5.2 and 11.2.2)
    return b"".join((data[:header_end], extra, data[header_end:]))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
