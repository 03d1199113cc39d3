"""Who judges: pixel figures, a perceptual distance, recognisers, and the features of the Frechet distance."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idcodeformer.geometry.templates import arcface_crop
from idcodeformer.weights import registry
from idcodeformer.weights.registry import Weight
from idcodeformer.weights.store import find, sha256_of

from ..config import ConfigError
from ..metrics import psnr, ssim, to_8bit
from ..stages.perceptual import PerceptualDistance, load_perceptual
from .fid import load_extractor
from .subjects import LossRecognisers, load_network, split_name

Role = Literal["loss", "independent"]
Figures = dict[str, np.ndarray]  # name -> [N] or [N,D]


@dataclass(frozen=True, eq=False)
class RecogniserJudge:
    """A recogniser and whether the models were trained against it."""

    name: str
    role: Role
    net: nn.Module
    digest: str  # sha256 of its file
    stem: str  # its file's name, as the metadata of trained models records it

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """[N,3,S,S] in [0,1], FFHQ-aligned -> [N,D] unit vectors, by the crop that the loss and the pack use."""
        return F.normalize(self.net(arcface_crop(images * 2 - 1)))


@dataclass(frozen=True, eq=False)
class Judges:
    """Everything that looks at images. ``key`` names them for the cache."""

    recognisers: tuple[RecogniserJudge, ...]
    perceptual: PerceptualDistance | None
    extractor: nn.Module | None
    key: str

    @torch.no_grad()
    def look(self, subjects_images: Sequence[Tensor], truth: Tensor) -> list[Figures]:
        """The figures of several versions of the same faces; what is needed of the truth is computed once."""
        reference = None if self.perceptual is None else self.perceptual.reference_features(truth * 2 - 1)
        return [self._look(to_8bit(images), truth, reference) for images in subjects_images]

    def _look(self, images: Tensor, truth: Tensor, reference: tuple[Tensor, ...] | None) -> Figures:
        out = {"psnr": psnr(images, truth), "ssim": ssim(images, truth)}
        if self.perceptual is not None and reference is not None:
            out["perceptual"] = self.perceptual(images * 2 - 1, reference)
        for judge in self.recognisers:
            out[f"embedding {judge.name}"] = judge.embed(images)
        if self.extractor is not None:
            out["features"] = self.extractor(images)
        return {k: v.float().cpu().numpy() for k, v in out.items()}


def load_judges(
    loss: Sequence[str],
    independent: Sequence[str],
    perceptual: str | None,
    perceptual_heads: str | None,
    fid_weights: str | None,
    device: torch.device,
) -> Judges:
    """Load all judges by ``NAME=PATH``. Raises ConfigError where one file is given twice, e.g. in both roles."""
    roles: list[tuple[Role, str]] = [*(("loss", t) for t in loss), *(("independent", t) for t in independent)]
    recognisers = [_recogniser(text, role, device) for role, text in roles]
    seen: dict[str, RecogniserJudge] = {}
    for judge in recognisers:
        if judge.digest in seen:
            names = f"'{seen[judge.digest].name}' and '{judge.name}'"
            raise ConfigError(f"Recognisers {names} are the same file; give each once.")
        seen[judge.digest] = judge
    if len({j.name for j in recognisers}) < len(recognisers):
        raise ConfigError("Two recognisers have the same name; write NAME=PATH to tell them apart.")
    distance = None if perceptual is None else load_perceptual(perceptual, perceptual_heads).to(device)
    extractor = None if fid_weights is None else load_extractor(fid_weights).to(device)
    files = [perceptual, perceptual_heads, fid_weights]
    digests = [f"{j.name} {j.digest}" for j in recognisers] + [sha256_of(f) if f else "" for f in files]
    return Judges(tuple(recognisers), distance, extractor, " ".join(digests))


def _recogniser(text: str, role: Role, device: torch.device) -> RecogniserJudge:
    name, source = split_name(text)
    path = find(source, "recogniser")
    net = load_network(path, "recogniser").to(device)
    return RecogniserJudge(name, role, net, sha256_of(path), path.stem)


def _row(name: str, digest: str = "") -> Weight | None:
    """The registry's row of a recogniser, by its contents, its name or the name of its file."""
    for row in registry.WEIGHTS:
        files = (row.file, *row.aliases)
        if (digest and row.sha256 == digest) or name == row.name or name in (Path(file).stem for file in files):
            return row
    return None


def _was_in_loss(judge: RecogniserJudge, used: LossRecognisers) -> bool:
    """By contents; by the registry's row, under whatever name; by the file's name where no contents are recorded."""
    row = _row(judge.stem, judge.digest)
    rows = [_row(name) for name in used.names] + [_row("", digest) for digest in used.digests]
    if judge.digest in used.digests or judge.digest in [r.sha256 for r in rows if r is not None]:
        return True
    return (row is not None and row in rows) or (not used.digests and judge.stem in used.names)


def check_independence(judges: Judges, used: dict[str, LossRecognisers]) -> None:
    """Refuse to call a recogniser independent that a model's own file says was in its loss.

    ``used``: model name -> the recognisers in its loss. Raises ConfigError.
    """
    for judge in judges.recognisers:
        for model, recognisers in used.items():
            if judge.role == "independent" and _was_in_loss(judge, recognisers):
                raise ConfigError(
                    f"'{judge.name}' was in the loss of '{model}', so it is no independent judge. "
                    "Move it to --loss-recogniser."
                )
