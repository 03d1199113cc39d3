"""What detectors share that torch does not run: picture by picture, on 8-bit copies, verified as all findings are."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..files.pixels import to_levels
from ..runtime.validation import check_images
from ..types import DetectOptions, Face, Faces
from .verification import Trust, confirmed, verify

SURE = 0.5  # probability from which a finding in a crop counts

Findings = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes [n,4], landmarks [n,5,2] in px of the picture, scores [n]


class OutsideTorch:
    """A detector whose ``find`` another runtime answers. ``steady``: findings are looked at again in upright crops."""

    takes_levels = True  # pictures of 8 bits may come as uint8

    trust: Trust  # what its probabilities mean
    steady = True
    device = torch.device("cpu")  # where pictures and findings are, whatever the runtime uses

    def find(self, image: Tensor, confidence: float, crop: bool) -> Findings:
        """What lies in one picture [3,H,W] in [0,1] and scores above ``confidence``; ``crop``: of a face alone."""
        raise NotImplementedError

    def __call__(self, images: Tensor | Sequence[Tensor], options: DetectOptions | None = None) -> tuple[Faces, ...]:
        """The faces of each image ([3,H,W] in [0,1]) that score above ``options.confidence``, best first.

        With ``options.doubtful`` also what is taken for no face (``verify``).
        """
        batch = check_images(images)
        options = options or DetectOptions()
        faces = tuple(self._detect(image, options.confidence) for image in batch)
        return verify(self._see, batch, faces, self.device, options, self.trust) if self.steady else faces

    def confirm(self, images: Sequence[Tensor], faces: Sequence[Faces]) -> tuple[Faces, ...]:
        """``faces`` of ``images`` that something else has found, see ``confirmed``."""
        return confirmed(self._see, check_images(images), faces, self.device, self.trust)

    def _detect(self, image: Tensor, confidence: float) -> Faces:
        boxes, points, scores = self.find(image, confidence, crop=False)
        found = zip(torch.from_numpy(boxes).float(), scores.tolist(), torch.from_numpy(points).float(), strict=True)
        return tuple(sorted((Face(*one) for one in found), key=lambda face: -face.score))

    def _see(self, crops: Tensor, best: int) -> tuple[Tensor, Tensor, Tensor]:
        """The ``best`` findings of every crop, for ``verify``; a score of 0 where there are fewer."""
        scores, boxes = torch.zeros(len(crops), best), torch.zeros(len(crops), best, 4)
        landmarks = torch.zeros(len(crops), best, 5, 2)
        for number, crop in enumerate(crops):
            found = self.find(crop, SURE, crop=True)
            order = np.argsort(-found[2])[:best]
            for into, values in zip((boxes, landmarks, scores), found):
                into[number, : len(order)] = torch.from_numpy(values[order])
        return scores, boxes, landmarks


def as_bytes(image: Tensor) -> np.ndarray:
    """BGR uint8 [H,W,3] of RGB [3,H,W] in [0,1], or of uint8."""
    return np.ascontiguousarray(to_levels(image)[:, :, ::-1])
