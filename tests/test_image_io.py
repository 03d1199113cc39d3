"""Files of every kind go in and out with all that they hold."""
from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from idcodeformer.errors import BadImage, BadOption
from idcodeformer.files import pixels
from idcodeformer.files.metadata import Notes, with_jpeg_xmp
from idcodeformer.files.reading import Picture, find_pictures, read
from idcodeformer.files.transparency import fill_hidden
from idcodeformer.files.writing import write, write_bytes

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)  # 9 x 6, so that a turned picture shows
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif(orientation: int, detail: dict[int, object] | None = None) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "Maker"
    tags[0x8769] = {0x9003: "2001:02:03 04:05:06"} | (detail or {})
    return tags


def levels(picture: Picture, top: int = 255) -> np.ndarray:
    return (picture.frames[0].permute(1, 2, 0) * top).round().numpy().astype(int)


def test_values_are_exact_and_return_exact(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    picture = read(tmp_path / "a.png")
    assert picture.frames.shape == (1, 3, 6, 9) and picture.frames.dtype == torch.float32
    assert picture.alpha is None and picture.bits == 8 and picture.size == (6, 9)
    np.testing.assert_array_equal(levels(picture), COLOURS)
    write(tmp_path / "b.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), COLOURS)


def test_rounding_does_not_darken(tmp_path: Path) -> None:
    write(tmp_path / "a.png", Picture(torch.full((1, 3, 2, 2), 99.6 / 255)))
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[[100] * 3] * 2] * 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_orientation_is_applied_and_the_tag_reset(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16, 0], upright[16:, 32:, 1] = 255, 255
    # Pillow turns the stored picture by the same table; storing = undoing with the inverse operation.
    inverse = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = Image.fromarray(upright)
    stored = stored if inverse is None else stored.transpose(Image.Transpose(inverse))
    file = tmp_path / f"a{suffix}"
    stored.save(file, exif=exif(orientation), **({"quality": 95, "subsampling": 0} if suffix == ".jpg" else {}))
    picture = read(file)
    assert np.abs(levels(picture) - upright).mean() < 3
    write(tmp_path / "b.png", picture)
    with Image.open(tmp_path / "b.png") as back:
        assert back.getexif()[0x0112] == 1 and back.getexif()[0x010F] == "Maker"
        assert back.getexif().get_ifd(0x8769)[0x9003] == "2001:02:03 04:05:06"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_icc_exif_and_resolution_go_along(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", icc_profile=SRGB, exif=exif(1), dpi=(300, 300))
    write(tmp_path / f"b{suffix}", read(tmp_path / "a.jpg"))
    with Image.open(tmp_path / f"b{suffix}") as back:
        assert back.info["icc_profile"] == SRGB
        assert back.getexif()[0x010F] == "Maker"
        if suffix != ".webp":
            assert round(float(back.info["dpi"][0])) == 300


@pytest.mark.parametrize(("dpi", "kept"), [((1e9, 1e9), None), ((72.0, 0.0), None), ((float("nan"), 72.0), None),
                                           ((600.0, 300.0), (600.0, 300.0))])  # fmt: skip
def test_a_resolution_that_no_format_holds_is_left_out(tmp_path: Path, dpi: tuple, kept: tuple | None) -> None:
    from PIL import TiffImagePlugin

    number = {282: dpi[0], 283: dpi[1]}
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in number.items():
        tags.tagtype[tag] = 11  # a float, which holds what a rational cannot
        tags[tag] = value
    tags[296] = 2
    Image.fromarray(COLOURS).save(tmp_path / "a.tif", tiffinfo=tags)
    picture = read(tmp_path / "a.tif")
    assert picture.dpi == kept
    for ending in (".png", ".jpg", ".webp"):
        assert read(write(tmp_path / f"b{ending}", picture)).size == picture.size


@pytest.mark.parametrize("suffix", [".png", ".gif", ".webp"])
def test_frames_that_claim_to_stand_for_hours_are_written(tmp_path: Path, suffix: str) -> None:
    moving = torch.arange(3).view(3, 1, 1, 1).expand(3, 3, 8, 8) / 2
    claimed = Picture(moving, durations=(65_535_000, 50, 10**13))
    again = read(write(tmp_path / f"a{suffix}", claimed))
    most = 65_535 if again.durations[0] == 65_535 and suffix == ".png" else 655_350  # older Pillows hold less
    assert again.durations == (most, 50, most)
    still = Picture(torch.zeros(3, 3, 8, 8), durations=(655_350,) * 3)  # equal frames are written as one
    assert read(write(tmp_path / f"b{suffix}", still)).size == (8, 8)


def test_alpha_is_kept_and_jpeg_refuses_to_lose_it(tmp_path: Path) -> None:
    rgba = RNG.integers(1, 256, (6, 9, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    picture = read(tmp_path / "a.png")
    assert picture.alpha is not None and picture.alpha.shape == (1, 1, 6, 9)
    write(tmp_path / "b.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), rgba)
    with pytest.raises(BadOption, match="transparency"):
        write(tmp_path / "b.jpg", picture)
    assert not (tmp_path / "b.jpg").exists()


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS).quantize(8)
    image.save(tmp_path / "a.png", transparency=0)
    with Image.open(tmp_path / "a.png") as stored:
        wanted = np.asarray(stored.convert("RGBA"))
    picture = read(tmp_path / "a.png")
    assert picture.alpha is not None and float(picture.alpha.min()) == 0
    shown = wanted[:, :, 3] > 0
    np.testing.assert_array_equal(levels(picture)[shown], wanted[:, :, :3][shown])


@pytest.mark.parametrize("kind", [".png", ".webp", ".gif"])
def test_what_alpha_hides_comes_from_what_shows_around_it(tmp_path: Path, kind: str) -> None:
    y, x = np.mgrid[:41, :30]
    disc = (x - 15) ** 2 + (y - 20) ** 2 < 100
    shown = np.stack([120 + x, 90 + y, 60 + 0 * x], -1)
    frames = []
    for hidden in ((0, 255, 0), (255, 0, 255)):
        rgb = np.where(disc[..., None], shown, hidden)
        frames.append(Image.fromarray(np.concatenate([rgb, 255 * disc[..., None]], -1).astype(np.uint8)))
    file = tmp_path / f"a{kind}"
    frames[0].save(file, save_all=True, append_images=frames[1:], lossless=True, exact=True, duration=50, disposal=2)
    picture = read(file)
    assert picture.alpha is not None and len(picture.frames) == 2
    inside = torch.from_numpy(disc)
    error = (picture.frames[0] - torch.from_numpy(shown).permute(2, 0, 1) / 255).abs() * 255
    assert float(error[:, inside].max()) <= (20 if kind == ".gif" else 0.01)
    assert float(error[:, ~inside].max()) < 30  # the disc's colours reach over 15 px of a gradient
    np.testing.assert_allclose(picture.frames[0], picture.frames[1], atol=0.1 if kind == ".gif" else 1e-6)
    write(tmp_path / f"b{kind}", picture)
    back = np.asarray(Image.open(tmp_path / f"b{kind}").convert("RGBA"))
    np.testing.assert_array_equal(back[..., 3], 255 * disc)


def test_filling_leaves_what_shows_and_survives_the_edges() -> None:
    frames, alpha = torch.rand(2, 3, 7, 5), torch.rand(2, 1, 7, 5).clamp(min=0.01)
    assert torch.equal(fill_hidden(frames, alpha), frames)
    alpha[0, :, :6] = 0
    filled = fill_hidden(frames, alpha)
    assert torch.equal(filled[0, :, 6], frames[0, :, 6]) and torch.equal(filled[1], frames[1])
    mean = (frames[0, :, 6] * alpha[0, :, 6]).sum(-1) / alpha[0, :, 6].sum()
    assert float((filled[0, :, 0].mean(-1) - mean).abs().max()) < 0.25
    assert not fill_hidden(frames, torch.zeros_like(alpha)).any()


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_gray_stays_gray(tmp_path: Path, mode: str) -> None:
    Image.fromarray(COLOURS).convert(mode).save(tmp_path / "a.png")
    picture = read(tmp_path / "a.png")
    assert picture.gray and torch.equal(picture.frames[:, 0], picture.frames[:, 2])
    write(tmp_path / "b.png", picture)
    with Image.open(tmp_path / "b.png") as back:
        assert back.mode == ("LA" if mode == "LA" else "L")
    coloured = replace(picture, frames=picture.frames * torch.tensor([1.0, 0.5, 0.5])[:, None, None])
    write(tmp_path / "c.png", coloured)
    with Image.open(tmp_path / "c.png") as back:
        assert back.mode.startswith("RGB")


def test_cmyk_is_converted_and_its_profile_left_behind(tmp_path: Path) -> None:
    flat = Image.new("RGB", (16, 16), (200, 40, 40)).convert("CMYK")
    flat.save(tmp_path / "a.jpg", quality=95, icc_profile=b"not a profile")
    picture = read(tmp_path / "a.jpg")
    assert picture.icc is None
    assert np.abs(levels(picture)[8, 8] - [200, 40, 40]).max() < 12


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_png_stays_16_bit(tmp_path: Path, channels: int) -> None:
    values = RNG.integers(0, 65536, (6, 9, channels), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values)
    picture = read(tmp_path / "a.png")
    assert picture.bits == 16 and picture.gray == (channels == 1)
    picture = replace(picture, icc=SRGB, exif=exif(1).tobytes(), dpi=(300, 300))
    write(tmp_path / "b.png", picture)
    back = cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED)
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back.reshape(values.shape), values)
    with Image.open(tmp_path / "b.png") as again:
        assert again.info["icc_profile"] == SRGB and again.getexif()[0x010F] == "Maker"
        assert round(float(again.info["dpi"][0])) == 300


def test_16_bit_gray_and_colour_tiff(tmp_path: Path) -> None:
    colour = RNG.integers(0, 65536, (6, 9, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.tif"), colour)
    np.testing.assert_array_equal(levels(read(tmp_path / "a.tif"), 65535), colour[:, :, ::-1])
    cv2.imwrite(str(tmp_path / "g.tif"), colour[:, :, 0])
    np.testing.assert_array_equal(levels(read(tmp_path / "g.tif"), 65535)[:, :, 0], colour[:, :, 0])


def frames(count: int) -> list[Image.Image]:
    out = []
    for number in range(count):
        array = np.zeros((12, 16, 3), np.uint8)
        array[:, : 4 * (number + 1)] = (250, 20, 20)
        out.append(Image.fromarray(array))
    return out


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_every_frame_of_an_animation_is_kept(tmp_path: Path, suffix: str) -> None:
    first, *others = frames(3)
    extra = {"lossless": True} if suffix == ".webp" else {}
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=others, duration=[40, 80, 120], loop=0, **extra)
    picture = read(tmp_path / f"a{suffix}")
    assert picture.frames.shape == (3, 3, 12, 16) and picture.durations == (40, 80, 120)
    assert picture.suffix == suffix
    write(tmp_path / f"b{suffix}", picture)
    again = read(tmp_path / f"b{suffix}")
    assert again.durations == picture.durations
    assert (again.frames - picture.frames).abs().mean() < 0.01
    with pytest.raises(BadOption, match="one frame"):
        write(tmp_path / "b.jpg", replace(picture, alpha=None))


def test_documents_with_pages_are_refused(tmp_path: Path) -> None:
    first, *others = frames(2)
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    with pytest.raises(BadImage, match="2 pages"):
        read(tmp_path / "a.tif")


@pytest.mark.filterwarnings("error")
def test_a_picture_that_pillow_warns_of_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From half of its limit on Pillow warns; a large scan is no attack. The limit is lowered to keep this quick."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("L", (50, 30), 7).save(tmp_path / "scan.png")
    assert read(tmp_path / "scan.png").size == (30, 50)
    Image.new("L", (50, 50), 7).save(tmp_path / "larger.png")
    with pytest.raises(BadImage, match="megapixels"):
        read(tmp_path / "larger.png")


def test_a_decompression_bomb_is_refused_unread(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(BadImage, match="megapixels"):
        read(tmp_path / "bomb.png")


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def png16_bytes() -> bytes:
    return cv2.imencode(".png", RNG.integers(0, 65536, (64, 64, 3), dtype=np.uint16))[1].tobytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (png_bytes()[:3000], "damaged or truncated"),
        (png16_bytes()[:9000], "damaged or truncated"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"plain text", "not a picture"),
        (bytes(range(256)) * 8, "not a picture|damaged"),  # some Pillows take it for a TGA file
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(content)
    with pytest.raises(BadImage, match=words) as caught:
        read(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_float_tiff_is_refused_with_a_remedy(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BadImage, match="8- or 16-bit"):
        read(tmp_path / "a.tif")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="does not exist"):
        read(tmp_path / "nothing.png")
    with pytest.raises(BadImage, match="is a folder"):
        read(tmp_path)
    with pytest.raises(BadImage, match="no picture"):
        find_pictures([tmp_path])


def test_find_pictures_sorts_and_descends_only_when_asked(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "sub/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(r) for _, r in find_pictures([tmp_path])] == ["a.JPG", "b.png"]
    assert [r.as_posix() for _, r in find_pictures([tmp_path], recursive=True)] == ["a.JPG", "b.png", "sub/c.webp"]
    assert find_pictures([tmp_path / "notes.txt"]) == [(tmp_path / "notes.txt", Path("notes.txt"))]


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"mine")
    picture = Picture(torch.zeros(1, 3, 4, 4))
    with pytest.raises(BadImage, match="exists already"):
        write(file, picture)
    assert file.read_bytes() == b"mine"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(file, picture, overwrite=True)
    assert file.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [file]
    write(file, picture, overwrite=True)
    assert file.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [file]


def test_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="NaN"):
        write(tmp_path / "a.png", Picture(torch.full((1, 3, 4, 4), float("nan"))))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadImage, match="cannot be made"):
        write_bytes(tmp_path / "file" / "sub" / "a.png", b"x")


def test_an_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="written as"):
        write(tmp_path / "a.xyz", Picture(torch.zeros(1, 3, 4, 4)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_colour_tiff_is_turned_once(tmp_path: Path, orientation: int) -> None:
    colour = RNG.integers(0, 65536, (6, 9, 3), dtype=np.uint16)
    data = cv2.imencode(".tif", colour)[1].tobytes()
    order = "<" if data[:2] == b"II" else ">"
    start = struct.unpack_from(order + "I", data, 4)[0]
    count = struct.unpack_from(order + "H", data, start)[0]
    entries = [data[start + 2 + 12 * n :][:12] for n in range(count)]
    entries = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] != 274]
    entries.append(struct.pack(order + "HHIHH", 274, 3, 1, orientation, 0))
    entries.sort(key=lambda entry: struct.unpack_from(order + "H", entry)[0])
    patched = bytearray(data + b"\0" * (len(data) % 2))
    struct.pack_into(order + "I", patched, 4, len(patched))
    patched += struct.pack(order + "H", len(entries)) + b"".join(entries) + struct.pack(order + "I", 0)
    (tmp_path / "a.tif").write_bytes(patched)
    stored = colour[:, :, ::-1]
    wanted = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1), 7: stored.transpose(1, 0, 2)[::-1, ::-1], 8: np.rot90(stored, 1),
    }[orientation]  # fmt: skip
    picture = read(tmp_path / "a.tif")
    assert picture.bits == 16
    np.testing.assert_array_equal(levels(picture, 65535), wanted)


def test_an_animation_that_plays_once_stays_so(tmp_path: Path) -> None:
    first, *others = frames(3)
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=40)
    picture = read(tmp_path / "a.gif")
    assert picture.loop is None
    for name in ("b.gif", "b.png", "b.webp"):
        write(tmp_path / name, picture)
        assert read(tmp_path / name).loop is None
    with Image.open(tmp_path / "b.gif") as back:
        assert "loop" not in back.info


def test_rounds_are_counted_as_each_format_does(tmp_path: Path) -> None:
    first, *others = frames(3)
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=40, loop=3)  # 3 rounds after the first
    picture = read(tmp_path / "a.gif")
    for name, count in (("b.gif", 3), ("b.png", 4), ("b.webp", 4)):
        write(tmp_path / name, picture)
        with Image.open(tmp_path / name) as back:
            assert back.info["loop"] == count
        assert read(tmp_path / name).loop == 3
    write(tmp_path / "c.webp", replace(picture, loop=0))
    assert read(tmp_path / "c.webp").loop == 0


def test_a_tiff_without_a_resolution_gets_none(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif").dpi is None
    Image.fromarray(COLOURS).save(tmp_path / "b.tif", dpi=(300, 300))
    assert read(tmp_path / "b.tif").dpi == (300, 300)


@pytest.mark.parametrize("chunk", [b"IDAT", b"fdAT"])
def test_a_png_whose_pixels_are_torn_is_told(tmp_path: Path, chunk: bytes) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2, 40, 40, 3), np.uint8)
    first, second = map(Image.fromarray, noise)
    first.save(tmp_path / "a.png", save_all=True, append_images=[second], compress_level=0)
    data = bytearray((tmp_path / "a.png").read_bytes())
    assert len(read(tmp_path / "a.png").frames) == 2
    data[data.index(chunk) + 1000] ^= 1
    (tmp_path / "b.png").write_bytes(data)
    with pytest.raises(BadImage, match="damaged or truncated .*checksum"):
        read(tmp_path / "b.png")


def test_the_poster_of_an_apng_stays_out_of_the_animation(tmp_path: Path) -> None:
    first, *others = frames(4)
    first.save(tmp_path / "a.png", save_all=True, append_images=others, default_image=True, duration=[40, 50, 60])
    picture = read(tmp_path / "a.png")
    assert picture.poster and picture.durations == (40, 50, 60) and len(picture.frames) == 4
    write(tmp_path / "b.png", replace(picture, exif=exif(1).tobytes()))
    with Image.open(tmp_path / "b.png") as back:
        assert back.default_image and back.n_frames == 4 and back.getexif()[0x010F] == "Maker"
    write(tmp_path / "b.gif", picture)
    with Image.open(tmp_path / "b.gif") as back:
        assert back.n_frames == 3


def test_what_exif_says_of_the_stored_pixels_is_left_out(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.tif", exif=exif(6).tobytes())
    write(tmp_path / "b.png", read(tmp_path / "a.tif"))
    with Image.open(tmp_path / "b.png") as back:
        assert set(back.getexif()) == {0x0112, 0x010F, 0x8769}


XMP = (b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6" dc:creator="Ann"/>'
       b'</rdf:RDF></x:xmpmeta>')  # fmt: skip


def xmp_of(file: Path) -> bytes:
    data = file.read_bytes()
    start = data.index(b"<x:xmpmeta")
    return data[start : data.index(b"</x:xmpmeta>") + 12]


@pytest.mark.parametrize("target", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("source", [".png", ".jpg", ".webp", ".tif"])
def test_xmp_goes_along_with_the_orientation_of_the_result(tmp_path: Path, source: str, target: str) -> None:
    file = tmp_path / f"a{source}"
    if source == ".png":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        Image.fromarray(COLOURS).save(file, pnginfo=info)
    elif source == ".jpg":
        Image.fromarray(COLOURS).save(file)
        file.write_bytes(with_jpeg_xmp(file.read_bytes(), XMP))
    elif source == ".tif":
        Image.fromarray(COLOURS).save(file, tiffinfo={700: XMP})
    else:
        Image.fromarray(COLOURS).save(file, xmp=XMP)
    write(tmp_path / f"b{target}", read(file))
    assert xmp_of(tmp_path / f"b{target}") == XMP.replace(b'"6"', b'"1"')
    with Image.open(tmp_path / f"b{target}") as back:
        back.load()
        assert back.size == (6, 9)  # turned: readers honour an orientation that stands in XMP alone


@pytest.mark.parametrize("bits", [8, 16])
def test_texts_and_colorimetry_of_a_png_go_along(tmp_path: Path, bits: int) -> None:
    texts = {"parameters": "a face, steps 20", "Comment": "Grüße", "Title": "写真"}
    chromaticity = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)  # Adobe RGB's
    notes = Notes(texts=tuple(texts.items()), gamma=0.45455, chromaticity=chromaticity)
    picture = Picture(torch.rand(1, 3, 6, 9), bits=bits, notes=notes)
    for name in ("a.png", "b.png"):  # the second one from what was read of the first
        write(tmp_path / name, picture)
        picture = read(tmp_path / name)
        with Image.open(tmp_path / name) as back:
            back.load()
            assert back.text == texts and back.info["gamma"] == pytest.approx(0.45455)
            assert back.info["chromaticity"] == pytest.approx(chromaticity)
            assert picture.bits == bits
    write(tmp_path / "c.jpg", picture)
    with Image.open(tmp_path / "c.jpg") as back:
        assert back.info["comment"].decode() == "Grüße"


def test_the_comment_of_a_jpeg_goes_along(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", comment=b"scanned by Ann")
    picture = read(tmp_path / "a.jpg")
    write(tmp_path / "b.jpg", picture)
    write(tmp_path / "b.png", picture)
    assert Image.open(tmp_path / "b.jpg").info["comment"] == b"scanned by Ann"
    assert Image.open(tmp_path / "b.png").text == {"Comment": "scanned by Ann"}


def test_sizes_in_exif_are_those_of_the_result(tmp_path: Path) -> None:
    tags = exif(6, {0xA002: 4000, 0xA003: 3000})
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", exif=tags)
    for name in ("b.png", "b.jpg", "b.webp"):
        write(tmp_path / name, read(tmp_path / "a.jpg"))
        detail = Image.open(tmp_path / name).getexif().get_ifd(0x8769)
        assert (detail[0xA002], detail[0xA003]) == (6, 9) and detail[0x9003] == "2001:02:03 04:05:06"


def test_exif_that_a_jpeg_cannot_hold_loses_its_largest_entries(tmp_path: Path) -> None:
    tags = exif(1, {0x927C: bytes(70000), 0x9286: b"ASCII\0\0\0" + b"x" * 9000})
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=tags)
    picture = read(tmp_path / "a.png")
    write(tmp_path / "b.jpg", picture)
    write(tmp_path / "b.png", picture)
    kept = Image.open(tmp_path / "b.jpg").getexif()
    assert kept[0x010F] == "Maker" and 0x927C not in kept.get_ifd(0x8769) and len(kept.get_ifd(0x8769)[0x9286]) == 9008
    assert len(Image.open(tmp_path / "b.png").getexif().get_ifd(0x8769)[0x927C]) == 70000


def test_notes_that_no_segment_holds_do_not_cost_the_picture(tmp_path: Path) -> None:
    notes = Notes(xmp=XMP + bytes(70000), comment=b"c" * 70000)
    write(tmp_path / "a.jpg", Picture(torch.rand(1, 3, 6, 9), notes=notes))
    with Image.open(tmp_path / "a.jpg") as back:
        back.load()
        assert back.size == (9, 6) and len(back.info["comment"]) == 60000


def test_a_broken_orientation_does_not_lose_the_picture(tmp_path: Path) -> None:
    tags = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHI4sI", 1, 0x0112, 2, 4, b"abc\0", 0)  # a text
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=tags)
    np.testing.assert_array_equal(levels(read(tmp_path / "a.png")), COLOURS)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory"), OSError("out of memory")])
def test_lack_of_memory_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    monkeypatch.setattr("idcodeformer.files.reading._eight_bit", fail)
    with pytest.raises(BadImage, match="does not fit into memory"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("top", [255, 65535])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_strips_join_to_the_whole_picture(monkeypatch: pytest.MonkeyPatch, orientation: int, top: int) -> None:
    monkeypatch.setattr(pixels, "_STRIP", 18)  # two rows of nine
    stored = RNG.integers(0, top + 1, (7, 9, 4), dtype=np.uint8 if top == 255 else np.uint16)
    wanted = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1), 7: stored.transpose(1, 0, 2)[::-1, ::-1], 8: np.rot90(stored, 1),
    }[orientation]  # fmt: skip
    frame = pixels.planes(lambda a, b: stored[a:b], 7, 9, 4, top, orientation)
    assert frame.is_contiguous() and float(frame.max()) <= 1
    np.testing.assert_array_equal(pixels.to_levels(frame[0, :3], top, alpha=frame[0, 3:]), wanted)
    if top == 255:
        for channels, mode in ((1, "L"), (3, "RGB")):
            image = pixels.to_image(frame[0, :channels])
            assert image.mode == mode
            np.testing.assert_array_equal(np.atleast_3d(np.asarray(image)), wanted[:, :, :channels])
        np.testing.assert_array_equal(np.asarray(pixels.to_image(frame[0, :3], frame[0, 3:])), wanted)


def test_of_a_file_of_several_pictures_the_first_is_read_and_the_rest_told(tmp_path: Path) -> None:
    """As phones write a JPEG with its gain map, and stereo cameras an MPO."""
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ((200, 40, 40), (40, 40, 200)))
    for name in ("phone.jpg", "stereo.mpo"):
        first.save(tmp_path / name, "MPO", save_all=True, append_images=[second])
        picture = read(tmp_path / name)
        assert picture.frames.shape == (1, 3, 30, 40)
        assert (picture.frames.mean((2, 3))[0] * 255 - torch.tensor([200.0, 40, 40])).abs().max() < 3
        assert picture.left_out.startswith("1 more picture in the file") and not picture.durations
    first.save(tmp_path / "plain.jpg")
    assert read(tmp_path / "plain.jpg").left_out == ""
    assert [file.name for file, _ in find_pictures([tmp_path])] == ["phone.jpg", "plain.jpg", "stereo.mpo"]


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_8_bit_files_can_stay_levels(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "rgb.png", exif=exif)
    Image.fromarray(COLOURS[:, :, 0]).save(tmp_path / "gray.png")
    alpha = RNG.integers(1, 256, COLOURS.shape[:2], dtype=np.uint8)
    Image.fromarray(np.dstack([COLOURS, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(COLOURS).convert("CMYK").save(tmp_path / "cmyk.jpg")
    for file in sorted(tmp_path.iterdir()):
        plain, levels = read(file), read(file, levels=True)
        assert levels.frames.dtype == torch.uint8 and plain.frames.dtype == torch.float32
        assert torch.equal(levels.frames.float() / 255, plain.frames)
        written = [write(tmp_path / "out.png", one, overwrite=True).read_bytes() for one in (plain, levels)]
        assert written[0] == written[1]
        (tmp_path / "out.png").unlink()


def test_what_has_no_8_bit_levels_is_read_as_floats(tmp_path: Path) -> None:
    """Hidden pixels are filled with colours between levels; 16 bits and animations stay as they were."""
    hidden = np.dstack([COLOURS, np.full(COLOURS.shape[:2], 255, np.uint8)])
    hidden[2:4, 3:5, 3] = 0
    Image.fromarray(hidden).save(tmp_path / "hidden.png")
    cv2.imwrite(str(tmp_path / "deep.png"), COLOURS.astype(np.uint16) * 200)
    frames = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    for name in ("hidden.png", "deep.png", "moving.gif"):
        plain, levels = read(tmp_path / name), read(tmp_path / name, levels=True)
        assert levels.frames.dtype == torch.float32 and torch.equal(levels.frames, plain.frames)
