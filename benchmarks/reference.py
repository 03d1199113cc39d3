"""The published inference procedure around the networks, one face after another, on full canvases of the output's size.

Written for the benchmark from a description of the procedure (sizes, thresholds, kernels), with OpenCV and NumPy as the
published code uses them; it is a yardstick for speed and is used nowhere else. Images are BGR uint8 [H,W,3].
"""
from __future__ import annotations

from itertools import product
from math import ceil

import cv2
import numpy as np
import torch
from torchvision.ops import nms

TEMPLATE = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
FACE = 512  # px
KEPT = (*range(1, 14), 15)  # ParseNet's classes that are pasted


def detection_input(image: np.ndarray) -> tuple[torch.Tensor, float]:
    """Short side to 640 px, mean off; and the scale."""
    scale = 640 / min(image.shape[:2])
    size = int(image.shape[1] * scale), int(image.shape[0] * scale)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    centred = small.astype(np.float32) - np.array((104, 117, 123), np.float32)
    return torch.from_numpy(np.ascontiguousarray(centred.transpose(2, 0, 1)))[None], scale


def anchors(height: int, width: int) -> torch.Tensor:
    """Anchor boxes of one input, made anew for every image."""
    rows = []
    for stride, sides in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        for i, j in product(range(ceil(height / stride)), range(ceil(width / stride))):
            for side in sides:
                rows += [(j + 0.5) * stride / width, (i + 0.5) * stride / height, side / width, side / height]
    return torch.tensor(rows).view(-1, 4)


def detections(outputs: tuple[torch.Tensor, ...], size: tuple[int, int], scale: float) -> list[np.ndarray]:
    """Network outputs -> landmarks [5,2] in image px of every face above 0.8, after suppression at 0.4."""
    height, width = size
    offsets, probabilities, points = (o[0] for o in outputs)
    prior = anchors(height, width)
    centre = prior[:, :2] + offsets[:, :2] * 0.1 * prior[:, 2:]
    extent = prior[:, 2:] * torch.exp(offsets[:, 2:] * 0.2)
    boxes = torch.cat([centre - extent / 2, centre + extent / 2], 1) * torch.tensor([width, height] * 2)
    marks = prior[:, None, :2] + points.view(-1, 5, 2) * 0.1 * prior[:, None, 2:]
    marks = (marks * torch.tensor([width, height])).numpy()
    scores = probabilities[:, 1].numpy()
    keep = np.where(scores > 0.8)[0]
    keep = keep[np.argsort(-scores[keep])]
    keep = keep[nms(boxes[keep], torch.from_numpy(scores[keep]), 0.4).numpy()]
    return [marks[i] / scale for i in keep]


def align(image: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The crop of one face, and its matrix [2,3]."""
    matrix = cv2.estimateAffinePartial2D(landmarks, TEMPLATE, method=cv2.LMEDS)[0]
    crop = cv2.warpAffine(image, matrix, (FACE, FACE), borderMode=cv2.BORDER_CONSTANT, borderValue=(135, 133, 132))
    return crop, matrix


def network_input(crop: np.ndarray) -> torch.Tensor:
    """BGR uint8 -> RGB [1,3,512,512] in [-1,1]."""
    rgb = torch.from_numpy(cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_BGR2RGB).transpose(2, 0, 1))
    return ((rgb - 0.5) / 0.5)[None]


def network_output(image: torch.Tensor) -> np.ndarray:
    """RGB [1,3,512,512] in [-1,1] -> BGR uint8."""
    rgb = ((image[0].clamp(-1, 1) + 1) / 2).numpy().transpose(1, 2, 0)
    return (cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR) * 255).round().astype(np.uint8)


def parse_mask(labels: np.ndarray) -> np.ndarray:
    """Labels [512,512] -> soft mask: two wide blurs, then a border of zeros."""
    mask = np.zeros(labels.shape)
    for label in range(19):
        mask[labels == label] = 255 if label in KEPT else 0
    for _ in range(2):
        mask = cv2.GaussianBlur(mask, (101, 101), 11)
    for edge in (mask[:10], mask[-10:], mask[:, :10], mask[:, -10:]):
        edge[:] = 0
    return mask / 255


def square_mask(canvas: tuple[int, int], inverse: np.ndarray, upscale: int) -> tuple[np.ndarray, np.ndarray]:
    """(hard, soft) masks of the crop's square on the whole canvas (width, height)."""
    ones = cv2.warpAffine(np.ones((FACE, FACE), np.float32), inverse, canvas)
    hard = cv2.erode(ones, np.ones((2 * upscale, 2 * upscale), np.uint8))
    edge = int(np.sum(hard) ** 0.5) // 20
    inner = cv2.erode(hard, np.ones((edge * 2, edge * 2), np.uint8))
    return hard, cv2.GaussianBlur(inner, (edge * 2 + 1, edge * 2 + 1), 0)


def paste(
    image: np.ndarray,
    faces: list[np.ndarray],
    matrices: list[np.ndarray],
    labels: list[np.ndarray] | None,
    upscale: int,
) -> np.ndarray:
    """Every face warped to the size of the output, masked and blended over all of it, in turn."""
    height, width = image.shape[:2]
    canvas = width * upscale, height * upscale
    out = cv2.resize(image, canvas, interpolation=cv2.INTER_LINEAR)
    for number, (face, matrix) in enumerate(zip(faces, matrices)):
        inverse = cv2.invertAffineTransform(matrix) * upscale
        if upscale > 1:
            inverse[:, 2] += 0.5 * upscale
        warped = cv2.warpAffine(face, inverse, canvas)
        hard, soft = square_mask(canvas, inverse, upscale)
        pasted, mask = hard[:, :, None] * warped, soft[:, :, None]
        if labels is not None:
            parsed = cv2.warpAffine(parse_mask(labels[number]), inverse, canvas, flags=cv2.INTER_AREA)[:, :, None]
            smaller = (parsed < mask).astype(int)
            mask = parsed * smaller + mask * (1 - smaller)
        out = mask * pasted + (1 - mask) * out
    return out.astype(np.uint8)
