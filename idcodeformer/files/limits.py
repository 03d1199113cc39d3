"""What a picture file may cost and whom it may call before it is refused."""
from __future__ import annotations

import os

from ..errors import BadOption

VARIABLE = "IDCODEFORMER_MAX_PIXELS"
MOST_PIXELS = 178_956_970  # of all frames together; Pillow's own limit for a still picture
# EPS is rendered by Ghostscript, a program for a language with file access; WMF by the system; the others are stubs
# for decoders that a host may register.
_REFUSED = {"EPS", "WMF", "MPEG", "GRIB", "BUFR", "HDF5"}


def most_pixels() -> int:
    """Pixels of all frames of a file together, above which it is refused: 179 million, or what the environment variable
    IDCODEFORMER_MAX_PIXELS says. Raises BadOption where that is no positive number."""
    text = os.environ.get(VARIABLE, "").strip().replace("_", "")
    if not text:
        return MOST_PIXELS
    if not text.isdecimal() or int(text) < 1:
        raise BadOption(f"{VARIABLE} is {text!r}; give a number of pixels, such as 400000000.")
    return int(text)


def lift_pillows_limit() -> None:
    """Let Pillow read what ``most_pixels`` allows. For programs of our own: the limit is the whole process's."""
    if os.environ.get(VARIABLE):
        from PIL import Image

        wanted = -(-most_pixels() // 2)  # Pillow refuses from twice its number on
        if Image.MAX_IMAGE_PIXELS is not None and wanted > Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = wanted


def formats() -> list[str]:
    """Pillow's names of the formats that are read: those that it decodes itself."""
    from PIL import Image

    Image.init()
    return [name for name in Image.ID if name not in _REFUSED]
