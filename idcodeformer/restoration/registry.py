"""Which restorer works with a network: another one is a file here and a row."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedWeights
from .codeformer import CodeFormerRestorer
from .foreign import ForeignRestorer

# kind of network, as in weights.loading.ARCHITECTURES -> restorer(network, device, precision, in_place)
RESTORERS: dict[str, Callable[..., Any]] = {"codeformer": CodeFormerRestorer, "face_network": ForeignRestorer}


def restorer_of(
    network: nn.Module, device: torch.device | str | None = None, precision: Any = "auto", in_place: bool = False
) -> Any:
    """The restorer (types.Restorer) that works with a network of ``weights.loading.build``.

    ``in_place`` as for CodeFormerRestorer. Raises UnsupportedWeights for a network that restores no faces, BadOption
    for a precision it does not have.
    """
    from ..weights.loading import kind_of

    kind = kind_of(network)
    if kind not in RESTORERS:
        raise UnsupportedWeights(f"{type(network).__name__} restores no faces; choose the file of a restorer.")
    return RESTORERS[kind](network, device, precision, in_place)
