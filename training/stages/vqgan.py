"""Stage I: the autoencoder and its codebook on clean faces (CodeFormer, section 3.1)."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from idcodeformer.networks.vqgan import VQAutoEncoder

from ..config import TrainConfig
from ..data.dataset import to_unit
from ..processes import total as total_over_processes
from ..weights import load_part
from .base import Batch, Stage, full_precision, vqgan_config
from .codebook import kmeans, reset_dead


class VQGANStage(Stage):
    """L1, perceptual and adversarial reconstruction, codebook and commitment terms."""

    needs_degraded = False

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        self.net = VQAutoEncoder(vqgan_config(config))
        if config.init:
            load_part(self.net, config.init, ("encoder", "quantize", "generator"))
        # how often each code was chosen since the last reset, by all processes
        self.register_buffer("usage", torch.zeros(config.net.codebook_size))
        self._make_discriminator()
        self._image_terms()

    @torch.no_grad()
    def before_step(self, batch: Batch, step: int, fabric: Any) -> dict[str, float]:
        book = self.config.codebook
        start = bool(book.kmeans_steps) and step == book.kmeans_steps
        reset = bool(book.reset_every) and book.kmeans_steps < step < book.reset_until and step % book.reset_every == 0
        if not (start or reset):
            return {}
        z = self.net.encoder(to_unit(batch["truth"], self.device))
        points = fabric.all_gather(z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])).reshape(-1, z.shape[1])
        codes = self.net.quantize.embedding.weight
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        before = codes.clone()
        if start:
            codes.copy_(kmeans(points.cpu().float(), len(codes), 12, generator).to(codes))
            said = {"kmeans": 1.0}
        else:
            said = {"dead_codes": float(reset_dead(codes, self.usage, points, generator))}
            self.usage.zero_()
        self.jumped = {"quantize.embedding.weight": (codes != before).any(1)}
        return said

    def _quantise(self, z: Tensor, out: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Quantised z and the weighted sum of the codebook's terms."""
        loss = self.config.loss
        with full_precision(z.device):
            z, out["codebook"], out["commitment"], indices = self.net.quantize(z.float())
        with torch.no_grad():
            used = torch.bincount(indices.flatten(), minlength=len(self.usage)).to(self.usage)
            used = total_over_processes(used)
            self.usage += used
            share = used / used.sum()
            out["perplexity"] = (-(share * (share + 1e-10).log()).sum()).exp()
        return z, loss.codebook * out["codebook"] + loss.commitment * out["commitment"]

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        truth = to_unit(batch["truth"], self.device)
        out: dict[str, Tensor] = {}
        z = self.net.encoder(truth)
        if step >= self.config.codebook.kmeans_steps:
            z, total = self._quantise(z, out)
        else:
            total = 0.0 * self.net.quantize.embedding.weight.sum()  # DDP wants every parameter to take part
        image = self.net.generator(z).float()
        rec = self._reconstruction(image, truth, step, out)
        total = total + rec
        if self.discriminator is not None:
            total = total + self._adversarial(image, rec, step, self.net.generator.blocks[-1].weight, out)
        return {**out, "total": total}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        truth, loss = to_unit(batch["truth"], self.device), self.config.loss
        out: dict[str, Tensor] = {}
        image, _, stats = self.net(truth)
        out["codebook"], out["commitment"] = stats["codebook"], stats["commitment"]
        score = loss.codebook * out["codebook"] + loss.commitment * out["commitment"]
        score = score + self._judged(image.clamp(-1, 1), truth, out)
        return {**out, "score": score}

    def restored(self, batch: Batch) -> Tensor:
        return self.net(to_unit(batch["truth"], self.device))[0]
