"""Make idcodeformer/assets/*.jpg from photographs of the Face Research Lab London Set (CC BY 4.0).

    python tools/demo_photos.py PORTRAIT.jpg OUT_FOLDER SITTER.jpg SITTER.jpg ... --people 001/neutral.jpg ...

PORTRAIT is an original of the set (1350 x 1350); it is scaled to 600 px. The sitters are squares around one face each;
they are set side by side, with the seams faded, into one picture of several people. The files behind --people are the
sitters' other photographs, aligned, in folders named like the sitters; they are scaled to 256 px.
"""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

_SIDE, _OVERLAP, _REFERENCE = 320, 40, 256


def group(sitters: list[Path]) -> Image.Image:
    """The backdrops are nearly of one gray, so a cross-fade over 40 px hides the seams."""
    step = _SIDE - _OVERLAP
    canvas = np.zeros((_SIDE, step * len(sitters) + _OVERLAP, 3), np.float32)
    for number, path in enumerate(sitters):
        photo = Image.open(path).convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        place = canvas[:, number * step : number * step + _SIDE]
        alpha = np.clip(np.arange(_SIDE) / _OVERLAP, 0, 1)[None, :, None] if number else np.float32(1)
        place[:] = alpha * np.asarray(photo, np.float32) + (1 - alpha) * place
    return Image.fromarray(canvas.round().astype(np.uint8))


def people(files: list[Path], out: Path) -> None:
    """The gallery: a folder for each sitter."""
    for path in files:
        target = out / "people" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        photo = Image.open(path).convert("RGB").resize((_REFERENCE, _REFERENCE), Image.Resampling.LANCZOS)
        photo.save(target, quality=90, optimize=True)


def main(portrait: str, folder: str, *files: str) -> None:
    out, cut = Path(folder), files.index("--people") if "--people" in files else len(files)
    sitters = files[:cut]
    people([Path(file) for file in files[cut + 1 :]], out)
    photo = Image.open(portrait).convert("RGB").resize((600, 600), Image.Resampling.LANCZOS)
    photo.save(out / "portrait.jpg", quality=92, optimize=True)
    group([Path(sitter) for sitter in sitters]).save(out / "group.jpg", quality=92, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
