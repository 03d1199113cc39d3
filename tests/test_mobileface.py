"""The second embedded recogniser: what is in its file, how it was converted, and that it tells people apart."""
from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from idcodeformer import load_detector, load_recogniser
from idcodeformer.cli.demo import GALLERY, photo
from idcodeformer.detection.selection import select
from idcodeformer.files.reading import read
from idcodeformer.identity.looks import largest_faces
from idcodeformer.identity.recogniser import match
from idcodeformer.networks.mobileface import MobileFace, mobileface_config
from idcodeformer.types import DetectOptions
from idcodeformer.weights import registry


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).parent.parent / "tools" / "convert_mobileface.py"
    spec = importlib.util.spec_from_file_location("convert_mobileface", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_photos_of_each_sitter_belong_together() -> None:
    recogniser, detector = load_recogniser("mobileface_v2", "cpu"), load_detector(device="cpu")
    group = photo("group")
    faces = select(detector([group])[0], DetectOptions(order="left_to_right"), tuple(group.shape[-2:])).faces
    shown = recogniser.embed_faces([group], [faces])
    sitters = [read(file).frames[0] for file in sorted(GALLERY.rglob("*.jpg"))]
    known = recogniser.embed_faces(sitters, largest_faces(sitters, detector))
    pairs = match(shown, known)
    assert len(pairs) == 4 and min(likeness for *_, likeness in pairs) > 0.5
    others = shown.vectors @ known.vectors.t()
    for face, sitter, _ in pairs:
        others[face, sitter] = -1
    assert float(others.max()) < 0.35


def params(tool, wide: bool) -> tuple[dict[str, np.ndarray], bytes]:
    """Parameters of a small network, as names and arrays and as an MXNet file of the newer or the oldest layout."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}

    def layer(name: str, norm: str, *shape: int) -> None:
        arrays[f"arg:{name}_weight"] = random.normal(0, 0.2, shape)
        arrays[f"arg:{norm}_gamma"], arrays[f"arg:{norm}_beta"] = random.uniform(0.5, 1, (2, shape[0]))
        arrays[f"aux:{norm}_moving_mean"] = random.normal(0, 0.3, shape[0])
        arrays[f"aux:{norm}_moving_var"] = random.uniform(1e-3, 1, shape[0])

    layer("conv1", "bn1", 4, 3, 3, 3)
    arrays["arg:conv1_bias"] = random.normal(0, 0.2, 4)
    for block in range(4):
        shapes = ((8, 4, 1, 1), (8, 1, 3, 3), (4, 8, 1, 1))
        for part, shape in enumerate(shapes):
            layer(f"convolution{3 * block + part}", f"batchnorm{3 * block + part}", *shape)
    layer("fc5", "fc5_bn", 6, 4 * 4 * 4)
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    data = struct.pack("<QQQ", tool._LIST, 0, len(arrays))
    for array in arrays.values():
        head = struct.pack("<IiI", tool._ARRAY_WITH_KIND, 0, array.ndim) if wide else struct.pack("<I", array.ndim)
        data += head + struct.pack(f"<{array.ndim}{'q' if wide else 'I'}", *array.shape)
        data += struct.pack("<iii", 1, 0, 0) + array.tobytes()
    data += struct.pack("<Q", len(arrays))
    for name in arrays:
        data += struct.pack("<Q", len(name)) + name.encode()
    return arrays, data


@pytest.mark.parametrize("wide", [True, False])
def test_the_container_is_read(tool, wide: bool) -> None:
    arrays, data = params(tool, wide)
    found = tool.read_params(data)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_folding_changes_no_output(tool) -> None:
    """The network against its layers one by one: convolution, then batch norm, then ReLU6."""
    arrays, _ = params(tool, True)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    state = tool.convert(arrays)
    net = MobileFace(mobileface_config(state)).eval()
    net.load_state_dict(state)
    x = torch.rand(2, 3, 112, 112) * 2 - 1

    def norm(name: str, h: torch.Tensor) -> torch.Tensor:
        mean, var = tensors[f"aux:{name}_moving_mean"], tensors[f"aux:{name}_moving_var"]
        return F.batch_norm(h, mean, var, tensors[f"arg:{name}_gamma"], tensors[f"arg:{name}_beta"], eps=1e-3)

    def conv(number: int, h: torch.Tensor, **how: int) -> torch.Tensor:
        return norm(f"batchnorm{number}", F.conv2d(h, tensors[f"arg:convolution{number}_weight"], **how))

    fed = x * 127.5 / 128  # trained on (p - 127.5) / 128
    h = F.relu6(norm("bn1", F.conv2d(fed, tensors["arg:conv1_weight"], tensors["arg:conv1_bias"], 2, 1)))
    for block in range(4):  # one block a stage: each halves
        h = F.relu6(conv(3 * block, h))
        h = F.relu6(conv(3 * block + 1, h, stride=2, padding=1, groups=8))
        h = conv(3 * block + 2, h)
    expected = norm("fc5_bn", h.flatten(1) @ tensors["arg:fc5_weight"].t())
    with torch.no_grad():
        assert torch.allclose(net(x), expected, atol=1e-4)


def test_another_file_is_refused(tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.params").write_bytes(params(tool, True)[1])
    monkeypatch.setattr("sys.argv", ["tool", str(tmp_path / "a.params"), str(tmp_path / "out.safetensors")])
    with pytest.raises(SystemExit, match="another file"):
        tool.main()
    assert registry.by_name("mobileface_v2").terms.startswith("MIT")
