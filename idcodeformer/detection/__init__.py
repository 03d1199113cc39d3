"""Finding faces: the detectors and how they are loaded. Which of the faces are kept is said in ``selection``."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..types import Detector
from . import yunet
from .retinaface import RetinaFaceDetector
from .scrfd import SCRFDDetector
from .selection import Selection, select
from .yunet import YuNetDetector

__all__ = [
    "DEFAULT_DETECTOR", "DETECTORS", "RetinaFaceDetector", "SCRFDDetector", "Selection", "YuNetDetector",
    "load_detector", "open_detector", "select",
]  # fmt: skip

DEFAULT_DETECTOR = "retinaface_mobile0.25"  # embedded


@dataclass(frozen=True)
class DetectorKind:
    """One sort of detector: how its file is told, and what is made of it."""

    kind: str  # as in weights.registry
    make: Callable[..., Detector]  # (network or path, device)
    runs_in_torch: bool = False
    signs: tuple[bytes, ...] = ()  # bytes that an ONNX file of this kind, and of none above, holds


# Another detector is a file and a row; the first row that fits a file is taken.
DETECTORS = (
    DetectorKind("retinaface", RetinaFaceDetector, runs_in_torch=True),
    DetectorKind("yunet", YuNetDetector, signs=yunet.SIGNS),
    DetectorKind("scrfd", SCRFDDetector),
)


def open_detector(path: Path) -> tuple[nn.Module | None, Callable[[Any], Detector]]:
    """The network of a detector's file, None where torch does not run it, and what makes the detector on a device.

    Raises CorruptWeights, UnsupportedWeights.
    """
    from ..weights.loading import build

    if path.suffix.lower() != ".onnx":
        row = next(row for row in DETECTORS if row.runs_in_torch)
        network = build(path, row.kind)
        return network, lambda device: row.make(network, device)
    data = path.read_bytes()
    row = next(row for row in DETECTORS if not row.runs_in_torch and all(sign in data for sign in row.signs))
    return None, lambda device: row.make(path, device)


def load_detector(
    name_or_path: str | Path = DEFAULT_DETECTOR,
    device: torch.device | str | None = None,
    folders: Sequence[str | Path] = (),
) -> Detector:
    """A detector by name ("retinaface_mobile0.25", "retinaface_resnet50", "scrfd", "yunet") or by its weight file.

    An ``.onnx`` file is YuNet, which OpenCV runs, or SCRFD, which needs insightface. ``folders`` are searched besides
    the usual places. Raises MissingWeights, UnsupportedWeights, CorruptWeights and NoDevice, each with its remedy.
    """
    from ..weights.store import find

    name = "scrfd_10g" if name_or_path == "scrfd" else name_or_path
    return open_detector(find(name, "detector", folders))[1](device)
