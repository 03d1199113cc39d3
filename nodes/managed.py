"""What the loader hands out, with every network's place in memory decided by ComfyUI.

The host caches a node's output and drops it on /free; the weights live in that output and nowhere else, so they go too.
"""
from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..idcodeformer.errors import BadOption, MissingWeights
from . import folders, host

if TYPE_CHECKING:
    from ..idcodeformer.compositing.parsing import FaceParser
    from ..idcodeformer.identity.recogniser import IdentityRecogniser
    from ..idcodeformer.restoration.codeformer import CodeFormerRestorer
    from ..idcodeformer.types import Detector

_log = logging.getLogger(__name__)
_HEADROOM = 256 << 20  # bytes asked for beside the weights, where the caller has no better estimate
NO_RECOGNISER = "none"
PARSENET_FILE = "parsing_parsenet.pth"


class _Shelf(nn.Module):
    """Holds a network for the host, which writes attributes of its own onto the module that it manages."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


class Managed:
    """One network under ComfyUI's model management."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.device = host.compute_device()
        self._patcher = self._make_patcher()
        self._asked = False  # whether the host was ever asked to load it
        # What the run that loaded it last needs at the same time. Weak: a cycle would keep weights alive after /free.
        self._group: tuple[weakref.ref[Managed], ...] = (weakref.ref(self),)
        come_back = weakref.WeakMethod(self._come_back)
        network.register_forward_pre_hook(lambda *_: back() if (back := come_back()) else None)

    def _make_patcher(self) -> Any:
        try:
            from comfy.model_management import unet_offload_device
            from comfy.model_patcher import ModelPatcher
        except ImportError as error:
            _log.warning("ID-CodeFormer moves its networks by itself: this ComfyUI has no ModelPatcher (%s).", error)
            return None
        return ModelPatcher(_Shelf(self.network), load_device=self.device, offload_device=unet_offload_device())

    def load(self, memory: int = _HEADROOM) -> nn.Module:
        """The network, wholly on the compute device, with ``memory`` bytes (estimated) free for its activations.

        Where it was loaded together with others, and all of them are there, the host is not asked again.
        """
        group = self._beside()
        if self._asked is False or not all(managed.is_there() for managed in group):
            load_together(group, memory)
        return self.network

    def _beside(self) -> list[Managed]:
        return [managed for managed in (ref() for ref in self._group) if managed is not None]

    def _come_back(self) -> None:
        """Before every forward pass: what the host moved away meanwhile returns, with all that this run needs."""
        if not self.is_there():
            load_together(self._beside())

    def is_there(self) -> bool:
        """Whether every weight lies on the compute device."""

        def same(a: torch.device, b: torch.device) -> bool:
            return a.type == b.type and (a.index or 0) == (b.index or 0)

        return all(same(p.device, self.device) for p in (*self.network.parameters(), *self.network.buffers()))


def load_together(group: Sequence[Managed | None], memory: int = _HEADROOM) -> None:
    """Put all networks that one run needs in their place by one request, with ``memory`` bytes free for activations.

    A request for one alone may move the others away: always with --disable-smart-memory, else where the card is full.
    """
    wanted = tuple(managed for managed in group if managed is not None)
    patchers = [managed._patcher for managed in wanted if managed._patcher is not None]
    if patchers:
        import comfy.model_management as mm

        # A partial load would leave plain torch layers on the CPU: only comfy.ops layers can fetch their weights.
        mm.load_models_gpu(patchers, memory_required=memory, force_full_load=True)
    for managed in wanted:
        managed._group, managed._asked = tuple(map(weakref.ref, wanted)), True
        if not managed.is_there():  # --novram keeps weights away, and a host without patchers moves nothing
            managed.network.to(managed.device)


class IDCodeFormerModel:
    """The ID_CODEFORMER of the graph: restorer and recogniser, and the parser and the detector once they are needed."""

    def __init__(self, model_name: str, precision: str, recogniser_name: str):
        from ..idcodeformer.restoration.engine.execution import choose_precision
        from ..idcodeformer.weights.loading import build

        self.name = model_name
        self.precision = choose_precision(host.compute_device(), _allowed(precision))
        self._restorer = Managed(build(folders.locate("restorer", model_name), "codeformer"))
        self.config = self._restorer.network.config
        self._recogniser = None if recogniser_name == NO_RECOGNISER else ManagedRecogniser(recogniser_name)
        self._parser: Managed | None = None
        self._detector: ManagedDetector | None = None
        self._last = host.MemoryReturn()  # attributes go in the order they came, so the weights are free before this

    def load(self, faces: int = 0, detector: bool = False, parser: bool = False) -> None:
        """Put what a run needs in its place, all at once: the recogniser always, the restorer for ``faces`` at once.

        ``parser`` without its file loads none.
        """
        from ..idcodeformer.runtime.memory import bytes_per_face

        needed = [self._restorer] if faces else []
        if self._recogniser is not None:
            needed.append(self._recogniser.managed)
        if detector:
            needed.append(self._find_detector().managed)
        if parser and self._find_parser(required=False):
            needed.append(self._parser)
        load_together(needed, max(_HEADROOM, bytes_per_face(self.config) * faces))

    @property
    def managed_recogniser(self) -> ManagedRecogniser | None:
        """The recogniser, wherever its network is; None where the loader was told so."""
        return self._recogniser

    def restorer(self, faces: int) -> CodeFormerRestorer:
        """The restorer, its network in place, with memory freed for ``faces`` at once."""
        from ..idcodeformer.restoration.codeformer import CodeFormerRestorer
        from ..idcodeformer.runtime.memory import bytes_per_face

        network = self._restorer.load(bytes_per_face(self.config) * max(1, faces))
        return CodeFormerRestorer(network, self._restorer.device, self.precision)

    def recogniser(self) -> IdentityRecogniser | None:
        """The recogniser, its network in place; None where the loader was told so."""
        return self._recogniser.load() if self._recogniser else None

    def parser(self, required: bool) -> FaceParser | None:
        """ParseNet where its file is there; else None, or MissingWeights (file, URL, folder) if ``required``."""
        from ..idcodeformer.compositing.parsing import FaceParser

        parser = self._find_parser(required)
        return None if parser is None else FaceParser(parser.load(), parser.device)

    def _find_parser(self, required: bool) -> Managed | None:
        from ..idcodeformer.weights.loading import build

        if self._parser is None:
            try:
                self._parser = Managed(build(folders.locate("parser", PARSENET_FILE), "parsenet"))
            except MissingWeights:
                if required:
                    raise
        return self._parser

    @property
    def has_parser(self) -> bool:
        """Whether ParseNet was found when it was last needed."""
        return self._parser is not None

    def detector(self) -> Detector:
        """The built-in detector, for images that come without faces."""
        return self._find_detector().load()

    def _find_detector(self) -> ManagedDetector:
        if self._detector is None:
            self._detector = built_in_detector()
        return self._detector


class ManagedRecogniser:
    """A recogniser by the name in its combo."""

    def __init__(self, name: str):
        from ..idcodeformer.weights.loading import build

        path = folders.locate("recogniser", name)
        network = build(path, "recogniser")
        self.name = path.stem
        self.managed = Managed(network)

    def load(self) -> IdentityRecogniser:
        from ..idcodeformer.identity.recogniser import IdentityRecogniser

        return IdentityRecogniser(self.managed.load(), self.name, self.managed.device)


class ManagedDetector:
    """A detector by the name in its combo. SCRFD runs in ONNX Runtime, whose memory the host cannot see."""

    def __init__(self, name: str):
        from ..idcodeformer.weights.loading import build

        self._path = folders.locate("detector", name)
        self.managed = None if _is_onnx(self._path) else Managed(build(self._path, "retinaface"))

    def load(self) -> Detector:
        from ..idcodeformer.detection import RetinaFaceDetector, SCRFDDetector

        if self.managed is None:
            return SCRFDDetector(self._path, host.compute_device())
        return RetinaFaceDetector(self.managed.load(), self.managed.device)


def built_in_detector() -> ManagedDetector:
    """The detector of the pack itself."""
    return ManagedDetector(next(iter(folders.KINDS["detector"].built_in)))


def built_in_recogniser() -> ManagedRecogniser:
    """The recogniser of the pack itself, for nodes without an ID_CODEFORMER."""
    return ManagedRecogniser(next(iter(folders.KINDS["recogniser"].built_in)))


def model_of(model: Any) -> IDCodeFormerModel:
    """``model`` if it is an ID_CODEFORMER of this pack; raises BadOption otherwise."""
    if not isinstance(model, IDCodeFormerModel):
        raise BadOption(f"'model' is a {type(model).__name__}; link the output of Load ID-CodeFormer.")
    return model


def _allowed(precision: str) -> str:
    """fp32 where the host was started with --force-fp32, and for "auto" on cards that are slow in half precision."""
    if host.forced_fp32():
        return "fp32"
    return "fp32" if precision == "auto" and not host.half_precision_allowed(host.compute_device()) else precision


def _is_onnx(path: Path) -> bool:
    return path.suffix.lower() == ".onnx"
