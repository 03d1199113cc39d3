"""Reading ahead and writing behind: the same results in the same order, bounded, and nothing lost on the way out."""
from __future__ import annotations

import threading
from pathlib import Path

import pytest

from idcodeformer.batch import overlap
from idcodeformer.batch.job import Step
from idcodeformer.batch.outcome import Outcome
from idcodeformer.batch.overlap import Overlap


class Stages:
    """In the place of a job: notes every stage, and lets a test hold them up."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, str]] = []
        self.changed = threading.Condition()
        self.most, self.held = 0, 0
        self.hold: dict[tuple[str, str], tuple[str, str]] = {}  # stage that waits -> stage that it waits for
        self.missed: list[tuple[str, str]] = []
        self.fail: dict[str, BaseException] = {}
        self.free: dict[str, str] = {}
        self.patience = 60.0  # s after which a stage that should have begun counts as missing

    def _note(self, stage: str, name: str, more: int = 0) -> None:
        with self.changed:
            self.held += more
            self.most = max(self.most, self.held)
            self.noted.append((stage, name))
            self.changed.notify_all()
            wanted = self.hold.get((stage, name))
            if wanted and not self.changed.wait_for(lambda: wanted in self.noted, self.patience):
                self.missed.append(wanted)

    def begin(self, path: Path, target: Path) -> Step:
        self._note("begin", path.name)
        return Step(path, Outcome(path.name), Path(self.free.get(path.name, target.name)))

    def read(self, step: Step) -> None:
        self._note("read", step.path.name, 1)

    def work(self, step: Step, progress) -> None:
        self._note("work", step.path.name)
        if step.path.name in self.fail:
            raise self.fail[step.path.name]

    def finish(self, step: Step) -> Outcome:
        self._note("finish", step.path.name, -1)
        return step.outcome


def run(stages: Stages, names: str, told: list[str]) -> None:
    Overlap(stages).run([(Path(name), Path(name)) for name in names], lambda outcome: told.append(outcome.input))


def test_networks_wait_neither_for_reading_nor_for_writing() -> None:
    stages, told = Stages(), []
    stages.hold = {("work", "a"): ("read", "b"), ("finish", "a"): ("work", "c"), ("work", "d"): ("finish", "b")}
    run(stages, "abcdef", told)
    assert not stages.missed and told == list("abcdef")
    assert [name for stage, name in stages.noted if stage == "work"] == list("abcdef")


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [chr(ord("a") + n) for n in range(20)]
    stages, told = Stages(), []
    run(stages, "".join(names), told)
    assert told == names and 1 < stages.most <= overlap._AHEAD + overlap._BEHIND + 3
    monkeypatch.setattr(overlap, "pixels_in", lambda path: overlap._PIXELS // 2 + 1)
    alone, told = Stages(), []
    run(alone, "".join(names), told)
    assert told == names and alone.most == 1


def test_a_name_that_is_on_its_way_is_waited_for() -> None:
    """What a result is called depends on which results are there already."""
    stages, told = Stages(), []
    stages.free, stages.patience = {"a": "b_png"}, 0.5
    stages.hold = {("work", "a"): ("begin", "b")}  # in vain
    run(stages, "ab", told)
    assert stages.missed == [("begin", "b")]
    assert stages.noted.index(("begin", "b")) > stages.noted.index(("finish", "a"))
    assert told == ["a", "b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the report")])
def test_what_was_restored_is_told_before_the_run_ends(error: BaseException) -> None:
    stages, told = Stages(), []
    stages.fail = {"c": error}
    stages.hold = {("finish", "a"): ("work", "c")}
    with pytest.raises(type(error)):
        run(stages, "abcdefghijkl", told)
    assert told == ["a", "b"]
    assert ("work", "d") not in stages.noted and ("begin", "l") not in stages.noted
