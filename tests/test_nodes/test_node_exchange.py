"""FACES from and to what other nodes use: the host's boxes and landmarks, SEGS of the Impact Pack."""
from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch

# As modules/impact/core.py of the Impact Pack defines it.
SEG = namedtuple(
    "SEG", ["cropped_image", "cropped_mask", "confidence", "crop_region", "bbox", "label", "control_net_wrapper"],
    defaults=[None],
)  # fmt: skip


def middle(face) -> list[float]:
    return face.landmarks.mean(0).tolist()


def dicts(faces, **more) -> list[dict]:
    """Boxes as the host's detection nodes give them for one frame."""
    corners = [face.box.tolist() for face in faces]
    return [{"x": a, "y": b, "width": c - a, "height": d - b, **more} for a, b, c, d in corners]


def seg(face, confidence=0.9):
    box = np.array(face.box.round().int().tolist())
    return SEG(None, np.ones((4, 4), np.float32), np.float32(confidence), [0, 0, 4, 4], box, "face", None)


def assert_same(mine, theirs) -> None:
    assert len(mine) == len(theirs)
    for face, other in zip(mine, theirs):
        assert (face.landmarks - other.landmarks).norm(dim=1).max() < 0.06 * other.eye_distance


def test_every_layout_says_the_same_boxes(pack, found, group):
    layouts, frames = pack.sub("layouts"), pack.sub("convert").frames_of(torch.cat([group, group]))
    here = found(group).faces[0]
    flat = dicts(here, label="face", score=0.7)
    landmarks = {"frames": [[{"bbox_xyxy": face.box.numpy(), "score": 0.7} for face in here]],
                 "image_size": (256, 928), "connection_sets": {}}  # fmt: skip
    for given in (flat, [flat], ((256, 928), [seg(face, 0.7) for face in here]), landmarks):
        lists = layouts.boxes_of(given, frames)
        assert len(lists) == 2 and lists[0] == lists[1] and len(lists[0]) == 4
        for (box, score), face in zip(lists[0], here):
            assert (box - face.box).abs().max() <= 0.5 and score == pytest.approx(0.7)
    ((box, score),), _ = layouts.boxes_of(flat[2], frames)  # the host's box widget is one box
    assert torch.allclose(box, here[2].box) and score == pytest.approx(0.7)


def test_faces_come_in_the_order_of_the_boxes(run, found, group):
    here = found(group).faces[0][::-1]
    converted, count, preview, mask, crops = run("FacesFromBoxes", image=group, found=dicts(here, score=0.7))
    assert count == 4 and len(crops) == 4 and preview.shape == group.shape and mask.shape == (1, 256, 928)
    assert_same(converted.faces[0], here)
    assert [round(face.score, 3) for face in converted.faces[0]] == [0.7] * 4
    assert not converted.left_out


def test_a_persons_box_counts_as_the_face_in_it_and_no_face_is_named(run, found, group):
    faces = sorted(found(group).faces[0], key=lambda face: float(face.box[0]))
    picture = torch.cat([group, torch.zeros(1, 500, 928, 3)], 1)
    x0, _, x1, _ = faces[1].box.tolist()
    body = {"x": x0 - 30, "y": 0, "width": x1 - x0 + 60, "height": 756}
    nothing = {"x": 2, "y": 400, "width": 18, "height": 18}
    more = dicts([faces[3], faces[1], faces[1]])
    converted, count, *_ = run("FacesFromBoxes", image=picture, found=[body, nothing, *more])
    assert count == 2
    assert_same(converted.faces[0], [faces[3], faces[1]])  # the face of the body has a box of its own
    assert [reason for _, reason in converted.left_out] == [
        "no face is seen in this box", "no face is seen in this box", "a box of the same face counts",
    ]  # fmt: skip
    alone, count, *_ = run("FacesFromBoxes", image=picture, found=[body])
    assert count == 1
    assert_same(alone.faces[0], [faces[1]])
    assert float(alone.faces[0][0].box[3]) < 260  # the face's own box


def test_a_face_that_lies_on_its_side_is_found_in_its_box(run, found, portrait):
    (face,) = found(portrait).faces[0]
    x0, y0, x1, y1 = face.box.tolist()
    turned = portrait.flip(1).transpose(1, 2)  # by 90 degrees: (x, y) comes to (383 - y, x)
    box = {"x": 383 - y1, "y": x0, "width": y1 - y0, "height": x1 - x0}
    (seen,) = run("FacesFromBoxes", image=turned, found=[box])[0].faces[0]
    expected = torch.stack([383 - face.landmarks[:, 1], face.landmarks[:, 0]], 1)
    assert (seen.landmarks - expected).norm(dim=1).max() < 0.12 * face.eye_distance


def test_frames_have_their_own_boxes_or_share_them(run, found, portrait):
    box = dicts(found(portrait).faces[0])
    frames = torch.cat([portrait, torch.zeros_like(portrait), portrait])
    own = run("FacesFromBoxes", image=frames, found=[box, [], box])[0]
    assert [len(here) for here in own.faces] == [1, 0, 1] and not own.left_out
    shared = run("FacesFromBoxes", image=frames, found=box)[0]
    assert [len(here) for here in shared.faces] == [1, 0, 1] and [n for n, _ in shared.left_out] == [1]
    assert run("FacesFromBoxes", image=frames, found=[])[1] == 0


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (((100, 100), []), "of a picture of 100x100 px, the image has 384x384"),
        ([[], []], "boxes of 2 frames, the image has 1"),
        ({"frames": [], "image_size": (10, 20)}, "of a picture of 20x10 px"),
        ("a text", "'found' is str and holds no boxes"),
        ([{"x": 1, "y": 2}], "width"),
        ([{"x": float("nan"), "y": 2, "width": 3, "height": 4}], "a box at"),
    ],
)
def test_what_holds_no_boxes_is_refused(pack, run, portrait, found, said):
    with pytest.raises(pack.errors.BadOption, match=said):
        run("FacesFromBoxes", image=portrait, found=found)


def test_converted_faces_are_restored(run, model, found, portrait):
    given = run("FacesFromBoxes", image=portrait, found=dicts(found(portrait).faces[0]))[0]
    image, *_, report = run("RestoreFaces", model=model, image=portrait, faces=given, large_faces="restore")
    assert report.startswith("1 of 1 faces restored") and not torch.equal(image, portrait)


def test_faces_go_out_as_segs_and_boxes(pack, run, found, group):
    faces, frames = found(group), torch.cat([group, group])
    both = pack.sub("faces").FoundFaces(faces.faces * 2, faces.dropped * 2, faces.size)
    segs, boxes = run("FacesToSegs", image=frames, faces=both, crop_factor=2.0)
    assert len(segs) == len(boxes) == 2
    size, elements = segs[0]
    assert size == (256, 928) and len(elements) == 4
    for element, face, box in zip(elements, faces.faces[0], boxes[0]):
        assert element._fields == SEG._fields and element.label == "face" and element.control_net_wrapper is None
        left, top, right, bottom = element.crop_region
        assert 0 <= left < right <= 928 and 0 <= top < bottom <= 256 and isinstance(left, int)
        assert abs((right - left) - 2 * float(face.box[2] - face.box[0])) <= 1
        assert torch.equal(element.cropped_image, group[:, top:bottom, left:right])
        assert element.cropped_mask.shape == (bottom - top, right - left) and element.cropped_mask.dtype == np.float32
        x, y = (round(v) for v in middle(face))
        assert element.cropped_mask[y - top, x - left] == 1 and element.cropped_mask[0, 0] == 0
        assert element.bbox == tuple(round(v) for v in face.box.tolist()) and element.confidence == face.score
        assert box["x"] == float(face.box[0]) and abs(box["width"] - float(face.box[2] - face.box[0])) < 1e-4
    back = run("FacesFromBoxes", image=group, found=segs[0])[0]
    assert_same(back.faces[0], faces.faces[0])


def test_a_region_at_the_edge_stays_inside(pack, run, portrait):
    types = pack.sub("layouts").Face
    corner = types(torch.tensor([-20.0, 350.0, 40.0, 400.0]), 0.5, torch.zeros(5, 2))
    found = pack.sub("faces").FoundFaces(((corner,),), ((),), (384, 384))
    ((_, (element,)),), _ = run("FacesToSegs", image=portrait, faces=found, crop_factor=3.0)
    assert element.crop_region == [0, 234, 180, 384] and element.bbox == (0, 350, 40, 384)
    assert element.cropped_mask.shape == (150, 180) == element.cropped_image.shape[1:3]


def test_a_region_keeps_its_length_inside_the_picture(pack):
    span = pack.sub("layouts")._span
    assert span(40, 60, 2.0, 200) == (30, 70)
    assert span(0, 20, 2.0, 200) == (0, 40) and span(190, 200, 2.0, 200) == (180, 200)
    assert span(10, 190, 2.0, 200) == (0, 200) and span(50, 50, 3.0, 200) == (50, 51)


def test_scores_come_along_and_stay_probabilities(pack):
    layouts, frames = pack.sub("layouts"), pack.sub("convert").frames_of(torch.zeros(1, 100, 100, 3))
    box = {"x": 10, "y": 20, "width": 30, "height": 40}
    for given, wanted in (({}, 1.0), ({"score": 0.4}, 0.4), ({"score": 7}, 1.0), ({"score": -1}, 0.0)):
        ((corners, score),) = layouts.boxes_of({**box, **given}, frames)[0]
        assert corners.tolist() == [10, 20, 40, 60] and score == pytest.approx(wanted)


def test_a_box_of_segs_may_hold_more_than_four_numbers(pack):
    """Detectors of other packs leave score and class behind the corners."""
    layouts, frames = pack.sub("layouts"), pack.sub("convert").frames_of(torch.zeros(1, 100, 120, 3))
    one = SEG(None, None, 0.7, [0, 0, 90, 90], np.array([10, 20, 40, 60, 0.9, 3]), "face")
    ((corners, score),) = layouts.boxes_of(((100, 120), [one]), frames)[0]
    assert corners.tolist() == [10, 20, 40, 60] and score == pytest.approx(0.7)
