"""People: whose photos belong, who is who in a picture, and the file that holds a gallery."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from idcodeformer import load_detector, load_recogniser
from idcodeformer.cli import main
from idcodeformer.errors import BadImage, BadOption, UnsupportedWeights
from idcodeformer.files.reading import Picture, read
from idcodeformer.files.writing import write
from idcodeformer.identity.people import People, Person, load_people, outliers, read_people, save_people
from idcodeformer.identity.recogniser import IdentityRecogniser
from idcodeformer.types import Embeddings


def embeddings(rows, name: str = "mini_recogniser") -> Embeddings:
    return Embeddings(F.normalize(torch.tensor(rows, dtype=torch.float32), dim=1), name)


def gallery(*rows) -> People:
    persons = (Person(f"p{n}", embeddings([row]), (f"{n}.jpg",)) for n, row in enumerate(rows))
    return People(tuple(persons), "mini_recogniser", "0" * 64)


@pytest.fixture(scope="module")
def recogniser() -> IdentityRecogniser:
    return load_recogniser("mini_recogniser", "cpu")


@pytest.fixture(scope="module")
def family(photos: Path, tmp_path_factory: pytest.TempPathFactory, recogniser: IdentityRecogniser) -> Path:
    """Ann: four cuts of one portrait, one of them blurred, and one photo of somebody else; Bob: one photo."""
    root = tmp_path_factory.mktemp("family")
    portrait, group = (read(photos / f"{name}.jpg").frames for name in ("portrait", "group"))
    height, width = portrait.shape[-2:]
    for number, cut in enumerate((0, 8, 16)):
        write(root / "Ann" / f"{number}.png", Picture(portrait[..., cut : height - cut, cut : width - cut]))
    small = F.interpolate(portrait, scale_factor=1 / 16, mode="area")
    write(root / "Ann" / "blurred.png", Picture(F.interpolate(small, (height, width), mode="bilinear").clamp(0, 1)))
    faces = sorted(load_detector(device="cpu")([group[0]])[0], key=lambda face: float(face.box[0]))
    person = load_people(root / "Ann" / "..", load_detector(device="cpu"), recogniser)
    others = recogniser.embed_faces([group[0]], [faces]).vectors @ person.persons[0].identity.vectors[0]
    stranger = faces[int(others.argmin())]
    x0, y0, x1, y1 = (int(v) for v in stranger.box.tolist())
    reach = max(x1 - x0, y1 - y0) // 2
    cut = group[..., max(0, y0 - reach) : y1 + reach, max(0, x0 - reach // 2) : x1 + reach // 2]
    for file in ("Ann/stranger.png", "Bob/0.png"):
        write(root / file, Picture(cut))
    write(root / "Ann" / "wall.png", Picture(torch.full((1, 3, 80, 80), 0.5)))
    return root


def test_photos_that_do_not_belong_are_left_out_and_named(family: Path, recogniser: IdentityRecogniser) -> None:
    people = load_people(family, load_detector(device="cpu"), recogniser)
    assert [person.name for person in people.persons] == ["Ann", "Bob"]
    assert [Path(photo).name for photo in people.persons[0].photos] == ["0.png", "1.png", "2.png"]
    told = {Path(doubt.photo).name: doubt.reason for doubt in people.doubts}
    assert told.keys() == {"blurred.png", "stranger.png", "wall.png"} and not any(d.kept for d in people.doubts)
    assert told["wall.png"] == "no face" and told["blurred.png"] == "blurred"
    assert told["stranger.png"].startswith("another face")


def test_the_worst_photo_goes_first() -> None:
    """Two strangers among four photos: each is held against a mean without the other."""
    rows = [[1, 0.1, 0], [1, 0, 0.1], [1, 0.1, 0.1], [-0.2, 1, 0], [-0.9, 0, 1]]
    kept, odd = outliers(embeddings(rows), [1.0] * 5)
    assert kept == [0, 1, 2] and odd.keys() == {3, 4}


def test_of_two_photos_that_differ_both_are_kept_and_named() -> None:
    kept, odd = outliers(embeddings([[1, 0], [0, 1]]), [1.0, 0.1])
    assert kept == [0, 1] and all("unlike the other photo (similarity 0.00)" in odd[n] for n in kept)
    assert outliers(embeddings([[1, 0], [1, 0.2]]), [1.0, 0.1]) == ([0, 1], {})


def test_one_person_to_one_face() -> None:
    people = gallery([1, 0, 0], [0, 1, 0])
    named = people.name(embeddings([[1, 0.9, 0], [1, 0, 0], [0, 0, 1]]))
    assert [n and (n.person, n.name) for n in named] == [(1, "p1"), (0, "p0"), None]
    assert named[1].similarity == pytest.approx(1)


def test_a_face_below_the_gate_takes_no_name_from_one_above() -> None:
    """The largest sum of all similarities would give the second face to p0 and the first to p1, below the gate."""
    people = gallery([1, 0, 0], [0, 1, 0])
    faces = embeddings([[0.6, 0.28, 0.75], [0.5, -0.5, 0.7]])
    named = people.name(faces, gate=0.4)
    assert [n and n.person for n in named] == [0, None]
    assert people.name(embeddings([[1, 0, 0]]), gate=1.0)[0] is not None
    with pytest.raises(BadOption, match="between -1 and 1"):
        people.name(faces, gate=2)


def test_a_gallery_survives_its_file(tmp_path: Path) -> None:
    people = gallery([1, 0, 0], [0, 0.6, 0.8])
    path = save_people(people, tmp_path / "people.safetensors")
    back = read_people(path)
    assert torch.equal(back.identities.vectors, people.identities.vectors)
    assert (back.recogniser, back.digest) == (people.recogniser, people.digest)
    assert [(p.name, p.photos) for p in back.persons] == [("p0", ("0.jpg",)), ("p1", ("1.jpg",))]
    with pytest.raises(BadImage, match="exists already"):
        save_people(people, path)
    with pytest.raises(BadOption, match="safetensors"):
        save_people(people, tmp_path / "people.bin")


def test_files_of_another_recogniser_or_kind_are_refused(
    tmp_path: Path, recogniser: IdentityRecogniser, tiny_recogniser: Path
) -> None:
    known = gallery([1, 0, 0])
    path = save_people(known, tmp_path / "people.safetensors")
    with pytest.raises(BadOption, match="another mini_recogniser"):
        load_people(path, None, recogniser)
    with pytest.raises(BadOption, match="by mini_recogniser, not by this tiny_recogniser"):
        load_people(path, None, load_recogniser(tiny_recogniser, "cpu"))
    with pytest.raises(UnsupportedWeights, match="holds no people"):
        load_people(tiny_recogniser, None, recogniser)
    with pytest.raises(BadOption, match="needs a detector"):
        load_people(tmp_path, None, recogniser)
    with pytest.raises(BadImage, match="does not exist"):
        load_people(tmp_path / "nobody", None, recogniser)


def test_the_digest_is_that_of_the_weights(recogniser: IdentityRecogniser, tiny_recogniser: Path) -> None:
    assert recogniser.digest == load_recogniser("mini_recogniser", "cpu").digest
    one, other = (load_recogniser(tiny_recogniser, "cpu") for _ in range(2))
    with torch.no_grad():
        next(other.network.parameters())[0] += 1e-3
    assert one.digest != other.digest


def test_the_command_writes_a_file_and_names_what_is_left_out(family: Path, tmp_path: Path, capsys) -> None:
    out, report = tmp_path / "family.safetensors", tmp_path / "report.json"
    assert main(["people", str(family), "-o", str(out), "--json", str(report), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "Ann: 3 photos" in told and "left out" in told and "stranger.png" in told
    values = json.loads(report.read_text())
    assert [entry["name"] for entry in values["people"]] == ["Ann", "Bob"] and len(values["doubts"]) == 3
    assert [person.name for person in read_people(out).persons] == ["Ann", "Bob"]
    empty = tmp_path / "empty" / "Nobody"
    empty.mkdir(parents=True)
    shutil.copy(family / "Ann" / "wall.png", empty)
    assert main(["people", str(empty.parent), "--device", "cpu"]) == 1
    assert "No photo of Nobody shows a face" in capsys.readouterr().err
