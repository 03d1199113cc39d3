"""Stage III: controllable fidelity (CodeFormer, section 3.3), with or without the identity loss."""
from __future__ import annotations

import torch
from torch import Tensor

from idcodeformer.networks.codeformer import CodeFormer

from ..config import ConfigError, TrainConfig
from ..data.dataset import to_unit
from ..data.sampling import Positions, uniform
from ..weights import load_part, read_tensors
from .base import Batch, codeformer_config
from .codes import AUTOENCODER, PREDICTION, CodeStage
from .losses import rim_weights


class FidelityStage(CodeStage):
    """Encoder, Transformer, head and fusion train; an identity weight of 0 is the control arm.

    With ``code_selection = straight_through`` the image losses reach encoder, Transformer and head, while the codes of
    the forward pass are those of inference. The published rule (hard, features detached) trains the fusion only.
    """

    def __init__(self, config: TrainConfig):
        if not config.vqgan:
            raise ConfigError("Configuration key 'vqgan': stage III needs the stage I weights for its target codes.")
        if not config.net.connect_list:
            raise ConfigError("Configuration key 'net.connect_list': stage III trains the fusion; name a side.")
        super().__init__(config)
        self._make_discriminator()
        self._image_terms()
        self.anchor = self._anchor_network() if config.loss.anchor else None

    def _anchor_network(self) -> CodeFormer:
        path = self.config.loss.anchor_weights
        if not path:
            raise ConfigError("Configuration key 'loss.anchor_weights': name a CodeFormer file, or set loss.anchor=0.")
        net = CodeFormer(codeformer_config(self.config))
        load_part(net, path, (*AUTOENCODER, *PREDICTION, "fuse_convs_dict"))
        self.register_buffer("rim", rim_weights(self.config.net.img_size), persistent=False)
        return net.eval().requires_grad_(False)

    def _load(self, path: str) -> None:
        own, state = self.config.fidelity.generator_from_vqgan, read_tensors(path)
        load_part(self.net, path, ("encoder", *PREDICTION) if own else (*AUTOENCODER, *PREDICTION), state=state)
        if own:
            load_part(self.net, self.config.vqgan or path, ("quantize", "generator"))
        self._load_fusion(path, state)

    def _load_fusion(self, path: str, state: dict[str, Tensor]) -> None:
        """A file without fusion (stage II) leaves all blocks as they are. Sides that another lacks start without
        effect, so that a network may be given fusion at further sides and is at first the one that it was."""
        if not any(key.startswith("fuse_convs_dict.") for key in state):
            return
        for side, block in self.net.fuse_convs_dict.items():
            part = f"fuse_convs_dict.{side}"
            if any(key.startswith(f"{part}.") for key in state):
                load_part(self.net, path, (part,), state=state)
                continue
            block.start_without_effect()

    def _freeze(self) -> None:
        """Nothing beyond the codebook, and the generator unless the run trains it on."""
        rule = self.config.fidelity
        self.net.generator.requires_grad_(rule.train_generator)
        parts = dict(self.net.named_children()) | dict(self.net.named_parameters(recurse=False))
        parts |= {f"fuse_convs_dict.{side}": block for side, block in self.net.fuse_convs_dict.items()}
        for name in rule.freeze:
            if name not in parts:
                raise ConfigError(f"Configuration key 'fidelity.freeze': {name!r} is none of {', '.join(parts)}.")
            parts[name].requires_grad_(False)

    def _draw_w(self, positions: Positions) -> Tensor:
        """w [N] of the samples: 1 with probability ``full``, else uniform in [low, high]."""
        rule = self.config.fidelity
        whether, where = uniform(positions, self.config.seed, "fidelity", 2)
        drawn = rule.low + (rule.high - rule.low) * where
        return torch.where(whether < rule.full, torch.ones_like(drawn), drawn).to(self.device)

    def _code_only(self, step: int) -> bool:
        rule = self.config.fidelity
        return bool(rule.code_only_every) and step >= rule.code_only_from and step % rule.code_only_every != 0

    def _kept(self, image: Tensor, degraded: Tensor, w: Tensor) -> Tensor:
        """Mean square of the difference to the anchor's picture of the same input, beyond the recognisers' crop."""
        assert self.anchor is not None
        with torch.no_grad():
            kept = self.anchor(degraded, w, self.config.fidelity.adain)[0].float()
        change = image - kept
        if not self.config.loss.anchor_shift:
            change = change - (change * self.rim).mean((2, 3), keepdim=True) / self.rim.mean()
        return (change.square() * self.rim).mean()

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        rule, loss, out = self.config.fidelity, self.config.loss, {}
        degraded = to_unit(batch["degraded"], self.device)
        state = self.net.encode(degraded, rule.code_selection)  # type: ignore[arg-type]
        truth, total = self._code_terms(state.logits, state.lq_feat, batch, out)
        if self._code_only(step):
            return {**out, "total": total}
        # a tensor of w runs the fusion even where all are 0, so its parameters always take part (CodeFormer issue 251)
        w = self._draw_w(batch["position"])
        image = self.net.decode(state, w, rule.adain, rule.detach_features).float()
        rec = self._reconstruction(image, truth, step, out)
        total = total + rec
        if self.anchor is not None:
            out["anchor"] = self._kept(image, degraded, w)
            total = total + loss.anchor * out["anchor"]
        if self.identity is not None and step >= loss.identity_start:
            other = to_unit(batch["other"], self.device) if "other" in batch else None
            out["identity"] = self.identity(image, truth, batch["position"], degraded, other)
            total = total + loss.identity * out["identity"]
        if self.discriminator is not None:
            largest = self.net.fuse_convs_dict[str(max(self.net.config.connect_list))]
            total = total + self._adversarial(image, rec, step, largest.shift[-1].weight, out)
        return {**out, "total": total}

    def restored(self, batch: Batch) -> Tensor:
        return self.net(to_unit(batch["degraded"], self.device), w=1.0, adain=self.config.fidelity.adain)[0]

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """At w = 1, without jitter; likeness is that to the truth itself."""
        rule, loss, out = self.config.fidelity, self.config.loss, {}
        degraded = to_unit(batch["degraded"], self.device)
        state = self.net.encode(degraded)
        truth, score = self._code_terms(state.logits, state.lq_feat, batch, out)
        image = self.net.decode(state, 1.0, rule.adain).clamp(-1, 1)
        score = score + self._judged(image, truth, out)
        if self.anchor is not None:
            out["anchor"] = self._kept(image, degraded, torch.ones(len(image), device=image.device))
            score = score + loss.anchor * out["anchor"]
        if self.identity is not None:
            out["identity"] = self.identity(image, truth, None, degraded)
            score = score + loss.identity * out["identity"]
        return {**out, "score": score}
