"""Finding faces by RetinaFace (Deng et al. 2020), with pre- and post-processing that stay on the device.

The whole picture is looked at with its short side at 640 px, as the reference does, and pictures far larger than that a
second time in overlapping tiles, for faces too small for the first look. Everything is batched over pictures, and what
was found comes to the host in one transfer; each round of ``verify`` adds a small one.
"""
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import OutOfMemory
from ..files.pixels import floats
from ..geometry.resizing import resize
from ..runtime.device import resolve_device
from ..runtime.memory import is_out_of_memory
from ..runtime.validation import check_images
from ..types import DetectOptions, Face, Faces
from .landmarks import refine
from .suppression import suppress
from .verification import Trust, confirmed, verify

# The published networks' constants (facexlib detection/retinaface.py, biubug6/Pytorch_Retinaface data/config.py).
MEAN_BGR = (104.0, 117.0, 123.0)  # grey levels of 0..255
VARIANCES = (0.1, 0.2)
ANCHORS = ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))  # (stride, sides) in px
NMS_THRESHOLD = 0.4  # intersection over union

_SHORT_SIDE = 640  # px of the first look
_LONG_SIDE = 2048  # px; keeps panoramas bounded
_SECOND_LOOK = 0.7  # a first look that shrank the picture to less than this is followed by a second
_FINE_PIXELS = 12_000_000  # of one picture at most in the second look
_TILE = 1024  # px, at most
_OVERLAP = 256  # px that neighbouring tiles share
_TILE_FACE = 224  # px; larger faces are left to the first look, so that no tile border can cut them
_BATCH_PIXELS = 1 << 23  # of one forward pass on a GPU
_BATCH_PIXELS_CPU = 1 << 20  # larger batches leave the caches and are slower per picture
_CANDIDATES = 5000  # per picture before non-maximum suppression
# Faces that are plain to see reach 0.999 in an upright crop, patterns mostly nothing, heads upside down up to 0.99.
_TRUST = Trust(clear=0.995, face=0.6)
_PRIORS_KEPT = 8  # working sizes whose anchors an instance remembers


@dataclass(frozen=True)
class _View:
    """A rectangle of a resized picture: what the network sees at once."""

    image: int
    resized: tuple[int, int]  # height, width of the whole picture at this scale
    origin: tuple[int, int]  # x, y in the resized picture
    size: tuple[int, int]  # height, width
    tile: bool


def priors(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Anchors [P,4] (centre x, centre y, width, height, all relative to the picture) of an input of this many px."""
    rows = []
    for stride, sides in ANCHORS:
        y = (torch.arange(math.ceil(height / stride), device=device) + 0.5) * (stride / height)
        x = (torch.arange(math.ceil(width / stride), device=device) + 0.5) * (stride / width)
        centre = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)  # [rows,columns,2] as x, y
        side = torch.tensor(sides, dtype=torch.float32, device=device)
        extent = torch.stack([side / width, side / height], -1)  # [sides,2]
        shape = (*centre.shape[:2], len(sides), 2)
        grid = torch.cat([centre[:, :, None].expand(shape), extent[None, None].expand(shape)], -1)
        rows.append(grid.reshape(-1, 4))
    return torch.cat(rows)


def decode(anchors: Tensor, offsets: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Network outputs ``offsets`` [M,4] and ``points`` [M,10] at ``anchors`` [M,4] -> boxes [M,4] x0,y0,x1,y1 and
    landmarks [M,5,2], relative to the picture (0..1; SSD's encoding, Liu et al. 2016, eq. 2)."""
    centre = anchors[:, :2] + offsets[:, :2] * VARIANCES[0] * anchors[:, 2:]
    half = anchors[:, 2:] * torch.exp(offsets[:, 2:] * VARIANCES[1]) / 2
    landmarks = anchors[:, None, :2] + points.unflatten(1, (5, 2)) * VARIANCES[0] * anchors[:, None, 2:]
    return torch.cat([centre - half, centre + half], 1), landmarks


class RetinaFaceDetector:
    """Finds faces with one of the RetinaFace networks (``mobile0.25`` or ``resnet50``, softmaxed output)."""

    takes_levels = True  # pictures of 8 bits may come as uint8

    def __init__(
        self,
        network: nn.Module,
        device: torch.device | str | None = None,
        second_look: bool = True,
        steady: bool = True,
    ) -> None:
        """``second_look``: search pictures much larger than the working size again in tiles, for tiny faces.

        ``steady``: every finding is looked at again in an upright crop (``verify``), which halves the noise of the
        landmarks and tells what is no face. Without it they are those of the best finding alone, the reference's way.
        """
        self.device = resolve_device(device)
        self.network = network.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.second_look = second_look
        self.steady = steady
        self._priors: dict[tuple[int, int], Tensor] = {}

    @torch.inference_mode()
    def __call__(self, images: Tensor | Sequence[Tensor], options: DetectOptions | None = None) -> tuple[Faces, ...]:
        """The faces of each image ([3,H,W] in [0,1] or uint8, any size) that score above ``options.confidence``.

        The best come first. With ``options.doubtful`` also what is taken for no face. Nothing else of ``options`` is
        applied here: ``select`` does that and says why. Points are px of the image at pixel centres. Raises BadImage,
        and OutOfMemory where not even one view fits the device.
        """
        batch = check_images(images)
        options = options or DetectOptions()
        most = _BATCH_PIXELS_CPU if self.device.type == "cpu" else _BATCH_PIXELS
        views = _views(batch, self.second_look, most, self.device)
        found = [self._look(pixels, part, batch, options.confidence) for pixels, part in views]
        if not found:
            return ()
        faces = _merge(torch.cat(found), len(batch))
        return verify(self._see, batch, faces, self.device, options, _TRUST) if self.steady else faces

    @torch.inference_mode()
    def look_again(self, images: Sequence[Tensor], faces: Sequence[Faces]) -> tuple[Faces, ...]:
        """``faces`` that are known to be about there, with landmarks seen in crops of ``images``: a tenth of a search.

        A face that its crop does not show keeps its landmarks; boxes and scores stay.
        """
        return refine(self._see, check_images(images), faces, self.device)

    @torch.inference_mode()
    def confirm(self, images: Sequence[Tensor], faces: Sequence[Faces]) -> tuple[Faces, ...]:
        """``faces`` of ``images`` that something else has found, see ``confirmed``."""
        return confirmed(self._see, check_images(images), faces, self.device, _TRUST)

    def raw(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The network's box offsets [B,P,4], face probabilities [B,P] and landmark offsets [B,P,10] for [B,3,H,W] in
        [0,1], or uint8."""
        outputs = self._forward(self._inputs(pixels))
        if outputs is None:
            if len(pixels) == 1:
                raise OutOfMemory("Not even one picture fits for face detection; free memory or use device cpu.")
            halves = [self.raw(half) for half in pixels.chunk(2)]
            return tuple(map(torch.cat, zip(*halves)))  # type: ignore[return-value]
        boxes, probabilities, points = outputs
        return boxes.float(), probabilities[..., 1].float(), points.float()

    def _inputs(self, pixels: Tensor) -> Tensor:
        """RGB [B,3,H,W] in [0,1], or uint8 -> what the networks were trained on, BGR grey levels less their mean."""
        pixels, weight = floats(pixels), next(self.network.parameters())
        inputs = torch.empty_like(pixels, dtype=weight.dtype, memory_format=torch.channels_last)
        for channel, mean in enumerate(MEAN_BGR):
            torch.add(torch.tensor(-mean), pixels[:, 2 - channel], alpha=255, out=inputs[:, channel])
        return inputs

    def _forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """None where memory ran out. The error does not leave here, since its traceback would hold on to tensors."""
        try:
            return self.network(inputs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _see(self, crops: Tensor, best: int) -> tuple[Tensor, Tensor, Tensor]:
        """The ``best`` findings of every crop, for ``verify``."""
        height, width = crops.shape[2:]
        boxes, scores, points = self.raw(crops.to(self.device))
        scores, where = scores.topk(min(best, scores.shape[1]))
        row = torch.arange(len(crops), device=self.device)[:, None]
        anchors = self._anchors(height, width)[where]
        found = (t.flatten(0, 1) for t in (anchors, boxes[row, where], points[row, where]))
        box, landmarks = decode(*found)
        extent = torch.tensor([width, height], dtype=torch.float32, device=self.device)
        corners = torch.cat([box.unflatten(1, (2, 2)), landmarks], 1) * extent - 0.5
        corners = corners.unflatten(0, scores.shape)
        return scores, corners[:, :, :2].flatten(2), corners[:, :, 2:]

    def _anchors(self, height: int, width: int) -> Tensor:
        key = (height, width)
        if key not in self._priors:
            if len(self._priors) >= _PRIORS_KEPT:
                self._priors.pop(next(iter(self._priors)))
            self._priors[key] = priors(height, width, self.device)
        return self._priors[key]

    def _look(self, pixels: Tensor, views: list[_View], images: list[Tensor], confidence: float) -> Tensor:
        """What one forward pass finds: rows [M,17] of image, tile, score, box, landmarks in image px, on the device."""
        height, width = views[0].size
        boxes, scores, points = self.raw(pixels.to(self.device))
        number, anchor = torch.nonzero(scores > confidence, as_tuple=True)
        score = scores[number, anchor]
        if len(score) > _CANDIDATES * len(views):
            score, best = score.topk(_CANDIDATES * len(views))
            number, anchor = number[best], anchor[best]
        extent = torch.tensor([width, height], dtype=torch.float32, device=self.device)
        box, landmarks = decode(self._anchors(height, width)[anchor], boxes[number, anchor], points[number, anchor])
        corners = torch.cat([box.unflatten(1, (2, 2)), landmarks], 1) * extent  # [M,7,2] px of the view
        facts = torch.tensor([_facts(view, images[view.image]) for view in views], device=self.device)[number]
        # The networks learnt edge coordinates: mirrored training labels are width - x, so they mean x + 0.5.
        corners_in_image = (corners + facts[:, None, 2:4]) / facts[:, None, 4:6] - 0.5
        rows = torch.cat([facts[:, :2], score[:, None], corners_in_image.flatten(1)], 1)
        return rows[_whole(corners, facts)] if views[0].tile else rows


def _facts(view: _View, image: Tensor) -> list[float]:
    """image, tile, origin x y, scale x y, and the first and last x and y (px of the view) that a box may reach."""
    (height, width), (x, y), (tall, wide) = view.resized, view.origin, view.size
    first = [0.0 if x > 0 else -math.inf, 0.0 if y > 0 else -math.inf]
    last = [float(wide) if x + wide < width else math.inf, float(tall) if y + tall < height else math.inf]
    scale = [width / image.shape[2], height / image.shape[1]]
    return [float(view.image), float(view.tile), float(x), float(y), *scale, *first, *last]


def _whole(corners: Tensor, facts: Tensor) -> Tensor:
    """Which faces of tiles are small enough to be whole in some tile, and are whole in this one."""
    top_left, bottom_right = corners[:, 0], corners[:, 1]
    small = (bottom_right - top_left).amax(1) <= _TILE_FACE
    return small & (top_left >= facts[:, 6:8]).all(1) & (bottom_right <= facts[:, 8:10]).all(1)


def _views(
    images: list[Tensor], second_look: bool, most: int, device: torch.device
) -> Iterator[tuple[Tensor, list[_View]]]:
    """Batches [n,3,h,w] of at most ``most`` px and one working size, made when asked for, with where each was taken."""
    groups: dict[tuple[int, int], list[_View]] = defaultdict(list)
    for number, image in enumerate(images):
        size = _working_size(*image.shape[1:])
        groups[size].append(_View(number, size, (0, 0), size, tile=False))
    for size, views in groups.items():
        step = max(1, most // (size[0] * size[1]))
        for start in range(0, len(views), step):
            part = views[start : start + step]
            yield _batch([_resize(images[view.image], size, device) for view in part]), part
    if second_look:
        for number, image in enumerate(images):
            yield from _tiles(number, image, most, device)


def _working_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the first look: the short side at 640 px, up or down, unless the long side grows too long."""
    scale = min(_SHORT_SIDE / min(height, width), _LONG_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _tiles(number: int, image: Tensor, most: int, device: torch.device) -> Iterator[tuple[Tensor, list[_View]]]:
    """The second look at one picture; nothing where the first was fine enough."""
    height, width = image.shape[1:]
    first = _working_size(height, width)[0] / height
    scale = min(1.0, math.sqrt(_FINE_PIXELS / (height * width)))
    if first >= _SECOND_LOOK or scale < 1.5 * first:
        return
    resized = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels = _resize(image, resized, device)
    rows, tall = _cuts(resized[0])
    columns, wide = _cuts(resized[1])
    views = [_View(number, resized, (x, y), (tall, wide), tile=True) for y in rows for x in columns]
    step = max(1, most // (tall * wide))
    for start in range(0, len(views), step):
        part = views[start : start + step]
        cut = [pixels[:, :, v.origin[1] : v.origin[1] + tall, v.origin[0] : v.origin[0] + wide] for v in part]
        yield _batch(cut), part


def _batch(views: list[Tensor]) -> Tensor:
    """Views [1,3,h,w] as one batch; a single one is not copied."""
    return views[0] if len(views) == 1 else torch.cat(views)


def _cuts(length: int) -> tuple[list[int], int]:
    """Where the tiles of one axis begin, and how long they are: as few as fit, alike, overlapping enough."""
    count = max(1, math.ceil((length - _OVERLAP) / (_TILE - _OVERLAP)))
    tile = math.ceil((length + (count - 1) * _OVERLAP) / count)
    return [round(i * (length - tile) / max(1, count - 1)) for i in range(count)], tile


def _resize(image: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
    """[3,H,W] -> [1,3,*size], anti-aliased, on ``device``: a GPU resizes large pictures faster than the CPU.

    What keeps its size keeps its type too: levels of 8 bits are made floats view by view.
    """
    there = image[None].to(device)
    return there if tuple(image.shape[1:]) == size else resize(there, size)


def _merge(rows: Tensor, count: int) -> tuple[Faces, ...]:
    """Rows of all looks -> the faces of every image, best first, each face once."""
    rows = rows.cpu()  # in one transfer
    # Tiles show more of a face than the first look does, so theirs is the finding that stays.
    kept = suppress(rows[:, 3:7], rows[:, 2] + rows[:, 1], NMS_THRESHOLD, rows[:, 0])
    best = rows[kept]
    best = best[best[:, 2].argsort(descending=True, stable=True)]
    faces: list[Faces] = []
    for number in range(count):
        mine = best[best[:, 0] == number]
        mine = mine[~_parts_of_faces(mine)]
        faces.append(tuple(Face(row[3:7].clone(), float(row[2]), row[7:].unflatten(0, (5, 2)).clone()) for row in mine))
    return tuple(faces)


def _parts_of_faces(rows: Tensor) -> Tensor:
    """Which findings of tiles lie inside a face that the first look found: an eye or a nostril seen as a face."""
    box, tile = rows[:, 3:7], rows[:, 1] > 0
    extent = (box[:, 2:] - box[:, :2]).clamp(min=0)
    corner = torch.maximum(box[:, None, :2], box[None, :, :2])
    shared = (torch.minimum(box[:, None, 2:], box[None, :, 2:]) - corner).clamp(min=0).prod(-1)
    inside = shared > 0.8 * extent.prod(1)[:, None]
    return tile & (inside & ~tile[None]).any(1)
