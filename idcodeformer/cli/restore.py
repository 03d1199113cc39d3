"""``restore``: files in, files out. One file's trouble never costs the others."""
from __future__ import annotations

import argparse
import json
import os
import re
import sys
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from ..batch import COMPARE, CROPPED, FINAL, RESTORED, ModelChoice, Outcome, RestoreJob, RestoreSettings
from ..errors import BadImage, BadOption
from ..files.finding import look_through
from ..files.run_report import RunReport, check_target, to_json
from ..files.writing import clear_partials, make_folder, write_bytes
from ..guidance.options import GuidanceOptions
from ..runtime.progress import progress_bar
from ..types import DetectOptions, RestoreOptions
from . import video
from .telling import note, printable


def run_restore(args: argparse.Namespace) -> int:
    """The exit code of ``restore``. What can be wrong with the arguments is said before a model is loaded."""
    options, detect_options = options_of(args)
    out = Path(args.output) if args.output else default_output(args)
    settings = settings_of(args, out, options, detect_options)
    video.settings_of(args)
    folders = video.sequences(args, named(args))
    others = [path for path in named(args) if not any(Path(path) == folder for folder, _ in folders)]
    found = look_through(others, args.recursive, clips=not args.aligned)
    inputs = not_results([*found.pictures, *folders], out)
    for file, why in found.unread:
        note(f"not read: {file}: {why}")
    if not inputs:
        raise BadImage("There is no picture left to restore: all that were named lie in the output folder.")
    make_folder(out / (RESTORED if args.aligned else FINAL))
    for folder in (FINAL, RESTORED, CROPPED, COMPARE):
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


def not_results(inputs: Sequence[tuple[Path, Path]], out: Path) -> list[tuple[Path, Path]]:
    """``inputs`` without what earlier runs wrote into ``out``, which may lie inside a folder of pictures."""
    results = [(out / folder).resolve() for folder in (FINAL, RESTORED, CROPPED, COMPARE)]
    folders: dict[Path, bool] = {}

    def ours(file: Path) -> bool:
        if file.is_symlink():
            return any(file.resolve().is_relative_to(result) for result in results)
        if file.parent not in folders:  # resolving every file of a large folder takes seconds
            here = file.parent.resolve()
            folders[file.parent] = any(here.is_relative_to(result) for result in results)
        return folders[file.parent]

    return [pair for pair in inputs if not ours(pair[0])]


def named(args: argparse.Namespace) -> list[str]:
    named = [*args.inputs, *args.input_path]
    if not named:
        raise BadOption("No input is named; give picture files or folders: restore photo.jpg -o results")
    if "" in named:  # pathlib takes it for the current folder
        raise BadOption("An input has an empty name, as a shell makes of an unset variable; name a file or a folder.")
    return named


def options_of(args: argparse.Namespace) -> tuple[RestoreOptions, DetectOptions]:
    """The core's options, checked. Raises BadOption with the range."""
    from ..compositing.parsing import REFERENCE_CLASSES_WITHOUT_HAIR
    from ..restoration.upscaling import check_tile

    if args.batch_size < 0:
        raise BadOption(f"--batch-size is {args.batch_size}; give a number of faces, or 0 for what fits the memory.")
    check_tile(args.bg_tile)
    if args.guide and not args.reference and not args.people and not args.own_reference:
        raise BadOption("--guide needs --reference PHOTO, other photos of the person, or --people FOLDER.")
    if args.reference and args.people:
        raise BadOption("--reference and --people were given; put the photos into a folder of --people.")
    if args.no_hair and args.parser == "none":
        raise BadOption("--no-hair needs a face parser; leave --parser none out.")
    options = RestoreOptions(
        w=args.w,
        upscale=args.upscale,
        strength=args.strength,
        face_upsample=args.face_upsample,
        border=args.border,
        gray=args.gray,
        parse_classes=REFERENCE_CLASSES_WITHOUT_HAIR if args.no_hair else None,
        batch_size=args.batch_size,
        min_identity=args.min_identity,
        colour=args.colour,
        identity_target=args.target_identity,
        mask_shape=args.mask_shape,
        large_faces=args.large_faces,
        grain=args.grain,
    )
    return options, detect_options_of(args)


def settings_of(
    args: argparse.Namespace, out: Path, options: RestoreOptions, detect_options: DetectOptions
) -> RestoreSettings:
    """The arguments as settings of a job. Raises BadOption."""
    scorer = args.judge or args.recogniser
    for name in ("reference", "people", "target_identity"):
        if getattr(args, name) and scorer.lower() == "none":
            raise BadOption(f"--{name.replace('_', '-')} needs a recogniser; leave --recogniser none out.")
    models = ModelChoice(
        restorer=args.model or "",
        detector=args.detector,
        recogniser=scorer,
        parser=args.parser,
        guide=args.guide_by or (args.recogniser if args.judge else ""),
        upscaler=args.bg_upsampler or "",
        upscaler_tile=args.bg_tile,
        device=args.device,
        precision=args.precision,
    )
    return RestoreSettings(
        options,
        detect_options,
        models,
        references=tuple(args.reference or ()),
        guidance=GuidanceOptions(0 if args.own_reference else args.guide, args.guide_strength, force=args.force_guide),
        aligned=args.aligned,
        out=out,
        format=args.format,
        suffix=args.suffix,
        overwrite=args.overwrite,
        skip_existing=args.skip_existing,
        save_crops=args.save_crops,
        compare=args.compare,
        people=args.people,
    )


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


def detect_options_of(args: argparse.Namespace) -> DetectOptions:
    for name, value in (("max-faces", args.max_faces), ("min-eye-distance", args.min_eye_distance)):
        if value < 0:
            raise BadOption(f"--{name} is {value:g}; it must not be negative.")
    if args.order == "reference" and not getattr(args, "reference", None):
        raise BadOption("--order reference needs --reference PHOTO.")
    return DetectOptions(
        confidence=args.confidence,
        min_eye_distance=args.min_eye_distance,
        max_faces=args.max_faces,
        order=args.order,
        keep="centre" if args.only_center_face else args.keep,
    )


def default_output(args: argparse.Namespace) -> Path:
    """results/<folder>_<w>, or results/test_img_<w> for single files, as the reference names them."""
    named = [Path(path) for path in [*args.inputs, *args.input_path]]
    folder = named[0].resolve().name if len(named) == 1 and os.path.isdir(named[0]) else "test_img"
    return Path("results") / f"{folder}_{args.w:g}"


def plan_targets(inputs: Sequence[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """(file, relative path of its result without ending). Two inputs never share one: their endings tell them apart."""
    targets: list[tuple[Path, Path]] = []
    taken: set[str] = set()
    stems = [_key(relative.parent / relative.stem) for _, relative in inputs]
    count = Counter(stems)
    numbers: Counter[str] = Counter()
    for (path, relative), stem in zip(inputs, stems):
        target = relative.parent / relative.stem
        if count[stem] > 1:
            target = target.with_name(f"{target.name}_{relative.suffix.lstrip('.') or 'file'}")
        base = _key(target)
        while _key(target) in taken:
            numbers[base] += 1
            target = relative.with_name(f"{relative.stem}_{numbers[base] + 1}")
        taken.add(_key(target))
        targets.append((path, target))
    return targets


def _key(path: Path) -> str:
    """Equal for names that some file system takes for one: case and composed letters do not count."""
    return unicodedata.normalize("NFC", str(path)).casefold()


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


def describe(outcome: Outcome, faithful: bool = False) -> str:
    """One line a person reads; with ``faithful`` it tells each face's w."""
    if outcome.error:
        return f"{outcome.input}: {outcome.status}: {outcome.error}"
    if outcome.status == "kept":
        return f"{outcome.input} -> {outcome.output}: kept, the result was there"
    faces = outcome.faces
    skipped = [face for face in faces if face["status"] == "skipped"]
    scores = [face["id_sim_input"] for face in faces if face.get("id_sim_input") is not None]
    parts = [f"{outcome.restored} face{'s' * (outcome.restored != 1)} restored" if faces else "no face found"]
    if names := [face["person"] or "nobody known" for face in faces if face["status"] != "skipped"]:
        if any(face["person"] for face in faces):
            parts.append("shows " + ", ".join(names))
    if scores:
        parts.append("ID-Sim to the input " + " ".join(f"{score:.2f}" for score in scores))
    if faithful:
        parts.append("w " + " ".join(f"{face['w']:.2f}" for face in faces if face["w"] is not None))
        parts += sorted({face["reason"] for face in faces if face["reason"].startswith("identity target")})
    if guided := [_guided(face) for face in faces if face.get("guidance")]:
        parts.append("; ".join(guided))
    pairs = [(f["id_sim_before"], f["id_sim_after"]) for f in faces if f.get("id_sim_after") is not None]
    if pairs:
        parts.append("to the references " + " ".join(f"{before:.2f}>{after:.2f}" for before, after in pairs))
    if skipped:
        # Sizes and scores differ from face to face; one of each reason says enough.
        reasons = {re.sub(r"[0-9.]+", "", face["reason"]): face["reason"] for face in skipped}
        parts.append(f"{len(skipped)} skipped ({'; '.join(sorted(reasons.values()))})")
    if outcome.note:
        parts.append(outcome.note)
    return f"{outcome.input} -> {outcome.output}: {', '.join(parts)}, {outcome.seconds:.1f} s"


def _guided(face: dict[str, Any]) -> str:
    return f"{face['person']}: {face['guidance']}" if face["person"] else face["guidance"]


def _summary(outcomes: list[Outcome]) -> int:
    bad = [outcome for outcome in outcomes if outcome.error]
    if bad:
        print(f"{len(bad)} of {len(outcomes)} files were not restored:", file=sys.stderr)
        for outcome in bad:
            print(f"  {printable(outcome.error)}", file=sys.stderr)
        return 1
    return 0


def check_report(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Refuse a report that could not be written before any work is done; entries of one that is gone on with."""
    if not args.json or args.json == "-":
        return []
    return check_target(Path(args.json), args.overwrite, getattr(args, "skip_existing", False))


def write_json(target: str, report: Any, args: argparse.Namespace) -> None:
    if target == "-":  # in ASCII: a console's encoding may lack letters of a name
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        empty = Path(target).is_file() and Path(target).stat().st_size == 0  # nothing is lost
        write_bytes(target, to_json(report, indent=2) + b"\n", overwrite=empty or getattr(args, "overwrite", False))
