"""Several pictures through one pipeline together: batches are formed by faces, not by files."""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import torch

from ..batch import Outcome, RestoreJob
from ..batch.job import resized_alpha
from ..batch.outcome import marked
from ..errors import BadImage, IDCodeFormerError
from ..files.reading import Picture, decode
from ..files.writing import check_size, encode
from ..runtime.memory import is_out_of_memory
from ..types import Faces
from .settings import FACES_AT_ONCE

_PIXELS_AT_ONCE = 1 << 26  # of the pictures that are held decoded together: 0.8 GB as float
_DECODERS = 4


class _Entry:
    """One picture on its way."""

    def __init__(self, row: dict[str, Any]):
        self.row, self.outcome, self.data = row, Outcome(row["url"]), b""
        self.picture: Picture | None = None

    def fail(self, error: Exception) -> None:
        told = str(error) if isinstance(error, IDCodeFormerError) else f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            told = f"{self.row['url']} does not fit into memory; give the workers more, or scale it down."
        told = told if self.row["url"] in told else f"{self.row['url']}: {told}"
        self.outcome = replace(self.outcome, status="failed", error=told)
        self.picture, self.data = None, b""


def restore_group(job: RestoreJob, rows: Sequence[dict[str, Any]]) -> list[tuple[bytes, Outcome]]:
    """The bytes of each result (empty where there is none) and what became of the picture, in the order of ``rows``.

    Rows have ``url``, ``data`` (the bytes of the file) and ``reason`` (why there are none). One picture's trouble never
    costs the others: a group that fails is done again, picture by picture.
    """
    entries = [_Entry(row) for row in rows]
    with ThreadPoolExecutor(_DECODERS) as pool:
        for group in _by_size(entries, pool):
            _restore(job, group)
            list(pool.map(lambda entry: _encode(job, entry), group))
            for entry in group:
                entry.picture = None
    return [(entry.data, entry.outcome) for entry in entries]


def _by_size(entries: Sequence[_Entry], pool: ThreadPoolExecutor) -> Iterator[list[_Entry]]:
    """Decoded pictures in groups that stay under a bound of pixels, each at least one picture."""
    group: list[_Entry] = []
    held = 0
    for start in range(0, len(entries), _DECODERS):
        some = entries[start : start + _DECODERS]
        for entry, _ in zip(some, pool.map(_decode, some)):
            if entry.picture is None:
                continue
            size = entry.picture.frames[:, 0].numel()
            if group and held + size > _PIXELS_AT_ONCE:
                yield group
                group, held = [], 0
            group.append(entry)
            held += size
    if group:
        yield group


def _decode(entry: _Entry) -> None:
    row = entry.row
    if row["reason"]:
        entry.fail(BadImage(row["reason"]))
        return
    try:
        entry.picture = decode(row["data"], row["url"].partition("?")[0])
        entry.outcome.size = entry.picture.size[::-1]
    except Exception as error:  # told in the manifest and counted; the other pictures go on
        entry.fail(error)


def _restore(job: RestoreJob, group: list[_Entry]) -> None:
    """Detect in all, then restore runs of pictures that together have enough faces for a batch."""
    pipeline, settings = job.pipeline, job.settings
    assert pipeline is not None
    try:
        frames = [frame for entry in group for frame in entry.picture.frames]
        found = pipeline.detector(frames, settings.detect_options)
        for run, faces in _by_faces(group, found):
            _restore_run(job, run, faces)
    except Exception as error:  # of one of them; alone, each tells its own
        if len(group) == 1:
            group[0].fail(error)
            return
        for entry in group:
            if entry.outcome.status == "failed":
                _restore(job, [entry])


def _by_faces(group: list[_Entry], found: Sequence[Faces]) -> Iterator[tuple[list[_Entry], list[Faces]]]:
    run: list[_Entry] = []
    faces: list[Faces] = []
    place = 0
    for entry in group:
        count = len(entry.picture.frames)
        run.append(entry)
        faces += found[place : place + count]
        place += count
        if sum(map(len, faces)) >= FACES_AT_ONCE:
            yield run, faces
            run, faces = [], []
    if run:
        yield run, faces


def _restore_run(job: RestoreJob, run: list[_Entry], faces: list[Faces]) -> None:
    settings, start = job.settings, time.perf_counter()
    frames = [frame for entry in run for frame in entry.picture.frames]
    for entry in run:
        high, wide = (round(side * settings.options.upscale) for side in entry.picture.size)
        check_size(PurePosixPath(f"{entry.row['url']}{_ending(job, entry.picture)}"), wide, high)
    result = job.pipeline(frames, settings.options, settings.detect_options, faces, references=job.references,
                          upscaler=job.upscaler, guidance=settings.guidance, people=job.people)  # fmt: skip
    place = 0
    for entry in run:
        count = len(entry.picture.frames)
        images = torch.stack(result.images[place : place + count])
        entry.picture = replace(entry.picture, frames=images, alpha=resized_alpha(entry.picture.alpha, images))
        lines = [line for line in result.report if place <= line.image < place + count]
        entry.picture = marked(entry.picture, lines, job.model)
        entry.outcome.faces = [replace(line, image=line.image - place, crop=None).to_dict() for line in lines]
        entry.outcome.status = "restored" if entry.outcome.restored else "no face"
        entry.outcome.seconds = round((time.perf_counter() - start) * count / len(frames), 3)
        place += count


def _ending(job: RestoreJob, picture: Picture) -> str:
    if job.settings.format:
        return f".{job.settings.format}"
    return picture.suffix if len(picture.frames) > 1 else ".png"


def _encode(job: RestoreJob, entry: _Entry) -> None:
    if entry.picture is None:
        return
    try:
        entry.data = encode(PurePosixPath(f"{entry.row['url']}{_ending(job, entry.picture)}"), entry.picture)
    except Exception as error:  # told in the manifest and counted; the other pictures go on
        entry.fail(error)
