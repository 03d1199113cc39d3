"""One picture after another through one pipeline: files or bytes in, files or bytes out, every outcome told."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import BadImage, BadOption, IDCodeFormerError
from ..files.reading import Picture, decode, read
from ..files.writing import check_size, encode, write
from ..geometry.resizing import resize
from ..runtime.memory import is_out_of_memory
from ..runtime.validation import SMALLEST_CROP
from ..types import Embeddings, Progress, Restoration
from .models import default_model, embed_person, load_galleries, load_pipeline
from .naming import ending_of, free_name, out_of, result_file
from .outcome import COMPARE, CROPPED, FINAL, RESTORED, Outcome, Restored, marked
from .overlap import Overlap
from .settings import RestoreSettings

if TYPE_CHECKING:
    from ..identity.known import Galleries
    from ..pipeline import FacePipeline


@dataclass(eq=False)
class Step:
    """One file on its way."""

    path: Path
    outcome: Outcome
    free: Path | None = None  # where its result goes; None: nowhere, it is there or cannot be
    picture: Picture | None = None
    restored: Restored | None = None


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
        """Restore a picture in memory (frames [F,3,H,W] in [0,1] or uint8). Raises what the pipeline raises."""
        if isinstance(picture, Tensor):
            picture = Picture(picture)
        return self._restored(picture, progress)

    def _restored(self, picture: Picture, progress: Progress | None, own: bool = False) -> Restored:
        """``own``: the picture is ours and may be written into."""
        return self._crop(picture, progress) if self.settings.aligned else self._whole(picture, progress, own)

    def attempt(self, path: Path, target: Path, progress: Progress | None = None) -> Outcome:
        """Restore one file into the output folder; whatever goes wrong with it is told in the outcome."""
        step = self.begin(path, target)
        self.read(step)
        self.work(step, progress)
        return self.finish(step)

    def attempt_all(
        self,
        pairs: Iterable[tuple[Path, Path]],
        done: Callable[[Outcome], None],
        progress: Callable[[int], Progress] | None = None,
    ) -> None:
        """``attempt`` for (file, target) of ``pairs``, files being read and written while the networks run.

        ``done(outcome)`` in that order, ``progress(number)`` gives the progress of each; see ``Overlap.run``.
        """
        Overlap(self).run(pairs, done, progress)

    def begin(self, path: Path, target: Path) -> Step:
        """Where the result goes. ``read``, ``work`` and ``finish`` do nothing where an earlier part of it failed."""
        step = Step(path, Outcome(str(path)))

        def look(outcome: Outcome) -> None:
            step.free = free_name(self.settings, self._folder, path, target, outcome)

        self._told(step.outcome, look)
        return step

    def read(self, step: Step) -> None:
        """The picture of the file."""

        def work(outcome: Outcome) -> None:
            step.picture = read(step.path, levels=not self.settings.aligned)
            self._check(result_file(self.settings, self._folder, step.free, step.picture), step.picture, outcome)

        if step.free is not None and not step.outcome.error:
            self._told(step.outcome, work)

    def work(self, step: Step, progress: Progress | None = None) -> None:
        """The restored picture; runs the networks."""

        def work(outcome: Outcome) -> None:
            own = not self.settings.compare  # the sheet shows what was
            step.restored = self._restored(step.picture, progress, own)
            outcome.faces = [face.to_dict() for face in step.restored.faces]

        if step.picture is not None and not step.outcome.error:
            self._told(step.outcome, work)

    def finish(self, step: Step) -> Outcome:
        """Write the result and what else is asked for; the step lets go of its pictures."""

        def work(outcome: Outcome) -> None:
            self._extras(step.free, step.picture, step.restored)
            file = result_file(self.settings, self._folder, step.free, step.picture)
            outcome.output = str(write(file, step.restored.picture, self.settings.overwrite))
            outcome.status = step.restored.status

        if step.restored is not None and not step.outcome.error:
            self._told(step.outcome, work)
        step.picture = step.restored = None
        return step.outcome

    def attempt_bytes(
        self, data: bytes, name: str = "picture", progress: Progress | None = None
    ) -> tuple[bytes, Outcome]:
        """The bytes of a picture file -> those of its result, empty where it failed; ``name`` stands in messages."""
        results: list[bytes] = []

        def work(outcome: Outcome) -> None:
            picture = decode(data, name, levels=not self.settings.aligned)
            file = Path(Path(name).stem + ending_of(self.settings, picture))
            self._check(file, picture, outcome)
            restored = self._restored(picture, progress, own=True)
            outcome.faces = [face.to_dict() for face in restored.faces]
            results.append(encode(file, restored.picture))
            outcome.status = restored.status

        outcome = Outcome(name)
        self._told(outcome, work)
        return (results[0] if results else b""), outcome

    def _told(self, outcome: Outcome, work: Callable[[Outcome], None]) -> None:
        """``work(outcome)``, with the time it takes and what goes wrong."""
        name, start = outcome.input, time.perf_counter()
        try:
            work(outcome)
        except Exception as error:  # told and counted; the other pictures go on
            if self.failed is not None:
                self.failed(error)
            told = str(error) if isinstance(error, IDCodeFormerError) else f"{type(error).__name__}: {error}"
            if is_out_of_memory(error):
                told = f"{name} does not fit into memory; close other programs or scale it down."
            outcome.error = told if name in told else f"{name}: {told}"
            outcome.status = "failed"
        outcome.seconds = round(outcome.seconds + time.perf_counter() - start, 3)

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

    def _whole(self, picture: Picture, progress: Progress | None, own: bool) -> Restored:
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
            in_place=own,
        )
        frames = _stacked(result.images, picture.frames)
        restored = replace(picture, frames=frames, alpha=resized_alpha(picture.alpha, frames[0]))
        return Restored(marked(restored, result.report, self.model), result.report, result)

    def _crop(self, picture: Picture, progress: Progress | None) -> Restored:
        """The picture is a crop already: no detection, no pasting (reference: has_aligned)."""
        faces, lines = self._loaded().restore_aligned(
            picture.frames, self.settings.options, self.settings.guidance, self.references, self.people, progress
        )
        restored = replace(picture, frames=faces, alpha=resized_alpha(picture.alpha, faces[0]))
        return Restored(marked(restored, lines, self.model), lines)

    def _loaded(self) -> FacePipeline:
        if self.pipeline is None:
            self.load()
        assert self.pipeline is not None
        return self.pipeline

    @property
    def _folder(self) -> str:
        return RESTORED if self.settings.aligned else FINAL

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
            file = out_of(self.settings) / COMPARE / target.with_name(f"{target.name}{settings.suffix}.png")
            write(file, marked(Picture(sheet[None]), result.report, self.model), self.replace_extras)

    def _save_crops(self, target: Path, result: Restoration, animated: bool) -> None:
        counts: dict[int, int] = {}
        for index, image in enumerate(result.crops_in.image_index.tolist()):
            number = counts[image] = counts.get(image, -1) + 1
            stem = f"{target.name}_{image:06d}_{number:02d}" if animated else f"{target.name}_{number:02d}"
            lines = [line for line in result.report if line.crop == index]
            parts = ((CROPPED, result.crops_in, "", []), (RESTORED, result.crops_out, self.settings.suffix, lines))
            for folder, crops, suffix, told in parts:
                file = out_of(self.settings) / folder / target.with_name(f"{stem}{suffix}.png")
                face = marked(Picture(crops.pixels[index : index + 1].cpu()), told, self.model)
                write(file, face, self.replace_extras)


def _stacked(images: Sequence[Tensor], before: Tensor) -> Tensor:
    """[F,...] of the frames of a picture; ``before`` itself where they were written into it."""
    if all(image.data_ptr() == frame.data_ptr() for image, frame in zip(images, before)):
        return before
    return images[0][None] if len(images) == 1 else torch.stack(tuple(images))


def resized_alpha(alpha: Tensor | None, like: Tensor) -> Tensor | None:
    """``alpha`` [F,1,H,W] in the size of ``like`` [...,H',W']."""
    size = like.shape[-2:]
    if alpha is None or alpha.shape[-2:] == size:
        return alpha
    return resize(alpha, size, "bicubic").clamp(0, 1)
