"""Which files are worked on, and the names of their results."""
from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..batch import COMPARE, CROPPED, FINAL, RESTORED

RESULTS = (FINAL, RESTORED, CROPPED, COMPARE)  # folders of an output


def not_results(inputs: Sequence[tuple[Path, Path]], out: Path) -> list[tuple[Path, Path]]:
    """``inputs`` without what earlier runs wrote into ``out``, which may lie inside a folder of pictures."""
    results = [(out / folder).resolve() for folder in RESULTS]
    folders: dict[Path, bool] = {}

    def ours(file: Path) -> bool:
        if file.is_symlink():
            return any(file.resolve().is_relative_to(result) for result in results)
        if file.parent not in folders:  # resolving every file of a large folder takes seconds
            here = file.parent.resolve()
            folders[file.parent] = any(here.is_relative_to(result) for result in results)
        return folders[file.parent]

    return [pair for pair in inputs if not ours(pair[0])]


def plan_targets(inputs: Sequence[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """(file, relative path of its result without ending). Two inputs never share one: their endings tell them apart."""
    targets: list[tuple[Path, Path]] = []
    taken: set[str] = set()
    stems = [_key(relative.parent / relative.stem) for _, relative in inputs]
    count = Counter(stems)
    numbers: Counter[str] = Counter()
    for (path, relative), stem in zip(inputs, stems):
        target = relative.parent / relative.stem
        if count[stem] > 1:
            target = target.with_name(f"{target.name}_{relative.suffix.lstrip('.') or 'file'}")
        base = _key(target)
        while _key(target) in taken:
            numbers[base] += 1
            target = relative.with_name(f"{relative.stem}_{numbers[base] + 1}")
        taken.add(_key(target))
        targets.append((path, target))
    return targets


def _key(path: Path) -> str:
    """Equal for names that some file system takes for one: case and composed letters do not count."""
    return unicodedata.normalize("NFC", str(path)).casefold()
