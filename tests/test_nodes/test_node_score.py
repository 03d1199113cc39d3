"""Identity Score: pairs, verdicts, what is said where there is nothing to compare."""
from __future__ import annotations

import os

import pytest
import torch
from PIL import Image

from tests.test_nodes.conftest import TINY, defaults


@pytest.fixture
def score(run, model, found):
    """Identity Score with faces that were detected before."""

    def call(reference, candidate, **values):
        given = {"reference_faces": found(reference), "candidate_faces": found(candidate), "model": model}
        return run("IdentityScore", reference=reference, candidate=candidate, **given, **values)

    return call


def test_a_face_is_like_itself(run, model, portrait):
    mean, lowest, same, report, chart = run("IdentityScore", reference=portrait, candidate=portrait, model=model)
    assert mean == pytest.approx(1, abs=1e-4) and lowest == mean and same is True
    assert report.startswith("same person: mean 1.000")
    assert chart.dim() == 4 and chart.shape[0] == 1 and chart.shape[-1] == 3
    assert isinstance(mean, float) and isinstance(same, bool)


def test_several_faces_are_matched_by_identity(score, group):
    """The candidates stand in another order; each face is compared with itself."""
    halves = torch.cat([group[:, :, 464:], group[:, :, :464]], 2)
    mean, lowest, same, report, _ = score(group, halves)
    assert lowest > 0.9 and same
    assert report.count("reference face") == 4


def test_every_frame_is_compared(score, portrait):
    frames = torch.cat([portrait, portrait.flip(2), portrait * 0.8])
    _, lowest, same, report, _ = score(portrait, frames, threshold=0.0)
    assert [f"frame {n}:" in report for n in range(3)] == [True] * 3
    _, _, _, report, _ = score(frames, frames)
    assert report.startswith("same person: mean 1.000, lowest 1.000 of 3")


def test_a_frame_without_a_face_is_said_and_proves_nothing(score, portrait):
    frames = torch.cat([portrait, torch.zeros_like(portrait)])
    mean, lowest, same, report, _ = score(portrait, frames)
    assert mean == pytest.approx(1, abs=1e-4) and same is False
    assert "frame 1: no face in the candidate" in report and "NOT the same person" in report


def test_no_face_in_the_reference(score, portrait, grey):
    mean, lowest, same, report, chart = score(grey, portrait)
    assert (mean, lowest, same) == (0.0, 0.0, False) and "no face in the reference" in report
    assert chart.shape[0] == 1


def test_no_frames_at_all(run, model, portrait):
    empty = torch.zeros(0, 64, 64, 3)
    assert run("IdentityScore", reference=portrait, candidate=empty, model=model)[:3] == (0.0, 0.0, False)
    assert run("IdentityScore", reference=empty, candidate=portrait, model=model)[:3] == (0.0, 0.0, False)


def test_photos_of_one_person(score, pack, portrait):
    """Three photos and two frames: the face of each frame that is most like the person counts."""
    photos = torch.cat([portrait, portrait * 0.9, portrait * 1.0])
    frames = torch.cat([portrait, portrait])
    mean, *_, report, _ = score(photos, frames)
    assert mean > 0.9 and report.count("frame ") == 2
    with pytest.raises(pack.errors.BadOption, match="3 reference and 2 candidate"):
        score(photos, frames, compare="frame_by_frame")


def test_threshold_decides(score, portrait, member):
    lowest = score(portrait, member)[1]
    assert score(portrait, member, threshold=lowest - 0.01)[2] is True
    assert score(portrait, member, threshold=lowest + 0.01)[2] is False


def test_given_faces_are_used(run, pack, model, group):
    one = run("DetectFaces", image=group, keep="indices", order="left_to_right", indices="2")[0]
    given = {"reference_faces": one, "candidate_faces": one}
    *_, report, _ = run("IdentityScore", reference=group, candidate=group, model=model, **given)
    assert report.startswith("same person: mean 1.000, lowest 1.000 of 1")
    with pytest.raises(pack.errors.BadOption, match="candidate_faces"):
        run("IdentityScore", reference=group, candidate=group[:, :, :400], model=model, **given)


def test_a_loader_without_recogniser_is_refused(run, pack, portrait):
    plain = run("Loader", model_name=TINY, recogniser="none")[0]
    with pytest.raises(pack.errors.BadOption, match="recogniser"):
        run("IdentityScore", reference=portrait, candidate=portrait, model=plain)


def test_shown_on_the_node_as_lists(pack, model, portrait):
    """The host takes a string for a list of letters."""
    node = pack.nodes.IdentityScore
    assert node.OUTPUT_NODE is True
    shown = node().score(reference=portrait, candidate=portrait, model=model, **defaults(node))["ui"]
    assert isinstance(shown["text"], list) and shown["text"][0].startswith("same person")
    with Image.open(os.path.join(pack.folder_paths.get_temp_directory(), shown["images"][0]["filename"])) as chart:
        assert chart.size[0] > 300


def test_chart_of_many_pairs_stays_readable(pack):
    draw = pack.sub("draw")
    pairs = [draw.Pair(f"frame {n}", torch.rand(3, 50, 50), None, n / 100) for n in range(60)]
    chart = draw.chart(pairs, 0.3, "a headline " * 40)
    assert chart.shape[1] < 3000 and chart.shape[2] < 2000


def test_the_face_most_like_the_person_counts_among_several(score, found, group):
    """A frame of four people against photos of one of them, who is not the largest."""
    faces = sorted(found(group).faces[0], key=lambda face: float(face.box[0]))
    middle = int(faces[2].box[0] + faces[2].box[2]) // 2
    photo = group[:, :, middle - 110 : middle + 110]
    mean, lowest, _, report, _ = score(torch.cat([photo, photo]), group, compare="one_person")
    order = sorted(range(4), key=lambda n: -float(found(group).faces[0][n].area))
    place = next(n for n, face in enumerate(found(group).faces[0]) if torch.equal(face.box, faces[2].box))
    assert mean == lowest > 0.9 and f"face {place} of 4" in report and place != order[0]


def test_an_unchanged_reference_is_neither_detected_nor_embedded_again(pack, model, portrait, member, monkeypatch):
    node, detected, embedded = pack.nodes.IdentityScore(), [], []
    finder, recogniser = model.detector().ready(), model.recogniser.ready()
    look, embed = type(finder).__call__, type(recogniser).embed_faces
    monkeypatch.setattr(type(finder), "__call__", lambda s, x, *a: (detected.append(len(x)), look(s, x, *a))[1])
    monkeypatch.setattr(type(recogniser), "embed_faces", lambda s, x, f: (embedded.append(1), embed(s, x, f))[1])
    given = {**defaults(type(node)), "model": model}
    for candidate in (member, member * 0.9):
        node.score(reference=portrait, candidate=candidate, **given)
    assert len(detected) == 3 and len(embedded) == 3  # both, then the candidate alone
    node.score(reference=portrait * 0.9, candidate=member, **given)
    assert len(detected) == 5 and len(embedded) == 5
