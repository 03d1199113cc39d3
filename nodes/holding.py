"""The pipeline of Restore Faces: the core's, without making again what another execution has made."""
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Sequence

import torch
from torch import Tensor

from ..idcodeformer.pipeline import FacePipeline
from ..idcodeformer.types import Crops, DetectOptions, Embeddings, Faces, Progress, RestoreOptions, empty_crops
from .held import Held, digest

if TYPE_CHECKING:
    from ..idcodeformer.identity.recogniser import IdentityRecogniser

_MOST_CROPS = 128 << 20  # bytes of one part of the frames; above it they would be there twice
# What neither detection nor alignment looks at, at any value.
_LATER = {
    "w": 0.0, "adain": True, "upscale": 1.0, "strength": 1.0, "face_upsample": False, "gray": "auto",
    "parse_classes": None, "batch_size": 0, "min_identity": 0.0, "colour": "low_band",
    "mask_shape": "face", "large_faces": "auto",
}  # fmt: skip


class HoldingRecogniser:
    """A recogniser that embeds no crop twice. Everything else is the recogniser's own."""

    def __init__(self, recogniser: IdentityRecogniser, held: Held):
        self._recogniser, self._held = recogniser, held

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recogniser, name)

    def __call__(self, pixels: Tensor) -> Embeddings:
        """As IdentityRecogniser."""
        keys = [("embedding", self._recogniser.name, digest(crop)) for crop in pixels]
        vectors = [self._held.get(key) for key in keys]
        missing = [n for n, vector in enumerate(vectors) if vector is None]
        if missing:
            found = self._recogniser(pixels[torch.tensor(missing, device=pixels.device)]).vectors
            for n, vector in zip(missing, found.clone()):
                vectors[n] = vector
                self._held.put(keys[n], vector, [vector])
        if not vectors:
            return self._recogniser.none()
        return Embeddings(torch.stack(vectors), self._recogniser.name)


class HoldingPipeline(FacePipeline):
    """FacePipeline that detects and aligns no frame twice. ``frames`` are the digests of the images of the next call.

    ``detector_key`` tells one detector from another.
    """

    def __init__(self, held: Held, detector_key: str, *tools: Any, **named: Any):
        super().__init__(*tools, **named)
        self.held, self.detector_key = held, detector_key
        self.frames: list[str] = []

    def _find(
        self,
        images: list[Tensor],
        faces: Sequence[Faces] | None,
        options: DetectOptions | None,
        progress: Progress | None,
    ) -> tuple[Faces, ...]:
        if faces is not None:
            return super()._find(images, faces, options, progress)
        keys = [("faces", self.detector_key, options or DetectOptions(), frame) for frame in self._frames(images)]
        found = [self.held.get(key) for key in keys]
        missing = [n for n, here in enumerate(found) if here is None]
        if missing:
            for n, here in zip(missing, super()._find([images[n] for n in missing], None, options, progress)):
                found[n] = here
                self.held.put(keys[n], here)
        return tuple(found)

    def _align(self, images: list[Tensor], faces: list[Faces], options: RestoreOptions) -> Crops:
        crops = sum(map(len, faces)) * 12 * self.restorer.size**2  # bytes
        if crops > _MOST_CROPS:
            return super()._align(images, faces, options)
        kind = replace(options, **_LATER)
        shown = [n for n, here in enumerate(faces) if here]
        sizes = tuple((int(image.shape[1]), int(image.shape[2])) for image in images)
        if not shown:
            return empty_crops(self.restorer.size, sizes, self._device(images))
        frames = self._frames(images)
        keys = {n: ("crops", self.restorer.size, kind, frames[n], _points(faces[n])) for n in shown}
        held = {n: self.held.get(keys[n]) for n in shown}
        missing = [n for n in shown if held[n] is None]
        if missing:
            made = super()._align([images[n] for n in missing], [faces[n] for n in missing], options)
            for place, n in enumerate(missing):
                one = made.only((made.image_index == place).nonzero()[:, 0].tolist())
                held[n] = (one.pixels, one.matrices)
                self.held.put(keys[n], held[n], held[n])
        index = torch.tensor([n for n in shown for _ in faces[n]])
        pixels, matrices = (torch.cat([held[n][part] for n in shown]) for part in (0, 1))
        return Crops(pixels, matrices, index, sizes)

    def _frames(self, images: list[Tensor]) -> list[str]:
        if len(self.frames) != len(images):
            raise ValueError(f"{len(self.frames)} digests for {len(images)} images")
        return self.frames


def _points(faces: Faces) -> bytes:
    return torch.stack([face.landmarks for face in faces]).double().numpy().tobytes()
