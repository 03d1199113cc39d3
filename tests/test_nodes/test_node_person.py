"""Load Person: who comes out, what is saved, and what the other nodes make of it."""
from __future__ import annotations

import pytest
import torch

from tests.test_nodes.conftest import TINY_RECOGNISER

BUILT_IN = "mini recogniser, built in"


@pytest.fixture
def person(run, member):
    """The second sitter of the group, by the built-in recogniser."""
    return run("Person", recogniser=BUILT_IN, photos=member, name="Ben")[0]


@pytest.fixture
def saved(pack):
    """The folder of saved people, emptied afterwards."""
    folder = pack.models / "idcodeformer" / "people"
    yield folder
    for file in folder.glob("*") if folder.is_dir() else ():
        file.unlink()


def test_a_person_is_the_mean_of_the_photos(run, pack, member):
    linked, report = run("Person", recogniser=BUILT_IN, photos=torch.cat([member, member.flip(2)]), name="Ben")
    (person,) = linked.people.persons
    assert person.name == "Ben" and person.photos == ("photo 0", "photo 1")
    assert linked.people.recogniser == "mini_recogniser" and "Ben: 2 photos" in report
    kept = pack.sub("managed").Kept()
    frames = pack.sub("convert").frames_of(member)
    whole = pack.sub("faces").person_in(frames, kept.detector().ready(), kept.recogniser().ready())
    assert float(whole.vectors @ person.embeddings.vectors[0]) > 0.99  # the small crop keeps what the photo shows


def test_photos_without_a_face_and_of_another_face_are_named(run, pack, member, portrait):
    side = (320, 320)
    other = torch.nn.functional.interpolate(portrait.movedim(-1, 1), side, mode="area").movedim(1, -1)
    photos = torch.cat([member, member.flip(2), torch.zeros_like(member), member * 0.9, other])
    linked, report = run("Person", recogniser=BUILT_IN, photos=photos, name="Ben")
    assert linked.people.persons[0].photos == ("photo 0", "photo 1", "photo 3")
    assert len(linked.photos[0]) == 3
    assert "Ben, photo 2: no face, left out" in report and "Ben, photo 4: another face" in report
    with pytest.raises(pack.errors.BadImage, match="No photo of Ben shows a face"):
        run("Person", recogniser=BUILT_IN, photos=torch.zeros_like(member), name="Ben")


def test_people_are_chained_and_photos_of_one_name_put_together(run, pack, person, portrait, member):
    two = run("Person", recogniser=BUILT_IN, photos=portrait, name="Ann", people=person)[0]
    assert two.names == ["Ben", "Ann"]
    three, report = run("Person", recogniser=BUILT_IN, photos=member.flip(2), name="Ben", people=two)
    assert three.names == ["Ben", "Ann"] and "2 people by mini_recogniser: Ben, Ann" in report
    assert [len(p.photos) for p in three.people.persons] == [2, 1] and len(three.photos[0]) == 2
    with pytest.raises(pack.errors.BadOption, match="mini_recogniser, these by tiny_recogniser"):
        run("Person", photos=portrait, name="Ann", people=person, recogniser=TINY_RECOGNISER)


def test_saved_people_come_back(run, pack, person, portrait, member, saved):
    node = pack.nodes.Person
    assert node.INPUT_TYPES()["required"]["file"][0] == ["none"]
    two, report = run("Person", recogniser=BUILT_IN, photos=portrait, name="Ann", people=person, save_as="family")
    file = saved / "family.safetensors"
    assert file.is_file() and f"saved as {file}" in report
    assert node.INPUT_TYPES()["required"]["file"][0] == ["none", "family.safetensors"]
    assert "family.safetensors" not in pack.nodes.Loader.INPUT_TYPES()["required"]["model_name"][0]
    again = run("Person", recogniser=BUILT_IN, file="family.safetensors")[0]
    assert again.names == ["Ben", "Ann"] and again.photos == ((), ())
    assert torch.allclose(again.people.identities.vectors, two.people.identities.vectors, atol=1e-6)
    given = {"file": "family.safetensors", "recogniser": BUILT_IN}
    more = run("Person", **given, photos=member.flip(2), name="Ben", save_as="family")[0]
    assert [len(p.photos) for p in more.people.persons] == [2, 1]
    with pytest.raises(pack.errors.BadOption, match="not by this tiny_recogniser"):
        run("Person", file="family.safetensors", recogniser=TINY_RECOGNISER)
    with pytest.raises(pack.errors.BadOption, match="holds Ben, Ann, who are not all here"):
        run("Person", recogniser=BUILT_IN, photos=portrait, name="Eve", save_as="family")
    assert run("Person", recogniser=BUILT_IN, file="family.safetensors")[0].names == ["Ben", "Ann"]


@pytest.mark.parametrize("name", ["../up", "a/b", "C:\\x", ".hidden", "a\0b", "x" * 200])
def test_save_as_is_a_plain_name(run, pack, member, name):
    said = pack.nodes.Person.VALIDATE_INPUTS(save_as=name)
    assert isinstance(said, str) and "plain file name" in said
    with pytest.raises(pack.errors.BadOption, match="plain file name"):
        run("Person", recogniser=BUILT_IN, photos=member, save_as=name)


def test_nobody_is_refused(run, pack, member):
    with pytest.raises(pack.errors.BadOption, match="nobody yet"):
        run("Person", recogniser=BUILT_IN)
    with pytest.raises(pack.errors.BadOption, match="'name' is empty"):
        run("Person", recogniser=BUILT_IN, photos=member, name="  ")
    with pytest.raises(pack.errors.BadOption, match="'people' is a str"):
        run("Person", recogniser=BUILT_IN, people="Ben")
    choices = pack.nodes.Person.INPUT_TYPES()["required"]["file"][0]
    assert "gone.safetensors" not in choices
    assert "no file gone.safetensors in models/idcodeformer/people" in str(choices)


def test_a_saved_file_that_changes_or_vanishes_is_read_again(pack, run, person, portrait, saved):
    node = pack.nodes.Person
    before = node.IS_CHANGED(recogniser=BUILT_IN, file="none", save_as="family")
    run("Person", recogniser=BUILT_IN, photos=portrait, name="Ann", save_as="family")
    assert node.IS_CHANGED(recogniser=BUILT_IN, file="none", save_as="family") != before
    read = node.IS_CHANGED(recogniser=BUILT_IN, file="family.safetensors")
    (saved / "family.safetensors").unlink()
    assert node.IS_CHANGED(recogniser=BUILT_IN, file="family.safetensors") != read


def test_detect_faces_chooses_by_person(run, pack, group, person, portrait):
    found, count, *_ = run("DetectFaces", image=group, keep="reference", order="left_to_right", person=person)
    assert count == 1 and 230 < float(found.faces[0][0].box[0]) < 460  # the second of four
    family = run("Person", recogniser=BUILT_IN, photos=portrait, name="Ann", people=person)[0]
    ordered = run("DetectFaces", image=group, order="reference", person=family, min_similarity=0.3)[0]
    assert 1 <= ordered.count < 4 and torch.equal(ordered.faces[0][0].box, found.faces[0][0].box)
    with pytest.raises(pack.errors.BadOption, match="not both"):
        run("DetectFaces", image=group, keep="reference", person=person, reference=portrait)
    with pytest.raises(pack.errors.BadOption, match="'person' from Load Person"):
        run("DetectFaces", image=group, keep="reference")
    with pytest.raises(pack.errors.BadOption, match="link the person output"):
        run("DetectFaces", image=group, keep="reference", person=7)


def test_identity_score_takes_people_and_says_who_judges(run, model, group, person, portrait, saved):
    mean, lowest, _, report, chart = run("IdentityScore", reference=person, candidate=group)
    assert mean == lowest > 0.35 and "face 1 of 4: Ben" in report or ": Ben" in report
    assert "mini_recogniser judges and also guides" in report
    family = run("Person", recogniser=BUILT_IN, photos=portrait, name="Ann", people=person, save_as="family")[0]
    *_, report, _ = run("IdentityScore", reference=family, candidate=group, model=model)
    assert "mini_recogniser guides" in report and "tiny_recogniser judges" in report
    assert report.count(": Ben") == 1 and report.count(": Ann") == 1
    stored = run("Person", recogniser=BUILT_IN, file="family.safetensors")[0]
    *_, report, _ = run("IdentityScore", reference=stored, candidate=group, model=model)
    assert "judged by mini_recogniser, which also guides" in report and "recogniser mini_recogniser," in report


def test_identity_score_of_people_without_a_face(run, person, grey):
    mean, _, same, report, _ = run("IdentityScore", reference=person, candidate=grey)
    assert (mean, same) == (0.0, False) and "no face in the candidate" in report
