"""The Extras entry: its controls in each host, and what it does with pictures."""
from __future__ import annotations

import base64
from typing import Any, Callable

import numpy as np
import pytest
from PIL import Image
from webui_parts import HOSTS, PACKAGE, ROOT, Door

PORTRAIT = ROOT / "idcodeformer" / "assets" / "portrait.jpg"


def run(door: Door, picture: Image.Image, **arguments: Any) -> Any:
    """The picture of the host after our entry."""
    from modules.scripts_postprocessing import PostprocessedImage

    pp = PostprocessedImage(picture)
    door.entry.process(pp, **arguments)
    return pp


@pytest.fixture
def image(group: np.ndarray) -> Image.Image:
    return Image.fromarray(group)


def test_arguments_of_none_mean_off(door: Door, image: Image.Image) -> None:
    """As /sdapi/v1/extra-single-image calls every script it does not know."""
    import sys

    names = door.entry.ui()
    pp = run(door, image, **dict.fromkeys(names))
    assert pp.image is image and pp.info == {}
    assert f"{PACKAGE}.sdwebui.core" not in sys.modules


def test_scores_stand_in_the_infotext(door: Door, image: Image.Image) -> None:
    door.settings()
    pp = run(door, image, enable=True, fidelity=0.6, visibility=0.9, faces="all", minimum_identity=0.0)
    assert pp.info["ID-CodeFormer"] == "4 of 4 faces restored"
    assert (pp.info["ID-CodeFormer fidelity"], pp.info["ID-CodeFormer visibility"]) == ("0.6", "0.9")
    assert len(pp.info["ID-CodeFormer identity"].split()) == 4
    assert pp.image is not image and np.any(np.array(pp.image) != np.array(image))


def test_only_the_face_most_like_the_photo(door: Door, image: Image.Image) -> None:
    door.settings()
    wide = image.resize((image.width * 2, image.height * 2))
    photo = wide.crop((wide.width // 4, 0, wide.width // 2, wide.height))  # the second person
    pp = run(door, image, enable=True, faces="reference", reference=photo)
    assert pp.info["ID-CodeFormer"] == "1 of 4 faces restored"
    before, after = map(float, pp.info["ID-CodeFormer like the reference"].split(">"))
    assert before > 0.8 and after > 0.5  # the same photograph, so the right person
    change = np.flatnonzero(np.abs(np.array(pp.image).astype(int) - np.array(image)).max(axis=(0, 2)) > 10)
    assert change.min() > image.width // 4 - 50 and change.max() < image.width // 2 + 50


def test_guidance_towards_the_photo_stands_in_the_infotext(door: Door, image: Image.Image) -> None:
    door.settings()
    wide = image.resize((image.width * 2, image.height * 2))
    photo = wide.crop((wide.width // 4, 0, wide.width // 2, wide.height))
    given = {"enable": True, "faces": "reference", "reference": photo, "fidelity": 0.3}
    plain = run(door, image, **given).info
    info = run(door, image, **given, guidance_steps=3.0, guidance_strength=0.9).info  # sliders give floats
    assert (info["ID-CodeFormer guidance steps"], info["ID-CodeFormer guidance strength"]) == ("3", "0.9")
    assert info["ID-CodeFormer guidance"].startswith("guided by mobileface_v2, ")
    likeness = "ID-CodeFormer like the reference"
    assert float(info[likeness].split(">")[1]) > float(plain[likeness].split(">")[1])
    assert not [key for key in plain if "guidance" in key]


def test_alpha_and_texts_stay(door: Door, portrait: np.ndarray) -> None:
    door.settings()
    picture = Image.fromarray(portrait).convert("RGBA")
    alpha = np.tile(np.arange(portrait.shape[1], dtype=np.uint8), (portrait.shape[0], 1))
    picture.putalpha(Image.fromarray(alpha))
    picture.info["parameters"] = "a cat"
    pp = run(door, picture, enable=True)
    assert pp.info["ID-CodeFormer"] == "1 of 1 faces restored"
    assert np.array_equal(np.array(pp.image)[..., 3], alpha) and pp.image.info["parameters"] == "a cat"


def test_no_face_is_said_and_changes_nothing(door: Door) -> None:
    door.settings()
    grey = Image.new("RGB", (200, 160), (90, 100, 110))
    pp = run(door, grey, enable=True)
    assert pp.info["ID-CodeFormer"] == "no face found"
    assert np.array_equal(np.array(pp.image), np.array(grey))


def test_a_face_below_the_minimum_identity_is_left(door: Door, portrait: np.ndarray) -> None:
    door.settings()
    pp = run(door, Image.fromarray(portrait), enable=True, fidelity=0.0, minimum_identity=1.0)
    assert pp.info["ID-CodeFormer"] == "0 of 1 faces restored"
    assert "is below 1" in pp.info["ID-CodeFormer skipped"]
    assert np.array_equal(np.array(pp.image), portrait)


def test_a_picture_of_a_batch_that_cannot_be_read_does_not_stop_it(door: Door) -> None:
    door.settings()
    deep = Image.fromarray(np.zeros((20, 20), np.float32), "F")
    pp = run(door, deep, enable=True)
    assert pp.image is deep and pp.info["ID-CodeFormer"].startswith("not restored: The picture has the pixel type F")


def test_what_would_stop_every_picture_is_raised(door: Door, image: Image.Image) -> None:
    core = door.sub("core")
    door.settings(model="gone.pth")
    with pytest.raises(core.MissingWeights, match="gone.pth"):
        run(door, image, enable=True)
    door.settings(model="automatic")
    with pytest.raises(core.BadOption, match="Reference photo 1 shows no face"):
        run(door, image, enable=True, reference=Image.new("RGB", (64, 64)))
    with pytest.raises(core.BadOption, match="give a reference photo"):
        run(door, image, enable=True, faces="reference")


def test_interrupt_is_said(door: Door, image: Image.Image) -> None:
    door.settings()
    door.shared.state.interrupted = True
    pp = run(door, image, enable=True)
    assert pp.image is image and pp.info["ID-CodeFormer"] == "interrupted"


def test_sdnext_sends_script_arguments_as_json(make_door: Callable[[str], Door], image: Image.Image) -> None:
    """A photo comes as base64 there, and a video as a picture of None."""
    door = make_door("sdnext")
    door.settings()
    photo = base64.b64encode(PORTRAIT.read_bytes()).decode()
    pp = run(door, image, enable=True, faces="largest", reference=photo)
    assert pp.info["ID-CodeFormer"] == "1 of 4 faces restored" and "ID-CodeFormer like the reference" in pp.info
    assert run(door, None, enable=True).info == {}


@pytest.mark.parametrize("kind", HOSTS)
def test_controls_have_the_names_of_the_parameters(make_door: Callable[[str], Door], kind: str) -> None:
    import inspect

    door = make_door(kind)
    controls = door.entry.ui()
    assert list(controls) == list(inspect.signature(door.entry.process).parameters)[1:]
    import gradio
    from modules.ui_components import InputAccordion

    # SD.Next frames each entry itself: a plain check box there, the accordion that is one elsewhere.
    assert type(controls["enable"]) is (gradio.Checkbox if kind == "sdnext" else InputAccordion)
    assert controls["enable"].settings["value"] is False


def test_settings_are_read_back_from_an_infotext(door: Door, image: Image.Image) -> None:
    door.settings()
    extras = door.sub("extras")
    pp = run(door, image, enable=True, fidelity=0.35, visibility=0.5, faces="largest", minimum_identity=0.2)
    text = ", ".join(f"{key}: {value}" for key, value in pp.info.items())
    assert extras.values_of(text, 0.8, 1.0, "all", 0.0) == [0.35, 0.5, "largest", 0.2]
    plain = "ID-CodeFormer: 1 of 1 faces restored, ID-CodeFormer fidelity: 1"
    assert extras.values_of(plain, 0.3, 0.3, "centre", 0.3) == [1.0, 1.0, "all", 0.0]  # defaults are not written
    assert extras.values_of("Steps: 20, Sampler: Euler", 0.3, 0.4, "centre", 0.5) == [0.3, 0.4, "centre", 0.5]
    guided = "ID-CodeFormer fidelity: 0.5, ID-CodeFormer guidance steps: 15, ID-CodeFormer guidance strength: 0.5"
    assert extras.values_of(guided, 0, 0, "all", 0, 0, 1.0) == [0.5, 1.0, "all", 0.0, 15.0, 0.5]
    assert extras.values_of(plain, 0, 0, "all", 0, 40, 0.1)[4:] == [0.0, 1.0]
    assert extras.values_of(None, 0.3, 0.4, "centre", 0.5) == [0.3, 0.4, "centre", 0.5]


def test_modes_reach_the_core_and_come_back_from_the_infotext(
    door: Door, portrait: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, seen = door.sub("core"), []
    real = core.restore
    monkeypatch.setattr(core, "restore", lambda p, i, wishes, *rest: seen.append(wishes) or real(p, i, wishes, *rest))
    door.settings()
    large = Image.fromarray(portrait).resize((900, 900))  # a face of 450 px, above the 128 of the network
    info = run(door, large, enable=True, large_faces="skip", grain="on", colour="adain").info
    options = seen[0].restore_options()
    assert (options.large_faces, options.grain, options.colour) == ("skip", "on", "adain")
    assert info["ID-CodeFormer"] == "0 of 1 faces restored"
    assert f"(512 px) into {door.models / 'Codeformer'}, or choose" in info["ID-CodeFormer skipped"]
    text = ", ".join(f"{key}: {value}" for key, value in info.items())
    now = (0.8, 1.0, "all", 0.0, 0, 1.0, "auto", "auto", "low_band")
    assert door.sub("extras").values_of(text, *now)[6:] == ["skip", "on", "adain"]
    plain = "ID-CodeFormer: 1 of 1 faces restored, ID-CodeFormer fidelity: 1"
    assert door.sub("extras").values_of(plain, *now[:6], "keep", "on", "off")[6:] == ["auto", "auto", "low_band"]
    wrong = f"{plain}, ID-CodeFormer grain: sand"
    assert door.sub("extras").values_of(wrong, *now[:6], "keep", "off", "off")[7] == "off"


def test_the_read_button_is_connected(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    import gradio

    pressed = []
    monkeypatch.setattr(gradio.Button, "click", lambda self, **wiring: pressed.append(wiring))
    controls = door.entry.ui()
    (wiring,) = pressed
    names = ("fidelity", "visibility", "faces", "minimum_identity", "guidance_steps", "guidance_strength",
             "large_faces", "grain", "colour")  # fmt: skip
    assert wiring["outputs"] == [controls[name] for name in names]
    assert wiring["fn"]("ID-CodeFormer fidelity: 0.1", 1, 1, "all", 0)[0] == 0.1


def test_the_person_is_looked_at_once_for_a_batch(
    door: Door, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, seen = door.sub("core"), []
    real = core.embed_person
    monkeypatch.setattr(core, "embed_person", lambda photos, *rest: seen.append(1) or real(photos, *rest))
    monkeypatch.setattr(core, "restore", lambda *rest: (_ for _ in ()).throw(core.BadImage("enough")))
    door.settings()
    models = door.sub("models").Models()
    settings, pictures = door.sub("settings"), door.sub("pictures")
    photos = pictures.photos_of(Image.open(PORTRAIT))
    first = models.person(settings.choice(), photos)
    assert models.person(settings.choice(), pictures.photos_of(Image.open(PORTRAIT))) is first and len(seen) == 1
    assert models.person(settings.choice(), [photos[0].flip(2)]) is not first
