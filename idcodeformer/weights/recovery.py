"""Reading a network's config off the shapes of its tensors."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..networks.codeformer import CodeFormerConfig
from ..networks.vqgan import VQGANConfig

State = Mapping[str, Tensor]


def vqgan_config(state: State) -> VQGANConfig:
    """The config of a VQGAN. The image side is not visible (the network is convolutional): it is taken to be the one
    that puts the coarsest attention at 16 px, as in the published network."""
    shape = _encoder_shape(state)
    levels = len(shape["ch_mult"])
    attended = shape.pop("attention_levels")
    img_size = 16 << (max(attended) if attended else levels - 1)
    img_size = max(img_size, 1 << (levels - 1))
    return VQGANConfig(img_size=img_size, attn_resolutions=tuple(img_size >> v for v in attended), **shape)


def codeformer_config(state: State) -> CodeFormerConfig:
    """The config of a CodeFormer. The number of heads is not visible: it is taken to be 8, as published, or the largest
    divisor of the width that it shares with 8."""
    shape = _encoder_shape(state)
    tokens, dim = state["position_emb"].shape
    img_size = math.isqrt(tokens) << (len(shape["ch_mult"]) - 1)
    attended = shape.pop("attention_levels")
    return CodeFormerConfig(
        img_size=img_size,
        attn_resolutions=tuple(img_size >> v for v in attended),
        dim_embd=dim,
        dim_mlp=state["ft_layers.0.linear1.weight"].shape[0],
        n_head=math.gcd(8, dim),
        n_layers=_count(state, "ft_layers."),
        connect_list=tuple(sorted({int(k.split(".")[1]) for k in state if k.startswith("fuse_convs_dict.")})),
        **shape,
    )


def _encoder_shape(state: State) -> dict[str, Any]:
    """nf, ch_mult, res_blocks, emb_dim, codebook_size and the levels that have attention, from the encoder's blocks."""
    nf = state["encoder.blocks.0.weight"].shape[0]
    count = _count(state, "encoder.blocks.")
    levels: list[list[int]] = [[]]  # channels after every residual block of every level
    attended = set()
    for i in range(1, count - 5):  # the last five: residual block, attention, residual block, norm, convolution
        block = f"encoder.blocks.{i}."
        if block + "conv2.weight" in state:
            levels[-1].append(state[block + "conv2.weight"].shape[0])
        elif block + "q.weight" in state:
            attended.add(len(levels) - 1)
        else:
            levels.append([])
    if len({len(level) for level in levels}) != 1 or not levels[0] or any(level[-1] % nf for level in levels):
        raise ValueError("the encoder's blocks do not form levels of equal depth")
    codes, emb_dim = state["quantize.embedding.weight"].shape
    return {
        "nf": nf,
        "ch_mult": tuple(level[-1] // nf for level in levels),
        "res_blocks": len(levels[0]),
        "codebook_size": codes,
        "emb_dim": emb_dim,
        "attention_levels": tuple(sorted(attended)),
    }


def discriminator_config(state: State) -> dict[str, Any]:
    """ndf, n_layers and the norm of a PatchDiscriminator."""
    convolutions = [k for k, v in state.items() if v.ndim == 4]
    norm = "batch" if any(k.endswith("running_mean") for k in state) else "group"
    return {"ndf": state["main.0.weight"].shape[0], "n_layers": len(convolutions) - 2, "norm": norm}


def parsenet_config(state: State) -> dict[str, Any]:
    """Arguments of facexlib's ParseNet; its smallest map is 32 px in every published file."""
    down, up = _count(state, "encoder.") - 1, _count(state, "decoder.")
    return {
        "in_size": 32 << down,
        "out_size": 32 << up,
        "base_ch": state["encoder.0.conv2d.weight"].shape[0],
        "parsing_ch": state["out_mask_conv.conv2d.weight"].shape[0],
        "res_depth": _count(state, "body."),
    }


def retinaface_config(state: State) -> dict[str, Any]:
    """Which of the two RetinaFace networks this is."""
    return {"network_name": "mobile0.25" if "body.stage1.0.0.weight" in state else "resnet50"}


def _count(state: State, prefix: str) -> int:
    """How many children a numbered container has."""
    return len({k[len(prefix) :].split(".")[0] for k in state if k.startswith(prefix)})
