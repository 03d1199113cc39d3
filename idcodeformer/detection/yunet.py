"""YuNet (Wu et al. 2023) through OpenCV's FaceDetectorYN, which needs no further package and no GPU."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import MissingWeights, UnsupportedWeights
from .outside import SURE, Findings, OutsideTorch, as_bytes
from .verification import Trust

SIGNS = (b"obj_32", b"kps_32")  # outputs that its graph alone has
_LONGEST = 640  # px of the first look; YuNet finds faces of about 10 to 300 px
_NMS = 0.3
_CANDIDATES = 5000


class YuNetDetector(OutsideTorch):
    """Finds faces with OpenCV's YuNet, picture by picture, on 8-bit copies and on the CPU whatever ``device`` is."""

    trust = Trust(clear=0.75, face=0.25)  # the crop or its mirror image has to show the face

    def __init__(
        self, path: str | Path, device: torch.device | str | None = None, longest: int = _LONGEST, steady: bool = True
    ) -> None:
        """``path``: face_detection_yunet_2023mar.onnx; ``longest``: px that pictures are shrunk to before the look.

        ``steady``: landmarks are looked at again in upright crops, by the same network (see ``verification.verify``).
        """
        import cv2

        path = Path(path)
        if not path.is_file():
            raise MissingWeights(f"{path} is not there; put face_detection_yunet_2023mar.onnx in that place.")
        if not hasattr(cv2, "FaceDetectorYN"):
            raise UnsupportedWeights(f"OpenCV {cv2.__version__} has no YuNet; install opencv-python 4.8 or newer.")
        try:
            self._model = cv2.FaceDetectorYN.create(str(path), "", (320, 320), SURE, _NMS, _CANDIDATES)
        except cv2.error as error:
            raise UnsupportedWeights(f"{path.name} is no YuNet that OpenCV {cv2.__version__} reads.") from error
        self.longest, self.steady = longest, steady

    def find(self, image: Tensor, confidence: float, crop: bool) -> Findings:
        """As OutsideTorch; a picture is shrunk to ``longest`` px before the look, a crop is not."""
        import cv2

        height, width = image.shape[1:]
        scale = 1.0 if crop else min(1.0, self.longest / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = as_bytes(image)
        if size != (width, height):
            pixels = np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
        self._model.setInputSize(size)
        self._model.setScoreThreshold(confidence)
        rows = self._model.detect(pixels)[1]
        rows = np.zeros((0, 15), np.float32) if rows is None else rows.astype(np.float32)
        corners = np.stack([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)
        # From pixel centres of the shrunk picture to those of the picture.
        factor = np.array([width / size[0], height / size[1]], dtype=np.float32)
        boxes, points = ((places + 0.5) * factor - 0.5 for places in (corners, rows[:, 4:14].reshape(len(rows), 5, 2)))
        return boxes.reshape(len(rows), 4), points, rows[:, 14]
