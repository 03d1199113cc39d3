"""From a weight file to a network, and back: which architecture, which size, strict load, atomic save."""
from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CorruptWeights, UnsupportedWeights, first_line
from ..networks import adaface, arcface, foreign, mobileface, mobilefacenet
from ..networks.codeformer import CodeFormer, CodeFormerConfig
from ..networks.mini_parser import MiniParser, MiniParserConfig, mini_parser_config
from ..networks.retinaface import RetinaFace
from ..networks.vqgan import PatchDiscriminator, VQAutoEncoder, VQGANConfig
from ..runtime.skeleton import skeletons
from . import recovery
from .reading import read_state, strip_prefix
from .registry import GROUPS, OTHER_RUNTIMES, kinds_of

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """One network this package knows: how its tensors look, what its config is, how it is built."""

    name: str  # as written to the metadata of our files
    kind: str  # what it is for: codeformer, face_network, vqgan, discriminator, retinaface, parsenet, mini_parser,
    # recogniser
    keys: tuple[str, ...]  # state-dict keys that it alone has together
    recover: Callable[[State], Any]
    construct: Callable[[Any], nn.Module]
    config_from_dict: Callable[[Mapping[str, Any]], Any] = dict


def _parsenet(config: Mapping[str, Any]) -> nn.Module:
    try:
        from facexlib.parsing.parsenet import ParseNet
    except ImportError as exc:
        raise ImportError("ParseNet comes from facexlib, which is not installed. Run: pip install facexlib") from exc
    return ParseNet(**config)


_IRESNET = arcface.IResNetConfig.from_dict
_MOBILE = mobilefacenet.MobileFaceNetConfig.from_dict

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        "CodeFormer", "codeformer", ("position_emb", "ft_layers.0.linear1.weight", "quantize.embedding.weight"),
        recovery.codeformer_config, CodeFormer, CodeFormerConfig.from_dict,
    ),
    Architecture(
        "GFPGANv1Clean", "face_network", foreign.GFPGAN_KEYS,
        foreign.gfpgan_config, foreign.build_foreign, foreign.ForeignConfig.from_dict,
    ),
    Architecture(
        "RestoreFormer", "face_network", foreign.RESTOREFORMER_KEYS,
        foreign.restoreformer_config, foreign.build_foreign, foreign.ForeignConfig.from_dict,
    ),
    Architecture(
        "VQAutoEncoder", "vqgan", ("encoder.blocks.0.weight", "quantize.embedding.weight", "generator.blocks.0.weight"),
        recovery.vqgan_config, VQAutoEncoder, VQGANConfig.from_dict,
    ),
    Architecture(
        "PatchDiscriminator", "discriminator", ("main.0.weight", "main.2.weight", "main.3.weight"),
        recovery.discriminator_config, lambda config: PatchDiscriminator(**config),
    ),
    Architecture(
        "RetinaFace", "retinaface", ("BboxHead.0.conv1x1.weight", "LandmarkHead.0.conv1x1.weight"),
        recovery.retinaface_config, lambda config: RetinaFace(**config),
    ),
    Architecture(
        "ParseNet", "parsenet", ("encoder.0.conv2d.weight", "out_mask_conv.conv2d.weight"),
        recovery.parsenet_config, _parsenet,
    ),
    Architecture(
        "MiniParser", "mini_parser", ("down.0.0.0.weight", "context.squeeze.weight", "head.1.weight"),
        mini_parser_config, MiniParser, MiniParserConfig.from_dict,
    ),
    Architecture(
        "IResNet", "recogniser", ("conv1.weight", "layer1.0.bn1.weight", "fc.weight", "features.weight"),
        arcface.iresnet_config, arcface.IResNet, _IRESNET,
    ),
    Architecture(
        "IRSE50", "recogniser", ("input_layer.0.weight", "body.0.res_layer.5.fc1.weight", "output_layer.3.weight"),
        arcface.irse_config, arcface.IRSE50, _IRESNET,
    ),
    Architecture(
        "AdaFaceIR", "recogniser", adaface.ADAFACE_KEYS, adaface.adaface_config, adaface.AdaFaceIR, _IRESNET,
    ),
    Architecture(
        "ResNet18Gray", "recogniser", ("conv1.weight", "layer1.0.bn0.weight", "fc5.weight", "bn5.weight"),
        arcface.gray_config, arcface.ResNet18Gray, _IRESNET,
    ),
    Architecture(
        "MobileFaceNet", "recogniser", ("dw_conv1.conv.weight", "linear7.conv.weight", "linear1.conv.weight"),
        mobilefacenet.mobilefacenet_config, mobilefacenet.MobileFaceNet, _MOBILE,
    ),
    Architecture(
        "FoldedMobileFaceNet", "recogniser", ("stem.conv.weight", "gdc.conv.weight", "fc2.conv.weight"),
        mobilefacenet.mobilefacenet_config, mobilefacenet.FoldedMobileFaceNet, _MOBILE,
    ),
    Architecture(
        "MobileFace", "recogniser", mobileface.MOBILEFACE_KEYS,
        mobileface.mobileface_config, mobileface.MobileFace, mobileface.MobileFaceConfig.from_dict,
    ),
)  # fmt: skip
KINDS = tuple(dict.fromkeys(a.kind for a in ARCHITECTURES))


def kind_of(module: nn.Module) -> str:
    """The kind of a network that ``build`` has made. Raises UnsupportedWeights for another one."""
    for architecture in ARCHITECTURES:
        if architecture.name == type(module).__name__:
            return architecture.kind
    raise UnsupportedWeights(f"{type(module).__name__} is no network known here.")


def detect(state: State) -> Architecture:
    """Which network the tensors belong to, by their names. Raises UnsupportedWeights."""
    for architecture in ARCHITECTURES:
        if all(key in state for key in architecture.keys):
            return architecture
    some, known = ", ".join(list(state)[:3]), ", ".join(a.name for a in ARCHITECTURES)
    raise UnsupportedWeights(f"the tensors ({len(state)}: {some} ...) belong to no network known here ({known}).")


def build(
    source: str | os.PathLike | State, kind: str | None = None, metadata: Mapping[str, str] | None = None
) -> nn.Module:
    """The network of a weight file (or of a state dict with its ``metadata``): float32, CPU, eval mode.

    The architecture is told by the tensors' names, the config by the metadata's ``config`` JSON or else by shapes;
    loading is strict. ``kind`` (of KINDS, or "restorer", "detector", "parser") refuses every other network. The result
    carries ``weights_metadata`` and, in facexlib's classes too, ``config``. Raises MissingWeights, CorruptWeights,
    UnsafeWeights, UnsupportedWeights; ImportError where facexlib is needed and missing.
    """
    kinds = kinds_of(kind)
    if not set(kinds) <= {*KINDS, *OTHER_RUNTIMES}:
        raise ValueError(f"kind is {kind!r}; use one of {', '.join((*KINDS, *GROUPS))}.")
    if isinstance(source, Mapping):
        state = {k: v.detach().clone() for k, v in strip_prefix(source).items()}  # the caller's stay the caller's
        where, metadata = "The state dict", dict(metadata or {})
    else:
        where = str(source)
        state, metadata = read_state(source)
    try:
        architecture = detect(state)
        if kinds and architecture.kind not in kinds:
            raise UnsupportedWeights(f"this is {architecture.name} ({architecture.kind}), not a {kind}.")
        module = _construct(architecture, state, metadata)
        _fill(module, state)
    except UnsupportedWeights as exc:
        raise UnsupportedWeights(f"{where}: {exc}") from exc
    except CorruptWeights as exc:
        raise CorruptWeights(f"{where}: {exc}") from exc
    module.weights_metadata = metadata
    return module.eval()


def _construct(architecture: Architecture, state: State, metadata: Mapping[str, str]) -> nn.Module:
    try:
        if "config" in metadata and metadata.get("architecture", architecture.name) == architecture.name:
            config = architecture.config_from_dict(json.loads(metadata["config"]))
        else:
            config = architecture.recover(state)
        _refuse_endless(config, len(state))
        with skeletons():
            module = architecture.construct(config)
    except (KeyError, IndexError, ArithmeticError, AttributeError, TypeError, ValueError, RuntimeError) as exc:
        detail = first_line(exc)[:160]
        raise UnsupportedWeights(f"the tensors fit no size of {architecture.name} known here ({detail}).") from exc
    if not hasattr(module, "config"):
        module.config = config
    return module


def _refuse_endless(config: Any, tensors: int) -> None:
    """Raise ValueError where a config asks for more blocks than the file has tensors: building them would not end."""
    values = config if isinstance(config, Mapping) else vars(config)
    levels = values.get("ch_mult", ())
    blocks = {
        "n_layers": values.get("n_layers", 0),
        "res_blocks": values.get("res_blocks", 0) * len(levels),
        "connect_list": len(values.get("connect_list", ())),
        "layers": sum(values.get("layers", ())),
        "stages": sum(stage[2] for stage in values.get("stages", ())),
        "res_depth": values.get("res_depth", 0),
    }
    for name, count in blocks.items():
        if not 0 <= count <= tensors:
            raise ValueError(f"{name} asks for {count} blocks, the file has {tensors} tensors")


def _fill(module: nn.Module, state: State) -> None:
    """Strict load in float32. Batch-norm step counters, which some files drop, are not missed."""
    own = module.state_dict()
    given = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    for key in own:
        if key.endswith("num_batches_tracked") and key not in given:
            given[key] = torch.zeros((), dtype=torch.int64)
    problems = [f"missing {k}" for k in own if k not in given] + [f"unexpected {k}" for k in given if k not in own]
    for key, value in own.items():
        if key in given and given[key].shape != value.shape:
            problems.append(f"{key} is {list(given[key].shape)} instead of {list(value.shape)}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UnsupportedWeights(f"the tensors do not fit {type(module).__name__}: {'; '.join(problems[:3])}{more}.")
    bad = next((k for k, v in given.items() if v.is_floating_point() and not v.isfinite().all()), None)
    if bad is not None:
        raise CorruptWeights(f"{bad} holds NaN or infinity. Download the file again.")
    module.load_state_dict(given, strict=True, assign=True)


def config_of(module: nn.Module) -> dict[str, Any]:
    """A module's config as JSON values."""
    config = getattr(module, "config", None)
    if config is None and isinstance(module, PatchDiscriminator):
        return recovery.discriminator_config(module.state_dict())
    if config is None:
        raise UnsupportedWeights(f"{type(module).__name__} has no config to write beside its weights.")
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def save(
    module: nn.Module,
    path: str | os.PathLike,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a .safetensors file that ``build`` reads back without guessing; whole or not at all (atomic rename).

    ``metadata`` adds texts (licence, data, ...) to ``architecture`` and ``config``. ``dtype`` (e.g. torch.float16)
    applies to weights of two and more dimensions; biases and norms, small and touchy, stay as they are.
    """
    from safetensors.torch import save as to_bytes

    path = Path(path)
    texts = {"format": "pt", "architecture": type(module).__name__, "config": json.dumps(config_of(module))}
    texts.update(metadata or {})
    state = {}
    for key, value in module.state_dict().items():
        value = value.detach().cpu()
        narrow = dtype is not None and value.is_floating_point() and value.ndim > 1
        state[key] = (value.to(dtype) if narrow else value).contiguous().clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:  # not safetensors' own writer: it makes files that only the owner can read
            file.write(to_bytes(state, metadata=texts))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


__all__ = ["ARCHITECTURES", "KINDS", "Architecture", "build", "config_of", "detect", "read_state", "save"]
