"""Paste Faces: edited crops back where they came from."""
from __future__ import annotations

import pytest
import torch


@pytest.fixture
def paste(pack):
    def call(image, faces, crops, visibility=1.0, **more):
        node = pack.nodes.PasteFaces()
        return node.paste(image=[image], faces=[faces], crops=crops, visibility=[visibility], **more)

    return call


def test_crops_come_back_where_they_were(run, paste, group):
    faces, count, *_, crops = run("DetectFaces", image=group, order="left_to_right")
    same, _ = paste(group, faces, crops)
    assert count == len(crops) == 4 and torch.allclose(same, group, atol=2 / 255)
    inverted = [crops[0], 1 - crops[1], *crops[2:]]
    image, mask = paste(group, faces, inverted)
    columns = (image - group).abs().amax((0, 1, 3)).gt(0.2).nonzero()
    assert 180 < int(columns.min()) and int(columns.max()) < 520  # the second of four people
    half, _ = paste(group, faces, inverted, visibility=0.5)
    assert torch.allclose(half, (image + group) / 2, atol=3 / 255)
    small = [torch.nn.functional.avg_pool2d(c.movedim(-1, 1), 4).movedim(1, -1) for c in inverted]
    assert (paste(group, faces, [torch.cat(small)])[0] - image).abs().mean() < 0.01  # a batch of another size


def test_mask_alpha_and_frames_without_a_face(run, paste, found, portrait):
    frames = torch.cat([torch.zeros_like(portrait), portrait])
    faces, *_, crops = run("DetectFaces", image=frames)
    rgba = torch.cat([frames, torch.rand(2, 384, 384, 1)], -1)
    left = torch.zeros(1, 384, 384)
    left[..., :150] = 1
    image, mask = paste(rgba, faces, [1 - crops[0]], mask=[left])
    assert torch.equal(image[..., 3], rgba[..., 3]) and torch.equal(image[0, ..., :3], frames[0])
    assert torch.equal(image[1, :, 155:, :3], frames[1, :, 155:]) and float(mask[1, :, :150].max()) > 0.9
    assert not torch.equal(image[1, ..., :3], frames[1]) and not mask[0].any()


def test_what_does_not_fit_is_named(pack, paste, found, portrait, grey):
    faces = found(portrait)
    with pytest.raises(pack.errors.BadOption, match="2 crops for 1 faces"):
        paste(portrait, faces, [torch.zeros(2, 64, 64, 3)])
    with pytest.raises(pack.errors.BadImage, match="64x32 px; crops are square"):
        paste(portrait, faces, [torch.zeros(1, 32, 64, 3)])
    with pytest.raises(pack.errors.BadImage, match="1x1 px; crops have at least 16x16"):  # a blot, not a face
        paste(portrait, faces, [torch.zeros(1, 1, 1, 3)])
    with pytest.raises(pack.errors.BadOption, match="link the same image"):
        paste(grey, faces, [torch.zeros(1, 64, 64, 3)])
    none = pack.sub("faces").FoundFaces(((),), ((),), (200, 240))
    image, mask = paste(grey, none, [torch.zeros(1, 512, 512, 3)])  # the black crop of Detect Faces
    assert torch.equal(image, grey) and not mask.any()


def test_cancel_stops_before_the_next_frame(pack, paste, run, portrait, monkeypatch):
    frames = torch.cat([portrait, portrait])
    faces, *_, crops = run("DetectFaces", image=frames)
    pack.mm.interrupt_current_processing(True)
    with pytest.raises(pack.mm.InterruptProcessingException):
        paste(frames, faces, crops)
