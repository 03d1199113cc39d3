"""What a bulk run is asked, in one frozen value that travels to every worker."""
from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

from ..batch import ModelChoice, RestoreSettings
from ..errors import BadOption

FACES_AT_ONCE = 32  # faces of several pictures that go through the networks together


@dataclass(frozen=True)
class BulkSettings:
    """``source`` and ``target`` are folders or URLs; ``restore`` says what is done with each picture."""

    source: str
    target: str
    restore: RestoreSettings
    address: str | None = None  # of a Ray cluster; None: this machine
    workers: int = 0  # 0: one per GPU, or one per two cores where there is none
    threads: int = 0  # of each worker; 0: the cores shared out
    limit: int = 0  # pictures of this run; 0: all
    part: tuple[int, int] = (1, 1)  # this run's share of the pictures, as 3 of 16
    people: bytes | None = None  # the content of a people file, to name faces
    retry_failed: bool = False

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "limit"):
            if getattr(self, name) < 0:
                raise BadOption(f"{name} is {getattr(self, name)}; it must not be negative.")
        number, count = self.part
        if not 1 <= number <= count:
            raise BadOption(f"The part is {number}/{count}; give one such as 3/16.")

    def told(self, model_sha256: str) -> dict:
        """What decides how a result looks, as JSON values: a target holds the results of one such set."""
        choice = self.restore.models
        everywhere = replace(choice, device=None) if isinstance(choice, ModelChoice) else choice
        told = replace(self.restore, models=everywhere, out=None, overwrite=False, skip_existing=False).to_dict()
        people = hashlib.sha256(self.people).hexdigest() if self.people else ""
        return told | {"model_sha256": model_sha256, "people_sha256": people}


def digest_of(told: dict) -> str:
    """sha256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
