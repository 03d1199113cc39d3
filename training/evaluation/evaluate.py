"""``python -m training evaluate``: how well models restore faces of known truth, and how much of the person stays.

Every model sees the same held-out faces with the same seeded degradation. Reported beside the models: the degraded
input (floor), the truth through the autoencoder (ceiling) and, for verification, the undegraded photographs.
Recognisers that were in a loss and independent ones are always kept apart: a network can flatter the one it was trained
against.
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ..config import ConfigError

DEFAULT_CONFIG = Path(__file__).parent.parent / "configs" / "mini" / "base.yaml"


def add_parser(commands: Any) -> None:
    """Add the sub-command to what ``ArgumentParser.add_subparsers`` returned."""
    p = commands.add_parser("evaluate", help="measure models on faces whose truth is known")
    _add_inputs(p.add_argument_group("what is measured"))
    _add_judges(p.add_argument_group("who judges"))
    _add_guidance(p.add_argument_group("guidance by other photos of the person, at --main-w"))
    _add_protocol(p.add_argument_group("how"))
    p.add_argument("--out", type=Path, required=True, help="folder for report.json, report.md, plots and sheets")
    p.set_defaults(func=run)


def _add_inputs(p: Any) -> None:
    p.add_argument("--model", action="append", required=True, metavar="[NAME=]FILE",
                   help="export, published file, .ckpt or embedded name; repeat for several, the control first")
    p.add_argument("--ceiling", metavar="[NAME=]FILE", help="stage I (or CodeFormer) file to pass the truth through")
    p.add_argument("--data", type=Path, required=True, help="folder of aligned faces, <identity>/<file>.jpg")
    p.add_argument("--list", dest="list_csv", help="table in that folder with columns path,identity,split")
    p.add_argument("--split", help="rows of the table to use, e.g. test")
    p.add_argument("--limit", type=int, default=0, help="at most so many images, chosen by --seed")
    p.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="YAML that defines the named degradations")
    p.add_argument("--degradation", nargs="+", default=["x4"], help="names under 'degradations' of the config")
    p.add_argument("--w", nargs="+", type=float, default=[0.0, 0.5, 1.0], help="fidelities to measure")
    p.add_argument("--main-w", type=float, help="the w of distribution and sheets; default: the largest of --w")
    p.add_argument("--colour", choices=("low_band", "adain", "off"), default="low_band",
                   help="low_band (default): in the colours of the input, as users get faces; adain: as the network "
                   "makes them; off: the same without the latent colour match")
    p.add_argument("--no-adain", action="store_true", help="without the latent colour match of inference")  # fmt: skip


def _add_judges(p: Any) -> None:
    p.add_argument("--loss-recogniser", action="append", default=[], metavar="[NAME=]FILE", help="was in a loss")
    p.add_argument("--independent", action="append", default=[], metavar="[NAME=]FILE", help="was in no loss")
    p.add_argument("--perceptual", help="LPIPS or st-LPIPS file, or a torchvision backbone with --perceptual-heads")
    p.add_argument("--perceptual-heads", help="alex.pth or vgg.pth of the lpips package")
    p.add_argument("--fid-weights", help="Inception-v3 file for FID")
    p.add_argument("--fid-reference", type=Path, help=".npz with mu and sigma; default: the truths of this set")


def _add_guidance(p: Any) -> None:
    p.add_argument("--guide-steps", nargs="+", type=int, default=[], metavar="N", help="also guided, e.g. 15 40")
    p.add_argument("--guide-by", default="mobileface_v2", metavar="FILE", help="recogniser that guides")
    p.add_argument("--references", nargs="+", type=int, default=[1], metavar="N", help="photos that guide, e.g. 1 3 6; "
                   "people with fewer others are left out")  # fmt: skip
    p.add_argument("--force-guide", action="store_true", help="without the gate that refuses strangers")


def _add_protocol(p: Any) -> None:
    p.add_argument("--far", type=float, default=0.001, help="false accept rate of the verification threshold")
    p.add_argument("--pairs-per-identity", type=int, default=20, help="same-person pairs drawn of each person, at most")
    p.add_argument("--bootstrap", type=int, default=2000, help="resamples of the identities")
    p.add_argument("--seed", type=int, default=0, help="of degradation, subset, pairs, resampling and sheets")
    p.add_argument("--samples", type=int, default=12, help="faces on the sheet, the worst ten aside")
    p.add_argument("--batch", type=int, default=0, help="images at a time; default: 4 on a CPU (its caches), else 32")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    p.add_argument("--no-cache", action="store_true", help="compute everything anew; by default OUT/cache is used")


def run(args: argparse.Namespace) -> int:
    from .report import write_report

    started = time.monotonic()
    evaluation = Evaluation(args)
    report = evaluation.report()
    report["settings"]["seconds"] = round(time.monotonic() - started, 1)
    write_report(args.out, report, evaluation.blocks)
    print((args.out / "report.md").read_text(encoding="utf-8"))
    print(f"Report, plots and sheets are in {args.out}.")
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured, before anything is loaded. Raises ConfigError."""
    if any(not 0 <= w <= 1 for w in args.w):
        raise ConfigError(f"--w {' '.join(map(str, args.w))}: every w must lie between 0 and 1.")
    args.w = sorted(set(args.w))
    args.main_w = args.w[-1] if args.main_w is None else args.main_w
    if args.main_w not in args.w:
        raise ConfigError(f"--main-w {args.main_w} is not among --w {' '.join(map(str, args.w))}.")
    if not args.loss_recogniser and not args.independent:
        raise ConfigError("Name at least one recogniser with --loss-recogniser or --independent.")
    if not 0 < args.far < 1:
        raise ConfigError(f"--far {args.far}: a rate lies between 0 and 1.")
    if any(n < 1 for n in [*args.guide_steps, *args.references]):
        raise ConfigError("--guide-steps and --references must be at least 1.")
    for name in ("bootstrap", "pairs_per_identity", "samples"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1.")


class Evaluation:
    """Everything loaded, and one ``Block`` of results for each degradation."""

    def __init__(self, args: argparse.Namespace):
        from ..metrics import Bootstrap, same_person_pairs
        from .evalset import load_set, named_degradation
        from .guided import load_guide
        from .judges import check_independence, load_judges
        from .subjects import colour_options, load_ceiling, load_model

        check_options(args)
        self.args, self.device = args, _device(args.device)
        self.batch = args.batch if args.batch > 0 else 4 if self.device.type == "cpu" else 32
        config = _load_config(args.config)
        self.degradations = {name: named_degradation(config, name) for name in args.degradation}
        self.options = colour_options(args.colour, not args.no_adain)
        loaded = [load_model(text, args.w, self.options, self.device) for text in args.model]
        self.models = [subject for subject, _ in loaded]
        self.used = {subject.name: recognisers for subject, recognisers in loaded}
        size = _common_size(self.models, config.data.size, args.config)
        files = (args.perceptual, args.perceptual_heads, args.fid_weights)
        self.judges = load_judges(args.loss_recogniser, args.independent, *files, self.device)
        check_independence(self.judges, self.used)
        self.ceiling = None if args.ceiling is None else load_ceiling(args.ceiling, size, self.device)
        others = max(args.references) if args.guide_steps else 0
        self.faces = load_set(args.data, args.list_csv, args.split, size, args.limit, args.seed, others)
        self.guide = load_guide(args.guide_by, self.judges, self.device) if args.guide_steps else None
        self.guided = [] if self.guide is None else self._guided(*self.guide)
        self.pairs = same_person_pairs(self.faces.identities, args.pairs_per_identity, args.seed)
        self.bootstrap = Bootstrap(args.bootstrap, args.seed)
        self.blocks: dict[str, Block] = {}

    def _guided(self, recogniser: Any, digest: str) -> list[Any]:
        from .guided import References, guided_subjects

        args = self.args
        references = References(self.faces, recogniser, digest, max(args.references), args.seed)
        steps, counts = sorted(set(args.guide_steps)), sorted(set(args.references))
        return guided_subjects(self.models, args.main_w, references, counts, steps, args.force_guide)

    def report(self) -> dict[str, Any]:
        """Measure all degradations; the result is plain JSON values (not-a-number where a figure has no data)."""
        import torch

        with torch.inference_mode():
            self.blocks = {name: Block(self, name) for name in self.degradations}
        return {
            "settings": self._settings(),
            "images": len(self.faces),
            "identities": len(set(self.faces.identities)),
            "pairs": len(self.pairs),
            "skipped": self.faces.skipped,
            "degradations": {name: block.to_dict() for name, block in self.blocks.items()},
        }

    def _settings(self) -> dict[str, Any]:
        """What someone needs to repeat the measurement; file names without folders."""
        import torch

        args, judges = self.args, self.judges
        return {
            "data": args.data.name, "list": args.list_csv, "split": args.split, "limit": args.limit,
            "size": self.faces.size, "images_sha256": self.faces.digest,
            "models": {m.name: {"key": m.key, "loss_recognisers": self.used[m.name].names} for m in self.models},
            "recognisers": {j.name: {"role": j.role, "sha256": j.digest} for j in judges.recognisers},
            "perceptual": judges.perceptual.label if judges.perceptual else None,
            "fid": judges.extractor.label if judges.extractor else None,
            "fid_reference": args.fid_reference.name if args.fid_reference else "the truths of this set",
            "guide": None if self.guide is None else {
                "name": self.guide[0].name, "sha256": self.guide[1], "steps": sorted(set(args.guide_steps)),
                "references": sorted(set(args.references)), "forced": args.force_guide,
            },
            "colour": args.colour, "adain": self.options.latent_match,
            "w": args.w, "main_w": args.main_w, "far": args.far, "seed": args.seed,
            "bootstrap": args.bootstrap, "pairs_per_identity": args.pairs_per_identity, "torch": str(torch.__version__),
        }  # fmt: skip


class Block:
    """The results of one degradation: figures of every row, and what plots and sheets are drawn from."""

    def __init__(self, run: Evaluation, name: str):
        from .fid import load_moments
        from .measure import Summary, measure
        from .subjects import InputSubject, TruthSubject

        args = run.args
        self.run, self.degradation = run, run.degradations[name]
        ceiling = [] if run.ceiling is None else [run.ceiling]
        self.subjects = [InputSubject(), *run.models, *run.guided, *ceiling, TruthSubject()]
        cache = None if args.no_cache else args.out / "cache"
        self.found = measure(
            run.faces, self.degradation, self.subjects, run.judges, args.seed, run.batch, run.device, cache, name
        )
        reference = load_moments(args.fid_reference) if args.fid_reference else None
        truth = self.found[-1]
        self.summary = Summary(
            run.faces.identities, run.pairs, run.judges.recognisers, truth, args.far, run.bootstrap, reference
        )
        main = [m for m in self.found if m.row.kind != "truth" and m.row.w in (None, args.main_w)]
        self.id_sims = {j.name: {m.row.label: self.summary.id_sim(m, j) for m in main} for j in run.judges.recognisers}
        self.sheets = self._sheets()

    def _sheets(self) -> list[Any]:
        """Samples by seed, and the worst of the last model by the last recogniser (independent where there is one)."""
        import numpy as np

        from .sheets import WORST, make_sheet

        run, args = self.run, self.run.args
        model, judge = run.models[-1].at(args.main_w).rows[0].label, run.judges.recognisers[-1].name
        drawn = np.sort(np.random.default_rng(args.seed).permutation(len(run.faces))[: args.samples])
        worst = np.argsort(self.id_sims[judge][model], kind="stable")[:WORST]
        # Guided again for the sheet, which takes time: strangers and lesser settings are left out.
        left = [s for s in run.guided if s.rows[0].kind == "stranger" or s.guidance.steps < max(args.guide_steps)]
        left += [s for s in run.guided if s.count < max(args.references)]
        shown = [s.at(args.main_w) for s in self.subjects if s not in left]
        return [
            make_sheet(name, title, run.faces, self.degradation, shown, rows, self.id_sims, args.seed, run.device)
            for name, title, rows in (
                ("samples", f"{len(drawn)} faces drawn by seed {args.seed}", drawn),
                ("worst", f"The {len(worst)} faces with the lowest ID-Sim of {model} by {judge}", worst),
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        from dataclasses import asdict

        by_model = {(m.row.name, m.row.w): m for m in self.found if m.row.kind == "model"}
        first, *others = (m.name for m in self.run.models)
        pairs = [(by_model[first, w], by_model[other, w]) for other in others for w in self.run.args.w]
        for guided in self.run.guided:
            (found,) = (m for m in self.found if m.row is guided.rows[0])
            pairs.append((by_model[guided.model.name, guided.w], found))
        return {
            "parameters": asdict(self.degradation),
            "thresholds": self.summary.thresholds,
            "rows": [self.summary.row(m) for m in self.found],
            "differences": [self.summary.difference(a, b) for a, b in pairs],
            "sheets": [{"name": s.name, "title": s.title, "images": s.names} for s in self.sheets],
        }

    def per_image(self) -> list[dict[str, Any]]:
        """One record for each image and row, for a table."""
        out = []
        for measured in (m for m in self.found if m.row.kind != "truth"):
            sims = {f"id_sim {j.name}": self.summary.id_sim(measured, j) for j in self.run.judges.recognisers}
            figures = {**{k: v for k, v in measured.figures.items() if v.ndim == 1}, **sims}
            for row in range(len(self.run.faces)):
                values = {k: round(float(v[row]), 5) for k, v in figures.items()}
                out.append({"image": self.run.faces.name(row), "row": measured.row.label, **values})
        return out


def _load_config(path: Path) -> Any:
    from ..config import load_config

    return load_config(path)


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name}: there is no such device here ({str(error).splitlines()[0]}).") from error
    return torch.device(name)


def _common_size(models: list, config_size: int, path: Path) -> int:
    """The side in px at which everything is measured: that of all models and of the degradations."""
    sizes = {m.name: m.size for m in models}
    if len(sizes) < len(models):
        raise ConfigError("Two models have the same name; write NAME=FILE to tell them apart.")
    if len(set(sizes.values())) > 1:
        raise ConfigError(f"Models of different sizes cannot share a table: {sizes}. Measure them one by one.")
    size = next(iter(sizes.values()))
    if size != config_size:
        raise ConfigError(
            f"{path} defines degradations for {config_size} px, but the models work at {size} px. "
            f"Give the --config of {size} px."
        )
    return size
