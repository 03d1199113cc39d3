"""What a run reads, by contents: a run can go on after files have moved, and others can tell what it saw."""
from __future__ import annotations

import hashlib
from typing import Any, Iterable

from .config import TrainConfig
from .data.sources import Entry


def weight_files(config: TrainConfig) -> dict[str, list[str]]:
    """Configuration key -> the weight files behind it that the objective depends on at every step."""
    loss, stage = config.loss, config.stage
    pictures = stage in ("stage1", "stage3", "stage3_id")
    named: dict[str, list[str | None]] = {
        "vqgan": [config.vqgan or config.init] if stage in ("stage2", "stage3", "stage3_id") else [],
        "recogniser.teacher": [config.recogniser.teacher] if stage == "recogniser" else [],
        "loss.perceptual_weights": [loss.perceptual_weights] if pictures and loss.perceptual else [],
        "loss.perceptual_heads": [loss.perceptual_heads] if pictures and loss.perceptual else [],
        "loss.anchor_weights": [loss.anchor_weights] if loss.anchor else [],
        "loss.identity_weights": [*loss.identity_weights] if stage == "stage3_id" and loss.identity else [],
    }
    found = {key: [path for path in paths if path] for key, paths in named.items()}
    return {key: paths for key, paths in found.items() if paths}


def digests(config: TrainConfig, entries: Iterable[Entry]) -> dict[str, Any]:
    """Configuration key -> sha256 of each weight file; ``data`` -> sha256 over the names and identities of the images.

    Of an image's path only the file name counts, and of an identity which images share it: folders may move and be
    renamed. Raises MissingWeights.
    """
    from idcodeformer.weights.store import find, sha256_of

    names, people = hashlib.sha256(), dict[str, int]()
    for entry in entries:
        person = people.setdefault(entry.identity, len(people))
        names.update(f"{entry.member or entry.path.name}\0{person}\0".encode("utf-8", "replace"))
    files = {key: [sha256_of(find(path)) for path in paths] for key, paths in weight_files(config).items()}
    return {"data": names.hexdigest(), **files}
