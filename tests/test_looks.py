"""What is remembered of a gallery's photos between runs."""
from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from idcodeformer.files import writing
from idcodeformer.files.reading import Picture
from idcodeformer.files.writing import write
from idcodeformer.identity.people import People, load_people
from idcodeformer.types import Embeddings, Face


class Eyes:
    """Detector and recogniser in one: every photo but a black one shows a face, whose embedding is its mean colour."""

    def __init__(self, digest: str = "a" * 64):
        self.name, self.digest, self.looked = "eyes", digest, 0

    def __call__(self, photos: list[Tensor], options: object = None) -> tuple[tuple[Face, ...], ...]:
        self.looked += len(photos)
        points = torch.tensor([[24.0, 28.0], [40.0, 28.0], [32.0, 36.0], [26.0, 44.0], [38.0, 44.0]])
        face = Face(torch.tensor([16.0, 16.0, 48.0, 48.0]), 1.0, points)
        return tuple((face,) if bool(photo.max() > 0) else () for photo in photos)

    def embed_faces(self, photos: list[Tensor], faces: object) -> Embeddings:
        return Embeddings(F.normalize(torch.stack([photo.mean((1, 2)) for photo in photos]), dim=1), self.name)


def photo(file: Path, *colour: float) -> None:
    torch.manual_seed(0)
    noise = torch.rand(1, 3, 64, 64) * 0.1
    write(file, Picture((noise + torch.tensor(colour).view(1, 3, 1, 1)) * (sum(colour) > 0)), overwrite=True)


@pytest.fixture
def family(tmp_path: Path) -> Path:
    for number in range(3):
        photo(tmp_path / f"Ann/{number}.png", 0.7, 0.2, 0.1 + 0.1 * number)
    photo(tmp_path / "Ann/wall.png", 0, 0, 0)
    photo(tmp_path / "Bob/0.png", 0.1, 0.2, 0.7)
    return tmp_path


def loaded(folder: Path, eyes: Eyes) -> People:
    return load_people(folder, eyes, eyes, remember=True)


def test_a_second_run_looks_at_nothing_and_knows_the_same(family: Path) -> None:
    first, again = Eyes(), Eyes()
    people, same = loaded(family, first), loaded(family, again)
    assert (first.looked, again.looked) == (5, 0)
    assert [p.photos for p in same.persons] == [p.photos for p in people.persons] and same.doubts == people.doubts
    assert [Path(doubt.photo).name for doubt in same.doubts] == ["wall.png"]
    assert torch.equal(same.identities.vectors, people.identities.vectors)
    alone = load_people(family, again, again)
    assert again.looked == 5 and torch.equal(alone.identities.vectors, people.identities.vectors)


def test_only_what_has_changed_is_looked_at_again(family: Path) -> None:
    before = loaded(family, Eyes())
    stamp = (family / "Ann/1.png").stat()
    photo(family / "Ann/1.png", 0.3, 0.6, 0.1)
    os.utime(family / "Ann/1.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a copying program may leave it
    photo(family / "Bob/1.png", 0.1, 0.3, 0.7)
    (family / "Ann/0.png").unlink()
    eyes = Eyes()
    people = loaded(family, eyes)
    assert eyes.looked == 2
    alone = load_people(family, eyes, eyes)
    assert torch.equal(people.identities.vectors, alone.identities.vectors)
    assert not torch.equal(people.identities.vectors, before.identities.vectors)
    eyes = Eyes()
    loaded(family, eyes)
    assert eyes.looked == 0


def test_another_recogniser_has_a_file_of_its_own(family: Path) -> None:
    loaded(family, Eyes())
    other = Eyes("b" * 64)
    loaded(family, other)
    assert other.looked == 5 and len(list(family.glob(".idcodeformer-*.safetensors"))) == 2


@pytest.mark.parametrize("damage", [b"", b"nothing", b"cut"])
def test_a_damaged_file_is_made_again(family: Path, damage: bytes) -> None:
    people = loaded(family, Eyes())
    (file,) = family.glob(".idcodeformer-*.safetensors")
    file.write_bytes(file.read_bytes()[:-8] if damage == b"cut" else damage)
    eyes = Eyes()
    assert torch.equal(loaded(family, eyes).identities.vectors, people.identities.vectors) and eyes.looked == 5
    eyes = Eyes()
    loaded(family, eyes)
    assert eyes.looked == 0


def test_a_folder_that_cannot_be_written_is_looked_at_each_time(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.os, "access", lambda *_: False)  # the tests may run as root, who writes anywhere
    for _ in range(2):
        eyes = Eyes()
        assert len(loaded(family, eyes)) == 2 and eyes.looked == 5
    assert not list(family.glob(".idcodeformer-*"))
