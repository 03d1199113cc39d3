"""The part of ComfyUI's model management that the pack uses. ``state`` is the tests' door to it."""
from types import SimpleNamespace

import torch

FORCE_FP32 = False
OOM_EXCEPTION = torch.cuda.OutOfMemoryError
state = SimpleNamespace(interrupted=False, loaded=[], novram=False, freed=[], unloads=0)


class InterruptProcessingException(Exception):
    pass


def interrupt_current_processing(value: bool = True) -> None:
    state.interrupted = value


def throw_exception_if_processing_interrupted() -> None:
    if state.interrupted:
        state.interrupted = False
        raise InterruptProcessingException()


def get_torch_device() -> torch.device:
    return torch.device("cpu")


def intermediate_device() -> torch.device:
    return torch.device("cpu")


def unet_offload_device() -> torch.device:
    return torch.device("cpu")


def should_use_fp16(device=None) -> bool:
    return False


def free_memory(memory_required, device) -> list:
    state.freed.append((memory_required, device))
    return []


def unload_all_models() -> None:
    state.unloads += 1
    state.loaded.clear()


def load_models_gpu(models, memory_required=0, force_full_load=False) -> None:
    for model in models:
        if model not in state.loaded:
            state.loaded.append(model)
        if not state.novram:
            model.model.to(model.load_device)
