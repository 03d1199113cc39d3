"""Who the tracks of a clip are, and what is done for each as that person: one fidelity, one offset of guidance.

A track is judged by its sharpest frames, so that a face keeps its name through a shot. Those frames are read again from
the clip; nothing of a track is held longer than it lasts.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BadOption
from ..geometry.alignment import align
from ..guidance.along import Moved, SharedGuide
from ..guidance.fidelity import lowest_fidelity
from ..guidance.gate import least_likeness
from ..guidance.judging import MOST_DRIFT
from ..guidance.options import GuidanceOptions
from ..guidance.restoring import FaceWork, nobody_known
from ..identity.known import Known
from ..identity.people import People, Person
from ..identity.recogniser import mean_identity
from ..types import Embeddings, RestoreOptions
from .smoothing import landmarks_of
from .tracks import Track, as_face, sharpest, together

if TYPE_CHECKING:
    from ..pipeline import FacePipeline
    from .analysis import Analysis, Source

_FRAMES = 4  # of a track, in which it is judged and guidance begins
_PER_FRAME = 12  # frames of a track for each of them: short ones are judged by fewer
_KEYS = 64  # of a track at most, where its offset is moved on; they bound its memory
_KEY_SECONDS = 1.0  # between them, at least
_KEY_STEPS = 5  # a key takes that part of the steps
_GO_ON = 50  # frames; what is nearer is read on to, what is further is sought


@dataclass(frozen=True, eq=False)
class Wanted:
    """The people that a clip is asked about."""

    known: Known | None = None
    guidance: GuidanceOptions | None = None
    own: bool = False  # the sharpest frames of each person in the clip are that person's photos
    only: bool = False  # tracks that are nobody known stay as they are

    def __post_init__(self) -> None:
        if self.own and self.known is not None:
            raise BadOption("The clip's own frames and photos of people were given as references; choose one.")
        if self.only and self.known is None:
            raise BadOption("Keeping known people alone needs their photos; give references or people.")


@dataclass(frozen=True, eq=False)
class Treatment:
    """What is done with a track: its fidelity, and offsets [D,h,w] at the frames ``keys``."""

    w: float
    note: str = ""
    told: dict[str, Any] = field(default_factory=dict)  # for the lines of a report
    keys: tuple[int, ...] = ()
    offsets: tuple[Tensor, ...] = ()

    def offset(self, frame: int) -> Tensor | None:
        """Between two keys on the line, beyond them as at the nearest."""
        if not self.keys:
            return None
        place = int(np.searchsorted(self.keys, frame))
        if place in (0, len(self.keys)):
            return self.offsets[min(place, len(self.keys) - 1)].float()
        low, high = self.keys[place - 1], self.keys[place]
        return torch.lerp(self.offsets[place - 1].float(), self.offsets[place].float(), (frame - low) / (high - low))


class ClipPeople:
    """Names tracks, and says how each is treated. ``options`` are those of the clip. Raises BadOption."""

    def __init__(self, pipeline: FacePipeline, source: Source, analysis: Analysis, options: RestoreOptions,
                 wanted: Wanted):  # fmt: skip
        self.pipeline, self.source, self.analysis = pipeline, source, analysis
        self.options, self.wanted, self.known = options, wanted, wanted.known
        guided = wanted.guidance is not None and wanted.guidance.steps > 0
        self.guidance = wanted.guidance if guided else None
        self.work = None if wanted.own else self._work()
        self._last: tuple[Any, Tensor] = (None, torch.zeros(0))

    def _work(self) -> FaceWork:
        return FaceWork(self.options, self.known, self.guidance, self.pipeline.recogniser, self.pipeline.guide)

    def name(self, tracks: Sequence[Track]) -> None:
        """Tell every kept track who it is; with ``only`` those of nobody are no longer kept."""
        if self.wanted.own:
            self._meet(tracks)
        elif self.known is not None:
            self._name([track for track in tracks if track.kept])

    def _meet(self, tracks: Sequence[Track]) -> None:
        """The people of the clip itself become the gallery."""
        numbers = sorted({track.person for track in tracks if track.kept})
        judges = [one for one in dict.fromkeys([self.pipeline.guide, self.pipeline.recogniser]) if one is not None]
        if not judges:
            raise BadOption("A clip's own frames as references need a recogniser; choose another than 'none'.")
        apart = max(2, round(float(self.source.info.rate) / 3))
        persons: list[list[Person]] = [[] for _ in judges]
        for number in numbers:
            best = sharpest(tracks, number, 2 * _FRAMES, apart)
            if not best:  # no frame of theirs was looked at closely
                best = [(track, self._best(track)[0]) for track in tracks if track.person == number]
            crops = torch.cat([self._crops(track, [frame]) for track, frame in best])
            for each, judge in zip(persons, judges):
                each.append(Person(f"person {number}", judge(crops), ()))
        self.known = Known(tuple(People(tuple(each), judge.name, "") for each, judge in zip(persons, judges)))
        self.work = self._work()
        for track in tracks:
            if track.kept:
                track.who = numbers.index(track.person)

    def _name(self, tracks: list[Track]) -> None:
        recogniser, people = self.work.namer
        persons = people.identities.vectors
        scores = np.zeros((len(tracks), len(people)))
        for row, track in enumerate(tracks):
            crops = self._crops(track, self._best(track))
            restored = self.pipeline.restorer(crops, self.options)
            vector = mean_identity(recogniser(restored)).vectors
            scores[row] = (vector @ persons.to(vector.device).t())[0].clamp(-1, 1).tolist()
            track.likeness = float(scores[row].max())
        force = self.guidance is not None and self.guidance.force
        gate = -1.0 if force else least_likeness(recogniser.name)
        for row, person in _one_each(tracks, scores, gate):
            tracks[row].who, tracks[row].likeness = person, float(scores[row, person])
            tracks[row].name = people.persons[person].name or "reference"
        for row, track in enumerate(tracks):
            if track.who is not None:
                continue
            nearest = people.persons[int(scores[row].argmax())].name
            track.unknown = nobody_known(float(scores[row].max()), nearest, recogniser.name)
            if self.wanted.only:
                track.kept, track.reason = False, f"nobody known ({track.unknown.removeprefix('not guided: ')})"

    def treat(self, track: Track) -> Treatment:
        """Fidelity and guidance of a track, worked out in some of its frames."""
        w, note, told = self.options.w, "", {}
        if self.options.identity_target > 0:
            w, note = self._faithful(track)
        keys: tuple[int, ...] = ()
        offsets: tuple[Tensor, ...] = ()
        if self.guidance is not None:
            told["guidance"], told["guided_by"] = track.unknown, ""
            if track.who is not None:
                told, keys, offsets = self._guided(track, replace(self.options, w=w))
        if self.work is not None and self.work.scorer is not None and (track.who is not None or self.known.shared):
            told |= self._scored(track, w, Treatment(w, keys=keys, offsets=offsets))
        return Treatment(w, note, told, keys, offsets)

    def _faithful(self, track: Track) -> tuple[float, str]:
        """The lowest w that is enough in every frame looked at."""
        crops = self._crops(track, _spread(track, _FRAMES))
        judge, people = self.work.scorer or (self.pipeline.recogniser, None)
        aims = judge(crops).vectors.clone()
        if people is not None and (track.who is not None or self.known.shared):
            aims[:] = people.identities.vectors[track.who or 0].to(aims)
        found = lowest_fidelity(self.pipeline.restorer, crops, aims, judge, self.options)
        notes = [note for note in found.notes(self.options.identity_target) if note]
        return float(found.w.max()), min(notes, default="")

    def _guided(self, track: Track, options: RestoreOptions) -> tuple[dict, tuple[int, ...], tuple[Tensor, ...]]:
        """What is told of it, and the offsets along the track; none where they do not make it better."""
        restorer, recogniser, scorer = self.pipeline.restorer, self.pipeline.guide, self.pipeline.recogniser
        others = None if scorer is recogniser else self.known.by(scorer)
        judge = None if others is None else (scorer, self._person(others, track))
        target = self._person(self.known.need(recogniser), track)
        guide = SharedGuide(restorer, recogniser, target, options, self.guidance, judge)
        crops = self._crops(track, self._best(track))
        first = guide(crops, restorer(crops, options), self.guidance.steps)
        done, keys, offsets = [first], _keys(track, float(self.source.info.rate)), []
        for crop in self._read(track, keys) if not first.reason else ():
            moved = guide(crop, restorer(crop, options), max(1, self.guidance.steps // _KEY_STEPS))
            better = moved.after >= moved.before and moved.drift <= MOST_DRIFT
            offsets.append(moved.offset if better else torch.zeros_like(moved.offset))
            done.append(moved)
        reason = first.reason or _lost(done)
        if reason:
            return {"guidance": reason, "guided_by": ""}, (), ()
        mean = [sum(getattr(each, name) for each in done) / len(done) for name in ("before", "after")]
        own = f", judged by {judge[0].name}" if judge else "; the score is by the recogniser that guided"
        text = f"guided by {recogniser.name}, {mean[0]:.2f} to {mean[1]:.2f} in {len(done)} places{own}"
        return {"guidance": text, "guided_by": recogniser.name}, keys, tuple(offsets)

    def _person(self, people: People, track: Track) -> Embeddings:
        return Embeddings(people.identities.vectors[track.who : track.who + 1], people.recogniser)

    def _scored(self, track: Track, w: float, treatment: Treatment) -> dict[str, Any]:
        """Likeness of the input and of the result to the person, mean over the frames that a track is judged by."""
        judge, people = self.work.scorer
        best = self._best(track)
        crops = self._crops(track, best)
        person = people.identities.vectors[track.who or 0]
        after = self._restored(crops, best, w, treatment)
        old, new = (float((judge(part).vectors @ person.to(judge.device)).mean()) for part in (crops, after))
        return {"id_sim_before": round(old, 4), "id_sim_after": round(new, 4), "judged_by": judge.name}

    def _restored(self, crops: Tensor, frames: Sequence[int], w: float, treatment: Treatment) -> Tensor:
        restorer = self.pipeline.restorer
        if not treatment.keys:
            return restorer(crops, replace(self.options, w=w))
        from ..networks.codeformer import CodeState, adain_codes

        state = restorer.encode(crops)
        codes = adain_codes(state) if self.options.latent_match else state.quant
        codes = codes + torch.stack([treatment.offset(frame) for frame in frames]).to(codes)
        return restorer.decode(CodeState(state.logits, codes, codes, state.features), w,
                               replace(self.options, adain=False)).to(crops.device)  # fmt: skip

    def _best(self, track: Track) -> list[int]:
        most = min(_FRAMES, 1 + len(track.boxes) // _PER_FRAME)
        found = sharpest([track], track.person, most, max(2, round(float(self.source.info.rate) / 3)))
        return sorted(frame for _, frame in found) or [(track.start + track.stop) // 2]

    def _crops(self, track: Track, frames: Sequence[int]) -> Tensor:
        """[n,3,S,S] of some frames of a track, in order. Those that were asked for last are at hand."""
        asked = (track.number, *sorted(frames))
        if self._last[0] != asked:
            self._last = asked, torch.cat(list(self._read(track, asked[1:])))
        return self._last[1]

    def _read(self, track: Track, frames: Sequence[int]) -> Iterator[Tensor]:
        """A crop [1,3,S,S] of each frame, in rising order."""
        restorer, reader, at = self.pipeline.restorer, None, -1
        device = getattr(restorer, "device", torch.device("cpu"))
        for number in frames:
            if reader is None or number - at > _GO_ON:
                reader, at = self.source.frames(number, self.analysis.pts[number], None), number - 1
            for frame in reader:
                at = frame.index
                if at == number:
                    break
            else:
                raise BadOption(f"{self.source.info.path} changed while it was read; run again.")
            face = as_face(track, number, landmarks_of(track.matrices[number - track.start]))
            yield align([frame.tensor().to(device)], [(face,)], restorer.size, self.options.border).pixels.clamp(0, 1)


def _one_each(tracks: Sequence[Track], scores: np.ndarray, gate: float) -> list[tuple[int, int]]:
    """(track, person) from the likeliest pair on: nobody is two faces at a time."""
    found: list[tuple[int, int]] = []
    for place in np.argsort(-scores, axis=None, kind="stable"):
        row, person = divmod(int(place), scores.shape[1])
        if scores[row, person] < gate:
            break
        taken = any(row == other or (who == person and together(tracks[row], tracks[other])) for other, who in found)
        if not taken:
            found.append((row, person))
    return found


def _spread(track: Track, most: int) -> list[int]:
    """Frames evenly over a track, not its very ends."""
    count = min(most, len(track.boxes))
    return sorted({int(track.start + (n + 0.5) * len(track.boxes) / count) for n in range(count)})


def _keys(track: Track, rate: float) -> tuple[int, ...]:
    count = min(_KEYS, max(1, round(len(track.boxes) / (_KEY_SECONDS * rate))))
    return tuple(_spread(track, count))


def _lost(done: Sequence[Moved]) -> str:
    """Why a track is better unguided as a whole, "" where it is not."""
    judged = sum(each.judged for each in done) / len(done)
    return f"guidance lost likeness by the judge ({judged:+.2f})" if judged < 0 else ""

