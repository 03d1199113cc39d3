"""Masks keep to their own face: no pixel of a neighbour that is left alone changes, and little beside the face."""
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from idcodeformer.compositing.blend import paste
from idcodeformer.compositing.masks import face_mask
from idcodeformer.compositing.neighbours import Neighbour, own_part
from idcodeformer.errors import BadOption
from idcodeformer.geometry.alignment import align
from idcodeformer.geometry.face_shape import FACE_AXES, FACE_CENTRE
from idcodeformer.geometry.templates import ffhq_template
from idcodeformer.pipeline import FacePipeline
from idcodeformer.types import DetectOptions, Face, RestoreOptions


def face(x: float, y: float, side: float, degrees: float = 0.0) -> Face:
    """A face whose crop is a square of ``side`` px around (x, y)."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    points = torch.tensor((ffhq_template(512) - 255.5) * side / 512) @ turn
    return Face(torch.tensor([x, y, x + 1, y + 1]), 0.9, (points + torch.tensor([x, y])).float())


def ellipse(x: float, y: float, side: float, size: tuple[int, int], degrees: float = 0.0) -> Tensor:
    """[H,W] distance from the middle of such a face, 1 on its outline, worked out in the picture."""
    row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    u, v = c * (column - x) + s * (row - y), c * (row - y) - s * (column - x)
    across = u / side - (FACE_CENTRE[0] - 0.5)
    down = v / side - (FACE_CENTRE[1] - 0.5)
    return ((across / FACE_AXES[0]) ** 2 + (down / FACE_AXES[1]) ** 2).sqrt()


def masks_of(image: Tensor, restored: list[Face], found: list[Face] | None, **options) -> Tensor:
    crops = align([image], [restored], 64)
    everyone = None if found is None else [tuple(found)]
    (_,), (mask,) = paste([image], crops, 1 - crops.pixels, RestoreOptions(**options), faces=everyone)
    return mask[0]


PICTURE = torch.rand(3, 160, 200, generator=torch.Generator().manual_seed(0))
LEFT, RIGHT = (75.0, 80.0, 100.0), (106.0, 82.0, 90.0)


@pytest.mark.parametrize("upscale", [1, 2])
@pytest.mark.parametrize("turned", [0, 25, 180])
def test_no_pixel_of_a_face_that_is_left_alone_changes(upscale: int, turned: float) -> None:
    left, right = face(*LEFT, turned), face(*RIGHT)
    share = masks_of(PICTURE, [left], [left, right], upscale=upscale)
    size = tuple(share.shape)
    at = [tuple((v + 0.5) * upscale - 0.5 for v in place[:2]) + (place[2] * upscale,) for place in (LEFT, RIGHT)]
    mine, theirs = ellipse(*at[0], size, turned), ellipse(*at[1], size)
    own_pixels, their_pixels = (mine < 0.8) & (theirs > mine + 0.4), theirs < mine
    assert share[their_pixels].max() < 0.02 and (their_pixels & (theirs < 1)).sum() > 500
    assert share[own_pixels].min() > 0.98
    alone = masks_of(PICTURE, [left], [left], upscale=upscale)
    assert alone[their_pixels & (theirs < 1)].max() > 0.9  # without the neighbour that place is this face's


def test_the_reference_square_covers_the_neighbour() -> None:
    left, right = face(*LEFT), face(*RIGHT)
    square = masks_of(PICTURE, [left], [left, right], mask_shape="square")
    assert torch.equal(square, masks_of(PICTURE, [left], None))
    assert square[ellipse(*RIGHT, (160, 200)) < 0.5].max() == pytest.approx(1, abs=0.05)


def test_two_restored_faces_share_their_border() -> None:
    both = [face(*LEFT), face(*RIGHT)]
    share = masks_of(PICTURE, both, both)
    mine, theirs = ellipse(*LEFT, (160, 200)), ellipse(*RIGHT, (160, 200))
    border = ((mine - theirs).abs() < 0.02) & (mine < 0.9)
    assert border.sum() > 5 and share[border].min() > 0.7
    for near, far in ((mine, theirs), (theirs, mine)):
        assert share[(near < 0.6) & (far > near + 0.2)].min() > 0.98


def test_what_is_no_face_takes_no_pixels_and_faces_far_away_neither() -> None:
    left = face(*LEFT)
    alone = masks_of(PICTURE, [left], [left])
    phantom = Face(left.box, 0.9, face(*RIGHT).landmarks, doubt="no face is seen")
    broken = Face(left.box, 0.9, torch.full((5, 2), float("nan")))
    assert torch.equal(masks_of(PICTURE, [left], [left, phantom, broken, face(900, 900, 50)]), alone)


def test_the_mask_without_parsing_ends_around_the_face() -> None:
    share = masks_of(PICTURE, [face(*LEFT)], [])
    distance = ellipse(*LEFT, (160, 200))
    assert share[distance < 0.85].min() > 0.97
    assert share[distance > 1.35].max() == 0
    assert masks_of(PICTURE, [face(*LEFT)], None)[distance > 1.35].max() > 0.9
    mask = face_mask(128)
    assert mask.max() == 1 and mask[0].max() == 0 and mask[:, 0].max() == 0


def test_faces_of_another_number_of_images_are_refused() -> None:
    with pytest.raises(BadOption, match="2 lists of faces for 1 images"):
        crops = align([PICTURE], [[face(*LEFT)]], 64)
        paste([PICTURE], crops, crops.pixels, faces=[(), ()])


class Invert:
    size = 64

    def __call__(self, pixels: Tensor, options: object = None, progress: object = None) -> Tensor:
        return 1 - pixels


@pytest.mark.parametrize("how", ["left out by the selection", "told beside the faces"])
def test_the_pipeline_leaves_the_neighbour_alone(how: str) -> None:
    left, right = face(*LEFT), face(*RIGHT)
    left = Face(torch.tensor([30.0, 40, 100, 130]), 0.9, left.landmarks)  # the larger box
    pipeline, options = FacePipeline(Invert()), RestoreOptions(colour="off", gray="off")
    if how == "told beside the faces":
        result = pipeline([PICTURE], options, faces=[(left,)], others=[(right,)])
    else:
        result = pipeline([PICTURE], options, DetectOptions(keep="largest"), faces=[(left, right)])
    theirs = ellipse(*RIGHT, (160, 200)) < ellipse(*LEFT, (160, 200))
    assert torch.equal(result.images[0][:, theirs], PICTURE[:, theirs])
    assert (result.images[0] - PICTURE).abs()[:, ellipse(*LEFT, (160, 200)) < 0.3].mean() > 0.2


@pytest.mark.parametrize("restored", [True, False])
def test_a_mask_falls_to_the_border_of_a_neighbour_and_no_further(restored: bool) -> None:
    """A face of the same size 0.4 sides to the right: both are as near at 0.7. Between two that are restored the mask
    is a half there; beside one that is left alone it is zero a pixel before."""
    side = 640
    own = own_part([Neighbour((1.0, 0.0, -0.4, 0.0, 1.0, 0.0), restored)], side)
    row = own[round(FACE_CENTRE[1] * side)]
    reach = 0.15 * FACE_AXES[0] / 2  # of the side: over which it falls by one
    edge = 0.7 if restored else 0.7 - reach * 2 * math.sqrt(2) / (FACE_AXES[0] * side * 0.15) - reach / 2
    for place, wanted in ((edge - 1.05 * reach, 1), (edge - reach / 2, 1), (edge - reach / 4, 0.75), (edge, 0.5)):
        wanted = wanted if not restored else min(1, 0.5 + (edge - place) / reach / 2)
        assert float(row[round(place * side)]) == pytest.approx(wanted, abs=0.06)
    assert row[round((0.7 + 1.1 * reach) * side) :].max() == 0 and row[: side // 2].min() == 1
    assert restored or row[round(0.7 * side) - 1 :].max() == 0


def test_every_picture_has_its_own_neighbours() -> None:
    left, right = face(*LEFT), face(*RIGHT)
    crops = align([PICTURE, PICTURE], [[left], [left]], 64)
    _, (first, second) = paste([PICTURE, PICTURE], crops, 1 - crops.pixels, faces=[(left,), (left, right)])
    assert torch.equal(first[0], masks_of(PICTURE, [left], [left]))
    assert torch.equal(second[0], masks_of(PICTURE, [left], [left, right])) and not torch.equal(first, second)
