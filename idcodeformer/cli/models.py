"""The ``models`` sub-commands: list, path, download, verify, convert."""
from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import BadOption, CorruptWeights, MissingWeights, UnsupportedWeights
from ..runtime.progress import ByteProgress


def add_models_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add ``models`` to a command line. Each sub-command sets ``handler``: (args) -> exit code; errors are raised."""
    parser = subparsers.add_parser("models", help="list, find, download, verify and convert weight files")
    commands = parser.add_subparsers(dest="models_command", required=True, metavar="COMMAND")

    def command(name: str, handler, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--folder", type=Path, action="append", default=[], help="search here too (repeatable)")
        sub.set_defaults(handler=handler)
        return sub

    command("list", list_models, "Every known weight file: size, licence, and where it is.")
    where = command("path", show_path, "Where a file is; without a name, the folders searched, in order.")
    where.add_argument("name", nargs="?", help="a name of 'models list' or a file name")
    fetch = commands.add_parser("download", help="Fetch weight files; the licence is shown first.")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="names of 'models list'")
    fetch.add_argument("--to", type=Path, help="folder for them (default: $IDCODEFORMER_MODELS or the user cache)")
    fetch.set_defaults(handler=download_models)
    check = command("verify", verify_models, "Compare files with the registered sha256; without names, all found.")
    check.add_argument("names", nargs="*", metavar="NAME_OR_FILE")
    convert = commands.add_parser("convert", help="Write any supported weight file as safetensors with its config.")
    convert.add_argument("source", type=Path, metavar="IN", help=".pth, .onnx or .safetensors")
    convert.add_argument("target", type=Path, metavar="OUT", help="a .safetensors file")
    convert.add_argument("--fp16", action="store_true", help="store weights in half precision")
    convert.set_defaults(handler=convert_model)
    mixed = command("blend", blend_models, "Write the weights between two trainings of one network, or beyond.")
    mixed.add_argument("first", metavar="A", help="name or file: strength 0, e.g. mini_codeformer")
    mixed.add_argument("second", metavar="B", help="name or file: strength 1, e.g. mini_id_codeformer")
    mixed.add_argument("strength", type=float, help="from A (0) to B (1); 1.5 goes beyond B by half the way")
    mixed.add_argument("target", type=Path, metavar="OUT", help="a .safetensors file")
    mixed.add_argument("--fp16", action="store_true", help="store weights in half precision")
    mixed.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


def list_models(args: argparse.Namespace) -> int:
    """One row for every registry file, then files of ours found besides."""
    from ..weights import registry, store

    found = store.available(folders=args.folder)
    paths = {f.name: f for f in reversed(found) if f.weight}
    rows = [("name", "kind", "size", "sha256", "licence", "where")]
    for weight in registry.WEIGHTS:
        here = paths.get(weight.name)
        where = "built in" if here and here.embedded else str(here.path) if here else "-"
        known = "known" if weight.sha256 else "unknown"
        rows.append((weight.name, weight.kind, size_text(weight.bytes), known, weight.terms, where))
    for other in (f for f in found if f.weight is None):
        size = size_text(other.path.stat().st_size)
        rows.append((other.name, "-", size, "unknown", "-", str(other.path)))
    print_table(rows)
    print("\n'-' under where: not here. 'unknown' under sha256: such a file can be used, but never verified.")
    return 0


def show_path(args: argparse.Namespace) -> int:
    """Print the file's path, or the search folders."""
    from ..weights import store

    if args.name:
        print(store.find(args.name, folders=args.folder))
        return 0
    for folder in store.search_folders(args.folder):
        print(f"{folder}{'' if folder.is_dir() else '  (does not exist)'}")
    return 0


def download_models(args: argparse.Namespace) -> int:
    """Print the licence, then fetch, with a bar on standard error."""
    from ..weights import registry, store

    weights = [registry.by_name(name) for name in args.names]
    for weight in weights:
        size = weight.archive.bytes if weight.archive else weight.bytes
        print(f"{weight.name}: {weight.file}, {size_text(size)}, from {weight.source or 'this package'}")
        print(f"  licence: {weight.terms}", flush=True)
        with ByteProgress() as progress:
            path = store.download(weight.name, args.to, progress)
        print(f"  {describe(store.verify(path, weight))}")
    return 0


def verify_models(args: argparse.Namespace) -> int:
    """One line per file; exit code 1 where one differs from the registry."""
    from ..weights import store

    if args.names:
        files = [store.find(name, folders=args.folder) for name in args.names]
    else:
        files = [f.path for f in store.available(folders=args.folder)]
    altered = 0
    for path in files:
        verdict = store.verify(path)
        altered += verdict.status == "altered"
        print(describe(verdict))
    if not files:
        print("No weight files found. See: python -m idcodeformer models list")
    return 1 if altered else 0


def describe(verdict) -> str:
    """A verdict in one line."""
    word = {"verified": "verified", "altered": "ALTERED", "unknown": "not verified"}[verdict.status]
    return f"{word}: {verdict.path} ({verdict.detail})"


def convert_model(args: argparse.Namespace) -> int:
    """Read with every check that loading has, write with the config in the metadata."""
    import torch

    from ..weights import loading, registry, store

    if args.target.suffix != ".safetensors":
        raise UnsupportedWeights(f"{args.target}: only .safetensors is written; give the file that ending.")
    if not args.source.is_file():
        raise MissingWeights(f"There is no file {args.source}.")
    if args.target.exists() and args.target.samefile(args.source):
        raise CorruptWeights(f"{args.target} is the input itself; choose another name.")
    module = loading.build(args.source)
    row = registry.by_file(args.source.name)
    texts = {k: v for k, v in module.weights_metadata.items() if k not in ("format", "architecture", "config")}
    texts.update(source_file=args.source.name, source_sha256=store.sha256_of(args.source))
    if row is not None:
        texts.setdefault("licence", row.terms)
    loading.save(module, args.target, texts, torch.float16 if args.fp16 else None)
    config = loading.config_of(module)
    print(f"{args.target}: {type(module).__name__}, {size_text(args.target.stat().st_size)}, config {config}")
    return 0


def blend_models(args: argparse.Namespace) -> int:
    """A + strength (B - A), as a file of its own that says what it was made of."""
    import torch

    from ..weights import loading, store
    from ..weights.blending import blend

    if args.target.suffix != ".safetensors":
        raise UnsupportedWeights(f"{args.target}: only .safetensors is written; give the file that ending.")
    if args.target.exists() and not args.overwrite:
        raise BadOption(f"{args.target} exists already; add --overwrite, or choose another name.")
    first, second = (store.find(name, "restorer") for name in (args.first, args.second))
    if args.target.exists() and any(args.target.samefile(source) for source in (first, second)):
        raise BadOption(f"{args.target} is one of the inputs; choose another name.")
    module, texts = blend(first, second, args.strength)
    loading.save(module, args.target, {"name": args.target.stem, **texts}, torch.float16 if args.fp16 else None)
    size = size_text(args.target.stat().st_size)
    print(f"{args.target}: {first.stem} + {args.strength:g} ({second.stem} - {first.stem}), {size}")
    print(f"terms: {texts['licence']}")
    return 0


def size_text(size: int | None) -> str:
    """Bytes as people read them (1 MB = 10^6 bytes)."""
    if size is None:
        return "?"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as their widest entry."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
