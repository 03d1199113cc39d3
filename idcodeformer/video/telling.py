"""What is said of a clip's tracks, in its report and in its file."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..files.marks import GUIDED_KEY, guided_text
from .tracks import Track

_OF_TRACK = ("w", "guidance", "guided_by", "id_sim_before", "id_sim_after", "judged_by")


def track_lines(tracks: Sequence[Track], lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each track; ``lines``: those of its faces, which say what was done with it as a whole."""
    return [
        {"track": t.number, "person": t.person, "first": t.start, "last": t.stop - 1, "score": round(t.score, 4),
         "filled": int((t.scores == 0).sum()), "kept": bool(t.kept), "reason": t.reason, "name": t.name,
         "likeness": None if t.likeness is None else round(t.likeness, 4)} | _done_with(t, lines)
        for t in tracks
    ]  # fmt: skip


def _done_with(track: Track, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was done with a track as a whole, as the line of any of its frames says."""
    line = next((line for line in lines if line["track"] == track.number and "w" in line), {})
    return {name: line[name] for name in _OF_TRACK if name in line}


def mark(segments: list[dict[str, Any]], model: str) -> str:
    """What a clip says of itself where photos of a person guided one of its faces, as PNG files do."""
    lines = (line for segment in segments for line in segment["state"].get("lines", []))
    guides = {line["guided_by"] for line in lines if line.get("guided_by")}
    return f"{GUIDED_KEY}: {guided_text(guides, model)}" if guides else ""
