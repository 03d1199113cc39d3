"""Faces, subjects and judges give figures: one pass over the images, kept on disk, then intervals and differences."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import DegradationConfig
from ..metrics import Bootstrap, Interval, Pairs, frechet_of_moments, impostor_similarities, moments, threshold_at
from .evalset import EvalSet, degradation_key
from .judges import Figures, Judges, RecogniserJudge
from .subjects import Row, Subject, bound_to

CACHE_VERSION = 2
IMPOSTOR_FACES = 3000  # so many faces at most give the impostor pairs: 9 million cosines


@dataclass(frozen=True, eq=False)
class Measured:
    """The figures of one row, an array over the images for each."""

    row: Row
    figures: Figures


def measure(
    faces: EvalSet, degradation: DegradationConfig, subjects: Sequence[Subject], judges: Judges, seed: int, batch: int,
    device: torch.device, cache: Path | None, label: str = "",
) -> list[Measured]:  # fmt: skip
    """Figures of every row of every subject. What ``cache`` holds is not computed again: its files are named after the
    contents of images, weights and settings, so a changed one is a new one."""
    from idcodeformer.runtime.progress import progress_bar

    names = {s.key: _cache_name(faces, degradation, s, judges, seed) for s in subjects}
    known = {s.key: _read_cache(cache, names[s.key], s) for s in subjects}
    todo = [s for s in subjects if known[s.key] is None]
    parts: dict[str, list[list[Figures]]] = {s.key: [[] for _ in s.rows] for s in todo}
    if todo:
        bar = progress_bar(len(faces), "image", label or "measuring")
        for rows, truth, degraded in faces.batches(degradation, seed, batch):
            truth, degraded = truth.to(device), degraded.to(device)
            makers = [bound_to(s, rows.tolist()) for s in todo]
            images = [maker.make(truth, degraded) for maker in makers]
            found = iter(judges.look([one for made in images for one in made], truth))
            for maker, made in zip(makers, images, strict=True):
                told = getattr(maker, "figures", None) or [{}] * len(made)
                for place, own in enumerate(told):
                    parts[maker.key][place].append(next(found) | own)
            bar.update(len(rows))
        bar.close()
    for subject in todo:
        figures = [{k: np.concatenate([p[k] for p in pieces]) for k in pieces[0]} for pieces in parts[subject.key]]
        known[subject.key] = figures
        _write_cache(cache, names[subject.key], figures)
    return [Measured(row, f) for s in subjects for row, f in zip(s.rows, known[s.key] or [], strict=True)]


def _cache_name(faces: EvalSet, degradation: DegradationConfig, subject: Subject, judges: Judges, seed: int) -> str:
    degraded = "" if subject.blind else degradation_key(degradation, seed)
    text = "\n".join([str(CACHE_VERSION), faces.digest, degraded, subject.key, judges.key])
    return hashlib.sha256(text.encode()).hexdigest()[:32] + ".npz"


def _read_cache(folder: Path | None, name: str, subject: Subject) -> list[Figures] | None:
    if folder is None or not (folder / name).is_file():
        return None
    with np.load(folder / name, allow_pickle=False) as stored:
        out: list[Figures] = [{} for _ in subject.rows]
        for key in stored.files:
            place, _, figure = key.partition(" ")
            out[int(place)][figure] = stored[key]
    return out


def _write_cache(folder: Path | None, name: str, figures: list[Figures]) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (name + ".partial")
    with open(partial, "wb") as file:
        np.savez(file, **{f"{place} {k}": v for place, row in enumerate(figures) for k, v in row.items()})
    os.replace(partial, folder / name)


class Summary:
    """Turns figures into estimates with intervals; ``identities`` [N] are the groups that are resampled."""

    def __init__(
        self, identities: np.ndarray, pairs: Pairs, recognisers: Sequence[RecogniserJudge], truth: Measured, far: float,
        bootstrap: Bootstrap, reference: tuple[np.ndarray, np.ndarray] | None = None,
    ):  # fmt: skip
        _, self.groups = np.unique(identities, return_inverse=True)
        self.identities, self.pairs, self.recognisers, self.truth = identities, pairs, recognisers, truth
        self.far, self.bootstrap = far, bootstrap
        self.reference = reference
        if reference is None and "features" in truth.figures:
            self.reference = moments(truth.figures["features"])
        some = np.random.default_rng(bootstrap.seed).permutation(len(identities))[:IMPOSTOR_FACES]
        self.some = np.sort(some)
        self.thresholds = {j.name: self._threshold(j) for j in recognisers}

    def _embeddings(self, measured: Measured, judge: RecogniserJudge) -> np.ndarray:
        return measured.figures[f"embedding {judge.name}"]

    def _impostors(self, measured: Measured, judge: RecogniserJudge) -> np.ndarray:
        some = self.some
        probe, gallery = self._embeddings(measured, judge)[some], self._embeddings(self.truth, judge)[some]
        return impostor_similarities(probe, gallery, self.identities[some])

    def _threshold(self, judge: RecogniserJudge) -> float:
        """From undegraded photographs of different people, so that it is the same for every row."""
        impostors = self._impostors(self.truth, judge)
        return threshold_at(impostors, self.far) if len(impostors) else float("nan")

    def id_sim(self, measured: Measured, judge: RecogniserJudge) -> np.ndarray:
        """[N] cosine of the restored face and its own truth."""
        return (self._embeddings(measured, judge) * self._embeddings(self.truth, judge)).sum(1)

    def other_photo(self, measured: Measured, judge: RecogniserJudge) -> np.ndarray:
        """[P] cosine of the restored face and another, undegraded photograph of the same person."""
        probe, gallery = self._embeddings(measured, judge), self._embeddings(self.truth, judge)
        return (probe[self.pairs.probe] * gallery[self.pairs.gallery]).sum(1)

    def columns(self, measured: Measured) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Column -> (values, groups): everything that is a mean over images or over pairs."""
        out: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name in ("psnr", "ssim", "perceptual", "guided"):
            if name in measured.figures and measured.row.kind != "truth":
                out[name] = (measured.figures[name].astype(np.float64), self.groups)
        pair_groups = self.groups[self.pairs.probe]
        for judge in self.recognisers:
            other = self.other_photo(measured, judge).astype(np.float64)
            out[f"id_sim {judge.name}"] = (self.id_sim(measured, judge).astype(np.float64), self.groups)
            out[f"other_photo {judge.name}"] = (other, pair_groups)
            out[f"tar {judge.name}"] = ((other >= self.thresholds[judge.name]).astype(np.float64), pair_groups)
        return out

    def row(self, measured: Measured) -> dict[str, Any]:
        """One line of the report as JSON values."""
        out: dict[str, Any] = {"kind": measured.row.kind, "name": measured.row.name, "w": measured.row.w}
        out["figures"] = {k: self.bootstrap.mean(*v).to_dict() for k, v in self.columns(measured).items()}
        out["fid"] = self._fid(measured)
        out["far_measured"] = {}
        for judge in self.recognisers:
            impostors = self._impostors(measured, judge)
            reached = float((impostors >= self.thresholds[judge.name]).mean()) if len(impostors) else float("nan")
            out["far_measured"][judge.name] = reached
        return out

    def _fid(self, measured: Measured) -> float | None:
        if self.reference is None or "features" not in measured.figures:
            return None
        return frechet_of_moments(*moments(measured.figures["features"]), *self.reference)

    def difference(self, a: Measured, b: Measured) -> dict[str, Any]:
        """``b`` minus ``a``, resampled in pairs, and whether the two separate intervals touch."""
        first, second = self.columns(a), self.columns(b)
        figures = {}
        for key in first:
            (x, groups), (y, _) = first[key], second[key]
            one, two = self.bootstrap.mean(x, groups), self.bootstrap.mean(y, groups)
            change: Interval = self.bootstrap.mean(y - x, groups)
            figures[key] = {**change.to_dict(), "intervals_apart": one.apart_from(two)}
        return {"from": a.row.name, "to": b.row.name, "w": a.row.w, "figures": figures}
