"""What ``restore`` does with one file after another: models loaded once, every file's outcome told."""
from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import BadImage, BadOption, IDCodeFormerError
from .files.origin import fingerprint, origin_of
from .files.reading import Picture, read
from .files.writing import check_size, write
from .guidance.optimise import GuidanceOptions
from .runtime.memory import is_out_of_memory
from .types import DetectOptions, Detector, Embeddings, FaceReport, RestoreOptions

FINAL, RESTORED, CROPPED, COMPARE = "final_results", "restored_faces", "cropped_faces", "compare"
_SMALLEST_CROP = 16  # px; an aligned crop below this shows no face


@dataclass
class Outcome:
    """What became of one input file."""

    input: str
    output: str = ""
    status: str = "failed"  # restored, no face, kept (a result was there), failed
    error: str = ""
    seconds: float = 0.0
    size: tuple[int, int] | None = None  # (width, height) of the input
    faces: list[dict[str, Any]] = field(default_factory=list)

    @property
    def restored(self) -> int:
        return sum(face["status"] == "restored" for face in self.faces)


    def entry(self) -> dict[str, Any]:
        """The line of a report."""
        return self.__dict__ | {"restored": self.restored}


class RestoreJob:
    """Models loaded once, then one file after another."""

    def __init__(self, args: argparse.Namespace, out: Path, options: RestoreOptions, detect_options: DetectOptions):
        self.args, self.out, self.options, self.detect_options = args, out, options, detect_options
        self.pipeline: Any = None
        self.references: Any = None
        self.upscaler: Any = None
        self.model = ""
        self.guidance = GuidanceOptions(args.guide, args.guide_strength, force=args.force_guide)
        # What lies beside a result that is missing was left by a run that was cut off.
        self.replace_extras = args.overwrite or args.skip_existing

    def load(self) -> None:
        """Build the pipeline. Raises what the loaders raise."""
        from .detection import load_detector
        from .identity.recogniser import mean_identity
        from .pipeline import FacePipeline
        from .restoration.codeformer import load_restorer
        from .restoration.upscaling import load_upscaler

        args = self.args
        given = {"--upscale": args.upscale != 1, "--compare": args.compare, "--save-crops": args.save_crops}
        if args.aligned and any(given.values()):
            note(f"--aligned writes restored crops alone: {', '.join(k for k, v in given.items() if v)} is left out.")
        self.model = args.model or default_model()
        restorer = load_restorer(self.model, args.device, args.precision)
        detector = None if args.aligned and not args.reference else load_detector(args.detector, args.device)
        recogniser = load_scorer(args.recogniser, args.device)
        parser = None if args.aligned else load_face_parser(args.parser, args.device)
        guide = load_scorer(args.guide_by, args.device) if args.guide and args.guide_by else None
        self.pipeline = FacePipeline(restorer, detector, recogniser, parser, guide)
        if args.bg_upsampler and args.bg_upsampler.lower() != "none":
            self.upscaler = load_upscaler(args.bg_upsampler, args.device, args.bg_tile)
        elif args.face_upsample and args.upscale > 1:
            note("--face-upsample has no upscaler: faces are enlarged by interpolation; name one with --bg-upsampler.")
        if args.reference:
            if recogniser is None:
                raise BadOption("--reference needs a recogniser; leave --recogniser none out.")
            judges = [recogniser] if guide is None else [recogniser, guide]
            self.references = [mean_identity(embed_person(args.reference, detector, judge)) for judge in judges]
        note(f"{self.model}: {restorer.size} px faces on {restorer.device}, precision {args.precision}, w {args.w:g}")

    def report(self, outcomes: list[Outcome]) -> dict[str, Any]:
        from . import __version__

        options = {name: value for name, value in vars(self.args).items() if name not in ("handler", "command")}
        files = [outcome.entry() for outcome in outcomes]
        return {"version": __version__, "model": self.model, "options": options, "files": files}

    def attempt(self, path: Path, target: Path, progress: Callable[[int, int, str], None]) -> Outcome:
        """Restore one file; whatever goes wrong with it is told in the outcome."""
        outcome, start = Outcome(str(path)), time.perf_counter()
        try:
            (self._aligned if self.args.aligned else self._whole)(path, target, outcome, progress)
        except Exception as error:  # told, counted and turned into exit code 1; the other files go on
            if self.args.debug:
                traceback.print_exc()
            told = str(error) if isinstance(error, IDCodeFormerError) else f"{type(error).__name__}: {error}"
            if is_out_of_memory(error):
                told = f"{path} does not fit into memory; close other programs or scale it down."
            outcome.error = told if str(path) in told else f"{path}: {told}"
        outcome.seconds = round(time.perf_counter() - start, 3)
        return outcome

    def _whole(self, path: Path, target: Path, outcome: Outcome, progress: Callable[[int, int, str], None]) -> None:
        free = self._is_kept(FINAL, path, target, outcome)
        if free is None:
            return
        target = free
        picture = read(path)
        outcome.size = picture.size[::-1]
        height, width = (round(side * self.options.upscale) for side in picture.size)
        check_size(self._file(FINAL, target, picture), width, height)
        result = self.pipeline(
            list(picture.frames),
            self.options,
            self.detect_options,
            references=self.references,
            upscaler=self.upscaler,
            progress=progress,
            guidance=self.guidance,
        )
        frames = result.images[0][None] if len(result.images) == 1 else torch.stack(result.images)
        restored = replace(picture, frames=frames, alpha=_resized(picture.alpha, frames[0]))
        outcome.faces = [face.to_dict() for face in result.report]
        if self.args.save_crops:
            self._save_crops(target, result, len(picture.frames) > 1)
        if self.args.compare:
            from .files.drawing import comparison

            sheet = comparison(picture.frames, restored.frames, result)
            write(self.out / COMPARE / _named_png(target, self.args.suffix), Picture(sheet[None]), self.replace_extras)
        outcome.output = str(write(self._file(FINAL, target, picture), restored, self.args.overwrite))
        outcome.status = "restored" if outcome.restored else "no face"

    def _aligned(self, path: Path, target: Path, outcome: Outcome, progress: Callable[[int, int, str], None]) -> None:
        """The file is a crop already: no detection, no pasting (reference: has_aligned)."""
        free = self._is_kept(RESTORED, path, target, outcome)
        if free is None:
            return
        target = free
        picture = read(path)
        outcome.size = picture.size[::-1]
        if min(picture.size) < _SMALLEST_CROP:
            raise BadImage(f"{path} is {picture.size[1]}x{picture.size[0]} px, too small for a crop of a face.")
        side = self.pipeline.restorer.size
        pixels = F.interpolate(picture.frames, (side, side), mode="bilinear", antialias=True).clamp(0, 1)
        faces, notes = self.pipeline.restored_crops(pixels, self.options, self.guidance, self.references, progress)
        faces = pixels + self.options.strength * (faces - pixels)
        outcome.faces = self._aligned_report(pixels, faces, notes)
        for number, face in enumerate(outcome.faces):
            if face["id_sim_input"] is not None and face["id_sim_input"] < self.options.min_identity:
                least = self.options.min_identity
                face |= {"status": "skipped", "reason": f"identity {face['id_sim_input']:.2f} is below {least:g}"}
                faces[number] = pixels[number]
        restored = replace(picture, frames=faces, alpha=_resized(picture.alpha, faces[0]))
        outcome.output = str(write(self._file(RESTORED, target, picture), restored, self.args.overwrite))
        outcome.status = "restored"

    def _aligned_report(self, before: Tensor, after: Tensor, notes: Sequence[str]) -> list[dict[str, Any]]:
        from .identity.recogniser import cosine

        side = float(before.shape[-1])
        lines = []
        for frame in range(len(before)):
            report = FaceReport(frame, 0, (0.0, 0.0, side, side), 1.0, "restored", "aligned input", self.options.w)
            report = replace(report, guidance=notes[frame] if notes else "")
            recogniser = self.pipeline.recogniser
            if recogniser is not None:
                old, new = recogniser(before[frame : frame + 1]), recogniser(after[frame : frame + 1])
                report = replace(report, id_sim_input=float(cosine(old, new)))
                if self.references is not None:
                    to_old, to_new = (float(cosine(e, self.references[0])) for e in (old, new))
                    report = replace(report, id_sim_before=to_old, id_sim_after=to_new)
            lines.append(report.to_dict())
        return lines

    def _is_kept(self, folder: str, source: Path, target: Path, outcome: Outcome) -> Path | None:
        """Where the result goes, None where it is there already; found out before any work is done.

        A result that bears the mark of another source (grandma.jpg where this is grandma.png) is not this one's.
        """
        endings = [f".{self.args.format}"] if self.args.format else dict.fromkeys([".png", source.suffix.lower()])
        own = fingerprint(source) if self.args.skip_existing and source.is_file() else ""
        ending = source.suffix.lstrip(".") or "file"
        names = [target.name, f"{target.name}_{ending}", *(f"{target.name}_{ending}_{n}" for n in range(2, 100))]
        for name in names:
            files = [self.out / folder / target.with_name(f"{name}{self.args.suffix}{end}") for end in endings]
            there = [file for file in files if file.exists()]
            if not there or self.args.overwrite:
                return target.with_name(name)
            if not self.args.skip_existing:
                raise BadImage(f"{there[0]} exists already; add --overwrite or --skip-existing, or another output.")
            if origin_of(there[0]) in ("", own):
                outcome.status, outcome.output = "kept", str(there[0])
                return None
        raise BadImage(f"{source}: a hundred results bear this name; name another output folder.")

    def _file(self, folder: str, target: Path, picture: Picture) -> Path:
        ending = f".{self.args.format}" if self.args.format else picture.suffix if len(picture.frames) > 1 else ".png"
        return self.out / folder / target.with_name(f"{target.name}{self.args.suffix}{ending}")

    def _save_crops(self, target: Path, result: Any, animated: bool) -> None:
        args = self.args
        counts: dict[int, int] = {}
        for index, image in enumerate(result.crops_in.image_index.tolist()):
            number = counts[image] = counts.get(image, -1) + 1
            stem = f"{target.name}_{image:06d}_{number:02d}" if animated else f"{target.name}_{number:02d}"
            for folder, crops, suffix in ((CROPPED, result.crops_in, ""), (RESTORED, result.crops_out, args.suffix)):
                file = self.out / folder / target.with_name(f"{stem}{suffix}.png")
                write(file, Picture(crops.pixels[index : index + 1].cpu()), self.replace_extras)


def _named_png(target: Path, suffix: str) -> Path:
    return target.with_name(f"{target.name}{suffix}.png")


def _resized(alpha: Tensor | None, like: Tensor) -> Tensor | None:
    size = like.shape[-2:]
    if alpha is None or alpha.shape[-2:] == size:
        return alpha
    return F.interpolate(alpha, size, mode="bicubic", antialias=True).clamp(0, 1)


def note(text: str) -> None:
    """Tell the person at the terminal; standard output stays for results."""
    print(text, file=sys.stderr)


def embed_person(photos: Sequence[str | Path], detector: Detector, recogniser) -> Embeddings:
    """Embeddings [len(photos),D] of the largest face of each photo. Raises BadImage naming a photo without a face."""
    from .identity.people import embed_photos

    frames = [read(photo).frames[0] for photo in photos]
    return embed_photos(frames, detector, recogniser, [str(photo) for photo in photos])


def default_model() -> str:
    """The published 512-px network where a user has put it, else the built-in one."""
    from .weights.store import available

    there = {found.name for found in available("restorer")}
    return "codeformer" if "codeformer" in there else "mini_id_codeformer"


def load_scorer(name: str, device: str | None):
    """The recogniser of ``name``, None for "none"."""
    from .identity.recogniser import load_recogniser

    return None if name.lower() == "none" else load_recogniser(name, device)


def load_face_parser(name: str, device: str | None):
    """The parser of ``name``, None for "none"."""
    from .compositing.parsing import load_parser

    return None if name.lower() == "none" else load_parser(name, device)
