"""Pictures for people: before/after sheets, marked faces, captions. Drawn with Pillow, returned as tensors."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..types import Face, FaceReport, Restoration
from .pixels import to_levels

if TYPE_CHECKING:
    from PIL.Image import Image

GOOD, BAD, DIM = (70, 190, 110), (225, 85, 75), (150, 150, 150)
_PAPER, _INK = (255, 255, 255), (24, 26, 30)
_GAP, _TEXT = 8, 15  # px
_WIDEST = 900  # px of each picture on a sheet
_TILE = 192  # px of each face on a sheet
_FARTHEST = 40  # heights of a label that it may move away from its box

_Rectangle = tuple[float, float, float, float]  # left, top, right, bottom


def comparison(before: Tensor, after: Tensor, result: Restoration) -> Tensor:
    """Sheet [3,H,W] of the first frame: the whole picture before and after, then each restored face with its scores."""
    height, width = after.shape[-2:]
    scale = min(1.0, _WIDEST / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    rows = [_row([(_image(before[0], size), "before"), (_image(after[0], size), "after")])]
    lines = [line for line in result.report if line.image == 0 and line.status == "restored"]
    pairs = []
    for line in lines:
        left = _image(result.crops_in.pixels[line.crop], (_TILE, _TILE))
        right = _image(result.crops_out.pixels[line.crop], (_TILE, _TILE))
        pairs.append((_row([(left, ""), (right, "")], gap=0), face_caption(line)))
    across = max(1, rows[0].width // (2 * _TILE + _GAP))
    rows += [_row(pairs[start : start + across]) for start in range(0, len(pairs), across)]
    return tensor_of(_stack(rows))


def face_caption(line: FaceReport) -> str:
    """What is known of one face in a few words."""
    parts = [f"face {line.face}  {line.score:.2f}", *([line.person] if line.person else [])]
    if line.id_sim_input is not None:
        parts.append(f"ID-Sim {line.id_sim_input:.2f}")
    if line.id_sim_after is not None:
        parts.append(f"ref {line.id_sim_before:.2f}>{line.id_sim_after:.2f}")
    if line.guided_by:
        parts.append("guided")
    return "  ".join(parts)


def grid(rows: Sequence[Sequence[tuple[Tensor, str]]], height: int) -> Tensor:
    """Sheet [3,H,W] of rows of (picture [3,h,w], caption), every picture scaled to ``height`` px."""
    drawn = []
    for row in rows:
        cells = []
        for picture, caption in row:
            width = max(1, round(picture.shape[-1] * height / picture.shape[-2]))
            cells.append((_image(picture, (width, height)), caption))
        drawn.append(_row(cells))
    return tensor_of(_stack(drawn))


def stacked(sheets: Sequence[Tensor]) -> Tensor:
    """Sheets [3,h,w] of any widths under one another, as [3,H,W]."""
    return tensor_of(_stack([_image(sheet, (sheet.shape[-1], sheet.shape[-2])) for sheet in sheets], margin=0))


def marked(
    picture: Tensor,
    faces: Sequence[Face],
    names: Sequence[str] | None = None,
    dropped: Sequence[tuple[Face, str]] = (),
) -> Tensor:
    """[3,H,W] with box, landmarks, number, score and name of ``faces``; ``dropped`` thin and gray, with the reason.

    No label covers another: in a crowd labels move away from their boxes, then shrink to the number; a reason that has
    no room beside the chosen faces is left out.
    """
    from PIL import ImageDraw

    image = image_of(picture)
    draw = ImageDraw.Draw(image)
    line = max(1, round(min(image.size) / 250))
    letters = font(max(11, round(min(image.size) / 40)))
    for face, _ in dropped:
        draw.rectangle(box_of(face), outline=DIM, width=max(1, line // 2))
    for face in faces:
        draw.rectangle(box_of(face), outline=GOOD, width=line)
        for x, y in face.landmarks.tolist():
            draw.ellipse((x - line, y - line, x + line, y + line), fill=GOOD)
    taken: list[_Rectangle] = []
    for number, face in enumerate(faces):
        name = f"  {names[number]}" if names else ""
        texts = (f"{number}  {face.score:.2f}{name}", f"{number}{name}", f"{number}")
        taken += _labelled(draw, face, texts, GOOD, letters, taken, _FARTHEST)
    taken += [box_of(face) for face in faces]  # a reason is long and covers no chosen face
    for face, reason in dropped:
        taken += _labelled(draw, face, (reason,), DIM, letters, taken, 0)
    return tensor_of(image)


def _labelled(
    draw: Any, face: Face, texts: Sequence[str], colour: tuple[int, int, int], letters: Any, taken: list[_Rectangle],
    away: int,
) -> list[_Rectangle]:  # fmt: skip
    """The rectangle of the label that is drawn: of the first of ``texts`` that has room beside the box, or up to
    ``away`` heights from it; [] where none has."""
    for steps in range(away + 1):
        for text in texts:
            x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=letters)
            size = (x1 - x0 + 6, y1 - y0 + 6)
            for x, y in _places(box_of(face), size, steps, draw.im.size):
                here = (x, y, x + size[0], y + size[1])
                if not any(_overlap(here, other) for other in taken):
                    draw.rectangle(here, fill=colour)
                    draw.text((x + 3 - x0, y + 3 - y0), text, fill=_INK, font=letters)
                    return [here]
    return []


def _places(
    box: _Rectangle, size: tuple[float, float], steps: int, most: tuple[int, int]
) -> Iterator[tuple[float, float]]:
    """Where a label of ``size`` may begin, ``steps`` heights from its box: above, below, and first also inside it."""
    left, top, right, bottom = box
    rows = [top - (1 + steps) * size[1], bottom + steps * size[1]] + ([top, bottom - size[1]] if steps == 0 else [])
    inside = [y for y in rows if 0 <= y <= most[1] - size[1]] or [min(max(0.0, top), max(0.0, most[1] - size[1]))]
    columns = [left, right - size[0], (left + right - size[0]) / 2]
    columns += [left - steps * size[0], right + (steps - 1) * size[0]] if steps else []
    for y in inside:
        for x in columns:
            yield min(max(0.0, x), max(0.0, most[0] - size[0])), y


def _overlap(a: _Rectangle, b: _Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def box_of(face: Face) -> tuple[float, float, float, float]:
    """The box as Pillow draws it: left, top, right, bottom, in order whatever the detector said."""
    x0, y0, x1, y1 = face.box.tolist()
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def font(size: int = _TEXT) -> Any:
    """The letters of every picture that this package draws, ``size`` px tall."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def wrapped(text: str, letters: Any, width: int) -> str:
    """``text`` with line breaks, so that no line is wider than ``width`` px; a word wider than that is broken."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if letters.getlength(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            line = word
            while letters.getlength(line) > width and len(line) > 1:
                fits = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or letters.getlength(line[:n]) <= width)
                lines.append(line[:fits])
                line = line[fits:]
        lines.append(line)
    return "\n".join(lines)


def image_of(pixels: Tensor) -> Image:
    """PIL picture of [3,H,W] in [0,1]."""
    from PIL import Image as pil

    return pil.fromarray(to_levels(pixels))


def tensor_of(image: Image) -> Tensor:
    """[3,H,W] in [0,1] of a PIL picture."""
    import numpy as np

    return torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32) / 255).movedim(-1, 0).contiguous()


def _row(cells: Sequence[tuple[Image, str]], gap: int = _GAP) -> Image:
    """Pictures side by side, each with its caption below, as wide as the picture (no space is kept where none has one).
    """
    from PIL import Image as pil
    from PIL import ImageDraw

    letters = font()
    captions = [wrapped(caption, letters, image.width - 4) for image, caption in cells]
    lines = max((caption.count("\n") + 1 for caption in captions if caption), default=0)
    foot = lines * (_TEXT + 3) + 5 if lines else 0
    width = sum(image.width for image, _ in cells) + gap * (len(cells) - 1)
    row = pil.new("RGB", (width, max(image.height for image, _ in cells) + foot), _PAPER)
    draw, left = ImageDraw.Draw(row), 0
    for (image, _), caption in zip(cells, captions):
        row.paste(image, (left, 0))
        draw.multiline_text((left + 2, row.height - foot + 2), caption, fill=_INK, font=letters, spacing=3)
        left += image.width + gap
    return row


def _stack(rows: Sequence[Image], margin: int = _GAP) -> Image:
    from PIL import Image as pil

    width = max(row.width for row in rows) + 2 * margin
    sheet = pil.new("RGB", (width, sum(row.height + margin for row in rows) + margin), _PAPER)
    top = margin
    for row in rows:
        sheet.paste(row, (margin, top))
        top += row.height + margin
    return sheet


def _image(pixels: Tensor, size: tuple[int, int]) -> Image:
    from PIL import Image as pil

    image = image_of(pixels)
    return image if image.size == size else image.resize(size, pil.Resampling.LANCZOS)
