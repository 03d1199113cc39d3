"""What a command says of its results: a line for a person, a report as JSON."""
from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from ..batch import Outcome
from ..files.run_report import check_target, to_json
from ..files.writing import write_bytes


def describe(outcome: Outcome, faithful: bool = False) -> str:
    """One line a person reads; with ``faithful`` it tells each face's w."""
    if outcome.error:
        return f"{outcome.input}: {outcome.status}: {outcome.error}"
    if outcome.status == "kept":
        return f"{outcome.input} -> {outcome.output}: kept, the result was there"
    faces = outcome.faces
    skipped = [face for face in faces if face["status"] == "skipped"]
    scores = [face["id_sim_input"] for face in faces if face.get("id_sim_input") is not None]
    parts = [f"{outcome.restored} face{'s' * (outcome.restored != 1)} restored" if faces else "no face found"]
    if names := [face["person"] or "nobody known" for face in faces if face["status"] != "skipped"]:
        if any(face["person"] for face in faces):
            parts.append("shows " + ", ".join(names))
    if scores:
        parts.append("ID-Sim to the input " + " ".join(f"{score:.2f}" for score in scores))
    if faithful:
        parts.append("w " + " ".join(f"{face['w']:.2f}" for face in faces if face["w"] is not None))
        parts += sorted({face["reason"] for face in faces if face["reason"].startswith("identity target")})
    if guided := [_guided(face) for face in faces if face.get("guidance")]:
        parts.append("; ".join(guided))
    pairs = [(f["id_sim_before"], f["id_sim_after"]) for f in faces if f.get("id_sim_after") is not None]
    if pairs:
        parts.append("to the references " + " ".join(f"{before:.2f}>{after:.2f}" for before, after in pairs))
    if skipped:
        # Sizes and scores differ from face to face; one of each reason says enough.
        reasons = {re.sub(r"[0-9.]+", "", face["reason"]): face["reason"] for face in skipped}
        parts.append(f"{len(skipped)} skipped ({'; '.join(sorted(reasons.values()))})")
    if outcome.note:
        parts.append(outcome.note)
    return f"{outcome.input} -> {outcome.output}: {', '.join(parts)}, {outcome.seconds:.1f} s"


def _guided(face: dict[str, Any]) -> str:
    return f"{face['person']}: {face['guidance']}" if face["person"] else face["guidance"]


def check_report(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Refuse a report that could not be written before any work is done; entries of one that is gone on with."""
    if not args.json or args.json == "-":
        return []
    return check_target(Path(args.json), args.overwrite, getattr(args, "skip_existing", False))


def write_json(target: str, report: Any, args: argparse.Namespace) -> None:
    if target == "-":  # in ASCII: a console's encoding may lack letters of a name
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        empty = Path(target).is_file() and Path(target).stat().st_size == 0  # nothing is lost
        write_bytes(target, to_json(report, indent=2) + b"\n", overwrite=empty or getattr(args, "overwrite", False))
