"""Where tensors live: one rule for every ``device=`` argument of the package."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import NoDevice


def resolve_device(device: torch.device | str | None = None) -> torch.device:
    """The device asked for, checked to exist; None takes CUDA, else Apple's MPS, else the CPU.

    Raises NoDevice where this machine or this torch does not have it.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise NoDevice(f"'{device}' names no device; use cuda, cuda:1, mps or cpu.") from error
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise NoDevice(
                f"CUDA was asked for, but torch {torch.__version__} finds no CUDA device; use device cpu, or install "
                "the driver and a CUDA build of torch (https://pytorch.org/get-started/locally)."
            )
        if wanted.index is not None and wanted.index >= count:
            raise NoDevice(f"'{wanted}' does not exist; use cuda:0 to cuda:{count - 1}.")
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise NoDevice("MPS was asked for, but this torch has none here; use device cpu.")
    return wanted


@contextmanager
def cuda_tf32(allowed: bool) -> Iterator[None]:
    """Whether CUDA may round float32 convolutions and products, for the length of a block; the flags are put back."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = allowed
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
