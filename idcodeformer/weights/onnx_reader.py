"""insightface's .onnx recognisers as arcface_torch state dicts.

The exporter folds batch norms into convolutions and numbers the tensors, so names say nothing: the graph is followed
from the input, block by block, as IResNet is built. A folded batch norm is written as the identity plus its bias.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CorruptWeights, UnsupportedWeights, first_line

EPS = 1e-5  # of torch's batch norm: with variance 1 - EPS it divides by exactly one
PASS_THROUGH = ("Identity", "Dropout", "Flatten", "Reshape", "Cast")


def read_onnx(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """State dict (float32, arcface_torch's keys) and metadata of an IResNet in ONNX.

    Raises CorruptWeights where it is no ONNX file, UnsupportedWeights where it is another network, ImportError with the
    remedy where the ``onnx`` package is missing.
    """
    try:
        import onnx
    except ImportError as exc:
        raise ImportError(f"Reading {path.name} needs the onnx package. Run: pip install onnx") from exc
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as exc:  # protobuf's DecodeError is not importable from one place in all versions
        raise CorruptWeights(f"{path} is damaged or cut off, or no ONNX file. Download it again.") from exc
    if not model.graph.node or not model.graph.input:
        raise CorruptWeights(f"{path} is cut off or no ONNX file: it has no graph. Download it again.")
    try:
        state = _Walk(model.graph).iresnet()
    except (_Unexpected, IndexError, KeyError, TypeError, ValueError, RuntimeError, StopIteration) as exc:
        told = first_line(exc)[:160]
        raise UnsupportedWeights(f"{path} is not an IResNet recogniser of insightface ({told}).") from exc
    return state, {"architecture": "IResNet"}


class _Unexpected(Exception):
    """The graph is not that of an IResNet."""


@dataclass
class _Walk:
    """Follows the data through a graph, collecting parameters."""

    graph: Any
    state: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        from onnx import numpy_helper

        self.values: dict[str, Tensor] = {}
        for item in self.graph.initializer:
            if item.external_data:
                raise _Unexpected(f"{item.name} is stored in another file")
            self.values[item.name] = torch.from_numpy(numpy_helper.to_array(item).copy())
        self.users: dict[str, list[Any]] = {}
        for node in self.graph.node:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                self.values[node.output[0]] = torch.from_numpy(numpy_helper.to_array(node.attribute[0].t).copy())
            elif node.op_type == "Identity" and node.input[0] in self.values:
                self.values[node.output[0]] = self.values[node.input[0]]
            else:
                for name in node.input:
                    self.users.setdefault(name, []).append(node)

    def iresnet(self) -> dict[str, Tensor]:
        """The whole network, from the pixels to the embedding."""
        pixels = next(i.name for i in self.graph.input if i.name not in self.values)
        at, scale = self._normalisation(pixels)
        at = self._conv(at, "conv1", "bn1", scale)
        at = self._prelu(at, "prelu")
        stage, unit = 0, 0
        while not self._is_head(at):
            conv2 = self._after(self._only(at, "BatchNormalization"), "Conv", "PRelu", "Conv")
            strided = any(a.name == "strides" and max(a.ints) > 1 for a in conv2.attribute)
            stage, unit = (stage + 1, 0) if strided else (stage, unit + 1)
            at = self._unit(at, f"layer{stage}.{unit}.")
        self._head(at)
        return self.state

    def _normalisation(self, at: str) -> tuple[str, float]:
        """Older exports begin with (x - 127.5) * k on 0..255; ours is [-1,1], so only the factor 127.5 k remains."""
        scale = 1.0
        node = self._one(at)
        while node.op_type in ("Sub", "Mul", "Div"):
            value = float(self._value(node, 1).flatten()[0])
            if node.op_type == "Sub" and abs(value - 127.5) > 0.1:
                raise _Unexpected(f"the input is shifted by {value}, not by 127.5")
            scale *= {"Sub": 127.5, "Mul": value, "Div": 1 / value if value else 0.0}[node.op_type]
            at, node = node.output[0], self._one(node.output[0])
        return at, scale

    def _unit(self, at: str, prefix: str) -> str:
        """One residual unit; returns the name of its output."""
        shortcut = [n for n in self.users[at] if n.op_type == "Conv"]
        inner = self._norm(self._only(at, "BatchNormalization"), prefix + "bn1")
        inner = self._conv(inner, prefix + "conv1", prefix + "bn2")
        inner = self._prelu(inner, prefix + "prelu")
        inner = self._conv(inner, prefix + "conv2", prefix + "bn3")
        outer = at
        if shortcut:
            outer = self._conv(at, prefix + "downsample.0", prefix + "downsample.1", node=shortcut[0])
        add = self._only(inner, "Add")
        if set(add.input) != {inner, outer}:
            raise _Unexpected(f"{prefix} does not add its input")
        return add.output[0]

    def _is_head(self, at: str) -> bool:
        """True where no convolution follows the next batch norm: the residual stages are over."""
        nodes = self.users.get(at, [])
        if len(nodes) != 1 or nodes[0].op_type != "BatchNormalization":
            return False
        return all(n.op_type != "Conv" for n in self.users.get(nodes[0].output[0], []))

    def _head(self, at: str) -> None:
        at = self._norm(self._only(at, "BatchNormalization"), "bn2")
        node = self._skip(at)
        if node.op_type not in ("Gemm", "MatMul"):
            raise _Unexpected(f"{node.op_type} where the last layer should be")
        weight = self._value(node, 1)
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        self.state["fc.weight"] = weight if transposed else weight.t().contiguous()
        bias = self._value(node, 2) if len(node.input) > 2 else torch.zeros(self.state["fc.weight"].shape[0])
        at = node.output[0]
        if node.op_type == "MatMul" and self._next_is(at, "Add"):
            add = self._one(at)
            bias, at = self._value(add, 0 if add.input[0] in self.values else 1), add.output[0]
        self.state["fc.bias"] = bias
        if self._next_is(at, "BatchNormalization"):
            self._norm(self._one(at), "features")
        else:
            self._identity("features", torch.zeros_like(bias))

    def _conv(self, at: str, conv: str, norm: str, scale: float = 1.0, node: Any = None) -> str:
        """A convolution and its batch norm, folded or not."""
        node = node if node is not None else self._only(at, "Conv")
        weight = self._value(node, 1)
        self.state[conv + ".weight"] = weight * scale if scale != 1 else weight
        bias = self._value(node, 2) if len(node.input) > 2 else torch.zeros(weight.shape[0])
        at = node.output[0]
        if len(node.input) <= 2 and self._next_is(at, "BatchNormalization"):
            return self._norm(self._one(at), norm)
        self._identity(norm, bias)
        return at

    def _norm(self, node: Any, key: str) -> str:
        for i, part in enumerate(("weight", "bias", "running_mean", "running_var"), 1):
            self.state[f"{key}.{part}"] = self._value(node, i)
        eps = next((a.f for a in node.attribute if a.name == "epsilon"), EPS)
        self.state[f"{key}.running_var"] = self.state[f"{key}.running_var"] + (eps - EPS)  # torch's own is added later
        return node.output[0]

    def _identity(self, key: str, bias: Tensor) -> None:
        self.state[f"{key}.weight"] = torch.ones_like(bias)
        self.state[f"{key}.bias"] = bias
        self.state[f"{key}.running_mean"] = torch.zeros_like(bias)
        self.state[f"{key}.running_var"] = torch.full_like(bias, 1 - EPS)

    def _prelu(self, at: str, key: str) -> str:
        node = self._only(at, "PRelu")
        self.state[f"{key}.weight"] = self._value(node, 1).flatten()
        return node.output[0]

    def _value(self, node: Any, index: int) -> Tensor:
        name = node.input[index]
        if name not in self.values:
            raise _Unexpected(f"input {index} of a {node.op_type} is not a stored tensor")
        return self.values[name].float()

    def _step(self) -> None:
        """A graph may lead back to itself, and then the walk would not end."""
        self.steps += 1
        if self.steps > 10 * len(self.graph.node) + 10:
            raise _Unexpected("the graph runs in a circle")

    def _one(self, at: str) -> Any:
        self._step()
        nodes = [n for n in self.users.get(at, []) if n.op_type != "Shape"]  # a Reshape may compute its target size
        if len(nodes) != 1:
            raise _Unexpected(f"{len(nodes)} branches where one is expected")
        return nodes[0]

    def _only(self, at: str, op: str) -> Any:
        """The one user of ``at`` that is an ``op``; other users may exist (the shortcut)."""
        self._step()
        nodes = [n for n in self.users.get(at, []) if n.op_type == op]
        if len(nodes) != 1:
            raise _Unexpected(f"no single {op} where one is expected")
        return nodes[0]

    def _next_is(self, at: str, op: str) -> bool:
        return [n.op_type for n in self.users.get(at, [])] == [op]

    def _after(self, node: Any, *ops: str) -> Any:
        """Walk over ``ops``, passing batch norms that were not folded."""
        for op in ops:
            following = self._one(node.output[0])
            if following.op_type == "BatchNormalization" and op != "BatchNormalization":
                following = self._one(following.output[0])
            if following.op_type != op:
                raise _Unexpected(f"{following.op_type} where {op} is expected")
            node = following
        return node

    def _skip(self, at: str) -> Any:
        node = self._one(at)
        while node.op_type in PASS_THROUGH:
            node = self._one(node.output[0])
        return node
