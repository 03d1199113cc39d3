"""What is left to do, as small files at the target that the workers read: the driver holds none of it."""
from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice

from .listing import Item, digest, in_part, items
from .manifest import WORK, done
from .places import Place
from .settings import BulkSettings

SHARD = 32  # pictures that are handed out together
_LOOKED_UP = 4096  # pictures that are looked up in the manifest at once


@dataclass
class Plan:
    """Counts of pictures, the files that name those to do, and a few of these drawn by chance."""

    shards: list[str] = field(default_factory=list)
    to_do: int = 0
    done: int = 0
    unnamed: list[str] = field(default_factory=list)  # pictures whose name is no text
    sample: list[Item] = field(default_factory=list)


def make_plan(settings: BulkSettings, place: Place, run: str, sample: int = 0) -> Plan:
    """List the source, leave out what the manifest has, write the rest into files of SHARD pictures.

    With ``sample`` nothing is written; that many pictures are drawn instead. Raises what ``items`` raises.
    """
    plan, dice = Plan(), random.Random(0)
    left = islice(_left(settings, place, plan), settings.limit or None)
    for number, shard in enumerate(_chunks(left, SHARD)):
        if sample:
            for item in shard:
                plan.to_do += 1
                if len(plan.sample) < sample:
                    plan.sample.append(item)
                elif (at := dice.randrange(plan.to_do)) < sample:
                    plan.sample[at] = item
            continue
        name = f"{WORK}/plan-{run}/{number:08d}.json"
        place.write(name, json.dumps([asdict(item) for item in shard]).encode())
        plan.shards.append(name)
        plan.to_do += len(shard)
    return plan


def read_shard(place: Place, name: str) -> list[dict[str, str]]:
    """The pictures of one file of a plan."""
    data = place.read(name)
    assert data is not None, f"{place.url_of(name)} is gone"
    return json.loads(data)


def _left(settings: BulkSettings, place: Place, plan: Plan) -> Iterator[Item]:
    import numpy as np

    known = done(place)
    for some in _chunks(_named(settings, plan), _LOOKED_UP):
        digests = np.array([digest(item.key) for item in some], dtype="S32")
        there = np.isin(digests, known, assume_unique=False, kind="sort")
        plan.done += int(there.sum())
        yield from (item for item, is_done in zip(some, there) if not is_done)


def _named(settings: BulkSettings, plan: Plan) -> Iterator[Item]:
    for item in items(settings.source, settings.target):
        try:
            item.key.encode()
        except UnicodeEncodeError:  # bytes of a file name that are no text go into no manifest
            plan.unnamed.append(item.url)
            continue
        if in_part(item.key, settings.part):
            yield item


def _chunks(values: Iterable[Item], size: int) -> Iterator[list[Item]]:
    stream = iter(values)
    while chunk := list(islice(stream, size)):
        yield chunk
