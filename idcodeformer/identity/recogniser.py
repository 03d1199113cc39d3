"""Who is it: embeddings of faces, their cosine similarity, and which faces of two pictures belong together."""
from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadImage, BadOption, UnsupportedWeights
from ..geometry.templates import ARCFACE_112, arcface_crop, fit_similarity
from ..geometry.warping import warp
from ..runtime.device import cuda_tf32, resolve_device
from ..runtime.memory import in_batches
from ..types import Embeddings, Face

_SIDE = 112  # px, ArcFace's crop
_BATCH = 32  # faces per forward: 112-px faces are small, and a GPU is filled


class IdentityRecogniser:
    """A recogniser network with its alignment: faces -> L2-normalised embeddings, always in float32 (TF32 off).

    ``network(x)`` takes ArcFace crops [N,3,112,112] RGB in [-1,1] and returns [N,D]. ``name`` goes into the
    Embeddings, so that vectors of different networks are never compared.
    """

    def __init__(self, network: nn.Module, name: str, device: torch.device | str | None = None):
        self.device = resolve_device(device)
        self.network = network.to(self.device, torch.float32).eval().requires_grad_(False)
        self.name = name

    def __call__(self, pixels: Tensor) -> Embeddings:
        """FFHQ-aligned crops [N,3,S,S] in [0,1], any S -> Embeddings on this recogniser's device."""
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3]:
            raise BadImage(f"Crops are {list(pixels.shape)}; give [N,3,S,S] aligned to the FFHQ template.")
        return self._embed(pixels, arcface_crop)

    def embed_faces(self, images: Tensor | Sequence[Tensor], faces: Sequence[Sequence[Face]]) -> Embeddings:
        """The faces of whole pictures ([B,3,H,W] or a sequence of [3,H,W]), in order, aligned by their own landmarks.

        True landmarks fit ArcFace's template better than the fixed crop of an FFHQ-aligned face, which moves the
        points by up to 2 px of 112; use it where the pictures are at hand, for reference photos above all.
        """
        if len(images) != len(faces):
            raise BadOption(f"{len(faces)} lists of faces for {len(images)} images; give one list per image.")
        found = [(number, face) for number, here in enumerate(faces) for face in here]
        if not found:
            return self.none()
        fits = [fit_similarity(face.landmarks.cpu().double().numpy(), ARCFACE_112) for _, face in found]
        index = torch.tensor([number for number, _ in found])
        crops = warp(images, torch.from_numpy(np.stack(fits)).float(), index, _SIDE)
        return self._embed(crops, lambda x: x)

    @cached_property
    def digest(self) -> str:
        """sha256 of the weights in float32, the same for every file format, precision apart, and device."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            if tensor.is_floating_point():
                found.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def none(self) -> Embeddings:
        """The embeddings of no face."""
        return Embeddings(torch.zeros(0, self.network.embedding_dim, device=self.device), self.name)

    def _embed(self, pixels: Tensor, crop) -> Embeddings:
        if len(pixels) == 0:
            return self.none()
        vectors: dict[int, Tensor] = {}

        def step(start: int, stop: int) -> None:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False), cuda_tf32(False):
                x = crop(pixels[start:stop].to(self.device, torch.float32))
                vectors[start] = F.normalize(self.network(x * 2 - 1), dim=1)

        in_batches(len(pixels), _BATCH, step, what="recognising")
        return Embeddings(torch.cat([vectors[start] for start in sorted(vectors)]), self.name)


def load_recogniser(
    name_or_path: str | Path = "mini_recogniser",
    device: torch.device | str | None = None,
    folders: Sequence[str | Path] = (),
) -> IdentityRecogniser:
    """A recogniser from a weight file or a name of the registry; ``mini_recogniser`` is embedded.

    Files: arcface_torch's .pth and insightface's .onnx (IResNet r18 to r100), IR-SE50, gray ResNet18, MobileFaceNet.
    Raises MissingWeights, CorruptWeights, UnsupportedWeights, NoDevice.
    """
    from ..weights.loading import build
    from ..weights.store import find

    target = resolve_device(device)
    path = Path(find(name_or_path, "recogniser", folders))
    network = build(path)
    if not hasattr(network, "embedding_dim"):
        raise UnsupportedWeights(f"{path} holds a {type(network).__name__}; choose the file of a recogniser.")
    return IdentityRecogniser(network, path.stem, target)


def cosine(a: Embeddings, b: Embeddings) -> Tensor:
    """Cosine similarities [len(a),len(b)] in [-1,1], on the CPU. Raises BadOption for different recognisers."""
    if a.recogniser != b.recogniser:
        raise BadOption(
            f"Embeddings of {a.recogniser} and {b.recogniser} cannot be compared; make both with the same recogniser."
        )
    return (a.vectors @ b.vectors.to(a.vectors.device).t()).clamp(-1, 1).cpu()


def mean_identity(embeddings: Embeddings) -> Embeddings:
    """One embedding [1,D] of one person from several photos: the normalised mean of theirs."""
    if len(embeddings) == 0:
        raise BadOption("There is no embedding to average; give at least one photo with a face.")
    return Embeddings(F.normalize(embeddings.vectors.mean(0, keepdim=True), dim=1), embeddings.recogniser)


def match(a: Embeddings, b: Embeddings) -> tuple[tuple[int, int, float], ...]:
    """Pair the faces of ``a`` with those of ``b``, one to one, so that the sum of similarities is largest.

    Returns (index in a, index in b, cosine), min(len(a), len(b)) of them, by index in a.
    """
    scores = cosine(a, b).double().numpy()
    return tuple((i, j, float(scores[i, j])) for i, j in pair_up(scores))


def pair_up(gain: np.ndarray) -> list[tuple[int, int]]:
    """Rows and columns of ``gain`` [n,m] one to one, min(n, m) pairs by row, at the largest total."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns)]
