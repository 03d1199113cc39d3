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


class SCRFDDetector:
    """Finds faces with insightface's SCRFD. It runs in ONNX Runtime, picture by picture, on 8-bit copies."""

    def __init__(self, path: str | Path, device: torch.device | str | None = None, side: int = 640) -> None:
        """``path``: the .onnx file (det_10g.onnx of buffalo_l, say); ``side``: working size in px, a multiple of 32."""
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
        self.side = side
        self.model.prepare(ctx_id=(device.index or 0) if cuda else -1, input_size=(side, side), det_thresh=0.5)

    def __call__(self, images: Tensor | Sequence[Tensor], options: DetectOptions | None = None) -> tuple[Faces, ...]:
        """The faces of each image ([3,H,W] in [0,1]) that score above ``options.confidence``, best first."""
        self.model.det_thresh = (options or DetectOptions()).confidence
        return tuple(self._detect(image) for image in check_images(images))

    def _detect(self, image: Tensor) -> Faces:
        pixels = (image.flip(0) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        boxes, landmarks = self.model.detect(np.ascontiguousarray(pixels))
        if landmarks is None:
            raise UnsupportedWeights("This SCRFD file gives no landmarks; use one that does, such as det_10g.onnx.")
        faces = [
            Face(torch.from_numpy(box[:4]).float(), float(box[4]), torch.from_numpy(points).float().reshape(5, 2))
            for box, points in zip(boxes, landmarks, strict=True)
        ]
        return tuple(sorted(faces, key=lambda face: -face.score))
