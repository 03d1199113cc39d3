"""Files to tensors: upright RGB in [0,1], with all that a file holds besides kept for the way back."""
from __future__ import annotations

import io
import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import BadImage, BadOption
from ..runtime.memory import is_out_of_memory
from .damage import has_torn_pixels
from .finding import EXTENSIONS, OPTIONAL, decoder_is_there, find_pictures
from .limits import VARIABLE, formats, most_pixels
from .metadata import Notes, dpi_of, orientation_of, read_notes, upright_exif
from .origin import fingerprint
from .pixels import floats, planes, planes_of
from .transparency import fill_hidden

if TYPE_CHECKING:
    from PIL.Image import Image

_ANIMATED = {"GIF": ".gif", "PNG": ".png", "WEBP": ".webp", "AVIF": ".avif"}
_ORIENTATION = 0x0112


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture file in memory. Still pictures have one frame."""

    frames: Tensor  # [F,3,H,W] RGB, upright, float32 in [0,1] or uint8; filled from what shows where alpha is 0
    alpha: Tensor | None = None  # [F,1,H,W] in [0,1]
    bits: int = 8  # per channel in the file: 8 or 16
    gray: bool = False  # the file has one channel
    icc: bytes | None = None  # describes the frames' own colours (a CMYK profile is applied, not kept)
    exif: bytes | None = None  # with Orientation = 1, because the frames are upright
    dpi: tuple[float, float] | None = None
    durations: tuple[int, ...] = ()  # ms per frame of an animation
    loop: int | None = 0  # as a GIF counts: rounds after the first, 0 = for ever, None = played once
    suffix: str = ".png"  # of the file that was read, lower case
    poster: bool = False  # the first frame is an APNG's still picture, no part of its animation
    origin: str = ""  # fingerprint of the file that was read
    notes: Notes = Notes()  # XMP, comments, texts, colorimetry
    left_out: str = ""  # what the file holds besides and a result does not; "" for nothing

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in px."""
        return self.frames.shape[-2], self.frames.shape[-1]


__all__ = ["EXTENSIONS", "Picture", "decode", "find_pictures", "read"]


def read(path: str | Path, levels: bool = False) -> Picture:
    """Read one picture file; with ``levels`` a still picture of 8 bits a channel stays uint8, a quarter of the memory.

    Gray, palette, CMYK, alpha, 1-bit and 16-bit files and animations (GIF, APNG, WebP, AVIF: every frame) are all
    read. Raises BadImage, with the file's name and a remedy, for what is missing, empty, truncated, no picture at all,
    several pages of a document, floating point, or beyond the limit against decompression bombs (``most_pixels``). Only
    formats that Pillow decodes itself are read: an EPS, which it hands to Ghostscript, is not.
    """
    path = Path(path)
    return decode(_bytes_of(path), path, levels)


def pixels_in(path: Path) -> int:
    """Pixels of all frames of a picture file by its header; 0 where that cannot be told."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=formats()) as image:
                return image.width * image.height * getattr(image, "n_frames", 1)
    except Exception:  # ``read`` tells what is wrong with the file
        return 0


def decode(data: bytes, name: str | Path, levels: bool = False) -> Picture:
    """The bytes of a picture file, as ``read``; ``name`` stands in messages, and its ending in ``Picture.suffix``."""
    path = Path(name)
    if not data:
        raise BadImage(f"{path} is empty (0 bytes); copy or download it again.")
    try:
        # Pillow warns from half of its limit on; a large scan is no attack.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, path, levels)
    except (BadImage, BadOption):
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise BadImage(_explain(path, data, error)) from error


def _bytes_of(path: Path) -> bytes:
    try:
        if not os.path.exists(path):  # unlike Path's, no error for a name that is too long
            raise BadImage(f"{path} does not exist; check the path.")
        if path.is_dir():
            raise BadImage(f"{path} is a folder, not a picture.")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"{path} cannot be read ({error.strerror}); check its permissions.") from error


def _explain(path: Path, data: bytes, error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if data.startswith((b"\0\5\x16\7", b"\0\5\x16\0")):
        return f"{path} is macOS metadata (AppleDouble), not a picture; name the file without '._'."
    if isinstance(error, UnidentifiedImageError):
        if (kind := _optional(path, data)) and not decoder_is_there(*kind):
            return f"{path} is a {kind[0]} file, which needs another decoder; run: pip install {kind[1]}"
        if data[:4] in (b"II*\0", b"MM\0*"):
            return f"{path} is a TIFF of a pixel type that is not read (floating point?); save it as 8- or 16-bit RGB."
        kind = "a web page" if data.lstrip()[:5].lower() in (b"<!doc", b"<html") else "not a picture that can be read"
        return f"{path} is {kind}; give a PNG, JPEG, WebP, TIFF, BMP or GIF file."
    if isinstance(error, Image.DecompressionBombError):
        return too_large(path)
    if is_out_of_memory(error):
        return f"{path} does not fit into memory; close other programs, or scale it down first."
    return f"{path} is damaged or truncated ({str(error) or type(error).__name__}); copy or download it again."


def too_large(path: Path) -> str:
    """What is said of a picture beyond the limit."""
    most = most_pixels() / 1e6
    return f"{path} has more than {most:.0f} megapixels; scale it down, cut it into parts, or set {VARIABLE} higher."


def _optional(path: Path, data: bytes) -> tuple[str, str] | None:
    """Format and package of a file that only an optional decoder reads, told by content."""
    if data[:2] == b"\xff\x0a" or data[:8] == b"\0\0\0\x0cJXL ":
        return OPTIONAL[".jxl"]
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand in (b"avif", b"avis"):
        return OPTIONAL[".avif"]
    heif = brand[:3] in (b"hei", b"hev", b"mif", b"msf") and brand != b""
    return OPTIONAL[".heic"] if heif else None


def _decode(data: bytes, path: Path, levels: bool) -> Picture:
    from PIL import Image

    if kind := _optional(path, data):
        decoder_is_there(*kind)
    with Image.open(io.BytesIO(data), formats=formats()) as image:
        if image.width * image.height > most_pixels():  # Pillow's own limit may be lifted by a host
            raise BadImage(too_large(path))
        if image.format == "PNG" and has_torn_pixels(data):
            raise ValueError("pixels do not fit their checksum")
        count = getattr(image, "n_frames", 1)
        orientation = orientation_of(image)
        if count > 1 and image.format == "TIFF":
            raise BadImage(f"{path} holds {count} pages; save each as a picture of its own first.")
        if image.mode in ("F", "LAB", "HSV") or image.mode.startswith("I;32"):
            raise BadImage(f"{path} has the pixel type {image.mode}; save it as 8- or 16-bit RGB first.")
        common = {
            "origin": fingerprint(data),
            "dpi": dpi_of(image),
            "exif": upright_exif(image),
            "suffix": path.suffix.lower() or f".{(image.format or 'png').lower()}",
        }
        if count > 1 and image.format not in _ANIMATED:  # as phones and stereo cameras write
            more = f"{count - 1} more picture{'s' * (count > 2)}"
            common["left_out"] = f"{more} in the file (gain map, second view or preview) left out"
        if count > 1 and image.format in _ANIMATED:
            return _decode_animation(image, path, common | {"suffix": _ANIMATED[image.format]})
        if image.mode == "I" or image.mode.startswith("I;16"):
            frame, alpha, facts = _gray16(image, orientation)
        elif _is_16_bit_colour(image, data):
            image.load()  # OpenCV fills what is missing of a truncated file with gray; Pillow notices
            facts = {"icc": image.info.get("icc_profile"), "bits": 16, "notes": read_notes(image)}
            image.close()  # what Pillow made of the pixels would stay in memory beside them
            frame, alpha, one = _colour16(_unturned(data, image.format), path, orientation)
            facts["gray"] = one or image.mode in ("L", "LA")
        else:
            frame, alpha, facts = _eight_bit(image, orientation, levels)
        if alpha is not None:
            frame, alpha = fill_hidden(frame, floats(alpha)), floats(alpha)
        return Picture(frame, alpha, **(common | {"notes": facts.get("notes") or read_notes(image)} | facts))


def _decode_animation(image: Image, path: Path, common: dict[str, Any]) -> Picture:
    from PIL import ImageSequence

    if image.n_frames * image.width * image.height > most_pixels():
        raise BadImage(f"{path} has {image.n_frames} frames of {image.width}x{image.height}; cut it into parts.")
    poster = bool(getattr(image, "default_image", False))
    frames, alphas, durations = [], [], []
    for frame in ImageSequence.Iterator(image):
        rgba = planes_of(frame.convert("RGBA"))
        if not (poster and not frames):
            durations.append(int(frame.info.get("duration", 100)) or 100)  # known once the frame is decoded
        frames.append(rgba[:, :3])
        alphas.append(rgba[:, 3:])
    alpha = torch.cat(alphas)
    return Picture(
        fill_hidden(torch.cat(frames), alpha),
        None if bool((alpha == 1).all()) else alpha,
        icc=image.info.get("icc_profile"),
        durations=tuple(durations),
        loop=_loop(image),
        poster=poster,
        notes=read_notes(image),
        **common,
    )


def _loop(image: Image) -> int | None:
    """How often an animation repeats, as a GIF counts, whose absent count is one play; APNG and WebP count plays."""
    count = image.info.get("loop")
    if image.format == "GIF":
        return None if count is None else int(count)
    return None if count == 1 else max(0, int(count or 0) - 1)


def _eight_bit(
    image: Image, orientation: int, levels: bool
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """Frame, alpha and what is special, of any mode with up to 8 bits."""
    icc = image.info.get("icc_profile")
    gray = image.mode in ("L", "LA", "La", "1")
    if image.mode == "CMYK":
        return planes_of(_cmyk_to_rgb(image, icc), orientation, levels), None, {"icc": None}
    transparent = image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info
    mode = "RGBA" if transparent else "RGB"
    pixels = planes_of(image if image.mode == mode else image.convert(mode), orientation, levels)
    return pixels[:, :3], pixels[:, 3:] if transparent else None, {"icc": icc, "gray": gray}


def _cmyk_to_rgb(image: Image, icc: bytes | None) -> Image:
    from PIL import ImageCms

    if not icc:
        return image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a broken profile is no reason to lose the picture
        return image.convert("RGB")
    return converted if converted is not None else image.convert("RGB")


def _gray16(image: Image, orientation: int) -> tuple[Tensor, None, dict[str, Any]]:
    import numpy as np

    values = np.asarray(image)
    if values.max(initial=0) > 65535 or values.min(initial=0) < 0:
        raise BadImage("The picture has 32-bit pixels; save it as 8- or 16-bit first.")
    frame = planes(lambda a, b: values[a:b], *values.shape, 1, 65535, orientation).expand(-1, 3, -1, -1)
    return frame.contiguous(), None, {"icc": image.info.get("icc_profile"), "gray": True, "bits": 16}


def _is_16_bit_colour(image: Image, data: bytes) -> bool:
    """Pillow decodes these to 8 bits without a word; the header tells."""
    if image.format == "PNG":
        return data[24] == 16
    bits = getattr(image, "tag_v2", {}).get(258, (8,)) if image.format == "TIFF" else (8,)
    return max(bits) == 16 and image.mode in ("RGB", "RGBA", "RGBX")


def _unturned(data: bytes, kind: str | None) -> bytes | bytearray:
    """A TIFF file with Orientation = 1 in its first directory: OpenCV turns TIFFs itself, whatever it is asked.

    TIFF 6.0, section 2: entries of 12 bytes behind a count of 2; BigTIFF: entries of 20 bytes behind a count of 8.
    """
    if kind != "TIFF":
        return data
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    start = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), data, start)[0]
    first, length = start + (8 if big else 2), 20 if big else 12
    places = [first + n * length for n in range(count)]
    tags = [entry for entry in places if struct.unpack_from(order + "H", data, entry)[0] == _ORIENTATION]
    if not tags:  # a scan of 600 MB is not copied for nothing
        return data
    patched = bytearray(data)
    for entry in tags:
        struct.pack_into(order + "H", patched, entry + (12 if big else 8), 1)
    return patched


def _colour16(data: bytes | bytearray, path: Path, orientation: int) -> tuple[Tensor, Tensor | None, bool]:
    """Frame, alpha, and whether there is one channel only."""
    import cv2
    import numpy as np

    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise BadImage(f"{path} is a 16-bit file that OpenCV cannot read; save it as PNG first.")
    array = array[:, :, None] if array.ndim == 2 else array
    height, width, channels = array.shape
    top = 65535 if array.dtype == np.uint16 else 255
    bgr = {1: slice(None), 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    pixels = planes(lambda a, b: array[a:b][:, :, bgr], height, width, channels, top, orientation)
    frame = pixels.expand(-1, 3, -1, -1).contiguous() if channels == 1 else pixels[:, :3]
    return frame, pixels[:, 3:] if channels == 4 else None, channels == 1
