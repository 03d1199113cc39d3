"""``python -m training align IN OUT``: FFHQ crops of every face in a folder, resumable, and what was dropped."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the sub-command to what ``ArgumentParser.add_subparsers`` returned."""
    p = commands.add_parser("align", help="cut FFHQ-aligned training crops out of a folder of photographs")
    p.add_argument("input", type=Path, help="folder of photographs, any depth")
    p.add_argument("out", type=Path, help="folder for the crops; same sub-folders")
    p.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    raise NotImplementedError
