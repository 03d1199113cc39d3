"""One check at the door of everything that reads pictures."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import BadImage

_BRIGHTEST = 16.0  # far above any highlight of a picture in [0,1], far below one in 0..255


SMALLEST_CROP = 16  # px; an aligned crop below this shows no face


def check_crops(pixels: Tensor, size: int) -> None:
    """Raise BadImage where ``pixels`` are no [N,3,size,size], or on the CPU no finite ones in [0,1]."""
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
        given = list(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise BadImage(f"Crops are {given}; this network takes [N,3,{size},{size}]. Align with size={size}.")
    check_floats(pixels)
    if pixels.device.type == "cpu":  # on a GPU looking at values would make the host wait
        check_images(pixels)


def check_floats(pixels: Tensor) -> None:
    """Raises BadImage for crops of whole numbers."""
    if not pixels.is_floating_point():
        raise BadImage(f"Crops are {pixels.dtype}; convert them to float and divide by 255.")


def check_images(images: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The pictures as a list of [3,H,W] tensors, float in [0,1] or uint8; accepts [B,3,H,W] too.

    Raises BadImage for another shape or type, an empty picture, NaN or infinite pixels, and for floats in 0..255. Costs
    one pass over floats on their device and a single transfer for the whole batch.
    """
    if isinstance(images, Tensor) and images.dim() != 4:
        raise BadImage(f"A batch has shape {tuple(images.shape)}; give [B,3,H,W] or a list of [3,H,W] in 0..1.")
    batch = list(images)
    for number, image in enumerate(batch):
        if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3:
            shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise BadImage(f"Image {number} is {shape}; give an RGB tensor [3,H,W] with values in 0..1.")
        if image.numel() == 0:
            raise BadImage(f"Image {number} has no pixels ({image.shape[2]}x{image.shape[1]}); leave it out.")
        if not image.is_floating_point() and image.dtype != torch.uint8:
            raise BadImage(f"Image {number} holds {image.dtype}; convert it to float in 0..1, or to uint8.")
    _check_values([(number, image) for number, image in enumerate(batch) if image.dtype != torch.uint8])
    return batch


def _check_values(batch: list[tuple[int, Tensor]]) -> None:
    if not batch:
        return
    # aminmax passes NaN on, so two numbers an image tell all. Older torches have none for half precision on the CPU.
    whole = [image.float() if image.dtype == torch.float16 and image.device.type == "cpu" else image
             for _, image in batch]  # fmt: skip
    extremes = torch.stack([torch.stack(image.aminmax()).float().to(whole[0].device) for image in whole]).tolist()
    for (number, _), (low, high) in zip(batch, extremes):
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise BadImage(f"Image {number} holds NaN or infinite pixels; repair the step that made it.")
        if max(abs(low), abs(high)) > _BRIGHTEST:
            reached = max(low, high, key=abs)
            raise BadImage(f"Image {number} reaches {reached:g}; pixels must lie in 0..1, divide by 255.")
