"""Synthetic 64-px faces, networks of a few thousand weights, and one short run of every stage that all tests share."""
from __future__ import annotations

from pathlib import Path
from typing import Callable

import cv2
import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("omegaconf")
pytest.importorskip("lightning_fabric")
pytest.importorskip("tensorboard")

from idcodeformer.networks.arcface import IResNet, IResNetConfig  # noqa: E402
from idcodeformer.weights.loading import save  # noqa: E402
from training.__main__ import main  # noqa: E402

BASE = """
seed: 1
batch: 4
steps: 20
accelerator: cpu
threads: 1
log_every: 5
sample_every: 10
save_every: 10
val_every: 10
val_images: 4
net: {img_size: 64, nf: 8, ch_mult: [1, 2, 2], res_blocks: 1, attn_resolutions: [16], codebook_size: 32, emb_dim: 16,
  dim_embd: 32, dim_mlp: 64, n_head: 2, n_layers: 1, connect_list: [16, 32]}
recogniser: {layers: [1, 1, 1, 1], widths: [8, 8, 8, 8], embedding_dim: 16, dropout: 0.2}
data: {size: 64, workers: 0}
degradation: {kernel_size: 7, sigma: [0.2, 2.0], downscale: [1.0, 4.0]}
loss: {perceptual: 0.0, gan_ndf: 8, gan_norm: group, identity_jitter: 2.0, identity_noise: 0.05}
optim: {lr: 1e-3, clip: 1.0}
"""
STAGE1 = [
    "stage=stage1", "codebook.kmeans_steps=3", "codebook.reset_every=4", "codebook.reset_until=18",
    "loss.gan=0.8", "loss.gan_start=6", "loss.perceptual=1", "loss.perceptual_every=2",
]  # fmt: skip
STAGE3_ID = ["stage=stage3_id", "fidelity.full=0.5", "loss.gan=0.8", "loss.gan_start=4", "loss.identity=1"]


def draw_face(rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """A head, two eyes and a mouth on a coloured ground, uint8 BGR [size,size,3]."""

    def colour() -> tuple[int, ...]:
        return tuple(int(v) for v in rng.integers(30, 226, 3))

    image = np.full((size, size, 3), colour(), np.uint8)
    cv2.ellipse(image, (size // 2, size // 2), (size // 3, int(size * 0.42)), 0, 0, 360, colour(), -1, cv2.LINE_AA)
    for x in (0.37, 0.63):
        cv2.circle(image, (int(size * x), int(size * 0.46)), int(rng.integers(2, 6)), colour(), -1, cv2.LINE_AA)
    cv2.ellipse(image, (size // 2, int(size * 0.72)), (size // 7, size // 16), 0, 0, 360, colour(), -1, cv2.LINE_AA)
    return image


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four people with three pictures each, in folders named after them."""
    root, rng = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    for person in range(4):
        folder = root / "deep" / f"person{person}"
        folder.mkdir(parents=True)
        for picture in range(3):
            cv2.imwrite(str(folder / f"{picture}.png"), draw_face(rng))
    return root


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> Path:
    """The configuration that all runs share."""
    path = tmp_path_factory.mktemp("config") / "base.yaml"
    path.write_text(BASE + f"val: {{roots: ['{faces.as_posix()}']}}\n")
    return path


@pytest.fixture(scope="session")
def recogniser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recogniser of random weights, as the pack stores one."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "recogniser.safetensors"
    save(IResNet(IResNetConfig((1, 1, 1, 1), (8, 8, 8, 8), 16, 56)).eval(), path, {"name": "random"})
    return path


@pytest.fixture(scope="session")
def perceptual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LPIPS of random weights on AlexNet, by the keys of the complete file."""
    torch.manual_seed(6)
    path = tmp_path_factory.mktemp("weights") / "lpips.pth"
    state, cin = {}, 3
    for i, (cout, kernel) in enumerate(((64, 11), (192, 5), (384, 3), (256, 3), (256, 3))):
        conv = nn.Conv2d(cin, cout, kernel)
        state |= {f"features.{3 * i}.weight": conv.weight.detach(), f"features.{3 * i}.bias": conv.bias.detach()}
        state[f"lin{i}.model.1.weight"], cin = torch.rand(1, cout, 1, 1), cout
    torch.save(state, path)
    return path


Train = Callable[..., int]


@pytest.fixture(scope="session")
def train(base: Path, faces: Path) -> Train:
    """``train(out, *overrides)`` is the command line, with the shared configuration; returns its exit status."""

    def run(out: Path, *words: str) -> int:
        data = [] if any(w.startswith(("data.roots=", "data.shards=")) for w in words) else [f"data.roots=[{faces}]"]
        return main(["train", "--config", str(base), f"out={out}", *data, *words])

    return run


@pytest.fixture(scope="session")
def arguments(recogniser: Path, perceptual: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The overrides of each stage; those of a later one name the checkpoints of the earlier."""
    runs = tmp_path_factory.mktemp("runs")
    first, second = f"{runs / 'stage1'}/last.ckpt", f"{runs / 'stage2'}/last.ckpt"
    third = [*STAGE3_ID, f"init={second}", f"vqgan={first}", f"loss.identity_weights=[{recogniser}]"]
    return {
        "runs": [str(runs)],
        "distil": ["stage=recogniser", f"recogniser.teacher={recogniser}"],
        "arcface": ["stage=recogniser", "recogniser.method=arcface"],
        "stage1": [*STAGE1, f"loss.perceptual_weights={perceptual}"],
        "stage2": ["stage=stage2", f"init={first}"],
        "stage3": ["stage=stage3", f"init={second}", f"vqgan={first}"],
        "control": [*third, "loss.identity=0"],
        "stage3_id": third,
    }


class Runs:
    """Runs each stage once, when a test first asks for it: ``runs["stage3_id"]`` is its folder."""

    def __init__(self, train: Train, arguments: dict[str, list[str]]):
        self.train, self.arguments = train, arguments
        self.folder = Path(arguments["runs"][0])

    def __getitem__(self, name: str) -> Path:
        for earlier in {"stage2": ["stage1"], "stage3": ["stage2"], "control": ["stage2"], "stage3_id": ["stage2"]}.get(
            name, []
        ):
            self[earlier]
        out = self.folder / name
        if not out.exists():
            assert self.train(out, *self.arguments[name]) == 0
        return out


@pytest.fixture(scope="session")
def runs(train: Train, arguments: dict[str, list[str]]) -> Runs:
    return Runs(train, arguments)
