"""python -m training train | evaluate | align | export"""
from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import Sequence

from idcodeformer.errors import IDCodeFormerError

COMMANDS = ("evaluate", "align", "export")


def _train(args: argparse.Namespace) -> int:
    from .config import load_config
    from .trainer import Trainer

    config = load_config(args.config, args.overrides)
    resume = args.resume
    if resume == "auto":
        from pathlib import Path

        last = Path(config.out) / "last.ckpt"
        resume = last if last.exists() else None
    Trainer(config, resume).run()
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m training", description="Train and measure ID-CodeFormer.")
    commands = top.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="run one stage")
    train.add_argument("--config", help="YAML file, e.g. training/configs/mini/stage1.yaml")
    train.add_argument("--resume", help="checkpoint to go on from; 'auto': last.ckpt of the run folder, if any")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. steps=1000 optim.lr=1e-4")
    train.set_defaults(func=_train)
    for name in COMMANDS:
        if importlib.util.find_spec(f"{__package__}.{name}"):
            importlib.import_module(f".{name}", __package__).add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from .config import ConfigError
    from .data import DataError

    try:
        return args.func(args) or 0
    except (IDCodeFormerError, ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the last checkpoint stays.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
