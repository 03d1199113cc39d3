"""Stage ``recogniser``: a small face recogniser, by distillation from a larger one or by ArcFace-margin training.

Distillation follows Beyer et al. 2022 ("a good teacher is patient and consistent"): teacher and student see the very
same crop - shifted, scaled, degraded, blended with another face - for a long schedule, and the student matches the
embedding.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idcodeformer.geometry.templates import arcface_crop
from idcodeformer.networks.arcface import IResNet, IResNetConfig

from ..config import ConfigError, TrainConfig
from ..data.dataset import to_unit
from ..data.sampling import uniform
from ..weights import load_network
from .base import Batch, Stage, full_precision
from .losses import arcface_logits, distillation


class RecogniserStage(Stage):
    """Trains an IResNet on FFHQ-aligned faces cropped to the ArcFace template."""

    def __init__(self, config: TrainConfig, classes: int = 0):
        super().__init__(config)
        rule = config.recogniser
        self.teacher: nn.Module | None = None
        if rule.method == "distil":
            if not rule.teacher:
                raise ConfigError("Configuration key 'recogniser.teacher': distillation needs a weight file.")
            self.teacher = load_network(rule.teacher, "recogniser")
        layout = IResNetConfig(tuple(rule.layers), tuple(rule.widths), rule.embedding_dim, dropout=rule.dropout)
        self.net = IResNet(layout)
        self.centres = nn.Parameter(torch.randn(max(classes, 1), rule.embedding_dim) * 0.01, requires_grad=classes > 0)

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def _views(self, batch: Batch) -> Tensor:
        """[N,3,112,112]: one random view of each face, partly degraded, partly blended with the next face."""
        rule, device = self.config.recogniser, self.centres.device
        clean, bad = to_unit(batch["truth"], device), to_unit(batch["degraded"], device)
        drawn = uniform(batch["position"], self.config.seed, "views", 7).to(device)
        crop = arcface_crop(torch.where((drawn[0] < rule.degrade).view(-1, 1, 1, 1), bad, clean))
        across, down, scale, turn = rule.shift * (drawn[1:5] * 2 - 1)
        theta = torch.zeros(len(crop), 2, 3, device=device)
        cos, sin = (1 + scale) * turn.cos(), (1 + scale) * turn.sin()
        theta[:, 0, 0], theta[:, 0, 1], theta[:, 0, 2] = cos, -sin, across
        theta[:, 1, 0], theta[:, 1, 1], theta[:, 1, 2] = sin, cos, down
        grid = F.affine_grid(theta, list(crop.shape), align_corners=False)
        crop = F.grid_sample(crop, grid, padding_mode="border", align_corners=False)
        if rule.method == "arcface":
            return crop
        blend = 0.5 * drawn[5] * (drawn[6] < rule.mix)
        return torch.lerp(crop, crop.roll(1, 0), blend.view(-1, 1, 1, 1))

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        rule, crop = self.config.recogniser, self._views(batch)
        embedding = self.net(crop)
        if self.teacher is None:
            labels = batch["label"].to(crop.device)
            with full_precision(crop.device):
                logits = arcface_logits(embedding.float(), self.centres, labels, rule.margin, rule.scale)
            right = (logits.argmax(1) == labels).float().mean()  # with the margin against it
            return {"accuracy": right, "total": F.cross_entropy(logits, labels)}
        with torch.no_grad(), full_precision(crop.device):
            target = self.teacher(crop.float())
        direct, relation = distillation(embedding.float(), target.float(), rule.relation)
        return {"distil": direct, "relation": relation, "total": direct + relation}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        crop = arcface_crop(to_unit(batch["truth"], self.centres.device))
        embedding = F.normalize(self.net(crop))
        if self.teacher is None:
            return self._separation(embedding, batch["label"].to(embedding.device))
        agreement = (embedding * F.normalize(self.teacher(crop))).sum(1).mean()
        return {"agreement": agreement, "score": 1 - agreement}

    @staticmethod
    def _separation(embedding: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """How much more alike two faces of one person are than two of different people, where the batch has both."""
        cosine = embedding @ embedding.t()
        same = labels[:, None] == labels
        different = cosine[~same].mean() if bool((~same).any()) else cosine.new_zeros(())
        pairs = same.fill_diagonal_(False)
        alike = cosine[pairs].mean() if bool(pairs.any()) else cosine.new_zeros(())
        return {"same": alike, "different": different, "score": different - alike}
