"""The people that faces may be: one by reference photos, or a gallery, by one recogniser or by several."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import BadOption
from ..runtime.validation import check_images
from ..types import Detector, Embeddings
from .people import People, Person, embed_photos
from .recogniser import IdentityRecogniser, mean_identity

References = Embeddings | Sequence[Embeddings] | Sequence[Tensor]
Galleries = People | Sequence[People]  # of several: the same people in the same order, each by another recogniser


@dataclass(frozen=True, eq=False)
class Known:
    """``galleries``: the same people by one recogniser each. ``shared``: one nameless person, whom reference photos
    show, and to whom every face is compared."""

    galleries: tuple[People, ...]
    shared: bool = False

    def by(self, recogniser: IdentityRecogniser | None) -> People | None:
        """The people by this recogniser; None where it did not embed them. Raises BadOption for other weights."""
        for people in self.galleries:
            if recogniser is not None and people.recogniser == recogniser.name:
                if people.digest:
                    people.check(recogniser)
                return people
        return None

    def need(self, recogniser: IdentityRecogniser) -> People:
        """As ``by``. Raises BadOption where this recogniser did not embed them."""
        people = self.by(recogniser)
        if people is None:
            what, made = "references" if self.shared else "people", " and ".join(p.recogniser for p in self.galleries)
            raise BadOption(
                f"The {what} were not embedded by {recogniser.name} but by {made}; embed the photos with it, or pass "
                "the photos."
            )
        return people


def known_people(
    references: References | None,
    people: Galleries | None,
    detector: Detector | None,
    recognisers: Sequence[IdentityRecogniser],
) -> Known | None:
    """Who faces may be, None where nobody was given. Photos are embedded by each of ``recognisers``.

    Raises BadOption for both at once, for galleries of different people, and for photos without a detector or a
    recogniser; BadImage for a photo without a face.
    """
    if people is not None:
        galleries = (people,) if isinstance(people, People) else tuple(people)
        if references is not None and len(references):
            raise BadOption("Reference photos and a gallery of people were given; give one of them.")
        names = {tuple(person.name for person in each.persons) for each in galleries}
        if len(names) > 1:
            raise BadOption("The galleries show different people; embed the same photos with each recogniser.")
        return Known(galleries) if galleries and len(galleries[0]) else None
    if references is None or len(references) == 0:
        return None
    if isinstance(references, Embeddings):
        embedded: Sequence[Embeddings] = [references]
    elif isinstance(references[0], Embeddings):
        embedded = references
    else:
        embedded = _embedded(references, detector, recognisers)
    return Known(tuple(one_person(each) for each in embedded), shared=True)


def one_person(embeddings: Embeddings, name: str = "") -> People:
    """A gallery of one person from embeddings of photos [photos,D] or their mean [1,D]."""
    person = Person(name, mean_identity(embeddings), ())
    return People((person,), embeddings.recogniser, "")


def _embedded(
    photos: Sequence[Tensor], detector: Detector | None, recognisers: Sequence[IdentityRecogniser]
) -> list[Embeddings]:
    if detector is None:
        raise BadOption("Reference photos need a detector; build the pipeline with one, or pass Embeddings.")
    if not recognisers:
        raise BadOption("References and min_identity need a recogniser; build the pipeline with load_recogniser().")
    checked = check_images(photos)
    return [embed_photos(checked, detector, recogniser) for recogniser in recognisers]
