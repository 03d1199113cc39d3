"""The five stages: what each builds, what it trains, and its objective.

A stage is an nn.Module whose ``forward(batch, step)`` returns a dict of losses with the key ``total`` (and ``image``, detached,
for the discriminator). Everything that is differentiated happens inside forward, so that DDP sees it.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idcodeformer.models.codeformer import CodeFormer, CodeFormerConfig
from idcodeformer.models.vqgan import PatchDiscriminator, VQAutoEncoder, VQGANConfig

from .codebook import kmeans, reset_dead
from .config import ConfigError, TrainConfig
from .data import to_unit
from .losses import IdentityLoss, adaptive_weight, code_losses
from .weights import load_network, load_part

Batch = dict[str, Any]


def vqgan_config(config: TrainConfig) -> VQGANConfig:
    names = VQGANConfig.__dataclass_fields__
    return VQGANConfig.from_dict({k: v for k, v in vars(config.net).items() if k in names})


def codeformer_config(config: TrainConfig) -> CodeFormerConfig:
    return CodeFormerConfig.from_dict(dict(vars(config.net)))


class Stage(nn.Module):
    """What the trainer relies on."""

    net: nn.Module  # what is exported; its EMA is kept
    needs_degraded = True

    def __init__(self, config: TrainConfig):
        super().__init__()
        self.config = config
        self._discriminator: tuple[nn.Module, ...] = ()  # a tuple: it has an optimiser and a DDP wrapper of its own

    @property
    def discriminator(self) -> nn.Module | None:
        return self._discriminator[0] if self._discriminator else None

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.net.parameters() if p.requires_grad]

    def before_step(self, batch: Batch, step: int, fabric: Any) -> dict[str, float]:
        """State that is not learnt by gradient; called outside the graph on every process."""
        return {}

    def restored(self, batch: Batch) -> Tensor:
        """[N,3,S,S] in [-1,1], for sample grids and validation; uses ``net`` as it stands in evaluation."""
        raise TypeError(f"Stage {self.config.stage} makes no pictures.")

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Figures on a fixed batch; ``score`` (lower is better) decides which checkpoint is the best."""
        truth = to_unit(batch["truth"], next(self.net.parameters()).device)
        image = self.restored(batch).clamp(-1, 1)
        mse = F.mse_loss(image, truth, reduction="none").mean((1, 2, 3)) / 4  # in [0,1] units
        out = {"psnr": (-10 * mse.log10()).mean(), "l1": F.l1_loss(image, truth)}
        score = out["l1"] * self.config.loss.l1
        for name, module in (("perceptual", self.perceptual), ("identity", self.identity)):
            if module is not None:
                out[name] = module(image, truth).mean()
                score = score + getattr(self.config.loss, name) * out[name]
        return {**out, "score": score}

    def _image_terms(self) -> None:
        """Frozen networks of the image losses, loaded only where their weight is not 0."""
        loss = self.config.loss
        self.perceptual: nn.Module | None = None
        self.identity: IdentityLoss | None = None
        if loss.perceptual:
            if not loss.perceptual_weights:
                raise ConfigError("Configuration key 'loss.perceptual_weights': name the LPIPS file, or set loss.perceptual=0.")
            from .perceptual import load_perceptual

            self.perceptual = load_perceptual(loss.perceptual_weights).eval().requires_grad_(False)
        if loss.identity:
            if not loss.identity_weights:
                raise ConfigError("Configuration key 'loss.identity_weights': name a recogniser, or set loss.identity=0.")
            networks = [load_network(path, "recogniser") for path in loss.identity_weights]
            self.identity = IdentityLoss(networks, loss.identity_jitter)

    def _reconstruction(self, image: Tensor, truth: Tensor, step: int, out: dict[str, Tensor]) -> Tensor:
        loss = self.config.loss
        total = image.new_zeros(())
        if loss.l1:
            out["l1"] = F.l1_loss(image, truth)
            total = total + loss.l1 * out["l1"]
        if self.perceptual is not None and step % loss.perceptual_every == 0:
            out["perceptual"] = self.perceptual(image, truth).mean()
            total = total + loss.perceptual * loss.perceptual_every * out["perceptual"]
        return total

    def _adversarial(self, image: Tensor, rec: Tensor, step: int, last: Tensor, out: dict[str, Tensor]) -> Tensor:
        loss = self.config.loss
        out["image"] = image.detach()
        if self.discriminator is None or step < loss.gan_start:
            return image.new_zeros(())
        adversarial = -self.discriminator(image).mean()
        out["gan_weight"] = adaptive_weight(rec, adversarial, last, loss.gan)
        out["gan"] = adversarial
        return out["gan_weight"] * adversarial

    def _make_discriminator(self) -> None:
        if self.config.loss.gan:
            self._discriminator = (PatchDiscriminator(self.config.loss.gan_ndf, norm=self.config.loss.gan_norm),)


class VQGANStage(Stage):
    """Stage I: the autoencoder and its codebook on clean faces."""

    needs_degraded = False

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        self.net = VQAutoEncoder(vqgan_config(config))
        if config.init:
            load_part(self.net, config.init, ("encoder", "quantize", "generator"))
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
        z = self.net.encoder(to_unit(batch["truth"], self.usage.device))
        points = fabric.all_gather(z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])).reshape(-1, z.shape[1])
        codes = self.net.quantize.embedding.weight
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        if start:
            codes.copy_(kmeans(points.cpu().float(), len(codes), 12, generator).to(codes))
            return {"kmeans": 1.0}
        dead = reset_dead(codes, fabric.all_reduce(self.usage, reduce_op="sum"), points, generator)
        self.usage.zero_()
        return {"dead_codes": float(dead)}

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        loss, truth = self.config.loss, to_unit(batch["truth"], self.usage.device)
        z = self.net.encoder(truth)
        out: dict[str, Tensor] = {}
        total = z.new_zeros(())
        if step >= self.config.codebook.kmeans_steps:
            z, out["codebook"], out["commitment"], indices = self.net.quantize(z)
            total = loss.codebook * out["codebook"] + loss.commitment * out["commitment"]
            with torch.no_grad():
                used = torch.bincount(indices.flatten(), minlength=len(self.usage)).to(self.usage)
                self.usage += used
                share = used / used.sum()
                out["perplexity"] = (-(share * (share + 1e-10).log()).sum()).exp()
        elif self.net.quantize.embedding.weight.requires_grad:
            total = 0.0 * self.net.quantize.embedding.weight.sum()  # DDP wants every parameter to take part
        image = self.net.generator(z)
        rec = self._reconstruction(image, truth, step, out)
        total = total + rec
        if self.discriminator is not None:
            total = total + self._adversarial(image, rec, step, self.net.generator.blocks[-1].weight, out)
        return {**out, "total": total}

    def restored(self, batch: Batch) -> Tensor:
        return self.net(to_unit(batch["truth"], self.usage.device))[0]


class CodeStage(Stage):
    """Stage II: predict the truth's codes from the degraded face; the generator is not run."""

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        if not config.init:
            raise ConfigError(f"Configuration key 'init': {config.stage} starts from weights; name the file of the stage before.")
        self.net = CodeFormer(codeformer_config(config))
        nn.init.normal_(self.net.position_emb, std=0.02)
        self._load(config.init)
        self.target = self._target_network(config.vqgan or config.init)
        self.net.quantize.requires_grad_(False)
        self.net.generator.requires_grad_(False)
        self._freeze()
        self._image_terms()

    def _load(self, path: str) -> None:
        load_part(self.net, path, ("encoder", "quantize", "generator"))

    def _freeze(self) -> None:
        self.net.fuse_convs_dict.requires_grad_(False)

    def _target_network(self, path: str) -> VQAutoEncoder:
        """The stage I autoencoder, from a file: a random one would give random target codes (CodeFormer issue 304)."""
        target = VQAutoEncoder(vqgan_config(self.config))
        load_part(target, path, ("encoder", "quantize", "generator"))
        return target.eval().requires_grad_(False)

    def _image_terms(self) -> None:
        self.perceptual, self.identity = None, None

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        device = self.net.position_emb.device
        truth = to_unit(batch["truth"], device)
        side = self.net.config.latent_side
        with torch.no_grad():
            codes = self.target.tokenize(truth)
            return truth, codes, self.target.quantize.lookup(codes, side, side)

    def _code_terms(self, logits: Tensor, lq_feat: Tensor, batch: Batch, out: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        truth, codes, quant = self._targets(batch)
        out["code"], out["feature"] = code_losses(logits.float(), lq_feat.float(), codes, quant)
        out["code_accuracy"] = (logits.argmax(2) == codes).float().mean()
        return truth, self.config.loss.code * out["code"] + self.config.loss.feature * out["feature"]

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        lq_feat = self.net.encoder(to_unit(batch["degraded"], self.net.position_emb.device))
        _, total = self._code_terms(self.net.predict(lq_feat), lq_feat, batch, out)
        return {**out, "total": total}

    def restored(self, batch: Batch) -> Tensor:
        return self.net(to_unit(batch["degraded"], self.net.position_emb.device), w=0.0)[0]

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        lq_feat = self.net.encoder(to_unit(batch["degraded"], self.net.position_emb.device))
        _, score = self._code_terms(self.net.predict(lq_feat), lq_feat, batch, out)
        return {**out, "score": score}


class FidelityStage(CodeStage):
    """Stage III: controllable fidelity, with or without the identity loss (weight 0 is the control arm).

    With ``code_selection = straight_through`` the image losses reach encoder, Transformer and head, while the codes of the
    forward pass are those of inference. The published rule (hard, features detached) trains the fusion only.
    """

    def __init__(self, config: TrainConfig):
        if not config.vqgan:
            raise ConfigError("Configuration key 'vqgan': stage III needs the stage I weights for its target codes.")
        super().__init__(config)
        self._make_discriminator()
        Stage._image_terms(self)

    def _load(self, path: str) -> None:
        load_part(self.net, path, ("encoder", "quantize", "generator", "position_emb", "feat_emb", "ft_layers", "idx_pred_layer"))
        load_part(self.net, path, ("fuse_convs_dict",), optional=True)

    def _freeze(self) -> None:
        pass  # encoder, Transformer, head and fusion all train

    def _image_terms(self) -> None:
        pass  # built after the freeze, by Stage._image_terms

    def _draw_w(self, count: int, device: torch.device) -> Tensor:
        rule = self.config.fidelity
        draw = torch.rand(2, count)
        uniform = rule.low + (rule.high - rule.low) * draw[1]
        return torch.where(draw[0] < rule.full, torch.ones(count), uniform).to(device)

    def _code_only(self, step: int) -> bool:
        rule = self.config.fidelity
        return bool(rule.code_only_every) and step >= rule.code_only_from and step % rule.code_only_every != 0

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        rule, loss, out = self.config.fidelity, self.config.loss, {}
        degraded = to_unit(batch["degraded"], self.net.position_emb.device)
        state = self.net.encode(degraded, rule.code_selection)  # type: ignore[arg-type]
        truth, total = self._code_terms(state.logits, state.lq_feat, batch, out)
        if self._code_only(step):
            return {**out, "total": total}
        w = self._draw_w(len(degraded), degraded.device)
        image = self.net.decode(state, w, rule.adain, rule.detach_features)
        rec = self._reconstruction(image, truth, step, out)
        total = total + rec
        if self.identity is not None and step >= loss.identity_start:
            out["identity"] = self.identity(image, truth)
            total = total + loss.identity * out["identity"]
        if self.discriminator is not None:
            largest = self.net.fuse_convs_dict[str(max(self.net.config.connect_list))]
            total = total + self._adversarial(image, rec, step, largest.shift[-1].weight, out)
        return {**out, "total": total}

    def restored(self, batch: Batch) -> Tensor:
        return self.net(to_unit(batch["degraded"], self.net.position_emb.device), w=1.0)[0]

    validate = Stage.validate


def build_stage(config: TrainConfig) -> Stage:
    if config.stage == "recogniser":
        from .recogniser import RecogniserStage

        return RecogniserStage(config)
    return {"stage1": VQGANStage, "stage2": CodeStage, "stage3": FidelityStage, "stage3_id": FidelityStage}[config.stage](config)
