"""The runtimes that one could use instead, where installed: ONNX Runtime and OpenVINO on the exported network."""
from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from idcodeformer.networks.codeformer import CodeFormer

from .export import export

Run = Callable[[], tuple[Tensor, Tensor]]


def peers(network: CodeFormer, x: Tensor, w: float) -> dict[str, Run]:
    """Name -> a pass over ``x`` that returns image and logits; with the threads that torch has. Needs onnx."""
    here = [name for name in ("onnxruntime", "openvino") if find_spec(name)]
    if not here or not find_spec("onnx"):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export(network, w, path)
        made = {"onnxruntime": _onnxruntime, "openvino": _openvino}
        return dict(made[name](path, x) for name in here)


def _onnxruntime(path: Path, x: Tensor) -> tuple[str, Run]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def run() -> tuple[Tensor, Tensor]:
        image, logits = session.run(["image", "logits"], {"x": x.numpy()})
        return torch.from_numpy(image), torch.from_numpy(logits)

    return f"ONNX Runtime {onnxruntime.__version__} fp32", run


def _openvino(path: Path, x: Tensor) -> tuple[str, Run]:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(str(path), "CPU", settings)

    def run() -> tuple[Tensor, Tensor]:
        found = compiled({"x": x.numpy()})
        return torch.from_numpy(found["image"]), torch.from_numpy(found["logits"])

    return f"OpenVINO {openvino.__version__} fp32", run
