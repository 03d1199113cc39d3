"""People by their photos: a gallery, the photos of it that do not belong, and who is who in a picture."""
from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import BadImage, BadOption, UnsupportedWeights
from ..types import Detector, Embeddings
from .looks import Look, RememberedLooks, largest_faces, look_at
from .recogniser import IdentityRecogniser, cosine, mean_identity, pair_up

FILE_KIND = "idcodeformer_people"
# Cosine of a photo and the mean of the person's others. Over LFW validation people the photo's own person lies above
# 0.47 (mini_recogniser) and 0.43 (mobileface_v2) in 99 %, another one below 0.40 and 0.27 in 99 %. Recognisers not
# listed are taken to be as strict as ArcFace's ResNets, where strangers lie near 0.
BELONGS = {"mini_recogniser": 0.40, "mobileface_v2": 0.33}
_BELONGS = 0.30
# Cosine of a face in a picture and a person, from which on the face is named. 145 LFW validation people, one photo
# each, mini_recogniser: the level that 95 % of the pairs of strangers stay below is 0.30 clean and at x2, 0.27 at x4
# and 0.23 at x8; 98, 96, 76 and 23 % of the pairs of one person lie above theirs: most faces at x8 stay unnamed.
# mobileface_v2: 0.17 clean and at x4, 99 and 67 % above.
NAMED = {"mini_recogniser": 0.30, "mobileface_v2": 0.17}
_NAMED = 0.25
_LEAST_DETAIL = 0.5  # of the person's median; clean LFW photos lie above 0.64 in 99 %, degraded x8 below 0.42 in 95 %
_FEWEST = 3  # photos of a person from which one can be told to differ from the rest


@dataclass(frozen=True, eq=False)
class Person:
    """One person: the photos that count, and an embedding for each."""

    name: str
    embeddings: Embeddings  # [photos,D]
    photos: tuple[str, ...]

    @property
    def identity(self) -> Embeddings:
        """[1,D], the normalised mean of the photos' embeddings."""
        return mean_identity(self.embeddings)


@dataclass(frozen=True)
class Doubt:
    """A photo that was left out of a person, or (``kept``) looks as if it should be."""

    person: str
    photo: str
    reason: str
    kept: bool = False


@dataclass(frozen=True)
class Named:
    """A face's person: the position in the gallery, the name, and the cosine."""

    person: int
    name: str
    similarity: float


@dataclass(frozen=True, eq=False)
class People:
    """A gallery of people by one recogniser."""

    persons: tuple[Person, ...]
    recogniser: str
    digest: str  # of the recogniser's weights, see IdentityRecogniser.digest
    doubts: tuple[Doubt, ...] = ()

    def __len__(self) -> int:
        return len(self.persons)

    @property
    def identities(self) -> Embeddings:
        """[people,D]."""
        return Embeddings(torch.cat([person.identity.vectors for person in self.persons]), self.recogniser)

    def check(self, recogniser: IdentityRecogniser) -> None:
        """Raise BadOption where another recogniser, or other weights of that name, made this gallery."""
        if (self.recogniser, self.digest) != (recogniser.name, recogniser.digest):
            other = f"another {recogniser.name}" if self.recogniser == recogniser.name else self.recogniser
            raise BadOption(
                f"The people were embedded by {other}, not by this {recogniser.name}; make the file again from the "
                "photos with: python -m idcodeformer people FOLDER -o FILE --recogniser NAME"
            )

    def name(self, faces: Embeddings, gate: float | None = None) -> tuple[Named | None, ...]:
        """Who each face of one picture is: one person to one face, None below ``gate`` (cosine; default by recogniser).

        The assignment has the largest sum of similarities above the gate, so that a face that is nobody takes no name
        from a face that is somebody.
        """
        gate = NAMED.get(self.recogniser, _NAMED) if gate is None else gate
        if not -1 <= gate <= 1:
            raise BadOption(f"The gate is {gate:g}; a cosine lies between -1 and 1.")
        out: list[Named | None] = [None] * len(faces)
        if len(faces) == 0 or len(self) == 0:
            return tuple(out)
        scores = cosine(faces, self.identities).double().numpy()
        gain = np.where(scores >= gate, scores - gate + 1e-9, 0.0)
        for face, person in pair_up(gain):
            if scores[face, person] >= gate:
                out[face] = Named(person, self.persons[person].name, float(scores[face, person]))
        return tuple(out)


def embed_photos(
    photos: Sequence[Tensor], detector: Detector, recogniser: IdentityRecogniser, names: Sequence[str] | None = None
) -> Embeddings:
    """[photos,D], the largest face of each photo [3,H,W] of one person.

    Raises BadImage for a photo without a face, by its name in ``names`` or its number.
    """
    largest = largest_faces(photos, detector)
    for number, here in enumerate(largest):
        if not here:
            shown = names[number] if names else f"Reference photo {number}"
            raise BadImage(f"{shown} shows no face; give a photo of the person that does.")
    return recogniser.embed_faces(photos, largest)


def embed_shown(
    batches: Iterable[Sequence[Tensor]], detector: Detector, recogniser: IdentityRecogniser
) -> Embeddings:
    """[shown,D], as ``embed_photos`` of the photos that show a face; they come a few at a time."""
    parts = [recogniser.none().vectors]
    for photos in batches:
        largest = largest_faces(photos, detector)
        if any(largest):
            parts.append(recogniser.embed_faces(photos, largest).vectors)
    return Embeddings(torch.cat(parts), recogniser.name)


def load_people(
    source: str | Path, detector: Detector | None, recogniser: IdentityRecogniser, remember: bool = False
) -> People:
    """The people of a folder with a sub-folder of photos for each, or of a file that ``save_people`` wrote.

    A folder that holds photos itself is one person, named like it. Photos without a face, of another face or blurred
    are left out and named in ``doubts``. ``remember``: embeddings are kept in a hidden file in the folder, and taken
    from there where photo and recogniser are the same. Raises BadImage where a person has no photo left, BadOption for
    a file of another recogniser and for a folder without ``detector``, UnsupportedWeights for a file of another kind.
    """
    source = Path(source)
    if not os.path.exists(source):  # unlike Path's, no error for a name that is too long
        raise BadImage(f"{source} does not exist; give a folder with a sub-folder of photos for each person.")
    if source.is_file():
        people = read_people(source)
        people.check(recogniser)
        return people
    if detector is None:
        raise BadOption("A folder of people needs a detector; give one, or a file made by 'people FOLDER -o FILE'.")
    folders = sorted(f for f in source.iterdir() if f.is_dir() and not f.name.startswith(".")) or [source]
    remembered = RememberedLooks(source, detector, recogniser) if remember else None
    made = [_person(folder, detector, recogniser, remembered) for folder in folders]
    if remembered is not None:
        remembered.save()
    doubts = tuple(doubt for _, here in made for doubt in here)
    return People(tuple(person for person, _ in made), recogniser.name, recogniser.digest, doubts)


def person_of(
    name: str, photos: Sequence[Tensor], detector: Detector, recogniser: IdentityRecogniser, labels: Sequence[str]
) -> tuple[Person, tuple[Doubt, ...]]:
    """One person from photos [3,H,W] named ``labels``, and the photos that were left out or look odd.

    Raises BadImage where no photo shows a face.
    """
    return _known(name, look_at(photos, detector, recogniser), recogniser.name, labels)


def _known(
    name: str, looks: Sequence[Look], recogniser: str, labels: Sequence[str]
) -> tuple[Person, tuple[Doubt, ...]]:
    """As ``person_of``, from looks at the photos."""
    shown = [number for number, look in enumerate(looks) if look.vector is not None]
    doubts = [Doubt(name, labels[n], "no face") for n, look in enumerate(looks) if look.vector is None]
    if not shown:
        raise BadImage(f"No photo of {name} shows a face; give one that does.")
    vectors = Embeddings(torch.stack([looks[n].vector for n in shown]), recogniser)
    kept, odd = outliers(vectors, [looks[n].detail for n in shown])
    stays = set(kept)
    doubts += [Doubt(name, labels[shown[n]], reason, n in stays) for n, reason in sorted(odd.items())]
    counted = Embeddings(vectors.vectors[kept], vectors.recogniser)
    return Person(name, counted, tuple(labels[shown[n]] for n in kept)), tuple(doubts)


def outliers(embeddings: Embeddings, detail: Sequence[float]) -> tuple[list[int], dict[int, str]]:
    """(positions that count, reason by position of a photo that is odd) of one person's photos.

    ``detail``: a figure for each photo that falls with blur. Of two photos that differ nobody can say which is
    wrong: both count, and both are named.
    """
    kept, odd = list(range(len(embeddings))), {}
    if len(kept) >= _FEWEST:
        usual = float(np.median(detail))
        odd = {n: "blurred" for n in kept if detail[n] < _LEAST_DETAIL * usual}
        kept = [n for n in kept if n not in odd]
    belongs = BELONGS.get(embeddings.recogniser, _BELONGS)
    while len(kept) >= _FEWEST:  # the worst one first: it has moved the mean that the others are held against
        vectors = embeddings.vectors[kept]
        rest = F.normalize(vectors.sum(0, keepdim=True) - vectors, dim=1)
        likeness = (vectors * rest).sum(1).tolist()
        worst = int(np.argmin(likeness))
        if likeness[worst] >= belongs:
            break
        odd[kept.pop(worst)] = f"another face (similarity {likeness[worst]:.2f} to the other photos)"
    if len(kept) == 2:
        between = float(embeddings.vectors[kept[0]] @ embeddings.vectors[kept[1]])
        if between < NAMED.get(embeddings.recogniser, _NAMED):
            odd |= {n: f"unlike the other photo (similarity {between:.2f}); add a third" for n in kept}
    return kept, odd


def _person(
    folder: Path, detector: Detector, recogniser: IdentityRecogniser, remembered: RememberedLooks | None
) -> tuple[Person, tuple[Doubt, ...]]:
    from ..files.reading import find_pictures, read

    files = [path for path, _ in find_pictures([folder])]
    if remembered is not None:
        looks = remembered(files)
    else:
        looks = look_at([read(path).frames[0] for path in files], detector, recogniser)
    return _known(folder.name, looks, recogniser.name, [str(file) for file in files])


def save_people(people: People, path: str | Path, overwrite: bool = False) -> Path:
    """Write embeddings and names, no pictures, as .safetensors. Raises BadOption for another ending, BadImage."""
    from safetensors.torch import save

    from ..files.writing import write_bytes

    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise BadOption(f"{path.name}: people are written as .safetensors; give the file that ending.")
    names = [{"name": person.name, "photos": list(person.photos)} for person in people.persons]
    texts = {"kind": FILE_KIND, "version": "1", "recogniser": people.recogniser, "recogniser_sha256": people.digest,
             "people": json.dumps(names, ensure_ascii=False)}  # fmt: skip
    tensors = {f"person.{n}": p.embeddings.vectors.cpu().contiguous() for n, p in enumerate(people.persons)}
    return write_bytes(path, save(tensors, metadata=texts), overwrite)


def read_people(path: str | Path) -> People:
    """The gallery in a file of ``save_people``. Raises UnsupportedWeights for another file, CorruptWeights for a broken
    one."""
    from ..weights.reading import read_state

    state, texts = read_state(path)
    if texts.get("kind") != FILE_KIND or texts.get("version") != "1":
        raise UnsupportedWeights(f"{path} holds no people; make one with: python -m idcodeformer people FOLDER -o FILE")
    try:
        entries = json.loads(texts["people"])
        persons = tuple(
            Person(str(entry["name"]), _checked(state[f"person.{n}"], texts["recogniser"], len(entry["photos"])),
                   tuple(map(str, entry["photos"])))
            for n, entry in enumerate(entries)
        )  # fmt: skip
        return People(persons, texts["recogniser"], texts["recogniser_sha256"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UnsupportedWeights(f"{path} is damaged ({error}); make it again from the photos.") from error


def _checked(vectors: Tensor, recogniser: str, photos: int) -> Embeddings:
    if vectors.ndim != 2 or len(vectors) != photos or not photos or not bool(vectors.float().isfinite().all()):
        raise ValueError(f"embeddings of shape {list(vectors.shape)} for {photos} photos")
    return Embeddings(F.normalize(vectors.float(), dim=1), recogniser)
