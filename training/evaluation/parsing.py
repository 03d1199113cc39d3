"""How well a face parser's labels agree with maps drawn by hand: F-scores over all pixels of a set.

F of a class is 2 |predicted and true| / (|predicted| + |true|), pixels counted over the whole set, as CelebAMask-HQ's
face parsing is reported (Lee et al. 2020).
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor

from idcodeformer.compositing.parsing import CLASSES

# What pasting tells apart: the face with all that is on it, hair, and everything else.
GROUPS = {"face": (*range(1, 13), CLASSES.index("earring")), "hair": (CLASSES.index("hair"),)}
GROUPS["rest"] = tuple(i for i in range(len(CLASSES)) if i not in GROUPS["face"] + GROUPS["hair"])

COLOURS = np.array(
    [
        (20, 20, 20), (230, 150, 120), (200, 90, 70), (250, 250, 90), (40, 120, 255), (40, 220, 255), (120, 70, 20),
        (190, 130, 60), (255, 90, 200), (170, 40, 150), (120, 0, 30), (220, 20, 60), (255, 80, 110), (90, 50, 160),
        (60, 160, 60), (255, 215, 0), (255, 255, 255), (240, 190, 160), (90, 140, 150),
    ],
    np.uint8,
)  # fmt: skip


def confusion(predicted: Tensor, truth: Tensor) -> Tensor:
    """int64 [C,C] pixel counts, a row for each true class, of label maps of equal shape."""
    pairs = truth.long().flatten() * len(CLASSES) + predicted.long().flatten()
    return torch.bincount(pairs, minlength=len(CLASSES) ** 2).view(len(CLASSES), len(CLASSES))


def f_scores(counts: Tensor) -> Tensor:
    """float64 [C] from a confusion matrix [C,C]; NaN for a class that is neither there nor predicted."""
    counts = counts.double()
    return 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))


def grouped(counts: Tensor) -> Tensor:
    """The confusion matrix [3,3] of GROUPS."""
    member = torch.zeros(len(GROUPS), len(CLASSES), dtype=counts.dtype)
    for row, classes in zip(member, GROUPS.values()):
        row[list(classes)] = 1
    return member @ counts @ member.t()


def figures(counts: Tensor) -> dict[str, Any]:
    """F-scores of every class and group, and their means over those that the maps have."""
    each, groups = f_scores(counts), f_scores(grouped(counts))
    there = counts.sum(1) > 0
    return {
        "classes": {name: float(f) for name, f, known in zip(CLASSES, each, there) if known},
        "mean": float(each[there].mean()),
        "groups": {name: float(f) for name, f in zip(GROUPS, groups)},
        "groups_mean": float(groups.mean()),
        "accuracy": float(counts.diagonal().sum() / counts.sum()),
    }


def measure(parser: Callable[[Tensor], Tensor], pairs: list[tuple[Path, Path]], size: int) -> Tensor:
    """Confusion matrix of ``parser`` (crops [1,3,S,S] in [0,1] -> labels [1,S,S]) over pairs read at ``size`` px."""
    from ..data.parsing import read_pair

    counts = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64)
    for picture, labels in pairs:
        image, map_ = read_pair(picture, labels, size)
        pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float() / 255
        counts += confusion(parser(pixels)[0].cpu(), torch.from_numpy(map_.copy()))
    return counts


def add_parser(commands: Any) -> None:
    """Add the sub-command to what ``ArgumentParser.add_subparsers`` returned."""
    p = commands.add_parser("evaluate-parser", help="F-scores of a face parser on the held-out label maps of a folder")
    p.add_argument("data", type=Path, help="folder with images/ and masks/; every tenth name is held out")
    p.add_argument("--weights", default="mini_parser", help="name or file of the parser (default mini_parser)")
    p.add_argument("--size", type=int, default=256, help="px at which labels are compared (default 256)")
    p.add_argument("--split", choices=("val", "train", "all"), default="val", help="which pairs (default val)")
    p.add_argument("--device", default=None, help="cpu, cuda, cuda:1 ... (default: the best there is)")
    p.add_argument("--json", type=Path, help="write the figures to this file too")
    p.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from idcodeformer.compositing.parsing import load_parser

    from ..config import DataConfig
    from ..data.parsing import list_pairs

    pairs = list_pairs(DataConfig(roots=[str(args.data)], split=None if args.split == "all" else args.split))
    result = figures(measure(load_parser(args.weights, args.device), pairs, args.size))
    print(f"F-scores of {args.weights} on {len(pairs)} maps ({args.split}) at {args.size} px")
    for name, score in result["classes"].items():
        print(f"  {name:12s} {score:.3f}")
    print(f"mean over {len(result['classes'])} classes: {result['mean']:.3f}")
    print("  ".join(f"{k} {v:.3f}" for k, v in result["groups"].items()) + f"  mean {result['groups_mean']:.3f}")
    print(f"pixels right: {result['accuracy']:.3f}")
    if args.json:
        args.json.write_text(json.dumps({"weights": str(args.weights), "maps": len(pairs), **result}, indent=2))
    return 0
