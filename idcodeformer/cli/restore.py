"""``restore``: files in, files out. One file's trouble never costs the others."""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..batch import FINAL, RESTORED, Outcome, RestoreJob, note
from ..errors import BadImage, BadOption
from ..files.reading import find_pictures
from ..files.writing import make_folder, write_bytes
from ..types import DetectOptions, RestoreOptions


def run_restore(args: argparse.Namespace) -> int:
    """The exit code of ``restore``. What can be wrong with the arguments is said before a model is loaded."""
    options, detect_options = options_of(args)
    inputs = find_pictures(named(args), args.recursive)
    out = Path(args.output) if args.output else default_output(args)
    inputs = [pair for pair in inputs if not pair[0].resolve().is_relative_to(out.resolve())]
    if not inputs:
        raise BadImage("There is no picture left to restore: all that were named lie in the output folder.")
    make_folder(out / (RESTORED if args.aligned else FINAL))
    check_report(args)
    job = RestoreJob(args, out, options, detect_options)
    job.load()
    outcomes: list[Outcome] = []
    try:
        _work(job, plan_targets(inputs), outcomes, args)
    except KeyboardInterrupt:
        note(f"{len(outcomes)} of {len(inputs)} files were done; go on with --skip-existing.")
        raise
    finally:
        if args.json and outcomes:
            write_json(args.json, job.report(outcomes), args)
    return _summary(outcomes)


def named(args: argparse.Namespace) -> list[str]:
    named = [*args.inputs, *args.input_path]
    if not named:
        raise BadOption("No input is named; give picture files or folders: restore photo.jpg -o results")
    return named


def options_of(args: argparse.Namespace) -> tuple[RestoreOptions, DetectOptions]:
    """The core's options, checked. Raises BadOption with the range."""
    from ..compositing.parsing import REFERENCE_CLASSES_WITHOUT_HAIR
    from ..restoration.upscaling import check_tile

    if args.batch_size < 0:
        raise BadOption(f"--batch-size is {args.batch_size}; give a number of faces, or 0 for what fits the memory.")
    check_tile(args.bg_tile)
    if args.guide and not args.reference:
        raise BadOption("--guide needs --reference PHOTO: other photos of the person.")
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
    )
    return options, detect_options_of(args)


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
    folder = named[0].resolve().name if len(named) == 1 and named[0].is_dir() else "test_img"
    return Path("results") / f"{folder}_{args.w:g}"


def plan_targets(inputs: Sequence[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """(file, relative path of its result without ending). Two inputs never share one: their endings tell them apart."""
    targets: list[tuple[Path, Path]] = []
    taken: set[str] = set()
    stems = [str(relative.with_suffix("")).lower() for _, relative in inputs]
    for (path, relative), stem in zip(inputs, stems):
        target = relative.with_suffix("")
        if stems.count(stem) > 1:
            target = target.with_name(f"{target.name}_{relative.suffix.lstrip('.') or 'file'}")
        number = 1
        while str(target).lower() in taken:
            number += 1
            target = relative.with_name(f"{relative.stem}_{number}")
        taken.add(str(target).lower())
        targets.append((path, target))
    return targets


def _work(job: RestoreJob, targets: list[tuple[Path, Path]], outcomes: list[Outcome], args: argparse.Namespace) -> None:
    from tqdm import tqdm

    layout = "{desc}{percentage:3.0f}%|{bar}| {n:.1f}/{total} files [{elapsed}<{remaining}, {rate_fmt}]{postfix}"
    with tqdm(total=len(targets), unit="file", bar_format=layout, disable=None, file=sys.stderr) as bar:
        for number, (path, target) in enumerate(targets):
            outcome = job.attempt(path, target, _face_progress(bar, number))
            outcomes.append(outcome)
            bar.update(number + 1 - bar.n)
            tqdm.write(describe(outcome), file=sys.stderr if args.json == "-" or outcome.error else sys.stdout)


def _face_progress(bar, number: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, what: str) -> None:
        bar.set_postfix_str(f"{what} {done}/{total}", refresh=False)
        if what == "restoring" and total:
            bar.update(number + 0.95 * done / total - bar.n)

    return progress


def describe(outcome: Outcome) -> str:
    """One line a person reads."""
    if outcome.error:
        return f"{outcome.input}: {outcome.status}: {outcome.error}"
    skipped = [face for face in outcome.faces if face["status"] == "skipped"]
    scores = [face["id_sim_input"] for face in outcome.faces if face.get("id_sim_input") is not None]
    parts = [f"{outcome.restored} face{'s' * (outcome.restored != 1)} restored" if outcome.faces else "no face found"]
    if scores:
        parts.append("ID-Sim to the input " + " ".join(f"{score:.2f}" for score in scores))
    guided = [face["guidance"] for face in outcome.faces if face.get("guidance")]
    if guided:
        parts.append("; ".join(guided))
    pairs = [(f["id_sim_before"], f["id_sim_after"]) for f in outcome.faces if f.get("id_sim_after") is not None]
    if pairs:
        parts.append("to the references " + " ".join(f"{before:.2f}>{after:.2f}" for before, after in pairs))
    if skipped:
        parts.append(f"{len(skipped)} skipped ({'; '.join(sorted({face['reason'] for face in skipped}))})")
    return f"{outcome.input} -> {outcome.output}: {', '.join(parts)}, {outcome.seconds:.1f} s"


def _summary(outcomes: list[Outcome]) -> int:
    bad = [outcome for outcome in outcomes if outcome.error]
    if bad:
        print(f"{len(bad)} of {len(outcomes)} files were not restored:", file=sys.stderr)
        for outcome in bad:
            print(f"  {outcome.error}", file=sys.stderr)
        return 1
    return 0


def check_report(args: argparse.Namespace) -> None:
    """Refuse a report that could not be written before any work is done."""
    if args.json and args.json != "-":
        make_folder(Path(args.json).parent)
        if Path(args.json).exists() and not args.overwrite:
            raise BadImage(f"{args.json} exists already; add --overwrite, or name another report.")


def write_json(target: str, report: Any, args: argparse.Namespace) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        write_bytes(target, text.encode(), overwrite=getattr(args, "overwrite", False))
