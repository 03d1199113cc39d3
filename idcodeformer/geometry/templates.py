"""Where a face is: templates, similarity fits, and warps that gradients pass through.

Points are (x, y) at pixel centres, matrices are 2x3 and map image -> crop. The FFHQ template is the one CodeFormer's
published pipeline aligns to (five points in a 512-px crop), the ArcFace template is insightface's ``arcface_dst``.
"""
from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..errors import BadOption

FFHQ_512 = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
ARCFACE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def ffhq_template(size: int) -> np.ndarray:
    """The FFHQ template [5,2] in a crop of ``size`` px; pixel centres stay pixel centres."""
    return (FFHQ_512 + 0.5) * (size / 512) - 0.5


def fit_similarity(src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    """Least-squares similarity (rotation, uniform scale, shift) [2,3] taking points ``src`` [K,2] to ``dst`` [K,2].

    Source: Umeyama 1991; in the plane it is one complex multiplication, so it is solved as such.
    """
    src_c, dst_c = src.mean(0), dst.mean(0)
    a = (src - src_c) @ np.array([1, 1j])
    b = (dst - dst_c) @ np.array([1, 1j])
    energy = (a.conj() * a).sum().real
    factor = (a.conj() * b).sum() / energy if energy > 0 else 1.0 + 0j
    rotation = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.hstack([rotation, (dst_c - rotation @ src_c)[:, None]])


def fit_lmeds(landmarks: Tensor, size: int = 512) -> Tensor:
    """Similarities [N,2,3] float32 (on the CPU) taking face points [N,5,2] to the FFHQ template of a ``size`` px crop.

    Least median of squares, as the reference aligns (``cv2.estimateAffinePartial2D``, method LMEDS; Rousseeuw 1984): a
    least-squares fit follows outlier points and ends up to 5 crop px elsewhere. Fitted at 512 and scaled, so that every
    size shows the same part of the picture. Points that LMEDS cannot fit (coincident, say) get the least-squares map;
    points that are not finite raise BadOption.
    """
    import cv2

    points = landmarks.detach().cpu().double().numpy()
    if not np.isfinite(points).all():
        raise BadOption("Landmarks hold NaN or infinity; detect the face again, or leave it out.")
    fits = np.zeros((len(points), 2, 3))
    for i, face in enumerate(points):
        # OpenCV meets points that all coincide with a failed assertion instead of a missing result.
        degenerate = np.ptp(face, axis=0).max() < 1e-6
        fit = None if degenerate else cv2.estimateAffinePartial2D(face, FFHQ_512, method=cv2.LMEDS)[0]
        if fit is None or not np.isfinite(fit).all() or abs(np.linalg.det(fit[:, :2])) < 1e-12:
            fit = fit_similarity(face, FFHQ_512)
        fits[i] = rescale(fit, size / 512)
    return torch.from_numpy(fits).float()


def rescale(matrix: np.ndarray, factor: float) -> np.ndarray:
    """The map [2,3] whose target is ``factor`` times as large; pixel centres stay pixel centres."""
    scaled = matrix * factor
    scaled[:, 2] += 0.5 * factor - 0.5
    return scaled


def invert(matrices: Tensor) -> Tensor:
    """Inverse of affine maps [N,2,3]."""
    linear = torch.linalg.inv(matrices[..., :2])
    return torch.cat([linear, -linear @ matrices[..., 2:]], dim=-1)


def resample_weights(out_size: int, in_size: int, scale: float, shift: float, device=None, dtype=None) -> Tensor:
    """[out_size,in_size] rows of a triangle filter that puts input coordinate x at ``scale * x + shift``.

    Anti-aliased: where the map shrinks (scale < 1) the filter widens by 1/scale. Outside, the edge pixel repeats.
    """
    centre = (torch.arange(out_size, dtype=torch.float64) - shift) / scale
    radius = max(1.0, 1.0 / scale)
    pad = math.ceil(radius) + max(0, math.ceil(-float(centre.min())), math.ceil(float(centre.max()) - in_size + 1))
    source = torch.arange(-pad, in_size + pad, dtype=torch.float64)
    weight = (1 - (source[None] - centre[:, None]).abs() / radius).clamp(min=0)
    inside = weight[:, pad : pad + in_size].clone()
    inside[:, 0] += weight[:, :pad].sum(1)
    inside[:, -1] += weight[:, pad + in_size :].sum(1)
    return (inside / inside.sum(1, keepdim=True)).to(device=device, dtype=dtype)


@lru_cache(maxsize=32)
def _kept_weights(*key) -> Tensor:
    """``resample_weights`` built once: an upload in every step would make the host wait for the device."""
    with torch.inference_mode(False):  # so that a later training can use what inference built
        return resample_weights(*key)


def arcface_crop(pixels: Tensor, size: int = 112) -> Tensor:
    """Fixed crop of FFHQ-aligned faces [N,C,S,S] to the ArcFace template [N,C,size,size]; differentiable, anti-aliased.

    The similarity between the two templates is scale 0.292090, shift (-18.930, -17.860) at S = 512 with a rotation of
    -0.009 degrees, which is dropped (0.02 px): so the crop is separable and costs two small matrix products.
    """
    side = pixels.shape[-1]
    arcface = (ARCFACE_112 + 0.5) * (size / 112) - 0.5
    matrix = fit_similarity(ffhq_template(side), arcface)
    scale = math.hypot(matrix[0, 0], matrix[1, 0])
    middle = (side - 1) / 2  # where the dropped rotation changes nothing
    shift_x, shift_y = matrix @ np.array([middle, middle, 1.0]) - scale * middle
    # tensors of another type, such as fake ones, must not enter the cache
    make = _kept_weights if type(pixels) is Tensor else resample_weights
    columns = make(size, side, scale, float(shift_x), pixels.device, pixels.dtype)
    rows = make(size, side, scale, float(shift_y), pixels.device, pixels.dtype)
    return rows @ (pixels @ columns.t())
