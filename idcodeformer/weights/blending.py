"""Between two trainings of one network: A + strength (B - A), tensor by tensor.

Control and identity arm share their start and their codebook, so that the straight line between them is made of working
networks (linear mode connectivity, Frankle et al. 2020; fine-tuned weights: Wortsman et al. 2022). Along it likeness
grows about in proportion and the error with the square. Fusion that A lacks is B's without effect there, so that its
effect grows along the line.
"""
from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..errors import BadOption, UnsupportedWeights
from ..networks.codeformer import CodeFormer
from .loading import build, config_of

_LEAST, _MOST = -1.0, 3.0  # strengths; beyond, nothing of either network is left
_SAME_CODES = 0.05  # relative distance of two codebooks that fp16 storage or a few steps may explain


def blend(first: Path, second: Path, strength: float) -> tuple[nn.Module, dict[str, str]]:
    """The network of ``first`` moved by ``strength`` towards ``second``, in float32, and the texts for its file.

    0 is the first, 1 the second, and what lies beyond goes further.

    Raises BadOption for a strength outside -1..3, and UnsupportedWeights where the two are not trainings of one
    network: another architecture or size, or a codebook of their own, whose entries mean other things.
    """
    from .store import sha256_of

    if not _LEAST <= strength <= _MOST:
        raise BadOption(f"The strength is {strength}; give a number from {_LEAST:g} to {_MOST:g}.")
    a, b = build(first), build(second)
    a = _with_fusion_of(a, b)
    if type(a) is not type(b) or config_of(a) != config_of(b):
        raise UnsupportedWeights(
            f"{first.name} is {type(a).__name__} {config_of(a)}, {second.name} is {type(b).__name__} {config_of(b)}; "
            "only two trainings of one network can be blended."
        )
    others = b.state_dict()
    codes = {name: value for name, value in a.state_dict().items() if name == "quantize.embedding.weight"}
    for name, value in codes.items():
        if float((value - others[name]).norm()) > _SAME_CODES * float(value.norm()):
            raise UnsupportedWeights(
                f"{first.name} and {second.name} have codebooks of their own, so a blend of them means nothing; "
                "choose two files that were trained from the same start."
            )
    blended = {
        name: torch.lerp(value, others[name], strength) if value.is_floating_point() else value
        for name, value in a.state_dict().items()
    }
    a.load_state_dict(blended)
    return a, {
        "blend": f"{strength:g}",
        "blend_of": f"{first.name} {sha256_of(first)}; {second.name} {sha256_of(second)}",
        "licence": _licences(a, b),
    }


def _with_fusion_of(a: nn.Module, b: nn.Module) -> nn.Module:
    """``a`` with fusion at the sides of ``b`` too, where it lacks only those and is a CodeFormer; else ``a`` itself."""
    if not (isinstance(a, CodeFormer) and isinstance(b, CodeFormer)):
        return a
    lacking = [side for side in b.config.connect_list if side not in a.config.connect_list]
    if not lacking or replace(a.config, connect_list=b.config.connect_list) != b.config:
        return a
    wide = copy.deepcopy(b)
    for side in lacking:
        wide.fuse_convs_dict[str(side)].start_without_effect()
    wide.load_state_dict(a.state_dict(), strict=False)
    wide.weights_metadata = getattr(a, "weights_metadata", {})
    return wide


def _licences(*networks: nn.Module) -> str:
    """The terms of both: a blend may be used only as each of them may."""
    said = [getattr(net, "weights_metadata", {}).get("licence") or "not stated" for net in networks]
    return " And: ".join(dict.fromkeys(said))
