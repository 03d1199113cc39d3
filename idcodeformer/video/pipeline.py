"""VideoPipeline: feeds FacePipeline's parts with tracks instead of single faces, and hands out frame after frame."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import BadImage
from ..identity.recogniser import cosine, mean_identity
from ..restoration.large import judge_track, scales_of
from ..types import DetectOptions, Embeddings, RestoreOptions, Upscaler
from .analysis import Analysis, Analyst, Source
from .people import ClipPeople, Wanted
from .queues import ahead
from .second_pass import RestoredFrame, SecondPass
from .smoothing import UNIT, smooth_track
from .tracks import Track, choose, follow, name_people, sharpest

if TYPE_CHECKING:
    from ..pipeline import FacePipeline

_READ_AHEAD = 3  # frames


class VideoPipeline:
    """Restores the faces of a clip in two passes: ``analyse``, ``plan`` (no pass), then ``restore``.

    ``pipeline`` is a FacePipeline whose restorer is a CodeFormerRestorer; its parts do the work.
    """

    def __init__(self, pipeline: FacePipeline):
        self.pipeline = pipeline

    def analyse(
        self,
        source: Source,
        options: DetectOptions | None = None,
        progress: Callable[[int], None] | None = None,
        analysis: Analysis | None = None,
        kept: Callable[[Analysis], None] | None = None,
        span: tuple[int | None, int | None] = (None, None),
    ) -> Analysis:
        """First pass: faces of every frame. ``analysis`` of an interrupted pass is gone on with.

        ``span``: times (in the clip's time base) at which the pass begins and before which it ends. ``progress`` gets
        the number of frames seen; it and ``kept`` are called every few frames and may raise to stop.
        """
        if self.pipeline.detector is None:
            raise BadImage("A clip needs a detector; build the pipeline with load_detector().")
        analysis = analysis or Analysis()
        if analysis.complete:
            return analysis
        seen = analysis.frames
        del analysis.pts[seen:]
        if seen:
            frames = source.frames(seen - 1, analysis.pts[-1], span[1])
            analysis.shots.go_on(next(frames).pixels, seen)
        else:
            frames = source.frames(0, *span)
        analyst = Analyst(self.pipeline.detector, self.pipeline.recogniser, options or DetectOptions())
        analyst(ahead(frames, _READ_AHEAD), float(source.info.rate), analysis, progress, kept)
        analysis.broken = source.broken
        return analysis

    def plan(
        self,
        analysis: Analysis,
        source: Source,
        options: DetectOptions | None = None,
        references: Embeddings | None = None,
        steadiness: float = 1.0,
        restoring: RestoreOptions | None = None,
    ) -> list[Track]:
        """The tracks of a clip with their people, which are kept, and the alignment of each frame.

        Of ``restoring``, ``large_faces`` matters here: what becomes of faces larger than the network.
        """
        rate, options = float(source.info.rate), options or DetectOptions()
        tracks = follow(analysis.table(), analysis.vectors, analysis.shots.cuts(), rate)
        recogniser = self.pipeline.recogniser
        name_people(tracks, recogniser.name if recogniser is not None else "")
        likeness = None
        if references is not None and recogniser is not None:
            person = mean_identity(references)
            likeness = [
                -1.0 if track.vector is None else
                float(cosine(Embeddings(torch.from_numpy(track.vector[None]).float(), recogniser.name), person))
                for track in tracks
            ]  # fmt: skip
        choose(tracks, options, source.info.size, likeness)
        for track in tracks:
            track.matrices = smooth_track(track, rate) if steadiness > 0 else _unsmoothed(track)
            if track.kept:
                self._judge(track, restoring or RestoreOptions())
        return tracks

    def know(self, tracks: Sequence[Track], source: Source, analysis: Analysis, options: RestoreOptions | None,
             wanted: Wanted) -> ClipPeople:  # fmt: skip
        """Name the tracks of ``plan``; what is returned is handed to ``restore``. Raises BadOption.

        It also finds the fidelity of ``options.identity_target`` for each track as a whole.
        """
        people = ClipPeople(self.pipeline, source, analysis, options or RestoreOptions(), wanted)
        people.name(tracks)
        return people

    def _judge(self, track: Track, options: RestoreOptions) -> None:
        """A track that is larger than the network is treated as one, from its first frame to its last."""
        side = self.pipeline.restorer.size
        scale = float(np.median(scales_of(torch.from_numpy(track.matrices)))) * UNIT / side
        large = judge_track(track.detail, scale, side, options)
        if large is not None:
            track.kept, track.own_detail, track.reason = large.kept, large.kept, large.reason

    def restore(
        self,
        source: Source,
        tracks: Sequence[Track],
        options: RestoreOptions | None = None,
        steadiness: float = 1.0,
        upscaler: Upscaler | None = None,
        first: int = 0,
        span: tuple[int | None, int | None] = (None, None),
        masks: Callable[[int], Tensor | None] | None = None,
        people: ClipPeople | None = None,
    ) -> Iterator[RestoredFrame]:
        """Second pass: every frame from the one numbered ``first`` on, in order.

        ``span``: as for ``analyse``; its start is the time of frame ``first``. ``masks(frame)`` limits where anything
        changes. ``people``: of ``know``. Only a few frames are held at a time, however long the clip is.
        """
        options = options or RestoreOptions()
        run = SecondPass(self.pipeline, source, tracks, options, steadiness, upscaler, masks, people)
        frames = ahead(source.frames(first, *span), _READ_AHEAD)
        try:
            for frame in frames:
                yield from run.take(frame)
            yield from run.finish()
        finally:
            frames.close()

    def portraits(self, source: Source, tracks: Sequence[Track], analysis: Analysis, person: int,
                  most: int = 5) -> list[Tensor]:  # fmt: skip
        """Parts [3,h,w] of the frames that show a person best, around the face: reference photos of that person."""
        found = sorted(sharpest(tracks, person, most, max(2, round(float(source.info.rate) / 3))), key=lambda f: f[1])
        pictures = []
        for track, number in found:
            frame = next(source.frames(number, analysis.pts[number], None), None)
            if frame is not None:
                pictures.append(_around(frame.tensor(), track.boxes[number - track.start]))
        return pictures


def _around(image: Tensor, box: np.ndarray) -> Tensor:
    """The part of ``image`` around a face, twice as large as its box."""
    width, height = box[2] - box[0], box[3] - box[1]
    left, top = max(0, int(box[0] - width / 2)), max(0, int(box[1] - height / 2))
    return image[:, top : int(box[3] + height / 2) + 1, left : int(box[2] + width / 2) + 1].contiguous()


def _unsmoothed(track: Track) -> np.ndarray:
    from ..geometry.templates import fit_lmeds

    return fit_lmeds(torch.from_numpy(track.points).float(), UNIT).double().numpy()
