"""What the stages share: the contract with the trainer, the image losses, the discriminator.

A stage is an nn.Module whose ``forward(batch, step)`` returns a dict of losses with the key ``total`` (and ``image``,
detached, for the discriminator). Everything that is differentiated happens inside forward, so that DDP sees it.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idcodeformer.networks.codeformer import CodeFormerConfig
from idcodeformer.networks.vqgan import PatchDiscriminator, VQGANConfig

from ..config import ConfigError, TrainConfig
from ..metrics import ssim
from ..weights import load_network
from .losses import IdentityLoss, adaptive_weight, pooled_l1

Batch = dict[str, Any]
FROZEN = ("teacher", "target", "anchor", "perceptual", "identity")  # networks that come from files and never change


def vqgan_config(config: TrainConfig) -> VQGANConfig:
    names = VQGANConfig.__dataclass_fields__
    return _network_config(VQGANConfig, {k: v for k, v in vars(config.net).items() if k in names})


def codeformer_config(config: TrainConfig) -> CodeFormerConfig:
    return _network_config(CodeFormerConfig, dict(vars(config.net)))


def _network_config(kind: Any, values: dict[str, Any]) -> Any:
    try:
        return kind.from_dict(values)
    except ValueError as error:
        raise ConfigError(f"Configuration keys 'net.*': {error}") from error


def full_precision(device: torch.device) -> Any:
    """Leaves mixed precision for as long as the context lasts: nearest codes and embeddings are decided in fp32."""
    return torch.autocast(device.type, enabled=False)


class Stage(nn.Module):
    """What the trainer relies on."""

    net: nn.Module  # what is exported; its EMA is kept
    needs_degraded = True

    def __init__(self, config: TrainConfig):
        super().__init__()
        self.config = config
        self.perceptual: nn.Module | None = None
        self.identity: IdentityLoss | None = None
        self.jumped: dict[str, Tensor] = {}  # parameter of net -> rows [K] (bool) that the last before_step set by hand
        self._discriminator: tuple[nn.Module, ...] = ()  # a tuple: it has an optimiser and a DDP wrapper of its own

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def discriminator(self) -> nn.Module | None:
        return self._discriminator[0] if self._discriminator else None

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.net.parameters() if p.requires_grad]

    def train(self, mode: bool = True):
        """Frozen networks, and parts of the network that this stage does not train, stay in evaluation mode."""
        super().train(mode)
        for module in (getattr(self, name, None) for name in FROZEN):
            if module is not None:
                module.eval()
        for part in self.net.children():
            if not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self

    def before_step(self, batch: Batch, step: int, fabric: Any) -> dict[str, float]:
        """State that is not learnt by gradient; called outside the graph on every process. Fills ``jumped``."""
        return {}

    def restored(self, batch: Batch) -> Tensor:
        """[N,3,S,S] in [-1,1], for sample grids and validation; uses ``net`` as it stands in evaluation."""
        raise TypeError(f"Stage {self.config.stage} makes no pictures.")

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Figures on a fixed batch; ``score`` (lower is better) decides which checkpoint is the best.

        The score is the objective without the adversary, whose judgement changes from checkpoint to checkpoint.
        """
        raise NotImplementedError

    def _judged(self, image: Tensor, truth: Tensor, out: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the terms of restored images; adds PSNR, L1 and the terms to ``out``."""
        mse = F.mse_loss(image, truth, reduction="none").mean((1, 2, 3)) / 4  # in [0,1] units
        out["psnr"], out["l1"] = (-10 * mse.log10()).mean(), F.l1_loss(image, truth)
        return self._reconstruction(image, truth, None, out)

    def _image_terms(self) -> None:
        """Frozen networks of the image losses, loaded only where their weight is not 0."""
        loss = self.config.loss
        if loss.perceptual:
            if not loss.perceptual_weights:
                raise ConfigError(
                    "Configuration key 'loss.perceptual_weights': name the LPIPS file, or set loss.perceptual=0."
                )
            from .perceptual import load_perceptual

            net = load_perceptual(loss.perceptual_weights, loss.perceptual_heads)
            self.perceptual = net.eval().requires_grad_(False)
        if loss.identity:
            if not loss.identity_weights:
                raise ConfigError(
                    "Configuration key 'loss.identity_weights': name a recogniser, or set loss.identity=0."
                )
            networks = [load_network(path, "recogniser") for path in loss.identity_weights]
            self.identity = IdentityLoss(
                networks, loss.identity_jitter, self.config.seed, loss.identity_blur, loss.identity_noise,
                loss.identity_seen, loss.identity_maps, loss.identity_other,
            )  # fmt: skip

    def _make_discriminator(self) -> None:
        if self.config.loss.gan:
            self._discriminator = (PatchDiscriminator(self.config.loss.gan_ndf, norm=self.config.loss.gan_norm),)

    def _reconstruction(self, image: Tensor, truth: Tensor, step: int | None, out: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the image terms of a step; with ``step`` None of all of them, each by its mean weight."""
        loss = self.config.loss
        total = image.new_zeros(())
        if loss.l1:
            out["l1"] = F.l1_loss(image, truth)
            total = total + loss.l1 * out["l1"]
        if loss.pooled:
            out["pooled"] = pooled_l1(image, truth, loss.pooled_side)
            total = total + loss.pooled * out["pooled"]
        if loss.mse:
            out["mse"] = F.mse_loss(image, truth)
            total = total + loss.mse * out["mse"]
        if loss.ssim:
            with full_precision(image.device):  # variances as differences of means do not survive half precision
                out["ssim"] = 1 - ssim(image.float() / 2 + 0.5, truth.float() / 2 + 0.5).mean()
            total = total + loss.ssim * out["ssim"]
        every = 1 if step is None else loss.perceptual_every
        if self.perceptual is not None and (step is None or step % every == 0):
            out["perceptual"] = self.perceptual(image, truth).mean()
            total = total + loss.perceptual * every * out["perceptual"]
        return total

    def _adversarial(self, image: Tensor, rec: Tensor, step: int, last: Tensor, out: dict[str, Tensor]) -> Tensor:
        loss = self.config.loss
        out["image"] = image.detach()
        if self.discriminator is None or step < loss.gan_start:
            return image.new_zeros(())
        adversarial = -self.discriminator(image).float().mean()
        out["gan_weight"] = adaptive_weight(rec, adversarial, last, loss.gan)
        out["gan"] = adversarial
        return out["gan_weight"] * adversarial
