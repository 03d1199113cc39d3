"""Pictures -> restored pictures: detect, select, align, restore, paste, score, over batches of any sizes."""
from __future__ import annotations

from dataclasses import replace
from typing import Callable, Sequence

import torch
from torch import Tensor

from .compositing.blend import paste
from .compositing.grain import give_grain
from .detection.selection import Selection, select
from .errors import BadImage, BadOption
from .files.pixels import floats
from .geometry.alignment import align_on, runs_of
from .guidance.options import GuidanceOptions
from .guidance.restoring import FaceWork, RestoredCrops
from .identity.known import Galleries, Known, References, known_people
from .identity.recogniser import IdentityRecogniser, cosine
from .report import Scores, face_line, report_lines
from .restoration.large import LargeFace, fitted, judge_large, scales_of, under_own_detail, without_left
from .restoration.small import part_of
from .restoration.tone import is_monochrome, match_tone
from .runtime.validation import check_floats, check_images
from .types import (
    Crops,
    DetectOptions,
    Detector,
    Face,
    FaceReport,
    Faces,
    Progress,
    Restoration,
    RestoreOptions,
    Restorer,
    Upscaler,
)


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
        people: Galleries | None = None,
        others: Sequence[Faces] | None = None,
        fidelities: Sequence[Sequence[float]] | None = None,
        in_place: bool = False,
    ) -> Restoration:
        """Restore ``images``: [B,3,H,W] or a sequence of [3,H,W] of any sizes, RGB in [0,1] or uint8.

        ``faces`` (a tuple per image) replaces detection; they are all restored unless ``detect_options`` is given too.
        ``masks``: [H,W] or [1,H,W] in [0,1] per image, or None; only there anything changes (and keep="mask" chooses by
        them). ``references``: photos [3,H,W] of the person (each one's largest face counts), or their Embeddings, or
        those of several recognisers.
        ``upscaler``: [N,3,H,W] -> [N,3,k*H,k*W], for the background and, with ``face_upsample``, for the faces.
        ``people``: a gallery, or the same people by several recognisers: in each image one person goes to one face, and
        the report names them. ``guidance`` brings faces nearer to the person on the references, or to the one of the
        gallery that they are; the report says what it did to each.
        ``others``: faces of each image beside ``faces`` that stay as they are; no pixel of theirs changes.
        ``fidelities``: for each of ``faces`` its own w in [0,1], image by image, in place of that of ``options``.
        ``in_place``: pictures may be written into: float32 and uint8 ones that keep size and device become the results.
        ``progress(done, total, what)`` with what = "detecting", "restoring", "guiding", "pasting"; it may raise to
        cancel.

        The results lie on the devices of the images, uint8 where such pictures keep their size, else float32. No face
        is a normal result: the image resized as asked, a mask of zeros, no line in the report. Raises BadImage,
        BadOption, OutOfMemory.
        """
        options = options or RestoreOptions()
        if options.min_identity > 0:
            self._recognise()
        batch = check_images(images)
        _check_counts(len(batch), faces, masks)
        _check_counts(len(batch), others, None)
        work = self._work(options, guidance, references, people)
        found = self._find(batch, faces, detect_options, progress)
        chosen = self._choose(batch, found, faces, detect_options, masks, work.known)
        crops = self._align(batch, [c.faces for c in chosen], options)
        where = crops.image_index.tolist()
        large = judge_large(
            crops.pixels, scales_of(crops.matrices), options,
            lambda n: part_of(batch[where[n]], crops.matrices[n], crops.size),
        )  # fmt: skip
        work = replace(work, w=_each_w(fidelities, faces, large))
        crops, chosen, large = without_left(crops, chosen, large)
        gray = _monochrome(crops.pixels, options)
        pixels, done = self._restored(crops.pixels, crops.image_index, work, progress, gray)
        after = crops.with_pixels(pixels)
        scores = self._score(crops.pixels, pixels, work, done)
        scores = replace(scores, besides=tuple(face.reason if face else "" for face in large))
        report = report_lines(found, chosen, scores, options)
        if not all(kept := scores.reach(options.min_identity)):
            places = [n for n, keep in enumerate(kept) if keep]
            crops, after, large = crops.only(places), after.only(places), [large[n] for n in places]
            gray = None if gray is None else gray[places]
        own = [face is not None for face in large]  # those that were left are gone
        device = self._device(batch)
        shown = found if others is None else tuple((*a, *b) for a, b in zip(found, others))
        pasted, shares = paste(
            batch, crops, after.pixels, options, self.parser, masks, upscaler, progress, device, shown, own, in_place,
            gray,
        )  # fmt: skip
        return Restoration(pasted, shares, found, crops, after, report)

    def restore_aligned(
        self,
        pixels: Tensor,
        options: RestoreOptions | None = None,
        guidance: GuidanceOptions | None = None,
        references: References | None = None,
        people: Galleries | None = None,
        progress: Progress | None = None,
    ) -> tuple[Tensor, tuple[FaceReport, ...]]:
        """Aligned crops [N,3,H,W] in [0,1] of one size, each a picture of its own: no detection, no pasting.

        Restored crops of the network's size, blended by ``strength`` (a skipped one is the input), and a line for each;
        the input's grain is put back (``options.grain``). Crops that ``options.large_faces`` leaves, or restores under
        their own detail, keep their size. Arguments and errors as for a call.
        """
        options = options or RestoreOptions()
        if options.min_identity > 0:
            self._recognise()
        check_floats(pixels)
        high, wide = pixels.shape[-2:]
        box = (0.0, 0.0, float(wide), float(high))
        crops, large = fitted(pixels, self.restorer.size, options)
        if large is not None and not large.kept:
            return pixels, tuple(FaceReport(n, 0, box, 1.0, "skipped", large.reason) for n in range(len(pixels)))
        work = self._work(options, guidance, references, people)
        gray = _monochrome(crops, options)
        out, done = self._restored(crops, torch.arange(len(crops)), work, progress, gray)
        if options.strength < 1:
            out = crops + options.strength * (out - crops)
        scores = self._score(crops, out, work, done)
        whole, lines = Face(torch.tensor(box), 1.0, torch.zeros(5, 2)), []
        for number in range(len(crops)):
            line = face_line((number, 0), whole, number, scores, options)
            if line.status == "skipped":
                out[number] = crops[number]
            elif large is None:  # what keeps its own detail keeps its grain
                give_grain(out[number], crops[number], number, options, gray)
            told = large.reason if large is not None and line.status == "restored" else line.reason or "aligned input"
            lines.append(replace(line, reason=told))
        return out if large is None else under_own_detail(pixels, crops, out), tuple(lines)

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
        options = replace(options or DetectOptions(), doubtful=True)  # for the report; ``select`` drops them
        levels = getattr(self.detector, "takes_levels", False)
        for start, stop in runs_of(images):
            found += self.detector([image if levels else floats(image) for image in images[start:stop]], options)
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
        known: Known | None,
    ) -> list[Selection]:
        """Which faces are restored, in which order. Faces that were given were chosen by whoever gave them."""
        if given is not None and options is None:
            return [Selection(here, tuple(range(len(here))), ()) for here in found]
        options = options or DetectOptions()
        likeness: list[list[float] | None] = [None] * len(found)
        if options.order == "reference":
            likeness = self._likeness(images, found, known)
        return [
            select(here, options, tuple(image.shape[1:]), masks[i] if masks is not None else None, likeness[i])
            for i, (image, here) in enumerate(zip(images, found))
        ]

    def _likeness(
        self, images: list[Tensor], found: tuple[Faces, ...], known: Known | None
    ) -> list[list[float] | None]:
        if known is None or not known.shared:
            raise BadOption('order="reference" needs reference photos of the person; pass references=.')
        person = known.need(self._recognise()).identities
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
        return align_on(self._device(images), images, faces, self.restorer.size, options.border)

    def _work(
        self,
        options: RestoreOptions,
        guidance: GuidanceOptions | None,
        references: References | None,
        people: Galleries | None,
    ) -> FaceWork:
        guiding = guidance is not None and guidance.steps > 0
        asked = [self.recogniser, self.guide if guiding and self.guide is not self.recogniser else None]
        known = known_people(references, people, self.detector, [one for one in asked if one is not None])
        return FaceWork(options, known, guidance, self.recogniser, self.guide)

    def _restored(
        self, pixels: Tensor, images: Tensor, work: FaceWork, progress: Progress | None, gray: Tensor | None
    ) -> tuple[Tensor, RestoredCrops | None]:
        """Restored crops [N,3,S,S] in the tones of ``pixels``, of which ``gray`` [N] are monochrome; what was done."""
        if len(pixels) == 0:
            return pixels, None
        done = work(self.restorer, pixels, images, progress)
        low, high = done.pixels.aminmax()  # NaN passes on: one pass over the pixels, ten times faster than isfinite
        if not bool(torch.isfinite(low + high)):
            done = self._repaired(work, pixels, images, done, progress)
        return match_tone(done.pixels, pixels, work.options, gray, done.w), done

    def _repaired(
        self, work: FaceWork, pixels: Tensor, images: Tensor, done: RestoredCrops, progress: Progress | None
    ) -> RestoredCrops:
        """Faces that overflowed half precision, restored once more in fp32. Raises BadImage where that fails too."""
        exact = self.restorer.exact() if hasattr(self.restorer, "exact") else None
        if exact is None:
            raise BadImage("The network returned NaN; choose precision fp32, or check the weight file.")
        bad = (~torch.isfinite(done.pixels)).flatten(1).any(1).nonzero()[:, 0]
        if work.known is not None:  # who one face is depends on the others
            bad = torch.arange(len(pixels), device=pixels.device)
        part = work if work.w is None else replace(work, w=work.w[bad.cpu()])
        again = part(exact, pixels[bad], images[bad.to(images.device)], progress)
        if not bool(torch.isfinite(again.pixels).all()):
            raise BadImage("The network returned NaN in fp32 too; check the weight file.")
        return done.patched(bad.tolist(), again)

    def _recognise(self) -> IdentityRecogniser:
        if self.recogniser is None:
            raise BadOption(
                "References and min_identity need a recogniser; build the pipeline with load_recogniser()."
            )
        return self.recogniser

    def _score(self, before: Tensor, after: Tensor, work: FaceWork, done: RestoredCrops | None) -> Scores:
        """Similarities of every crop [N,3,S,S]: to its input by the recogniser, to its person by who knows them."""
        scores = Scores(done=done, guide=work.guide.name if work.guide is not None else "")
        if done is None:
            return scores
        own = None
        if self.recogniser is not None:
            own = self.recogniser(before), self.recogniser(after)
            scores = replace(scores, to_input=(own[0].vectors * own[1].vectors).sum(1).clamp(-1, 1).tolist())
        if work.known is None or work.scorer is None:
            return scores
        judge, people = work.scorer
        if own is None or judge is not self.recogniser:
            own = judge(before), judge(after)
        persons = [0 if work.known.shared else None if who is None else who.person for who in done.named]
        tables = [cosine(each, people.identities).tolist() for each in own]
        old, new = ([None if who is None else row[who] for row, who in zip(table, persons)] for table in tables)
        return replace(scores, before=old, after=new, judge=judge.name)


def _monochrome(pixels: Tensor, options: RestoreOptions) -> Tensor | None:
    """[N] bool of crops [N,3,S,S], asked once for colours and grain; None where neither wants to know."""
    return is_monochrome(pixels) if "auto" in (options.gray, options.grain) else None


def _check_counts(images: int, faces: Sequence | None, masks: Sequence | None) -> None:
    for name, given in (("lists of faces", faces), ("masks", masks)):
        if given is not None and len(given) != images:
            raise BadOption(f"{len(given)} {name} for {images} images; give one (maybe empty) per image.")


def _each_w(
    fidelities: Sequence[Sequence[float]] | None, faces: Sequence[Faces] | None, large: Sequence[LargeFace | None]
) -> Tensor | None:
    """[N]: the w of every crop that is restored. Raises BadOption where they are not one for each of ``faces``."""
    if fidelities is None:
        return None
    here, there = [len(each) for each in fidelities], [len(each) for each in faces or ()]
    if here != there or len(large) != sum(here):
        raise BadOption(f"{here} fidelities for {there} faces; give one for each of faces=, image by image.")
    w = torch.tensor([value for each in fidelities for value in each], dtype=torch.float32)
    return w[[n for n, face in enumerate(large) if face is None or face.kept]]
