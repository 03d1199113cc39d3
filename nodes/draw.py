"""Pictures the nodes show besides the core's: small ones, the mask of faces, and the identity chart."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

from torch import Tensor

from ..idcodeformer.files.drawing import BAD, DIM, GOOD, box_of, font, image_of, tensor_of
from ..idcodeformer.types import Face

if TYPE_CHECKING:
    from PIL import ImageDraw
    from PIL.Image import Image

PAPER, INK, FAINT = (24, 26, 30), (236, 236, 236), (70, 74, 80)
_THUMB, _GAP, _BAR = 192, 16, 14  # px of the chart
_MOST_PAIRS = 24  # pairs drawn; the report lists all of them
_COLUMNS = 3
_MOST_SHOWN = 18  # pairs of the picture before and after


@dataclass(frozen=True, eq=False)
class Pair:
    """Two faces that were compared. A crop is [3,S,S] in [0,1], or None where that picture shows no face."""

    title: str
    reference: Tensor | None
    candidate: Tensor | None
    score: float | None
    missing: str = "no face"  # what stands in place of a picture


def thumbnail(image: Tensor, side: int) -> Image:
    """PIL picture of [3,H,W], made smaller where it is larger than ``side`` px."""
    picture = image_of(image)
    picture.thumbnail((side, side))
    return picture


def faces_mask(size: tuple[int, int], faces: Sequence[Face]) -> Tensor:
    """[1,H,W], 1 inside the ellipse of each face's box, 0 elsewhere."""
    from PIL import Image, ImageDraw

    picture = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(picture)
    for face in faces:
        draw.ellipse(box_of(face), fill=255)
    return tensor_of(picture)[:1]


def before_and_after(before: Sequence[Tensor], after: Sequence[Tensor]) -> Image | None:
    """The first faces [n,3,S,S] of both side by side, in rows; None where there is none."""
    from PIL import Image

    pairs = [pair for here, there in zip(before, after) for pair in zip(here, there)][:_MOST_SHOWN]
    if not pairs:
        return None
    side = 2 * _THUMB if len(pairs) == 1 else _THUMB
    columns = math.ceil(math.sqrt(len(pairs) / 2))
    rows = -(-len(pairs) // columns)
    gap = _GAP // 2
    picture = Image.new("RGB", (columns * (2 * side + gap) - gap, rows * (side + gap) - gap), PAPER)
    for number, pair in enumerate(pairs):
        x, y = number % columns * (2 * side + gap), number // columns * (side + gap)
        for place, crop in enumerate(pair):
            small = image_of(crop).resize((side, side), Image.Resampling.LANCZOS)
            picture.paste(small, (x + place * side, y))
    return picture


def chart(pairs: Sequence[Pair], threshold: float, headline: str) -> Tensor:
    """[3,H,W]: the compared crops side by side, each pair with its score as a number and as a bar up to 1.

    A tick on the bar marks ``threshold``; green pairs reach it, red ones do not. Of more than 24 pairs the lowest are
    drawn.
    """
    from PIL import Image, ImageDraw

    shown = list(pairs)
    if len(shown) > _MOST_PAIRS:  # among many one looks for what went wrong
        shown = sorted(shown, key=lambda pair: -2.0 if pair.score is None else pair.score)[:_MOST_PAIRS]
    cell = (2 * _THUMB + _GAP, _THUMB + 74)
    columns = max(1, min(_COLUMNS, len(shown)))
    rows = -(-len(shown) // columns)
    width = columns * (cell[0] + _GAP) + _GAP
    top = 56
    picture = Image.new("RGB", (width, top + rows * (cell[1] + _GAP) + _GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    more = f"  (the {len(shown)} lowest of {len(pairs)} pairs)" if len(pairs) > len(shown) else ""
    _fitted(draw, (_GAP, 18), headline + more, 22, width - 2 * _GAP)
    for number, pair in enumerate(shown):
        x = _GAP + number % columns * (cell[0] + _GAP)
        y = top + number // columns * (cell[1] + _GAP)
        _draw_pair(picture, draw, (x, y), pair, threshold)
    return tensor_of(picture)


def _draw_pair(picture: Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], pair: Pair, threshold: float) -> None:
    x, y = at
    for offset, crop, name in ((0, pair.reference, "reference"), (_THUMB + _GAP, pair.candidate, "candidate")):
        _thumb(picture, draw, (x + offset, y), crop, name, pair.missing)
    width = 2 * _THUMB + _GAP
    below = y + _THUMB + 8
    if pair.score is None:
        draw.text((x, below), "no score", fill=BAD, font=font(24))
    else:
        colour = GOOD if pair.score >= threshold else BAD
        draw.text((x, below), f"{pair.score:+.3f}", fill=colour, font=font(24))
        _bar(draw, (x, below + 36), width, pair.score, threshold, colour)
    _fitted(draw, (x + 104, below + 6), pair.title, 15, width - 104)


def _bar(draw, at: tuple[int, int], width: int, score: float, threshold: float, colour: tuple[int, int, int]) -> None:
    x, y = at
    draw.rectangle((x, y, x + width, y + _BAR), fill=FAINT)
    draw.rectangle((x, y, x + round(width * min(1.0, max(0.0, score))), y + _BAR), fill=colour)
    tick = x + round(width * min(1.0, max(0.0, threshold)))
    draw.line((tick, y - 4, tick, y + _BAR + 4), fill=INK, width=2)


def _thumb(picture: Image, draw, at: tuple[int, int], crop: Tensor | None, name: str, missing: str) -> None:
    x, y = at
    if crop is None:
        draw.rectangle((x, y, x + _THUMB - 1, y + _THUMB - 1), outline=FAINT, width=2)
        draw.text((x + 12, y + _THUMB // 2 - 10), missing, fill=DIM, font=font(18))
    else:
        from PIL import Image as Pictures

        picture.paste(image_of(crop).resize((_THUMB, _THUMB), Pictures.Resampling.LANCZOS), (x, y))
    draw.rectangle((x, y, x + 84, y + 20), fill=PAPER)
    draw.text((x + 5, y + 2), name, fill=INK, font=font(14))


def _fitted(draw, at: tuple[int, int], text: str, size: int, width: int) -> None:
    """Text in one line of at most ``width`` px: smaller first, then cut with an ellipsis."""
    while size > 10 and draw.textlength(text, font=font(size)) > width:
        size -= 1
    while len(text) > 4 and draw.textlength(text, font=font(size)) > width:
        text = text[:-4].rstrip() + "..."
    draw.text(at, text, fill=INK, font=font(size))
