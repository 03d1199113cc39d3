"""What transfers, disks and attackers do to a file."""
from __future__ import annotations

import json
import random
import struct

import torch

BIG = (0, 1, 127, 255, 256, 65535, 2**31 - 1, 2**32 - 1)


def damage(data: bytes, rng: random.Random) -> bytes:
    """``data`` cut, flipped, overwritten, repeated or glued, once to three times."""
    for _ in range(rng.randint(1, 3)):
        data = rng.choice((_cut, _flip, _number, _repeat, _remove, _glue, _front))(data, rng)
    return data


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randint(0, len(data))]


def _flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 4, 32)) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _number(data: bytes, rng: random.Random) -> bytes:
    """A length, count or size in the first bytes becomes another."""
    if len(data) < 8:
        return data
    at = rng.randrange(min(len(data) - 4, 200))
    return data[:at] + struct.pack(rng.choice("<>") + "I", rng.choice(BIG)) + data[at + 4 :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(data))
    stop = min(len(data), start + rng.choice((1, 16, 200)))
    return data[:stop] + data[start:stop] * rng.choice((1, 50)) + data[stop:]


def _remove(data: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(data))
    return data[:start] + data[start + rng.choice((1, 16, 200)) :]


def _glue(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice((1, 100, 5000)))


def _front(data: bytes, rng: random.Random) -> bytes:
    """The first bytes become noise behind the signature."""
    return data[:8] + rng.randbytes(min(24, max(0, len(data) - 8))) + data[32:]


def safetensors_file(state: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """As safetensors writes it, but with the texts in their order: the package's differs from run to run."""
    names = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.bool: "BOOL"}
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    body = b""
    for key, value in state.items():
        raw = value.contiguous().reshape(-1).numpy().tobytes()
        span = [len(body), len(body) + len(raw)]
        header[key] = {"dtype": names[value.dtype], "shape": list(value.shape), "data_offsets": span}
        body += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body
