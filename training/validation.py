"""Looking at a run from outside the graph: validation on a fixed set and sample grids, with the averaged weights."""
from __future__ import annotations

from typing import Any, Iterator, Mapping

import torch
from torch import Tensor, nn

from .config import TrainConfig
from .data.dataset import DataConfig, PairDataset, fixed_set
from .data.parsing import ParsingDataset, held_out, parsing_data
from .stages import Stage

CHUNK = 16  # images at a time


def training_data(config: TrainConfig) -> PairDataset | ParsingDataset:
    """What the run's stage learns from."""
    if config.stage == "parser":
        return parsing_data(config)
    others = bool(config.loss.identity and config.loss.identity_other)
    return PairDataset(config.data, config.degradation, config.seed, others=others)


def validation_set(config: TrainConfig) -> dict[str, Any]:
    """The fixed images of a run: of ``val``, or of ``data`` where val names none."""
    if config.stage == "parser":
        return dict(held_out(config))
    source = config.val if config.val.roots or config.val.shards else config.data
    named = config.degradations.get(config.val_degradation, config.degradation)
    source = DataConfig(**{**vars(source), "size": config.data.size})
    pairs = config.stage == "recogniser" and config.recogniser.method == "arcface"
    return fixed_set(source, named, config.seed + 7, config.val_images, pairs)


class Swapped:
    """Puts another network into the stage, in eval mode, for as long as the context lasts."""

    def __init__(self, stage: Stage, net: nn.Module):
        self.stage, self.net = stage, net

    def __enter__(self) -> Stage:
        self.trained = self.stage.net
        self.stage.net = self.net
        return self.stage.eval()

    def __exit__(self, *_: object) -> None:
        self.stage.net = self.trained
        self.stage.train()


def chunks(batch: Mapping[str, Any], size: int) -> Iterator[dict[str, Any]]:
    for first in range(0, len(batch["truth"]), size):
        yield {k: v[first : first + size] for k, v in batch.items()}


@torch.no_grad()
def validate(stage: Stage, averaged: nn.Module, batch: Mapping[str, Any]) -> dict[str, float]:
    """Means over the fixed set, each key with ``val_`` before it."""
    with Swapped(stage, averaged) as swapped:
        parts = [swapped.validate(chunk) for chunk in chunks(batch, CHUNK)]
    return {f"val_{k}": float(torch.stack([p[k].float() for p in parts]).mean()) for k in parts[0]}


@torch.no_grad()
def restore_samples(stage: Stage, averaged: nn.Module, batch: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """The first 8 of the fixed set, and what the averaged network makes of them."""
    chunk = next(chunks(batch, 8))
    with Swapped(stage, averaged) as swapped:
        return chunk, swapped.restored(chunk)
