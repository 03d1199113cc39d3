"""Make the embedded mobileface_v2.safetensors from becauseofAI/MobileFace's MXNet file.

    python tools/convert_mobileface.py MobileFace_Identification_V2-0000.params OUT.safetensors

The file lies in the folder MobileFace_Identification of github.com/becauseofAI/MobileFace (MIT), commit 128cea3. MXNet
is not needed: the container is read here. Batch norms (eps 0.001, MXNet's default) are folded into the layers before
them, and weights are written in half precision.
"""
from __future__ import annotations

import argparse
import hashlib
import struct
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from idcodeformer.networks.mobileface import MobileFace, mobileface_config  # noqa: E402
from idcodeformer.weights import loading  # noqa: E402

SOURCE = "github becauseofAI/MobileFace 128cea3, MobileFace_Identification_V2 (MIT, (c) 2018)"
SHA256 = "750057619a1eef8acb320339aebf0bbcf191497e1396a361c8aaba517bbe825e"
EPS = 1e-3
_LIST, _ARRAY, _ARRAY_WITH_KIND = 0x112, 0xF993FAC8, 0xF993FAC9  # MXNet's magic numbers (src/ndarray/ndarray.cc)
PARTS = ("expand", "depthwise", "project")


def read_params(data: bytes) -> dict[str, np.ndarray]:
    """Name -> float32 array of an MXNet parameter file."""
    at = 0

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return value

    def array() -> np.ndarray:
        nonlocal at
        mark = take("I")
        if mark == _ARRAY_WITH_KIND:
            take("i")  # dense
        wide = mark in (_ARRAY, _ARRAY_WITH_KIND)
        sides = take("I") if wide else mark
        shape = [take("q" if wide else "I") for _ in range(sides)]
        _, _, kind = take("i"), take("i"), take("i")  # device, its number, type
        if kind != 0:
            raise SystemExit(f"An array of type {kind}; this script reads float32.")
        values = np.frombuffer(data, "<f4", int(np.prod(shape)), at).reshape(shape)
        at += values.nbytes
        return values

    if take("Q") != _LIST:
        raise SystemExit("This is no MXNet parameter file.")
    take("Q")
    arrays = [array() for _ in range(take("Q"))]
    names = []
    for _ in range(take("Q")):
        length = take("Q")
        names.append(data[at : at + length].decode())
        at += length
    return dict(zip(names, arrays, strict=True))


def convert(params: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """State dict of ``MobileFace``."""
    state: dict[str, torch.Tensor] = {}

    def fold(key: str, layer: str, norm: str) -> None:
        weight, bias = params[f"arg:{layer}_weight"].astype(np.float64), params.get(f"arg:{layer}_bias", 0.0)
        scale = params[f"arg:{norm}_gamma"] / np.sqrt(params[f"aux:{norm}_moving_var"].astype(np.float64) + EPS)
        shift = params[f"arg:{norm}_beta"] + (bias - params[f"aux:{norm}_moving_mean"]) * scale
        state[f"{key}.weight"] = torch.from_numpy(weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).float()
        state[f"{key}.bias"] = torch.from_numpy(shift).float()

    fold("stem", "conv1", "bn1")
    number = 0
    while f"arg:convolution{number}_weight" in params:
        fold(f"blocks.{number // 3}.{PARTS[number % 3]}", f"convolution{number}", f"batchnorm{number}")
        number += 1
    fold("full", "fc5", "fc5_bn")
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("params", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    data = args.params.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SystemExit(f"{args.params} is another file than this script is for (sha256 {SHA256}).")
    state = convert(read_params(data))
    network = MobileFace(mobileface_config(state))
    network.load_state_dict(state)
    texts = {"licence": "MIT (training data not stated)", "source": SOURCE, "source_sha256": SHA256}
    loading.save(network, args.out, texts, torch.float16)
    print(f"{args.out}: {args.out.stat().st_size} bytes, sha256 {hashlib.sha256(args.out.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
