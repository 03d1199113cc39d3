"""Blind face degradation as pure functions: the same image and the same generator give the same pixels.

Order (Wang et al. 2021, GFPGAN, equation 1; CodeFormer section 4.1): blur, downsample, noise, JPEG, resize back.
Images are uint8 RGB [H,W,3]; the result is uint8 too, as the 8-bit rounding is part of the degradation.
"""
from __future__ import annotations

import math

import cv2
import numpy as np

from ..config import DegradationConfig


def sample_rng(seed: int, position: int) -> np.random.Generator:
    """The generator of one sample: a function of the run's seed and the sample's position alone."""
    return np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), position & (2**64 - 1)]))


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    """[size,size] float64 kernel of sum 1; sigmas in px, angle in radians."""
    reach = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(reach, reach)
    u = math.cos(angle) * x + math.sin(angle) * y
    v = -math.sin(angle) * x + math.cos(angle) * y
    kernel = np.exp(-0.5 * ((u / sigma_x) ** 2 + (v / sigma_y) ** 2))
    return kernel / kernel.sum()


def degrade(image: np.ndarray, config: DegradationConfig, rng: np.random.Generator) -> np.ndarray:
    """A degraded copy of ``image`` at its own size, or an untouched one with probability ``clean``.

    Draws the same count of numbers whatever the ranges; ``clean`` and ``severity`` draw theirs only where they are set.
    """
    height, width = image.shape[:2]
    sigma_x, sigma_y = rng.uniform(*config.sigma, size=2)
    angle, aniso = rng.uniform(-math.pi, math.pi), rng.uniform()
    factor, noise, quality = (rng.uniform(*r) for r in (config.downscale, config.noise, config.jpeg))
    gray = rng.uniform() < config.gray
    if config.clean or list(config.severity) != [1.0, 1.0]:
        untouched, where = rng.uniform(size=2)
        if untouched < config.clean:
            return image.copy()
        low, high = config.severity
        severity = low + (high - low) * where**config.severity_power
        sigma_x, sigma_y, factor, noise, quality = (
            mild + severity * (drawn - mild)
            for mild, drawn in (
                (config.sigma[0], sigma_x), (config.sigma[0], sigma_y), (config.downscale[0], factor),
                (config.noise[0], noise), (config.jpeg[1], quality),
            )
        )  # fmt: skip
    if aniso >= config.anisotropic:
        sigma_y, angle = sigma_x, 0.0
    out = cv2.filter2D(
        image.astype(np.float32), -1, gaussian_kernel(config.kernel_size, sigma_x, sigma_y, angle),
        borderType=cv2.BORDER_REFLECT_101,
    )  # fmt: skip
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    out = cv2.resize(out, small, interpolation=cv2.INTER_LINEAR)
    out = np.clip(out + noise * rng.standard_normal(out.shape, dtype=np.float32), 0, 255)
    out = _jpeg(np.rint(out).astype(np.uint8), round(quality))
    out = cv2.resize(out.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    if gray:
        out = np.repeat(out @ np.array([[0.299], [0.587], [0.114]], np.float32), 3, axis=2)
    return np.rint(np.clip(out, 0, 255)).astype(np.uint8)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError(f"OpenCV could not encode a JPEG of {image.shape}; reinstall opencv-python.")
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
