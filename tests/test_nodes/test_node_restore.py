"""Restore Faces: what it returns, what it survives, what it says."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.test_nodes.conftest import TINY, TINY_RECOGNISER


@pytest.fixture
def restore(run, model, portrait, found):
    """Restore Faces with faces that were detected before in the picture, where ``faces`` are not given."""

    def call(image, **values):
        frames = image[None] if image.dim() == 3 else image
        same = found(portrait) if frames.shape[1:3] == portrait.shape[1:3] else found(frames)
        values.setdefault("faces", replace(same, faces=same.faces * len(frames), dropped=same.dropped * len(frames)))
        return run("RestoreFaces", model=model, image=image, **values)

    return call


def test_face_is_replaced_and_the_rest_is_not(run, model, portrait):
    image, restored, original, mask, report = run("RestoreFaces", model=model, image=portrait)
    assert image.shape == portrait.shape and image.dtype == torch.float32
    assert restored.shape == original.shape == (1, 64, 64, 3)
    assert mask.shape == (1, 384, 384) and 0.05 < float(mask.mean()) < 0.6
    untouched = mask[..., None].expand_as(image) == 0
    assert torch.equal(image[untouched], portrait[untouched])
    assert not torch.equal(image, portrait)
    assert "1 of 1 faces restored" in report and "identity" in report


def test_given_faces_are_used_and_detection_is_not_repeated(run, pack, model, group, monkeypatch):
    faces = run("DetectFaces", image=group, keep="indices", order="left_to_right", indices="1")[0]
    monkeypatch.setattr(type(model), "detector", lambda self: pytest.fail("detected again"))
    *_, mask, report = run("RestoreFaces", model=model, image=group, faces=faces)
    assert "1 of 1 faces restored" in report and report.count("left out by Detect Faces") == 3
    columns = mask[0].amax(0).nonzero()
    assert 180 < int(columns.min()) and int(columns.max()) < 520  # the second of four people


def test_a_face_that_was_not_chosen_stays_as_it_is(restore, found, portrait):
    chosen = found(portrait)
    face = chosen.faces[0][0]
    aside = replace(face, landmarks=face.landmarks + torch.tensor([1.1 * face.eye_distance, 0.0]))
    dropped = replace(chosen, dropped=(((aside, "not the largest face"),),))
    free = restore(portrait, paste_classes="whole square")[3]
    image, _, _, mask, _ = restore(portrait, faces=dropped, paste_classes="whole square")
    x, y = (int(v) for v in aside.landmarks[2])
    assert free[0, y, x] > 0.2 and mask[0, y, x] == 0 and torch.equal(image[:, y, x:], portrait[:, y, x:])
    x, y = (int(v) for v in face.landmarks[0])
    assert mask[0, y, x] > 0.9


def test_frames_of_a_batch_go_through_in_one_call(run, model, portrait, grey):
    frames = torch.cat([portrait, torch.zeros_like(portrait), portrait.flip(2)])
    image, restored, original, mask, report = run("RestoreFaces", model=model, image=frames)
    assert image.shape == frames.shape and len(restored) == 2
    assert torch.equal(image[1], frames[1]) and not mask[1].any()
    assert "2 of 2 faces restored in 3 frames" in report


def test_no_face_passes_or_stops(run, pack, model, grey):
    image, restored, original, mask, report = run("RestoreFaces", model=model, image=grey, upscale_factor=2.0)
    assert image.shape == (1, 400, 480, 3) and torch.allclose(image, torch.full_like(image, 0.5), atol=1e-5)
    assert restored.shape == (1, 64, 64, 3) and not restored.any() and not mask.any()
    assert "no face was found" in report
    with pytest.raises(pack.errors.BadImage, match="No face was found. Lower 'confidence'"):
        run("RestoreFaces", model=model, image=grey, when_no_face="error")


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.half(),
        lambda x: x.double(),
        lambda x: (x * 255).to(torch.uint8),
        lambda x: x * 1.2 - 0.1,
        lambda x: x[0],
        lambda x: x.movedim(-1, 1).contiguous().movedim(1, -1),
        lambda x: x.mean(-1, keepdim=True),
    ],
    ids=["fp16", "fp64", "uint8", "beyond 0..1", "no batch", "strides", "one channel"],
)
def test_images_of_other_packs(restore, portrait, change):
    image, _, _, _, report = restore(change(portrait))
    assert image.shape == portrait.shape and image.dtype == torch.float32
    assert 0 <= float(image.min()) and float(image.max()) <= 1
    assert "1 of 1 faces restored" in report


def test_alpha_comes_along(restore, portrait):
    alpha = torch.rand(1, 384, 384, 1)
    image = restore(torch.cat([portrait, alpha], -1))[0]
    assert image.shape == (1, 384, 384, 4) and torch.equal(image[..., 3:], alpha)
    larger = restore(torch.cat([portrait, alpha], -1), upscale_factor=1.5)[0]
    assert larger.shape == (1, 576, 576, 4)


def test_colours_that_alpha_hides_have_no_influence(restore, portrait):
    alpha = torch.zeros(1, 384, 384, 1)
    alpha[:, 60:330, 90:300] = 1
    results = []
    for hidden in ((0.0, 1.0, 0.0), (1.0, 0.0, 1.0)):
        colours = torch.where(alpha > 0, portrait, torch.tensor(hidden))
        results.append(restore(torch.cat([colours, alpha], -1), upscale_factor=1.5))
    assert "1 of 1 faces restored" in results[0][4]
    assert torch.equal(results[0][0], results[1][0])
    outside = results[0][0][0, :60, :60, :3]
    assert float((outside.amax(-1) - outside.amin(-1)).mean()) < 0.3  # no green and no magenta is left to bleed in


def test_batch_of_nothing(run, model):
    image, restored, _, mask, report = run("RestoreFaces", model=model, image=torch.zeros(0, 100, 120, 3))
    assert image.shape == (0, 100, 120, 3) and mask.shape == (0, 100, 120)
    assert len(restored) == 1 and "0 of 0 faces" in report


@pytest.mark.parametrize("wrong", [torch.zeros(3, 3), "a picture", None], ids=["2-d", "text", "nothing"])
def test_what_is_no_image_is_named(run, pack, model, wrong):
    with pytest.raises(pack.errors.BadImage, match="'image'"):
        run("RestoreFaces", model=model, image=wrong)


def test_mask_limits_the_change(restore, portrait):
    mask = torch.zeros(384, 384)
    mask[:, :192] = 1
    image = restore(portrait, mask=mask)[0]
    assert torch.equal(image[:, :, 200:], portrait[:, :, 200:])
    assert not torch.equal(image[:, :, :180], portrait[:, :, :180])
    small = restore(portrait, mask=mask[None, ::4, ::4].half())[0]
    assert torch.allclose(small[:, :, :180], image[:, :, :180], atol=0.02)


def test_load_images_empty_mask_is_no_mask(restore, portrait):
    image, *_, report = restore(portrait, mask=torch.zeros(1, 64, 64))
    assert not torch.equal(image, portrait) and "placeholder" in report
    drawn = torch.zeros(1, 384, 384)
    assert torch.equal(restore(portrait, mask=drawn)[0], portrait)


def test_masks_must_fit_the_frames(restore, pack, portrait):
    with pytest.raises(pack.errors.BadImage, match="2 frames, the image 3"):
        restore(portrait.repeat(3, 1, 1, 1), mask=torch.ones(2, 384, 384))


def test_faces_of_another_image_are_refused(run, pack, model, portrait, group):
    faces = run("DetectFaces", image=group)[0]
    with pytest.raises(pack.errors.BadOption, match="928x256.*384x384.*link the same image"):
        run("RestoreFaces", model=model, image=portrait, faces=faces)
    with pytest.raises(pack.errors.BadOption, match="Detect Faces"):
        run("RestoreFaces", model=model, image=portrait, faces=[1, 2])
    with pytest.raises(pack.errors.BadOption, match="Load ID-CodeFormer"):
        run("RestoreFaces", model="codeformer", image=portrait)


@pytest.mark.parametrize("w", [-0.1, 1.1, float("nan")])
def test_fidelity_out_of_range_is_refused(restore, pack, portrait, w):
    """A linked value is not checked by the host."""
    with pytest.raises(pack.errors.BadOption, match="'fidelity' is"):
        restore(portrait, fidelity=w)


def test_visibility_blends(restore, portrait):
    full = restore(portrait)[0]
    none = restore(portrait, visibility=0.0)[0]
    half = restore(portrait, visibility=0.5)[0]
    assert torch.allclose(none, portrait, atol=1e-4)
    assert torch.allclose(half, (full + portrait) / 2, atol=1e-3)


def test_faces_below_min_identity_stay_as_they_were(restore, portrait):
    image, restored, _, mask, report = restore(portrait, min_identity=1.0)
    assert torch.equal(image, portrait) and not mask.any()
    assert "0 of 1 faces restored" in report and "below 1" in report


def test_reference_adds_before_and_after(restore, group, member):
    *_, report = restore(group, reference=member)
    assert report.count("like the reference") == 4


def test_the_built_in_parser_serves_every_paste_class(restore, pack, portrait):
    """Without ParseNet's file: hair stays as it is without hair, and less than the face alone changes inside it."""

    def changed(paste_classes):
        image, *_ = restore(portrait, paste_classes=paste_classes)
        return float(((image - portrait).abs().amax(-1) > 1 / 255).float().mean())

    square, both, face, inner = map(changed, ("whole square", "face and hair", "face without hair", "inner face"))
    assert square > both > face > inner > 0


class Doubler:
    """What Load Upscale Model hands out, as far as the host's own node uses it."""

    scale = 2
    calls = 0

    def to(self, device):
        return self

    def __call__(self, x):
        Doubler.calls += 1
        return torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")


def test_upscale_model_makes_the_background(restore, pack, model, portrait):
    image, *_, mask, _ = restore(portrait, upscale_factor=2.0, upscale_model=Doubler())
    expected = portrait.repeat_interleave(2, 1).repeat_interleave(2, 2)
    outside = mask[..., None].expand_as(image) == 0
    assert image.shape == (1, 768, 768, 3) and torch.allclose(image[outside], expected[outside])
    assert pack.mm.state.freed
    before = Doubler.calls
    restore(portrait, upscale_factor=2.0, upscale_model=Doubler(), face_upsample=True)
    assert Doubler.calls >= before + 2
    with pytest.raises(pack.errors.BadOption, match="Load Upscale Model"):
        restore(portrait, upscale_model="x4")


def test_an_upscale_model_goes_to_the_device_and_back(pack, monkeypatch):
    """The host keeps it on the CPU between runs, also after a run that failed."""
    places = []

    class Travelling(Doubler):
        def to(self, device):
            places.append(str(device))
            return self

    monkeypatch.setattr(pack.mm, "get_torch_device", lambda: torch.device("meta"))
    with pack.sub("upscale").upscaler_of(Travelling()):
        assert places == ["meta"]
    assert places == ["meta", "cpu"]
    with pytest.raises(KeyError), pack.sub("upscale").upscaler_of(Travelling()):
        raise KeyError
    assert places == ["meta", "cpu"] * 2


def test_upscaling_goes_on_in_smaller_tiles(pack):
    class Hungry(Doubler):
        def __call__(self, x):
            if x.shape[-1] > 200:
                raise pack.mm.OOM_EXCEPTION("no room")
            return super().__call__(x)

    tiles = []
    pack.utils.tiled_scale, whole = (
        lambda s, f, tile_x, **_: (tiles.append(tile_x), f(s[..., :tile_x, :tile_x]))[1],
        pack.utils.tiled_scale,
    )
    try:
        with pack.sub("upscale").upscaler_of(Hungry()) as upscaler:
            upscaler(torch.zeros(1, 3, 600, 600))
            assert tiles == [512, 256, 128]
    finally:
        pack.utils.tiled_scale = whole


def test_progress_reaches_the_end_and_shows_the_face(restore, pack, portrait, monkeypatch):
    monkeypatch.setattr(pack.sub("preview"), "FEW", 1)
    seen = []
    pack.utils.hook = lambda value, total, preview: seen.append((value, total, preview))
    restore(portrait.repeat(2, 1, 1, 1))
    values = [value for value, *_ in seen]
    assert values == sorted(values) and seen[-1][:2] == (100, 100)
    pictures = [preview for *_, preview in seen if preview]
    assert pictures and pictures[0][0] == "JPEG" and pictures[0][1].size == (128, 64)
    seen.clear()
    restore(portrait)  # few faces are shown at the end alone
    assert seen[-1][:2] == (100, 100) and not any(preview for *_, preview in seen)


@pytest.mark.parametrize("scale", [0.5, 1, 4])
def test_room_for_an_upscale_model_grows_with_its_scale(pack, monkeypatch, scale):
    upscale, asked = pack.sub("upscale"), []
    monkeypatch.setattr(upscale.host, "free_memory", lambda size, device: asked.append(size))
    model = Doubler()
    model.scale = scale
    with upscale.upscaler_of(model):
        pass
    assert asked == [512 * 512 * 3 * 4 * 384 * max(1, scale)]


def test_cancel_stops_inside_one_forward_pass(restore, pack, portrait, monkeypatch):
    """Pressed after the last progress before restoring: no update comes until the network has ended."""
    monkeypatch.setattr(pack.sub("preview"), "FEW", 0)
    encodes = []

    def hook(value, total, preview):
        if preview is not None and not encodes:
            encodes.append(1)
            pack.mm.interrupt_current_processing(True)

    pack.utils.hook = hook
    with pytest.raises(pack.mm.InterruptProcessingException):
        restore(portrait)
    assert encodes and not pack.mm.state.interrupted


def test_running_out_of_memory_makes_room_and_says_what_to_do(restore, pack, model, portrait, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(model.restorer.managed.network.quantize, "forward", full, raising=False)
    engine = "idcodeformer.restoration.engine.execution"
    module = __import__("sys").modules["/somewhere/custom_nodes/ComfyUI-ID-CodeFormer." + engine]
    monkeypatch.setattr(module.StripEngine, "encode", full)
    with pytest.raises(pack.errors.OutOfMemory, match="single face"):
        restore(portrait)
    assert pack.mm.state.unloads == 1


def test_no_recogniser_no_scores(run, portrait, pack):
    plain = run("Loader", model_name=TINY, recogniser="none")[0]
    *_, report = run("RestoreFaces", model=plain, image=portrait)
    assert "identity" not in report
    with pytest.raises(pack.errors.BadOption, match="recogniser"):
        run("RestoreFaces", model=plain, image=portrait, min_identity=0.5)


def test_a_gfpgan_restores_with_the_same_nodes(run, pack, portrait, found, tmp_path):
    """Another restorer: same wires, same gate, same scores, no fidelity."""
    pytest.importorskip("spandrel")
    from tests.test_registries import gfpgan

    file = pack.models / "facerestore_models" / "GFPGANv1.4.pth"
    torch.save({"params_ema": gfpgan().state_dict()}, file)
    try:
        model = run("Loader", model_name=file.name, recogniser=TINY_RECOGNISER)[0]
        values = {"model": model, "image": portrait, "faces": found(portrait)}
        image, restored, _, mask, report = run("RestoreFaces", **values)
        assert restored.shape == (1, 32, 32, 3) and "1 of 1 faces restored" in report and "identity" in report
        untouched = mask[..., None].expand_as(image) == 0
        assert torch.equal(image[untouched], portrait[untouched]) and not torch.equal(image, portrait)
        assert torch.equal(run("RestoreFaces", **values, fidelity=0.1)[0], image)
        kept = run("RestoreFaces", **values, min_identity=1.0)
        assert torch.equal(kept[0], portrait) and "0 of 1 faces restored" in kept[4]
    finally:
        file.unlink()


def test_a_black_mask_is_nothing_to_do(run, pack, model, portrait, monkeypatch):
    monkeypatch.setattr(type(model), "detector", lambda self: pytest.fail("looked for faces"))
    found = pack.sub("faces").FoundFaces(((),), ((),), (384, 384))
    image, restored, _, mask, report = run(
        "RestoreFaces", model=model, image=portrait, mask=torch.zeros(384, 384), faces=found
    )
    assert torch.equal(image, portrait) and not mask.any() and not restored.any()
    assert "0 of 0 faces restored" in report and "nothing to do in 1 of 1 frames: the mask is black" in report


def test_what_cannot_show_is_not_called_restored(restore, portrait):
    corner = torch.zeros(384, 384)
    corner[:4, :4] = 1
    assert "0 of 1 faces restored" in restore(portrait, mask=corner)[4]
    assert "outside the mask" in restore(portrait, mask=corner)[4]
    assert "visibility is 0" in restore(portrait, visibility=0.0)[4]


def test_face_upsample_without_an_upscaler_says_so(restore, portrait):
    assert "face_upsample does nothing: no upscale_model" in restore(portrait, face_upsample=True)[4]
    assert "face_upsample" not in restore(portrait)[4]


def test_each_face_has_its_own_fidelity(run, model, found, group):
    faces = replace(found(group), faces=(found(group).faces[0][:2],))
    given = {"model": model, "image": group, "faces": faces, "large_faces": "restore"}
    after, report = (run("RestoreFaces", **given, fidelities="0.2; 0.9")[n] for n in (1, 4))
    low, high = (run("RestoreFaces", **given, fidelity=w)[1] for w in (0.2, 0.9))
    assert torch.allclose(after[0], low[0], atol=1e-5) and torch.allclose(after[1], high[1], atol=1e-5)
    assert not torch.allclose(low, high, atol=1e-3)
    assert "w 0.2 to 0.9" in report and "w 0.2," in report.splitlines()[-2] and "w 0.9," in report.splitlines()[-1]
    assert torch.equal(run("RestoreFaces", **given, fidelities=[0.2, 0.9])[1], after)  # a list that is linked
    clip = torch.cat([group, group])
    both = replace(faces, faces=faces.faces * 2, dropped=faces.dropped * 2)
    frames = run("RestoreFaces", **{**given, "image": clip, "faces": both}, fidelities="0.2 0.9")[1]
    assert torch.allclose(frames, torch.cat([after, after]), atol=1e-5)  # for each frame the same
    mask = torch.zeros(2, 256, 928)
    mask[1] = 1
    second = run("RestoreFaces", **{**given, "image": clip, "faces": both}, fidelities="0.9 0.9 0.2 0.9", mask=mask)[1]
    assert torch.allclose(second, after, atol=1e-5)  # frame 0 is masked; its values are passed over


def test_a_large_face_that_stays_leaves_the_others_theirs(run, model, found, group, monkeypatch):
    from importlib import import_module

    pipeline = import_module(type(model).__module__.replace("nodes.managed", "idcodeformer.pipeline"))
    left = pipeline.LargeFace(False, "larger than the network")
    monkeypatch.setattr(pipeline, "judge_large", lambda pixels, *_: [left, None])
    faces = replace(found(group), faces=(found(group).faces[0][:2],))
    *_, report = run("RestoreFaces", model=model, image=group, faces=faces, fidelities="0.1 0.5")
    assert report.startswith("1 of 2 faces restored") and report.splitlines()[0].endswith("w 0.5")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"fidelities": "0.3, 0.8"}, "fidelities has 2 values for 1 faces; write one for each face"),
        ({"fidelities": "0.3", "identity_target": 0.5}, "'identity_target' chooses the fidelity"),
        ({"fidelities": "0.3", "frames": "video"}, "frames = video goes without fidelities"),
        ({"fidelities": "0.3", "faces": None}, "link 'faces', or clear fidelities"),
        ({"fidelities": "none"}, "fidelities is 'none'; write numbers"),
        ({"fidelities": "1.5"}, "fidelities holds 1.5; each must lie between 0 and 1"),
    ],
)
def test_fidelities_that_do_not_fit_are_refused(pack, restore, portrait, more, said):
    with pytest.raises(pack.errors.BadOption, match=said):
        restore(portrait, **more)
    told = pack.nodes.RestoreFaces.VALIDATE_INPUTS(fidelities=more["fidelities"])
    assert (told is True) == ("fidelities " not in said or "values" in said or "without" in said)


def test_fidelities_do_not_stop_a_picture_without_a_face(restore, grey):
    image, *_, report = restore(grey, fidelities="0.3, 0.8")
    assert torch.equal(image, grey) and "no face was found" in report


def test_before_and_after_are_shown_on_the_node(pack, model, found, portrait, grey):
    from PIL import Image

    from tests.test_nodes.conftest import defaults

    node = pack.nodes.RestoreFaces
    given = {**defaults(node), "model": model, "large_faces": "restore"}
    done = node().restore(image=portrait, faces=found(portrait), **given)
    (shown,) = done["ui"]["images"]
    with Image.open(f"{pack.folder_paths.get_temp_directory()}/{shown['filename']}") as picture:
        small = picture.convert("RGB").resize((128, 64), Image.Resampling.BOX)
    sheet = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).reshape(64, 128, 3) / 255
    _, after, before, *_ = done["result"]
    assert (sheet[:, :64] - before[0]).abs().mean() < 0.02 and (sheet[:, 64:] - after[0]).abs().mean() < 0.05
    assert (before[0] - after[0]).abs().mean() > 0.1
    assert node().restore(image=grey, faces=found(grey), **given)["ui"]["images"] == []


@pytest.mark.parametrize("count", [1, 2, 3, 9, 30])
def test_the_sheet_shows_every_pair_once_side_by_side(pack, count):
    """Up to 18 of them; a single one twice as large."""
    draw = pack.sub("draw")
    before, after = (
        [torch.tensor([n + 1.0, green, 0])[:, None, None].expand(3, 8, 8) / 255 for n in range(count)]
        for green in (0, 9)
    )
    parts = [slice(0, 1), slice(1, None)] if count > 1 else [slice(None)]
    picture = draw.before_and_after(*([torch.stack(each[part]) for part in parts] for each in (before, after)))
    sheet, side, places = torch.from_numpy(np.array(picture)).int(), 384 if count == 1 else 192, []
    for n in range(min(count, 18)):
        corners = [(sheet == torch.tensor([n + 1, green, 0])).all(2).nonzero().amin(0).tolist() for green in (0, 9)]
        (top, left), twin = corners
        assert twin == [top, left + side]
        for x in (left, left + side):
            assert (sheet[top : top + side, x : x + side] == sheet[top, x]).all()
        places.append((top, left))
    assert places == sorted(places)  # row by row, from the left
    assert not (sheet == torch.tensor([19, 0, 0])).all(2).any()
    assert sheet.shape[1] / sheet.shape[0] < 3


def test_one_bar_over_parts_and_stages(pack):
    """Frames 2 to 4 of 4: the second half of the bar, of which detecting has the first fifth."""
    shown = []
    progress = pack.sub("preview").StagedProgress(lambda done, total, picture: shown.append((done, total)))
    progress.part(2, 4, 4)
    for done, what in ((0, "detecting"), (1, "detecting"), (2, "detecting"), (1, "restoring"), (2, "guiding")):
        progress(done, 2, what)
    progress(2, 2, "pasting")
    assert [done for done, _ in shown] == [50, 55, 60, 75, 98, 100] and {total for _, total in shown} == {100}
    progress(1, 0, "detecting")
    progress.part(0, 0, 0)
    shown.clear()
    whole = pack.sub("preview").StagedProgress(lambda done, total, picture: shown.append(done))
    for done, what in ((1, "another stage"), (2, "another stage"), (1, "restoring")):
        whole(done, 2, what)
    assert shown == [50, 100, 50]  # of no parts, and of no stage that is known


def test_runs_of_black_masks_are_told_from_the_others(pack):
    runs = pack.sub("stream")._runs
    mask = torch.zeros(6, 1, 4, 4)
    mask[[1, 2, 5], :, 3, 3] = 0.01
    assert list(runs(mask, 6)) == [(0, 1, True), (1, 3, False), (3, 5, True), (5, 6, False)]
    assert list(runs(None, 3)) == [(0, 3, False)] and list(runs(None, 0)) == []


def test_previews_show_each_batch_before_and_after(pack, model):
    preview, shown = pack.sub("preview"), []
    crops = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    w = torch.linspace(0, 1, 5)

    def told(done, total, what, picture=None):
        shown.append((done, total, what, picture))

    restorer = preview.PreviewingRestorer(model.restorer, told)
    out = restorer(crops, pack.sub("restore").RestoreOptions(batch_size=2), w=w)
    bare = model.restorer.ready()
    assert torch.equal(out, torch.cat([bare(crops[n : n + 1], None, w=w[n : n + 1]) for n in range(5)]))
    assert [done for done, *_ in shown] == [0, 2, 2, 4, 4, 5]
    assert {(total, what) for _, total, what, _ in shown} == {(5, "restoring")}
    pictures = [picture for *_, picture in shown]
    assert torch.equal(pictures[0], torch.cat([crops[0], crops[0]], 2)) and pictures[2] is None is pictures[4]
    for at, face in ((1, 1), (3, 3), (5, 4)):
        assert torch.equal(pictures[at], torch.cat([crops[face], out[face]], 2))
    shown.clear()
    restorer(crops[:4], None)
    assert all(picture is None for *_, picture in shown)
