"""What the input shows stays; what it lacks is the network's."""
from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from idcodeformer.restoration.bands import low_pass
from idcodeformer.restoration.shown import keep_shown
from idcodeformer.restoration.tone import match_tone
from idcodeformer.types import RestoreOptions


def scene(side: int = 128) -> torch.Tensor:
    """[1,3,side,side]: smooth skin with some strong lines, as brows, lids and hair are."""
    random = torch.Generator().manual_seed(11)
    smooth = F.interpolate(torch.rand(1, 3, 6, 6, generator=random), (128, 128), mode="bicubic").clamp(0, 1)
    lines = torch.zeros(1, 1, 128, 128)
    for row in range(20, 110, 12):
        lines[..., row : row + 2, 24:104] = -0.35
    picture = (0.35 + 0.4 * smooth + lines).clamp(0, 1)
    return picture if side == 128 else F.interpolate(picture, (side, side), mode="bicubic").clamp(0, 1)


def spot(side: int) -> torch.Tensor:
    """[1,3,side,side]: a pink spot of a tenth of the side, such as networks leave between the brows."""
    axis = (torch.arange(side) + 0.5) / side - 0.5
    bump = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 0.05**2))
    return torch.stack([0.12 * bump, -0.06 * bump, 0.06 * bump])[None]


def blurred(pixels: torch.Tensor, times: int) -> torch.Tensor:
    side = pixels.shape[-1]
    small = F.interpolate(pixels, (side // times, side // times), mode="area")
    return F.interpolate(small, (side, side), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("side", [128, 256, 512])
def test_a_spot_on_a_clear_face_goes_and_what_is_finer_stays(side: int) -> None:
    pixels = scene(side)
    fine = 0.03 * (torch.arange(side) % 2 * 2 - 1).float().expand(1, 3, side, side)
    restored = (pixels + spot(side) + fine).clamp(0, 1)
    out = keep_shown(restored, pixels, [0.8])
    middle = (..., slice(int(side * 0.45), int(side * 0.55)), slice(int(side * 0.45), int(side * 0.55)))
    assert (restored - pixels - fine)[middle].abs().mean() > 12 / 255
    assert (out - pixels - fine)[middle].abs().mean() < 1.5 / 255
    assert (out - pixels)[..., 4:-4, 4:-4].abs().mean() > 0.8 * 0.03


def test_a_face_that_lost_its_detail_is_the_networks() -> None:
    truth = scene()
    pixels = blurred(truth, 8)
    restored = (truth + spot(128)).clamp(0, 1)
    assert torch.equal(keep_shown(restored, pixels, [1.0]), restored)
    assert not torch.equal(keep_shown(restored, blurred(truth, 2), [1.0]), restored)


def test_detail_of_noise_counts_for_nothing() -> None:
    truth = scene()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(3))
    restored = (truth + spot(128)).clamp(0, 1)
    assert torch.equal(keep_shown(restored, (truth + 0.1 * noise).clamp(0, 1), [1.0]), restored)
    grain = keep_shown(restored, truth + 0.02 * noise, [1.0]) - keep_shown(restored, truth, [1.0])
    assert 0 < grain.std() < 0.3 * 0.02  # of a little noise most is gone


def test_fidelity_says_how_far_and_none_is_a_network_without() -> None:
    pixels = scene()
    restored = (pixels + spot(128)).clamp(0, 1)
    ws = [0.0, 0.25, 0.5, 1.0, None]
    out = keep_shown(restored.repeat(5, 1, 1, 1), pixels.repeat(5, 1, 1, 1), ws)
    left = (out - pixels).abs().mean((1, 2, 3))
    assert torch.equal(out[0], restored[0])
    assert left[0] > left[1] * 1.5 and left[1] > left[2] * 1.5
    assert torch.equal(out[2], out[3]) and torch.equal(out[3], out[4])


def test_another_face_is_not_mixed_with_the_input() -> None:
    """Where the network drew other forms, its fine parts would not fit the input's coarse ones."""
    pixels = scene()
    other = pixels.flip(-1, -2)
    assert low_pass(pixels - other, 2.0).square().mean().sqrt() > 0.07
    assert torch.equal(keep_shown(other, pixels, [1.0]), other)


def test_it_goes_with_the_low_band() -> None:
    pixels = scene().repeat(2, 1, 1, 1)
    restored = (pixels + spot(128)).clamp(0, 1)
    near = (match_tone(restored, pixels, RestoreOptions(w=0.8)) - pixels).abs().max()
    far = (match_tone(restored, pixels, RestoreOptions(w=0.0)) - pixels).abs().max()
    assert near < 3 / 255 < 10 / 255 < far
    each = match_tone(restored, pixels, RestoreOptions(w=0.8), ws=[0.0, None])
    assert (each[0] - pixels[0]).abs().max() == far and (each[1] - pixels[1]).abs().max() == near
    assert torch.equal(match_tone(restored, pixels, RestoreOptions(colour="adain", gray="off")), restored)


def test_no_face_is_no_trouble() -> None:
    assert keep_shown(torch.empty(0, 3, 128, 128), torch.empty(0, 3, 128, 128), []).shape == (0, 3, 128, 128)


def test_a_monochrome_face_keeps_its_tone() -> None:
    """Colour noise of the scan does not come back with the band."""
    plain = scene().mean(1, keepdim=True).expand(1, 3, 128, 128)
    noise = low_pass(torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(8)), 3.0) * 0.25
    pixels = (plain + noise - noise.mean(1, keepdim=True)).clamp(0, 1)
    restored = (plain + 0.5 * spot(128).mean(1, keepdim=True)).clamp(0, 1)
    coloured, toned = (keep_shown(restored, pixels, [0.8], gray) for gray in (None, torch.ones(1, dtype=torch.bool)))
    assert (coloured - coloured.mean(1, keepdim=True)).abs().mean() > 3 / 255
    assert (toned - toned.mean(1, keepdim=True)).abs().max() < 1e-6 and not torch.equal(toned, restored)
