"""The pack loaded as ComfyUI loads it, under a folder name with a dash, against the host double."""
from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, Iterator

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
DOUBLE = ROOT / "tests" / "host_double"
SAMPLES = ROOT / "web" / "samples"
NAME = "/somewhere/custom_nodes/ComfyUI-ID-CodeFormer"  # the host uses the path as module name
TINY = "tiny_codeformer.safetensors"
TINY_RECOGNISER = "tiny_recogniser.safetensors"


def load_pack() -> ModuleType:
    """As nodes.load_custom_node does."""
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


def write_tiny_models(models: Path) -> None:
    """A CodeFormer and a recogniser with random weights: fast, and enough for everything but looks."""
    from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
    from idcodeformer.networks.mobilefacenet import MobileFaceNet, MobileFaceNetConfig
    from idcodeformer.weights.loading import save

    torch.manual_seed(0)
    config = CodeFormerConfig(
        img_size=64, nf=32, ch_mult=(1, 2, 2), attn_resolutions=(16,), codebook_size=32, emb_dim=16, dim_embd=32,
        dim_mlp=64, n_head=2, n_layers=1, connect_list=(32,),
    )  # fmt: skip
    for folder in ("facerestore_models", "insightface", "facedetection"):
        (models / folder).mkdir(parents=True)
    save(CodeFormer(config), models / "facerestore_models" / TINY, {})
    save(MobileFaceNet(MobileFaceNetConfig()), models / "insightface" / TINY_RECOGNISER, {})


@pytest.fixture(scope="session")
def _base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("host")
    write_tiny_models(base / "models")
    return base


@pytest.fixture(scope="session")
def _pack(_base: Path) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOST_DOUBLE_BASE", str(_base))
        patch.syspath_prepend(str(DOUBLE))
        yield load_pack()
    host = ("folder_paths", "comfy", "comfy_api")
    for name in [n for n in sys.modules if n.startswith(NAME) or n.split(".")[0] in host]:
        del sys.modules[name]


@pytest.fixture
def pack(_pack: ModuleType, _base: Path) -> Iterator[SimpleNamespace]:
    """The loaded pack, its nodes by id, and the host double's levers, all as new."""
    import comfy.model_management as mm
    import comfy.utils
    import folder_paths

    mm.reset()
    mm.FORCE_FP32 = False
    comfy.utils.hook = None
    before = {key: (list(paths), set(ext)) for key, (paths, ext) in folder_paths.folder_names_and_paths.items()}
    nodes = SimpleNamespace(**{key.removeprefix("IDCodeFormer"): cls for key, cls in _pack.NODE_CLASS_MAPPINGS.items()})
    yield SimpleNamespace(
        module=_pack, nodes=nodes, models=_base / "models", mm=mm, utils=comfy.utils, folder_paths=folder_paths,
        errors=sys.modules[NAME + ".idcodeformer.errors"], sub=lambda name: sys.modules[f"{NAME}.nodes.{name}"],
    )  # fmt: skip
    folder_paths.folder_names_and_paths.clear()
    folder_paths.folder_names_and_paths.update(before)


def defaults(node: type) -> dict[str, Any]:
    """The values of all widgets of a node as the front end starts them."""
    values = {}
    for group in node.INPUT_TYPES().values():
        for name, (kind, *options) in group.items():
            if isinstance(kind, list) or kind in ("FLOAT", "INT", "BOOLEAN", "STRING"):
                values[name] = options[0]["default"]
    return values


@pytest.fixture
def run(pack: SimpleNamespace) -> Callable[..., tuple]:
    """Run a node with its defaults but for what is given; the result tuple, whatever else it shows."""

    def call(name: str, /, **values: Any) -> tuple:
        node = getattr(pack.nodes, name)
        result = getattr(node(), node.FUNCTION)(**{**defaults(node), **values})
        return result["result"] if isinstance(result, dict) else result

    return call


@pytest.fixture
def model(run: Callable[..., tuple]):
    """An ID_CODEFORMER of the tiny networks."""
    return run("Loader", model_name=TINY, recogniser=TINY_RECOGNISER)[0]


@pytest.fixture(scope="session")
def _found() -> dict[tuple, Any]:
    return {}


@pytest.fixture
def found(run: Callable[..., tuple], _found: dict[tuple, Any]) -> Callable[[torch.Tensor], Any]:
    """FACES of an image, detected once for all tests: on a CPU that is most of their time."""

    def call(image: torch.Tensor) -> Any:
        key = (tuple(image.shape), float(image.double().sum()), float(image.double()[:, :, ::3].sum()))
        if key not in _found:
            _found[key] = run("DetectFaces", image=image)[0]
        return _found[key]

    return call


def picture(name: str) -> torch.Tensor:
    """IMAGE of a sample picture."""
    import numpy as np
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(SAMPLES / name).convert("RGB"), dtype=np.float32) / 255)[None]


@pytest.fixture(scope="session")
def portrait() -> torch.Tensor:
    """[1,384,384,3], one face."""
    return picture("idcodeformer_portrait.jpg")


@pytest.fixture(scope="session")
def group() -> torch.Tensor:
    """[1,256,928,3], four faces."""
    return picture("idcodeformer_group.jpg")


@pytest.fixture(scope="session")
def member() -> torch.Tensor:
    """[1,320,320,3], the second person of ``group`` in another photograph."""
    return picture("idcodeformer_group_reference.jpg")


@pytest.fixture(scope="session")
def grey() -> torch.Tensor:
    """[1,200,240,3] without a face."""
    return torch.full((1, 200, 240, 3), 0.5)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def refusal(node: type, name: str, value: Any) -> str | None:
    """What the host says of a combo's value, as its validation words it; None where it takes the value."""
    choices = node.INPUT_TYPES()["required"][name][0]
    if value in choices:
        return None
    return f"{name}: '{value}' not in " + (f"(list of length {len(choices)})" if len(choices) > 20 else str(choices))
