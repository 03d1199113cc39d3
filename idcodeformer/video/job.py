"""A clip as a file -> its result as a file: two passes, work kept in segments, every outcome told.

All that a run has done lies in a hidden folder beside the result. A run that was killed is gone on with by the same
command; the folder goes when the result is there. What was asked for and the source's fingerprint name the folder, so
that other work is never taken for this.
"""
from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..batch.outcome import COMPARE, CROPPED, FINAL, Outcome
from ..batch.settings import RestoreSettings
from ..compositing.plan import output_size
from ..errors import BadClip, BadImage, BadOption, IDCodeFormerError
from ..files.reading import Picture
from ..files.writing import make_folder, write, write_bytes
from ..guidance.options import GuidanceOptions
from ..identity.known import Galleries, References, known_people
from ..runtime.memory import is_out_of_memory
from ..types import Progress, Upscaler
from . import codecs
from .analysis import Analysis, Source
from .library import pyav
from .people import ClipPeople, Wanted
from .pipeline import VideoPipeline
from .queues import Behind
from .reading import Clip
from .segments import Segments
from .sequence import FrameFolder
from .telling import mark, track_lines
from .tracks import WIDTH, Track
from .workplace import workplace, write_copy
from .writing import COPIED, Encoding, finished, join

if TYPE_CHECKING:
    from ..pipeline import FacePipeline

_KEPT_EVERY = 5.0  # seconds of work after which the first pass is written down
_WARM_UP = 0.8  # seconds before a segment from which a resumed run restores again, so that no seam shows
_WRITE_BEHIND = 3  # frames


@dataclass(frozen=True)
class ClipSettings:
    """What is asked of clips alone."""

    codec: str | None = None  # of codecs.CODECS; None: the source's own, or H.264
    crf: float | None = None
    span: tuple[float, float] | None = None  # seconds
    steadiness: float = 1.0  # 0..1
    sequence: Fraction | None = None  # frames a second of folders that are the frames of a clip
    refused: str = ""  # why no clip can be restored with what was asked; "": it can
    only_known: bool = False  # faces of nobody on the references or in the gallery stay as they are
    own_references: bool = False  # guide by the sharpest frames of each person in the clip
    guidance: GuidanceOptions | None = None  # by own references; otherwise that of the settings counts


@dataclass
class ClipOutcome(Outcome):
    """What became of a clip."""

    frames: int = 0
    tracks: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def restored(self) -> int:
        """Tracks of which a face was restored."""
        return len({face["track"] for face in self.faces if face["status"] == "restored"})


class VideoJob:
    """Restores one clip after another with the networks and settings of a RestoreJob."""

    def __init__(self, pipeline: FacePipeline, settings: RestoreSettings, clips: ClipSettings | None = None,
                 references: References | None = None, upscaler: Upscaler | None = None, model: str = "",
                 failed: Callable[[Exception], None] | None = None, people: Galleries | None = None):  # fmt: skip
        self.pipeline, self.settings, self.clips = VideoPipeline(pipeline), settings, clips or ClipSettings()
        self.references, self.upscaler, self.model, self.failed = references, upscaler, model, failed
        self.people, self._wanted = people, None

    def attempt(self, path: Path, target: Path, progress: Progress | None = None) -> ClipOutcome:
        """Restore the clip at ``path``; whatever goes wrong with it is told in the outcome.

        ``target`` is the path of its result in the folder of results, without ending.
        """
        outcome, start = ClipOutcome(str(path)), time.perf_counter()
        try:
            self._work(path, target, outcome, progress or _silent)
        except Exception as error:  # told, counted and turned into exit code 1; the other files go on
            if self.failed:
                self.failed(error)
            told = str(error) if isinstance(error, IDCodeFormerError) else f"{type(error).__name__}: {error}"
            if is_out_of_memory(error):
                told = f"{path} does not fit into memory; close other programs or scale it down."
            outcome.error = told if str(path) in told else f"{path}: {told}"
        outcome.seconds = round(time.perf_counter() - start, 3)
        return outcome

    def restore(self, path: Path, target: Path, progress: Progress | None = None) -> ClipOutcome:
        """As ``attempt``, but raises what goes wrong. Where the clip breaks off the outcome says so."""
        outcome = ClipOutcome(str(path))
        self._work(path, target, outcome, progress or _silent)
        return outcome

    def _work(self, path: Path, target: Path, outcome: ClipOutcome, progress: Progress) -> None:
        if self.clips.refused:
            raise BadOption(self.clips.refused)
        source: Source = FrameFolder(path, self.clips.sequence or Fraction(25)) if path.is_dir() else Clip(path)
        info, settings = source.info, self.settings
        outcome.size, outcome.notes = info.size[::-1], list(info.notes)
        size = output_size(*info.size, settings.options.upscale)
        codec = codecs.codec_for(self.clips.codec, info)
        codecs.check(codec, self.clips.crf, size)
        ending, muxer, note = codecs.container_for(_ending(path, codec), codec, _copied(path))
        outcome.notes += [note] * bool(note)
        file = self._file(FINAL, target, ending)
        if file.exists() and not settings.overwrite:
            if not settings.skip_existing:
                raise BadImage(f"{file} exists already; add --overwrite or --skip-existing, or another output.")
            outcome.status, outcome.output = "kept", str(file)
            return
        encoding = Encoding(codec, self.clips.crf, codecs.pixel_format(codec, info, size), size)
        with workplace(file, self._key(path, encoding)) as folder:
            analysis = self._analysed(source, folder, progress)
            tracks, people = self._planned(source, analysis)
            if any(track.kept for track in tracks) or self._changes():
                self._segments(source, analysis, tracks, folder, encoding, progress, people)
                outcome.notes += self._joined(file, target, folder, source, muxer)
            else:  # encoding anew would only lose quality
                make_folder(file.parent)
                file = self._file(FINAL, target, path.suffix.lower())
                write_copy(path, file, settings.overwrite)
            if settings.save_crops:
                self._portraits(source, analysis, tracks, target)
            self._tell(outcome, file, folder, analysis, tracks, source)
        shutil.rmtree(folder, ignore_errors=True)

    def _planned(self, source: Source, analysis: Analysis) -> tuple[list[Track], ClipPeople | None]:
        """The tracks, and who they are where anybody asked."""
        options, wanted = self.settings.options, self._asked()
        judge = self.pipeline.pipeline.recogniser
        known = wanted.known.by(judge) if wanted.known is not None and wanted.known.shared else None
        tracks = self.pipeline.plan(
            analysis, source, self.settings.detect_options, None if known is None else known.identities,
            self.clips.steadiness, options,
        )  # fmt: skip
        if wanted.known is None and not wanted.own and options.identity_target <= 0:
            return tracks, None
        return tracks, self.pipeline.know(tracks, source, analysis, options, wanted)

    def _asked(self) -> Wanted:
        """Embedded once for all clips."""
        if self._wanted is None:
            pipeline, clips = self.pipeline.pipeline, self.clips
            guidance = clips.guidance if clips.own_references else self.settings.guidance
            judges = [pipeline.recogniser, pipeline.guide if pipeline.guide is not pipeline.recogniser else None]
            known = known_people(self.references, self.people, pipeline.detector, [j for j in judges if j is not None])
            self._wanted = Wanted(known, guidance, clips.own_references, clips.only_known)
        return self._wanted

    def _changes(self) -> bool:
        """Whether the result differs from its source even without a face."""
        clips = self.clips
        asked = (clips.codec, clips.crf, clips.span, clips.sequence)
        return self.settings.options.upscale != 1 or self.settings.compare or any(part is not None for part in asked)

    def _span(self, source: Source) -> tuple[int | None, int | None]:
        if self.clips.span is None:
            return None, None
        low, high = self.clips.span
        base = source.info.time_base
        return round(Fraction(low) / base), None if high == float("inf") else round(Fraction(high) / base)

    def _analysed(self, source: Source, folder: Path, progress: Progress) -> Analysis:
        kept = folder / "faces.npz"
        analysis = Analysis.unpack(kept.read_bytes()) if kept.exists() else Analysis()
        written = time.monotonic()

        def keep(analysis: Analysis) -> None:
            nonlocal written
            if analysis.complete or time.monotonic() - written > _KEPT_EVERY:
                write_bytes(kept, analysis.pack(), overwrite=True)
                written = time.monotonic()

        total = max(1, source.info.count)
        analysis = self.pipeline.analyse(
            source, self.settings.detect_options, lambda done: progress(done, total, "detecting"), analysis, keep,
            self._span(source),
        )  # fmt: skip
        if not analysis.frames:
            raise BadClip(f"{source.info.path} has no frame in this range; give another --range.")
        write_bytes(kept, analysis.pack(), overwrite=True)
        return analysis

    def _segments(self, source: Source, analysis: Analysis, tracks: list[Track], folder: Path, encoding: Encoding,
                  progress: Progress, people: ClipPeople | None) -> None:  # fmt: skip
        there = finished(folder)
        first = sum(len(segment["times"]) for segment in there)
        if first >= analysis.frames:
            return
        begin = max(0, first - round(_WARM_UP * float(source.info.rate)))
        writer = Segments(folder, len(there), source, encoding, self.settings.compare)
        behind = Behind(writer.take, _WRITE_BEHIND)
        span = (analysis.pts[begin], self._span(source)[1])
        frames = self.pipeline.restore(
            source, tracks, self.settings.options, self.clips.steadiness, self.upscaler, begin, span, None, people
        )
        finished_well = False
        try:
            for frame in frames:
                if frame.source.index >= first:
                    behind.put(frame)
                    progress(frame.source.index + 1, analysis.frames, "restoring")
            finished_well = True
        finally:
            frames.close()
            behind.close(drop=not finished_well)
            writer.close(finished_well)

    def _joined(self, file: Path, target: Path, folder: Path, source: Source, muxer: str) -> list[str]:
        make_folder(file.parent)
        if self.settings.compare:
            sheet = self._file(COMPARE, target, file.suffix)
            make_folder(sheet.parent)
            join(folder / COMPARE, sheet, source.info, muxer, True, self.clips.span)
        comment = mark(finished(folder), self.model)
        return join(folder, file, source.info, muxer, self.settings.overwrite, self.clips.span, None, comment)

    def _portraits(self, source: Source, analysis: Analysis, tracks: list[Track], target: Path) -> None:
        """The frames in which each person is seen best, as photos of that person for --reference and people."""
        for person in sorted({track.person for track in tracks if track.kept}):
            pictures = self.pipeline.portraits(source, tracks, analysis, person)
            for number, picture in enumerate(pictures):
                file = (self.settings.out or Path()) / CROPPED / target / f"person_{person}" / f"{number:02d}.png"
                write(file, Picture(picture[None]), True)

    def _tell(self, outcome: ClipOutcome, file: Path, folder: Path, analysis: Analysis, tracks: list[Track],
              source: Source) -> None:  # fmt: skip
        base = source.info.time_base
        outcome.output, outcome.frames = str(file), analysis.frames
        lines = [line for segment in finished(folder) for line in segment["state"].get("lines", [])]
        outcome.faces = [line | {"time": round(float(analysis.pts[line["frame"]] * base), 4)} for line in lines]
        outcome.tracks = track_lines(tracks, lines)
        outcome.status = "restored" if any(t.kept for t in tracks) else "left as it was" if tracks else "no face"
        if analysis.broken:
            outcome.error = f"{source.info.path} {analysis.broken}; the {analysis.frames} frames before are in {file}."

    def _file(self, folder: str, target: Path, ending: str) -> Path:
        name = f"{target.name}{self.settings.suffix}{ending}"
        return (self.settings.out or Path()) / folder / target.with_name(name)

    def _key(self, path: Path, encoding: Encoding) -> str:
        """Differs where the result would."""
        from .. import __version__

        settings = replace(self.settings, overwrite=False, skip_existing=False).to_dict()
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stamp = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        versions = (__version__, WIDTH, pyav().__version__)  # the second stands for the form of the first pass
        asked = [versions, str(path.resolve()), stamp, settings, str(self.clips), str(encoding), self.model]
        return hashlib.sha256(json.dumps([*asked, self._who()], default=str).encode()).hexdigest()[:12]

    def _who(self) -> list[str]:
        """Fingerprints of the people's embeddings, and who guides: photos may change under their names."""
        known, guide = self._asked().known, self.pipeline.pipeline.guide
        vectors = [] if known is None else [people.identities.vectors.cpu().numpy() for people in known.galleries]
        return [guide.name if guide is not None else "", *(hashlib.sha256(v.tobytes()).hexdigest() for v in vectors)]


def _ending(path: Path, codec: str) -> str:
    ending = path.suffix.lower()
    return codecs.CODECS[codec].endings[0] if path.is_dir() or ending == ".gif" else ending


def _copied(path: Path) -> list[Any]:
    """The streams of a clip that are copied. Only their names and kinds are used after it is closed."""
    if path.is_dir():
        return []
    with pyav().open(str(path)) as container:
        return [codecs.Named(stream.type, codecs.stream_codec(stream)) for stream in container.streams
                if stream.type in COPIED]  # fmt: skip


def _silent(done: int, total: int, what: str) -> None:
    pass
