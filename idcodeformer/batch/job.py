"""One picture after another through one pipeline: files or bytes in, files or bytes out, every outcome told."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import BadImage, BadOption, IDCodeFormerError
from ..files.origin import fingerprint, origin_of
from ..files.reading import Picture, decode, read
from ..files.writing import check_size, encode, write
from ..restoration.large import LargeFace, judge_large
from ..runtime.memory import is_out_of_memory
from ..runtime.validation import SMALLEST_CROP
from ..types import Embeddings, FaceReport, Progress, Restoration
from .models import default_model, embed_person, load_galleries, load_pipeline
from .outcome import COMPARE, CROPPED, FINAL, RESTORED, Outcome, Restored, marked
from .settings import RestoreSettings

if TYPE_CHECKING:
    from ..identity.known import Galleries
    from ..pipeline import FacePipeline



class RestoreJob:
    """Networks loaded once, then one picture after another. May be sent to another process before ``load``.

    ``pipeline``, ``references`` and ``people`` may be given by who holds them already; ``load`` builds what is missing.
    ``failed`` is called with every exception that became an outcome, ``tell`` with what is to be known of the people.
    """

    def __init__(
        self,
        settings: RestoreSettings,
        pipeline: FacePipeline | None = None,
        references: Embeddings | Sequence[Embeddings] | None = None,
        failed: Callable[[Exception], None] | None = None,
        people: Galleries | None = None,
        tell: Callable[[str], None] | None = None,
    ):
        self.settings, self.pipeline, self.references, self.failed = settings, pipeline, references, failed
        self.people, self.tell = people, tell
        self.upscaler: Callable[[Tensor], Tensor] | None = None
        self.model = settings.models.restorer
        # An extra beside a missing result is left from an interrupted run.
        self.replace_extras = settings.overwrite or settings.skip_existing

    def load(self) -> RestoreJob:
        """Build what was not given. Raises what the loaders raise."""
        from ..restoration.upscaling import load_upscaler

        settings, models = self.settings, self.settings.models
        if self.pipeline is None:
            self.model = models.restorer or default_model()
            self.pipeline = load_pipeline(replace(settings, models=replace(models, restorer=self.model)))
        if models.upscaler and models.upscaler.lower() != "none" and self.upscaler is None:
            self.upscaler = load_upscaler(models.upscaler, models.device, models.upscaler_tile)
        if settings.references and self.references is None:
            self.references = self._embedded(self.pipeline)
        if settings.people is not None and self.people is None:
            self.people = load_galleries(settings.people, self.pipeline, self.tell)
        return self

    def _embedded(self, pipeline: FacePipeline) -> list[Embeddings]:
        """The person of the reference photos, once for each recogniser that is asked."""
        from ..identity.recogniser import mean_identity

        if pipeline.recogniser is None:
            raise BadOption("Reference photos need a recogniser; choose another than 'none'.")
        if pipeline.detector is None:
            raise BadOption("Reference photos need a detector; build the pipeline with one.")
        judges = [pipeline.recogniser]
        if pipeline.guide is not None and pipeline.guide is not pipeline.recogniser:
            judges.append(pipeline.guide)
        return [mean_identity(embed_person(self.settings.references, pipeline.detector, judge)) for judge in judges]

    def report(self, outcomes: Sequence[Outcome], options: dict[str, Any] | None = None) -> dict[str, Any]:
        """A report of the run; ``options`` are told in the place of the settings."""
        from .. import __version__

        files = [outcome.entry() for outcome in outcomes]
        told = self.settings.to_dict() if options is None else options
        return {"version": __version__, "model": self.model, "options": told, "files": files}

    def restore(self, picture: Picture | Tensor, progress: Progress | None = None) -> Restored:
        """Restore a picture in memory (frames [F,3,H,W] in [0,1]). Raises what the pipeline raises."""
        if isinstance(picture, Tensor):
            picture = Picture(picture)
        return self._crop(picture, progress) if self.settings.aligned else self._whole(picture, progress)

    def attempt(self, path: Path, target: Path, progress: Progress | None = None) -> Outcome:
        """Restore one file into the output folder; whatever goes wrong with it is told in the outcome."""

        def work(outcome: Outcome) -> None:
            folder = RESTORED if self.settings.aligned else FINAL
            free = self._is_kept(folder, path, target, outcome)
            if free is None:
                return
            picture = read(path)
            file = self._file(folder, free, picture)
            self._check(file, picture, outcome)
            restored = self.restore(picture, progress)
            self._extras(free, picture, restored)
            outcome.faces = [face.to_dict() for face in restored.faces]
            outcome.output = str(write(file, restored.picture, self.settings.overwrite))
            outcome.status = restored.status

        return self._told(str(path), work)

    def attempt_bytes(
        self, data: bytes, name: str = "picture", progress: Progress | None = None
    ) -> tuple[bytes, Outcome]:
        """The bytes of a picture file -> those of its result, empty where it failed; ``name`` stands in messages."""
        results: list[bytes] = []

        def work(outcome: Outcome) -> None:
            picture = decode(data, name)
            file = Path(Path(name).stem + self._ending(picture))
            self._check(file, picture, outcome)
            restored = self.restore(picture, progress)
            outcome.faces = [face.to_dict() for face in restored.faces]
            results.append(encode(file, restored.picture))
            outcome.status = restored.status

        outcome = self._told(name, work)
        return (results[0] if results else b""), outcome

    def _told(self, name: str, work: Callable[[Outcome], None]) -> Outcome:
        outcome, start = Outcome(name), time.perf_counter()
        try:
            work(outcome)
        except Exception as error:  # told and counted; the other pictures go on
            if self.failed is not None:
                self.failed(error)
            told = str(error) if isinstance(error, IDCodeFormerError) else f"{type(error).__name__}: {error}"
            if is_out_of_memory(error):
                told = f"{name} does not fit into memory; close other programs or scale it down."
            outcome.error = told if name in told else f"{name}: {told}"
        outcome.seconds = round(time.perf_counter() - start, 3)
        return outcome

    def _check(self, file: Path, picture: Picture, outcome: Outcome) -> None:
        """Refuse before any work what could not be restored or written."""
        outcome.size, outcome.note = picture.size[::-1], picture.left_out
        if not self.settings.aligned:
            height, width = (round(side * self.settings.options.upscale) for side in picture.size)
            check_size(file, width, height)
        elif min(picture.size) < SMALLEST_CROP:
            raise BadImage(
                f"{outcome.input} is {picture.size[1]}x{picture.size[0]} px, too small for a crop of a face."
            )

    def _whole(self, picture: Picture, progress: Progress | None) -> Restored:
        settings = self.settings
        result = self._loaded()(
            list(picture.frames),
            settings.options,
            settings.detect_options,
            references=self.references,
            upscaler=self.upscaler,
            progress=progress,
            guidance=settings.guidance,
            people=self.people,
        )
        frames = result.images[0][None] if len(result.images) == 1 else torch.stack(result.images)
        restored = replace(picture, frames=frames, alpha=_resized(picture.alpha, frames[0]))
        return Restored(marked(restored, result.report, self.model), result.report, result)

    def _crop(self, picture: Picture, progress: Progress | None) -> Restored:
        """The picture is a crop already: no detection, no pasting (reference: has_aligned)."""
        pipeline, options = self._loaded(), self.settings.options
        side = pipeline.restorer.size
        large = self._large(picture, side)
        if large is not None and not large.kept:
            box = (0.0, 0.0, float(picture.size[1]), float(picture.size[0]))
            left = [FaceReport(n, 0, box, 1.0, "skipped", large.reason) for n in range(len(picture.frames))]
            return Restored(picture, tuple(left))
        pixels = F.interpolate(picture.frames, (side, side), mode="bilinear", antialias=True).clamp(0, 1)
        faces, lines = pipeline.restore_aligned(
            pixels, options, self.settings.guidance, self.references, self.people, progress
        )
        if large is not None:
            change = F.interpolate(faces - pixels, picture.size, mode="bicubic", antialias=True)
            faces = (picture.frames + change).clamp(0, 1)
            lines = tuple(replace(n, reason=large.reason) if n.status == "restored" else n for n in lines)
        restored = replace(picture, frames=faces, alpha=_resized(picture.alpha, faces[0]))
        return Restored(marked(restored, lines, self.model), lines)

    def _large(self, picture: Picture, side: int) -> LargeFace | None:
        """What becomes of an aligned picture larger than the network; its frames share a size, so one goes for all."""
        crops = F.interpolate(picture.frames, (side, side), mode="area")
        judged = judge_large(crops, [min(picture.size) / side] * len(crops), self.settings.options)
        return next((face for face in judged if face is not None), None)

    def _loaded(self) -> FacePipeline:
        if self.pipeline is None:
            self.load()
        assert self.pipeline is not None
        return self.pipeline

    def _out(self) -> Path:
        if self.settings.out is None:
            raise BadOption("No output folder is named; give settings with out=, or use attempt_bytes.")
        return self.settings.out

    def _is_kept(self, folder: str, source: Path, target: Path, outcome: Outcome) -> Path | None:
        """Where the result goes, None where it is there already; found out before any work is done.

        A result that bears the mark of another source (grandma.jpg where this is grandma.png) is not this one's.
        """
        settings, out = self.settings, self._out()
        endings = [f".{settings.format}"] if settings.format else dict.fromkeys([".png", source.suffix.lower()])
        own = fingerprint(source) if settings.skip_existing and source.is_file() else ""
        ending = source.suffix.lstrip(".") or "file"
        names = [target.name, f"{target.name}_{ending}", *(f"{target.name}_{ending}_{n}" for n in range(2, 100))]
        for name in names:
            files = [out / folder / target.with_name(f"{name}{settings.suffix}{end}") for end in endings]
            there = [file for file in files if file.exists()]
            if not there or settings.overwrite:
                return target.with_name(name)
            if not settings.skip_existing:
                raise BadImage(f"{there[0]} exists already; add --overwrite or --skip-existing, or another output.")
            if origin_of(there[0]) in ("", own):
                outcome.status, outcome.output = "kept", str(there[0])
                return None
        raise BadImage(f"{source}: a hundred results bear this name; name another output folder.")

    def _ending(self, picture: Picture) -> str:
        if self.settings.format:
            return f".{self.settings.format}"
        return picture.suffix if len(picture.frames) > 1 else ".png"

    def _file(self, folder: str, target: Path, picture: Picture) -> Path:
        ending = self._ending(picture)
        return self._out() / folder / target.with_name(f"{target.name}{self.settings.suffix}{ending}")

    def _extras(self, target: Path, picture: Picture, restored: Restored) -> None:
        """Crops and the sheet, where they are asked for."""
        from ..files.drawing import comparison

        settings, result = self.settings, restored.result
        if result is None:
            return
        if settings.save_crops:
            self._save_crops(target, result, len(picture.frames) > 1)
        if settings.compare:
            sheet = comparison(picture.frames, restored.picture.frames, result)
            file = self._out() / COMPARE / target.with_name(f"{target.name}{settings.suffix}.png")
            write(file, marked(Picture(sheet[None]), result.report, self.model), self.replace_extras)

    def _save_crops(self, target: Path, result: Restoration, animated: bool) -> None:
        counts: dict[int, int] = {}
        for index, image in enumerate(result.crops_in.image_index.tolist()):
            number = counts[image] = counts.get(image, -1) + 1
            stem = f"{target.name}_{image:06d}_{number:02d}" if animated else f"{target.name}_{number:02d}"
            lines = [line for line in result.report if line.crop == index]
            parts = ((CROPPED, result.crops_in, "", []), (RESTORED, result.crops_out, self.settings.suffix, lines))
            for folder, crops, suffix, told in parts:
                file = self._out() / folder / target.with_name(f"{stem}{suffix}.png")
                face = marked(Picture(crops.pixels[index : index + 1].cpu()), told, self.model)
                write(file, face, self.replace_extras)


def _resized(alpha: Tensor | None, like: Tensor) -> Tensor | None:
    size = like.shape[-2:]
    if alpha is None or alpha.shape[-2:] == size:
        return alpha
    return F.interpolate(alpha, size, mode="bicubic", antialias=True).clamp(0, 1)
