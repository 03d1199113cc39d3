"""CodeFormer: a Transformer predicts the codes of the clean face, the generator decodes them, fusion brings fidelity.

Source: Zhou et al. 2022, "Towards Robust Blind Face Restoration with Codebook Lookup Transformer", sections 3.2
and 3.3. State-dict keys and shapes are those of the published ``codeformer.pth``.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Mapping, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vqgan import Encoder, Generator, ResBlock, VectorQuantizer, VQGANConfig

CodeSelection = Literal["hard", "straight_through", "soft", "gumbel"]


@dataclass(frozen=True)
class CodeFormerConfig(VQGANConfig):
    """Every number of the network. The defaults are the published 512-px ``codeformer.pth``."""

    dim_embd: int = 512  # width of the Transformer
    dim_mlp: int = 1024  # width of its feed-forward layers
    n_head: int = 8  # attention heads (not visible in the tensors)
    n_layers: int = 9
    connect_list: tuple[int, ...] = (32, 64, 128, 256)  # sides (px) at which encoder features are fused in

    def __post_init__(self) -> None:
        object.__setattr__(self, "connect_list", tuple(int(v) for v in self.connect_list))
        super().__post_init__()


@dataclass(frozen=True, eq=False)
class CodeState:
    """All that does not depend on w: encode once, decode at as many w as wanted."""

    logits: Tensor  # [N,T,codes]
    quant: Tensor  # [N,emb_dim,h,w], the chosen codes, before AdaIN
    lq_feat: Tensor  # [N,emb_dim,h,w], encoder output
    features: Mapping[int, Tensor]  # side -> encoder features for the fusion

    @property
    def codes(self) -> Tensor:
        """[N,T] most likely code of each token."""
        return self.logits.argmax(2)


def adain(content: Tensor, style: Tensor, eps: float = 1e-5) -> Tensor:
    """Give each channel of ``content`` the mean and standard deviation it has in ``style`` (Huang & Belongie 2017)."""
    c_var, c_mean = torch.var_mean(content, dim=(2, 3), keepdim=True)
    s_var, s_mean = torch.var_mean(style, dim=(2, 3), keepdim=True)
    return (content - c_mean) / (c_var + eps).sqrt() * (s_var + eps).sqrt() + s_mean


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and GELU feed-forward over [T,N,dim]; the position is added to queries and keys only."""

    def __init__(self, dim: int, n_head: int, dim_mlp: int):
        super().__init__()
        # nn.MultiheadAttention owns the published parameter names; its own forward is not used (see _attend).
        self.self_attn = nn.MultiheadAttention(dim, n_head)
        self.linear1 = nn.Linear(dim, dim_mlp)
        self.linear2 = nn.Linear(dim_mlp, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def _attend(self, qk: Tensor, v: Tensor) -> Tensor:
        attn, (t, n, dim) = self.self_attn, v.shape
        w_qk, w_v = attn.in_proj_weight.split((2 * dim, dim))
        b_qk, b_v = attn.in_proj_bias.split((2 * dim, dim))
        q, k = F.linear(qk, w_qk, b_qk).chunk(2, dim=2)
        q, k, v = (p.view(t, n, attn.num_heads, -1).permute(1, 2, 0, 3) for p in (q, k, F.linear(v, w_v, b_v)))
        out = F.scaled_dot_product_attention(q, k, v)  # [N,heads,T,dim/heads]
        return attn.out_proj(out.permute(2, 0, 1, 3).reshape(t, n, dim))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self._attend(h + position, h)
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))


class FuseBlock(nn.Module):
    """Controllable feature transformation, equation 4 of the paper: dec + w * (dec * scale + shift)."""

    def __init__(self, channels: int, norm_channels: int = 1):
        super().__init__()
        self.encode_enc = ResBlock(2 * channels, channels, norm_channels)

        def branch() -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(channels, channels, 3, padding=1),
            )

        self.scale, self.shift = branch(), branch()

    @torch.no_grad()
    def start_without_effect(self) -> None:
        """Leave features as they are, whatever w, until the last convolutions have changed."""
        for branch in (self.scale, self.shift):
            nn.init.zeros_(branch[-1].weight)
            nn.init.zeros_(branch[-1].bias)

    def forward(self, enc: Tensor, dec: Tensor, w: float | Tensor) -> Tensor:
        h = self.encode_enc(torch.cat([enc, dec], dim=1))
        return dec + w * (dec * self.scale(h) + self.shift(h))


class CodeFormer(nn.Module):
    """The restoring network.

    ``net(x, w=0.5, adain=False, code_selection="hard")`` with x [N,3,S,S] RGB in [-1,1] returns a tuple: image
    [N,3,S,S] about [-1,1], logits [N,T,codes], lq_feat [N,emb_dim,h,w]. w in [0,1] is the fidelity: 0 trusts the
    codebook, 1 follows the input. A float w of 0 computes no fusion; a tensor w of shape [N] gives each face its own.
    """

    def __init__(self, cfg: CodeFormerConfig = CodeFormerConfig()):
        super().__init__()
        self.config = cfg
        self.position_emb = nn.Parameter(torch.zeros(cfg.latent_side**2, cfg.dim_embd))
        self.encoder = Encoder(cfg)
        self.quantize = VectorQuantizer(cfg)
        self.generator = Generator(cfg)
        self.feat_emb = nn.Linear(cfg.emb_dim, cfg.dim_embd)
        self.ft_layers = nn.ModuleList(
            TransformerLayer(cfg.dim_embd, cfg.n_head, cfg.dim_mlp) for _ in range(cfg.n_layers)
        )
        self.idx_pred_layer = nn.Sequential(
            nn.LayerNorm(cfg.dim_embd), nn.Linear(cfg.dim_embd, cfg.codebook_size, bias=False)
        )
        self.fuse_convs_dict = nn.ModuleDict(
            {str(s): FuseBlock(cfg.channels_at(s), cfg.norm_channels) for s in cfg.connect_list}
        )

    def forward(
        self,
        x: Tensor,
        w: float | Tensor = 0.5,
        adain: bool = False,
        code_selection: CodeSelection = "hard",
        detach_features: bool = False,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        state = self.encode(x, code_selection, temperature)
        return self.decode(state, w, adain, detach_features), state.logits, state.lq_feat

    def encode(self, x: Tensor, code_selection: CodeSelection = "hard", temperature: float = 1.0) -> CodeState:
        """[N,3,S,S] in [-1,1] -> codes and encoder features; independent of w."""
        sides = {index: side for side, index in self.encoder.taps.items() if side in self.config.connect_list}
        features: dict[int, Tensor] = {}
        for i, block in enumerate(self.encoder.blocks):
            x = block(x)
            if i in sides:
                features[sides[i]] = x
        logits = self.predict(x)
        return CodeState(logits, self.select(logits, code_selection, temperature), x, features)

    def predict(self, lq_feat: Tensor) -> Tensor:
        """[N,emb_dim,h,w] encoder output -> [N,T,codes] logits."""
        position = self.position_emb.unsqueeze(1)  # [T,1,dim]
        tokens = self.feat_emb(lq_feat.flatten(2).permute(2, 0, 1))  # [T,N,dim]
        for layer in self.ft_layers:
            tokens = layer(tokens, position)
        return self.idx_pred_layer(tokens).transpose(0, 1)

    def select(self, logits: Tensor, how: CodeSelection = "hard", temperature: float = 1.0) -> Tensor:
        """[N,T,codes] logits -> [N,emb_dim,h,w] code vectors.

        "hard" is inference: the most likely code, no gradient to the logits. "straight_through" has the same forward
        value, and the gradient of the softmax average (Bengio et al. 2013). "soft" is that average itself. "gumbel"
        samples one code (Jang et al. 2017) with straight-through gradient.
        """
        if how not in get_args(CodeSelection):
            raise ValueError(f"code_selection is {how!r}; use one of {', '.join(get_args(CodeSelection))}.")
        side = self.config.latent_side
        book = self.quantize.embedding.weight

        def as_map(tokens: Tensor) -> Tensor:  # [N,T,D] -> [N,D,h,w]
            return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, side, side)

        if how == "soft":
            return as_map((logits / temperature).softmax(2) @ book)
        if how == "gumbel":
            return as_map(F.gumbel_softmax(logits, tau=temperature, hard=True, dim=2) @ book)
        hard = self.quantize.lookup(logits.argmax(2), side, side)
        if how == "hard":
            return hard
        soft = as_map((logits / temperature).softmax(2) @ book)
        return hard + (soft - soft.detach())  # the difference is exactly zero: the forward value is the hard one

    def decode(
        self, state: CodeState, w: float | Tensor = 0.5, adain: bool = False, detach_features: bool = False
    ) -> Tensor:
        """Image [N,3,S,S] of a state at fidelity ``w`` (float, or tensor [N]).

        ``detach_features=True`` is the published training rule: no gradient from the fusion to the encoder.
        """
        fuse = isinstance(w, Tensor) or w > 0
        if isinstance(w, Tensor) and w.ndim:
            w = w.view(-1, 1, 1, 1)
        x = adain_codes(state) if adain else state.quant
        sides = {index: side for side, index in self.generator.taps.items() if side in self.config.connect_list}
        for i, block in enumerate(self.generator.blocks):
            x = block(x)
            if fuse and i in sides:
                enc = state.features[sides[i]]
                x = self.fuse_convs_dict[str(sides[i])](enc.detach() if detach_features else enc, x, w)
        return x


def adain_codes(state: CodeState) -> Tensor:
    """The codes with the channel statistics of the encoder output."""
    return adain(state.quant, state.lq_feat)
