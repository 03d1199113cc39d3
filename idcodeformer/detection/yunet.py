"""YuNet (Wu et al. 2023) through OpenCV's FaceDetectorYN, which needs no further package and no GPU."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import MissingWeights, UnsupportedWeights
from ..runtime.validation import check_images
from ..types import DetectOptions, Face, Faces
from .verification import Trust, verify

SIGNS = (b"obj_32", b"kps_32")  # outputs that its graph alone has
_LONGEST = 640  # px of the first look; YuNet finds faces of about 10 to 300 px
_NMS = 0.3
_CANDIDATES = 5000
_SURE = 0.5  # probability from which a finding in a crop counts
_TRUST = Trust(clear=0.75, face=0.25)  # the crop or its mirror image has to show the face


class YuNetDetector:
    """Finds faces with OpenCV's YuNet, picture by picture, on 8-bit copies and on the CPU whatever ``device`` is."""

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
            self._model = cv2.FaceDetectorYN.create(str(path), "", (320, 320), _SURE, _NMS, _CANDIDATES)
        except cv2.error as error:
            raise UnsupportedWeights(f"{path.name} is no YuNet that OpenCV {cv2.__version__} reads.") from error
        self.longest, self.steady, self.device = longest, steady, torch.device("cpu")

    def __call__(self, images: Tensor | Sequence[Tensor], options: DetectOptions | None = None) -> tuple[Faces, ...]:
        """The faces of each image ([3,H,W] in [0,1]) that score above ``options.confidence``, best first.

        With ``options.doubtful`` also what is taken for no face (``verify``).
        """
        batch = check_images(images)
        options = options or DetectOptions()
        faces = tuple(self._detect(image, options.confidence) for image in batch)
        return verify(self._see, batch, faces, self.device, options, _TRUST) if self.steady else faces

    def _detect(self, image: Tensor, confidence: float) -> Faces:
        height, width = image.shape[1:]
        scale = min(1.0, self.longest / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        boxes, points, scores = self._run(image, confidence, size)
        # From pixel centres of the shrunk picture to those of the picture.
        factor = np.array([width / size[0], height / size[1]], dtype=np.float32)
        boxes = ((boxes.reshape(-1, 2, 2) + 0.5) * factor - 0.5).reshape(-1, 4)
        points = (points + 0.5) * factor - 0.5
        found = zip(torch.from_numpy(boxes), scores.tolist(), torch.from_numpy(points))
        return tuple(sorted((Face(b, s, p) for b, s, p in found), key=lambda face: -face.score))

    def _run(
        self, image: Tensor, confidence: float, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes [n,4], landmarks [n,5,2] and scores [n], in px of the picture at ``size`` (width, height)."""
        import cv2

        pixels = (image.flip(0) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        if size != (image.shape[2], image.shape[1]):
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        self._model.setInputSize(size)
        self._model.setScoreThreshold(confidence)
        rows = self._model.detect(np.ascontiguousarray(pixels))[1]
        rows = np.zeros((0, 15), np.float32) if rows is None else rows.astype(np.float32)
        boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)
        return boxes, rows[:, 4:14].reshape(-1, 5, 2), rows[:, 14]

    def _see(self, crops: Tensor, best: int) -> tuple[Tensor, Tensor, Tensor]:
        """The ``best`` findings of every crop, for ``verify``; a score of 0 where there are fewer."""
        scores, boxes = torch.zeros(len(crops), best), torch.zeros(len(crops), best, 4)
        landmarks = torch.zeros(len(crops), best, 5, 2)
        for number, crop in enumerate(crops):
            found = self._run(crop, _SURE, (crop.shape[2], crop.shape[1]))
            order = np.argsort(-found[2])[:best]
            for into, values in zip((boxes, landmarks, scores), found):
                into[number, : len(order)] = torch.from_numpy(values[order])
        return scores, boxes, landmarks
