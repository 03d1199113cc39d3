"""What every test starts from: no network, no user cache, few threads, and the marks that ask for something."""
from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

# Threads that wait for each other in a loop stand still for minutes where other programs have the cores: 12 tests that
# take 48 s beside one busy process took over 8 minutes. Before torch loads its OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(2, os.cpu_count() or 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs = {
        "gpu": (torch.cuda.is_available(), "needs CUDA"),
        "webui": (bool(os.environ.get("WEBUI_DIR")), "needs WEBUI_DIR"),
        "comfy": (bool(os.environ.get("COMFYUI_DIR")), "needs COMFYUI_DIR"),
        "parity": (bool(os.environ.get("IDCODEFORMER_PARITY")), "needs IDCODEFORMER_PARITY"),
    }
    for item in items:
        for mark, (there, reason) in needs.items():
            if item.get_closest_marker(mark) and not there:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees neither the weights this user has downloaded nor the network."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.delenv("IDCODEFORMER_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    real_connect = socket.socket.connect

    def connect(self: socket.socket, address):  # type: ignore[no-untyped-def]
        local = self.family == getattr(socket, "AF_UNIX", None) or address[0] in ("127.0.0.1", "::1", "localhost")
        if not local:
            raise OSError(f"tests do not use the network ({address})")
        return real_connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def photos(root: Path) -> Path:
    """The folder with portrait.jpg (one face) and group.jpg (four)."""
    return root / "idcodeformer/assets"


@pytest.fixture(scope="session")
def tiny_restorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a 64-px CodeFormer with random weights: quick, ugly, and the same door as a real one."""
    from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
    from idcodeformer.weights.loading import save

    torch.manual_seed(0)
    config = CodeFormerConfig(
        img_size=64, nf=32, ch_mult=(1, 2, 2), attn_resolutions=(16,), codebook_size=32, emb_dim=16, dim_embd=32,
        dim_mlp=64, n_head=2, n_layers=1, connect_list=(32,),
    )  # fmt: skip
    return save(CodeFormer(config), tmp_path_factory.mktemp("weights") / "tiny_restorer.safetensors")


@pytest.fixture(scope="session")
def tiny_recogniser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a small MobileFaceNet with random weights."""
    from idcodeformer.networks.mobilefacenet import MobileFaceNet, MobileFaceNetConfig
    from idcodeformer.weights.loading import save

    torch.manual_seed(0)
    stages = ((2, 16, 1, 2), (2, 16, 1, 2), (2, 16, 1, 2))
    network = MobileFaceNet(MobileFaceNetConfig(stages=stages, stem=16, head=32, embedding_dim=16))
    return save(network, tmp_path_factory.mktemp("weights") / "tiny_recogniser.safetensors")


@pytest.fixture
def _answered() -> Iterator[None]:
    """A signal that is ignored where the tests run (nohup, a shell's background) would be by their children too."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def latin_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text files opened without an encoding are in cp1252, as on many a Windows."""
    import builtins
    import io

    real = io.open

    def opened(file, mode="r", buffering=-1, encoding=None, *more, **named):
        if "b" not in mode and encoding in (None, "locale"):
            encoding = "cp1252"
        return real(file, mode, buffering, encoding, *more, **named)

    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr(builtins, "open", opened)
