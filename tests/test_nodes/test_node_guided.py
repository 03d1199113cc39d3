"""Restore Faces with a person, with aligned faces, and with a detector of its own."""
from __future__ import annotations

import re
import shutil

import pytest
import torch

from tests.test_nodes.conftest import TINY, defaults, picture

MINI = "ID-CodeFormer mini 128 px, built in"
BUILT_IN = "mini recogniser, built in"


@pytest.fixture
def mini(run):
    """The built-in pair: guidance needs networks that see faces."""
    return run("Loader", model_name=MINI, recogniser=BUILT_IN)[0]


@pytest.fixture
def sitter(run):
    """The sitter of ``portrait`` in another photograph."""
    return run("Person", recogniser=BUILT_IN, photos=picture("idcodeformer_portrait_reference.jpg"), name="Ann")[0]


def test_a_person_brings_the_face_nearer_to_the_photos(run, mini, sitter, portrait, found):
    given = {"model": mini, "image": portrait, "faces": found(portrait), "person": sitter}
    plain = run("RestoreFaces", **given, guidance_steps=0)
    guided = run("RestoreFaces", **given, guidance_steps=6)
    assert "not guided, scores by mini_recogniser\n" in plain[4]
    assert "guided by mini_recogniser towards Ann, scores by mini_recogniser itself" in guided[4]

    def after(report):
        return float(re.search(r"like the reference [-\d.]+ before, ([-\d.]+) after", report)[1])

    assert after(guided[4]) > after(plain[4]) + 0.05
    assert re.search(r"guided by mini_recogniser, 0.\d\d to 0.\d\d in \d steps", guided[4])
    half = run("RestoreFaces", **given, guidance_steps=6, guidance_strength=0.2)
    assert after(plain[4]) < after(half[4]) <= after(guided[4])


def test_left_as_they_are_one_recogniser_guides_and_the_other_judges(run, portrait, found):
    """A score by the recogniser that guided flatters: the loader's default is not Load Person's."""
    model = run("Loader", model_name=TINY)[0]
    person = run("Person", photos=picture("idcodeformer_portrait_reference.jpg"), name="Ann")[0]
    report = run("RestoreFaces", model=model, image=portrait, faces=found(portrait), person=person)[4]
    assert "guided by mobileface_v2 towards Ann, scores by mini_recogniser\n" in report


def test_a_stranger_is_not_guided(run, mini, portrait, found, member):
    stranger = run("Person", recogniser=BUILT_IN, photos=member, name="Ben")[0]
    given = {"model": mini, "image": portrait, "faces": found(portrait)}
    report = run("RestoreFaces", **given, person=stranger, guidance_steps=3)[4]
    assert "not guided: likeness to the reference" in report and "1 of 1 faces restored" in report


def test_the_models_recogniser_judges_and_the_persons_guides(run, model, sitter, portrait, found):
    """The tiny recogniser has random weights; what counts is who did what."""
    report = run("RestoreFaces", model=model, image=portrait, faces=found(portrait), person=sitter)[4]
    assert "guided by mini_recogniser towards Ann, scores by tiny_recogniser\n" in report
    assert "like the reference" in report


def test_a_saved_person_is_judged_by_the_recogniser_that_made_the_file(run, pack, model, sitter, portrait, found):
    folder = pack.models / "idcodeformer" / "people"
    run("Person", recogniser=BUILT_IN, people=sitter, save_as="ann")
    stored = run("Person", recogniser=BUILT_IN, file="ann.safetensors")[0]
    report = run("RestoreFaces", model=model, image=portrait, faces=found(portrait), person=stored)[4]
    assert "scores by mini_recogniser itself" in report
    shutil.rmtree(folder)


def test_person_needs_no_recogniser_of_the_model(run, sitter, portrait, found):
    plain = run("Loader", model_name=TINY, recogniser="none")[0]
    report = run("RestoreFaces", model=plain, image=portrait, faces=found(portrait), person=sitter)[4]
    assert "scores by mini_recogniser itself" in report


def test_reference_alone_guides_nothing(run, mini, portrait, found):
    """Saved graphs with a reference had no guidance; its steps now have a default."""
    reference = picture("idcodeformer_portrait_reference.jpg")
    report = run("RestoreFaces", model=mini, image=portrait, faces=found(portrait), reference=reference)[4]
    assert "guid" not in report and "like the reference" in report


def test_wrong_links_are_named(run, pack, model, sitter, portrait, found):
    with pytest.raises(pack.errors.BadOption, match="Both 'reference' and 'person'"):
        run("RestoreFaces", model=model, image=portrait, person=sitter, reference=portrait)
    with pytest.raises(pack.errors.BadOption, match="link the person output of Load Person"):
        run("RestoreFaces", model=model, image=portrait, person=portrait)
    with pytest.raises(pack.errors.BadOption, match="every frame for one face; unlink faces"):
        run("RestoreFaces", model=model, image=portrait, aligned=True, faces=found(portrait))
    with pytest.raises(pack.errors.BadImage, match="12x384 px"):
        run("RestoreFaces", model=model, image=portrait[:, :, :12], aligned=True)


def test_aligned_faces_are_restored_to_their_edges(run, pack, model, portrait, found, monkeypatch):
    crops = torch.cat(run("DetectFaces", image=portrait)[4])
    monkeypatch.setattr(type(model), "detector", lambda self: pytest.fail("detected"))
    alpha = torch.ones(1, 512, 512, 1)
    image, restored, original, mask, report = run(
        "RestoreFaces", model=model, image=torch.cat([crops, alpha], -1), aligned=True, upscale_factor=2.0
    )
    assert image.shape == (1, 64, 64, 4) and restored.shape == (1, 64, 64, 3) and bool((mask == 1).all())
    assert torch.allclose(image[..., :3], restored, atol=1e-6) and torch.allclose(image[..., 3], torch.ones(1))
    small = torch.nn.functional.interpolate(crops.movedim(-1, 1), (64, 64), mode="bilinear", antialias=True)
    assert torch.allclose(original, small.movedim(1, -1), atol=1e-3)
    assert "1 of 1 faces restored" in report and "upscale_factor and face_upsample do nothing" in report
    half = run("RestoreFaces", model=model, image=crops, aligned=True, visibility=0.5)
    assert torch.allclose(half[0], (half[1] + half[2]) / 2, atol=1e-5)
    left = torch.zeros(1, 64, 64)
    left[..., :20] = 1
    masked = run("RestoreFaces", model=model, image=crops, aligned=True, mask=left)
    assert torch.allclose(masked[0][:, :, 30:], masked[2][:, :, 30:], atol=1e-6)
    assert torch.allclose(masked[0][:, :, :18], masked[1][:, :, :18], atol=1e-6)
    kept = run("RestoreFaces", model=model, image=crops, aligned=True, min_identity=1.0)
    assert torch.allclose(kept[0], original, atol=1e-5) and not kept[3].any()


def test_detector_and_confidence_without_detect_faces(pack, run, model, portrait):
    assert "no face was found" in run("RestoreFaces", model=model, image=portrait, confidence=1.0)[4]
    folders = pack.sub("folders")
    name = pack.sub("managed").BUILT_IN_DETECTOR
    file = pack.models / "facedetection" / "mine.safetensors"
    shutil.copy(folders.locate("detector", name), file)
    node = pack.nodes.RestoreFaces
    before = node.IS_CHANGED(detector="mine.safetensors")
    report = run("RestoreFaces", model=model, image=portrait, detector="mine.safetensors")[4]
    assert "1 of 1 faces restored" in report
    file.unlink()
    assert node.IS_CHANGED(detector="mine.safetensors") != before
    assert "mine.safetensors" not in node.INPUT_TYPES()["optional"]["detector"][0]
    assert defaults(node)["detector"] == name


def test_a_family_is_named_and_each_is_guided_by_the_own_photos(run, mini, sitter, group, found, member):
    family = run("Person", recogniser=BUILT_IN, photos=member, name="Ben", people=sitter)[0]
    given = {"model": mini, "image": group, "faces": found(group), "person": family}
    report = run("RestoreFaces", **given, guidance_steps=3)[4]
    assert "guided by mini_recogniser towards Ann, Ben" in report
    (line,) = [line for line in report.splitlines() if ", Ben" in line and line.startswith("frame")]
    assert "guided by mini_recogniser, " in line and "like the reference" in line
    others = [line for line in report.splitlines() if line.startswith("frame") and line != line_of(report, "Ben")]
    assert len(others) == 3 and not any("in 3 steps" in line for line in others)


def line_of(report, name):
    return next(line for line in report.splitlines() if line.startswith("frame") and f", {name}" in line)


def test_fidelity_by_target(run, pack, mini, portrait, found):
    given = {"model": mini, "image": portrait, "faces": found(portrait), "fidelity": 0.9}
    low = run("RestoreFaces", **given, identity_target=0.3)[4]
    assert float(re.search(r", w ([.\d]+), identity ([.\d]+)", low)[1]) < 0.9
    high = run("RestoreFaces", **given, identity_target=1.0)[4]
    assert "identity target 1 not reached" in high and ", w 1, " in high
    plain = run("Loader", model_name=TINY, recogniser="none")[0]
    with pytest.raises(pack.errors.BadOption, match="'identity_target' needs a recogniser"):
        run("RestoreFaces", model=plain, image=portrait, identity_target=0.5)
