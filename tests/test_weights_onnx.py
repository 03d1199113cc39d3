"""insightface's ONNX recognisers: folded batch norms, numbered tensors, several exporters' habits."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from idcodeformer.errors import CorruptWeights, UnsupportedWeights
from idcodeformer.networks.arcface import IResNet, IResNetConfig
from idcodeformer.weights import loading

onnx = pytest.importorskip("onnx")

CONFIG = IResNetConfig(layers=(2, 1, 3, 1), widths=(4, 8, 8, 12), embedding_dim=6)


@pytest.fixture(scope="module")
def net() -> IResNet:
    torch.manual_seed(5)
    module = IResNet(CONFIG)
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for value in (part.weight, part.running_var):
                nn.init.uniform_(value, 0.5, 1.1)
            for value in (part.bias, part.running_mean):
                nn.init.uniform_(value, -0.3, 0.3)
        elif isinstance(part, nn.PReLU):
            nn.init.uniform_(part.weight, 0.1, 0.4)
    return module.eval().requires_grad_(False)


class Exporter:
    """Writes an IResNet as torch's exporter does: nodes in order, folded norms, tensors with numbers for names."""

    def __init__(self, fold: bool = True, normalise: bool = False, gemm: bool = True, opset: int = 11):
        self.fold, self.normalise, self.gemm, self.opset = fold, normalise, gemm, opset
        self.nodes: list = []
        self.stored: list = []
        self.count = 600

    def new(self) -> str:
        self.count += 1
        return str(self.count)

    def store(self, value: torch.Tensor) -> str:
        name = self.new()
        self.stored.append(onnx.numpy_helper.from_array(value.detach().numpy(), name))
        return name

    def add(self, op: str, *inputs: str, **attributes) -> str:
        out = self.new()
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [out], **attributes))
        return out

    def norm(self, at: str, bn: nn.Module) -> str:
        parts = [self.store(v) for v in (bn.weight, bn.bias, bn.running_mean, bn.running_var)]
        return self.add("BatchNormalization", at, *parts, epsilon=bn.eps)

    def conv(self, at: str, conv: nn.Conv2d, bn: nn.Module) -> str:
        shape = dict(strides=list(conv.stride), pads=list(conv.padding) * 2, kernel_shape=list(conv.kernel_size))
        if not self.fold:
            return self.norm(self.add("Conv", at, self.store(conv.weight), **shape), bn)
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        weight, bias = conv.weight * scale.view(-1, 1, 1, 1), bn.bias - bn.running_mean * scale
        return self.add("Conv", at, self.store(weight), self.store(bias), **shape)

    def prelu(self, at: str, act: nn.PReLU) -> str:
        return self.add("PRelu", at, self.store(act.weight.view(-1, 1, 1)))

    def write(self, net: IResNet, path) -> None:
        at = "input.1"
        if self.normalise:
            at = self.add("Sub", at, self.store(torch.tensor([127.5])))
            at = self.add("Mul", at, self.store(torch.tensor([1 / 127.5])))
        at = self.prelu(self.conv(at, net.conv1, net.bn1), net.prelu)
        for unit in (u for stage in net.levels for u in stage):
            inner = self.prelu(self.conv(self.norm(at, unit.bn1), unit.conv1, unit.bn2), unit.prelu)
            inner = self.conv(inner, unit.conv2, unit.bn3)
            outer = at if unit.downsample is None else self.conv(at, *unit.downsample)
            at = self.add("Add", inner, outer)
        at = self.add("Flatten", self.norm(at, net.bn2), axis=1)
        if self.gemm:
            at = self.add("Gemm", at, self.store(net.fc.weight), self.store(net.fc.bias), transB=1)
        else:
            at = self.add("MatMul", at, self.store(net.fc.weight.t().contiguous()))
            at = self.add("Add", at, self.store(net.fc.bias))
        at = self.norm(at, net.features)
        kind, make = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
        shapes = make("input.1", kind, [None, 3, 112, 112]), make(at, kind, [None, CONFIG.embedding_dim])
        graph = onnx.helper.make_graph(self.nodes, "g", shapes[:1], shapes[1:], self.stored)
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)]), str(path))


@pytest.mark.parametrize("habit", [{}, dict(fold=False), dict(normalise=True), dict(gemm=False)], ids=str)
def test_an_exported_network_comes_back(tmp_path, net, habit):
    Exporter(**habit).write(net, tmp_path / "w600k_r50.onnx")
    back = loading.build(tmp_path / "w600k_r50.onnx", kind="recogniser")
    assert back.config == CONFIG
    x = torch.rand(2, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(back(x), net(x), rtol=1e-4, atol=1e-5)


def test_it_converts_to_safetensors_without_loss(tmp_path, net):
    Exporter().write(net, tmp_path / "a.onnx")
    first = loading.build(tmp_path / "a.onnx")
    second = loading.build(loading.save(first, tmp_path / "a.safetensors"))
    x = torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        assert second(x).equal(first(x))


def test_the_reference_evaluator_agrees(tmp_path, net):
    """The file itself is right: onnx's own evaluator computes from it what our network computes."""
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    small = IResNet(IResNetConfig((1,), (4,), 3)).eval().requires_grad_(False)
    Exporter(opset=15).write(small, tmp_path / "a.onnx")  # before 14 the evaluator takes batch norms for training ones
    x = torch.rand(1, 3, 112, 112) * 2 - 1
    expected = torch.from_numpy(evaluator(str(tmp_path / "a.onnx")).run(None, {"input.1": x.numpy()})[0])
    with torch.no_grad():
        torch.testing.assert_close(loading.build(tmp_path / "a.onnx")(x), expected, rtol=1e-4, atol=1e-5)


def test_another_network_is_refused(tmp_path, net):
    make = onnx.helper
    info = make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])
    graph = make.make_graph([make.make_node("Relu", ["x"], ["y"])], "g", [info], [info])
    onnx.save(make.make_model(graph), str(tmp_path / "relu.onnx"))
    with pytest.raises(UnsupportedWeights, match="relu.onnx is not an IResNet"):
        loading.build(tmp_path / "relu.onnx")


def test_a_cut_file_and_tensors_elsewhere_are_refused(tmp_path, net):
    path = tmp_path / "a.onnx"
    Exporter().write(net, path)
    data = path.read_bytes()
    for share in (0.3, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises((CorruptWeights, UnsupportedWeights), match="a.onnx"):
            loading.build(path)
    path.write_bytes(data)
    model = onnx.load(str(path))
    onnx.external_data_helper.convert_model_to_external_data(model, location="other.bin", size_threshold=0)
    onnx.save(model, str(path))
    with pytest.raises(UnsupportedWeights, match="stored in another file"):
        loading.build(path)


def test_without_the_package_the_remedy_is_named(tmp_path, net, monkeypatch):
    Exporter().write(net, tmp_path / "a.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match="pip install onnx"):
        loading.build(tmp_path / "a.onnx")
