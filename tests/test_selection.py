"""Which faces are kept, in which order, and what is said of the others."""
from __future__ import annotations

import pytest
import torch

from idcodeformer.detection.selection import select
from idcodeformer.errors import BadOption
from idcodeformer.types import DetectOptions, Face

SIZE = (200, 300)  # height, width


def face(x: float, y: float, side: float, score: float = 0.9, eyes: tuple[float, float] | None = None) -> Face:
    """A square face around (x, y); ``eyes`` = vector from the left eye to the right."""
    dx, dy = eyes or (side * 0.4, 0.0)
    left, right = (x - dx / 2, y - dy / 2), (x + dx / 2, y + dy / 2)
    points = torch.tensor([left, right, (x, y + side / 6), (x - side / 8, y + side / 3), (x + side / 8, y + side / 3)])
    return Face(torch.tensor([x - side / 2, y - side / 2, x + side / 2, y + side / 2]), score, points)


FACES = (face(200, 60, 40, 0.95), face(40, 100, 90, 0.85), face(150, 101, 60, 0.99), face(280, 190, 30, 0.9))


@pytest.mark.parametrize(
    ("order", "wanted"),
    [("size", (1, 2, 0, 3)), ("left_to_right", (1, 2, 0, 3)), ("score", (2, 0, 3, 1)), ("centre", (2, 0, 1, 3))],
)
def test_orders(order: str, wanted: tuple[int, ...]) -> None:
    chosen = select(FACES, DetectOptions(order=order), SIZE)
    assert chosen.indices == wanted and chosen.dropped == ()
    assert chosen.faces == tuple(FACES[n] for n in wanted)


def test_order_by_likeness_to_the_reference_person() -> None:
    for similarities in ([0.1, -0.2, 0.3, 0.7], torch.tensor([0.1, -0.2, 0.3, 0.7])):
        chosen = select(FACES, DetectOptions(order="reference", max_faces=2), SIZE, similarities=similarities)
        assert chosen.indices == (3, 2)
    for missing in (None, [0.5]):
        with pytest.raises(BadOption, match="one similarity per face"):
            select(FACES, DetectOptions(order="reference"), SIZE, similarities=missing)


@pytest.mark.parametrize(
    ("options", "wanted", "reason"),
    [
        (DetectOptions(keep="largest"), (1,), "not the largest"),
        (DetectOptions(keep="centre", order="left_to_right"), (2,), "nearest the centre"),
        (DetectOptions(keep="indices", indices=(0, 3), order="left_to_right"), (1, 3), "not among the chosen"),
        (DetectOptions(max_faces=3, order="score"), (2, 0, 3), "beyond the maximum of 3"),
        (DetectOptions(confidence=0.92), (2, 0), "below the confidence 0.92"),
        (DetectOptions(min_eye_distance=20), (1, 2), "below 20 px"),
    ],
)
def test_every_face_is_kept_or_has_a_reason(options: DetectOptions, wanted: tuple[int, ...], reason: str) -> None:
    chosen = select(FACES, options, SIZE)
    assert chosen.indices == wanted
    assert sorted(chosen.indices + tuple(n for n, _ in chosen.dropped)) == [0, 1, 2, 3]
    assert all(reason in why for _, why in chosen.dropped)


def test_eye_distance_is_the_distance_between_the_eyes() -> None:
    """The published procedure subtracts the wrong columns and drops this three-quarter face with eyes 83 px apart."""
    turned = face(100, 100, 200, eyes=(83.0, 3.0))
    upright = face(100, 100, 200, eyes=(0.0, 83.0))  # lying on the side
    near = face(100, 100, 200, eyes=(4.0, 2.0))
    chosen = select((turned, upright, near), DetectOptions(min_eye_distance=5.0), SIZE)
    assert set(chosen.indices) == {0, 1}
    assert chosen.dropped == ((2, "eyes 4.5 px apart, below 5 px"),)


def test_mask_keeps_faces_whose_centre_it_covers() -> None:
    mask = torch.zeros(SIZE)
    mask[:, :180] = 1
    options = DetectOptions(keep="mask", order="left_to_right")
    for version in (mask, mask[None], mask[::2, ::2]):
        chosen = select(FACES, options, SIZE, mask=version)
        assert chosen.indices == (1, 2) and chosen.dropped[0] == (0, "its centre is outside the mask")
    assert select(FACES, options, SIZE, mask=torch.ones(1, 1)).indices == (1, 2, 0, 3)
    assert select((face(-20, 500, 50),), options, SIZE, mask=torch.ones(SIZE)).indices == (0,)  # partly outside
    with pytest.raises(BadOption, match="needs a mask"):
        select(FACES, options, SIZE)
    with pytest.raises(BadOption, match="shape"):
        select(FACES, options, SIZE, mask=torch.zeros(3, 9, 9))


def test_what_was_dropped_before_counts_neither_for_the_maximum_nor_for_indices() -> None:
    options = DetectOptions(confidence=0.88, keep="indices", indices=(0,), order="size", max_faces=1)
    chosen = select(FACES, options, SIZE)
    assert chosen.indices == (2,)
    assert dict(chosen.dropped)[1].startswith("score 0.85")


def test_landmarks_that_are_no_numbers_drop_the_face() -> None:
    broken = Face(torch.tensor([0.0, 0, 9, 9]), 0.9, torch.full((5, 2), float("nan")))
    assert select((broken,), DetectOptions(), SIZE).dropped == ((0, "its landmarks are not numbers"),)


def test_no_face_is_no_face() -> None:
    for keep in ("all", "largest", "centre", "indices"):
        assert select((), DetectOptions(keep=keep), SIZE).faces == ()
    assert select((), DetectOptions(keep="mask"), SIZE, mask=torch.ones(SIZE)).faces == ()


def test_unknown_rules_name_the_known_ones() -> None:
    with pytest.raises(BadOption, match="left_to_right"):
        select(FACES, DetectOptions(order="age"), SIZE)  # type: ignore[arg-type]
    with pytest.raises(BadOption, match="largest"):
        select(FACES, DetectOptions(keep="some"), SIZE)  # type: ignore[arg-type]


@pytest.mark.parametrize("across", [True, False])
def test_the_centre_of_a_picture_is_that_of_its_pixels(across: bool) -> None:
    """101 px have their middle at 50: of two faces at 40.1 and 60 the first is nearer by a tenth of a px."""
    places = [(40.1, 50.0), (60.0, 50.0)] if across else [(50.0, 40.1), (50.0, 60.0)]
    faces = tuple(face(x, y, 20) for x, y in places)
    assert select(faces, DetectOptions(order="centre"), (101, 101)).indices == (0, 1)
    assert select(faces[::-1], DetectOptions(order="centre"), (101, 101)).indices == (1, 0)
