"""python -m training replay: run a lineage, the list of phases by which a model came about, or its first steps.

A lineage is a YAML file with ``base``, the file of settings that all phases start from, and ``phases``: each has a
``name``, ``set`` (settings), ``like`` (the phase whose settings it extends), ``from`` (configuration key -> the phase
whose last.ckpt goes there) and ``stop`` (steps after which it ended, where that was before its schedule did).
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..config import TrainConfig, compose
from ..errors import ConfigError

DEFAULT = Path(__file__).parent.parent / "configs" / "lineage" / "first.yaml"
KEYS = {"name", "set", "like", "from", "stop"}


@dataclass(frozen=True)
class Phase:
    """One run of a lineage. ``layers`` are the settings, the ones it extends first; ``sources`` maps keys to phases."""

    name: str
    layers: tuple[Mapping[str, Any], ...]
    sources: Mapping[str, str] = field(default_factory=dict)
    stop: int = 0


@dataclass(frozen=True)
class Lineage:
    base: Path
    phases: tuple[Phase, ...]

    def config(self, phase: Phase, out: Path, overrides: Sequence[str] = ()) -> TrainConfig:
        """The settings of a phase whose run folders lie in ``out``. Raises ConfigError naming the key at fault.

        A stage without an identity or a perceptual loss leaves the overrides for those files unused.
        """
        checkpoints = [f"{key}={_checkpoint_of(out, name)}" for key, name in phase.sources.items()]
        where = [*overrides, f"out={out / phase.name}", *checkpoints]
        return compose(self.base, phase.layers, where)


def _checkpoint_of(out: Path, name: str) -> Path:
    return out / name / "last.ckpt"


def read_lineage(path: Path) -> Lineage:
    """Parse a lineage file. Raises ConfigError for a phase that is named twice, unknown keys, and later phases."""
    if not path.is_file():
        raise ConfigError(f"There is no lineage {path}. training/configs/lineage holds the ones that were run.")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict) or set(loaded) != {"base", "phases"} or not isinstance(loaded["phases"], list):
        raise ConfigError(f"{path} is no lineage: it holds the keys base and phases (a list).")
    phases: dict[str, Phase] = {}
    for row in loaded["phases"]:
        phase = _phase(row, phases, path)
        phases[phase.name] = phase
    return Lineage(path.parent / str(loaded["base"]), tuple(phases.values()))


def _phase(row: Any, known: Mapping[str, Phase], path: Path) -> Phase:
    if not isinstance(row, dict) or "name" not in row or set(row) - KEYS:
        raise ConfigError(f"{path}: a phase has the keys {', '.join(sorted(KEYS))}; found {row!r:.80}.")
    name, like, sources = str(row["name"]), row.get("like"), row.get("from") or {}
    if name in known:
        raise ConfigError(f"{path}: phase '{name}' stands there twice. Rename one.")
    for other in [*([like] if like else []), *sources.values()]:
        if other not in known:
            raise ConfigError(f"{path}: phase '{name}' needs '{other}', which is not above it.")
    layers = (*(known[like].layers if like else ()), row.get("set") or {})
    return Phase(name, layers, sources, int(row.get("stop", 0)))


def chosen(lineage: Lineage, names: Sequence[str]) -> list[Phase]:
    """The phases named and all that they start from, in the lineage's order; all of them where none is named."""
    by_name = {phase.name: phase for phase in lineage.phases}
    wanted = list(names) or list(by_name)
    for name in wanted:
        if name not in by_name:
            raise ConfigError(f"There is no phase '{name}'; the lineage has {', '.join(by_name)}.")
    needed: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in needed:
            needed.add(name)
            wanted += by_name[name].sources.values()
    return [phase for phase in lineage.phases if phase.name in needed]


def replay(
    lineage: Lineage, out: Path, names: Sequence[str] = (), steps: int = 0, overrides: Sequence[str] = ()
) -> list[Path]:
    """Run the phases in order; returns their run folders. ``steps`` > 0 ends each one there, on its own schedule.

    A phase that was begun goes on from its last.ckpt.
    """
    from ..trainer import Trainer

    folders = []
    for phase in chosen(lineage, names):
        config = lineage.config(phase, out, overrides)
        limits = [n for n in (phase.stop, steps, config.steps) if n > 0]
        last = _checkpoint_of(out, phase.name)
        print(f"Phase {phase.name}: {min(limits)} of {config.steps} steps", flush=True)
        folders.append(Trainer(config, last if last.exists() else None).run(until=min(limits)))
    return folders


def _run(args: argparse.Namespace) -> int:
    lineage = read_lineage(Path(args.lineage))
    if args.list:
        for phase in lineage.phases:
            sources = ", ".join(f"{key} from {name}" for key, name in phase.sources.items())
            print(f"{phase.name}: {sources or 'from scratch'}" + (f"; stops at {phase.stop}" if phase.stop else ""))
        return 0
    if args.steps < 0:
        raise ConfigError(f"--steps {args.steps} must be at least 1, or 0 for whole phases.")
    for folder in replay(lineage, Path(args.out), args.phase, args.steps, args.overrides):
        print(f"Done: {folder / 'last.ckpt'}")
    return 0


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "replay", help="run a lineage again", description="Run the phases by which a model came about, in their order."
    )
    parser.add_argument("--lineage", default=str(DEFAULT), help="YAML file (default: the built-in pair's)")
    parser.add_argument("--out", default="runs/replay", help="folder for the runs of the phases (default runs/replay)")
    parser.add_argument("--phase", action="append", default=[], help="only this phase and what it starts from")
    parser.add_argument("--steps", type=int, default=0, help="only the first N steps of each phase")
    parser.add_argument("--list", action="store_true", help="print the phases and what they start from")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.roots=[/folder]")
    parser.set_defaults(func=_run)
