"""The networks in memory: loaded at first use, one of each kind, put away as the host's settings say."""
from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files, host

if TYPE_CHECKING:
    import torch

    from .core import Embeddings, FacePipeline


@dataclass(frozen=True)
class Choice:
    """Which networks are wanted, by the names in the lists."""

    restorer: str = files.AUTOMATIC
    detector: str = files.KINDS["detector"].built_in[0]
    recogniser: str = files.KINDS["recogniser"].built_in[0]


@dataclass
class _Held:
    """One network and what it was made from."""

    stamp: tuple  # file, its size and time, precision
    part: Any
    device: torch.device


class Models:
    """Hands out pipelines whose parts are loaded once. Used by one job of the host at a time."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._person: tuple[tuple, list[Embeddings]] | None = None

    def pipeline(self, choice: Choice, guiding: bool = False) -> FacePipeline:
        """All parts on the host's device. Raises MissingWeights and the core's other sentences.

        Where faces are to be guided another recogniser than the chosen one does it, so that the chosen one's scores are
        not the guide's own.
        """
        from . import core

        restorer = self.part("restorer", choice.restorer)
        host.make_room(core.memory_needed(restorer), restorer.device)
        return core.FacePipeline(
            restorer,
            self.part("detector", choice.detector),
            None if choice.recogniser == files.NONE else self.part("recogniser", choice.recogniser),
            self._get("parser", files.parser_file()),
            self._guide(choice) if guiding and choice.recogniser != files.NONE else None,
        )

    def _guide(self, choice: Choice) -> Any:
        other = files.second_recogniser(choice.recogniser)
        return None if other is None else self._get("guide", files.locate("recogniser", other))

    def part(self, kind: str, name: str) -> Any:
        """One network by its name in the list, on the host's device."""
        return self._get(kind, files.locate(kind, name))

    def name_of(self, kind: str) -> str:
        """What the network of that kind was read from: the file's name without its ending."""
        return self._held[kind].stamp[0].stem

    def person(self, choice: Choice, photos: list, guide: Any = None) -> list[Embeddings] | None:
        """The mean embedding of reference photos ([3,H,W] each) by the chosen recogniser and, where another one guides,
        by ``guide`` too; kept for the next picture of a batch."""
        from . import core

        if not photos:
            return None
        if choice.recogniser == files.NONE:
            raise core.BadOption("Reference photos need a recogniser; choose another than 'none'.")
        detector, known = self.part("detector", choice.detector), [self.part("recogniser", choice.recogniser)]
        stamps = [self._held["detector"].stamp, self._held["recogniser"].stamp]
        if guide is not None and guide is not known[0]:
            known.append(guide)
            stamps.append(self._held["guide"].stamp)
        key = (*stamps, *(_print_of(photo) for photo in photos))
        if self._person is None or self._person[0] != key:
            self._person = (key, [core.embed_person(photos, detector, one) for one in known])
        return self._person[1]

    def rest(self) -> None:
        """After a job: away from the device's memory where the host's setting asks for it."""
        if not host.unload_after_use():
            return
        import torch

        from . import core

        self._person = None
        cpu = torch.device("cpu")
        for kind, held in list(self._held.items()):
            if held.device.type != "cpu":
                part = core.moved(held.part, cpu, "fp32")
                del self._held[kind]
                if part is not None:
                    self._held[kind] = _Held(held.stamp, part, cpu)
        host.give_back()

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._person = None
        gc.collect()
        host.give_back()

    def _get(self, kind: str, file: Path) -> Any:
        from . import core

        device, precision = host.device(), host.precision()
        about = file.stat()
        stamp = (file, about.st_size, about.st_mtime_ns, precision)
        held = self._held.get(kind)
        if held is not None and held.stamp == stamp and held.device == device:
            return held.part
        self._held.pop(kind, None)  # before the new one comes, so that both are never in memory
        part = core.moved(held.part, device, precision) if held is not None and held.stamp == stamp else None
        held = None
        if part is None:
            part = core.load("recogniser" if kind == "guide" else kind, file, device, precision)
        self._held[kind] = _Held(stamp, part, device)
        return part


def _print_of(photo: Any) -> tuple:
    return (*photo.shape, hash(photo.cpu().numpy().tobytes()))
