"""The pictures of the hosts and of the API, to and from the core's tensors."""
from __future__ import annotations

import base64
import binascii
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 64_000_000  # of a picture sent to the API; 8K is 33 million
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


def to_tensor(array: np.ndarray) -> Tensor:
    """[3,H,W] in [0,1] from uint8 [H,W,3]. Raises BadImage."""
    from .core import BadImage

    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        given = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise BadImage(f"The picture is {given}; give RGB bytes [height, width, 3].")
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1).float().div_(255)


def to_array(image: Tensor) -> np.ndarray:
    """uint8 [H,W,3] from [3,H,W] in [0,1], rounded to the nearest level."""
    return image.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


def from_pil(picture: Image) -> Tensor:
    """[3,H,W] in [0,1] of a PIL picture; alpha and palette are left out. Raises BadImage."""
    from .core import BadImage

    if picture.mode not in _MODES:
        raise BadImage(f"The picture has the pixel type {picture.mode}; save it as 8-bit RGB first.")
    return to_tensor(np.array(picture.convert("RGB")))


def replaced(picture: Image, image: Tensor) -> Image:
    """``image`` [3,H,W] as a PIL picture with the alpha and the texts of ``picture``."""
    from PIL import Image

    result = Image.fromarray(to_array(image))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        alpha = picture.convert("RGBA").getchannel("A")
        result.putalpha(alpha if alpha.size == result.size else alpha.resize(result.size, Image.BICUBIC))
    result.info = {key: value for key, value in picture.info.items() if key != "transparency"}
    return result


def decode(text: str, name: str = "image") -> Image:
    """A PIL picture, upright, from base64 or a data URL. Raises BadImage for what is none, too large or animated."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    from .core import BadImage

    body = text.split(",", 1)[1] if text.startswith("data:") and "," in text else text
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImage(f"'{name}' is no base64; send the bytes of a picture file in base64 (no URL).") from error
    try:
        picture = Image.open(io.BytesIO(data), formats=_FORMATS)
        if picture.width * picture.height > MOST_PIXELS:
            most = MOST_PIXELS // 1_000_000
            raise BadImage(f"'{name}' has {picture.width}x{picture.height} px; at most {most} megapixels are taken.")
        if getattr(picture, "n_frames", 1) > 1:
            raise BadImage(f"'{name}' holds several frames; send them one by one.")
        return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError as error:
        raise BadImage(f"'{name}' is no picture that can be read; send a PNG, JPEG, WebP, BMP or TIFF file.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises on damage
        raise BadImage(f"'{name}' is damaged ({error}); send it again.") from error


def encode(picture: Image) -> str:
    """The PNG of a PIL picture in base64."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def photos_of(given: Any, name: str = "reference") -> list[Tensor]:
    """Reference photos from what a control or a script argument holds: nothing, a picture, base64, or a list."""
    from PIL import Image

    from .core import BadImage

    if given is None or (isinstance(given, (str, list, tuple)) and len(given) == 0):
        return []
    if isinstance(given, (list, tuple)):
        return [photo for one in given for photo in photos_of(one, name)]
    if isinstance(given, str):
        given = decode(given, name)
    if isinstance(given, np.ndarray):
        given = Image.fromarray(given)
    if not isinstance(given, Image.Image):
        raise BadImage(f"'{name}' is a {type(given).__name__}; give a picture or its base64.")
    return [from_pil(given)]
