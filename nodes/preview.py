"""What the user sees while faces are restored: one bar over all stages, and the face in work before and after."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..idcodeformer.files.drawing import image_of
from ..idcodeformer.types import Progress, RestoreOptions
from . import host

if TYPE_CHECKING:
    from ..idcodeformer.restoration.codeformer import CodeFormerRestorer
    from .managed import Part

FEW = 4  # faces that are not shown one by one
# Share of the bar each stage begins and ends at, by where the time goes on a CPU; a GPU is done before one looks.
_STAGES = {"detecting": (0.0, 0.2), "restoring": (0.2, 0.8), "guiding": (0.8, 0.95), "pasting": (0.95, 1.0)}


class StagedProgress:
    """The pipeline's (done, total, what), called for one part of the frames after another, on one bar of 100 steps."""

    def __init__(self, bar: host.Progress, stages: dict[str, tuple[float, float]] | None = None):
        self._bar, self._stages = bar, stages or _STAGES
        self._from, self._to = 0.0, 1.0

    def part(self, start: int, stop: int, total: int) -> None:
        """From now on the frames from ``start`` to ``stop`` of ``total`` are in work."""
        self._from, self._to = start / max(1, total), stop / max(1, total)

    def __call__(self, done: int, total: int, what: str, shown: Tensor | None = None) -> None:
        start, end = self._stages.get(what, (0.0, 1.0))
        share = start + (end - start) * (done / max(1, total))
        share = self._from + (self._to - self._from) * share
        self._bar(round(100 * share), 100, None if shown is None else image_of(shown))


class PreviewingRestorer:
    """A restorer that shows each batch of faces as soon as it is done: input on the left, restored on the right.

    A few faces are not shown: Nodes 2.0 keeps the last picture, over that of all faces which the node shows at the end.
    """

    def __init__(self, part: Part, progress: StagedProgress):
        self._part, self._progress = part, progress
        self.restorer: CodeFormerRestorer = part.ready()

    def __getattr__(self, name: str) -> Any:
        """``size``, ``device``, ``config``, ``encode``, ``decoder`` and so on are the restorer's own."""
        return getattr(self.restorer, name)

    def __call__(
        self,
        pixels: Tensor,
        options: RestoreOptions | None = None,
        progress: Progress | None = None,
        w: Tensor | None = None,
    ) -> Tensor:
        """As CodeFormerRestorer; the given ``progress`` is replaced by one that carries pictures."""
        from ..idcodeformer.runtime.memory import faces_per_batch

        options = options or RestoreOptions()
        step = options.batch_size or faces_per_batch(self.restorer.config, self.device)
        many = len(pixels) > FEW
        done: list[Tensor] = []
        for start in range(0, len(pixels), step):
            part = pixels[start : start + step]
            first = torch.cat([part[0], part[0]], 2) if many and not done else None
            self._progress(start, len(pixels), "restoring", first)
            restorer = self._part.ready()  # its engine calls no forward, so no hook brings weights back
            restored = restorer(part, options, w=None if w is None else w[start : start + step])
            done.append(restored)
            shown = torch.cat([part[-1], restored[-1]], 2) if many else None
            self._progress(start + len(part), len(pixels), "restoring", shown)
        return torch.cat(done)
