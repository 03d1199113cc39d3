"""Weight files: pickles that ask for more than tensors or never end, headers that lie, graphs that run in circles."""
from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from functools import cache

import torch

from .damage import damage, safetensors_file

ENDINGS = (".pth", ".safetensors", ".onnx", ".pt", ".ckpt", ".bin", "")
DTYPES = ("F32", "F16", "BF16", "F64", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "U64", "C64", "F4", "X9", "")


def make(rng: random.Random) -> tuple[str, bytes]:
    """(file name, content) of one case."""
    kind = rng.choice((_good, _safetensors, _torch_zip, _torch_zip, _inside, _pickle_zip, _pickle_zip, _legacy,
                       _onnx, _onnx, _onnx))  # fmt: skip
    name, data = kind(rng)
    if rng.random() < 0.5:
        data = damage(data, rng)
    if rng.random() < 0.15:
        name = "weights" + rng.choice(ENDINGS)
    return name, data


@cache
def _state() -> dict[str, torch.Tensor]:
    from idcodeformer.networks.mobilefacenet import MobileFaceNet, MobileFaceNetConfig

    torch.manual_seed(0)
    stages = ((2, 16, 1, 2), (2, 16, 1, 2), (2, 16, 1, 2))
    return MobileFaceNet(MobileFaceNetConfig(stages=stages, stem=16, head=32, embedding_dim=16)).state_dict()


def _good(rng: random.Random) -> tuple[str, bytes]:
    """A file as it should be, for the claim that what is whole is read."""
    if rng.random() < 0.5:
        return "weights.safetensors", safetensors_file(_state())
    buffer = io.BytesIO()
    torch.save({"params": _state()}, buffer, _use_new_zipfile_serialization=rng.random() < 0.5)
    return "weights.pth", buffer.getvalue()


def _safetensors(rng: random.Random) -> tuple[str, bytes]:
    if rng.random() < 0.3:
        config = rng.choice((
            '{"stages": [[2, 16, 1, 2], [2, 16, 1, 2], [2, 16, 1, 2]], "stem": 16, "head": 32, "embedding_dim": 16}',
            '{"stages": [[2, 16, 1000000000, 2]]}', '{"stem": -1}', '{"stem": 1e99}', '{"stages": 7}', "[" * 100_000,
            '{"stages": [[2, 16, 1, 2], [2, 16, 1, 2], [2, 16, 1, 2]], "stem": 16, "embedding_dim": 999999999}',
            '{"stem": ' + "9" * 5000 + "}", "null", '"x"', "[]", '{"input_width": 0}', '{"pixel_scale": "x"}',
        ))  # fmt: skip
        return "weights.safetensors", safetensors_file(_state(), {"architecture": "MobileFaceNet", "config": config})
    header: dict[str, object] = {}
    for number in range(rng.randint(0, 4)):
        shape = [rng.choice((0, 1, 4, 2**31, 2**63 - 1, 2**64 - 1, -1)) for _ in range(rng.randint(0, 5))]
        span = [rng.choice((0, 4, 64, 2**40, 2**64 - 1, -4)) for _ in range(2)]
        header[f"k{number}"] = {"dtype": rng.choice(DTYPES), "shape": shape, "data_offsets": span}
    if rng.random() < 0.3:
        header["__metadata__"] = rng.choice(({"config": "[" * 50_000}, {"x": 1}, [], {"architecture": "CodeFormer"}))
    text = json.dumps(header).encode()
    length = rng.choice((len(text), len(text), 0, len(text) + 5, 2**63, 99_999_999))
    return "weights.safetensors", struct.pack("<Q", length) + text + rng.randbytes(rng.choice((0, 4, 64)))


def _torch_zip(rng: random.Random) -> tuple[str, bytes]:
    one = torch.zeros(1)
    value = rng.choice((
        lambda: {"params_ema": _state()},
        lambda: {"w": one.expand(10**6, 10**6)},
        lambda: {"params": {"conv1.weight": one.expand(1 << 33)}},
        lambda: {"w": torch.zeros(3, dtype=torch.complex64)},
        lambda: {"w": torch.zeros(0, 5)},
        lambda: {"w": torch.full((3,), float("nan"))},
        lambda: {k: v.expand(2, *v.shape) for k, v in _state().items()},
        lambda: {k: v.to(torch.int8) for k, v in _state().items()},
        lambda: {k: (torch.full_like(v, float("inf")) if v.is_floating_point() else v) for k, v in _state().items()},
        lambda: {1: one, 2.5: one, None: one},
        lambda: [one] * 3,
        lambda: {"config": _laughs(30), "w": one},
        lambda: {"config": {"a": _circle()}, "w": one},
        lambda: {"w": one.to_sparse()},
        lambda: torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.qint8) if hasattr(torch, "qint8") else one,
    ))()  # fmt: skip
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=rng.random() < 0.7)
    data = buffer.getvalue()
    return "weights.pth", _squeezed(data) if data[:2] == b"PK" and rng.random() < 0.1 else data


def _inside(rng: random.Random) -> tuple[str, bytes]:
    """A whole archive whose pickle, or whose numbers, were altered."""
    buffer, out = io.BytesIO(), io.BytesIO()
    torch.save({"params": dict(list(_state().items())[: rng.choice((1, 3, 500))])}, buffer)
    altered = rng.choice(("data.pkl", "data/0", "byteorder", ""))
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if altered and name.endswith(altered):
                data = damage(data, rng)
            if altered == "data.pkl" and name.endswith(altered) and rng.random() < 0.5:  # sizes and strides
                number = b"J" + struct.pack("<i", rng.choice((2**31 - 1, -1, 0)))
                data = data.replace(b"K\x01", number, rng.choice((1, 9)))
            new.writestr(name, data)
    return "weights.pth", out.getvalue()


def _squeezed(data: bytes) -> bytes:
    """The archive again, compressed, with 300 MB of zeros where the numbers were."""
    out = io.BytesIO()
    new = zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with zipfile.ZipFile(io.BytesIO(data)) as old, new:
        for name in old.namelist():
            new.writestr(name, bytes(300_000_000) if name.endswith("data/0") else old.read(name))
    return out.getvalue()


def _laughs(depth: int) -> list:
    value: list = ["ha"]
    for _ in range(depth):
        value = [value, value]
    return value


def _circle() -> list:
    value: list = []
    value.append(value)
    return value


def _opcodes(rng: random.Random) -> bytes:
    """A pickle stream by hand: what no program would write."""
    tower = b"(K\x01t" + b"2\x86" * rng.choice((3, 30, 60))  # a tuple of itself twice, again and again
    return rng.choice((
        b"\x80\x02}" + tower + b"K\x01s.",  # ... as a key: hashing it takes 2**60 steps
        b"\x80\x02ccollections\nOrderedDict\n](" + tower + b"K\x01\x86e\x85R.",
        b"\x80\x04\x8f(" + tower + b"\x90.",
        b"\x80\x02}r" + struct.pack("<I", rng.choice((2**31 - 1, 2**28))) + b".",  # the memo grows to that place
        b"\x80\x02X" + struct.pack("<I", 2**31 - 1) + b"abc.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
        b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",  # nested 200 000 deep
        b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x02cbuiltins\neval\n(X\x01\0\0\0" + b"1tR.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00(tt(t\x89NtR.",
        b"\x80\x02ctorch\nFloatStorage\n(J" + struct.pack("<i", 2**31 - 1) + b"tR.",
        b"\x80\x02ctorch\nSize\n(" + tower + b"tR.",
        b"\x80\x02ctorch\nFloatStorage\n}b.",
        b"\x82\x01.", b"I" + b"9" * 100_000 + b"\n.", b"\x8b" + struct.pack("<I", 2**31 - 1) + b"1.", b"Pabc\n.", b".",
        rng.randbytes(200), b"\x80\x02" + rng.randbytes(60),
    ))  # fmt: skip


def _pickle_zip(rng: random.Random) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for _ in range(rng.choice((1, 1, 1, 2))):
            archive.writestr(rng.choice(("archive/data.pkl", "data.pkl", "x/y/data.pkl")), _opcodes(rng))
        archive.writestr("archive/version", "3")
        if rng.random() < 0.3:
            archive.writestr("archive/data/0", rng.randbytes(64))
    return "weights.pth", buffer.getvalue()


def _legacy(rng: random.Random) -> tuple[str, bytes]:
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    data = head + pickle.dumps(system, 2) + _opcodes(rng) + pickle.dumps(["0"], 2)
    return "weights.pth", data + rng.randbytes(rng.choice((0, 8, 64)))


def _onnx(rng: random.Random) -> tuple[str, bytes]:
    from onnx import TensorProto, helper

    floats = lambda name, dims, values: helper.make_tensor(name, TensorProto.FLOAT, dims, values)  # noqa: E731
    names = ["x", "a", "b", "c", "d", "e", "x"]
    ops = ("Conv", "PRelu", "BatchNormalization", "Add", "Sub", "Mul", "Div", "Identity", "Gemm", "Flatten", "Constant")
    nodes = []
    for number in range(rng.randint(0, 12)):
        ring = rng.random() < 0.3
        one = names[number % 7] if ring else rng.choice(names)
        two = names[(number + 1) % 7] if ring else rng.choice(names)
        inputs = [one, "w", "w", "w", "w"][: rng.randint(0, 5)]
        nodes.append(helper.make_node(rng.choice(ops), inputs, [two][: rng.randint(0, 1) or 1]))
    if rng.random() < 0.2:
        nodes = [helper.make_node("Mul", ["x", "w"], ["a"]), helper.make_node("Identity", ["a"], ["x"])]
        nodes[1].op_type = "Mul"
        nodes[1].input.append("w")
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])], [],
                              [floats("w", [1], [1.0])])  # fmt: skip
    weight = graph.initializer[0]
    lie = rng.randrange(8)
    if lie == 0:
        weight.dims[:] = [rng.choice((0, -1, 2**40, 2**62))] * rng.randint(1, 3)
    elif lie == 1:
        weight.data_type = rng.choice((0, 8, 16, 17, 23, 99))
    elif lie == 2:
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=rng.choice(("/etc/passwd", "../../x", "")))
    elif lie == 3:
        weight.ClearField("float_data")
        weight.raw_data = rng.randbytes(rng.choice((0, 3, 4)))
    model = helper.make_model(graph)
    return "weights.onnx", model.SerializeToString()
