"""Face restorers whose networks spandrel builds: GFPGAN (Wang et al. 2021), RestoreFormer (Wang et al. 2022).

They have no fidelity: a face goes in, a face comes out. Configs are read off tensor shapes, so narrow ones load too.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import MissingPackage
from .config import NetworkConfig

State = Mapping[str, Tensor]
GFPGAN_KEYS = ("toRGB.0.weight", "stylegan_decoder.style_mlp.1.weight", "conv_body_first.weight")
RESTOREFORMER_KEYS = ("encoder.conv_in.weight", "decoder.conv_out.weight", "quantize.embedding.weight")
_COARSEST_ATTENTION = 16  # px; where RestoreFormer's attention stands


@dataclass(frozen=True)
class ForeignConfig(NetworkConfig):
    """What a network of spandrel's is built from, and what estimating its memory needs."""

    architecture: str  # a package of spandrel.architectures, and the class in it
    arguments: tuple[tuple[str, Any], ...] = ()  # of the class
    img_size: int = 512  # px, side of the crops
    nf: int = 64  # channels at full size


def gfpgan_config(state: State) -> ForeignConfig:
    """Of GFPGAN v1.2 to v1.4 (the "clean" layout)."""
    levels = len([key for key in state if key.startswith("toRGB.") and key.endswith(".weight")])
    size = 2 ** (levels + 2)
    narrow = state["stylegan_decoder.constant_input.weight"].shape[1] / 512
    features = state["stylegan_decoder.style_mlp.1.weight"].shape[0]
    multiplier = round(state["toRGB.3.weight"].shape[1] / (128 * narrow)) if levels > 3 else 2
    arguments = {
        "out_size": size,
        "num_style_feat": features,
        "channel_multiplier": multiplier,
        "num_mlp": len([k for k in state if k.startswith("stylegan_decoder.style_mlp.") and k.endswith(".weight")]),
        "input_is_latent": True,
        "different_w": state["final_linear.weight"].shape[0] > features,
        "narrow": narrow,
        "sft_half": state["condition_scale.0.2.weight"].shape[0] == state["toRGB.0.weight"].shape[1],
    }
    return ForeignConfig("GFPGAN", tuple(arguments.items()), size)


def restoreformer_config(state: State) -> ForeignConfig:
    """Of RestoreFormer. RestoreFormer++ has further attention that spandrel does not build, and is refused."""
    ch = state["encoder.conv_in.weight"].shape[0]
    levels = len({key.split(".")[2] for key in state if key.startswith("encoder.down.")})
    widths = [state[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)]
    attended = sorted({int(key.split(".")[2]) for key in state if key.startswith("encoder.down.") and ".attn." in key})
    codes, width = state["quantize.embedding.weight"].shape
    latent = state["quant_conv.weight"].shape[1]
    size = _COARSEST_ATTENTION << (max(attended) if attended else levels - 1)
    arguments = {
        "n_embed": codes,
        "embed_dim": width,
        "ch": ch,
        "out_ch": state["decoder.conv_out.weight"].shape[0],
        "ch_mult": tuple(each // ch for each in widths),
        "num_res_blocks": len({k.split(".")[4] for k in state if k.startswith("encoder.down.0.block.")}),
        "attn_resolutions": tuple(size >> level for level in attended),
        "resolution": size,
        "z_channels": latent,
        "double_z": state["encoder.conv_out.weight"].shape[0] == 2 * latent,
        "enable_mid": "encoder.mid.block_1.norm1.weight" in state,
        "head_size": math.gcd(8, widths[-1]),
    }
    return ForeignConfig("RestoreFormer", tuple(arguments.items()), size, ch)


def build_foreign(config: ForeignConfig) -> nn.Module:
    """An empty network of that config. Raises MissingPackage where spandrel is missing."""
    from importlib import import_module

    try:
        package = import_module(f"spandrel.architectures.{config.architecture}")
    except ImportError as error:
        raise MissingPackage(f"{config.architecture} needs the spandrel package; run: pip install spandrel") from error
    return getattr(package, config.architecture)(**dict(config.arguments))


def restore(network: nn.Module, x: Tensor) -> Tensor:
    """Faces [N,3,S,S] in [-1,1] -> the same, by a network of ``build_foreign``; the noise is the file's own."""
    if type(network).__name__ == "GFPGANv1Clean":
        return network(x, return_rgb=False, randomize_noise=False)[0]
    return network(x)[0]
