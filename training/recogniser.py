"""Stage ``recogniser``: a small face recogniser, by distillation from a larger one or by ArcFace-margin training.

Distillation follows Beyer et al. 2022 ("a good teacher is patient and consistent"): teacher and student see the very same
crop - shifted, scaled, degraded, blended with another face - for a long schedule, and the student matches the embedding.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idcodeformer.geometry import arcface_crop
from idcodeformer.models.arcface import IResNet, IResNetConfig

from .config import ConfigError, TrainConfig
from .data import to_unit
from .losses import arcface_logits, distillation
from .stages import Stage
from .weights import load_network

Batch = dict[str, Any]


class RecogniserStage(Stage):
    """Trains an IResNet on FFHQ-aligned faces cropped to the ArcFace template."""

    def __init__(self, config: TrainConfig, classes: int = 0):
        super().__init__(config)
        self.perceptual, self.identity = None, None
        rule = config.recogniser
        self.teacher: nn.Module | None = None
        if rule.method == "distil":
            if not rule.teacher:
                raise ConfigError("Configuration key 'recogniser.teacher': distillation needs the teacher's weight file.")
            self.teacher = load_network(rule.teacher, "recogniser")
        elif rule.method != "arcface":
            raise ConfigError(f"Configuration key 'recogniser.method': {rule.method!r} is neither distil nor arcface.")
        self.net = IResNet(IResNetConfig(tuple(rule.layers), tuple(rule.widths), rule.embedding_dim, dropout=rule.dropout))
        self.centres = nn.Parameter(torch.randn(max(classes, 1), rule.embedding_dim) * 0.01, requires_grad=classes > 0)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def _views(self, batch: Batch) -> Tensor:
        """[N,3,112,112]: one random view of each face, partly degraded, partly blended with the next face."""
        rule, device = self.config.recogniser, self.centres.device
        clean, bad = to_unit(batch["truth"], device), to_unit(batch["degraded"], device)
        pick = (torch.rand(len(clean), 1, 1, 1) < rule.degrade).to(device)
        crop = arcface_crop(torch.where(pick, bad, clean))
        draw = (torch.rand(4, len(crop)) * 2 - 1).to(device)
        theta = torch.zeros(len(crop), 2, 3, device=device)
        zoom, angle = 1 + rule.shift * draw[2], rule.shift * draw[3]
        theta[:, 0, 0], theta[:, 0, 1] = zoom * angle.cos(), -zoom * angle.sin()
        theta[:, 1, 0], theta[:, 1, 1] = zoom * angle.sin(), zoom * angle.cos()
        theta[:, :, 2] = rule.shift * draw[:2].t()
        grid = F.affine_grid(theta, list(crop.shape), align_corners=False)
        crop = F.grid_sample(crop, grid, padding_mode="border", align_corners=False)
        if rule.method == "arcface":
            return crop
        blend = torch.rand(len(crop), 1, 1, 1) * 0.5 * (torch.rand(len(crop), 1, 1, 1) < rule.mix)
        return torch.lerp(crop, crop.roll(1, 0), blend.to(device))

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        rule, crop = self.config.recogniser, self._views(batch)
        embedding = self.net(crop)
        if self.teacher is None:
            logits = arcface_logits(embedding.float(), self.centres, batch["label"].to(crop.device), rule.margin, rule.scale)
            return {"total": F.cross_entropy(logits, batch["label"].to(crop.device))}
        with torch.no_grad():
            target = self.teacher(crop)
        direct, relation = distillation(embedding.float(), target.float(), rule.relation)
        return {"distil": direct, "relation": relation, "total": direct + relation}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        crop = arcface_crop(to_unit(batch["truth"], self.centres.device))
        embedding = F.normalize(self.net(crop))
        if self.teacher is None:
            spread = (embedding @ embedding.t()).fill_diagonal_(0).abs().mean()
            return {"spread": spread, "score": spread}
        agreement = (embedding * F.normalize(self.teacher(crop))).sum(1).mean()
        return {"agreement": agreement, "score": 1 - agreement}
