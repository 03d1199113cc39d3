"""Faces larger than the network are not softened in silence."""
from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from idcodeformer.batch import RestoreJob, RestoreSettings
from idcodeformer.errors import BadOption
from idcodeformer.files.pixels import to_image
from idcodeformer.files.reading import Picture, decode, read
from idcodeformer.geometry.templates import ffhq_template
from idcodeformer.pipeline import FacePipeline
from idcodeformer.restoration.large import SHARP, detail_to_lose, fine_detail, judge_large, judge_track
from idcodeformer.types import Face, Restoration, RestoreOptions

SIDE = 480  # px of a face in the pictures: 3.75 picture px per crop px of a 128-px network


class Soften:
    """A 128-px restorer that is seen in the broad colours too: it blurs and brightens."""

    size = 128

    def __call__(self, pixels: Tensor, options=None, progress=None) -> Tensor:
        return (F.avg_pool2d(F.pad(pixels, (3, 3, 3, 3), mode="replicate"), 7, 1) + 0.1).clamp(0, 1)


@pytest.fixture(scope="module")
def sharp(photos: Path) -> Tensor:
    return read(photos / "portrait.jpg").frames


def resized(image: Tensor, side: int) -> Tensor:
    return F.interpolate(image, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


def blurred(image: Tensor, times: int) -> Tensor:
    return resized(resized(image, image.shape[-1] // times), image.shape[-1])


def restored(image: Tensor, mode: str, side: float = SIDE, upscale: float = 1.0) -> Restoration:
    middle = (image.shape[-1] - 1) / 2
    points = torch.tensor((ffhq_template(512) - 255.5) * side / 512 + middle).float()
    face = Face(torch.tensor([middle - 90, middle - 90, middle + 90, middle + 90]), 0.9, points)
    options = RestoreOptions(large_faces=mode, colour="off", upscale=upscale)
    return FacePipeline(Soften())(image, options, faces=[(face,)])


def fine(image: Tensor) -> float:
    """rms of what no 128-px crop of these faces holds, in the middle of the picture."""
    lost = image - resized(resized(image[None], image.shape[-1] * 128 // SIDE), image.shape[-1])[0]
    return float(lost[:, 200:400, 200:400].square().mean().sqrt())


def test_detail_is_seen_through_noise(sharp: Tensor) -> None:
    crops = torch.cat([resized(blurred(sharp, times), 128) for times in (1, 2, 12, 24)])
    clean = fine_detail(crops)
    assert clean[0] > 1.5 * SHARP and clean[2] < SHARP and (clean[:-1] > clean[1:]).all()
    noise = torch.randn(4, 1, 128, 128, generator=torch.Generator().manual_seed(0)) * 10 / 255
    noisy = fine_detail(crops * 0.8 + 0.1 + noise) / torch.tensor([0.8, 0.8, 1, 1])
    assert noisy[0] > SHARP > noisy[2] and noisy[3] < SHARP  # taken for detail the noise, of 0.039, would decide
    torch.testing.assert_close(noisy[:2], clean[:2], atol=0.004, rtol=0)


def test_a_sharp_large_face_stays_and_the_report_names_the_file(sharp: Tensor) -> None:
    result = restored(sharp, "auto")
    assert torch.equal(result.images[0], sharp[0]) and not result.masks[0].any() and not len(result.crops_out)
    (line,) = result.report
    assert line.status == "skipped" and line.crop is None and line.id_sim_input is None
    assert "480 px" in line.reason and "128 px" in line.reason
    assert "codeformer.pth" in line.reason and "facerestore_models" in line.reason


def test_a_dim_picture_is_judged_by_its_contrast(sharp: Tensor) -> None:
    assert restored(sharp * 0.25 + 0.1, "auto").report[0].status == "skipped"
    assert restored(blurred(sharp, 12) * 0.25 + 0.1, "auto").report[0].status == "restored"


def test_a_blurred_large_face_is_restored_unless_all_are_left(sharp: Tensor) -> None:
    image = blurred(sharp, 12)
    assert restored(image, "auto").report[0].status == "restored"
    assert restored(image, "skip").report[0].status == "skipped"
    assert torch.equal(restored(image, "skip").images[0], image[0])


@pytest.mark.parametrize("ratio", [0.7, 1.0, 1.2, 1.35, 1.5])
def test_a_sharp_face_of_the_networks_size_stays_and_a_blurred_one_is_restored(sharp: Tensor, ratio: float) -> None:
    side = round(128 * ratio)
    image = resized(sharp, round(side * 600 / 360))
    (line,) = restored(image, "auto", side=side).report
    assert line.status == "skipped" and f"{side} px" in line.reason and "codeformer.pth" in line.reason
    assert ("as sharp" in line.reason) == (ratio <= 1.25)
    grain = torch.randn(image.shape, generator=torch.Generator().manual_seed(2)) / 255
    for bad in (blurred(image, 4), (image + 30 * grain).clamp(0, 1)):
        (line,) = restored(bad, "auto", side=side).report
        assert (line.status, line.reason) == ("restored", "")
    assert restored((image + 3 * grain).clamp(0, 1), "auto", side=side).report[0].status == "skipped"


def test_noise_is_no_reason_to_replace_a_large_face(sharp: Tensor) -> None:
    noise = torch.randn(sharp.shape, generator=torch.Generator().manual_seed(2)) * 30 / 255
    assert restored((sharp + noise).clamp(0, 1), "auto").report[0].status == "skipped"
    crops = resized(sharp, 128) + noise[..., :128, :128]
    assert detail_to_lose(crops, [1.2]) == 0 < SHARP < detail_to_lose(crops, [1.6])


def test_by_size_alone_only_larger_faces_are_told(sharp: Tensor) -> None:
    for mode in ("restore", "keep", "skip"):
        (line,) = restored(resized(sharp, 200), mode, side=160).report
        assert (line.status, line.reason) == ("restored", "")


@pytest.mark.parametrize("side", [56, 64, 80])
def test_a_small_face_that_shows_all_its_pixels_stays_and_is_told(sharp: Tensor, side: int) -> None:
    image = resized(sharp, round(side * 600 / 480))
    kept = restored(image, "auto", side=side)
    (line,) = kept.report
    assert line.status == "skipped" and f"sharp at its size ({side} px)" in line.reason and "upscale 2" in line.reason
    assert torch.equal(kept.images[0], image[0])
    dim = restored(image * 0.3 + 0.2, "auto", side=side)
    assert dim.report[0].status == "skipped"
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(3)) / 255
    soft = blurred(image, 2)
    for bad in (soft, soft + 6 * noise, soft + 10 * noise, blurred(image, 4), image + 40 * noise, image * 0 + 0.5):
        assert restored(bad.clamp(0, 1), "auto", side=side).report[0].status == "restored"
    for mode in ("restore", "skip", "keep"):
        assert restored(image, mode, side=side).report[0].status == "restored"


def jpeg(image: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    to_image(image[0]).save(buffer, "JPEG", quality=quality)
    return decode(buffer.getvalue(), "a.jpg").frames


@pytest.mark.parametrize("cut", [0, 3])
def test_a_small_face_in_jpeg_blocks_is_restored(sharp: Tensor, cut: int) -> None:
    image = resized(sharp, 100)
    for quality, status in ((95, "skipped"), (75, "skipped"), (15, "restored")):
        picture = jpeg(image, quality)[..., cut:, cut:]
        assert restored(picture, "auto", side=80).report[0].status == status


def test_an_enlarged_small_face_is_restored(sharp: Tensor) -> None:
    image = resized(sharp, 80)
    for upscale, status in ((0.5, "skipped"), (1.0, "skipped"), (1.5, "restored"), (2.0, "restored")):
        (line,) = restored(image, "auto", side=64, upscale=upscale).report
        assert line.status == status
    out, (line,) = FacePipeline(Soften()).restore_aligned(resized(sharp[..., 60:540, 60:540], 64))
    assert line.status == "restored" and out.shape[-1] == 128


def test_faces_too_small_or_of_other_networks_are_not_asked(sharp: Tensor) -> None:
    image = resized(sharp, 48)
    assert restored(image, "auto", side=38).report[0].status == "restored"  # 0.3 of the network's
    crops = resized(resized(sharp, 256), 512)
    assert judge_large(crops, [0.5], RestoreOptions()) == [None]


def test_a_small_sharp_face_of_a_clip_stays(sharp: Tensor) -> None:
    face = resized(sharp[..., 60:540, 60:540], 64)
    crops = resized(torch.cat([face, blurred(face, 2)]), 128).clamp(0, 1)
    clean, soft = detail_to_lose(crops, [0.5, 0.5]).tolist()
    told = judge_track(clean, 0.5, 128, RestoreOptions())
    assert told is not None and not told.kept and "(64 px)" in told.reason
    assert judge_track(soft, 0.5, 128, RestoreOptions()) is None
    assert judge_track(clean, 0.5, 128, RestoreOptions(upscale=2)) is None


def test_keep_changes_the_broad_band_and_leaves_the_detail(sharp: Tensor) -> None:
    replaced, kept = restored(sharp, "restore").images[0], restored(sharp, "keep")
    assert kept.report[0].status == "restored" and "under its own detail" in kept.report[0].reason
    assert fine(replaced) < 0.3 * fine(sharp[0]) and fine(kept.images[0]) > 0.9 * fine(sharp[0])
    middle = (slice(None), slice(200, 400), slice(200, 400))
    shift = (kept.images[0] - sharp[0])[middle].mean()
    assert abs(float(shift) - 0.1) < 0.02  # what the restorer did in the broad band is there


def test_limits_go_by_the_network(sharp: Tensor) -> None:
    crop = resized(sharp, 128)
    told = judge_large(crop.expand(3, -1, -1, -1), [1.4, 1.6, 9.0], RestoreOptions(large_faces="skip"))
    assert [face is not None for face in told] == [False, True, True]
    larger = judge_large(resized(sharp, 512), [2.0], RestoreOptions(large_faces="auto"))
    assert larger[0] is not None and "codeformer.pth" not in larger[0].reason  # the user has a 512-px network
    with pytest.raises(BadOption, match="auto, restore, keep, skip"):
        RestoreOptions(large_faces="soften")


@pytest.mark.parametrize(("mode", "status"), [("auto", "skipped"), ("keep", "restored"), ("restore", "restored")])
def test_aligned_pictures_are_judged_too(sharp: Tensor, mode: str, status: str) -> None:
    options = RestoreOptions(large_faces=mode, colour="off")
    done = RestoreJob(RestoreSettings(options, aligned=True), FacePipeline(Soften())).restore(Picture(sharp))
    assert done.faces[0].status == status and done.status == {"skipped": "no face"}.get(status, status)
    side = 128 if mode == "restore" else 600
    assert done.picture.frames.shape == (1, 3, side, side)
    if mode == "auto":
        assert torch.equal(done.picture.frames, sharp)
    if mode == "keep":
        assert fine(done.picture.frames[0]) > 0.9 * fine(sharp[0])
        assert abs(float((done.picture.frames - sharp)[..., 200:400, 200:400].mean()) - 0.1) < 0.02
        assert "under its own detail" in done.faces[0].reason
    pixels, (line,) = FacePipeline(Soften()).restore_aligned(sharp, options)  # a program's own door says the same
    torch.testing.assert_close(pixels, done.picture.frames)
    assert line.to_dict() == done.faces[0].to_dict() and line.box == (0.0, 0.0, 600.0, 600.0)


def test_a_sharp_crop_of_the_networks_size_stays_and_a_blurred_one_does_not(sharp: Tensor) -> None:
    crop = resized(sharp[..., 120:480, 120:480], 128)
    out, (line,) = FacePipeline(Soften()).restore_aligned(crop)
    assert line.status == "skipped" and "as sharp (128 px)" in line.reason and torch.equal(out, crop)
    out, (line,) = FacePipeline(Soften()).restore_aligned(blurred(crop, 4))
    assert line.status == "restored" and not torch.equal(out, blurred(crop, 4))
