"""The part of ComfyUI's model management that the pack uses. ``state`` is the tests' door to it."""
from types import SimpleNamespace

import torch

FORCE_FP32 = False
OOM_EXCEPTION = torch.cuda.OutOfMemoryError
NEW = {
    "interrupted": False,
    "loaded": [],  # patchers, oldest first
    "novram": False,
    "freed": [],
    "unloads": 0,
    "requests": [],  # (patchers, memory_required) of every load
    "disable_smart_memory": False,
    "capacity": None,  # bytes of the card; None = it is never full
    "offload": "cpu",  # "meta": a second device, where weights are that nothing can be computed with
}
state = SimpleNamespace()


def reset() -> None:
    vars(state).update({key: list(value) if isinstance(value, list) else value for key, value in NEW.items()})


reset()


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
    return torch.device(state.offload)


def should_use_fp16(device=None) -> bool:
    return False


def free_memory(memory_required, device) -> list:
    state.freed.append((memory_required, device))
    return []


def unload_all_models() -> None:
    state.unloads += 1
    for model in state.loaded:
        model.leave()
    state.loaded.clear()


def load_models_gpu(models, memory_required=0, force_full_load=False) -> None:
    """As the host does it: others leave, oldest first, until there is room; always with --disable-smart-memory."""
    state.requests.append((list(models), memory_required))
    needed = sum(model.size() - model.there() for model in models) + memory_required
    for other in [model for model in state.loaded if model not in models]:
        used = sum(model.there() for model in state.loaded)
        missing = None if state.capacity is None else needed - (state.capacity - used)
        if state.disable_smart_memory:
            other.leave()
        elif missing is not None and missing > 0:
            other.leave(missing)
        if not other.there():
            state.loaded.remove(other)
    for model in models:
        if model not in state.loaded:
            state.loaded.append(model)
        if not state.novram:
            model.enter()
