"""The yardstick: one plain eager forward pass of our own network, in the formulation the paper's code publishes.

float32, NCHW, batch as given, attention as an explicit softmax, SiLU as x * sigmoid(x), no inference mode, no fused
operator but torch's convolution, linear, GroupNorm and LayerNorm. It shares the weights of the network it is given and
nothing else.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idcodeformer.networks.codeformer import CodeFormer, FuseBlock, TransformerLayer
from idcodeformer.networks.vqgan import AttnBlock, ResBlock


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _res(block: ResBlock, x: Tensor) -> Tensor:
    h = block.conv1(_swish(block.norm1(x)))
    h = block.conv2(_swish(block.norm2(h)))
    return h + (x if block.conv_out is None else block.conv_out(x))


def _attn(block: AttnBlock, x: Tensor) -> Tensor:
    n, c, height, width = x.shape
    h = block.norm(x)
    q, k, v = (p(h).reshape(n, c, height * width) for p in (block.q, block.k, block.v))
    weights = torch.softmax(torch.bmm(q.permute(0, 2, 1), k) * c**-0.5, dim=2)
    return x + block.proj_out(torch.bmm(v, weights.permute(0, 2, 1)).reshape(n, c, height, width))


def _layer(layer: TransformerLayer, x: Tensor, position: Tensor) -> Tensor:
    """Tokens [T,N,dim]."""
    attn, (t, n, dim) = layer.self_attn, x.shape
    h = layer.norm1(x)
    inputs, weights, biases = (h + position, h + position, h), attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(i, w, b).reshape(t, n * attn.num_heads, -1).transpose(0, 1) for i, w, b in zip(inputs, weights, biases)
    )
    share = torch.softmax(torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2)), dim=-1)
    x = x + attn.out_proj(torch.bmm(share, v).transpose(0, 1).reshape(t, n, dim))
    return x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))


def _fuse(block: FuseBlock, enc: Tensor, dec: Tensor, w: float) -> Tensor:
    h = _res(block.encode_enc, torch.cat([enc, dec], dim=1))
    return dec + w * (dec * block.scale(h) + block.shift(h))


def _apply(block: nn.Module, x: Tensor) -> Tensor:
    if isinstance(block, ResBlock):
        return _res(block, x)
    return _attn(block, x) if isinstance(block, AttnBlock) else block(x)


def _adain(content: Tensor, style: Tensor) -> Tensor:
    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.reshape(*x.shape[:2], -1)
        return flat.mean(2)[..., None, None], (flat.var(2) + 1e-5).sqrt()[..., None, None]

    (c_mean, c_std), (s_mean, s_std) = moments(content), moments(style)
    return (content - c_mean) / c_std * s_std + s_mean


@torch.no_grad()
def plain_forward(net: CodeFormer, x: Tensor, w: float, adain: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x [N,3,S,S] in [-1,1] -> (image, logits [N,T,codes], lq_feat), as ``net(x, w, adain)``."""
    taps = {index: side for side, index in net.encoder.taps.items() if side in net.config.connect_list}
    features = {}
    for i, block in enumerate(net.encoder.blocks):
        x = _apply(block, x)
        if i in taps:
            features[taps[i]] = x.clone()
    tokens = net.feat_emb(x.flatten(2).permute(2, 0, 1))
    position = net.position_emb.unsqueeze(1).repeat(1, x.shape[0], 1)
    for layer in net.ft_layers:
        tokens = _layer(layer, tokens, position)
    logits = net.idx_pred_layer(tokens).permute(1, 0, 2)
    codes = torch.softmax(logits, dim=2).argmax(2)
    z = net.quantize.lookup(codes, net.config.latent_side, net.config.latent_side)
    z, lq_feat = (_adain(z, x) if adain else z), x
    taps = {index: side for side, index in net.generator.taps.items() if side in net.config.connect_list}
    for i, block in enumerate(net.generator.blocks):
        z = _apply(block, z)
        if w > 0 and i in taps:
            z = _fuse(net.fuse_convs_dict[str(taps[i])], features[taps[i]], z, w)
    return z, logits, lq_feat
