"""The part of ComfyUI's model management that the pack uses. ``state`` is the tests' door to it."""
from types import SimpleNamespace

import torch

FORCE_FP32 = False
OOM_EXCEPTION = torch.cuda.OutOfMemoryError
state = SimpleNamespace(
    interrupted=False, loaded=[], novram=False, freed=[], unloads=0, requests=[], smart_memory=True, away={}
)


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


def unload(model) -> None:
    """What moving a model away means for whoever still holds its network: its weights are gone from the device."""
    if model in state.loaded:
        state.loaded.remove(model)
    kept = {}
    for module in model.model.modules():
        for name, value in list(module._parameters.items()):
            if value is not None:
                kept[module, name] = value
                module._parameters[name] = torch.nn.Parameter(value.to("meta"), requires_grad=False)
    state.away[model] = kept


def load_models_gpu(models, memory_required=0, force_full_load=False) -> None:
    state.requests.append((len(models), memory_required))
    if not state.smart_memory:  # --disable-smart-memory: all that is not asked for now goes
        for other in [other for other in state.loaded if other not in models]:
            unload(other)
    for model in models:
        for (module, name), value in state.away.pop(model, {}).items():
            module._parameters[name] = value
        if model not in state.loaded:
            state.loaded.append(model)
        if not state.novram:
            model.model.to(model.load_device)
