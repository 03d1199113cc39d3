"""The first pass over a clip: where faces are, who they are, where shots end. It keeps a few numbers for each face."""
from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from ..geometry.alignment import align
from ..identity.recogniser import IdentityRecogniser
from ..restoration.large import detail_to_lose, scales_of
from ..restoration.tone import is_monochrome
from ..types import DetectOptions, Detector, Face, Faces
from .reading import ClipInfo, Frame
from .shots import Shots
from .tracks import BOX, DETAIL, FRAME, GRAY, POINTS, SCORE, SHARP, WIDTH, iou

_SEARCHES = 8  # a second; between them faces are looked at in their crops only
_EAGER = 0.6  # of the confidence: what a track may go on with; it needs the confidence itself in its better frames
_LEAST = 0.3  # probability below which nothing is taken for a face
_CROP = 128  # px of the crop that sharpness, gray and detail are measured in


class Source(Protocol):
    """A clip: a file, a folder of frames, or frames in memory."""

    info: ClipInfo
    broken: str

    def frames(self, first: int = 0, start_pts: int | None = None, stop_pts: int | None = None) -> Iterator[Frame]: ...


@dataclass(eq=False)
class Analysis:
    """What the first pass has found so far."""

    shots: Shots = field(default_factory=Shots)
    rows: list[np.ndarray] = field(default_factory=list)  # observations [WIDTH], ordered by frame
    vectors: dict[int, np.ndarray] = field(default_factory=dict)  # embeddings of some of them
    frames: int = 0  # seen
    pts: list[int] = field(default_factory=list)  # of every frame
    complete: bool = False
    broken: str = ""

    def table(self) -> np.ndarray:
        """[N,WIDTH] all observations."""
        return np.stack(self.rows) if self.rows else np.zeros((0, WIDTH))

    def pack(self) -> bytes:
        """As a file that ``unpack`` reads."""
        keys = sorted(self.vectors)
        vectors = np.stack([self.vectors[k] for k in keys]) if keys else np.zeros((0, 1))
        buffer = io.BytesIO()
        np.savez(
            buffer, rows=self.table(), keys=np.array(keys, int), vectors=vectors.astype(np.float32),
            frames=self.frames, pts=np.array(self.pts, np.int64), complete=self.complete, broken=self.broken,
            shots=np.array([self.shots.change, self.shots.across, self.shots.colours]),
        )  # fmt: skip
        return buffer.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> "Analysis":
        with np.load(io.BytesIO(data), allow_pickle=False) as parts:
            shots = Shots(*(list(map(float, row)) for row in parts["shots"]))
            vectors = dict(zip(map(int, parts["keys"]), parts["vectors"]))
            return cls(shots, list(parts["rows"]), vectors, int(parts["frames"]), parts["pts"].tolist(),
                       bool(parts["complete"]), str(parts["broken"]))  # fmt: skip


@dataclass(eq=False)
class Analyst:
    """Goes through a clip in strides: a full search in the last frame of each, crops in the frames between."""

    detector: Detector
    recogniser: IdentityRecogniser | None
    options: DetectOptions

    def __call__(
        self,
        frames: Iterator[Frame],
        rate: float,
        analysis: Analysis,
        progress: Callable[[int], None] | None = None,
        kept: Callable[[Analysis], None] | None = None,
    ) -> Analysis:
        """Go on with ``analysis`` over ``frames``.

        ``progress(frames seen)`` and ``kept(analysis)`` are called after every stride and may raise to stop.
        """
        stride = max(1, round(rate / _SEARCHES))
        sought = replace(self.options, confidence=max(min(_LEAST, self.options.confidence),
                                                      _EAGER * self.options.confidence))  # fmt: skip
        before: tuple[Frame, Faces] | None = None
        block: list[Frame] = []
        breaks = False
        for frame in frames:
            breaks |= analysis.shots.add(frame.pixels)
            analysis.pts.append(frame.pts)
            block.append(frame)
            if len(block) == (stride if before is not None else 1):
                before = self._stride(before, block, breaks, sought, analysis)
                block, breaks = [], False
                self._tell(analysis, progress, kept)
        if block:
            self._stride(before, block, breaks, sought, analysis)
        analysis.complete = True
        self._tell(analysis, progress, kept)
        return analysis

    @staticmethod
    def _tell(analysis: Analysis, progress: Any, kept: Any) -> None:
        if kept:
            kept(analysis)
        if progress:
            progress(analysis.frames)

    def _stride(self, before: tuple[Frame, Faces] | None, block: list[Frame], breaks: bool, sought: DetectOptions,
                analysis: Analysis) -> tuple[Frame, Faces]:  # fmt: skip
        images = [frame.tensor() for frame in block]
        last = self.detector(images[-1:], sought)[0]
        between: Sequence[Faces] = []
        if len(block) > 1:
            pairs = None if before is None or breaks else _pairs(before[1], last)
            look_again = getattr(self.detector, "look_again", None)
            if pairs is None or look_again is None:
                between = self.detector(images[:-1], sought)
            else:
                guesses = [tuple(_between(a, b, (n + 1) / len(block)) for a, b in pairs) for n in range(len(block) - 1)]
                between = look_again(images[:-1], guesses)
        for frame, faces in zip(block, between):
            for face in faces:
                analysis.rows.append(_row(frame.index, face))
        self._look_closely(block[-1], images[-1], last, analysis)
        analysis.frames = block[-1].index + 1
        return block[-1], last

    def _look_closely(self, frame: Frame, image: torch.Tensor, faces: Faces, analysis: Analysis) -> None:
        """Who the faces of a searched frame are, how sharp, and whether they are gray."""
        faces = tuple(face for face in faces if bool(face.landmarks.isfinite().all()))
        if not faces:
            return
        aligned = align([image], [faces], _CROP)
        crops = aligned.pixels.clamp(0, 1)
        gray = is_monochrome(crops).tolist()
        fine = detail_to_lose(crops, scales_of(aligned.matrices)).tolist()
        luma = crops.mean(1, keepdim=True)
        detail = (luma - F.avg_pool2d(luma, 3, 1, 1, count_include_pad=False)).square().mean((1, 2, 3))
        recogniser = self.recogniser
        vectors = None if recogniser is None else recogniser.embed_faces([image], [faces]).vectors.cpu().numpy()
        for number, face in enumerate(faces):
            if vectors is not None:
                analysis.vectors[len(analysis.rows)] = vectors[number]
            sharp = float(detail[number].sqrt()) * min(1.0, face.eye_distance / 32) * face.score
            analysis.rows.append(_row(frame.index, face, sharp, float(gray[number]), fine[number]))


def of_given(source: Source, faces: Sequence[Faces], recogniser: IdentityRecogniser | None) -> Analysis:
    """As the first pass, for faces that are known already: those of every frame."""
    analysis = Analysis()
    analyst = Analyst(lambda images, options: (), recogniser, DetectOptions())
    for frame in source.frames():
        analysis.shots.add(frame.pixels)
        analysis.pts.append(frame.pts)
        analyst._look_closely(frame, frame.tensor(), faces[frame.index], analysis)
        analysis.frames = frame.index + 1
    analysis.complete = True
    return analysis


def _row(frame: int, face: Face, sharp: float = 0.0, gray: float = -1.0, detail: float = 0.0) -> np.ndarray:
    row = np.zeros(WIDTH)
    row[FRAME], row[SCORE], row[SHARP], row[GRAY], row[DETAIL] = frame, face.score, sharp, gray, detail
    row[BOX], row[POINTS] = face.box.numpy(), face.landmarks.numpy().ravel()
    return row


def _pairs(before: Faces, after: Faces) -> list[tuple[Face, Face]] | None:
    """Each face with itself a stride later; None where one has come or gone, or moved too far to tell."""
    if len(before) != len(after):
        return None
    pairs, left = [], list(after)
    for face in before:
        best = max(left, key=lambda other: iou(face.box.numpy(), other.box.numpy()))
        if iou(face.box.numpy(), best.box.numpy()) < 0.4:
            return None
        left.remove(best)
        pairs.append((face, best))
    return pairs


def _between(a: Face, b: Face, share: float) -> Face:
    return Face(torch.lerp(a.box, b.box, share), math.sqrt(a.score * b.score),
                torch.lerp(a.landmarks, b.landmarks, share))  # fmt: skip
