"""One process or many: Lightning Fabric from a configuration, and signals that wait for the end of a step."""
from __future__ import annotations

import signal
import threading
from typing import Any

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
    # only steps without image losses leave parameters out; elsewhere the search for them would be in vain
    strategy: Any = DDPStrategy(find_unused_parameters=sparse, broadcast_buffers=False) if many else "auto"
    try:
        return Fabric(
            accelerator=config.accelerator, devices=config.devices, num_nodes=config.nodes, strategy=strategy,
            precision=config.precision,  # type: ignore[arg-type]
        )  # fmt: skip
    except (MisconfigurationException, ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"Configuration keys 'accelerator', 'devices', 'precision' ({config.accelerator}, {config.devices}, "
            f"{config.precision}) do not fit this machine: {' '.join(str(error).split())}"
        ) from error


class StopSignal:
    """Within the context SIGINT and SIGTERM set ``asked``; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def _ask(self, number: int, _: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
