"""What the second pass over a clip holds between frames: faces on their way, and frames that wait for them."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..compositing.blend import enlarged, paste
from ..compositing.plan import output_size
from ..errors import BadImage
from ..geometry.alignment import align
from ..identity.recogniser import cosine
from ..types import Crops, Face, RestoreOptions, Upscaler
from .analysis import Source
from .people import ClipPeople, Treatment
from .reading import Frame, to_pixels
from .smoothing import landmarks_of
from .steady import SteadyFace
from .tracks import Track, as_face

if TYPE_CHECKING:
    from ..pipeline import FacePipeline

_FADE = 0.25  # seconds in which a face that is too little like its input goes over to it, or back
_SCORES = 4  # a second; identity is measured that often along a track

@dataclass(frozen=True, eq=False)
class RestoredFrame:
    """A frame of the result, and a line for each face that a track has in it."""

    source: Frame
    pixels: np.ndarray  # [H',W',3], the type of the source's
    share: Tensor | None  # [1,H',W'] of each pixel that was replaced; None where nothing was
    lines: list[dict[str, Any]] = field(default_factory=list)
    crops: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # track -> input and restored crop [3,S,S]


@dataclass(eq=False)
class _Waiting:
    """A frame whose faces are not all restored yet."""

    frame: Frame
    expected: dict[int, Tensor]  # track number -> matrix
    crops: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # input, restored


class SecondPass:
    """What the second pass holds between frames."""

    def __init__(self, pipeline: FacePipeline, source: Source, tracks: Sequence[Track], options: RestoreOptions,
                 steadiness: float, upscaler: Upscaler | None, masks: Any,
                 people: ClipPeople | None = None):  # fmt: skip
        self.pipeline, self.options, self.steadiness = pipeline, options, steadiness
        self.upscaler, self.masks, self.people = upscaler, masks, people
        self.treatments: dict[int, Treatment] = {}
        self.info = source.info
        self.rate = float(source.info.rate)
        self.tracks = {track.number: track for track in tracks if track.kept}
        self.skipped = [track for track in tracks if not track.kept]
        self.faces: dict[int, SteadyFace] = {}
        self.waiting: list[_Waiting] = []
        self.likeness: dict[int, float] = {}
        self.blend: dict[int, float] = {}

    def take(self, frame: Frame) -> Iterator[RestoredFrame]:
        here = [t for t in self.tracks.values() if t.start <= frame.index < t.stop]
        waiting = _Waiting(frame, {})
        self.waiting.append(waiting)
        if here:
            faces = tuple(_shown_in(t, frame.index) for t in here)
            device = self.pipeline.restorer.device
            crops = align([frame.tensor().to(device)], [faces], self.pipeline.restorer.size, self.options.border)
            for n, track in enumerate(here):
                waiting.expected[track.number] = crops.matrices[n].cpu()
                self._push(track, [frame.index], crops.pixels[n : n + 1].clamp(0, 1), frame.index + 1 >= track.stop)
        yield from self._ready()

    def finish(self) -> Iterator[RestoredFrame]:
        """What still waits, where the clip ends before its tracks do."""
        for number in list(self.faces):
            self._push(self.tracks[number], [], torch.zeros(0), True)
        yield from self._ready()

    def _push(self, track: Track, frames: list[int], pixels: Tensor, last: bool) -> None:
        face = self.faces.get(track.number)
        if face is None:
            done = Treatment(self.options.w) if self.people is None else self.people.treat(track)
            self.treatments[track.number] = done
            face = SteadyFace(self.pipeline.restorer, replace(self.options, w=done.w), self.rate, track.gray,
                              self.steadiness, done.offset)  # fmt: skip
            self.faces[track.number] = face
        for number, before, after in face.push(frames, pixels, last):
            low, high = after.aminmax()
            if not bool(torch.isfinite(low + high)):
                raise BadImage("The network returned NaN; choose precision fp32, or check the weight file.")
            place = number - self.waiting[0].frame.index
            self.waiting[place].crops[track.number] = (before, after)
        if last:
            del self.faces[track.number]

    def _ready(self) -> Iterator[RestoredFrame]:
        while self.waiting and len(self.waiting[0].crops) == len(self.waiting[0].expected):
            yield self._pasted(self.waiting.pop(0))

    def _pasted(self, done: _Waiting) -> RestoredFrame:
        frame, options = done.frame, self.options
        size = output_size(*frame.pixels.shape[:2], options.upscale)
        lines = [_line(t, frame.index, "skipped", t.reason) for t in self.skipped if t.start <= frame.index < t.stop]
        if not done.crops and tuple(size) == frame.pixels.shape[:2]:
            return RestoredFrame(frame, frame.pixels, None, lines)
        image = frame.tensor()
        deep = frame.pixels.dtype == np.uint16
        if not done.crops:
            device = getattr(self.pipeline.restorer, "device", image.device)
            return RestoredFrame(frame, to_pixels(enlarged(image.to(device), size, self.upscaler), deep), None, lines)
        numbers = sorted(done.crops)
        before = torch.stack([done.crops[n][0] for n in numbers])
        after = torch.stack([done.crops[n][1] for n in numbers])
        shares = [self._shown(self.tracks[n], frame.index, done.crops[n]) for n in numbers]
        for n, (share, likeness) in zip(numbers, shares):
            reason = "" if share > 0 else f"identity {likeness:.2f} is below {options.min_identity:g}"
            done_so = self.treatments[n]
            line = _line(self.tracks[n], frame.index, "restored" if share > 0 else "skipped", reason or done_so.note,
                         likeness)  # fmt: skip
            lines.append(line | {"w": round(done_so.w, 4)} | done_so.told)
            if frame.index + 1 >= self.tracks[n].stop:
                del self.treatments[n]  # its offsets
        weight = torch.tensor([share for share, _ in shares], device=after.device)[:, None, None, None]
        crops = Crops(before, torch.stack([done.expected[n] for n in numbers]),
                      torch.zeros(len(numbers), dtype=torch.int64), (tuple(frame.pixels.shape[:2]),))  # fmt: skip
        mask = None if self.masks is None else [self.masks(frame.index)]
        everyone = [t for t in (*self.tracks.values(), *self.skipped) if t.start <= frame.index < t.stop]
        own = [self.tracks[n].own_detail for n in numbers]
        pasted, share = paste([image], crops, torch.lerp(before, after, weight), options, self.pipeline.parser, mask,
                              self.upscaler, None, after.device, [tuple(_shown_in(t, frame.index) for t in everyone)],
                              own)  # fmt: skip
        lines.sort(key=lambda line: line["track"])
        return RestoredFrame(frame, _written(frame.pixels, pasted[0], share[0]), share[0], lines, done.crops)

    def _shown(self, track: Track, frame: int, crops: tuple[Tensor, Tensor]) -> tuple[float, float | None]:
        """(share of the restored face in the result, its ID-Sim), which change little from frame to frame."""
        recogniser, least = self.pipeline.recogniser, self.options.min_identity
        if recogniser is None:
            return 1.0, None
        every = max(1, round(self.rate / _SCORES))
        known = self.likeness.get(track.number)
        if known is None or (frame - track.start) % every == 0:
            measured = float(cosine(recogniser(crops[0][None]), recogniser(crops[1][None])))
            known = measured if known is None else known + 0.5 * (measured - known)
            self.likeness[track.number] = known
        wanted = 1.0 if least <= 0 or known >= least else 0.0
        share = self.blend.get(track.number, wanted)
        step = 1 / max(1.0, _FADE * self.rate)
        share = min(max(wanted, share - step), share + step)
        self.blend[track.number] = share
        return share, known


def _written(before: np.ndarray, image: Tensor, share: Tensor) -> np.ndarray:
    """``image`` [3,H',W'] as pixels; where nothing was replaced in a frame of its size, those of ``before``."""
    deep = before.dtype == np.uint16
    if tuple(image.shape[1:]) != before.shape[:2]:
        return to_pixels(image, deep)
    rows, columns = ((share[0] > 0).any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    out = before.copy()
    if rows:
        part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        out[part] = to_pixels(image[(slice(None), *part)], deep)
    return out


def _shown_in(track: Track, frame: int) -> Face:
    """A face of a frame as masks see it: along the smoothed alignment, so that they are as steady."""
    return as_face(track, frame, landmarks_of(track.matrices[frame - track.start]))


def _line(track: Track, frame: int, status: str, reason: str = "", likeness: float | None = None) -> dict[str, Any]:
    row = frame - track.start
    box = [round(float(v), 1) for v in track.boxes[row]]
    return {"frame": frame, "track": track.number, "person": track.person, "name": track.name, "box": box,
            "seen": bool(track.scores[row] > 0), "status": status, "reason": reason,
            "id_sim_input": None if likeness is None else round(likeness, 4)}  # fmt: skip
