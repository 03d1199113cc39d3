"""Pictures with faces for the benchmarks, made from the photographs of the package, and stand-ins for the networks."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import idcodeformer
from idcodeformer.files.reading import read
from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
from idcodeformer.types import Face

ASSETS = Path(idcodeformer.__file__).parent / "assets"
# A network of 512 px and hardly any width: where a benchmark is about all but the networks.
NARROW = CodeFormerConfig(
    nf=4,
    ch_mult=(1, 1, 1, 1, 1, 1),
    res_blocks=1,
    codebook_size=8,
    emb_dim=4,
    dim_embd=8,
    dim_mlp=8,
    n_head=1,
    n_layers=1,
)


def crowd(height: int = 1080, width: int = 1920) -> Tensor:
    """[3,height,width]: the four people of the group photograph, twice, apart from each other: eight faces."""
    people = read(ASSETS / "group.jpg").frames.chunk(4, dim=3)
    tall, wide = height // 2, width // 4
    size = round(0.7 * tall), round(0.7 * wide)
    out = torch.full((3, height, width), 0.6)
    for i in range(8):
        photo = F.interpolate(people[i % 4], size, mode="bilinear", antialias=True)[0]
        y, x = i // 4 * tall + (tall - size[0]) // 2, i % 4 * wide + (wide - size[1]) // 2
        out[:, y : y + size[0], x : x + size[1]] = photo
    return out


def portrait(height: int, width: int, side: int) -> Tensor:
    """[3,height,width]: one portrait of ``side`` px in the middle of a flat background."""
    photo = F.interpolate(read(ASSETS / "portrait.jpg").frames, (side, side), mode="bilinear", antialias=True)[0]
    out = torch.full((3, height, width), 0.6)
    y, x = (height - side) // 2, (width - side) // 2
    out[:, y : y + side, x : x + side] = photo
    return out


def grid_of_faces(count: int, height: int, width: int) -> tuple[Face, ...]:
    """``count`` faces as a detector would give them, side by side over a picture, not overlapping."""
    rows = max(1, round((count * height / width) ** 0.5))
    columns = -(-count // rows)
    side = min(height / rows, width / columns)
    template = torch.from_numpy(TEMPLATE_UNIT).float()
    faces = []
    for i in range(count):
        corner = torch.tensor([(i % columns) * side, (i // columns) * side])
        box = torch.cat([corner + 0.25 * side, corner + 0.75 * side])
        faces.append(Face(box, 0.99, corner + template * side))
    return tuple(faces)


TEMPLATE_UNIT = np.array([[0.377, 0.469], [0.623, 0.469], [0.501, 0.613], [0.393, 0.725], [0.612, 0.725]])


def face_labels(count: int, size: int = 512) -> Tensor:
    """[count,size,size] uint8 ParseNet labels: skin in an ellipse, hair around its upper half, background elsewhere."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    labels = torch.zeros(size, size, dtype=torch.uint8)
    labels[((x / 0.65) ** 2 + ((y + 0.1) / 0.8) ** 2 < 1) & (y < 0.2)] = 13
    labels[(x / 0.48) ** 2 + ((y - 0.05) / 0.65) ** 2 < 1] = 1
    return labels.expand(count, size, size)


class Echo:
    """In the place of a restoring engine: gives back what it was given, a little changed."""

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, state: Tensor, w: float | Tensor, adain: bool) -> Tensor:
        return state * 0.9


class Clocked(nn.Module):
    """A network that adds up the time it takes, so that it can be told apart from what is around it."""

    def __init__(self, network: nn.Module, clock):
        super().__init__()
        self.network, self._clock, self.seconds = network, clock, 0.0

    def forward(self, *args):
        start = self._clock()
        try:
            return self.network(*args)
        finally:
            self.seconds += self._clock() - start


def narrow_network() -> CodeFormer:
    return CodeFormer(NARROW).eval()
