"""The demo: two photographs are degraded with a fixed seed, restored, shown beside the truth, and scored against it."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..files.reading import Picture, read
from ..files.writing import to_levels, write
from ..geometry.alignment import align
from ..geometry.warping import warp
from ..identity.recogniser import IdentityRecogniser
from ..pipeline import FacePipeline
from ..types import Detector, Restoration, RestoreOptions

PHOTOS = ("portrait", "group")
# What the mini models were evaluated on as "x4": blur, a quarter of the pixels, noise, JPEG, back to full size.
_SIGMA, _SHRINK, _NOISE, _QUALITY = 1.6, 4, 4 / 255, 75
_SHEET_ROW, _FACE_ROW = 320, 200  # px


@dataclass(frozen=True)
class Shown:
    """One photograph of the demo with all that was done to it."""

    name: str
    clean: Tensor  # [3,H,W]
    degraded: Tensor  # [3,H,W]
    result: Restoration
    truth: Tensor  # [N,3,S,S], the crops of ``clean`` at the places of the restored faces
    before: tuple[float, ...]  # ID-Sim of the degraded faces to the clean ones
    after: tuple[float, ...]  # ID-Sim of the restored faces to the clean ones


def photo(name: str) -> Tensor:
    """A clean photograph [3,H,W] of the package's assets ("portrait" or "group"; CC BY 4.0, credit in assets)."""
    return read(Path(__file__).parent.parent / "assets" / f"{name}.jpg").frames[0]


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
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def show(name: str, pipeline: FacePipeline, recogniser: IdentityRecogniser, w: float, seed: int) -> Shown:
    """Degrade one photograph, restore it and score each face against the clean one."""
    clean = fitted(photo(name), pipeline.detector, pipeline.restorer.size)
    degraded = degrade(clean, seed)
    result = pipeline([degraded], RestoreOptions(w=w, large_faces="restore"))
    crops = result.crops_in
    truth = warp([clean], crops.matrices, crops.image_index, crops.size)
    person = recogniser(truth).vectors
    before, after = (
        tuple((recogniser(pixels).vectors * person).sum(1).tolist())
        for pixels in (result.crops_in.pixels, result.crops_out.pixels)
    )
    return Shown(name, clean, degraded, result, truth, before, after)


def table(shown: Sequence[Shown]) -> str:
    """One line per face: image, face, detection score, w, ID-Sim to the clean photograph before and after."""
    lines = [f"{'image':<10}{'face':>5}{'detection':>11}{'w':>6}{'ID-Sim before':>15}{'ID-Sim after':>14}"]
    for one in shown:
        for line in one.result.report:
            start = f"{one.name:<10}{line.face:>5}{line.score:>11.3f}"
            if line.crop is None:
                lines.append(f"{start}  skipped: {line.reason}")
            else:
                lines.append(f"{start}{line.w:>6.2f}{one.before[line.crop]:>15.3f}{one.after[line.crop]:>14.3f}")
    before, after = ([score for one in shown for score in getattr(one, side)] for side in ("before", "after"))
    if before:
        lines.append(f"{'mean':<32}{sum(before) / len(before):>15.3f}{sum(after) / len(after):>14.3f}")
    return "\n".join(lines)


def sheet(shown: Sequence[Shown]) -> Tensor:
    """All photographs and faces: degraded, restored, truth."""
    from ..files.drawing import grid, stacked

    parts = []
    for one in shown:
        row = [(one.degraded, "degraded"), (one.result.images[0], "restored"), (one.clean, "truth")]
        wide = one.clean.shape[-1] > 2 * one.clean.shape[-2]
        parts.append(grid([[cell] for cell in row] if wide else [row], _SHEET_ROW))
        faces = [
            [
                (one.result.crops_in.pixels[n], f"ID-Sim {one.before[n]:.2f}"),
                (one.result.crops_out.pixels[n], f"{one.after[n]:.2f}"),
                (one.truth[n], "truth"),
            ]
            for n in range(len(one.truth))
        ]
        parts += [grid([sum(faces[n : n + 2], [])], _FACE_ROW) for n in range(0, len(faces), 2)]
    return stacked(parts)


def run_demo(args: argparse.Namespace) -> int:
    """The ``demo`` command; 1 where no face was restored."""
    from ..detection import load_detector
    from ..identity.recogniser import load_recogniser
    from ..restoration.codeformer import load_restorer

    restorer = load_restorer(args.model, args.device)
    recogniser = load_recogniser(args.recogniser, args.device)
    pipeline = FacePipeline(restorer, load_detector(device=args.device))
    shown = [show(name, pipeline, recogniser, args.w, args.seed) for name in PHOTOS]
    out = Path(args.output)
    for one in shown:
        write(out / f"{one.name}_degraded.png", Picture(one.degraded[None]), overwrite=True)
        write(out / f"{one.name}_restored.png", Picture(one.result.images[0][None]), overwrite=True)
    path = write(out / "sheet.png", Picture(sheet(shown)[None]), overwrite=True)
    print(f"Restored with {args.model} ({restorer.size} px faces, on {restorer.device}).")
    print(f"ID-Sim is the cosine similarity of {recogniser.name} to the clean photograph.\n")
    print(table(shown))
    print(f"\nBefore, after and truth: {path}")
    return 0 if any(len(one.truth) for one in shown) else 1
