"""One process or many: Lightning Fabric from a configuration, and signals that wait for the end of a step."""
from __future__ import annotations

import signal
import threading
import time
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException

from .config import ConfigError, TrainConfig


def make_fabric(config: TrainConfig) -> Fabric:
    """One CPU or GPU, several of them, or several nodes (DDP: gloo on CPU, NCCL on CUDA). Raises ConfigError.

    With ``nodes`` > 1 the same command runs once on every node. Fabric reads the rest from the environment: torchrun's
    variables, SLURM's, or MASTER_ADDR, MASTER_PORT and NODE_RANK.
    """
    many, sparse = config.devices * config.nodes > 1, config.fidelity.code_only_every > 0
    # only steps without image losses leave parameters out; elsewhere looking for them only costs time
    strategy: Any = DDPStrategy(find_unused_parameters=sparse, broadcast_buffers=False) if many else "auto"
    try:
        return Fabric(
            accelerator=config.accelerator, devices=config.devices, num_nodes=config.nodes, strategy=strategy,
            precision=config.precision,  # type: ignore[arg-type]
        )  # fmt: skip
    except (MisconfigurationException, ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"Configuration keys 'accelerator', 'devices', 'precision' ({config.accelerator}, {config.devices}, "
            f"{config.precision}) do not fit this machine: {' '.join(str(error).split())} "
            "Name others, on a CPU: accelerator=cpu devices=1"
        ) from error


def half_precision_cost(dtype: torch.dtype = torch.bfloat16) -> float:
    """Time of a small convolution in ``dtype`` on this CPU over its time in fp32; takes some hundredths of a second."""
    seconds = []
    for kind in (torch.float32, dtype):
        x, weight = torch.full((1, 32, 32, 32), 0.5, dtype=kind), torch.full((32, 32, 3, 3), 0.5, dtype=kind)
        runs = []
        with torch.inference_mode():
            for _ in range(4):  # the first one prepares the kernel
                start = time.perf_counter()
                F.conv2d(x, weight)
                runs.append(time.perf_counter() - start)
        seconds.append(min(runs[1:]))
    return seconds[1] / seconds[0]


def precision_notice(config: TrainConfig, device: torch.device) -> str | None:
    """A sentence where mixed precision makes the run slower: a CPU that has no bf16 instructions emulates them."""
    if device.type != "cpu" or config.precision == "32-true":
        return None
    cost = half_precision_cost(torch.float16 if config.precision == "16-mixed" else torch.bfloat16)
    if cost < 2:
        return None
    return (
        f"precision={config.precision} is slow on this CPU: a convolution takes {cost:.0f} times as long as in fp32. "
        "Stop and start with precision=32-true."
    )


class StopSignal:
    """Within the context SIGINT, SIGTERM and SIGHUP (a closed terminal; not under ``nohup``) set ``asked``; a second
    SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def _ask(self, number: int, _: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in filter(None, (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))):
                if number != signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
