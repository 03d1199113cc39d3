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
    with pytest.raises(pack.errors.BadOption, match="2 reference and 3 candidate"):
        score(frames, photos, compare="frame_by_frame")
    assert score(photos[:1], frames)[3] == score(photos[:1], frames, compare="frame_by_frame")[3]
    assert score(frames, photos)[3] == score(frames, photos, compare="one_person")[3]


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


def test_what_has_no_counterpart_is_said(score, portrait, group):
    """Frames with another number of faces, a reference frame without one, a photo that shows nobody."""
    first = group[:, :, :232]
    *_, report, _ = score(group, first)
    assert "frame 0: 4 faces in the reference, 1 in the candidate" in report
    empty = torch.cat([portrait, torch.zeros_like(portrait)])
    mean, _, same, report, _ = score(empty, torch.cat([portrait, portrait]))
    assert mean == pytest.approx(1, abs=1e-4) and not same
    assert "frame 1: no face in the reference: no score" in report and "faces in the" not in report
    *_, report, _ = score(empty, portrait, compare="one_person")
    assert "reference 1: no face" in report and "reference 0" not in report


def spots(chart, colour) -> torch.Tensor:
    """[n,2] rows and columns of a picture [3,H,W] that have this 8-bit colour."""
    wanted = torch.tensor(colour)[:, None, None]
    return ((chart * 255).round().int() == wanted).all(0).nonzero()


def plain(*levels) -> torch.Tensor:
    return torch.tensor(levels)[:, None, None].expand(3, 40, 40) / 255.0


@pytest.mark.parametrize("value, threshold, reached", [(0.5, 0.25, True), (0.25, 0.25, True), (0.2, 0.75, False)])
def test_the_chart_shows_both_faces_the_score_and_the_threshold(pack, value, threshold, reached):
    draw, red, blue = pack.sub("draw"), (250, 1, 2), (3, 4, 250)
    chart = draw.chart([draw.Pair("", plain(*red), plain(*blue), value)], threshold, "")
    left, right = spots(chart, red), spots(chart, blue)
    assert len(left) == len(right) > 30_000 and left[:, 1].max() < right[:, 1].min()
    assert torch.equal(left[:, 0].unique(), right[:, 0].unique())
    colours = {True: draw.GOOD, False: draw.BAD}
    rest = spots(chart, draw.FAINT)
    row = int(rest[:, 0].median())  # of the bar: what the score leaves of it
    filled = spots(chart, colours[reached])
    filled = filled[filled[:, 0] == row, 1]
    tick = spots(chart, draw.INK)
    tick = tick[tick[:, 0] == row, 1].float()
    start, end = int(filled.min()), int(rest[:, 1].max())
    assert start == int(left[:, 1].min()) and abs(end - int(right[:, 1].max())) <= 1  # under both
    across = float(end - start)
    edge = float(rest[rest[:, 0] == row, 1].min() if value >= threshold else filled.max())
    assert (edge - start) / across == pytest.approx(value, abs=0.01)
    assert (float(tick.mean()) - start) / across == pytest.approx(threshold, abs=0.01)
    assert not len(spots(chart, colours[not reached]))


def test_the_chart_has_room_for_every_pair_it_draws(pack):
    """Of more than 24 the lowest; one that could not be scored is among them. No picture lies on another."""
    draw, red, green, blue = pack.sub("draw"), (250, 1, 2), (5, 250, 6), (3, 4, 250)
    one = len(spots(draw.chart([draw.Pair("", plain(*red), plain(*green), 0.1)], 0.3, ""), red))
    for count in (2, 3, 4, 7):
        chart = draw.chart([draw.Pair("", plain(*red), plain(*green), 0.1)] * count, 0.3, "")
        assert len(spots(chart, red)) == len(spots(chart, green)) == count * one
    many = [draw.Pair("", plain(*red), None, n / 100) for n in range(23)]
    many += [draw.Pair("", plain(*green), None, 0.9)] * 3 + [draw.Pair("", plain(*blue), None, None)]
    chart = draw.chart(many, 0.3, "")
    assert len(spots(chart, red)) == 23 * one and len(spots(chart, blue)) == one and not len(spots(chart, green))
    assert len(spots(chart, draw.BAD))  # "no score"
