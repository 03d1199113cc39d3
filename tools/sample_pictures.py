"""Make web/samples: the pictures that the example workflows load, degraded as old or much-compressed photos are.

    python tools/sample_pictures.py ORIGINAL.jpg SAME_PERSON.jpg GROUP_MEMBER.jpg

ORIGINAL and SAME_PERSON: two photographs (1350 x 1350) of one sitter of the Face Research Lab London Set (CC BY 4.0);
GROUP_MEMBER: another photograph of somebody in idcodeformer/assets/group.jpg, which is read too. Needs PyAV.
"""
from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "web" / "samples"
FRAMES = 8


def degraded(photo: Image.Image, factor: float, noise: float, quality: int, seed: int = 0) -> Image.Image:
    """Blur, shrink by ``factor``, add ``noise`` (grey levels), compress, and enlarge to the old size."""
    size = photo.size
    small = photo.filter(ImageFilter.GaussianBlur(factor / 3))
    small = small.resize((round(size[0] / factor), round(size[1] / factor)), Image.Resampling.BICUBIC)
    pixels = np.asarray(small, np.float32) + np.random.default_rng(seed).normal(0, noise, (*small.size[::-1], 3))
    packed = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)).save(packed, "JPEG", quality=quality)
    return Image.open(packed).convert("RGB").resize(size, Image.Resampling.BICUBIC)


def clip(photo: Image.Image, path: Path) -> None:
    """A slow zoom over the photograph, 256 px, degraded frame by frame."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20"}
        for number in range(FRAMES):
            reach = 290 - 10 * number
            view = photo.resize((700, 700)).crop((340 - reach, 350 - reach, 340 + reach, 350 + reach))
            frame = degraded(view.resize((256, 256), Image.Resampling.LANCZOS), 3.2, 3, 60, number)
            for packet in stream.encode(av.VideoFrame.from_image(frame)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def main(original: str, same_person: str, group_member: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    photo = Image.open(original).convert("RGB")
    square = photo.crop((150, 100, 1250, 1200)).resize((384, 384), Image.Resampling.LANCZOS)
    degraded(square, 4.2, 3, 55).save(OUT / "idcodeformer_portrait.jpg", quality=90)
    other = Image.open(same_person).convert("RGB").crop((150, 100, 1250, 1200)).resize((384, 384))
    other.save(OUT / "idcodeformer_portrait_reference.jpg", quality=88)
    group = Image.open(ROOT / "idcodeformer" / "assets" / "group.jpg").convert("RGB").resize((928, 256))
    degraded(group, 3.4, 3, 55).save(OUT / "idcodeformer_group.jpg", quality=90)
    member = Image.open(group_member).convert("RGB").resize((320, 320), Image.Resampling.LANCZOS)
    member.save(OUT / "idcodeformer_group_reference.jpg", quality=88)
    clip(photo, OUT / "idcodeformer_clip.mp4")


if __name__ == "__main__":
    main(*sys.argv[1:])
