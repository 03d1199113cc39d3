"""SCRFD (Guo et al. 2022) through insightface, where the user has it installed."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import MissingWeights, UnsupportedWeights
from ..runtime.device import resolve_device
from .outside import Findings, OutsideTorch, as_bytes
from .verification import Trust


class SCRFDDetector(OutsideTorch):
    """Finds faces with insightface's SCRFD. It runs in ONNX Runtime, picture by picture, on 8-bit copies."""

    trust = Trust(clear=0.65, face=0.25)  # above the threshold of a look: the crop or its mirror image shows the face

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
        self.side, self.steady = side, steady
        self.model.prepare(ctx_id=(device.index or 0) if cuda else -1, input_size=(side, side), det_thresh=0.5)

    def find(self, image: Tensor, confidence: float, crop: bool) -> Findings:
        """As OutsideTorch; crops are looked at in their own size where the file takes any."""
        self.model.det_thresh = confidence
        size = None if not crop or self._has_fixed_size() else (image.shape[2], image.shape[2])
        rows, landmarks = self.model.detect(as_bytes(image), input_size=size)
        if landmarks is None:
            raise UnsupportedWeights("This SCRFD file gives no landmarks; use one that does, such as det_10g.onnx.")
        return rows[:, :4], landmarks.reshape(-1, 5, 2), rows[:, 4]

    def _has_fixed_size(self) -> bool:
        return isinstance(self.model.session.get_inputs()[0].shape[2], int)
