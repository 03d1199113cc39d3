"""The driver: Ray Data moves the pictures through fetching, restoring and writing, and holds back what is too fast."""
from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..batch import RestoreSettings
from ..batch.models import default_model
from ..errors import BadOption, BadTarget, WorkersFailed
from ..runtime.memory import free_bytes
from ..weights.store import find, sha256_of
from .manifest import FAILED, SET_ASIDE, WORK, claim, folder_of, join, read_rows
from .places import Place
from .plan import Plan, make_plan, read_shard
from .settings import BulkSettings, digest_of
from .work import UNWRITTEN, Restorer, Writer, fetch

HANDFUL = 16  # pictures that a worker takes at once
_SMALL_STORE, _STORE_SHARE = 256 << 20, 0.2  # bytes, and the share of the free memory, of a local object store
_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_MOST_TOLD = 1000  # failures that are kept to be told; the manifest has them all


@dataclass
class Summary:
    """How a run went."""

    pictures: int = 0
    faces: int = 0
    seconds: float = 0.0
    already: int = 0
    failures: list[str] = field(default_factory=list)  # of the target, earlier runs included
    failed: int = 0
    unnamed: list[str] = field(default_factory=list)


Told = Callable[[int, int, int, int], None]  # (pictures done, of how many, faces, failures)


def run_bulk(
    settings: BulkSettings, progress: Told | None = None, failed: Callable[[str], None] | None = None
) -> Summary:
    """Restore all that is left of the source. What is done is in the manifest, also where this is killed.

    Raises BadOption, BadTarget (nothing of the pictures in work counts then), BadImage for a source that is not there,
    WorkersFailed where the workers cannot start.
    """
    ray = _ray()
    place, start = Place(settings.target), time.perf_counter()
    settings, hashes = _prepared(settings, place)
    run = f"{settings.part[0]}-{settings.part[1]}-{secrets.token_hex(6)}"
    _clear(place, settings.part)
    if settings.retry_failed:
        join(place, settings.part, drop_failed=True)
    summary = Summary()
    try:
        plan = make_plan(settings, place, run)
        summary.already, summary.unnamed = plan.done, plan.unnamed
        if plan.shards:
            with _cluster(ray, settings):
                for done in _stream(ray, settings, run, plan, hashes):
                    _count(summary, done, plan, progress, failed)
    finally:
        for kind in ("plan", "attempts"):  # with the folder, which a disk keeps when its files are gone
            place.remove_folder(f"{WORK}/{kind}-{run}")
    join(place, settings.part)
    _list_failures(summary, place, folder_of(settings.part))
    summary.seconds = time.perf_counter() - start
    return summary


def estimate(settings: BulkSettings, sample: int = 12) -> tuple[Plan, float, list[str]]:
    """The plan, the seconds of one worker for one of its pictures, and why some failed: of a few drawn by chance.

    Writes nothing. Raises what ``run_bulk`` does.
    """
    from .groups import restore_group

    place = Place(settings.target)
    settings, _ = _prepared(settings, place, write=False)
    plan = make_plan(settings, place, "", sample)
    if not plan.sample:
        return plan, 0.0, []
    worker = Restorer(_with_threads(settings, workers_of(settings)), "dry-run")
    import pyarrow

    rows = fetch(pyarrow.Table.from_pylist([item.__dict__ for item in plan.sample])).to_pylist()
    good = next((row for row in rows if not row["reason"]), rows[0])
    restore_group(worker.job, [good])  # the first picture pays for what is loaded late
    start = time.perf_counter()
    outcomes = [outcome for _, outcome in restore_group(worker.job, rows)]
    seconds = (time.perf_counter() - start) / len(rows)
    return plan, seconds, [outcome.error for outcome in outcomes if outcome.status == "failed"]


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless a person wants it
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # on the terminal; Ray's own log files tell more
    try:
        import ray
        import ray.data  # noqa: F401
    except ImportError as error:
        raise BadOption('bulk needs Ray Data, which is not installed. Run: pip install "ray[data]"') from error
    return ray


def _prepared(settings: BulkSettings, place: Place, write: bool = True) -> tuple[BulkSettings, dict[str, str]]:
    """Settings with the model named, and the hashes that every row bears; the target is claimed for them."""
    model = settings.restore.models.restorer or default_model()
    models = replace(settings.restore.models, restorer=model)
    settings = replace(settings, restore=replace(settings.restore, models=models))
    model_sha256 = sha256_of(find(model, "restorer"))
    told = settings.told(model_sha256)
    claim(place, told, digest_of(told), BulkSettings("", "", RestoreSettings()).told(""), write)
    return settings, {"model_sha256": model_sha256, "options_sha256": digest_of(told)}


def _clear(place: Place, part: tuple[int, int]) -> None:
    """Remove plans and notes of this part's runs, this one or a killed one."""
    starts = {f"{WORK}/{kind}-{part[0]}-{part[1]}-" for kind in ("plan", "attempts")}
    folders = {name.rpartition("/")[0] for name in place.names(WORK)}
    for folder in sorted(folders):
        if any(folder.startswith(start) for start in starts):
            place.remove_folder(folder)


@contextmanager
def _cluster(ray: Any, settings: BulkSettings) -> Iterator[None]:
    """A Ray to work with: the cluster at the address, or one in this machine that ends with this process."""
    if ray.is_initialized():
        yield
        return
    package = Path(__file__).resolve().parents[1]
    before = {number: signal.getsignal(number) for number in _ENDING}
    common = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if settings.address:
        ray.init(address=settings.address, runtime_env={"py_modules": [str(package)]}, **common)
    else:
        free = free_bytes(torch.device("cpu"))
        where = {"PYTHONPATH": os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])}
        ray.init("local", num_cpus=workers_of(settings) + 1, include_dashboard=False, runtime_env={"env_vars": where},
                 object_store_memory=max(_SMALL_STORE, int(_STORE_SHARE * free)), **common)  # fmt: skip
    if threading.current_thread() is threading.main_thread():
        for number, handler in before.items():  # Ray's own end the process by an abort, and nothing is cleared up
            if handler is not None:
                signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def workers_of(settings: BulkSettings) -> int:
    """How many workers this machine gets."""
    cores = os.cpu_count() or 1
    return settings.workers or (_gpus(settings) and torch.cuda.device_count()) or max(1, cores // 2)


def _gpus(settings: BulkSettings) -> bool:
    return torch.cuda.is_available() and (settings.restore.models.device or "cuda").startswith("cuda")


def _stream(ray: Any, settings: BulkSettings, run: str, plan: Plan, hashes: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What became of each picture, as it is written."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    gpus = int(ray.cluster_resources().get("GPU", 0)) if settings.restore.models.device != "cpu" else 0
    workers = settings.workers or gpus or (workers_of(settings) if not settings.address else
                                           max(1, int(ray.cluster_resources().get("CPU", 2)) // 2))  # fmt: skip
    if not gpus and not settings.address:
        settings = _with_threads(settings, workers)
    place, pool = settings.target, ray.data.ActorPoolStrategy
    named = [{"shard": name} for name in plan.shards]
    shards = ray.data.from_items(named, override_num_blocks=min(len(named), 10_000))
    rows = (
        shards.flat_map(_Shard(place), num_cpus=0.25)
        .map_batches(fetch, batch_size=HANDFUL, batch_format="pyarrow", num_cpus=0.25)
        .map_batches(Restorer, fn_constructor_args=(settings, run), batch_size=HANDFUL, batch_format="pyarrow",
                     compute=pool(size=workers), num_cpus=1, num_gpus=1 if gpus else None)
        .map_batches(Writer(place, settings.part, **hashes), batch_size=HANDFUL, batch_format="pyarrow", num_cpus=0.25)
    )  # fmt: skip
    try:
        for table in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from table.to_pylist()
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        told = (str(cause).strip().splitlines() or [type(cause).__name__])[-1][:300]
        raise WorkersFailed(f"The workers stopped: {told} Run the same line again to go on.") from error


def _with_threads(settings: BulkSettings, workers: int) -> BulkSettings:
    """The cores of this machine shared out, where nobody asked for a number and no GPU does the work."""
    if settings.threads or _gpus(settings):
        return settings
    return replace(settings, threads=max(1, (os.cpu_count() or 1) // workers))


class _Shard:
    """The pictures that one file of the plan names."""

    def __init__(self, target: str):
        self.target = target

    def __call__(self, row: dict[str, str]) -> list[dict[str, str]]:
        return read_shard(Place(self.target), row["shard"])


def _count(
    summary: Summary, done: dict[str, Any], plan: Plan, progress: Told | None, failed: Callable[[str], None] | None
) -> None:
    if done["status"] == UNWRITTEN:
        raise BadTarget(done["error"])
    summary.pictures += 1
    summary.faces += done["faces"]
    if done["status"] in (FAILED, SET_ASIDE):
        summary.failed += 1
        if failed is not None:
            failed(done["error"])
    if progress is not None:
        progress(summary.pictures, plan.to_do, summary.faces, summary.failed)


def _list_failures(summary: Summary, place: Place, folder: str) -> None:
    summary.failed = 0
    for row in read_rows(place, ["kind", "key", "status", "reason"], folder):
        if row["kind"] == "picture" and row["status"] in (FAILED, SET_ASIDE):
            summary.failed += 1
            if len(summary.failures) < _MOST_TOLD:
                summary.failures.append(f"{row['status']}: {row['reason']}")
