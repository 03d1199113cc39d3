"""The part of ComfyUI's utils that the pack uses."""
import torch

hook = None  # called with (value, total, preview), as the host's hook is


class ProgressBar:
    def __init__(self, total):
        self.total, self.current = total, 0

    def update_absolute(self, value, total=None, preview=None):
        self.total = self.total if total is None else total
        self.current = min(value, self.total)
        if hook is not None:
            hook(self.current, self.total, preview)


def tiled_scale(samples, function, tile_x=64, tile_y=64, overlap=8, upscale_amount=4):
    """Without tiles: the seams are the host's affair."""
    return torch.cat([function(sample[None]) for sample in samples]).float()
