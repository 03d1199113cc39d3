"""Weight files and checkpoints as starting points."""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor, nn

from .config import ConfigError


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """State dict of a checkpoint of ours (its EMA), a published .pth, a .safetensors file or an embedded name."""
    file = Path(path)
    if file.suffix == ".ckpt":
        from .checkpoint import read_checkpoint

        return read_checkpoint(file)["ema"]
    from idcodeformer.weights.loading import read_state
    from idcodeformer.weights.store import find

    return {k: v.float() if v.is_floating_point() else v for k, v in read_state(find(str(path)))[0].items()}


def load_network(path: str | Path, kind: str) -> nn.Module:
    """A frozen network in fp32, by file or by embedded name."""
    from idcodeformer.weights.loading import build
    from idcodeformer.weights.store import find

    return build(find(str(path)), kind).float().eval().requires_grad_(False)


def load_part(
    net: nn.Module,
    path: str | Path,
    parts: Sequence[str],
    optional: bool = False,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Copy the named children of ``net`` from a file (or its ``state``, already read), strictly.

    Raises ConfigError where one is absent or differs; with ``optional`` a child absent altogether stays as it is.
    """
    state = read_tensors(path) if state is None else state
    for part in parts:
        mine = {k: v for k, v in net.state_dict().items() if k == part or k.startswith(part + ".")}
        theirs = {k: state[k] for k in mine if k in state and state[k].shape == mine[k].shape}
        if len(theirs) == len(mine):
            net.load_state_dict(theirs, strict=False)
        elif not optional or theirs:
            lacking = next(k for k in mine if k not in theirs)
            raise ConfigError(
                f"{path} does not fit this network: '{lacking}' is absent or of another size. Check net.* and init."
            )


def move(batch: dict, device: torch.device) -> dict:
    """The batch on ``device``. Positions become a list: they seed draws on the host, which must not wait for them."""
    if isinstance(batch.get("position"), Tensor):
        batch = {**batch, "position": batch["position"].tolist()}
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def split(batch: dict, parts: int) -> list[dict]:
    """The batch in ``parts`` of equally many images, in order; what is neither tensor nor list goes to each."""
    if parts == 1:
        return [batch]
    count = len(batch["truth"]) // parts
    return [
        {k: v[i * count : (i + 1) * count] if isinstance(v, (Tensor, list)) else v for k, v in batch.items()}
        for i in range(parts)
    ]
