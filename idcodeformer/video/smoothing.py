"""Alignment along a track, steady and without lag.

A similarity is smoothed as what it is: the logarithm of its scale, its angle, and where the middle of the face lies;
means of matrix entries would shrink a turning face. Each value is that of a parabola fitted around it under a Gaussian
window, on both sides, so that a face that moves evenly, or evenly faster, stays where it is (Savitzky & Golay 1964).
"""
from __future__ import annotations

import numpy as np
import torch

from ..geometry.templates import ffhq_template, fit_lmeds
from .tracks import Track

UNIT = 512  # px of the crop that the matrices of a track are made for
SIGMA = 0.2  # seconds; KEEP and facexlib smooth points over 5 frames, 0.2 s at 25 a second
_REACH = 3.0  # windows end after that many sigma
_STEADY = 0.004  # of a crop's side, or radian: what is nearer to the fit is no outlier, however still the rest is
_FAR = 3.0  # an observation that is further from the fit than this many of their median distances counts little


def smooth_track(track: Track, rate: float) -> np.ndarray:
    """[n,2,3] float64 maps of every frame of the track to a crop of UNIT px."""
    matrices = fit_lmeds(torch.from_numpy(track.points).float(), UNIT).double().numpy()
    middle = ffhq_template(UNIT).mean(0)
    values = parameters(matrices, middle)
    weights = np.where(track.scores > 0, 0.2 + track.scores, 0.05)
    pixel = float(np.exp(-np.median(values[:, 0])))  # of the crop, in the picture
    usual = (_STEADY, _STEADY, _STEADY * UNIT * pixel, _STEADY * UNIT * pixel)
    smoothed = np.stack([smooth(column, weights, SIGMA * rate, least) for column, least in zip(values.T, usual)], 1)
    return matrices_of(smoothed, middle)


def parameters(matrices: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """[n,4] log scale, angle (unwrapped) and the picture point (x, y) that is seen at ``middle`` of the crop."""
    scale = np.hypot(matrices[:, 0, 0], matrices[:, 1, 0])
    angle = np.unwrap(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    centre = np.linalg.solve(matrices[:, :, :2], (middle - matrices[:, :, 2])[..., None])[..., 0]
    return np.column_stack([np.log(scale), angle, centre])


def matrices_of(values: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Inverse of ``parameters``."""
    scale, angle = np.exp(values[:, 0]), values[:, 1]
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], 1)
    shift = middle - (linear @ values[:, 2:, None])[..., 0]
    return np.concatenate([linear, shift[..., None]], 2)


def smooth(values: np.ndarray, weights: np.ndarray, sigma: float, least: float = 0.0) -> np.ndarray:
    """[n] values of parabolas fitted under a Gaussian of ``sigma`` frames; single outliers are given little weight.

    What lies within ``least`` of the fit is never one.
    """
    fitted = _fit(values, weights, sigma)
    distance = np.abs(values - fitted)
    usual = np.median(distance[weights > 0.1]) if (weights > 0.1).any() else 0.0
    usual = max(usual, least)
    if usual <= 1e-9:
        return fitted
    return _fit(values, weights / (1 + (distance / (_FAR * usual)) ** 4), sigma)


def _fit(values: np.ndarray, weights: np.ndarray, sigma: float) -> np.ndarray:
    count, reach = len(values), max(2, int(np.ceil(_REACH * sigma)))
    out = np.empty(count)
    for at in range(count):
        low, high = max(0, at - reach), min(count, at + reach + 1)
        x = np.arange(low, high) - at
        w = np.sqrt(weights[low:high] * np.exp(-0.5 * (x / max(sigma, 1e-6)) ** 2))
        degree = min(2, len(x) - 1)
        # At an end the window is one-sided, and a parabola would follow the noise there.
        if degree == 2 and min(at - low, high - 1 - at) < sigma / 2:
            degree = 1
        basis = np.vander(x / max(1.0, reach), degree + 1, increasing=True)
        out[at] = np.linalg.lstsq(basis * w[:, None], values[low:high] * w, rcond=None)[0][0]
    return out


def landmarks_of(matrix: np.ndarray) -> np.ndarray:
    """[5,2] picture points that the map [2,3] takes to the template: aligned by them a face gets this map back."""
    points = ffhq_template(UNIT) - matrix[:, 2]
    return np.linalg.solve(matrix[:, :2], points.T).T
