"""Faces of single frames -> tracks: one face through a shot, gaps filled; and people: tracks of one identity."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ..detection.selection import select
from ..identity.people import NAMED
from ..identity.recogniser import pair_up
from ..types import DetectOptions, Face

_OVERLAP = 0.3  # intersection over union from which on two boxes may be one face
_TOUCH = 0.05  # the same for faces that are known to be one person's
_SAME, _OTHER = 0.5, 0.05  # cosine from which on it surely is the same person, below which surely not
_SAME_PERSON = 0.25  # cosine of tracks, for recognisers that identity.people does not list
_GAP = 0.3  # seconds that a face may be unseen within a track
_FEWEST = 3  # frames in which a face must be seen, where its shot is that long

# Columns of an observation: frame, box, score, landmarks, sharpness, gray (0, 1, or -1 where not looked at) and fine
# detail as restoration.large measures it.
FRAME, BOX, SCORE, POINTS, SHARP, GRAY, DETAIL, WIDTH = 0, slice(1, 5), 5, slice(6, 16), 16, 17, 18, 19


@dataclass(eq=False)
class Track:
    """One face through consecutive frames. Arrays have a row for each frame from ``start`` on."""

    number: int
    start: int
    boxes: np.ndarray  # [n,4]
    points: np.ndarray  # [n,5,2]
    scores: np.ndarray  # [n], 0 where the face was not seen and is filled in
    sharp: np.ndarray  # [n]
    gray: bool  # monochrome in most of its frames
    vector: np.ndarray | None  # [D] identity, mean over its frames
    detail: float = 0.0  # median of its fine detail
    own_detail: bool = False  # whether its own detail stays above what is restored
    person: int = 0
    kept: bool = True
    reason: str = ""  # why it is not kept
    name: str = ""  # of the person of a gallery that it is; "reference" for the one on reference photos
    who: int | None = None  # that person's place in the gallery
    likeness: float | None = None  # cosine to that person, or to the nearest
    unknown: str = ""  # why it is nobody known
    matrices: np.ndarray = field(default_factory=lambda: np.zeros((0, 2, 3)))  # [n,2,3], smoothed, picture -> unit crop

    @property
    def stop(self) -> int:
        return self.start + len(self.boxes)

    @property
    def score(self) -> float:
        """Detection score of its better frames."""
        return float(np.percentile(self.scores[self.scores > 0], 75))

    def face(self, frame: int) -> Face:
        """As it was seen in that frame, with the score of the track."""
        row = frame - self.start
        box, points = torch.from_numpy(self.boxes[row]), torch.from_numpy(self.points[row])
        return Face(box.float(), self.score, points.float())


def follow(rows: np.ndarray, vectors: dict[int, np.ndarray], cuts: Sequence[int], rate: float) -> list[Track]:
    """Tracks of the observations ``rows`` [N,WIDTH], ordered by frame; ``vectors`` holds embeddings of some of them.

    Overlap and identity decide together; no track passes a cut.
    """
    open_tracks: list[list[int]] = []
    done: list[list[int]] = []
    means: dict[int, np.ndarray] = {}
    gap = max(1, round(_GAP * rate))
    borders = set(cuts)
    frames = rows[:, FRAME].astype(int) if len(rows) else np.zeros(0, int)
    last = -1
    for frame in np.unique(frames):
        if any(cut in borders for cut in range(last + 1, frame + 1)):
            done, open_tracks = done + open_tracks, []
        last = int(frame)
        ended = [track for track in open_tracks if frame - frames[track[-1]] > gap]
        open_tracks = [track for track in open_tracks if frame - frames[track[-1]] <= gap]
        done += ended
        here = np.flatnonzero(frames == frame) if len(rows) < 4096 else _span(frames, frame)
        taken = set()
        if open_tracks and len(here):
            gain = np.array([[_gain(rows, track, row, vectors, means) for row in here] for track in open_tracks])
            for track, column in pair_up(gain):
                if gain[track, column] > 0:
                    _append(open_tracks[track], int(here[column]), vectors, means)
                    taken.add(column)
        for column, row in enumerate(here):
            if column not in taken:
                open_tracks.append([])
                _append(open_tracks[-1], int(row), vectors, means)
    done += open_tracks
    kept = [track for track in done if len(track) >= min(_FEWEST, _shot_length(frames[track[0]], cuts, last + 1))]
    kept.sort(key=lambda track: (frames[track[0]], rows[track[0], 1]))
    return [_filled(number, rows[track], means.get(id(track))) for number, track in enumerate(kept)]


def _span(frames: np.ndarray, frame: int) -> np.ndarray:
    return np.arange(np.searchsorted(frames, frame), np.searchsorted(frames, frame, "right"))


def _shot_length(frame: int, cuts: Sequence[int], end: int) -> int:
    borders = [0, *cuts, end]
    return next((b - a for a, b in zip(borders, borders[1:]) if a <= frame < b), _FEWEST)


def _append(track: list[int], row: int, vectors: dict[int, np.ndarray], means: dict[int, np.ndarray]) -> None:
    track.append(row)
    if row in vectors:
        means[id(track)] = means.get(id(track), 0) + vectors[row]


def _gain(rows: np.ndarray, track: list[int], row: int, vectors: dict, means: dict) -> float:
    """How well an observation goes on a track; 0 where it is another face."""
    last, new = rows[track[-1]], rows[row]
    box = last[BOX].copy()
    if len(track) > 1:  # where the face would be by now
        before = rows[track[-2]]
        steps = (new[FRAME] - last[FRAME]) / max(1.0, last[FRAME] - before[FRAME])
        box += np.tile(((last[BOX] - before[BOX])[:2] + (last[BOX] - before[BOX])[2:]) / 2 * min(steps, 3.0), 2)
    overlap = max(iou(box, new[BOX]), iou(last[BOX], new[BOX]))
    alike = 0.0
    if row in vectors and id(track) in means:
        mean = means[id(track)]
        alike = float(vectors[row] @ mean / max(1e-9, np.linalg.norm(mean)))
        if alike < _OTHER and overlap < 0.7:
            return 0.0
        if alike >= _SAME and overlap >= _TOUCH:
            return overlap + alike
    return overlap + alike if overlap >= _OVERLAP else 0.0


def iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(shared / max(1e-9, (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


def _filled(number: int, seen: np.ndarray, mean: np.ndarray | None) -> Track:
    """A track without gaps: what was not seen lies on the line between its neighbours."""
    at = seen[:, FRAME]
    every = np.arange(at[0], at[-1] + 1)
    columns = {name: np.stack([np.interp(every, at, seen[:, c]) for c in range(*part.indices(WIDTH))], 1)
               for name, part in (("box", BOX), ("points", POINTS))}  # fmt: skip
    scores, sharp = np.zeros(len(every)), np.zeros(len(every))
    rows = (at - at[0]).astype(int)
    scores[rows], sharp[rows] = seen[:, SCORE], seen[:, SHARP]
    looked = seen[seen[:, GRAY] >= 0]
    vector = None if mean is None else mean / max(1e-9, np.linalg.norm(mean))
    return Track(number, int(at[0]), columns["box"], columns["points"].reshape(-1, 5, 2), scores, sharp,
                 bool(len(looked) and looked[:, GRAY].mean() > 0.5), vector,
                 float(np.median(looked[:, DETAIL])) if len(looked) else 0.0)  # fmt: skip


def name_people(tracks: Sequence[Track], recogniser: str) -> None:
    """Give tracks of one identity the same ``person``; faces seen at the same time are different people."""
    least = NAMED.get(recogniser, _SAME_PERSON)
    people: list[list[Track]] = []
    for track in sorted(tracks, key=lambda track: -len(track.boxes)):
        best, place = least, None
        for number, others in enumerate(people):
            if track.vector is None or any(o.vector is None or together(o, track) for o in others):
                continue
            mean = np.sum([len(o.boxes) * o.vector for o in others if o.vector is not None], axis=0)
            likeness = float(track.vector @ mean / max(1e-9, np.linalg.norm(mean)))
            if likeness >= best:
                best, place = likeness, number
        if place is None:
            people.append([])
            place = len(people) - 1
        people[place].append(track)
    for number, others in enumerate(sorted(people, key=lambda others: min(o.number for o in others))):
        for track in others:
            track.person = number


def together(a: Track, b: Track) -> bool:
    return a.start < b.stop and b.start < a.stop


def choose(
    tracks: Sequence[Track], options: DetectOptions, size: tuple[int, int], likeness: Sequence[float] | None = None
) -> None:
    """Mark which tracks are kept: those that ``options`` keep in more than half of their frames.

    So a face does not come and go where two are about equally large. ``size`` (height, width) of the frames,
    ``likeness``: of each track to the reference person, for order="reference".
    """
    votes = np.zeros(len(tracks))
    reasons: list[dict[str, int]] = [{} for _ in tracks]
    for frame in range(max((track.stop for track in tracks), default=0)):
        here = [number for number, track in enumerate(tracks) if track.start <= frame < track.stop]
        if not here:
            continue
        alike = None if likeness is None else [likeness[number] for number in here]
        chosen = select([tracks[number].face(frame) for number in here], options, size, similarities=alike)
        for place in chosen.indices:
            votes[here[place]] += 1
        for place, why in chosen.dropped:
            reasons[here[place]][why] = reasons[here[place]].get(why, 0) + 1
    for number, track in enumerate(tracks):
        track.kept = votes[number] * 2 > len(track.boxes)
        track.reason = "" if track.kept else max(reasons[number], key=lambda why: reasons[number][why])


def sharpest(tracks: Sequence[Track], person: int, most: int = 5, apart: int = 10) -> list[tuple[Track, int]]:
    """(track, frame) of the frames in which a person is seen best, at least ``apart`` frames from each other."""
    seen = [(track.sharp[row], track, track.start + row) for track in tracks if track.person == person
            for row in range(len(track.sharp)) if track.sharp[row] > 0]  # fmt: skip
    found: list[tuple[Track, int]] = []
    for _, track, frame in sorted(seen, key=lambda one: -one[0]):
        if all(abs(frame - other) >= apart for _, other in found):
            found.append((track, frame))
        if len(found) == most:
            break
    return found


def as_face(track: Track, frame: int, points: np.ndarray) -> Face:
    """The face of a track in a frame, with other landmarks [5,2]."""
    return replace(track.face(frame), landmarks=torch.from_numpy(points).float())
