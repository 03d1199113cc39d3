"""The part of ComfyUI's ModelPatcher that the pack uses: the attributes it writes on a module are the real one's."""


class ModelPatcher:
    def __init__(self, model, load_device, offload_device):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        model.device = offload_device
        model.model_loaded_weight_memory = 0
        model.lowvram_patch_counter = 0
        model.model_lowvram = False
        model.current_weight_patches_uuid = None
