"""Picture files: every format that Pillow writes, in odd modes and sizes, then damaged."""
from __future__ import annotations

import io
import random
import struct
import zlib

from PIL import Image

from .damage import damage

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "GIF": ("L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I;16"),
    "TGA": ("L", "LA", "P", "RGB", "RGBA"),
    "ICO": ("RGBA",),
    "ICNS": ("RGBA",),
    "PCX": ("1", "L", "P", "RGB"),
    "SGI": ("L", "RGB", "RGBA"),
    "DDS": ("RGB", "RGBA"),
    "DIB": ("L", "RGB"),
    "IM": ("L", "RGB"),
    "MSP": ("1",),
    "XBM": ("1",),
    "SPIDER": ("F",),
    "EPS": ("L", "RGB"),
    "QOI": ("RGB", "RGBA"),
    "BLP": ("P",),
    "MPO": ("RGB",),
}
ENDINGS = (".png", ".jpg", ".webp", ".tif", ".gif", ".bmp", ".jp2", ".avif", ".ppm", ".tga", ".heic", ".txt", "")
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF", "TIFF", "MPO")


def make(rng: random.Random) -> tuple[str, bytes]:
    """(file name, content) of one case."""
    kind = rng.randrange(10)
    if kind == 0:
        data = _header(rng)
    elif kind == 1:
        data = _animation(rng)
    elif kind == 2:
        data = _metadata(rng)
    elif kind == 3:
        data = _program(rng)
    else:
        data = _still(rng)
    if rng.random() < 0.75:
        data = damage(data, rng)
    return "picture" + rng.choice(ENDINGS), data


def _pixels(rng: random.Random, mode: str, size: tuple[int, int]) -> Image.Image:
    image = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
    if mode == "F":
        return image.convert("L").convert("F")
    if mode == "I;16":
        return Image.frombytes("I;16", size, rng.randbytes(2 * size[0] * size[1]))
    if mode == "LAB":
        return Image.frombytes("LAB", size, rng.randbytes(3 * size[0] * size[1]))
    return image.convert(mode)


def _saved(image: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **settings)
    except Exception:  # not every mode and size goes into every format; the case is then a fragment of it
        return buffer.getvalue() or b"\x89PNG\r\n\x1a\n"
    return buffer.getvalue()


def _still(rng: random.Random) -> bytes:
    kind = rng.choice(sorted(MODES))
    side = lambda: rng.choice((1, 2, 7, 16, 33, 64))  # noqa: E731
    return _saved(_pixels(rng, rng.choice(MODES[kind]), (side(), side())), kind)


def _animation(rng: random.Random) -> bytes:
    kind = rng.choice(ANIMATED)
    frames = [_pixels(rng, "RGB", (16, 12)) for _ in range(rng.choice((2, 3, 20)))]
    extra = {} if kind in ("TIFF", "MPO") else {"duration": rng.choice((0, 1, 50)), "loop": rng.choice((0, 1, 65535))}
    return _saved(frames[0], kind, save_all=True, append_images=frames[1:], **extra)


def _metadata(rng: random.Random) -> bytes:
    """EXIF, ICC, XMP and comments that lie."""
    exif = Image.Exif()
    exif[0x0112] = rng.choice((0, 3, 6, 8, 99))
    exif[0x010E] = "x" * rng.choice((0, 10, 5000))
    blob = damage(exif.tobytes(), rng) if rng.random() < 0.7 else exif.tobytes()
    from PIL import ImageCms

    icc = damage(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), rng)
    entities = "".join(f'<!ENTITY e{n} "&e{n - 1};&e{n - 1};">' for n in range(1, 40))
    xmp = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "x">{entities}]><x:xmpmeta><a>&e39;</a></x:xmpmeta>'.encode()
    mode = rng.choice(("RGB", "L", "CMYK"))
    kind = "JPEG" if mode == "CMYK" else rng.choice(("JPEG", "PNG", "WEBP", "TIFF"))
    settings = {"exif": blob, "icc_profile": icc, "dpi": (rng.choice((0, 1, 72, 1e9)),) * 2, "xmp": xmp}
    chosen = {name: value for name, value in settings.items() if rng.random() < 0.6}
    return _saved(_pixels(rng, mode, (24, 24)), kind, **chosen)


def _header(rng: random.Random) -> bytes:
    """Headers that promise more than the file holds, and streams that unpack to more than they promise."""
    side = lambda: rng.choice((0, 1, 65535, 20000, 13000, 2**31 - 1, 2**32 - 1))  # noqa: E731
    wide, high = side(), side()
    kind = rng.randrange(6)
    if kind == 0:
        depth, colour = rng.choice(((8, 2), (16, 6), (1, 0), (16, 2), (8, 3)))
        body = zlib.compress(bytes(rng.choice((0, 100, 5_000_000))))
        head = struct.pack(">IIBBBBB", wide, high, depth, colour, 0, 0, 0)
        chunks = [(b"IHDR", head), (b"IDAT", body), (b"IEND", b"")]
        if rng.random() < 0.4:
            text = zlib.compress(bytes(rng.choice((1000, 80_000_000))))
            chunks.insert(1, (rng.choice((b"zTXt", b"iCCP")), b"name\0\0" + text))
        if rng.random() < 0.4:
            chunks.insert(1, (b"acTL", struct.pack(">II", rng.choice((0, 1, 2**31 - 1)), 0)))
        packed = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
        return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
    if kind == 1:
        return b"GIF89a" + struct.pack("<HH", wide & 65535, high & 65535) + rng.randbytes(40)
    if kind == 2:
        head = struct.pack("<IiiHHIIiiII", 40, wide & 0x7FFFFFFF, -(high & 0x7FFF), 1, rng.choice((1, 8, 24, 32)), rng.choice((0, 1, 3)), 0, 0, 0, 0, 0)  # noqa: E501  # fmt: skip
        return b"BM" + struct.pack("<IHHI", 10**6, 0, 0, 54) + head + rng.randbytes(64)
    if kind == 3:
        return b"P6\n%d %d\n%d\n" % (wide, high, rng.choice((0, 255, 65535, 2**31))) + rng.randbytes(64)
    if kind == 4:
        entries = [(256, 4, 1, wide), (257, 4, 1, high), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 2),
                   (273, 4, 1, 8), (277, 3, 1, rng.choice((0, 1, 3, 60000))),
                   (279, 4, rng.choice((1, 2**30)), 2**31)]  # fmt: skip
        rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + struct.pack("<I", rng.choice((0, 8, 2**31)))
    return struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, wide & 65535, high & 65535, 24, 0) + rng.randbytes(64)


def _program(rng: random.Random) -> bytes:
    """Files that another program would have to run or render."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/made) (w) file closefile\nshowpage\n"
    svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    double = b"\0\5\x16\7" + rng.randbytes(50)
    return rng.choice((eps, svg, double, b"<!DOCTYPE html><html></html>", b"", b"\0" * 99, rng.randbytes(300),
                       b"%PDF-1.7\n" + rng.randbytes(90), b"PK\3\4" + rng.randbytes(60)))  # fmt: skip
