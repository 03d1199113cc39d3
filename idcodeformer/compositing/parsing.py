"""Face parsing: which part of an aligned crop is skin, hair, hat ...

By facexlib's ParseNet where its file is, else by the built-in MiniParser.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadImage, BadOption, MissingWeights
from ..geometry.resizing import resize
from ..networks.mini_parser import MiniParser
from ..runtime.device import resolve_device
from ..runtime.memory import in_batches
from ..runtime.winograd import fast_convolutions

# ParseNet's labels in order (facexlib inference/inference_parsing_parsenet.py; BiSeNet's order is another one).
# Left and right are the person's own.
CLASSES = (
    "background", "skin", "nose", "glasses", "left_eye", "right_eye", "left_brow", "right_brow", "left_ear",
    "right_ear", "mouth", "upper_lip", "lower_lip", "hair", "hat", "earring", "necklace", "neck", "cloth",
)  # fmt: skip
HAIR = CLASSES.index("hair")
REFERENCE_CLASSES = (*range(1, 14), 15)  # what the reference pastes: no background, hat, necklace, neck, cloth
REFERENCE_CLASSES_WITHOUT_HAIR = tuple(label for label in REFERENCE_CLASSES if label != HAIR)

BUILT_IN = "mini_parser"

_FEATHER = 11 * math.sqrt(2)  # px at 512: the reference blurs twice with sigma 11, which is once with this
_RADIUS = 100 / 512  # of the crop: the reach of the reference's two kernels of 101 px
_EDGE = 10 / 512  # of the crop: the border where the reference's mask is zero


class FaceParser:
    """ParseNet or MiniParser behind one door: crops of any size in, labels of the same size out."""

    def __init__(self, network: nn.Module, device: torch.device | str | None = None, size: int | None = None) -> None:
        """``size``: px the network works at, by default what it was trained for (ParseNet: 512; 256 costs a quarter and
        is less exact)."""
        size = getattr(getattr(network, "config", None), "size", 512) if size is None else size
        if size < 64 or size % 16:
            raise BadOption(f"The parsing size is {size}; choose a multiple of 16 from 64, such as 512 or 256.")
        self.device = resolve_device(device)
        network = network.to(self.device).eval().requires_grad_(False)
        self.network = network.fold() if isinstance(network, MiniParser) else network
        self.size = size
        self._fast = fast_convolutions(self.device)

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Labels [N,S,S] (uint8, index into ``CLASSES``) of aligned crops [N,3,S,S] in [0,1], on their device.

        Raises BadImage for another shape and OutOfMemory where not even one crop fits.
        """
        if pixels.dim() != 4 or pixels.shape[1] != 3 or 0 in pixels.shape[2:]:
            raise BadImage(f"Face parsing got a tensor {tuple(pixels.shape)}; give RGB crops [N,3,S,S] in 0..1.")
        labels = torch.zeros(len(pixels), *pixels.shape[2:], dtype=torch.uint8, device=pixels.device)

        def step(start: int, stop: int) -> None:
            labels[start:stop] = self._labels(pixels[start:stop]).to(pixels.device)

        in_batches(len(pixels), 1 if self.device.type == "cpu" else 8, step, what="parsing")
        return labels

    def logits(self, pixels: Tensor) -> Tensor:
        """[N,19,size,size] class scores at the working size for crops [N,3,size,size] in [0,1]."""
        weight = next(self.network.parameters())
        with self._fast:
            scores = self.network((pixels * 2 - 1).to(self.device, weight.dtype))
        return (scores[0] if isinstance(scores, (tuple, list)) else scores).float()  # ParseNet returns a picture too

    def _labels(self, pixels: Tensor) -> Tensor:
        logits = self.logits(_resize(pixels.float(), (self.size, self.size)))
        return _resize(logits, pixels.shape[2:]).argmax(1).to(torch.uint8)


def soft_mask(labels: Tensor, classes: Sequence[int] | None = None, side: int | None = None) -> Tensor:
    """[N,1,S,S] float32 in [0,1]: 1 well inside the chosen ``classes``, feathered outwards, 0 along the crop's border.

    ``labels`` [N,S,S]; None chooses REFERENCE_CLASSES. ``side``: make it at most this large; the blur leaves
    nothing that a quarter of S could not show, and costs a sixty-fourth there. At 512 px these are the blur and border
    of the reference's ``paste_faces_to_input_image`` (two Gaussians of sigma 11, then 10 px of zero); in proportion at
    other sizes.
    """
    chosen = REFERENCE_CLASSES if classes is None else tuple(classes)
    wrong = [label for label in chosen if not 0 <= label < len(CLASSES)]
    if wrong:
        raise BadOption(f"{wrong} are no parsing classes; choose from 0 to {len(CLASSES) - 1} ({', '.join(CLASSES)}).")
    bits = sum(1 << label for label in set(chosen))  # a shift by the label is faster than a table
    mask = ((torch.full_like(labels, bits, dtype=torch.int32) >> labels.int()) & 1).float()[:, None]
    if side is not None and side < labels.shape[-1]:
        mask = resize(mask, (side, side))
    mask = blur(mask, _FEATHER * mask.shape[-1] / 512, _RADIUS)
    edge = round(_EDGE * mask.shape[-1])
    if edge:
        inner = torch.zeros_like(mask)
        inner[..., edge:-edge, edge:-edge] = mask[..., edge:-edge, edge:-edge]
        return inner
    return mask


def blur(mask: Tensor, sigma: float, reach: float = 0.2) -> Tensor:
    """Gaussian of ``sigma`` px over [N,1,S,S], mirrored at the border; the kernel spans ``reach`` of S to each side.

    Two matrix products: at 128 px an eighth of the time of two convolutions.
    """
    side, device = mask.shape[-1], mask.device
    radius = min(max(1, round(reach * side)), side - 1)
    if radius < 1:
        return mask
    rows = _kept_rows(side, sigma, radius) if device.type == "cpu" else _gaussian_rows(side, sigma, radius, device)
    return rows @ mask @ rows.t()


@lru_cache(maxsize=8)
def _kept_rows(side: int, sigma: float, radius: int) -> Tensor:
    return _gaussian_rows(side, sigma, radius, torch.device("cpu"))


def _gaussian_rows(side: int, sigma: float, radius: int, device: torch.device) -> Tensor:
    """[side,side] rows of a Gaussian that ends ``radius`` px away, mirrored at the middle of the border's px."""
    steps = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    mirrored = F.pad(torch.eye(side, device=device)[None], (radius, radius), mode="reflect")
    return F.conv1d(mirrored.transpose(0, 1), (kernel / kernel.sum())[None, None])[:, 0].t().contiguous()


def _resize(pixels: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(pixels.shape[2:]) == tuple(size):
        return pixels
    return resize(pixels, size)


def load_parser(
    name_or_path: str | Path = "auto",
    device: torch.device | str | None = None,
    folders: Sequence[str | Path] = (),
    size: int | None = None,
) -> FaceParser:
    """The parser by name or by its weight file; ``size`` as in ``FaceParser``.

    "auto" is ParseNet where its file is, else the built-in parser. Raises MissingWeights (with file, URL and folder),
    UnsupportedWeights, CorruptWeights and NoDevice.
    """
    from ..weights.loading import build
    from ..weights.store import find

    file = find_parser(folders) if name_or_path == "auto" else find(name_or_path, "parser", folders)
    return FaceParser(build(file, "parser"), device, size)


def find_parser(folders: Sequence[str | Path] = ()) -> Path:
    """ParseNet's file where it is in ``folders`` or where downloads go, else the built-in parser's."""
    from ..weights.store import find

    try:
        return find("parsenet", "parser", folders)
    except MissingWeights:
        return find(BUILT_IN, "parser")
