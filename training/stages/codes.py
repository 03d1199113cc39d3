"""Stage II: predict the truth's codes from the degraded face (CodeFormer, section 3.2)."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from idcodeformer.networks.codeformer import CodeFormer
from idcodeformer.networks.vqgan import VQAutoEncoder

from ..config import ConfigError, TrainConfig
from ..data.dataset import to_unit
from ..weights import load_part, read_tensors
from .base import Batch, Stage, codeformer_config, full_precision, vqgan_config
from .losses import code_losses

AUTOENCODER = ("encoder", "quantize", "generator")
PREDICTION = ("position_emb", "feat_emb", "ft_layers", "idx_pred_layer")


class CodeStage(Stage):
    """Encoder, Transformer and head train; codebook and generator are frozen, and the generator is not run."""

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        if not config.init:
            raise ConfigError(
                f"Configuration key 'init': {config.stage} starts from weights; name the file of the stage before."
            )
        self.net = CodeFormer(codeformer_config(config))
        nn.init.normal_(self.net.position_emb, std=0.02)
        self._load(config.init)
        self.target = self._target_network(config.vqgan or config.init)
        self.net.quantize.requires_grad_(False)
        self.net.generator.requires_grad_(False)
        self._freeze()

    def _load(self, path: str) -> None:
        load_part(self.net, path, AUTOENCODER)

    def _freeze(self) -> None:
        self.net.fuse_convs_dict.requires_grad_(False)

    def _target_network(self, path: str) -> VQAutoEncoder:
        """The stage I autoencoder, from a file: a random one would give random target codes (CodeFormer issue 304)."""
        state = read_tensors(path)
        if "position_emb" in state:
            raise ConfigError(
                f"Configuration key 'vqgan': {path} holds a CodeFormer, whose encoder was changed for degraded faces. "
                "Name the stage I weights: only their encoder gives the target codes."
            )
        target = VQAutoEncoder(vqgan_config(self.config))
        load_part(target, path, AUTOENCODER, state=state)
        theirs, mine = target.quantize.embedding.weight, self.net.quantize.embedding.weight
        if not torch.allclose(theirs, mine, atol=1e-2, rtol=1e-2):
            raise ConfigError(
                f"Configuration key 'vqgan': the codebook of {path} is not that of {self.config.init}, so its codes "
                "would mean other things. Name the stage I weights that the other file was trained from."
            )
        return target.eval().requires_grad_(False)

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        truth = to_unit(batch["truth"], self.device)
        side = self.net.config.latent_side
        with torch.no_grad(), full_precision(truth.device):
            codes = self.target.tokenize(truth)
            return truth, codes, self.target.quantize.lookup(codes, side, side)

    def _code_terms(
        self, logits: Tensor, lq_feat: Tensor, batch: Batch, out: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The truth in [-1,1], and the weighted sum of cross-entropy and feature distance (equation 3).

        Where neither counts the truth's codes are not looked for: that takes a pass of the stage I encoder.
        """
        if not (self.config.loss.code or self.config.loss.feature):
            return to_unit(batch["truth"], self.device), logits.new_zeros((), dtype=torch.float32)
        truth, codes, quant = self._targets(batch)
        out["code"], out["feature"] = code_losses(logits.float(), lq_feat.float(), codes, quant)
        out["code_accuracy"] = (logits.argmax(2) == codes).float().mean()
        return truth, self.config.loss.code * out["code"] + self.config.loss.feature * out["feature"]

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        lq_feat = self.net.encoder(to_unit(batch["degraded"], self.device))
        _, total = self._code_terms(self.net.predict(lq_feat), lq_feat, batch, out)
        return {**out, "total": total}

    def restored(self, batch: Batch) -> Tensor:
        return self.net(to_unit(batch["degraded"], self.device), w=0.0)[0]

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        lq_feat = self.net.encoder(to_unit(batch["degraded"], self.device))
        _, score = self._code_terms(self.net.predict(lq_feat), lq_feat, batch, out)
        return {**out, "score": score}
