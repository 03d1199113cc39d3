"""Of findings that overlap, the best one."""
from __future__ import annotations

import torch
from torch import Tensor


def suppress(boxes: Tensor, scores: Tensor, overlap: float, groups: Tensor | None = None) -> Tensor:
    """Indices, best first, of boxes [N,4] (x0 y0 x1 y1) that overlap no better one by more than ``overlap``.

    Intersection over union; only boxes of one of ``groups`` [N] count against each other. On the CPU, by OpenCV: the
    findings are few, and torchvision, which has it too, takes 1.5 seconds to import.
    """
    if not len(boxes):
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    import cv2

    corners = boxes.detach().cpu().double()
    sides = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).numpy()
    values = scores.detach().cpu().float().numpy()
    least = float(values.min()) - 1  # all count; the caller has chosen
    numbers = torch.zeros(len(boxes)) if groups is None else groups
    kept = cv2.dnn.NMSBoxesBatched(sides, values, numbers.cpu().int().numpy(), least, overlap)
    return torch.as_tensor(kept, dtype=torch.int64, device=boxes.device).flatten()
