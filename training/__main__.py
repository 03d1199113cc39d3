"""python -m training train | evaluate | align | export | replay"""
from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Sequence

from idcodeformer.errors import IDCodeFormerError

# each has add_parser(commands)
COMMANDS = ("evaluation.evaluate", "evaluation.parsing", "tools.align", "tools.export", "tools.replay")
EXTRAS = ("omegaconf", "yaml", "lightning_fabric", "tensorboard", "tqdm", "matplotlib", "cv2")


def _train(args: argparse.Namespace) -> int:
    from .checkpoint import refuse_used_folder
    from .config import load_config
    from .processes import leave
    from .trainer import Trainer

    config = load_config(args.config, args.overrides)
    resume = args.resume
    if resume == "auto":
        last = Path(config.out) / "last.ckpt"
        resume = last if last.exists() else None
    if not args.overwrite and args.resume != "auto":
        refuse_used_folder(Path(config.out), Path(resume) if resume else None)
    done = False
    try:
        trainer = Trainer(config, resume)
        if args.overwrite:
            trainer.forget_earlier()
        folder = trainer.run()
        print(f"Done: {folder / 'last.ckpt'}")
        done = True
    finally:
        leave(done)
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m training", description="Train and measure ID-CodeFormer.")
    commands = top.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train", help="run one stage", description="Run one stage: recogniser, stage1, stage2, stage3 or stage3_id."
    )
    train.add_argument("--config", help="YAML file, e.g. training/configs/mini/stage1.yaml")
    train.add_argument("--resume", help="checkpoint to go on from; 'auto': last.ckpt of the run folder, if any")
    train.add_argument("--overwrite", action="store_true", help="replace the run that the folder holds")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. steps=1000 optim.lr=1e-4")
    train.set_defaults(func=_train)
    for name in COMMANDS:
        importlib.import_module(f".{name}", __package__).add_parser(commands)
    return top


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """As argparse does it, and ``key=value`` may also stand after and between the options."""
    top = parser()
    args, rest = top.parse_known_args(argv)
    takes_overrides = args.command in ("train", "replay")
    stray = [word for word in rest if not takes_overrides or word.startswith("-") or "=" not in word]
    if stray:
        top.error(f"unrecognized arguments: {' '.join(stray)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 2 after an error that was told in a sentence, 130 after Ctrl-C."""
    try:
        args = _parse(argv)
        return args.func(args) or 0
    except (IDCodeFormerError, OSError) as error:
        message = str(error)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in EXTRAS:
            raise
        message = f"{error.name} is not installed. pip install -r requirements.txt -r training/requirements.txt"
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        message = f"Not enough memory: lower batch, data.workers or the network. ({str(error).splitlines()[0]})"
    except KeyboardInterrupt:
        print("Interrupted. 'train --resume auto' goes on from last.ckpt.", file=sys.stderr)
        return 130
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
