"""``restore``: files in, files out. One file's trouble never costs the others."""
from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from ..batch import FINAL, RESTORED, Outcome, RestoreJob, RestoreSettings
from ..errors import BadImage
from ..files.finding import look_through
from ..files.run_report import RunReport
from ..files.writing import clear_partials, make_folder
from ..runtime.progress import progress_bar
from . import video
from .reports import check_report, describe, write_json
from .settings import default_output, named, options_of, settings_of
from .targets import RESULTS, not_results, plan_targets
from .telling import note, printable


def run_restore(args: argparse.Namespace) -> int:
    """The exit code of ``restore``. What can be wrong with the arguments is said before a model is loaded."""
    options, detect_options = options_of(args)
    out = Path(args.output) if args.output else default_output(args)
    settings = settings_of(args, out, options, detect_options)
    video.settings_of(args)
    paths = named(args)
    folders = video.sequences(args, paths)
    others = [path for path in paths if not any(Path(path) == folder for folder, _ in folders)]
    found = look_through(others, args.recursive, clips=not args.aligned)
    inputs = not_results([*found.pictures, *folders], out)
    for file, why in found.unread:
        note(f"not read: {file}: {why}")
    if not inputs:
        raise BadImage("There is no picture left to restore: all that were named lie in the output folder.")
    make_folder(out / (RESTORED if args.aligned else FINAL))
    for folder in RESULTS:
        clear_partials(out / folder)
    earlier = check_report(args)
    job = _loaded(settings, args)
    outcomes: list[Outcome] = []
    report = None
    if args.json and args.json != "-":
        header = job.report([], _told(args)) | {"not_read": [f"{file}: {why}" for file, why in found.unread]}
        report = RunReport(Path(args.json), header, earlier)
    try:
        _work(job, plan_targets(inputs), outcomes, args, report)
    except KeyboardInterrupt:
        note(f"{len(outcomes)} of {len(inputs)} files were done; go on with --skip-existing.")
        raise
    finally:
        if report is not None:
            report.close()
        elif args.json and outcomes:
            write_json(args.json, job.report(outcomes, _told(args)), args)
    if found.unread:
        note(f"Not read: {len(found.unread)} of the pictures; they are listed above.")
    return _summary(outcomes)


def _loaded(settings: RestoreSettings, args: argparse.Namespace) -> RestoreJob:
    """The job with its networks, after what has no effect was named."""
    given = {"--upscale": args.upscale != 1, "--compare": args.compare, "--save-crops": args.save_crops}
    if args.aligned and any(given.values()):
        note(f"--aligned writes restored crops alone: {', '.join(k for k, v in given.items() if v)} is left out.")
    job = RestoreJob(settings, failed=_show if args.debug else None, tell=note).load()
    if job.upscaler is None and args.face_upsample and args.upscale > 1:
        note("--face-upsample has no upscaler: faces are enlarged by interpolation; name one with --bg-upsampler.")
    restorer = job.pipeline.restorer
    w = f"w {args.w:g}" if getattr(restorer, "has_fidelity", True) else "no fidelity"
    note(f"{job.model}: {restorer.size} px faces on {restorer.device}, precision {args.precision}, {w}")
    guide, judge = job.pipeline.guide, job.pipeline.recogniser
    if settings.guidance.steps and guide is not None:
        own = "guides and scores" if judge is None or judge is guide else f"guides, {judge.name} judges"
        note(f"{guide.name} {own}")
    return job


def _show(error: Exception) -> None:
    traceback.print_exception(error)


def _told(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments for the report."""
    return {name: value for name, value in vars(args).items() if name not in ("handler", "command")}


def _work(job: RestoreJob, targets: list[tuple[Path, Path]], outcomes: list[Outcome], args: argparse.Namespace,
          report: RunReport | None = None) -> None:
    clips = video.video_job(job, args) if any(video.is_clip(path, args) for path, _ in targets) else None
    layout = "{desc}{percentage:3.0f}%|{bar}| {n:.1f}/{total} files [{elapsed}<{remaining}, {rate_fmt}]{postfix}"
    with progress_bar(len(targets), "file", bar_format=layout, disable=None) as bar:

        def told(outcome: Outcome, line: str) -> None:
            outcomes.append(outcome)
            if report is not None:
                report.add(outcome.entry())
            bar.update(max(0, len(outcomes) - bar.n))
            stream = sys.stderr if args.json == "-" or outcome.error else sys.stdout
            bar.write(printable(line), file=stream)

        def picture(outcome: Outcome) -> None:
            told(outcome, describe(outcome, args.target_identity > 0))

        first = 0
        for is_clip, group in groupby(targets, key=lambda pair: clips is not None and video.is_clip(pair[0], args)):
            here = list(group)
            if is_clip:
                for number, (path, target) in enumerate(here, first):
                    clip = clips.attempt(path, target, video.progress_of(bar, number))
                    told(clip, video.describe(clip, args.target_identity > 0))
            else:
                job.attempt_all(here, picture, partial(_face_progress, bar, first))
            first += len(here)


def _face_progress(bar, first: int, number: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, what: str) -> None:
        bar.set_postfix_str(f"{what} {done}/{total}", refresh=False)
        if what == "restoring" and total:
            bar.update(max(0, first + number + 0.95 * done / total - bar.n))

    return progress


def _summary(outcomes: list[Outcome]) -> int:
    bad = [outcome for outcome in outcomes if outcome.error]
    if bad:
        print(f"{len(bad)} of {len(outcomes)} files were not restored:", file=sys.stderr)
        for outcome in bad:
            print(f"  {printable(outcome.error)}", file=sys.stderr)
        return 1
    return 0
