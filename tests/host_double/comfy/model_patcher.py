"""The part of ComfyUI's ModelPatcher that the pack uses: the attributes it writes on a module are the real one's.

With "meta" as the offload device, weights that leave are laid aside here and the module holds meta tensors instead: the
double's compute device is the CPU, so that a run computes, and a network that is used after it has left fails as on a
card. ``module.to(device)`` brings them back, as it would between real devices.
"""
import types

import torch


class ModelPatcher:
    def __init__(self, model, load_device, offload_device):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.aside = []  # (table of a module, name, tensor) of what has left
        self.loaded = False
        model.device = offload_device
        model.model_loaded_weight_memory = 0
        model.lowvram_patch_counter = 0
        model.model_lowvram = False
        model.current_weight_patches_uuid = None

    def _here(self):
        tables = [table for m in self.model.modules() for table in (m._parameters, m._buffers)]
        places = [(table, name, tensor) for table in tables for name, tensor in table.items() if tensor is not None]
        return [place for place in places if place[2].device.type != "meta"]

    def size(self):
        return _bytes(self._here()) + _bytes(self.aside)

    def there(self):
        """Bytes on the compute device."""
        return _bytes(self._here()) if self.loaded else 0

    def leave(self, least=None):
        """Move weights away, from the last on, until ``least`` bytes are free (None: all)."""
        from .model_management import state

        if not self.loaded or state.offload != "meta":
            self.loaded = self.loaded and least is not None
            return
        for table, name, tensor in reversed(self._here()):
            if least is not None and least <= 0:
                break
            least = None if least is None else least - _bytes([(table, name, tensor)])
            self.aside.append((table, name, tensor))
            away = torch.empty_like(tensor, device="meta")
            table[name] = torch.nn.Parameter(away, False) if isinstance(tensor, torch.nn.Parameter) else away
        self.loaded = bool(self._here())
        if least is None:
            self.model.to("meta")  # the host calls it too, with its offload device; here all is laid aside by now
        for module in self.model.modules():
            module.to = types.MethodType(lambda module, *args, **kwargs: self._to(module, *args, **kwargs), module)

    def _to(self, module, *args, **kwargs):
        self.enter()
        return module.to(*args, **kwargs)

    def enter(self):
        for table, name, tensor in self.aside:
            table[name] = tensor
        self.aside.clear()
        for module in self.model.modules():
            vars(module).pop("to", None)
        self.loaded = True
        self.model.to(self.load_device)


def _bytes(places):
    return sum(tensor.numel() * tensor.element_size() for _, _, tensor in places)
