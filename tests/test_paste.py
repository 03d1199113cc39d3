"""Pasting: to the pixel centre, at every size, in any order, with every mask."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from idcodeformer.compositing import blend as paste_module
from idcodeformer.compositing import masks
from idcodeformer.compositing.blend import paste
from idcodeformer.compositing.plan import Region, overlap, plan_paste
from idcodeformer.errors import BadImage, BadOption
from idcodeformer.geometry.alignment import align
from idcodeformer.geometry.templates import ffhq_template
from idcodeformer.restoration.tone import is_monochrome, match_gray
from idcodeformer.types import Crops, Face, RestoreOptions, empty_crops


def face(x: float, y: float, side: float, degrees: float = 0.0) -> Face:
    """A face whose crop is a square of ``side`` px around (x, y)."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    points = torch.tensor((ffhq_template(512) - 255.5) * side / 512) @ turn
    landmarks = (points + torch.tensor([x, y])).float()
    return Face(torch.tensor([x - side / 4, y - side / 4, x + side / 4, y + side / 4]), 0.9, landmarks)


def picture(height: int, width: int, coarse: int = 12, seed: int = 0) -> Tensor:
    """Smooth colours [3,H,W]; the larger ``coarse``, the smoother."""
    noise = torch.rand(1, 3, height // coarse + 2, width // coarse + 2, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)[0]


def waves(u: Tensor, v: Tensor) -> Tensor:
    """A colour for every point of the picture, smooth enough to be sampled anywhere."""
    return torch.stack([0.5 + 0.4 * torch.sin(u / 9 + k) * torch.cos(v / 11 - k) for k in range(3)])


def crops_of(image: Tensor, *faces: Face, size: int = 64) -> Crops:
    return align([image], [faces], size)


def rendered(matrix: Tensor, size: int) -> Tensor:
    """``waves`` of the picture as an ideal crop sees it."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    linear = torch.linalg.inv(matrix[:, :2].double())
    points = (torch.stack([x, y], -1).double() - matrix[:, 2].double()) @ linear.T
    return waves(points[..., 0], points[..., 1]).float()


# ---------------------------------------------------------------- geometry


@pytest.mark.parametrize("upscale", [1, 1.5, 2, 2.7, 4])
@pytest.mark.parametrize("degrees", [0, 33, 180])
def test_every_pixel_lies_where_it_belongs(upscale, degrees):
    """An ideal crop of a known picture comes out as that picture, sampled at the output's pixel centres.

    Half an output pixel off, as the reference is above 1, would err by 0.02 on average: ten times the tolerance.
    """
    image = torch.zeros(3, 90, 100)
    crops = crops_of(image, face(48.3, 44.6, 80, degrees), size=256)
    restored = rendered(crops.matrices[0], 256)[None]
    (out,), (mask,) = paste([image], crops, restored, RestoreOptions(upscale=upscale))
    height, width = out.shape[1:]
    v = (torch.arange(height) + 0.5) * 90 / height - 0.5
    u = (torch.arange(width) + 0.5) * 100 / width - 0.5
    truth = waves(u[None], v[:, None])
    inside = (mask > 0.999).expand_as(out)
    error = (out - truth).abs()[inside]
    assert inside.float().mean() > 0.3
    assert error.mean() < 0.002
    assert error.max() < 0.01


@pytest.mark.parametrize("upscale", [0.3, 0.5, 1, 1.25, 1.37, 2, 3.999])
@pytest.mark.parametrize("size", [(1, 1), (37, 53), (120, 64)])
def test_output_has_exactly_the_size_asked_for(upscale, size):
    image = picture(*size)
    faces = [face(size[1] / 2, size[0] / 2, 30)] if min(size) > 1 else []
    crops = crops_of(image, *faces)
    (out,), (mask,) = paste([image], crops, crops.pixels, RestoreOptions(upscale=upscale))
    expected = max(1, round(size[0] * upscale)), max(1, round(size[1] * upscale))
    assert tuple(out.shape) == (3, *expected)
    assert tuple(mask.shape) == (1, *expected)


def test_shrinking_faces_are_antialiased():
    """A fine checkerboard becomes its mean, not a pattern."""
    image = torch.zeros(3, 80, 80)
    crops = crops_of(image, face(40, 40, 60, 7), size=512)
    board = ((torch.arange(512)[:, None] // 2 + torch.arange(512) // 2) % 2).float().expand(1, 3, 512, 512)
    (out,), (mask,) = paste([image], crops, board)
    values = out[(mask > 0.999).expand_as(out)]
    assert (values - 0.5).abs().max() < 0.06


def test_face_outside_the_picture_changes_nothing():
    image = picture(60, 60)
    crops = crops_of(image, face(-200, -200, 50), face(30, -25.4, 50))
    (out,), (mask,) = paste([image], crops, 1 - crops.pixels)
    assert mask[:, 10:].max() == 0
    torch.testing.assert_close(out[:, 10:], image[:, 10:])


def test_face_larger_than_the_picture_and_tiles(monkeypatch):
    """What is blended in tiles is what is blended at once."""
    image = picture(70, 90)
    crops = crops_of(image, face(45, 35, 200, 20), face(30, 30, 60))
    (once,), (mask,) = paste([image], crops, 1 - crops.pixels, RestoreOptions(upscale=2))
    monkeypatch.setattr(paste_module, "_TILE", 1000)
    (tiled,), (mask_tiled,) = paste([image], crops, 1 - crops.pixels, RestoreOptions(upscale=2))
    torch.testing.assert_close(tiled, once, atol=1e-5, rtol=0)
    torch.testing.assert_close(mask_tiled, mask, atol=1e-5, rtol=0)


def test_pasting_twice_gives_the_same():
    """The reference moves faces on the second call: it changes its matrices in place."""
    image = picture(100, 100)
    crops = crops_of(image, face(50, 50, 60))
    before = image.clone(), crops.matrices.clone(), crops.pixels.clone()
    first = paste([image], crops, 1 - crops.pixels, RestoreOptions(upscale=2))[0][0]
    second = paste([image], crops, 1 - crops.pixels, RestoreOptions(upscale=2))[0][0]
    assert torch.equal(first, second)
    for kept, now in zip(before, (image, crops.matrices, crops.pixels)):
        assert torch.equal(kept, now)


# ---------------------------------------------------------------- the untouched crop


@pytest.mark.parametrize("upscale", [0.5, 1, 1.37, 2])
@pytest.mark.parametrize("coarse", [1, 3, 12])
def test_untouched_crop_reproduces_the_image(upscale, coarse):
    """Within a 255th of what resizing alone gives, white noise (coarse=1) included."""
    image = picture(120, 150, coarse)
    crops = crops_of(image, face(60, 60, 80, 10), face(110, 70, 60, -40))
    options = RestoreOptions(upscale=upscale)
    (out,), (mask,) = paste([image], crops, crops.pixels, options)
    (expected,), _ = paste([image], empty_crops(64, crops.image_sizes), torch.zeros(0, 3, 64, 64), options)
    assert mask.max() > 0.99
    assert (out - expected).abs().max() <= 1 / 255


def test_untouched_crop_in_8_bit_reproduces_the_image():
    image = picture(120, 150, 3)
    crops = crops_of(image, face(60, 60, 80, 10))
    (out,), _ = paste([image], crops, (crops.pixels * 255).round() / 255)
    assert (out - image).abs().max() <= 1 / 255


def test_restored_face_keeps_nothing_of_the_input():
    """Noise of the input that the crop could not hold must not come back once the face is restored."""
    noisy = torch.rand(3, 200, 200, generator=torch.Generator().manual_seed(0))
    crops = crops_of(noisy, face(100, 100, 150), size=64)
    flat = torch.full_like(crops.pixels, 0.5)
    (out,), (mask,) = paste([noisy], crops, flat)
    inside = (mask > 0.9999).expand_as(out)
    assert (out[inside] - 0.5).abs().max() < 1e-3


def test_the_plain_blend_alone_is_close():
    """What sampling there and back costs where a face did change: under two grey levels on smooth pictures."""
    image = picture(160, 160, 24)
    crops = crops_of(image, face(80, 80, 100, 15), size=128)
    inverted = 1 - paste([1 - image], crops.with_pixels(crops.pixels), 1 - crops.pixels)[0][0]
    assert (inverted - image).abs().max() < 2 / 255


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("side", [4, 6, 10, 19, 25, 60, 200])
def test_feather_at_every_size(side):
    """Nothing at the border of the crop, everything in the middle, and no hard step in between, tiny faces included."""
    image = torch.zeros(3, 260, 260)
    crops = crops_of(image, face(130, 130, side))
    (_,), (mask,) = paste([image], crops, torch.ones_like(crops.pixels))
    assert mask[0, 130, 130] > 0.7
    start = int(129.5 - side / 2)
    assert mask[0, 130, : start + 1].max() < 0.3
    row = mask[0, 130]
    assert (row[1:] - row[:-1]).abs().max() < 0.75
    assert ((row > 0.02) & (row < 0.98)).sum() >= 2


def test_feather_is_a_twentieth_of_the_side():
    image = torch.zeros(3, 600, 600)
    crops = crops_of(image, face(299.5, 299.5, 400))
    (_,), (mask,) = paste([image], crops, torch.ones_like(crops.pixels))
    row = mask[0, 300, 100:300]  # from the crop's border inwards
    assert row[20] == pytest.approx(0.5, abs=0.05)
    assert row[0] < 0.01
    assert row[42] > 0.99


def test_strength_scales_the_mask():
    image = picture(100, 100)
    crops = crops_of(image, face(40, 50, 60), face(60, 50, 60))
    white = torch.ones_like(crops.pixels)
    (full,), (mask,) = paste([image], crops, white)
    (half,), (half_mask,) = paste([image], crops, white, RestoreOptions(strength=0.5))
    torch.testing.assert_close(half_mask, mask / 2)
    torch.testing.assert_close(half, (full + image) / 2, atol=1e-5, rtol=0)
    (none,), (no_mask,) = paste([image], crops, white, RestoreOptions(strength=0))
    assert torch.equal(none, image)
    assert no_mask.max() == 0


@pytest.mark.parametrize("shape", [(100, 100), (1, 100, 100), (50, 50)])
def test_user_mask_limits(shape):
    image = picture(100, 100)
    crops = crops_of(image, face(50, 50, 70))
    user = torch.zeros(shape)
    user[..., : shape[-1] // 2] = 1
    (out,), (mask,) = paste([image], crops, 1 - crops.pixels, user_masks=[user])
    assert mask[..., 53:].max() == 0
    assert torch.equal(out[..., 53:], image[..., 53:])
    assert mask[..., 30:47].max() > 0.99
    (_,), (free,) = paste([image], crops, 1 - crops.pixels, user_masks=[None])
    assert (mask <= free + 1e-6).all()


def test_parsing_limits_to_the_chosen_classes():
    """Left half skin, right half hair: hair is pasted by default, and not without its class."""
    labels = torch.ones(1, 128, 128, dtype=torch.uint8)
    labels[..., 64:] = 13
    image = torch.zeros(3, 200, 200)
    crops = crops_of(image, face(99.5, 99.5, 128), size=128)
    white = torch.ones_like(crops.pixels)
    (_,), (all_of_it,) = paste([image], crops, white, parser=lambda pixels: labels)
    (_,), (no_hair,) = paste([image], crops, white, RestoreOptions(parse_classes=(1, 2)), lambda pixels: labels)
    assert all_of_it[0, 100, 130] > 0.99
    assert no_hair[0, 100, 130] < 0.01
    assert no_hair[0, 100, 70] > 0.99
    assert no_hair[0, 100, 100] == pytest.approx(0.5, abs=0.1)


# ---------------------------------------------------------------- overlapping faces


def test_order_does_not_matter():
    image = picture(120, 160)
    faces = [face(60, 60, 70, 10), face(85, 62, 60, -20), face(100, 50, 80), face(20, 100, 30)]
    results = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0]):
        crops = crops_of(image, *(faces[i] for i in order))
        colours = torch.stack([torch.full((3, 64, 64), 0.2 * (i + 1)) for i in order])
        results.append(paste([image], crops, colours, RestoreOptions(upscale=1.5, strength=0.8)))
    for (out,), (mask,) in results[1:]:
        torch.testing.assert_close(out, results[0][0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(mask, results[0][1][0], atol=1e-5, rtol=0)


def test_each_face_is_its_own_where_crops_overlap():
    """At the centre of a face its own crop counts most, not the neighbour's view of it, which a plain mean would be."""
    image = torch.zeros(3, 120, 160)
    crops = crops_of(image, face(60, 60, 80), face(84, 60, 80))
    colours = torch.stack([torch.full((3, 64, 64), 0.25), torch.full((3, 64, 64), 0.75)])
    (out,), (mask,) = paste([image], crops, colours)
    assert out[0, 60, 60] < 0.34
    assert out[0, 60, 84] > 0.66
    assert out[0, 60, 72] == pytest.approx(0.5, abs=0.02)
    assert mask.max() <= 1


def test_distant_faces_are_not_grouped():
    image = torch.zeros(3, 100, 300)
    crops = crops_of(image, face(50, 50, 60), face(150, 50, 60), face(175, 50, 60), face(260, 50, 40))
    groups = plan_paste(crops).groups[0]
    assert sorted(len(group.regions) for group in groups) == [1, 1, 2]


def test_several_images_of_any_size():
    images = [picture(60, 80), picture(100, 50, seed=1), picture(40, 40, seed=2)]
    faces = [(face(40, 30, 40),), (), (face(20, 20, 30), face(10, 10, 12))]
    crops = align(images, faces, 64)
    outs, masks = paste(images, crops, 1 - crops.pixels)
    assert [tuple(o.shape[1:]) for o in outs] == [(60, 80), (100, 50), (40, 40)]
    assert [float(m.max()) > 0.9 for m in masks] == [True, False, True]
    assert torch.equal(outs[1], images[1])
    for image, here, out in zip(images, faces, outs):
        if here:
            alone = align([image], [here], 64)
            torch.testing.assert_close(paste([image], alone, 1 - alone.pixels)[0][0], out)


# ---------------------------------------------------------------- background


def test_background_from_an_upscaler():
    image = picture(40, 50)
    crops = crops_of(image, face(25, 20, 24))
    seen = []

    def upscaler(pixels):
        seen.append(tuple(pixels.shape))
        return torch.full((1, 3, pixels.shape[2] * 4, pixels.shape[3] * 4), 0.25)

    options = RestoreOptions(upscale=1.5)
    (out,), (mask,) = paste([image], crops, torch.ones_like(crops.pixels), options, background=upscaler)
    assert tuple(out.shape) == (3, 60, 75)
    assert seen == [(1, 3, 40, 50)]
    torch.testing.assert_close(out, 0.25 + 0.75 * mask.expand_as(out), atol=1e-3, rtol=0)


def test_face_upsample_sends_the_faces_too():
    image = picture(100, 100)
    crops = crops_of(image, face(50, 50, 60))
    seen = []

    def upscaler(pixels):
        seen.append(pixels.shape[-1])
        return F.interpolate(pixels, scale_factor=2, mode="bicubic").clamp(0, 1)

    restored = 1 - crops.pixels
    plain = paste([image], crops, restored, RestoreOptions(upscale=4), background=upscaler)[0][0]
    assert seen == [100]
    options = RestoreOptions(upscale=4, face_upsample=True)
    (finer,), (mask,) = paste([image], crops, restored, options, background=upscaler)
    assert seen[1:] == [100, 64]
    assert (finer - plain).abs().mean() < 0.01  # in the same place
    assert not torch.equal(finer, plain)


def test_given_backgrounds_are_kept_whole():
    image = picture(40, 40)
    background = torch.full((3, 80, 80), 0.5)
    crops = crops_of(image, face(20, 20, 20))
    (out,), (mask,) = paste([image], crops, 1 - crops.pixels, RestoreOptions(upscale=2), background=[background])
    assert background.eq(0.5).all()
    assert out[(mask == 0).expand_as(out)].eq(0.5).all()


# ---------------------------------------------------------------- what is refused


def test_mistakes_get_a_sentence():
    image = picture(40, 40)
    crops = crops_of(image, face(20, 20, 30))
    with pytest.raises(BadOption, match="2 images"):
        paste([image, image], crops, crops.pixels)
    with pytest.raises(BadImage, match="one per crop"):
        paste([image], crops, torch.zeros(2, 3, 64, 64))
    with pytest.raises(BadOption, match="mask of image 0"):
        paste([image], crops, crops.pixels, user_masks=[torch.zeros(2, 3, 4)])
    with pytest.raises(BadOption, match="2 masks for 1"):
        paste([image], crops, crops.pixels, user_masks=[None, None])
    with pytest.raises(BadImage, match="Backgrounds"):
        paste([image], crops, crops.pixels, RestoreOptions(upscale=2), background=[image])
    with pytest.raises(BadImage, match="upscaler returned"):
        paste([image], crops, crops.pixels, background=lambda pixels: pixels[0])
    singular = Crops(crops.pixels, torch.zeros(1, 2, 3), crops.image_index, crops.image_sizes)
    with pytest.raises(BadOption, match="face 0"):
        paste([image], singular, crops.pixels)


# ---------------------------------------------------------------- gray faces


def tinted(gray: Tensor, tone: tuple[float, float, float]) -> Tensor:
    return torch.stack([gray[:, 0] * t for t in tone], 1)


GRAY = picture(64, 64, 8)[None, :1]
COLOUR = picture(64, 64, 8, seed=3)[None]


@pytest.mark.parametrize(
    "crop,mono",
    [
        (GRAY.expand(1, 3, 64, 64), True),
        (tinted(GRAY, (1.0, 0.8, 0.55)), True),  # sepia, which the reference takes for coloured
        ((GRAY * 0.8 + torch.tensor([0.0, 20 / 255, 40 / 255])[:, None, None]), True),  # flat tint
        (COLOUR, False),
        (GRAY.expand(1, 3, 64, 64) * 0.9 + 0.1 * COLOUR, False),
    ],
)
def test_monochrome_is_told_from_the_face(crop, mono):
    assert bool(is_monochrome(crop)[0]) is mono


def test_gray_face_keeps_its_tone_and_is_clipped():
    sepia = tinted(GRAY, (1.0, 0.8, 0.55))
    contrast = (sepia - sepia.mean((2, 3), keepdim=True)) * 8 + sepia.mean((2, 3), keepdim=True)
    out = match_gray(COLOUR, contrast)
    assert out.min() >= 0 and out.max() <= 1  # the reference overflows here and writes a black picture
    out = match_gray(COLOUR, sepia)
    torch.testing.assert_close(out.mean((2, 3)), sepia.mean((2, 3)), atol=0.01, rtol=0)
    assert bool(is_monochrome(out)[0])


def test_gray_is_decided_face_by_face():
    before = torch.cat([GRAY.expand(1, 3, 64, 64), COLOUR])
    restored = torch.cat([COLOUR, COLOUR])
    out = match_gray(restored, before)
    assert bool(is_monochrome(out)[0])
    assert torch.equal(out[1], COLOUR[0])


def test_gray_modes():
    assert torch.equal(match_gray(COLOUR, GRAY.expand(1, 3, 64, 64), "off"), COLOUR)
    assert not torch.equal(match_gray(COLOUR, COLOUR, "force"), COLOUR)
    assert torch.equal(match_gray(COLOUR, COLOUR, "auto"), COLOUR)
    assert match_gray(COLOUR[:0], COLOUR[:0]).shape == (0, 3, 64, 64)


@pytest.mark.parametrize(
    ("corners", "area"),
    [
        ([(10, 10), (30, 10), (30, 30), (10, 30)], 400.0),  # inside: as it is
        ([(-10, -10), (10, -10), (10, 10), (-10, 10)], 10.5**2),  # a corner of the picture, whose edge is at -0.5
        ([(80, 20), (120, 20), (120, 40), (80, 40)], 19.5 * 20),  # over the right edge, at 99.5
        ([(20, 40), (40, 40), (40, 60), (20, 60)], 20 * 9.5),  # over the lower edge, at 49.5
        ([(9.5, 24.5), (49.5, -15.5), (89.5, 24.5), (49.5, 64.5)], 3200 - 2 * 225.0),  # a diamond without two tips
        ([(200, 200), (210, 200), (210, 210)], 0.0),
    ],
)
def test_polygons_are_clipped_to_the_pixels(corners, area):
    """A picture of 100 x 50."""
    from idcodeformer.compositing.plan import clip_to_picture, polygon_area

    clipped = clip_to_picture(np.array(corners, dtype=float), 100, 50)
    assert (polygon_area(clipped) if len(clipped) else 0.0) == pytest.approx(area)


@pytest.mark.parametrize(("change", "share"), [(0.0, 1.0), (1.0, 1.0), (1.5, 0.5), (2.0, 0.0), (2.5, 0.0)])
def test_what_counts_as_untouched_fades_out(change, share):
    """In units of half a grey level, on average: up to one untouched, from two on restored."""
    from idcodeformer.compositing.blend import _untouched

    before = torch.rand(3, 16, 16) / 2
    assert float(_untouched(before, before + change * 0.5 / 255)) == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("gray", [False, True])
def test_pasting_in_place_is_pasting(gray):
    image = picture(100, 120, coarse=3)
    image = image.mean(0).expand(3, -1, -1).clone() if gray else image  # monochrome faces get grain
    crops = crops_of(image, face(40, 50, 60), face(70, 50, 60))
    smooth = F.avg_pool2d(crops.pixels, 5, 1, 2)
    (wanted,), (mask,) = paste([image], crops, smooth)
    work = image.clone()
    (found,), (same_mask,) = paste([work], crops, smooth, in_place=True)
    assert found.data_ptr() == work.data_ptr() and not torch.equal(found, image)
    assert torch.equal(found, wanted) and torch.equal(same_mask, mask)
    assert torch.equal(found[:, mask[0] == 0], image[:, mask[0] == 0])
    before = image.clone()
    for other in (RestoreOptions(upscale=2), RestoreOptions()):
        paste([image], crops, smooth, other, in_place=other.upscale > 1)
        assert torch.equal(image, before)


@pytest.mark.parametrize("options", [RestoreOptions(), RestoreOptions(grain="on", strength=0.7),
                                     RestoreOptions(upscale=1.5)])  # fmt: skip
def test_levels_of_8_bits_are_pasted_into_as_floats_are(options):
    """Two faces that meet, one whose grain is looked for in their place, and one far away."""
    image = (picture(160, 300, coarse=3) * 255).round().byte()
    faces = [face(x, y, 60) for x, y in ((45, 60), (75, 60), (135, 80), (260, 110))]
    crops = crops_of(image.float() / 255, *faces)
    smooth = F.avg_pool2d(crops.pixels, 5, 1, 2)
    (wanted,), (mask,) = paste([image.float() / 255], crops, smooth, options)
    work = image.clone()
    (found,), (same_mask,) = paste([work], crops, smooth, options, in_place=True)
    assert torch.equal(same_mask, mask)
    if options.upscale != 1:
        assert torch.equal(found, wanted) and torch.equal(work, image)
        return
    assert found.dtype == torch.uint8 and found.data_ptr() == work.data_ptr() and not torch.equal(found, image)
    assert torch.equal(found, (wanted * 255).round().byte())
    before = image.clone()
    assert torch.equal(paste([image], crops, smooth, options)[0][0], found) and torch.equal(image, before)


# ---------------------------------------------------------------- figures of masks and plans


def placed(visible: float, degrees: float = 0.0, density: float = 1.0) -> Region:
    c, s = density * math.cos(math.radians(degrees)), density * math.sin(math.radians(degrees))
    return Region(0, (0, 0, 1, 1), (c, s, 0.0, -s, c, 0.0), density, visible)


@pytest.mark.parametrize(
    ("visible", "upscale", "degrees", "margin", "width"),
    [
        (200, 1, 0, 10, 10),  # a twentieth of the side
        (200, 0.5, 0, 10, 10),
        (200, 4, 0, 13, 10),  # and what an input pixel at the border reaches once it is enlarged
        (200, 40, 0, 22.5, 10),  # but a sixteenth at most
        (200, 1, 45, 10 * 2**0.5, 10),
        (19, 1, 0, 1, 1),
        (6, 1, 0, 0.5, 0.5),  # tiny faces keep a soft edge
    ],
)
def test_the_soft_edge_is_as_wide_as_the_face_is_large(visible, upscale, degrees, margin, width):
    for density in (1.0, 2.5):
        assert masks.feather(placed(visible, degrees, density), upscale) == pytest.approx((margin, width))


def test_the_soft_edge_is_a_gaussian_cut_off_at_the_border():
    """40 output px over 512 crop px: 2 px to either side of its middle, which lies 2 px inside."""
    mask, px = masks.soft_square(placed(40, density=12.8), 512, 1.0, 512), 12.8
    row = mask[256]
    assert torch.equal(mask, mask.T) and torch.allclose(row, row.flip(0), atol=1e-6)
    assert 0 <= row[0] < 0.004 and row[1] > 0 and row[round(4 * px)] == 1 > row[round(3.9 * px)]  # no seam
    at = [float(row[round((2 + x) * px - 0.5)]) for x in (-1, -0.25, 0, 0.25, 1)]
    assert at[2] == pytest.approx(0.5, abs=0.02) and at[0] + at[4] == pytest.approx(1, abs=0.03)
    whole, cut = math.erf(1 / (1.1 * 2**0.5)), math.erf(2 / (1.1 * 2**0.5))  # OpenCV's sigma for 5 px
    assert at[4] - at[0] == pytest.approx(whole / cut, abs=0.02)
    assert float(mask[26, 26]) == pytest.approx(float(row[26]) ** 2, rel=1e-5)


def test_a_users_mask_counts_between_0_and_1():
    assert masks.user_mask(torch.tensor([[3.0, 0.25, -2.0]]), (1, 3), 0).tolist() == [[[1.0, 0.25, 0.0]]]


def test_a_plan_knows_what_of_a_face_the_picture_shows():
    """A crop of 60 px around the corner of the pixel at the origin: a quarter of it lies in the picture."""
    crops = crops_of(torch.zeros(3, 90, 100), face(-0.5, -0.5, 60))
    (group,) = plan_paste(crops).groups[0]
    (region,) = group.regions
    assert region.box == group.box == (0, 0, 30, 30)
    assert region.visible == pytest.approx(30, abs=0.01) and region.density == pytest.approx(64 / 60, abs=1e-4)
    (group,) = plan_paste(crops, 2.0).groups[0]
    assert group.box == (0, 0, 60, 60) and group.regions[0].visible == pytest.approx(60, abs=0.02)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_groups_grow_until_their_boxes_meet_no_other(order):
    """The third face meets neither of the others, but the box around both."""
    places = [(20, 20, 30), (50, 50, 40), (62, 12, 14)]
    crops = crops_of(torch.zeros(3, 120, 200), *(face(*places[n]) for n in order), face(170, 60, 30))
    near, far = sorted(plan_paste(crops).groups[0], key=lambda group: -len(group.regions))
    assert len(near.regions) == 3 and len(far.regions) == 1
    boxes = torch.tensor([region.box for region in near.regions])
    assert near.box == (*boxes[:, :2].amin(0).tolist(), *boxes[:, 2:].amax(0).tolist())
    assert overlap((0, 0, 4, 4), (4, 0, 8, 4)) is None and overlap((0, 0, 4, 4), (3, 1, 8, 9)) == (3, 1, 4, 4)
