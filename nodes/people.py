"""ID_PERSON: one person or several by their photos, for the nodes that ask who a face is."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Sequence

import torch
from torch import Tensor

from ..idcodeformer.errors import BadImage, BadOption
from ..idcodeformer.types import DetectOptions, Detector, Embeddings, Face, Faces

if TYPE_CHECKING:
    from ..idcodeformer.identity.people import Doubt, People, Person
    from ..idcodeformer.identity.recogniser import IdentityRecogniser
    from .convert import Frames
    from .managed import Part

_SIDE = 256  # px of the crops that are kept; recognisers see 112


@dataclass(frozen=True, eq=False)
class Photo:
    """A face of the person, cut out of its photo with the points that recognisers align it by."""

    pixels: Tensor  # [3,256,256]
    face: Face
    label: str


@dataclass(frozen=True, eq=False)
class LinkedPeople:
    """People by the recogniser that guides, with their faces, so that another one can judge."""

    people: People
    part: Part  # the recogniser, which lives as long as this
    photos: tuple[tuple[Photo, ...], ...]  # of each person; empty where the person came out of a file
    _judged: dict[str, People] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [person.name for person in self.people.persons]

    def by(self, recogniser: IdentityRecogniser) -> People | None:
        """The same people embedded by ``recogniser``; None where the photos of one are not at hand."""
        from ..idcodeformer.identity.people import People, Person

        digest = recogniser.digest
        if (recogniser.name, digest) == (self.people.recogniser, self.people.digest):
            return self.people
        if not all(self.photos):
            return None
        if digest not in self._judged:
            persons = tuple(
                Person(person.name, embedded(photos, recogniser), tuple(photo.label for photo in photos))
                for person, photos in zip(self.people.persons, self.photos)
            )
            self._judged[digest] = People(persons, recogniser.name, digest)
        return self._judged[digest]


def people_of(person: Any, name: str = "person") -> LinkedPeople | None:
    """``person`` if it is an ID_PERSON of this pack, None for None; raises BadOption otherwise."""
    if person is not None and not isinstance(person, LinkedPeople):
        raise BadOption(f"'{name}' is a {type(person).__name__}; link the person output of Load Person.")
    return person


def photos_of(frames: Frames, detector: Detector) -> list[Photo]:
    """The largest face of every frame that shows one, labelled "photo 0" and so on."""
    from ..idcodeformer.geometry.alignment import align
    from .faces import find

    found = find(frames, detector, DetectOptions(keep="largest"))
    photos: list[Photo] = []
    for start, stop in frames.chunks():
        here = found.faces[start:stop]
        numbers = [number for number, some in enumerate(here, start) if some]
        crops = align(frames.part(start, stop), here, _SIDE, "reflect")
        for pixels, matrix, number in zip(crops.pixels.cpu(), crops.matrices.cpu(), numbers):
            points = found.faces[number][0].landmarks @ matrix[:, :2].T + matrix[:, 2]
            box = torch.tensor([0.0, 0.0, _SIDE - 1, _SIDE - 1])
            photos.append(Photo(pixels, Face(box, found.faces[number][0].score, points), f"photo {number}"))
    return photos


def embedded(photos: Sequence[Photo], recogniser: IdentityRecogniser) -> Embeddings:
    """[n,D], of the faces as they are aligned by their own points."""
    return recogniser.embed_faces([photo.pixels for photo in photos], [(photo.face,) for photo in photos])


def person_from(
    name: str, photos: Sequence[Photo], recogniser: IdentityRecogniser
) -> tuple[Person, tuple[Photo, ...], tuple[Doubt, ...]]:
    """The person, the photos that count, and those that look odd. Raises BadImage without a face."""
    from ..idcodeformer.identity.people import person_of

    if not photos:
        raise BadImage(f"No photo of {name} shows a face; link one that does to 'photos'.")

    def known(_: Sequence[Tensor], __: DetectOptions) -> tuple[Faces, ...]:
        return tuple((photo.face,) for photo in photos)

    labels = [photo.label for photo in photos]
    person, doubts = person_of(name, [photo.pixels for photo in photos], known, recogniser, labels)
    return person, tuple(photo for photo in photos if photo.label in person.photos), doubts


def joined(first: LinkedPeople | None, second: LinkedPeople) -> tuple[LinkedPeople, tuple[Doubt, ...]]:
    """Both in one, and what is odd about the photos of a person who is in both: these become one person's.

    Raises BadOption where the recognisers differ.
    """
    from ..idcodeformer.identity.people import People, Person

    if first is None:
        return second, ()
    if (first.people.recogniser, first.people.digest) != (second.people.recogniser, second.people.digest):
        raise BadOption(
            f"The people linked were embedded by {first.people.recogniser}, these by {second.people.recogniser}; "
            "choose the same recogniser in every Load Person."
        )
    persons, photos = list(first.people.persons), list(first.photos)
    doubts: list[Doubt] = []
    for person, theirs in zip(second.people.persons, second.photos):
        if person.name not in [known.name for known in persons]:
            persons, photos = [*persons, person], [*photos, theirs]
            continue
        place = [known.name for known in persons].index(person.name)
        if photos[place] and theirs:
            recogniser = second.part.ready()
            together = _relabelled([*photos[place], *theirs])
            persons[place], photos[place], odd = person_from(person.name, together, recogniser)
            doubts += odd
        else:
            before = persons[place]
            vectors = torch.cat([before.embeddings.vectors, person.embeddings.vectors.to(before.embeddings.vectors)])
            names = (*before.photos, *person.photos)
            persons[place] = Person(person.name, Embeddings(vectors, person.embeddings.recogniser), names)
            photos[place] = ()
    both = People(tuple(persons), second.people.recogniser, second.people.digest)
    return LinkedPeople(both, second.part, tuple(photos)), tuple(doubts)


def _relabelled(photos: Sequence[Photo]) -> list[Photo]:
    """Every label once, since photos of two nodes are both numbered from 0."""
    return [Photo(photo.pixels, photo.face, f"photo {number}") for number, photo in enumerate(photos)]
