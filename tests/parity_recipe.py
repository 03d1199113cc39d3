"""Synthetic weights and pictures for parity tests: the same numbers on every platform, so goldens need no weight files.

Every number comes from numpy's Philox bit generator (a stable stream of 64-bit words) keyed by a SHA-256 of
"<salt>|<network>|<key>|<shape>" and turned into an approximately normal variate by summing four 16-bit fields: no libm,
no distribution code, no dependence on SIMD or threads.
"""
from __future__ import annotations

import hashlib
import math

import numpy as np

SALT = "idcf-kit-1"

# Gain of a convolution or matrix by a part of its key; the first match wins.
_GAINS = (
    ("generator.blocks.24.", 0.45),
    ("encoder.blocks.24.", 1.0),
    (".q.", 1.4),
    (".k.", 1.4),
    (".proj_out.", 1.0),
    ("in_proj_weight", 1.6),
    ("out_proj.", 0.5),
    ("linear1.", 1.3),
    ("linear2.", 1.0),
    ("idx_pred_layer.1.", 4.0),
    ("feat_emb.", 2.0),
    (".scale.0.", 0.6),
    (".scale.2.", 0.6),
    (".shift.0.", 0.8),
    (".shift.2.", 0.8),
    (".conv1.", 1.6),
    (".conv2.", 1.0),
    (".conv_out.", 1.0),
    ("", 1.0),
)


def _words(count: int, *parts: object) -> np.ndarray:
    digest = hashlib.sha256("|".join(str(part) for part in parts).encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    return np.random.Philox(key=key).random_raw(int(count)).astype(np.uint64)


def normals(count: int, *parts: object) -> np.ndarray:
    """float64 variates of mean 0 and variance 1 (Irwin-Hall of four)."""
    words, mask = _words(count, *parts), np.uint64(0xFFFF)
    fields = (words & mask) + ((words >> np.uint64(16)) & mask) + ((words >> np.uint64(32)) & mask)
    total = fields + (words >> np.uint64(48))
    return (total.astype(np.float64) - 131070.0) / (65536.0 * math.sqrt(1.0 / 3.0))


def uniforms(count: int, *parts: object) -> np.ndarray:
    """float64 variates in [0,1)."""
    return (_words(count, *parts) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def weight(key: str, shape: tuple[int, ...], network: str = "codeformer") -> np.ndarray:
    """The synthetic value of one entry of CodeFormer's state dict, float32."""
    count = math.prod(shape)
    z = normals(count, SALT, network, key, "x".join(map(str, shape))).reshape(shape)
    if key == "quantize.embedding.weight":
        return z.astype(np.float32)
    if key == "position_emb":
        return (0.7 * z).astype(np.float32)
    if len(shape) == 1:
        return (1.0 + 0.1 * z if key.endswith("weight") else 0.05 * z).astype(np.float32)
    fan_in = count // shape[0]
    if (len(shape) == 4 and shape[1] > 3 and shape[2] > 1) or ".linear2." in key:
        # Filters of zero mean: a constant offset of the activations does not pile up with depth.
        rows, total = z.reshape(shape[0], -1), np.zeros(shape[0])
        for column in range(rows.shape[1]):  # a fixed order of summation is the same everywhere
            total += rows[:, column]
        z = z - (total / fan_in).reshape((-1,) + (1,) * (len(shape) - 1))
    gain = next(value for part, value in _GAINS if part in key)
    return (z * (gain / math.sqrt(fan_in))).astype(np.float32)


def picture(name: object, height: int = 512, width: int = 512) -> np.ndarray:
    """A smooth uint8 picture with texture [H,W,3]: triangle waves, an ellipse, grain."""
    y = (np.arange(height, dtype=np.float64) + 0.5)[:, None] / height
    x = (np.arange(width, dtype=np.float64) + 0.5)[None, :] / width
    out = np.zeros((height, width, 3))
    waves = uniforms(3 * 40 * 4, SALT, "image", name, "waves").reshape(3, 40, 4)
    for channel in range(3):
        for k in range(40):
            fx, fy, phase, amplitude = waves[channel, k]
            scale = 1.0 + 0.6 * k
            t = (2 * fx - 1) * scale * x + (2 * fy - 1) * scale * y + phase
            t = t - np.floor(t)
            out[..., channel] += (0.3 + amplitude) / (1.0 + 0.15 * k) * (4.0 * np.abs(t - 0.5) - 1.0)
    e = uniforms(8, SALT, "image", name, "ellipse")
    cx, cy, rx, ry = 0.4 + 0.2 * e[0], 0.4 + 0.2 * e[1], 0.22 + 0.1 * e[2], 0.28 + 0.1 * e[3]
    distance = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2
    face = np.clip((1.15 - distance) / 0.3, 0.0, 1.0)[..., None]
    tone = np.array([0.9, 0.35, 0.1]) + 0.4 * (e[4:7] - 0.5)
    out = out * (1 - 0.6 * face) + 1.1 * tone * face
    grain = normals(height * width * 3, SALT, "image", name, "grain").reshape(height, width, 3)
    return np.clip(np.floor(127.5 + 70.0 * out + 6.0 * grain + 0.5), 0, 255).astype(np.uint8)


def label_map(name: object) -> np.ndarray:
    """A 512x512 uint8 map of face-parsing labels: ellipses for skin, eyes, nose, mouth, neck, cloth and hair."""
    u = uniforms(8, SALT, "labels", name)
    y = (np.arange(512, dtype=np.float64) + 0.5)[:, None]
    x = (np.arange(512, dtype=np.float64) + 0.5)[None, :]
    labels = np.zeros((512, 512), np.uint8)
    cx, cy = 236 + 40 * u[0], 270 + 30 * u[1]
    ellipses = (
        (cx, 520, 240, 90, 16),
        (cx, cy - 60, 190 + 20 * u[2], 200, 17),
        (cx, cy + 170, 60, 90, 14),
        (cx, cy + 10, 120 + 15 * u[3], 165 + 15 * u[4], 1),
        (cx - 60, cy - 50, 32, 10, 2),
        (cx + 60, cy - 50, 32, 10, 3),
        (cx - 60, cy - 28, 24, 11, 4),
        (cx + 60, cy - 28, 24, 11, 5),
        (cx, cy + 30, 22, 46, 10),
        (cx, cy + 102, 52, 22, 12),
        (cx, cy + 102, 36, 9, 11),
    )
    for ex, ey, rx, ry, label in ellipses:
        labels[((x - ex) / rx) ** 2 + ((y - ey) / ry) ** 2 <= 1.0] = label
    return labels
