"""What is put before the judges: the degraded input, models at several w, the ceiling, and the truth itself."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from idcodeformer.networks.codeformer import CodeFormer
from idcodeformer.networks.vqgan import VQAutoEncoder
from idcodeformer.restoration.codeformer import CodeFormerRestorer
from idcodeformer.restoration.tone import match_tone
from idcodeformer.types import Colour, RestoreOptions
from idcodeformer.weights.store import SUFFIXES, find, sha256_of

from ..config import ConfigError

Kind = Literal["input", "model", "guided", "stranger", "ceiling", "truth"]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    kind: Kind
    name: str
    w: float | None = None

    @property
    def label(self) -> str:
        return self.name if self.w is None else f"{self.name}, w = {self.w:g}"


class Subject(Protocol):
    """Makes the images of its rows, [N,3,S,S] in [0,1] each, from (truth, degraded) in [0,1].

    ``key`` says what made them, for the cache; ``blind`` ones do not look at the degraded image, so that one result
    serves all degradations. ``at(w)`` is the same with no other w.
    """

    rows: list[Row]
    key: str
    blind: bool

    def make(self, truth: Tensor, degraded: Tensor) -> list[Tensor]: ...

    def at(self, w: float) -> "Subject": ...


class _Fixed:
    """A subject that knows no w."""

    def at(self, w: float):  # type: ignore[no-untyped-def]
        return self


class InputSubject(_Fixed):
    """The floor: the degraded image as it came."""

    rows, key, blind = [Row("input", "input (degraded)")], "input", False

    def make(self, truth: Tensor, degraded: Tensor) -> list[Tensor]:
        return [degraded]


class TruthSubject(_Fixed):
    """The undegraded photograph: what verification reaches when nothing was lost."""

    rows, key, blind = [Row("truth", "truth (undegraded)")], "truth", True

    def make(self, truth: Tensor, degraded: Tensor) -> list[Tensor]:
        return [truth]


class ModelSubject:
    """A CodeFormer at several w, restored by the pack's own code in fp32; the encoder runs once for all w.

    ``options`` say what colours the faces are given, see ``colour_options``.
    """

    blind = False

    def __init__(
        self, name: str, digest: str, restorer: CodeFormerRestorer, ws: Sequence[float], options: RestoreOptions
    ):
        self.name, self.digest, self.restorer, self.ws, self.options = name, digest, restorer, tuple(ws), options
        self.size = restorer.size
        self.rows = [Row("model", name, w) for w in self.ws]
        self.key = f"codeformer {digest} w={self.ws} {self.colours}"

    @property
    def colours(self) -> str:
        """The options that matter here, for the cache."""
        return f"adain={self.options.adain} colour={self.options.colour} gray={self.options.gray}"

    def at(self, w: float) -> "ModelSubject":
        return ModelSubject(self.name, self.digest, self.restorer, (w,), self.options)

    def make(self, truth: Tensor, degraded: Tensor) -> list[Tensor]:
        made = self.restorer.sweep(degraded, self.ws, self.options)
        return [match_tone(images, degraded, replace(self.options, w=w)) for images, w in zip(made, self.ws)]


class CeilingSubject(_Fixed):
    """The best that the codes allow: the truth through an autoencoder, nearest codes in place of predicted ones."""

    blind = True

    def __init__(self, name: str, path: Path, net: VQAutoEncoder | CodeFormer):
        self.net = net
        self.rows = [Row("ceiling", f"VQGAN reconstruction of the truth ({name})")]
        self.key = f"ceiling {sha256_of(path)}"

    @torch.no_grad()
    def make(self, truth: Tensor, degraded: Tensor) -> list[Tensor]:
        net = self.net
        z = net.encoder(truth * 2 - 1)
        codes = net.quantize.lookup(net.quantize.nearest(z), z.shape[2], z.shape[3])
        return [(net.generator(codes).clamp(-1, 1) + 1) / 2]


def bound_to(subject: Subject, rows: Sequence[int]) -> Subject:
    """The subject for the faces ``rows``, where it matters who they are."""
    return subject.of(rows) if hasattr(subject, "of") else subject


def split_name(text: str) -> tuple[str, str]:
    """``NAME=PATH`` or ``PATH`` or a name the store knows -> (name to print, path or store name).

    A checkpoint without a name takes that of its run folder: every run has a best.ckpt.
    """
    name, equals, path = text.partition("=")
    if equals and name and "/" not in name:
        return name, path
    file = Path(text)
    return (file.parent.name or file.stem) if file.suffix == ".ckpt" else file.stem, text


def load_network(path: Path, kind: str | None) -> nn.Module:
    """A frozen fp32 network in eval mode, from an export, a published file or a training checkpoint (.ckpt)."""
    if path.suffix == ".ckpt":
        from ..checkpoint import read_checkpoint
        from ..tools.export import network_of

        return network_of(read_checkpoint(path))
    from idcodeformer.weights.loading import build

    return build(path, kind).float().eval().requires_grad_(False)


@dataclass(frozen=True)
class LossRecognisers:
    """The recognisers in a model's loss: their names, and the sha256 of their files where the model records it."""

    names: list[str]
    digests: list[str]

    @classmethod
    def of(cls, path: Path, net: nn.Module) -> "LossRecognisers":
        """As a checkpoint or an exported file says; empty where it says nothing."""
        import json

        if path.suffix == ".ckpt":
            from ..checkpoint import read_checkpoint

            state = read_checkpoint(path)
            config, sources = state["config"], state.get("sources", {})
        else:
            metadata = getattr(net, "weights_metadata", {})
            config, sources = (json.loads(metadata.get(key, "{}")) for key in ("training", "sources"))
        loss = config.get("loss", {})
        if not loss.get("identity"):
            return cls([], [])
        names = [_plain_name(name) for name in loss.get("identity_weights", [])]
        return cls(names, list(sources.get("loss.identity_weights", [])))


def _plain_name(name: str) -> str:
    """A file's name without folder and suffix; a name of the registry as it is, also where it holds a dot."""
    file = Path(name)
    return file.stem if file.suffix in SUFFIXES else file.name


def colour_options(colour: Colour, adain: bool) -> RestoreOptions:
    """What is done to a face's colours: as the pipeline does by default with "low_band", else by the network alone."""
    return RestoreOptions(adain=adain, colour=colour, gray="auto" if colour == "low_band" else "off")


def load_model(
    text: str, ws: Sequence[float], options: RestoreOptions, device: torch.device
) -> tuple[ModelSubject, LossRecognisers]:
    """A model to measure, from ``NAME=PATH``, and the recognisers its loss used."""
    name, source = split_name(text)
    path = find(source, "codeformer")
    net = load_network(path, "codeformer")
    if not isinstance(net, CodeFormer):
        raise ConfigError(f"{path} holds {type(net).__name__}, not a CodeFormer: name a stage II or III result.")
    if any(ws) and not net.config.connect_list:
        raise ConfigError(f"{path} has no fusion blocks (connect_list is empty); only --w 0 can be measured.")
    known = LossRecognisers.of(path, net)
    return ModelSubject(name, sha256_of(path), CodeFormerRestorer(net, device, "fp32"), ws, options), known


def load_ceiling(text: str, size: int, device: torch.device) -> CeilingSubject:
    """The autoencoder of a stage I file, or the encoder, codes and generator of a CodeFormer file."""
    name, source = split_name(text)
    path = find(source)
    net = load_network(path, None)
    if not isinstance(net, (VQAutoEncoder, CodeFormer)):
        raise ConfigError(f"{path} holds {type(net).__name__}; --ceiling takes a stage I (VQGAN) or a CodeFormer file.")
    if net.config.img_size != size:
        raise ConfigError(f"{path} works at {net.config.img_size} px, not {size} px; give the models' own autoencoder.")
    return CeilingSubject(name, path, net.to(device))
