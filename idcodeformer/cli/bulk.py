"""``bulk``: an archive in, an archive out, on this machine or on a cluster."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from ..batch import ModelChoice, RestoreSettings
from ..errors import BadOption
from ..runtime.progress import progress_bar
from ..types import Colour, GrayMode, RestoreOptions
from .telling import note, printable

_TOLD = 20  # failures that are listed at the end; the manifest has them all


def add_bulk_parser(commands: argparse._SubParsersAction, shared: tuple[Callable[..., None], ...]) -> None:
    """Add the command; ``shared`` are the groups of arguments that other commands have too."""
    sub = commands.add_parser("bulk", help="restore an archive with many workers (needs Ray Data)", allow_abbrev=False)
    sub.set_defaults(handler=_bulk)
    sub.add_argument("source", help="a folder or URL (s3://, gs://, az://, ...), or a list of pictures: .parquet or "
                     ".csv with a column url and, if wanted, id and person; .txt with an address a line")
    sub.add_argument("target", help="a folder or URL; gets pictures/ and the manifest")
    sub.add_argument("--debug", action="store_true", help="show where an error came from")
    work = sub.add_argument_group("work")
    work.add_argument("--address", help="of a Ray cluster; default this machine alone")
    work.add_argument("--workers", type=int, default=0, help="default one per GPU, or one per two cores")
    work.add_argument("--threads", type=int, default=0, help="of each worker; default the cores shared out")
    work.add_argument("--limit", type=int, default=0, metavar="N", help="pictures of this run; 0 = all")
    work.add_argument("--part", default="1/1", metavar="N/OF", help="do this share of the pictures, as 3/16")
    work.add_argument("--dry-run", action="store_true", help="count, try a few, tell how long it takes; write nothing")
    work.add_argument("--retry-failed", action="store_true", help="try pictures again that failed or were set aside")
    look = sub.add_argument_group("restoring")
    look.add_argument("-w", "--w", dest="w", type=float, default=0.8, metavar="0..1", help="fidelity, default 0.8")
    look.add_argument("-s", "--upscale", type=float, default=1.0, help="output px per input px, default 1")
    look.add_argument("--strength", type=float, default=1.0, metavar="0..1", help="blend with the input, default 1")
    look.add_argument("--gray", choices=get_args(GrayMode), default="auto", help="keep monochrome faces so")
    look.add_argument("--colour", "--color", choices=get_args(Colour), default="low_band", help="whose colours")
    look.add_argument("--min-identity", type=float, default=0.0, metavar="0..1", help="see restore")
    look.add_argument("--people", metavar="FILE", help="name the faces by a file that 'people' wrote, or a folder")
    look.add_argument("--format", choices=("png", "jpg", "webp"), default=None, help="of the results, default png")
    models = sub.add_argument_group("models")
    models.add_argument("--model", metavar="NAME", help="restorer: a name or a file")
    models.add_argument("--parser", default="auto", help="face parser: name, file or none")
    models.add_argument("--batch-size", type=int, default=0, metavar="FACES", help="per forward; 0 = by free memory")
    models.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    for add, group in zip(shared, (models, models, sub)):
        add(group)


def _bulk(args: argparse.Namespace) -> int:
    from ..bulk.run import run_bulk

    settings = settings_of(args)
    if args.dry_run:
        return _dry_run(settings)
    bar = _Bar()
    try:
        summary = run_bulk(settings, bar, bar.failure)
    finally:
        bar.close()
    for name in summary.unnamed[:_TOLD]:
        note(f"not read: {name!a}: its name is no text; rename it.")
    rate = summary.pictures / summary.seconds if summary.seconds else 0.0
    print(f"{summary.pictures} pictures done ({summary.already} were before), {summary.faces} faces restored, "
          f"{summary.seconds:.0f} s, {rate:.2f} pictures/s -> {printable(settings.target)}")  # fmt: skip
    if summary.failed:
        note(f"{summary.failed} pictures of this target failed; --retry-failed tries them again:")
        for line in summary.failures[:_TOLD]:
            note(f"  {line}")
        if summary.failed > _TOLD:
            note(f"  and {summary.failed - _TOLD} more: the rows of the manifest whose status is failed or set aside.")
    return 1 if summary.failed or summary.unnamed else 0


def _dry_run(settings: Any) -> int:
    from ..bulk.run import estimate, workers_of

    plan, seconds, failures = estimate(settings)
    workers = settings.workers or workers_of(settings)
    print(f"{plan.to_do} pictures to do, {plan.done} done before, {len(plan.unnamed)} whose name is no text")
    if plan.to_do:
        of_them = "1 worker" if workers == 1 else f"{workers} such workers"
        print(f"{seconds:.2f} s for a picture ({len(plan.sample)} tried), so about "
              f"{_duration(plan.to_do * seconds / workers)} with {of_them}")  # fmt: skip
    for told in failures:
        note(f"failed: {told}")
    return 0


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    if hours >= 48:
        return f"{hours:.0f} hours ({hours / 24:.0f} days)"
    return f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(seconds / 60))} min"


def settings_of(args: argparse.Namespace) -> Any:
    """The arguments as settings. Raises BadOption."""
    from ..bulk import BulkSettings
    from .settings import detect_options_of

    options = RestoreOptions(w=args.w, upscale=args.upscale, strength=args.strength, gray=args.gray, colour=args.colour,
                             min_identity=args.min_identity, batch_size=args.batch_size)  # fmt: skip
    models = ModelChoice(restorer=args.model or "", detector=args.detector, recogniser=args.recogniser,
                         parser=args.parser, device=args.device, precision=args.precision)  # fmt: skip
    restore = RestoreSettings(options, detect_options_of(args), models, format=args.format)
    number, slash, count = args.part.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise BadOption(f"--part is {args.part!r}; give a share such as 3/16.")
    return BulkSettings(args.source, args.target, restore, args.address, args.workers, args.threads, args.limit,
                        (int(number), int(count)), _people(args), args.retry_failed)  # fmt: skip


def _people(args: argparse.Namespace) -> bytes | None:
    """The content of the people file; one is made of a folder of photos first."""
    if not args.people:
        return None
    path = Path(args.people)
    if path.is_file():
        return path.read_bytes()
    import tempfile

    from ..detection import load_detector
    from ..identity.people import load_people, save_people
    from ..identity.recogniser import load_recogniser

    detector, recogniser = load_detector(args.detector, args.device), load_recogniser(args.recogniser, args.device)
    people = load_people(path, detector, recogniser, remember=True)
    with tempfile.TemporaryDirectory() as folder:
        return save_people(people, Path(folder, "people.safetensors")).read_bytes()


class _Bar:
    """The terminal's line: pictures, faces, rate, what remains, failures."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, done: int, total: int, faces: int, failures: int) -> None:
        if self._bar is None:
            self._bar = progress_bar(total, "picture", "bulk")
        self._bar.set_postfix_str(f"{faces} faces, {failures} failed", refresh=False)
        self._bar.update(done - self._bar.n)

    def failure(self, told: str) -> None:
        if self._bar is not None:
            self._bar.write(printable(told), file=sys.stderr)
        else:
            note(told)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
