"""SCRFD (Guo et al. 2022) through insightface, where the user has it installed."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import MissingWeights, UnsupportedWeights
from ..runtime.device import resolve_device
from ..runtime.validation import check_images
from ..types import DetectOptions, Face, Faces
from .verification import Trust, verify

_SURE = 0.5  # probability from which a finding in a crop counts
_TRUST = Trust(clear=0.65, face=0.25)  # by the same threshold: the crop or its mirror image has to show the face


class SCRFDDetector:
    """Finds faces with insightface's SCRFD. It runs in ONNX Runtime, picture by picture, on 8-bit copies."""

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str | None = None,
        side: int = 640,
        steady: bool = True,
    ) -> None:
        """``path``: the .onnx file (det_10g.onnx of buffalo_l, say); ``side``: working size in px, a multiple of 32.

        ``steady``: landmarks are looked at again in upright crops, by the same network (see ``verification.verify``).
        """
        try:
            from insightface.model_zoo import get_model
        except ImportError as error:
            raise MissingWeights(
                "SCRFD needs the insightface package: pip install insightface onnxruntime (onnxruntime-gpu for CUDA), "
                "or choose the detector retinaface_mobile0.25, which needs neither."
            ) from error
        path = Path(path)
        if not path.is_file():
            raise MissingWeights(f"{path} is not there; put det_10g.onnx of insightface's buffalo_l in that place.")
        device = resolve_device(device)
        cuda = device.type == "cuda"
        providers = ["CUDAExecutionProvider"] * cuda + ["CPUExecutionProvider"]
        self.model = get_model(str(path), providers=providers)
        if self.model is None or not hasattr(self.model, "detect"):
            raise UnsupportedWeights(f"{path.name} is not an insightface detector; det_10g.onnx is one.")
        self.side, self.steady, self.device = side, steady, torch.device("cpu")
        self.model.prepare(ctx_id=(device.index or 0) if cuda else -1, input_size=(side, side), det_thresh=0.5)

    def __call__(self, images: Tensor | Sequence[Tensor], options: DetectOptions | None = None) -> tuple[Faces, ...]:
        """The faces of each image ([3,H,W] in [0,1]) that score above ``options.confidence``, best first.

        With ``options.doubtful`` also what is taken for no face (``verify``).
        """
        batch = check_images(images)
        options = options or DetectOptions()
        faces = tuple(self._detect(image, options.confidence) for image in batch)
        return verify(self._see, batch, faces, self.device, options, _TRUST) if self.steady else faces

    def _detect(self, image: Tensor, confidence: float) -> Faces:
        rows, landmarks = self._run(image, confidence, None)
        faces = [
            Face(torch.from_numpy(row[:4]).float(), float(row[4]), torch.from_numpy(points).float().reshape(5, 2))
            for row, points in zip(rows, landmarks, strict=True)
        ]
        return tuple(sorted(faces, key=lambda face: -face.score))

    def _run(self, image: Tensor, confidence: float, side: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Rows [n,5] of box and score, and landmarks [n,5,2], at the working size ``side`` where the file takes any."""
        pixels = (image.flip(0) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        self.model.det_thresh = confidence
        size = None if side is None or self._has_fixed_size() else (side, side)
        rows, landmarks = self.model.detect(np.ascontiguousarray(pixels), input_size=size)
        if landmarks is None:
            raise UnsupportedWeights("This SCRFD file gives no landmarks; use one that does, such as det_10g.onnx.")
        return rows, landmarks

    def _has_fixed_size(self) -> bool:
        return isinstance(self.model.session.get_inputs()[0].shape[2], int)

    def _see(self, crops: Tensor, best: int) -> tuple[Tensor, Tensor, Tensor]:
        """The ``best`` findings of every crop, for ``verify``; a score of 0 where there are fewer."""
        count = len(crops)
        scores, boxes = torch.zeros(count, best), torch.zeros(count, best, 4)
        landmarks = torch.zeros(count, best, 5, 2)
        for number, crop in enumerate(crops):
            rows, points = self._run(crop, _SURE, crops.shape[-1])
            order = np.argsort(-rows[:, 4])[:best]
            found = len(order)
            boxes[number, :found] = torch.from_numpy(rows[order, :4]).float()
            scores[number, :found] = torch.from_numpy(rows[order, 4]).float()
            landmarks[number, :found] = torch.from_numpy(points[order]).float()
        return scores, boxes, landmarks
