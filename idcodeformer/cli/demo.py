"""The demo: photographs are degraded with a fixed seed, restored, guided by the sitters' other photographs, and scored
against the truth."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..batch.outcome import marked
from ..detection.selection import select
from ..files.pixels import to_levels
from ..files.reading import Picture, read
from ..files.writing import write, write_bytes
from ..geometry.alignment import align
from ..geometry.resizing import resize
from ..geometry.warping import warp
from ..guidance.options import GuidanceOptions
from ..identity.people import People
from ..identity.recogniser import IdentityRecogniser
from ..pipeline import FacePipeline
from ..types import DetectOptions, Detector, Restoration, RestoreOptions

PHOTOS = ("portrait", "group")
ASSETS = Path(__file__).parent.parent / "assets"
GALLERY = ASSETS / "people"  # another photograph of each sitter
# What the mini models were evaluated on as "x4": blur, a quarter of the pixels, noise, JPEG, back to full size.
_SIGMA, _SHRINK, _NOISE, _QUALITY = 1.6, 4, 4 / 255, 75
_SHEET_ROW, _FACE_ROW, _PICTURE_ROW = 320, 200, 144  # px
_PICTURE_QUALITY = 88


@dataclass(frozen=True, eq=False)
class Version:
    """One way in which the faces of a photograph were restored."""

    name: str
    result: Restoration
    likeness: tuple[float, ...]  # of each crop to the clean face, by the judge


@dataclass(frozen=True, eq=False)
class Shown:
    """One photograph of the demo with all that was done to it."""

    name: str
    clean: Tensor  # [3,H,W]
    degraded: Tensor  # [3,H,W]
    truth: Tensor  # [N,3,S,S], the clean faces
    likeness: tuple[float, ...]  # of the degraded faces to the clean ones
    versions: tuple[Version, ...]  # CodeFormer, ID-CodeFormer, guided


@dataclass(frozen=True, eq=False)
class Networks:
    """What the demo runs: the control, the model, and who guides and judges (who may be the same)."""

    control: FacePipeline
    model: FacePipeline
    judge: IdentityRecogniser
    galleries: tuple[People, ...]


def photo(name: str) -> Tensor:
    """A clean photograph [3,H,W] of the package's assets ("portrait" or "group"; CC BY 4.0, credit in assets)."""
    return read(ASSETS / f"{name}.jpg").frames[0]


def degrade(image: Tensor, seed: int) -> Tensor:
    """[3,H,W] in [0,1] -> the same size, worse: blur, downsample, noise, JPEG, resize (the order of GFPGAN's eq. 1)."""
    import cv2
    import numpy as np

    height, width = image.shape[-2:]
    rng = np.random.Generator(np.random.Philox(seed))
    levels = cv2.GaussianBlur(to_levels(image), (0, 0), _SIGMA)
    small = cv2.resize(levels, (max(1, width // _SHRINK), max(1, height // _SHRINK)), interpolation=cv2.INTER_LINEAR)
    noisy = small / 255 + _NOISE * rng.standard_normal(small.shape)
    noisy = np.rint(noisy.clip(0, 1) * 255).astype(np.uint8)[:, :, ::-1]
    _, data = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    back = cv2.resize(cv2.imdecode(data, cv2.IMREAD_COLOR), (width, height), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(back[:, :, ::-1].copy()).permute(2, 0, 1).float() / 255


def fitted(image: Tensor, detector: Detector, side: int) -> Tensor:
    """``image`` shrunk until its faces are about as large as the network's crops: more it could not show."""
    crops = align([image], detector([image]), side)
    if len(crops) == 0:
        return image
    # A similarity's scale is the root of its determinant; crop px per image px.
    scale = float(torch.linalg.det(crops.matrices[:, :, :2]).abs().sqrt().mean())
    if scale >= 1:
        return image
    size = [max(1, round(length * scale)) for length in image.shape[-2:]]
    return resize(image[None], size, "bicubic")[0].clamp(0, 1)


def show(name: str, networks: Networks, w: float, guidance: GuidanceOptions, seed: int) -> Shown:
    """Degrade one photograph, restore it in every way and score each face against the clean one."""
    model = networks.model
    clean = fitted(photo(name), model.detector, model.restorer.size)
    degraded = degrade(clean, seed)
    options = RestoreOptions(w=w, large_faces="restore")
    found = model.detector([degraded], DetectOptions())[0]
    faces = [select(found, DetectOptions(), tuple(degraded.shape[-2:])).faces]
    plain = model([degraded], options, faces=faces)
    control = networks.control([degraded], options, faces=faces)
    guided = model([degraded], options, faces=faces, guidance=guidance, people=networks.galleries)
    crops = plain.crops_in
    truth = warp([clean], crops.matrices, crops.image_index, crops.size)
    person = networks.judge(truth).vectors

    def likeness(pixels: Tensor) -> tuple[float, ...]:
        return tuple((networks.judge(pixels).vectors * person).sum(1).tolist())

    named = (("CodeFormer", control), ("ID-CodeFormer", plain), ("guided", guided))
    versions = tuple(Version(title, result, likeness(result.crops_out.pixels)) for title, result in named)
    return Shown(name, clean, degraded, truth, likeness(crops.pixels), versions)


def table(shown: Sequence[Shown]) -> str:
    """One line per face: image, face, detection score, who it is, and ID-Sim to the clean photograph."""
    titles = ["input", *(version.name for version in shown[0].versions)]
    widths = [max(10, len(title) + 2) for title in titles]
    columns = "".join(f"{title:>{width}}" for title, width in zip(titles, widths))
    lines = [f"{'image':<10}{'face':>5}{'detection':>11}{'person':>8}{columns}"]
    rows = [row for one in shown for row in zip(one.likeness, *(version.likeness for version in one.versions))]
    numbers = iter(rows)
    for one in shown:
        for line in one.versions[-1].result.report:
            scores = "".join(f"{score:>{width}.3f}" for score, width in zip(next(numbers), widths))
            person = line.person or "-"
            lines.append(f"{one.name:<10}{line.face:>5}{line.score:>11.3f}{person:>8}{scores}")
    if rows:
        means = "".join(f"{sum(column) / len(rows):>{width}.3f}" for column, width in zip(zip(*rows), widths))
        lines.append(f"{'mean':<34}{means}")
    return "\n".join(lines)


def face_rows(shown: Sequence[Shown]) -> list[list[tuple[Tensor, str]]]:
    """A row for each face: input, every version, truth, with the likeness below."""
    rows = []
    for one in shown:
        for n in range(len(one.truth)):
            cells = [(one.versions[1].result.crops_in.pixels[n], f"input {one.likeness[n]:.2f}")]
            cells += [(v.result.crops_out.pixels[n], f"{v.name} {v.likeness[n]:.2f}") for v in one.versions]
            rows.append([*cells, (one.truth[n], "truth")])
    return rows


def sheet(shown: Sequence[Shown]) -> Tensor:
    """All photographs and faces: degraded, restored, guided, truth."""
    from ..files.drawing import grid, stacked

    parts = []
    for one in shown:
        plain, guided = one.versions[1:]
        row = [(one.degraded, "degraded"), (plain.result.images[0], "restored"), (guided.result.images[0], "guided"),
               (one.clean, "truth")]  # fmt: skip
        wide = one.clean.shape[-1] > 2 * one.clean.shape[-2]
        parts.append(grid([[cell] for cell in row] if wide else [row], _SHEET_ROW))
    if rows := face_rows(shown):
        parts.append(grid(rows, _FACE_ROW))
    return stacked(parts)


def picture(shown: Sequence[Shown]) -> bytes:
    """The faces alone as a JPEG, for the README."""
    import io

    from PIL import Image

    from ..files.drawing import grid

    buffer = io.BytesIO()
    pixels = to_levels(grid(face_rows(shown), _PICTURE_ROW))
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_PICTURE_QUALITY, optimize=True)
    return buffer.getvalue()


def load_networks(args: argparse.Namespace) -> Networks:
    """Everything that the arguments name. Raises what the loaders raise."""
    from ..batch.models import second_recogniser
    from ..detection import load_detector
    from ..identity.people import load_people
    from ..identity.recogniser import load_recogniser
    from ..restoration.codeformer import load_restorer

    detector = load_detector(device=args.device)
    guide = load_recogniser(args.recogniser, args.device)
    judge = load_recogniser(args.judge, args.device) if args.judge else second_recogniser(guide, args.device)
    galleries = [load_people(GALLERY, detector, one) for one in (guide, judge) if one is not None]
    model = FacePipeline(load_restorer(args.model, args.device), detector, judge or guide, guide=guide)
    control = FacePipeline(load_restorer(args.control, args.device), detector)
    return Networks(control, model, judge or guide, tuple(galleries))


def run_demo(args: argparse.Namespace) -> int:
    """The ``demo`` command; 1 where no face was restored."""
    guidance = GuidanceOptions(args.guide)
    networks = load_networks(args)
    restorer, guide, judge = networks.model.restorer, networks.model.guide, networks.judge
    shown = [show(name, networks, args.w, guidance, args.seed) for name in PHOTOS]
    out = Path(args.output)
    for one in shown:
        write(out / f"{one.name}_degraded.png", Picture(one.degraded[None]), overwrite=True)
        for version, ending in zip(one.versions[1:], ("restored", "guided")):
            made = marked(Picture(version.result.images[0][None]), version.result.report, args.model)
            write(out / f"{one.name}_{ending}.png", made, overwrite=True)
    path = write(out / "sheet.png", Picture(sheet(shown)[None]), overwrite=True)
    if args.picture:
        write_bytes(args.picture, picture(shown), overwrite=True)
    print(f"Restored with {args.model} ({restorer.size} px faces, on {restorer.device}), w {args.w:g}; CodeFormer is "
          f"{args.control}.")  # fmt: skip
    print(f"Guided by {guide.name}, by another photograph of each sitter, in at most {args.guide} steps.")
    print(f"ID-Sim is the cosine similarity of {judge.name} to the clean photograph"
          + ("; it guided too, so its score of the guided faces flatters.\n" if judge is guide else ".\n"))  # fmt: skip
    print(table(shown))
    print(f"\nInput, CodeFormer, ID-CodeFormer, guided and truth: {path}")
    return 0 if any(len(one.truth) for one in shown) else 1
