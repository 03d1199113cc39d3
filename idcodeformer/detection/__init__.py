"""Finding faces: the detectors and how they are loaded. Which of the faces are kept is said in ``selection``."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..types import Detector
from .retinaface import RetinaFaceDetector
from .scrfd import SCRFDDetector
from .selection import Selection, select

__all__ = ["DEFAULT_DETECTOR", "RetinaFaceDetector", "SCRFDDetector", "Selection", "load_detector", "select"]

DEFAULT_DETECTOR = "retinaface_mobile0.25"  # embedded


def load_detector(
    name_or_path: str | Path = DEFAULT_DETECTOR,
    device: torch.device | str | None = None,
    folders: Sequence[str | Path] = (),
) -> Detector:
    """A detector by name ("retinaface_mobile0.25", "retinaface_resnet50", "scrfd") or by its weight file.

    An ``.onnx`` file is taken for SCRFD and needs insightface. ``folders`` are searched besides the usual places.
    Raises MissingWeights, UnsupportedWeights, CorruptWeights and NoDevice, each with its remedy.
    """
    from ..weights.loading import build
    from ..weights.store import find

    name = "scrfd_10g" if name_or_path == "scrfd" else name_or_path
    path = find(name, "detector", folders)
    if path.suffix.lower() == ".onnx":
        return SCRFDDetector(path, device)
    return RetinaFaceDetector(build(path, "retinaface"), device)
