"""What ``restore`` adds for clips: their options, which inputs are clips, and what is told of them."""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadOption
from ..files.finding import CLIPS

if TYPE_CHECKING:
    from ..batch import RestoreJob
    from ..video.job import ClipOutcome, ClipSettings, VideoJob

CODECS = ("h264", "h265", "av1", "ffv1", "prores")


def add_clip_options(sub: argparse.ArgumentParser) -> None:
    clips = sub.add_argument_group("clips (mp4, mov, mkv, webm, avi, ...; gif with --codec)")
    clips.add_argument("--codec", choices=CODECS, help="default the clip's own, or h264")
    clips.add_argument("--crf", type=float, metavar="N", help="quality, lower is better; default 16 for h264, 18 for "
                       "h265, 22 for av1")
    clips.add_argument("--range", metavar="START:END", help="seconds; either may be left out")
    clips.add_argument("--steadiness", type=float, default=1.0, metavar="0..1",
                       help="how far flicker is damped; 0 restores frame by frame; default 1")
    clips.add_argument("--sequence", type=Fraction, metavar="FPS",
                       help="folders that are named are the frames of one clip each, at so many frames a second")
    clips.add_argument("--own-reference", action="store_true", help="--guide by the sharpest frames of each person in "
                       "the clip, in the place of --reference")


def settings_of(args: argparse.Namespace) -> ClipSettings:
    """Raises BadOption."""
    from ..guidance.options import GuidanceOptions
    from ..video.job import ClipSettings
    from ..video.reading import parse_range

    if not 0 <= args.steadiness <= 1:
        raise BadOption(f"--steadiness is {args.steadiness:g}; it must lie between 0 and 1.")
    if args.sequence is not None and not 0 < args.sequence <= 1000:
        raise BadOption(f"--sequence is {float(args.sequence):g}; give the frames a second, such as 25 or 30000/1001.")
    span = None if args.range is None else parse_range(args.range)
    own = args.own_reference
    if own and (args.reference or args.people):
        raise BadOption("--own-reference and photos of people were given; give one of them.")
    if own and not args.guide:
        raise BadOption("--own-reference needs --guide STEPS, 15 for most faces.")
    if args.keep == "person" and not args.reference and not args.people:
        raise BadOption("--keep person needs --reference PHOTO, photos of the person, or --people FOLDER.")
    guidance = GuidanceOptions(args.guide, args.guide_strength) if own else None
    return ClipSettings(args.codec, args.crf, span, args.steadiness, args.sequence, "", args.keep == "person", own,
                        guidance)  # fmt: skip


def is_clip(path: Path, args: argparse.Namespace) -> bool:
    """Whether ``path`` goes to the clips. A GIF is a picture unless a codec is named."""
    ending = path.suffix.lower()
    return ending in CLIPS or path.is_dir() or (ending == ".gif" and args.codec is not None)


def sequences(args: argparse.Namespace, named: list[str]) -> list[tuple[Path, Path]]:
    """(folder, name of its result) of the folders that are the frames of a clip."""
    if args.sequence is None:
        return []
    return [(Path(path), Path(f"{Path(path).resolve().name}.clip")) for path in named if Path(path).is_dir()]


def video_job(job: RestoreJob, args: argparse.Namespace) -> VideoJob:
    """For the clips of a run, with the networks of its pictures. What does not go with clips fails clip by clip."""
    import copy
    from dataclasses import replace

    from ..batch.models import load_guide
    from ..video.job import VideoJob

    assert job.pipeline is not None
    settings = settings_of(args)
    asked, pipeline = job.settings, job.pipeline
    if asked.detect_options.keep == "person":
        asked = replace(asked, detect_options=replace(asked.detect_options, keep="all"))
    if args.aligned:
        settings = replace(settings, refused="--aligned is for pictures; leave it out for clips.")
    if not hasattr(pipeline.restorer, "decode"):
        settings = replace(settings, refused="Clips need a CodeFormer; this --model has no codes to keep steady.")
    if settings.own_references:
        pipeline = copy.copy(pipeline)
        guided = replace(asked, guidance=settings.guidance)
        pipeline.guide = load_guide(guided, pipeline.recogniser) or pipeline.recogniser
    return VideoJob(pipeline, asked, settings, job.references, job.upscaler, job.model, job.failed, job.people)


def progress_of(bar: Any, number: int) -> Callable[[int, int, str], None]:
    """Frames a second and the time that remains, for one clip."""
    started: dict[str, tuple[float, int]] = {}

    def progress(done: int, total: int, what: str) -> None:
        begin, first = started.setdefault(what, (time.monotonic(), done))
        rate = (done - first) / max(1e-6, time.monotonic() - begin)
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 and total > done else ""
        bar.set_postfix_str(f"{what} {done}/{total} {rate:.1f} frames/s{left}", refresh=False)
        share = 0.3 * done / max(1, total) if what == "detecting" else 0.3 + 0.65 * done / max(1, total)
        bar.update(number + min(share, 0.95) - bar.n)

    return progress


def describe(outcome: ClipOutcome, faithful: bool = False) -> str:
    """One line a person reads; with ``faithful`` it tells each track's w."""
    if outcome.status == "kept":
        return f"{outcome.input} -> {outcome.output}: kept, the result was there"
    if outcome.error:
        return f"{outcome.input}: {outcome.status}: {outcome.error}"
    kept = [track for track in outcome.tracks if track["kept"]]
    people = len({track["person"] for track in kept})
    told = [f"{outcome.frames} frames"]
    told.append(f"{_many(people, 'face')} restored in {_many(len(kept), 'track')}" if kept else
                "no face restored" if outcome.tracks else "no face found")
    left = sorted({track["reason"] for track in outcome.tracks if not track["kept"]})
    if left:
        told.append(f"{_many(len(outcome.tracks) - len(kept), 'track')} skipped ({'; '.join(left)})")
    if named := list(dict.fromkeys(track["name"] for track in outcome.tracks if track["name"])):
        told.append(f"shows {', '.join(named)}")
    if faithful:
        told.append("w " + " ".join(f"{track['w']:.2f}" for track in kept if "w" in track))
        told += sorted({f["reason"] for f in outcome.faces if f["reason"].startswith("identity target")})
    if guided := list(dict.fromkeys(track["guidance"] for track in kept if track.get("guidance"))):
        told.append("; ".join(guided))
    pairs = [f"{t['id_sim_before']:.2f}>{t['id_sim_after']:.2f}" for t in kept if t.get("id_sim_after") is not None]
    if pairs:
        told.append(f"to the references {' '.join(pairs)}")
    scores = [face["id_sim_input"] for face in outcome.faces if face["id_sim_input"] is not None]
    if scores:
        told.append(f"ID-Sim to the input {sum(scores) / len(scores):.2f}")
    told += outcome.notes
    rate = outcome.frames / max(outcome.seconds, 1e-3)
    return f"{outcome.input} -> {outcome.output}: {'; '.join(told)}; {outcome.seconds:.1f} s, {rate:.1f} frames/s"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
