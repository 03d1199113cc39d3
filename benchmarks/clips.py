"""What a clip costs beside the networks: frames a second, and peak memory at several lengths.

    python -m benchmarks.clips --seconds 6 60

Each length runs in a process of its own: a clip of one moving face is made, read, followed, aligned, damped, pasted and
written, with networks that do nothing in their places.
"""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from idcodeformer import FacePipeline
from idcodeformer.batch.settings import RestoreSettings
from idcodeformer.geometry.templates import ffhq_template
from idcodeformer.networks.codeformer import CodeFormerConfig, CodeState
from idcodeformer.runtime.allocator import keep_pages
from idcodeformer.types import Face
from idcodeformer.video.job import VideoJob

from .common import arguments, finish, set_threads, table
from .memory import peak

_FPS, _FACE = 25, 400


class Idle:
    """In the place of a 512-px CodeFormer."""

    size, device, config = 512, torch.device("cpu"), CodeFormerConfig()
    decoder = SimpleNamespace(quantize=SimpleNamespace(lookup=lambda codes, h, w: torch.zeros(1, 8, h, w)))

    def encode(self, pixels: torch.Tensor) -> CodeState:
        count = len(pixels)
        feature = torch.ones(count, 8, 16, 16)
        features = {256: torch.zeros(count, 128, 256, 256), 128: torch.zeros(count, 128, 128, 128)}
        return CodeState(torch.zeros(count, 256, 1024), feature, feature, features)

    def decode(self, state: CodeState, w: float = 0.8, adain: bool = True) -> torch.Tensor:
        return torch.full((len(state.quant), 3, 512, 512), 0.5)


class Known:
    """In the place of a detector: the face that ``make`` draws is where it is."""

    def __call__(self, images, options=None):
        return tuple((self._face(image),) for image in images)

    def look_again(self, images, faces):
        return self(images)

    @staticmethod
    def _face(image: torch.Tensor) -> Face:
        x, y = image.shape[2] * 0.4, image.shape[1] * 0.3
        points = torch.from_numpy(ffhq_template(_FACE)).float() + torch.tensor([x, y])
        return Face(torch.tensor([x, y, x + _FACE, y + _FACE]), 0.99, points)


def make(path: Path, seconds: float, size: tuple[int, int]) -> None:
    import av

    rng = np.random.default_rng(0)
    still = np.kron(rng.integers(60, 200, (size[0] // 8, size[1] // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=_FPS, options={"preset": "ultrafast"})
        stream.height, stream.width = size
        for number in range(round(seconds * _FPS)):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(still, number, 1), "rgb24")))
        out.mux(stream.encode())


def probe(seconds: float, height: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        make(clip, seconds, (height, height * 16 // 9 // 8 * 8))
        job = VideoJob(FacePipeline(Idle(), Known()), RestoreSettings(out=Path(folder) / "out"))
        start, busy = time.perf_counter(), time.process_time()
        outcome = job.restore(clip, Path("clip"))
        wall, cpu = time.perf_counter() - start, time.process_time() - busy
    return {"seconds": seconds, "frames": outcome.frames, "fps": outcome.frames / wall,
            "cpu_s_per_frame": cpu / outcome.frames, "peak_mb": peak()}  # fmt: skip


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seconds", type=float, nargs="+", default=[6.0, 60.0])
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--one", type=float, help="run this length alone, in this process")
    options = parser.parse_args()
    set_threads(options.threads)
    if options.one is not None:
        keep_pages()  # as the command line does
        print(json.dumps(probe(options.one, options.height)))
        return
    rows = []
    for seconds in options.seconds:
        command = [sys.executable, "-m", "benchmarks.clips", "--one", str(seconds), "--height", str(options.height),
                   "--threads", str(options.threads)]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
    header = ["seconds", "frames", "frames/s", "CPU s/frame", "peak MB"]
    table("A clip, networks excluded", header, [[f"{value:.4g}" for value in row.values()] for row in rows])
    finish("clips", {"cases": rows}, options.json)


if __name__ == "__main__":
    main()
