"""What the workers do with a handful of pictures: fetch, restore, write. Tables go in and come out."""
from __future__ import annotations

import errno
import hashlib
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..batch import Outcome, RestoreJob
from ..errors import BadImage, BadTarget
from ..files.limits import lift_pillows_limit
from .attempts import Attempts
from .groups import restore_group
from .listing import result_name
from .manifest import FAILED, SET_ASIDE, write_piece
from .places import Place, read_url, system_error
from .settings import BulkSettings

if TYPE_CHECKING:
    import pyarrow

RESULTS = "pictures"
UNWRITTEN = "unwritten"
_FETCHES = 8  # files of a handful that are read or written at the same time
_TRIES = 2
# The target is well, and this one name does not fit: too long, or below a name that is a file.
_OF_A_NAME = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ}
_ENDINGS = {b"\x89P": ".png", b"\xff\xd8": ".jpg", b"RI": ".webp", b"GI": ".gif"}  # by a result's first bytes
_SAME = ("status", "reason", "face", "score", "w", "id_sim_input", "id_sim_before", "id_sim_after", "guidance",
         "guided_by", "judged_by", "person")  # fmt: skip


def _table(rows: list[dict[str, Any]], **kinds: str) -> pyarrow.Table:
    import pyarrow

    columns = [(name, getattr(pyarrow, kind)()) for name, kind in kinds.items()]
    return pyarrow.Table.from_pylist(rows, pyarrow.schema(columns))


def fetch(table: pyarrow.Table) -> pyarrow.Table:
    """Rows of key, url and person, with the bytes of each file or the reason why there are none."""

    def one(row: dict[str, Any]) -> dict[str, Any]:
        try:
            return row | {"data": read_url(row["url"]), "reason": ""}
        except BadImage as error:
            return row | {"data": b"", "reason": str(error)}

    with ThreadPoolExecutor(_FETCHES) as pool:
        rows = list(pool.map(one, table.to_pylist()))
    return _table(rows, key="string", url="string", person="string", data="large_binary", reason="string")


class Restorer:
    """Holds the networks; one for each GPU or group of cores."""

    def __init__(self, settings: BulkSettings, run: str):
        if settings.threads:
            torch.set_num_threads(settings.threads)
        lift_pillows_limit()
        self.settings = settings
        self.job = _loaded(settings)
        self.attempts = Attempts(Place(settings.target), run)

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        rows = [row | {"sha256": hashlib.sha256(row["data"]).hexdigest()} for row in table.to_pylist()]
        keys = [row["key"] for row in rows]
        if self.attempts.begin(keys):
            outcomes = [self._alone(row) for row in rows]
        else:
            outcomes = restore_group(self.job, rows)
        self.attempts.end(keys)
        results = [_result(row, data, outcome) for row, (data, outcome) in zip(rows, outcomes)]
        return _table(results, key="string", person="string", sha256="string", data="large_binary", outcome="string")

    def _alone(self, row: dict[str, Any]) -> tuple[bytes, Outcome]:
        """A picture of a handful over which a worker died; the one that does it again is set aside."""
        if self.attempts.begin([row["key"]]):
            told = f"{row['url']} ended its worker {_TRIES} times; look at the file, and at the memory of the machine."
            done = b"", Outcome(row["url"], status=SET_ASIDE, error=told)
        else:
            done = restore_group(self.job, [row])[0]
        self.attempts.end([row["key"]])
        return done


def _result(row: dict[str, Any], data: bytes, outcome: Outcome) -> dict[str, Any]:
    told = replace(outcome, output="").__dict__
    kept = {name: row[name] for name in ("key", "person", "sha256")}
    return kept | {"data": data, "outcome": json.dumps(told)}


def _loaded(settings: BulkSettings) -> RestoreJob:
    """The networks, and the people of the file whose content came along."""
    with tempfile.TemporaryDirectory() as folder:
        restore = settings.restore
        if settings.people is not None:
            file = Path(folder, "people.safetensors")
            file.write_bytes(settings.people)
            restore = replace(restore, people=file)
        return RestoreJob(restore).load()


class Writer:
    """Puts results in their place, and then their rows into the manifest."""

    def __init__(self, target: str, part: tuple[int, int], model_sha256: str, options_sha256: str):
        self.place, self.part = Place(target), part
        self.hashes = {"model_sha256": model_sha256, "options_sha256": options_sha256}

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        rows = table.to_pylist()
        told = [Outcome(**json.loads(row["outcome"])) for row in rows]
        try:
            with ThreadPoolExecutor(_FETCHES) as pool:
                list(pool.map(self._put, rows, told))
            lines = [line for row, outcome in zip(rows, told) for line in self._lines(row, outcome)]
            write_piece(self.place, self.part, lines)
        except BadTarget as error:  # nothing of this handful counts; the run stops, and the next one does it again
            told = [Outcome(outcome.input, status=UNWRITTEN, error=str(error)) for outcome in told]
        done = [
            {"key": row["key"], "status": outcome.status, "error": outcome.error, "faces": outcome.restored,
             "seconds": outcome.seconds} for row, outcome in zip(rows, told)
        ]  # fmt: skip
        return _table(done, key="string", status="string", error="string", faces="int64", seconds="float64")

    def _put(self, row: dict[str, Any], outcome: Outcome) -> None:
        if row["data"]:
            ending = _ENDINGS.get(row["data"][:2], ".avif")
            outcome.output = f"{RESULTS}/{result_name(row['key'], ending)}"
            try:
                self.place.write(outcome.output, row["data"])
            except BadTarget as error:
                cause = system_error(error)
                if cause is None or cause.errno not in _OF_A_NAME:
                    raise
                told = f"{self.place.url} takes no file of the name {outcome.output}; give it another id."
                outcome.status, outcome.error, outcome.output = FAILED, f"{outcome.input}: {told}", ""

    def _lines(self, row: dict[str, Any], outcome: Outcome) -> list[dict[str, Any]]:
        width, height = outcome.size or (None, None)
        shared = {"key": row["key"], "output": outcome.output, "input_sha256": row["sha256"], **self.hashes}
        told = {"status": outcome.status, "reason": outcome.error, "seconds": outcome.seconds, "person": row["person"]}
        size = {"width": width, "height": height, "faces": len(outcome.faces)}
        lines = [shared | told | size | {"kind": "picture"}]
        for face in outcome.faces:
            corners = dict(zip(("x0", "y0", "x1", "y1"), face["box"]))
            line = {name: face[name] for name in _SAME}
            lines.append(shared | line | corners | {"kind": "face", "frame": face["image"]})
        return lines


__all__ = ["FAILED", "RESULTS", "SET_ASIDE", "UNWRITTEN", "Restorer", "Writer", "fetch"]
