"""What every recogniser network has in common: it takes the same picture and brings it into its own input format."""
from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..geometry.templates import resample_weights

GRAY_WEIGHTS = (0.2989, 0.5870, 0.1140)  # ITU-R BT.601 luma, as GFPGAN's gray recogniser was fed


class EmbeddingNet(nn.Module):
    """Base of the recognisers: ``net(x)`` with x [N,3,S,S] RGB in [-1,1], crops on ArcFace's 112 template (any S).

    Returns [N,embedding_dim], not normalised. Differentiable in x. Subclasses set the attributes and write ``embed``.
    """

    input_size: int = 112  # px, height of what ``embed`` sees
    input_width: int = 112  # px, width of what ``embed`` sees; narrower than the height: the middle columns
    embedding_dim: int = 512
    colour: Literal["rgb", "bgr", "gray"] = "rgb"
    pixel_scale: float = 1.0  # factor from [-1,1] to the range the weights were trained on

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(self.prepare(x))

    def embed(self, x: Tensor) -> Tensor:
        """[N,1 or 3,input_size,input_width] -> [N,embedding_dim]."""
        raise NotImplementedError

    @property
    def levels(self) -> list[nn.Module]:
        """The last module of each resolution, fine to coarse: their outputs are the maps behind the embedding."""
        raise NotImplementedError

    def prepare(self, x: Tensor) -> Tensor:
        """Resize (bilinear, anti-aliased), order or merge colours, cut columns and scale, as this network asks for."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"A recogniser takes [N,3,S,S], not {list(x.shape)}.")
        x = resize(x, self.input_size)
        if self.colour == "gray":
            x = torch.einsum("nchw,c->nhw", x, x.new_tensor(GRAY_WEIGHTS)).unsqueeze(1)
        elif self.colour == "bgr":
            x = x.flip(1)
        if self.input_width < self.input_size:
            left = (self.input_size - self.input_width) // 2
            x = x[..., left : left + self.input_width]
        return x * self.pixel_scale if self.pixel_scale != 1 else x


def resize(x: Tensor, size: int) -> Tensor:
    """[N,C,H,W] -> [N,C,size,size] with a triangle filter; two matrix products, so it runs alike on every device."""
    height, width = x.shape[-2:]
    if (height, width) == (size, size):
        return x
    rows = resample_weights(size, height, size / height, (size / height - 1) / 2, x.device, x.dtype)
    columns = resample_weights(size, width, size / width, (size / width - 1) / 2, x.device, x.dtype)
    return rows @ (x @ columns.t())
