"""Files to tensors: upright RGB in [0,1], with all that a file holds besides kept for the way back."""
from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable

import torch
from torch import Tensor

from ..errors import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = frozenset(".png .jpg .jpeg .webp .bmp .tif .tiff .gif .avif .jp2 .ppm .pgm".split())
_MOST_PIXELS = 178_956_970  # of all frames together; Pillow's own limit for a still picture
_ANIMATED = {"GIF": ".gif", "PNG": ".png", "WEBP": ".webp", "AVIF": ".avif"}
_ORIENTATION, _EXIF_IFD, _WIDTH_TAG, _HEIGHT_TAG = 0x0112, 0x8769, 0xA002, 0xA003


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture file in memory. Still pictures have one frame."""

    frames: Tensor  # [F,3,H,W] float32 RGB in [0,1], upright
    alpha: Tensor | None = None  # [F,1,H,W] in [0,1]
    bits: int = 8  # per channel in the file: 8 or 16
    gray: bool = False  # the file has one channel
    icc: bytes | None = None  # describes the frames' own colours (a CMYK profile is applied, not kept)
    exif: bytes | None = None  # with Orientation = 1, because the frames are upright
    dpi: tuple[float, float] | None = None
    durations: tuple[int, ...] = ()  # ms per frame of an animation
    loop: int = 0
    suffix: str = ".png"  # of the file that was read, lower case

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in px."""
        return self.frames.shape[-2], self.frames.shape[-1]


def read(path: str | Path) -> Picture:
    """Read one picture file.

    Gray, palette, CMYK, alpha, 1-bit and 16-bit files and animations (GIF, APNG, WebP, AVIF: every frame) are all
    read. Raises BadImage, with the file's name and a remedy, for what is missing, empty, truncated, no picture at all,
    several pages of a document, floating point, or beyond Pillow's limit against decompression bombs (179 megapixels).
    """
    path = Path(path)
    data = _bytes_of(path)
    try:
        # Pillow warns from half of its limit on; a large scan is no attack.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, path)
    except BadImage:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise BadImage(_explain(path, data, error)) from error


def _bytes_of(path: Path) -> bytes:
    if not path.exists():
        raise BadImage(f"{path} does not exist; check the path.")
    if path.is_dir():
        raise BadImage(f"{path} is a folder, not a picture.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadImage(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    if not data:
        raise BadImage(f"{path} is empty (0 bytes); copy or download it again.")
    return data


def _explain(path: Path, data: bytes, error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        kind = "a web page" if data.lstrip()[:5].lower() in (b"<!doc", b"<html") else "not a picture that can be read"
        return f"{path} is {kind}; give a PNG, JPEG, WebP, TIFF, BMP or GIF file."
    if isinstance(error, Image.DecompressionBombError):
        return f"{path} has more than 179 megapixels; scale it down or cut it into parts first."
    if isinstance(error, MemoryError):
        return f"{path} does not fit into memory; scale it down first."
    return f"{path} is damaged or truncated ({str(error) or type(error).__name__}); copy or download it again."


def _decode(data: bytes, path: Path) -> Picture:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        count = getattr(image, "n_frames", 1)
        orientation = int(image.getexif().get(_ORIENTATION, 1))
        if count > 1 and image.format == "TIFF":
            raise BadImage(f"{path} holds {count} pages; save each as a picture of its own first.")
        if image.mode in ("F", "LAB", "HSV") or image.mode.startswith("I;32"):
            raise BadImage(f"{path} has the pixel type {image.mode}; save it as 8- or 16-bit RGB first.")
        common = {
            "dpi": image.info.get("dpi"),
            "exif": _upright_exif(image),
            "suffix": path.suffix.lower() or f".{(image.format or 'png').lower()}",
        }
        if count > 1 and image.format in _ANIMATED:
            return _decode_animation(image, path, common | {"suffix": _ANIMATED[image.format]})
        if image.mode == "I" or image.mode.startswith("I;16"):
            frame, alpha, facts = _gray16(image)
        elif _is_16_bit_colour(image, data):
            image.load()  # OpenCV fills what is missing of a truncated file with gray; Pillow notices
            frame, alpha, facts = _colour16(_unturned(data, image.format), path)
        else:
            frame, alpha, facts = _eight_bit(image)
        frame, alpha = (_upright(part, orientation) for part in (frame, alpha))
        return Picture(frame, alpha, **(common | facts))


def _decode_animation(image: Image, path: Path, common: dict[str, Any]) -> Picture:
    from PIL import ImageSequence

    if image.n_frames * image.width * image.height > _MOST_PIXELS:
        raise BadImage(f"{path} has {image.n_frames} frames of {image.width}x{image.height}; cut it into parts.")
    frames, alphas, durations = [], [], []
    for frame in ImageSequence.Iterator(image):
        rgba = _to_tensor(frame.convert("RGBA"))
        durations.append(int(frame.info.get("duration", 100)) or 100)  # known once the frame is decoded
        frames.append(rgba[:, :3])
        alphas.append(rgba[:, 3:])
    alpha = torch.cat(alphas)
    return Picture(
        torch.cat(frames),
        None if bool((alpha == 1).all()) else alpha,
        icc=image.info.get("icc_profile"),
        durations=tuple(durations),
        loop=int(image.info.get("loop", 0)),
        **common,
    )


def _eight_bit(image: Image) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """Frame, alpha and what is special, of any mode with up to 8 bits."""
    icc = image.info.get("icc_profile")
    gray = image.mode in ("L", "LA", "La", "1")
    if image.mode == "CMYK":
        return _to_tensor(_cmyk_to_rgb(image, icc)), None, {"icc": None}
    transparent = image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info
    if not transparent:
        return _to_tensor(image.convert("RGB")), None, {"icc": icc, "gray": gray}
    rgba = _to_tensor(image.convert("RGBA"))
    return rgba[:, :3], rgba[:, 3:], {"icc": icc, "gray": gray}


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


def _gray16(image: Image) -> tuple[Tensor, None, dict[str, Any]]:
    import numpy as np

    values = np.asarray(image).astype(np.float32)
    if values.max(initial=0) > 65535 or values.min(initial=0) < 0:
        raise BadImage("The picture has 32-bit pixels; save it as 8- or 16-bit first.")
    frame = torch.from_numpy(values / 65535)[None, None].expand(-1, 3, -1, -1)
    return frame, None, {"icc": image.info.get("icc_profile"), "gray": True, "bits": 16}


def _is_16_bit_colour(image: Image, data: bytes) -> bool:
    """Pillow decodes these to 8 bits without a word; the header tells."""
    if image.format == "PNG":
        return data[24] == 16
    bits = getattr(image, "tag_v2", {}).get(258, (8,)) if image.format == "TIFF" else (8,)
    return max(bits) == 16 and image.mode in ("RGB", "RGBA", "RGBX")


def _unturned(data: bytes, kind: str | None) -> bytes:
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
    patched = bytearray(data)
    for entry in range(first, first + count * length, length):
        if struct.unpack_from(order + "H", data, entry)[0] == _ORIENTATION:
            struct.pack_into(order + "H", patched, entry + (12 if big else 8), 1)
    return bytes(patched)


def _colour16(data: bytes, path: Path) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    import cv2
    import numpy as np
    from PIL import Image

    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise BadImage(f"{path} is a 16-bit file that OpenCV cannot read; save it as PNG first.")
    if array.ndim == 2:
        array = array[:, :, None]
    tensor = torch.from_numpy(array.astype(np.float32) / (65535 if array.dtype == np.uint16 else 255))
    tensor = tensor.permute(2, 0, 1)[None]
    channels = tensor.shape[1]
    with Image.open(io.BytesIO(data)) as image:
        icc, gray = image.info.get("icc_profile"), image.mode in ("L", "LA") or channels == 1
    frame = tensor.expand(-1, 3, -1, -1) if channels == 1 else tensor[:, [2, 1, 0]]
    return frame, tensor[:, 3:] if channels == 4 else None, {"icc": icc, "gray": gray, "bits": 16}


def _to_tensor(image: Image) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().div_(255)


def _upright(part: Tensor | None, orientation: int) -> Tensor | None:
    """Undo the rotation of the camera (Exif 2.3, table 6: values 1 to 8)."""
    if part is None:
        return None
    if orientation in (5, 6, 7, 8):
        part = part.transpose(-1, -2)
    flips = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}.get(orientation, ())
    return part.flip(flips).contiguous() if flips else part.contiguous()


def _upright_exif(image: Image) -> bytes | None:
    """The EXIF block for a picture that has been turned upright; the copy in ``image`` changes too."""
    exif = image.getexif()
    if not exif:
        return None
    if _ORIENTATION in exif:
        exif[_ORIENTATION] = 1
    detail = exif.get_ifd(_EXIF_IFD)
    for tag in (_WIDTH_TAG, _HEIGHT_TAG):  # wrong once the picture is turned or enlarged, and not needed
        detail.pop(tag, None)
    return exif.tobytes()


def find_pictures(paths: Iterable[str | Path], recursive: bool = False) -> list[tuple[Path, Path]]:
    """(file, its path relative to the folder that was named) of every picture, sorted by name within a folder.

    A file that is named itself is taken whatever its ending. Raises BadImage for a path that does not exist and for a
    folder without pictures.
    """
    found: list[tuple[Path, Path]] = []
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise BadImage(f"{path} does not exist; check the path.")
            found.append((path, Path(path.name)))
            continue
        inside = sorted(path.rglob("*") if recursive else path.iterdir())
        pictures = [file for file in inside if file.suffix.lower() in EXTENSIONS and file.is_file()]
        if not pictures:
            hint = "" if recursive else ", or add --recursive for its sub-folders"
            raise BadImage(f"The folder {path} holds no picture; name another{hint}.")
        found += [(file, file.relative_to(path)) for file in pictures]
    return found
