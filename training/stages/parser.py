"""Stage ``parser``: the label of every pixel of a face, by cross-entropy and a soft Dice term over the classes.

Dice (Milletari et al. 2016, V-Net) weighs every class alike however few pixels it has, as the F-score does that is
reported; cross-entropy keeps the gradient steady.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from idcodeformer.compositing.parsing import CLASSES
from idcodeformer.networks.mini_parser import MiniParser, MiniParserConfig

from ..config import ConfigError, TrainConfig
from ..data.dataset import to_unit
from ..evaluation.parsing import COLOURS, confusion, f_scores
from .base import Batch, Stage, full_precision


def parser_config(config: TrainConfig) -> MiniParserConfig:
    rule = config.parser
    try:
        return MiniParserConfig(tuple(rule.widths), tuple(rule.blocks), len(CLASSES), config.data.size)
    except ValueError as error:
        raise ConfigError(f"Configuration keys 'parser.*' and 'data.size': {error}") from error


def soft_dice(shares: Tensor, labels: Tensor) -> Tensor:
    """1 - mean over the classes that the batch has of 2 |p t| / (|p| + |t|); shares [N,C,H,W], labels [N,H,W]."""
    right, classes = shares.gather(1, labels[:, None]).flatten(), shares.shape[1]
    both = right.new_zeros(classes).index_add(0, labels.flatten(), right)
    size = torch.bincount(labels.flatten(), minlength=classes).to(shares.dtype)
    dice = 2 * both / (shares.sum((0, 2, 3)) + size).clamp(min=1e-6)
    return 1 - dice[size > 0].mean()


class ParserStage(Stage):
    """Trains a MiniParser from its first weights, or from ``init``."""

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        self.net = MiniParser(parser_config(config))
        if config.init:
            from ..weights import load_part

            load_part(self.net, config.init, [name for name, _ in self.net.named_children()])

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        labels = batch["mask"].to(self.device).long()
        logits = self.net(to_unit(batch["degraded"], self.device))
        with full_precision(logits.device):
            logs = logits.float().log_softmax(1)
            entropy, dice = F.nll_loss(logs, labels), soft_dice(logs.exp(), labels)
        return {"entropy": entropy, "dice": dice, "total": entropy + self.config.parser.dice * dice}

    def restored(self, batch: Batch) -> Tensor:
        """The label map in colours, [N,3,S,S] in [-1,1]."""
        labels = self.net(to_unit(batch["degraded"], self.device)).argmax(1)
        colours = torch.as_tensor(COLOURS, device=labels.device)[labels].permute(0, 3, 1, 2)
        return to_unit(colours)

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        labels = batch["mask"].to(self.device).long()
        logits = self.net(to_unit(batch["degraded"], self.device)).float()
        counts = confusion(logits.argmax(1), labels)
        scores = f_scores(counts)
        entropy = F.cross_entropy(logits, labels)
        return {
            "entropy": entropy,
            "accuracy": counts.diagonal().sum() / counts.sum(),
            "f": scores[~scores.isnan()].mean(),
            "score": entropy,
        }
