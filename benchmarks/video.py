"""How steady restored clips are: warping error, landmark jitter, identity jitter, and what steadiness costs.

    python -m benchmarks.video --still face.jpg other.jpg --clip talking.mp4 --frames 24

From a still a clip with a slow known motion is made; a clip is taken as it is. Each is degraded (reduced four times,
noise, H.264), and restored frame by frame by FacePipeline and by VideoPipeline. Numbers are of the truth, the degraded
input, both results, over the square around the face:

- warping error: mean square difference of a frame and the next one moved back along the *truth's* flow (OpenCV DIS),
  where that is not occluded (forward and backward flow agree; the masks of Lai et al. 2018, evaluate_WarpError.py);
- flicker: the same of the difference to the truth, so that neither texture nor the flow's own error counts;
- landmark jitter: mean length of the second difference of the detector's five points, px;
- identity jitter: mean of 1 - cosine of neighbouring frames' embeddings, by --judge;
- PSNR of the square and st-LPIPS, against the truth.
"""
from __future__ import annotations

import argparse
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from idcodeformer import FacePipeline, load_detector, load_recogniser, load_restorer
from idcodeformer.files.reading import read
from idcodeformer.types import DetectOptions, RestoreOptions
from idcodeformer.video.pipeline import VideoPipeline
from idcodeformer.video.reading import Clip, to_pixels, to_tensor
from idcodeformer.video.sequence import MemoryClip

from .common import arguments, finish, set_threads, table

_RATE = Fraction(25)
HEADER = ("clip", "what", "warp 1e-4", "flicker 1e-4", "landmarks px", "identity", "PSNR", "st-LPIPS")


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--still", nargs="*", default=[], metavar="PHOTO", help="photos that are made to move")
    parser.add_argument("--clip", nargs="*", default=[], metavar="FILE", help="clips in good quality")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--side", type=int, default=192, help="px of the clips made from stills")
    parser.add_argument("--model", default="mini_id_codeformer")
    parser.add_argument("--judge", default="mini_recogniser")
    parser.add_argument("--lpips", metavar="FILE", help="weights of st-LPIPS")
    parser.add_argument("-w", type=float, default=0.8)
    parser.add_argument("--steadiness", type=float, nargs="*", default=[1.0])
    options = parser.parse_args()
    set_threads(options.threads)
    pipeline = FacePipeline(load_restorer(options.model), load_detector(), load_recogniser())
    judge = load_recogniser(options.judge)
    rows: list[list[Any]] = []
    for name in [*options.still, *options.clip]:
        truth = moving(name, options.frames, options.side) if name in options.still else taken(name, options.frames)
        rows += one(Path(name).stem, truth, pipeline, judge, options)
        table("Steadiness", HEADER, rows)
    finish("video", {"rows": rows}, options.json)


def one(name: str, truth: list[Tensor], pipeline: FacePipeline, judge: Any, options: argparse.Namespace) -> list[list]:
    """The rows of one clip."""
    worse = degraded(truth)
    ask = RestoreOptions(w=options.w)
    results = {"truth": truth, "input": worse}
    results["frame by frame"] = [pipeline([frame], ask, DetectOptions(keep="largest")).images[0] for frame in worse]
    clip = MemoryClip(lambda n: to_pixels(worse[n], False), len(worse), tuple(worse[0].shape[1:]), _RATE)
    video = VideoPipeline(pipeline)
    analysis = video.analyse(clip)
    for steadiness in options.steadiness:
        tracks = video.plan(analysis, clip, DetectOptions(keep="largest"), steadiness=steadiness)
        frames = video.restore(clip, tracks, ask, steadiness)
        results[f"video {steadiness:g}"] = [to_tensor(frame.pixels) for frame in frames]
    return measured(name, results, pipeline.detector, judge, distance(options.lpips))


def measured(name: str, results: dict[str, list[Tensor]], detector: Any, judge: Any, lpips: Any) -> list[list]:
    truth = results["truth"]
    largest = [max(faces, key=lambda face: face.area) for faces in detector(truth, DetectOptions())]
    box = torch.stack([face.box for face in largest])
    x0, y0 = (int(v) for v in box[:, :2].amin(0).clamp(min=0))
    x1, y1 = (int(v) + 1 for v in box[:, 2:].amax(0))
    square = (slice(None), slice(y0, y1), slice(x0, x1))
    flows = [flow_and_mask(a[square], b[square]) for a, b in zip(truth, truth[1:])]
    rows = []
    for what, frames in results.items():
        parts = [frame[square] for frame in frames]
        warp = np.mean([warping(a, b, *flow) for a, b, flow in zip(parts, parts[1:], flows)])
        wrong = [part - frame[square] for part, frame in zip(parts, truth)]
        flicker = np.mean([warping(a, b, *flow) for a, b, flow in zip(wrong, wrong[1:], flows)])
        faces = largest if what == "truth" else [
            max(found, key=lambda face: face.area) if found else None for found in detector(frames, DetectOptions())
        ]  # fmt: skip
        points = torch.stack([a.landmarks if a is not None else b.landmarks for a, b in zip(faces, largest)])
        jitter = (points[2:] - 2 * points[1:-1] + points[:-2]).norm(dim=2).mean()
        vectors = judge.embed_faces(frames, [(face,) for face in largest]).vectors
        identity = 1 - (vectors[1:] * vectors[:-1]).sum(1)
        error = np.mean([float((a - b[square]).square().mean()) for a, b in zip(parts, truth)])
        psnr = float("inf") if error == 0 else -10 * np.log10(error)
        shown = [float("nan")] if lpips is None else [lpips(a, b[square]) for a, b in zip(parts, truth)]
        rows.append([name, what, f"{warp * 1e4:.3f}", f"{flicker * 1e4:.3f}", f"{jitter:.3f}", f"{identity.mean():.4f}",
                     f"{psnr:.2f}", f"{np.mean(shown):.4f}"])  # fmt: skip
    return rows


def distance(path: str | None) -> Any:
    """st-LPIPS (the file of its weights) of two pictures [3,H,W] at 128 px; None without a file."""
    if path is None:
        return None
    from training.stages.perceptual import load_perceptual

    network = load_perceptual(path).eval()

    def of(a: Tensor, b: Tensor) -> float:
        pair = [F.interpolate(x[None], (128, 128), mode="bilinear", antialias=True) * 2 - 1 for x in (a, b)]
        with torch.inference_mode():
            return float(network(*pair).mean())

    return of


def moving(photo: str, frames: int, side: int) -> list[Tensor]:
    """[3,side,side] frames of a photo that sways, nods and comes nearer a little: no flow is needed to know how."""
    picture = to_pixels(read(photo).frames[0], False)
    out = []
    for number in range(frames):
        t = number / 25
        scale = side / picture.shape[1] * (0.72 + 0.03 * np.sin(1.3 * t))
        angle = 6 * np.sin(1.7 * t)
        matrix = cv2.getRotationMatrix2D((picture.shape[1] / 2, picture.shape[0] / 2), angle, scale)
        matrix[:, 2] += (np.array([side, side]) - np.array(picture.shape[1::-1])) / 2
        matrix[:, 2] += (7 * np.sin(2.3 * t), 4 * np.sin(1.9 * t + 1))
        wide = cv2.warpAffine(picture, matrix * 2, (2 * side, 2 * side), flags=cv2.INTER_AREA,
                              borderMode=cv2.BORDER_REFLECT)  # fmt: skip
        out.append(to_tensor(cv2.resize(wide, (side, side), interpolation=cv2.INTER_AREA)))
    return out


def taken(path: str, frames: int) -> list[Tensor]:
    """The first frames of a clip."""
    reader = Clip(Path(path)).frames()
    return [frame.tensor() for _, frame in zip(range(frames), reader)]


def degraded(truth: list[Tensor], factor: int = 2, noise: float = 0.02, crf: int = 30) -> list[Tensor]:
    """Reduced, with noise that changes from frame to frame, through H.264, and enlarged again."""
    import av

    draw = torch.Generator().manual_seed(0)
    size = tuple(truth[0].shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with av.open(str(path), "w") as out:
            stream = out.add_stream("libx264", rate=25, options={"crf": str(crf)})
            stream.height, stream.width = (side // factor // 2 * 2 for side in size)
            for frame in truth:
                small = F.interpolate(frame[None], (stream.height, stream.width), mode="area")[0]
                small = small + noise * torch.randn(small.shape, generator=draw)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(to_pixels(small, False), "rgb24")))
            out.mux(stream.encode())
        frames = [frame.tensor() for frame in Clip(path).frames()]
    return [F.interpolate(f[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1) for f in frames]


def flow_and_mask(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Flow [H,W,2] from a to b, and where it can be trusted."""
    engine = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [cv2.cvtColor(to_pixels(x, False), cv2.COLOR_RGB2GRAY) for x in (a, b)]
    there, back = engine.calc(gray[0], gray[1], None), engine.calc(gray[1], gray[0], None)
    moved = follow(back, there)
    agree = ((there + moved) ** 2).sum(2) <= 0.01 * ((there**2).sum(2) + (moved**2).sum(2)) + 0.5
    edges = sum(np.square(np.gradient(there[..., c], axis=axis)) for c in (0, 1) for axis in (0, 1))
    return there, agree & (edges <= 0.01 * (there**2).sum(2) + 0.002)


def follow(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    return cv2.remap(image, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def warping(a: Tensor, b: Tensor, flow: np.ndarray, mask: np.ndarray) -> float:
    moved = follow(np.ascontiguousarray(b.permute(1, 2, 0).numpy()), flow)
    error = np.square(a.permute(1, 2, 0).numpy() - moved).sum(2)
    return float((error * mask).sum() / max(1, mask.sum()))


if __name__ == "__main__":
    main()
