"""``python -m training export CKPT OUT.safetensors``: from a training checkpoint to the file that the pack loads."""
from __future__ import annotations

import argparse
import json
from pathlib import Path, PurePath
from typing import Any

LICENCE = "Research and non-commercial use only: the training photographs carry no licence for more."


def add_parser(commands: Any) -> None:
    """Add the sub-command to what ``ArgumentParser.add_subparsers`` returned."""
    p = commands.add_parser("export", help="write a checkpoint's averaged weights as the file that the pack loads")
    p.add_argument("checkpoint", type=Path, help="last.ckpt or best.ckpt of a run folder")
    p.add_argument("out", type=Path, help="the .safetensors file to write")
    p.add_argument("--fp16", action="store_true", help="store half precision; it is computed in fp32 all the same")
    p.add_argument("--raw", action="store_true", help="the weights of the last step instead of their moving average")
    p.add_argument("--licence", default=LICENCE, help="sentence for the metadata")
    p.add_argument("--data-note", default="", help="sentence for the metadata: the photographs, and who may use them")
    p.add_argument("--name", default="", help="name for the metadata; by default that of the file")
    p.add_argument("--force", action="store_true", help="replace an existing file")
    p.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    metadata = export(
        args.checkpoint, args.out, fp16=args.fp16, averaged=not args.raw, licence=args.licence,
        data_note=args.data_note, name=args.name, force=args.force,
    )  # fmt: skip
    size = args.out.stat().st_size
    print(f"{args.out}: {metadata['stage']}, {metadata['step']} steps, {size / 2**20:.2f} MiB, {metadata['precision']}")
    if not args.data_note:
        print("note: no --data-note was given; the metadata says only the names of the data folders.")
    return 0


def network_of(state: dict[str, Any], averaged: bool = True) -> Any:
    """The network of a checkpoint as ``read_checkpoint`` returned it: strictly loaded, frozen, fp32, in eval mode.

    ``averaged`` takes the moving average, else the weights of the last step. Raises UnsupportedWeights, naming the
    tensor, where the weights do not fit the checkpoint's own configuration.
    """
    from idcodeformer.weights.loading import build

    from ..config import from_dict
    from ..stages import codeformer_config, parser_config, vqgan_config

    config = from_dict(state["config"])
    weights = state["ema"] if averaged else _of_last_step(state["model"])
    if config.stage == "recogniser":
        net = build(weights, "recogniser")
    elif config.stage == "parser":
        net = build(weights, "mini_parser", {"config": json.dumps(parser_config(config).to_dict())})
    else:
        kind = "vqgan" if config.stage == "stage1" else "codeformer"
        shape = vqgan_config(config) if kind == "vqgan" else codeformer_config(config)
        net = build(weights, kind, {"config": json.dumps(shape.to_dict())})
    return net.requires_grad_(False)


def _of_last_step(model: dict[str, Any]) -> dict[str, Any]:
    return {k.removeprefix("net."): v for k, v in model.items() if k.startswith("net.")}


def export(
    checkpoint: Path,
    out: Path,
    fp16: bool = False,
    averaged: bool = True,
    licence: str = LICENCE,
    data_note: str = "",
    name: str = "",
    force: bool = False,
) -> dict[str, str]:
    """Write ``out`` and return its metadata: kind and config of the network, stage, steps, seed, training configuration
    (paths reduced to their last part), licence and data note. Raises ConfigError with a remedy."""
    import torch

    from idcodeformer.weights.loading import save

    from ..checkpoint import read_checkpoint
    from ..config import ConfigError

    if out.suffix != ".safetensors":
        raise ConfigError(f"{out}: the pack loads .safetensors; give the file that ending.")
    if out.exists() and not force:
        raise ConfigError(f"{out} exists. Give another name, or --force to replace it.")
    state = read_checkpoint(checkpoint)
    net = network_of(state, averaged)
    if fp16 and any(v.is_floating_point() and v.abs().max() > 65504 for v in net.state_dict().values()):
        raise ConfigError("A weight does not fit into half precision; export without --fp16.")
    metadata = {
        "name": name or out.stem,
        "stage": state["stage"],
        "step": str(state["step"]),
        "seed": str(state["config"]["seed"]),
        "precision": "fp16" if fp16 else "fp32",
        "weights": "moving average" if averaged else "last step",
        "licence": licence,
        "data": data_note or "Folders: " + ", ".join(PurePath(r).name for r in state["config"]["data"]["roots"]),
        "training": json.dumps(_without_paths(state["config"]), sort_keys=True),
        "sources": json.dumps(state.get("sources", {}), sort_keys=True),  # sha256 of what the training read
        "torch": str(torch.__version__),
    }
    save(net, out, metadata, dtype=torch.float16 if fp16 else None)
    return metadata


def _without_paths(value: Any) -> Any:
    """The configuration with every path reduced to its last part: a published file does not say where it was made."""
    if isinstance(value, dict):
        return {k: _without_paths(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_paths(v) for v in value]
    if isinstance(value, str) and ("/" in value or "\\" in value):
        return PurePath(value.replace("\\", "/")).name
    return value
