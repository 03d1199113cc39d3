"""Pictures -> restored pictures: detect, select, align, restore, paste, score, over batches of any sizes."""
from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .compositing.blend import paste
from .detection.selection import Selection, select
from .errors import BadImage, BadOption
from .geometry.alignment import align
from .guidance.optimise import GuidanceOptions, guide, told
from .identity.people import embed_photos
from .identity.recogniser import IdentityRecogniser, cosine, mean_identity
from .report import Scores, report_lines
from .restoration.tone import match_tone
from .runtime.validation import check_images
from .types import (
    Crops,
    DetectOptions,
    Detector,
    Embeddings,
    Faces,
    Progress,
    Restoration,
    RestoreOptions,
    Restorer,
    Upscaler,
    empty_crops,
)

References = Embeddings | Sequence[Embeddings] | Sequence[Tensor]

_ALIGN_PIXELS = 1 << 25  # px of pictures on the device at once while they are aligned; 16 frames of 1080p
_FACES_HELD = 64  # crops that stay on the restorer's device between the steps; more wait where the pictures are


class FacePipeline:
    """Restores every face of a batch of pictures and puts it back.

    ``restorer`` and the optional ``detector``, ``recogniser`` and ``parser`` are what ``load_restorer``,
    ``load_detector``, ``load_recogniser`` and ``load_parser`` return, or anything that answers the same calls. Without
    a detector faces must be given; without a recogniser nothing is scored; without a parser the mask is a soft square.
    ``guide`` is the recogniser that guides towards reference photos; scores are honest where it is another one than
    ``recogniser``, which guides where none is given.
    """

    def __init__(
        self,
        restorer: Restorer,
        detector: Detector | None = None,
        recogniser: IdentityRecogniser | None = None,
        parser: Callable[[Tensor], Tensor] | None = None,
        guide: IdentityRecogniser | None = None,
    ):
        self.restorer, self.detector, self.recogniser, self.parser = restorer, detector, recogniser, parser
        self.guide = guide or recogniser

    def __call__(
        self,
        images: Tensor | Sequence[Tensor],
        options: RestoreOptions | None = None,
        detect_options: DetectOptions | None = None,
        faces: Sequence[Faces] | None = None,
        masks: Sequence[Tensor | None] | None = None,
        references: References | None = None,
        upscaler: Upscaler | None = None,
        progress: Progress | None = None,
        guidance: GuidanceOptions | None = None,
    ) -> Restoration:
        """Restore ``images``: [B,3,H,W] or a sequence of [3,H,W] of any sizes, RGB in [0,1].

        ``faces`` (a tuple per image) replaces detection; they are all restored unless ``detect_options`` is given too.
        ``masks``: [H,W] or [1,H,W] in [0,1] per image, or None; only there anything changes (and keep="mask" chooses by
        them). ``references``: photos [3,H,W] of the person (each one's largest face counts), or their Embeddings, or
        those of several recognisers.
        ``upscaler``: [N,3,H,W] -> [N,3,k*H,k*W], for the background and, with ``face_upsample``, for the faces.
        ``guidance`` brings faces nearer to the person on the references; the report says what it did to each.
        ``progress(done, total, what)`` with what = "detecting", "restoring", "guiding", "pasting"; it may raise to
        cancel.

        The results lie on the devices of the images. No face is a normal result: the image resized as asked, a mask of
        zeros, no line in the report. Raises BadImage, BadOption, OutOfMemory.
        """
        options = options or RestoreOptions()
        if options.min_identity > 0:
            self._recognise()
        batch = check_images(images)
        _check_counts(len(batch), faces, masks)
        if guidance is not None and guidance.steps and (references is None or not len(references)):
            raise BadOption("Guidance needs photos of the person; pass references=, or guidance steps of 0.")
        person = self._person(references)
        found = self._find(batch, faces, detect_options, progress)
        chosen = self._choose(batch, found, faces, detect_options, masks, person)
        crops = self._align(batch, [c.faces for c in chosen], options)
        pixels, notes = self.restored_crops(crops.pixels, options, guidance, references, progress)
        after = crops.with_pixels(pixels)
        scores = replace(self._score(crops, after.pixels, person), guidance=notes)
        report = report_lines(found, chosen, scores, options)
        if not all(kept := scores.reach(options.min_identity)):
            crops, after = (part.only([n for n, keep in enumerate(kept) if keep]) for part in (crops, after))
        device = self._device(batch)
        pasted, shares = paste(batch, crops, after.pixels, options, self.parser, masks, upscaler, progress, device)
        return Restoration(pasted, shares, found, crops, after, report)

    def _find(
        self,
        images: list[Tensor],
        faces: Sequence[Faces] | None,
        options: DetectOptions | None,
        progress: Progress | None,
    ) -> tuple[Faces, ...]:
        if faces is not None:
            return tuple(tuple(here) for here in faces)
        if self.detector is None:
            raise BadOption("No detector and no faces were given; pass faces=, or build the pipeline with a detector.")
        found: list[Faces] = []
        for start, stop in _chunks(images):
            found += self.detector(images[start:stop], options or DetectOptions())
            if progress:
                progress(stop, len(images), "detecting")
        return tuple(found)

    def _choose(
        self,
        images: list[Tensor],
        found: tuple[Faces, ...],
        given: Sequence[Faces] | None,
        options: DetectOptions | None,
        masks: Sequence[Tensor | None] | None,
        person: Embeddings | None,
    ) -> list[Selection]:
        """Which faces are restored, in which order. Faces that were given were chosen by whoever gave them."""
        if given is not None and options is None:
            return [Selection(here, tuple(range(len(here))), ()) for here in found]
        options = options or DetectOptions()
        likeness: list[list[float] | None] = [None] * len(found)
        if options.order == "reference":
            likeness = self._likeness(images, found, person)
        return [
            select(here, options, tuple(image.shape[1:]), masks[i] if masks is not None else None, likeness[i])
            for i, (image, here) in enumerate(zip(images, found))
        ]

    def _likeness(
        self, images: list[Tensor], found: tuple[Faces, ...], person: Embeddings | None
    ) -> list[list[float] | None]:
        if person is None:
            raise BadOption('order="reference" needs reference photos of the person; pass references=.')
        scores = cosine(self._recognise().embed_faces(images, found), person)[:, 0].tolist()
        out: list[list[float] | None] = []
        for here in found:
            out.append(scores[: len(here)])
            scores = scores[len(here) :]
        return out

    def _device(self, images: list[Tensor]) -> torch.device:
        """Where crops are made and pasted: the restorer's device, where it says which."""
        return getattr(self.restorer, "device", images[0].device if images else torch.device("cpu"))

    def _align(self, images: list[Tensor], faces: list[Faces], options: RestoreOptions) -> Crops:
        """All crops, made on the restorer's device; the pictures visit it a few at a time."""
        device = self._device(images)
        held = device if sum(map(len, faces)) <= _FACES_HELD else images[0].device
        sizes = tuple((int(image.shape[1]), int(image.shape[2])) for image in images)
        parts: list[Crops] = []
        for start, stop in _chunks(images):
            if any(faces[start:stop]):
                here = [image.to(device) for image in images[start:stop]]
                part = align(here, faces[start:stop], self.restorer.size, options.border)
                pixels = part.pixels.clamp_(0, 1).to(held)
                parts.append(Crops(pixels, part.matrices.cpu(), part.image_index.cpu() + start, sizes))
        if len(parts) < 2:
            return parts[0] if parts else empty_crops(self.restorer.size, sizes, device)
        joined = (torch.cat([getattr(p, name) for p in parts]) for name in ("pixels", "matrices", "image_index"))
        return Crops(*joined, sizes)

    def restored_crops(
        self,
        pixels: Tensor,
        options: RestoreOptions,
        guidance: GuidanceOptions | None = None,
        references: References | None = None,
        progress: Progress | None = None,
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Restored crops [N,3,S,S] of ``pixels``, and what guidance did to each; no line where none was asked for.

        Raises BadOption for guidance without references or without a CodeFormer, BadImage where the network fails.
        """
        if len(pixels) == 0:
            return pixels, ()
        run = partial(self._attempt, options=options, guidance=guidance, references=references, progress=progress)
        restored, notes = run(self.restorer, pixels)
        low, high = restored.aminmax()  # NaN passes on: one pass over the pixels, ten times faster than isfinite
        if not bool(torch.isfinite(low + high)):
            restored, notes = self._repaired(run, pixels, restored, notes)
        return match_tone(restored, pixels, options), notes

    def _repaired(
        self, run: Callable[..., tuple[Tensor, tuple[str, ...]]], pixels: Tensor, restored: Tensor, notes: Sequence[str]
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Faces that overflowed half precision, restored once more in fp32. Raises BadImage where that fails too."""
        exact = self.restorer.exact() if hasattr(self.restorer, "exact") else None
        if exact is None:
            raise BadImage("The network returned NaN; choose precision fp32, or check the weight file.")
        bad = (~torch.isfinite(restored)).flatten(1).any(1).nonzero()[:, 0]
        again, told_again = run(exact, pixels[bad])
        if not bool(torch.isfinite(again).all()):
            raise BadImage("The network returned NaN in fp32 too; check the weight file.")
        lines = list(notes)
        for place, line in zip(bad.tolist(), told_again):
            lines[place] = line
        return restored.index_copy(0, bad, again), tuple(lines)

    def _attempt(
        self,
        restorer: Restorer,
        pixels: Tensor,
        options: RestoreOptions,
        guidance: GuidanceOptions | None,
        references: References | None,
        progress: Progress | None,
    ) -> tuple[Tensor, tuple[str, ...]]:
        if guidance is None or not guidance.steps:
            return restorer(pixels, options, progress), ()
        if not hasattr(restorer, "decoder"):
            raise BadOption("Guidance needs a CodeFormer; this restorer has no codes. Choose guidance steps of 0.")
        recogniser, judge = self.guide or self._recognise(), None
        target = self._person(references, recogniser)
        if target is None:
            raise BadOption("Guidance needs photos of the person; pass references=, or guidance steps of 0.")
        if recogniser is not self.recogniser and self.recogniser is not None:
            person = self._person(references)
            assert person is not None
            judge = (self.recogniser, person)
        result = guide(restorer, pixels, target, recogniser, options, guidance, judge=judge, progress=progress)
        return result.pixels, told(result, recogniser.name, judge is not None)

    def _recognise(self) -> IdentityRecogniser:
        if self.recogniser is None:
            raise BadOption(
                "References and min_identity need a recogniser; build the pipeline with load_recogniser()."
            )
        return self.recogniser

    def _person(
        self, references: References | None, recogniser: IdentityRecogniser | None = None
    ) -> Embeddings | None:
        """One embedding of the person on the reference photos, by ``recogniser`` or by the one that scores."""
        if references is None or len(references) == 0:
            return None
        if isinstance(references, Embeddings):
            return mean_identity(references)
        if isinstance(references[0], Embeddings):
            name = (recogniser or self._recognise()).name
            for embedded in references:
                if embedded.recogniser == name:
                    return mean_identity(embedded)
            raise BadOption(f"The references were not embedded by {name}; embed the photos with it, or pass photos.")
        if self.detector is None:
            raise BadOption("Reference photos need a detector; build the pipeline with one, or pass Embeddings.")
        photos = check_images(references)
        return mean_identity(embed_photos(photos, self.detector, recogniser or self._recognise()))

    def _score(self, crops: Crops, restored: Tensor, person: Embeddings | None) -> Scores:
        """Similarities of every crop, each a list of N floats or None."""
        if self.recogniser is None or len(crops) == 0:
            return Scores()
        before, after = self.recogniser(crops.pixels), self.recogniser(restored)
        to_input = (before.vectors * after.vectors).sum(1).clamp(-1, 1).tolist()
        if person is None:
            return Scores(to_input)
        return Scores(to_input, cosine(before, person)[:, 0].tolist(), cosine(after, person)[:, 0].tolist())


def _check_counts(images: int, faces: Sequence | None, masks: Sequence | None) -> None:
    for name, given in (("lists of faces", faces), ("masks", masks)):
        if given is not None and len(given) != images:
            raise BadOption(f"{len(given)} {name} for {images} images; give one (maybe empty) per image.")


def _chunks(images: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """(start, stop) of runs of images that together stay under a bound of pixels, each at least one image."""
    start, held = 0, 0
    for number, image in enumerate(images):
        size = image.shape[-2] * image.shape[-1]
        if held and held + size > _ALIGN_PIXELS:
            yield start, number
            start, held = number, 0
        held += size
    if held:
        yield start, len(images)
