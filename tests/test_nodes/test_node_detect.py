"""Detect Faces: choices, outputs of every shape, what is said of a wrong input."""
from __future__ import annotations

import os

import pytest
import torch
from PIL import Image

from tests.test_nodes.conftest import refusal


def centres(faces, frame=0):
    return [float(face.box[0] + face.box[2]) / 2 for face in faces.faces[frame]]


def test_outputs(run, group):
    faces, count, preview, mask, crops = run("DetectFaces", image=group, order="left_to_right")
    assert count == faces.count == len(crops) == 4
    assert centres(faces) == sorted(centres(faces))
    assert preview.shape == group.shape and not torch.equal(preview, group)
    assert mask.shape == (1, 256, 928) and set(mask.unique().tolist()) == {0.0, 1.0}
    for x0, y0, x1, y1 in (face.box.round().int().tolist() for face in faces.faces[0]):
        x, y = (x0 + x1) // 2, (y0 + y1) // 2
        assert mask[0, [y, y0 + 2, y1 - 2, y, y], [x, x, x, x0 + 2, x1 - 2]].all()
        assert not mask[0, [y0, y0, y1, y1], [x0, x1, x0, x1]].any()  # an ellipse, not the box
    assert all(crop.shape == (1, 512, 512, 3) for crop in crops)


def test_no_face_is_a_normal_result(run, grey):
    faces, count, preview, mask, crops = run("DetectFaces", image=grey)
    assert count == 0 and faces.faces == ((),)
    assert torch.allclose(preview, grey, atol=1 / 255) and not mask.any()
    assert len(crops) == 1 and crops[0].shape == (1, 512, 512, 3) and not crops[0].any()  # an empty list stops the host


def test_batch_of_nothing(run):
    faces, count, preview, mask, crops = run("DetectFaces", image=torch.zeros(0, 64, 64, 3))
    assert count == 0 and faces.faces == () and preview.shape == (0, 64, 64, 3) and mask.shape == (0, 64, 64)
    assert len(crops) == 1


def test_every_frame_has_its_faces(run, portrait):
    frames = torch.cat([portrait, torch.zeros_like(portrait), portrait.flip(2)])
    faces, count, preview, mask, _ = run("DetectFaces", image=frames)
    assert [len(here) for here in faces.faces] == [1, 0, 1] and count == 2
    assert centres(faces, 0)[0] == pytest.approx(383 - centres(faces, 2)[0], abs=4)
    assert [bool(m.any()) for m in mask] == [True, False, True]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"keep": "indices", "indices": "0, 2-3"}, [0, 2, 3]),
        ({"keep": "indices", "indices": "7"}, []),
        ({"max_faces": 2}, [0, 1]),
        ({"min_eye_distance": 500}, []),
        ({"keep": "centre"}, None),
        ({"keep": "largest"}, None),
    ],
    ids=str,
)
def test_choices(run, group, values, expected):
    everyone = centres(run("DetectFaces", image=group, order="left_to_right")[0])
    chosen = centres(run("DetectFaces", image=group, order="left_to_right", **values)[0])
    if expected is None:
        assert len(chosen) == 1 and chosen[0] in everyone
    else:
        assert chosen == [everyone[n] for n in expected]


def test_faces_inside_a_mask(run, pack, group):
    mask = torch.zeros(256, 928)
    mask[:, 464:] = 1
    faces = run("DetectFaces", image=group, keep="mask", mask=mask)[0]
    assert len(centres(faces)) == 2 and min(centres(faces)) > 464
    with pytest.raises(pack.errors.BadOption, match="mask"):
        run("DetectFaces", image=group, keep="mask")


def test_most_like_the_reference(run, model, group):
    """The reference is a cut of the picture itself, so that even a recogniser with random weights knows the face."""
    third = group[:, :, 464:720]
    faces = run("DetectFaces", image=group, keep="reference", reference=third, model=model)[0]
    assert len(centres(faces)) == 1 and 464 < centres(faces)[0] < 720
    assert all("similarity" in reason for _, reason in faces.left_out)
    strict = run("DetectFaces", image=group, keep="reference", reference=third, model=model, min_similarity=1.0)[0]
    assert strict.count == 0 and len(strict.left_out) == 4
    order = run("DetectFaces", image=group, order="reference", reference=third, model=model)[0]
    assert order.count == 4 and centres(order)[0] == pytest.approx(centres(faces)[0])


def test_reference_must_be_there_and_show_a_face(run, pack, model, group, grey):
    with pytest.raises(pack.errors.BadOption, match="link photos"):
        run("DetectFaces", image=group, keep="reference", model=model)
    with pytest.raises(pack.errors.BadImage, match="No face was found in 'reference'"):
        run("DetectFaces", image=group, keep="reference", reference=grey, model=model)


@pytest.mark.parametrize("text", ["a", "1,,x", "-1", "1-", "99999"])
def test_wrong_indices_are_refused_before_running(pack, text):
    assert "write numbers" in pack.nodes.DetectFaces.VALIDATE_INPUTS(indices=text)


def test_indices_as_people_write_them(pack):
    parse = pack.sub("faces").parse_indices
    assert parse(" 0,2 ; 4-6 2") == (0, 2, 4, 5, 6) and parse("") == ()
    with pytest.raises(pack.errors.BadOption, match="indices is '3-1'; write numbers"):  # not: no face at all
        parse("3-1")


def test_missing_detector_is_refused_with_its_source(pack):
    said = refusal(pack.nodes.DetectFaces, "detector", "detection_Resnet50_Final.pth")
    assert "facedetection" in said and "https://" in said


def test_changed_detector_file_is_seen(pack):
    file = pack.models / "facedetection" / "detection_mine.pth"
    file.write_bytes(b"x")
    first = pack.nodes.DetectFaces.IS_CHANGED(detector=file.name, image=None, confidence=0.5)
    os.utime(file, ns=(1, 1))
    assert pack.nodes.DetectFaces.IS_CHANGED(detector=file.name, image=None) != first
    file.unlink()


def test_preview_on_the_node(pack, group):
    from tests.test_nodes.conftest import defaults

    node = pack.nodes.DetectFaces
    shown = node().detect(image=group, **defaults(node))["ui"]
    (item,) = shown["images"]
    assert item["type"] == "temp"
    with Image.open(os.path.join(pack.folder_paths.get_temp_directory(), item["filename"])) as picture:
        assert picture.size == (928, 256)


def test_crops_are_the_pixels_of_each_face(run, group):
    """Upright, not mirrored, in the order of the faces: what aligning by hand gives."""
    from idcodeformer.geometry.alignment import align

    faces, *_, crops = run("DetectFaces", image=group, order="left_to_right")
    expected = align([group[0].permute(2, 0, 1)], [faces.faces[0]], 512).pixels
    for crop, wanted in zip(crops, expected, strict=True):
        torch.testing.assert_close(crop[0].permute(2, 0, 1), wanted, atol=1e-4, rtol=0)


def test_labels_do_not_cover_each_other_in_a_crowd(pack, monkeypatch):
    from importlib import import_module

    drawing = import_module(pack.sub("draw").__name__.replace("nodes.draw", "idcodeformer.files.drawing"))
    face = pack.sub("faces").Face
    boxes = [[x * 24.0, 8 + y * 30.0, x * 24 + 30.0, y * 30 + 44.0] for y in range(5) for x in range(9)]
    crowd = [face(torch.tensor(box), 0.99, torch.tensor(box[:2]).expand(5, 2) + 12) for box in boxes]
    drawn, place = [], drawing._labelled
    monkeypatch.setattr(drawing, "_labelled", lambda *given: drawn.append(place(*given)) or drawn[-1])
    blank = torch.zeros(3, 180, 240)
    picture = drawing.marked(blank, crowd, dropped=[(crowd[7], "no face is seen when looked at closely")])
    rectangles = [one for each in drawn for one in each]
    assert len(drawn) == 46 and len(rectangles) >= 45  # every number has room; a long reason may have none
    for n, (left, top, right, bottom) in enumerate(rectangles):
        assert 0 <= left < right <= 240 and 0 <= top < bottom <= 180
        assert not any(left < c and a < right and top < d and b < bottom for a, b, c, d in rectangles[:n])
    assert picture.amax() > 0.7 and torch.equal(drawing.marked(blank, []), blank)


def test_frames_are_taken_by_the_pixels_they_have(pack, monkeypatch):
    convert = pack.sub("convert")
    monkeypatch.setattr(convert, "_PIXELS_AT_ONCE", 1000)
    frames = convert.frames_of(torch.zeros(7, 10, 20, 3))
    assert list(frames.chunks()) == [(0, 5), (5, 7)] and list(frames.chunks(most=3)) == [(0, 3), (3, 6), (6, 7)]
    assert list(frames.chunks(2.0)) == [(n, n + 1) for n in range(7)]
    assert list(frames.chunks(0.5)) == list(frames.chunks())
    assert list(convert.frames_of(torch.zeros(2, 100, 200, 3)).chunks()) == [(0, 1), (1, 2)]


def test_a_frame_that_holds_nan_is_named(run, pack):
    frames = torch.zeros(3, 40, 40, 3)
    frames[2, 5, 6, 1] = float("nan")
    with pytest.raises(pack.errors.BadImage, match="Frame 2 of 'image' holds NaN"):
        run("DetectFaces", image=frames)


def test_frames_with_one_two_and_five_channels(pack):
    """Colours first, the rest comes along; whole numbers are grey levels of 255."""
    convert, levels = pack.sub("convert"), torch.arange(5) * 51
    for channels, colours, extra in ((1, [0] * 3, 0), (2, [0] * 3, 1), (3, [0, 51, 102], 0), (5, [0, 51, 102], 2)):
        frames = convert.frames_of(levels[:channels].expand(1, 4, 6, -1).to(torch.uint8))
        assert frames.size == (4, 6) and frames.extras == extra
        assert torch.allclose(frames.part(0, 1)[0, :, 1, 1], torch.tensor(colours) / 255)
        rest = levels[channels - extra : channels] / 255
        assert torch.allclose(frames.extra(0, 1)[0, 1, 1], rest) and frames.extra(0, 1).shape[-1] == extra


def test_a_digest_tells_values_and_shapes_apart(pack):
    of = [pack.sub("convert").Frames, pack.sub("held").digest]
    one = torch.zeros(2, 4, 6, 3)
    other = one.clone()
    other[1, 3, 5, 2] = 1e-3
    alike = [one, one.clone(), one.transpose(1, 2).contiguous().transpose(1, 2)]
    unlike = [other, one.view(2, 6, 4, 3), one.half(), one[:1]]
    for make in of:
        digests = [made.digest() if hasattr(made, "digest") else made for made in map(make, alike + unlike)]
        assert len(set(digests[:3])) == 1 and len(set(digests)) == 1 + len(unlike)


@pytest.mark.parametrize("shape", [(200, 240), (1, 200, 240), (2, 200, 240), (2, 1, 200, 240), (2, 200, 240, 1)])
def test_masks_of_every_shape_are_one_per_frame(pack, shape):
    convert = pack.sub("convert")
    frames, mask = convert.frames_of(torch.zeros(2, 100, 120, 3)), torch.zeros(shape)
    mask.view(-1, 200, 240)[..., :120] = 2.0
    mask.view(-1, 200, 240)[-1, :100] = -1.0
    second = convert.masks_for(mask, frames).part(1, 2)
    assert second.shape == (1, 1, 100, 120)
    assert second[0, 0, 60:, :59].min() == 1 and second[0, 0, :49].max() == 0 and second[0, 0, :, 61:].max() == 0
    both = convert.masks_for(mask, frames).part(0, 2)
    assert both.shape == (2, 1, 100, 120) and torch.equal(both[1:], second)


def test_crops_are_joined_in_their_order(pack):
    convert = pack.sub("convert")
    parts = [torch.full((n, 3, 4, 4), level) for n, level in ((2, 0.25), (1, 0.5), (3, 2.0))]
    out = convert.joined(parts, 9)
    assert out.shape == (6, 4, 4, 3) and out[:, 0, 0, 0].tolist() == [0.25, 0.25, 0.5, 1, 1, 1] and not parts
    assert convert.joined([], 9).shape == (1, 9, 9, 3) and not convert.joined([], 0).any()


def test_a_reason_covers_no_chosen_face(pack):
    from importlib import import_module

    drawing = import_module(pack.sub("draw").__name__.replace("nodes.draw", "idcodeformer.files.drawing"))
    face = pack.sub("faces").Face
    boxes = [[x, 40.0, x + 30, 70.0] for x in (60.0, 94.0)]
    left, right = (face(torch.tensor(box), 0.99, torch.tensor(box[:2]).expand(5, 2) + 12) for box in boxes)
    blank = torch.zeros(3, 90, 190)  # no row above or below that is free
    marks = drawing.marked(blank, [left, right], dropped=[(right, "similarity 0.12")])
    plain = drawing.marked(blank, [left, right])
    assert torch.equal(marks[:, 44:66, 62:88], plain[:, 44:66, 62:88])  # inside the left face
    alone = drawing.marked(blank, [], dropped=[(right, "similarity 0.12")])
    assert float(alone.amax()) > 0.5


def test_cancel_stops_while_frames_are_drawn(pack, run, portrait, monkeypatch):
    drawn = []

    def thumbnail(image, side):
        drawn.append(side)
        pack.mm.interrupt_current_processing(True)
        return image

    monkeypatch.setattr(pack.sub("draw"), "thumbnail", thumbnail)
    with pytest.raises(pack.mm.InterruptProcessingException):
        run("DetectFaces", image=torch.cat([portrait] * 3))
    assert len(drawn) == 1


def test_what_a_node_shows_is_small_and_keeps_its_shape(pack):
    draw = pack.sub("draw")
    assert draw.thumbnail(torch.rand(3, 300, 600), 64).size == (64, 32)
    assert draw.thumbnail(torch.rand(3, 30, 60), 64).size == (60, 30)
