"""Make workflows/*.jpg, the pictures of the template browser: each shows what its workflow does to the sample pictures.

    python -m tools.workflow_previews [NAME ...]

Settings come from workflows/api, pictures from web/samples. The text-to-image example, whose picture depends on a
checkpoint, is shown on the group. Needs PyAV for the clip. Run it again whenever a built-in model changes.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from idcodeformer import (
    DetectOptions,
    FacePipeline,
    RestoreOptions,
    load_detector,
    load_parser,
    load_recogniser,
    load_restorer,
)  # fmt: skip
from idcodeformer.guidance.options import GuidanceOptions
from idcodeformer.identity.people import People, person_of

ROOT = Path(__file__).resolve().parent.parent
SIDE = 384  # px, square: the template browser crops anything else
GREEN, RED, DARK, GREY = (66, 190, 101), (232, 75, 66), (24, 25, 28), (92, 95, 104)


def node(workflow: str, kind: str, number: int = 0) -> dict[str, Any]:
    """Inputs of the ``number``-th node of a class in the workflow's API file."""
    nodes = json.loads((ROOT / "workflows" / "api" / f"{workflow}.api.json").read_text(encoding="utf-8")).values()
    return [n["inputs"] for n in nodes if n["class_type"] == f"IDCodeFormer{kind}"][number]


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float().div(255)


def to_image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy())


class Pack:
    """The pipeline with the built-in models, asked with the settings of a Restore Faces node."""

    def __init__(self) -> None:
        restorer = load_restorer("mini_id_codeformer")
        self.pipeline = FacePipeline(restorer, load_detector(), load_recogniser(), load_parser())

    def restore(self, frames: torch.Tensor, inputs: dict[str, Any]) -> Any:
        return self.pipeline(frames, RestoreOptions(w=inputs["fidelity"], min_identity=inputs["min_identity"]))


def sample(name: str) -> Image.Image:
    return Image.open(ROOT / "web" / "samples" / name).convert("RGB")


def view(image: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
    """``box`` (left, top, right, bottom in px) of ``image`` at ``size``."""
    return image.resize(size, Image.Resampling.BICUBIC, box)


def around(boxes: Sequence[Sequence[float]], shape: tuple[int, int], image: Image.Image) -> tuple[float, ...]:
    """The smallest box in ``image``, with the sides' ratio of ``shape``, that holds ``boxes`` and some hair around."""
    left, top = (min(b[i] for b in boxes) for i in (0, 1))
    right, bottom = (max(b[i] for b in boxes) for i in (2, 3))
    room = 0.35 * (bottom - top)
    height = max(bottom - top + 2 * room, (right - left + room) * shape[1] / shape[0])
    height = min(height, image.height, image.width * shape[1] / shape[0])
    width = height * shape[0] / shape[1]
    x = min(max((left + right - width) / 2, 0), image.width - width)
    y = min(max((top + bottom - height) / 2, 0), image.height - height)
    return x, y, x + width, y + height


def rows(before: Image.Image, after: Image.Image, faces: Sequence[Any]) -> Image.Image:
    """The same faces before, above, and after."""
    shape = (SIDE, SIDE // 2 - 1)
    box = around([f.box for f in faces], shape, before)
    sheet = Image.new("RGB", (SIDE, SIDE), DARK)
    sheet.paste(view(before, box, shape), (0, 0))
    sheet.paste(view(after, box, shape), (0, SIDE - shape[1]))
    return sheet


def bar(sheet: Image.Image, y: int, score: float, threshold: float) -> None:
    """A score as a bar from 0 to 1, green from the threshold on, which is marked."""
    draw, left, right = ImageDraw.Draw(sheet), 16, SIDE - 16
    at = [round(left + (right - left) * v) for v in (score, threshold)]
    draw.rectangle((left, y, right, y + 12), fill=GREY)
    draw.rectangle((left, y, at[0], y + 12), fill=GREEN if score >= threshold else RED)
    draw.rectangle((at[1] - 1, y - 5, at[1] + 1, y + 17), fill="white")


def restore_a_photo(pack: Pack) -> Image.Image:
    photo = sample("idcodeformer_portrait.jpg")
    result = to_image(pack.restore(to_tensor(photo)[None], node("restore-a-photo", "RestoreFaces")).images[0])
    sheet = photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    half = result.resize((SIDE, SIDE), Image.Resampling.BICUBIC).crop((SIDE // 2, 0, SIDE, SIDE))
    sheet.paste(half, (SIDE // 2, 0))
    ImageDraw.Draw(sheet).rectangle((SIDE // 2 - 1, 0, SIDE // 2 + 1, SIDE), fill=GREEN)
    return sheet


def compare_fidelity(pack: Pack) -> Image.Image:
    photo, width = sample("idcodeformer_portrait.jpg"), SIDE // 3
    sheet = Image.new("RGB", (SIDE, SIDE), GREEN)
    for i in range(3):
        done = pack.restore(to_tensor(photo)[None], node("compare-fidelity", "RestoreFaces", i))
        box = around([done.report[0].box], (width, SIDE), photo)
        sheet.paste(view(to_image(done.images[0]), box, (width - 2, SIDE)), (i * width + 1, 0))
    return sheet


def fix_faces(pack: Pack, workflow: str, which: slice) -> Image.Image:
    group = sample("idcodeformer_group.jpg")
    done = pack.restore(to_tensor(group)[None], node(workflow, "RestoreFaces"))
    return rows(group, to_image(done.images[0]), sorted(done.report, key=lambda f: f.box[0])[which])


def choose_one_face(pack: Pack) -> Image.Image:
    group, reference = sample("idcodeformer_group.jpg"), sample("idcodeformer_group_reference.jpg")
    options = RestoreOptions(w=node("choose-one-face", "RestoreFaces")["fidelity"])
    alike = DetectOptions(order="reference", keep="indices", indices=(0,))
    done = pack.pipeline(to_tensor(group)[None], options, alike, references=[to_tensor(reference)])
    row = sorted(done.report, key=lambda f: f.box[0])
    place = next(i for i, f in enumerate(row) if f.status == "restored")
    sheet = rows(group, to_image(done.images[0]), row[max(0, place - 1) : place + 2])
    ImageDraw.Draw(sheet).rectangle((0, 0, 95, 95), fill=GREEN)
    sheet.paste(reference.resize((90, 90), Image.Resampling.LANCZOS), (3, 3))
    return sheet


def with_an_inset(sheet: Image.Image, photo: Image.Image) -> Image.Image:
    """``sheet`` with a framed photo of the person in its corner."""
    ImageDraw.Draw(sheet).rectangle((0, 0, 95, 95), fill=GREEN)
    sheet.paste(photo.resize((90, 90), Image.Resampling.LANCZOS), (3, 3))
    return sheet


def with_a_photo_of_the_person(pack: Pack) -> Image.Image:
    photo, reference = sample("idcodeformer_portrait.jpg"), sample("idcodeformer_portrait_reference.jpg")
    inputs = node("restore-with-a-photo-of-the-person", "RestoreFaces")
    done = pack.pipeline(
        to_tensor(photo)[None], RestoreOptions(w=inputs["fidelity"]), references=[to_tensor(reference)],
        guidance=GuidanceOptions(inputs["guidance_steps"], inputs["guidance_strength"]),
    )  # fmt: skip
    sheet = photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    half = to_image(done.images[0]).resize((SIDE, SIDE), Image.Resampling.BICUBIC).crop((SIDE // 2, 0, SIDE, SIDE))
    sheet.paste(half, (SIDE // 2, 0))
    ImageDraw.Draw(sheet).rectangle((SIDE // 2 - 1, 0, SIDE // 2 + 1, SIDE), fill=GREEN)
    return with_an_inset(sheet, reference)


def family(pack: Pack) -> Image.Image:
    """Two of the group, of whom one is known by another photo."""
    group, reference = sample("idcodeformer_group.jpg"), sample("idcodeformer_group_reference.jpg")
    inputs, recogniser = node("family-picture-with-a-gallery", "RestoreFaces"), pack.pipeline.recogniser
    person, _ = person_of("sitter 025", [to_tensor(reference)], pack.pipeline.detector, recogniser, ["photo"])
    people = People((person,), recogniser.name, recogniser.digest)
    guidance = GuidanceOptions(inputs["guidance_steps"], inputs["guidance_strength"])
    options = RestoreOptions(w=inputs["fidelity"])
    done = pack.pipeline(to_tensor(group)[None], options, people=people, guidance=guidance)
    row = sorted(done.report, key=lambda f: f.box[0])
    place = next(i for i, f in enumerate(row) if f.person)
    return with_an_inset(rows(group, to_image(done.images[0]), row[place - 1 : place + 1]), reference)


def identity_gate(pack: Pack) -> Image.Image:
    """A refused face above, an accepted one below: before and after the gate, and the score against its threshold."""
    group, inputs = sample("idcodeformer_group.jpg"), node("identity-gate", "RestoreFaces")
    done = pack.restore(to_tensor(group)[None], inputs)
    result, (low, *_, high) = to_image(done.images[0]), sorted(done.report, key=lambda f: f.id_sim_input)
    if not low.id_sim_input < inputs["min_identity"] <= high.id_sim_input:
        scores = ", ".join(f"{f.id_sim_input:.3f}" for f in done.report)
        raise SystemExit(f"identity-gate: min_identity {inputs['min_identity']} does not part {scores}; set it anew.")
    sheet, shape = Image.new("RGB", (SIDE, SIDE), DARK), (SIDE // 2 - 1, SIDE // 2 - 1)
    for y, face in ((0, low), (SIDE // 2 + 1, high)):
        box = around([face.box], shape, group)
        sheet.paste(view(group, box, shape), (0, y))
        sheet.paste(view(result, box, shape), (SIDE // 2 + 1, y))
        bar(sheet, y + 164, face.id_sim_input, inputs["min_identity"])
    return sheet


def video_frames(pack: Pack) -> Image.Image:
    import av

    with av.open(str(ROOT / "web" / "samples" / "idcodeformer_clip.mp4")) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    done = pack.restore(torch.stack([to_tensor(f) for f in frames]), node("video-frames", "RestoreFaces"))
    sheet, side = Image.new("RGB", (SIDE, SIDE), DARK), 124
    for column, i in enumerate((0, len(frames) // 2, len(frames) - 1)):
        for y, frame in ((62, frames[i]), (198, to_image(done.images[i]))):
            sheet.paste(frame.resize((side, side), Image.Resampling.LANCZOS), (column * 130, y))
    for x in range(6, SIDE, 32):
        for y in (30, 338):
            ImageDraw.Draw(sheet).rounded_rectangle((x, y, x + 18, y + 14), 4, fill=GREY)
    return sheet


def restore_video(pack: Pack) -> Image.Image:
    """Two frames of the sample clip, each with its right half restored."""
    from idcodeformer.video.pipeline import VideoPipeline
    from idcodeformer.video.reading import Clip

    source, video = Clip(ROOT / "web" / "samples" / "idcodeformer_clip.mp4"), VideoPipeline(pack.pipeline)
    tracks = video.plan(video.analyse(source), source)
    frames = list(video.restore(source, tracks))
    sheet, side = Image.new("RGB", (SIDE, SIDE), DARK), SIDE // 2 - 1
    for place, frame in enumerate((frames[0], frames[-1])):
        before, after = (Image.fromarray(part).resize((side, side)) for part in (frame.source.pixels, frame.pixels))
        y = place * (side + 2)
        sheet.paste(before, (0, y))
        sheet.paste(after, (side + 2, y))
    return sheet


MADE = {
    "restore-a-photo": restore_a_photo,
    "compare-fidelity": compare_fidelity,
    "fix-faces-of-an-image": lambda pack: fix_faces(pack, "fix-faces-of-an-image", slice(2, 4)),
    "fix-faces-text-to-image": lambda pack: fix_faces(pack, "fix-faces-text-to-image", slice(0, 2)),
    "choose-one-face": choose_one_face,
    "identity-gate": identity_gate,
    "video-frames": video_frames,
    "restore-video": restore_video,
    "restore-with-a-photo-of-the-person": with_a_photo_of_the_person,
    "family-picture-with-a-gallery": family,
}


def main(names: Sequence[str]) -> None:
    pack = Pack()
    for name in names or MADE:
        MADE[name](pack).save(ROOT / "workflows" / f"{name}.jpg", quality=88)
        print(f"workflows/{name}.jpg")


if __name__ == "__main__":
    main(sys.argv[1:])
