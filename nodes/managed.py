"""What the loader hands out, with every network's place in memory decided by ComfyUI.

The host caches a node's output and drops it on /free; the weights live in that output (or in the node itself, which the
host drops then too) and nowhere else, so they go with it.
"""
from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any, Callable, Sequence

import torch
from torch import nn

from ..idcodeformer.errors import BadOption
from . import folders, host
from .held import Held, HeldStates

if TYPE_CHECKING:
    from ..idcodeformer.compositing.parsing import FaceParser
    from ..idcodeformer.identity.recogniser import IdentityRecogniser
    from ..idcodeformer.types import Restorer
    from .people import LinkedPeople

_log = logging.getLogger(__name__)
_HEADROOM = 256 << 20  # bytes asked for beside the weights: what detector, recogniser and parser need at most
NO_RECOGNISER = "none"


class _Shelf(nn.Module):
    """Holds a network for the host, which writes attributes of its own onto the module that it manages.

    ``left`` is called when the host has moved the network away from ``device``.
    """

    def __init__(self, network: nn.Module, device: torch.device, left: Callable[[], None] | None):
        super().__init__()
        self.network = network
        self._device, self._left = device, left

    def to(self, *args: Any, **kwargs: Any) -> "_Shelf":
        moved = super().to(*args, **kwargs)
        if self._left is not None and not lies_on(self.network, self._device):
            self._left()
        return moved


def lies_on(network: nn.Module, device: torch.device) -> bool:
    """Whether every weight of ``network`` does. Asked before each forward pass, so it walks without names."""
    index, modules = device.index or 0, [network]
    while modules:
        module = modules.pop()
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and (tensor.device.type != device.type or (tensor.device.index or 0) != index):
                return False
        modules += filter(None, module._modules.values())
    return True


class Managed:
    """One network under ComfyUI's model management."""

    def __init__(self, network: nn.Module, left: Callable[[], None] | None = None):
        self.network = network
        self.device = host.compute_device()
        self.patcher = self._make_patcher(left)
        this = weakref.ref(self)  # a cycle would keep the weights until the garbage collector runs
        network.register_forward_pre_hook(lambda *_: _fetch(this))

    def _make_patcher(self, left: Callable[[], None] | None) -> Any:
        try:
            from comfy.model_management import unet_offload_device
            from comfy.model_patcher import ModelPatcher
        except ImportError as error:
            _log.warning("ID-CodeFormer moves its networks by itself: this ComfyUI has no ModelPatcher (%s).", error)
            return None
        shelf = _Shelf(self.network, self.device, left)
        return ModelPatcher(shelf, load_device=self.device, offload_device=unet_offload_device())

    def fetch(self) -> None:
        """Bring the network to the compute device if the host has moved it, or a part of it, away meanwhile."""
        if not lies_on(self.network, self.device):
            self.network.to(self.device)


def _fetch(this: weakref.ref[Managed]) -> None:
    managed = this()
    if managed is not None:
        managed.fetch()


class Part:
    """One tool of a run (detector, recogniser, ...): built once, its network under the host's management.

    ``build`` makes the tool of the core; it is called when the network first lies on the compute device. ``network`` is
    None for what runs outside torch, whose memory the host cannot see. ``left``: see _Shelf.
    """

    def __init__(
        self, network: nn.Module | None, build: Callable[[], Any], left: Callable[[], None] | None = None
    ):  # fmt: skip
        self._build, self._tool = build, None
        self.managed = None if network is None else Managed(network, left)

    def ready(self) -> Any:
        """The tool, its network in place. Call ``load_together`` before, with all parts of the run."""
        if self.managed is not None:
            self.managed.fetch()  # --novram leaves weights away, and a host without patchers moves nothing
        if self._tool is None:
            self._tool = self._build()
        return self._tool


def load_together(parts: Sequence[Part | None], memory: int = 0) -> None:
    """Ask the host for everything that one run needs, with ``memory`` bytes free for the activations.

    One request, because each may move away whatever is not part of it. None entries are passed over.
    """
    wanted = [part.managed for part in parts if part is not None and part.managed is not None]
    patchers = [managed.patcher for managed in wanted if managed.patcher is not None]
    if patchers:
        import comfy.model_management as mm

        # A partial load would leave plain torch layers on the CPU: only comfy.ops layers can fetch their weights.
        mm.load_models_gpu(patchers, memory_required=max(memory, _HEADROOM), force_full_load=True)
    for managed in wanted:
        managed.fetch()


class IDCodeFormerModel:
    """The ID_CODEFORMER of the graph: restorer and recogniser, and the parser and the detector once they are needed."""

    def __init__(self, model_name: str, precision: str, recogniser_name: str):
        from ..idcodeformer.restoration.engine.execution import choose_precision, mixed
        from ..idcodeformer.weights.loading import build, kind_of

        self.name = model_name
        device = host.compute_device()
        self.precision = allowed(precision)
        network = build(folders.locate("restorer", model_name), "restorer")
        self.config = network.config
        if kind_of(network) == "codeformer":
            self.precision = choose_precision(device, self.precision)
            if device.type != "cpu":  # now, so that the host counts the bytes that there are
                mixed(network, self.precision)
        precise, held = self.precision, Held()  # a lambda that holds ``self`` would be a cycle
        self.held = held
        self.restorer = Part(network, lambda: _restorer(network, device, precise, held), held.clear)
        self.recogniser = None if recogniser_name == NO_RECOGNISER else recogniser_part(recogniser_name)
        self._parser: Part | None = None
        self._detector: Part | None = None
        self._last = host.MemoryReturn()  # attributes go in the order they came, so the weights are free before this

    def memory(self, faces: int) -> int:
        """Bytes for the activations of ``faces`` at once in the restorer, as the core estimates them."""
        from ..idcodeformer.runtime.memory import bytes_per_face

        return bytes_per_face(self.config) * max(1, faces)

    def parser(self) -> Part:
        """ParseNet where its file is there, else the built-in parser."""
        from ..idcodeformer.weights.loading import build

        if self._parser is None:
            network = build(folders.parser_file(), "parser")
            self._parser = Part(network, lambda: _parser(network))
        return self._parser

    def judge_of(self, people: LinkedPeople) -> str:
        """The name of the recogniser that scores likeness to ``people``: the model's where it can."""
        judged = None if self.recogniser is None else people.by(self.recogniser.ready())
        return people.people.recogniser if judged is None else judged.recogniser

    def detector(self) -> Part:
        """The built-in detector, for images that come without faces."""
        if self._detector is None:
            self._detector = detector_part(BUILT_IN_DETECTOR)
        return self._detector


class Kept:
    """Parts that a node keeps from one execution to the next. The host keeps the node, and drops it on /free.

    A file that has changed is read again.
    """

    def __init__(self) -> None:
        self._parts: dict[str, tuple[str, str, Part]] = {}
        self._last = host.MemoryReturn()

    def detector(self, name: str | None = None) -> Part:
        """By the name in the combo; None is the built-in one."""
        return self._part("detector", name or BUILT_IN_DETECTOR, detector_part)

    def recogniser(self, name: str | None = None) -> Part:
        """By the name in the combo; None is the built-in one, for nodes without an ID_CODEFORMER."""
        return self._part("recogniser", name or BUILT_IN_RECOGNISER, recogniser_part)

    def _part(self, kind: str, name: str, make: Callable[[str], Part]) -> Part:
        state = folders.fingerprint_of(kind, name)
        kept = self._parts.get(kind)
        if kept is None or kept[:2] != (name, state):
            self._parts.pop(kind, None)  # before the other is read, so that only one is held
            kept = (name, state, make(name))
            self._parts[kind] = kept
        return kept[2]


BUILT_IN_DETECTOR = next(iter(folders.KINDS["detector"].built_in))
BUILT_IN_RECOGNISER = next(iter(folders.KINDS["recogniser"].built_in))


def recogniser_part(name: str) -> Part:
    """A recogniser by the name in its combo."""
    from ..idcodeformer.weights.loading import build

    path = folders.locate("recogniser", name)
    network = build(path, "recogniser")
    return Part(network, lambda: _recogniser(network, path.stem))


def detector_part(name: str) -> Part:
    """A detector by the name in its combo. The host cannot see the memory of those that torch does not run."""
    from ..idcodeformer.detection import open_detector

    network, make = open_detector(folders.locate("detector", name))
    return Part(network, lambda: make(host.compute_device()))


def _restorer(network: Any, device: torch.device, precision: Any, held: Held) -> Restorer:
    from ..idcodeformer.restoration.registry import restorer_of

    restorer = restorer_of(network, device, precision, in_place=True)
    if hasattr(restorer, "states"):
        restorer.states = HeldStates(held)
    return restorer


def _recogniser(network: nn.Module, name: str) -> IdentityRecogniser:
    from ..idcodeformer.identity.recogniser import IdentityRecogniser

    return IdentityRecogniser(network, name, host.compute_device())


def _parser(network: nn.Module) -> FaceParser:
    from ..idcodeformer.compositing.parsing import FaceParser

    return FaceParser(network, host.compute_device())


def model_of(model: Any) -> IDCodeFormerModel:
    """``model`` if it is an ID_CODEFORMER of this pack; raises BadOption otherwise."""
    if not isinstance(model, IDCodeFormerModel):
        raise BadOption(f"'model' is a {type(model).__name__}; link the output of Load ID-CodeFormer.")
    return model


def recogniser_of(model: Any, kept: Kept) -> Part:
    """The recogniser of ``model``, or the built-in one where none is linked. Raises BadOption where it has none."""
    part = kept.recogniser() if model is None else model_of(model).recogniser
    if part is None:
        raise BadOption("Load ID-CodeFormer was told to load no recogniser; choose one there, or unlink 'model'.")
    return part


def allowed(precision: str) -> str:
    """fp32 where the host was started with --force-fp32, and for "auto" on cards that are slow in half precision."""
    if host.forced_fp32():
        return "fp32"
    return "fp32" if precision == "auto" and not host.half_precision_allowed(host.compute_device()) else precision
