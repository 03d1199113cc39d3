"""An evaluation as files: report.json, report.md, images.csv, plots and sheets."""
from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from . import plots
from .sheets import draw

DIGITS = {"psnr": 2}


def write_report(out: Path, report: dict[str, Any], blocks: dict[str, Any]) -> None:
    """Write everything into ``out``; ``blocks``: the ``Block`` of each degradation, for table and pictures."""
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / "images.csv", {name: block.per_image() for name, block in blocks.items()})
    (out / "report.json").write_text(json.dumps(_finite(report), indent=1, ensure_ascii=False), encoding="utf-8")
    recognisers = report["settings"]["recognisers"]
    for name, block in report["degradations"].items():
        title = f"{report['settings']['data']}, {name}, {report['images']} images"
        plots.against_w(block, recognisers, title, out / f"{name}-w.png")
        main = f"{title}, w = {report['settings']['main_w']:g}"
        plots.distribution(blocks[name].id_sims, recognisers, main, out / f"{name}-id-sim.png")
        for sheet in blocks[name].sheets:
            draw(sheet).save(out / f"{name}-{sheet.name}.png")
    (out / "report.md").write_text(markdown(report), encoding="utf-8")


def _finite(value: Any) -> Any:
    """Not-a-number and infinity as null: JSON has neither."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_csv(path: Path, blocks: dict[str, list[dict[str, Any]]]) -> None:
    records = [{"degradation": name, **record} for name, block in blocks.items() for record in block]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for record in records for name in record)))
        writer.writeheader()
        writer.writerows(records)


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown: what was measured, a table for each degradation, and the differences between models."""
    parts = [*_heading(report)]
    for name, block in report["degradations"].items():
        parts += ["", f"## {name}", "", _parameters(block["parameters"]), "", *_table(report, block)]
        if block["differences"]:
            parts += ["", *_differences(report, block)]
        parts += ["", f"![against w]({name}-w.png)", f"![distribution]({name}-id-sim.png)", ""]
        parts += [f"- [{sheet['title']}]({name}-{sheet['name']}.png)" for sheet in block["sheets"]]
    return "\n".join(parts) + "\n"


def _heading(report: dict[str, Any]) -> list[str]:
    s = report["settings"]
    which = f", split {s['split']}" if s["split"] else ""
    subset = f" (a subset drawn by seed {s['seed']})" if s["limit"] else ""
    lines = [
        f"# Evaluation on {s['data']}{which}, {s['size']} px",
        "",
        f"{report['images']} images of {report['identities']} people{subset}, {report['pairs']} same-person pairs; "
        f"{len(report['skipped'])} files could not be used. In brackets: 95 % intervals, {s['bootstrap']} resamples "
        f"of the people. {_colours(s)}",
        "",
    ]
    for name, info in s["recognisers"].items():
        kind = {"loss": "a recogniser of the loss", "independent": "an independent recogniser"}[info["role"]]
        lines.append(f"- **{name}**: {kind}.")
    tar = f"TAR: share of same-person pairs (restored face, another undegraded photograph) accepted at FAR {s['far']:g}"
    lines += [
        "- ID-Sim: cosine of the restored face and its own truth.",
        f"- {tar}; the threshold comes from undegraded photographs of different people.",
        f"- Perceptual distance: {s['perceptual'] or 'not measured, since --perceptual was not given'}.",
        f"- Frechet distance: {_fid_note(report)}.",
    ]
    if guide := s["guide"]:
        gate = "the gate that refuses strangers is open" if guide["forced"] else "strangers are refused by the gate"
        lines.append(
            f"- Guided: {guide['name']} guides, by other undegraded photographs of the same person, and {gate}; "
            "'guided': share of the faces that were. Who guides is no judge: read the independent columns."
        )
    return lines


def _colours(s: dict[str, Any]) -> str:
    match = f"latent colour match (AdaIN) {'on' if s['adain'] else 'off'}"
    if s["colour"] == "low_band":
        return f"Colours: of the input, as users get them (low_band), {match}."
    return f"Colours: as the network makes them, {match}."


def _fid_note(report: dict[str, Any]) -> str:
    s = report["settings"]
    if s["fid"] is None:
        return "empty, since --fid-weights was not given (the extractor's weights are not part of this package)"
    return f"{s['fid']} against {s['fid_reference']}; {report['images']} images, so compare rows of this table only"


def _parameters(values: dict[str, Any]) -> str:
    shown = {k: v[0] if isinstance(v, list) and v[0] == v[1] else v for k, v in values.items()}
    return "Degradation: " + ", ".join(f"{k} {v}" for k, v in shown.items()) + "."


def _columns(report: dict[str, Any]) -> list[tuple[str, str]]:
    """(key, heading) of the columns, the recognisers of the loss before the independent ones."""
    s = report["settings"]
    out = [("psnr", "PSNR / dB ↑"), ("ssim", "SSIM ↑")]
    if s["perceptual"]:
        out.append(("perceptual", f"{s['perceptual']} ↓"))
    out.append(("fid", f"{s['fid'] or 'FID'} ↓"))
    if s["guide"]:
        out.append(("guided", "guided"))
    for role in ("loss", "independent"):
        for name in (n for n, info in s["recognisers"].items() if info["role"] == role):
            out += [(f"id_sim {name}", f"ID-Sim {name} ({role}) ↑"), (f"tar {name}", f"TAR {name} ({role}) ↑")]
    return out


def _table(report: dict[str, Any], block: dict[str, Any]) -> list[str]:
    columns = _columns(report)
    lines = ["| | " + " | ".join(h for _, h in columns) + " |", "|---|" + "---|" * len(columns)]
    for row in block["rows"]:
        label = row["name"] if row["w"] is None else f"{row['name']}, w = {row['w']:g}"
        lines.append(f"| {label} | " + " | ".join(_cell(row, key) for key, _ in columns) + " |")
    return lines


def _cell(row: dict[str, Any], key: str) -> str:
    if key == "fid":
        return "–" if row["fid"] is None else f"{row['fid']:.4g}"
    figure = row["figures"].get(key)
    if figure is None or not math.isfinite(figure["value"]):
        return "–"
    digits = DIGITS.get(key, 3)
    return f"{figure['value']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def _differences(report: dict[str, Any], block: dict[str, Any]) -> list[str]:
    columns = [c for c in _columns(report) if c[0] not in ("fid", "guided")]
    lines = [
        "Differences, resampled in pairs; * marks those where the two separate intervals do not touch:",
        "",
        "| | " + " | ".join(h for _, h in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for entry in block["differences"]:
        cells = []
        for key, _ in columns:
            figure, digits = entry["figures"][key], max(3, DIGITS.get(key, 3))
            star = " *" if figure["intervals_apart"] else ""
            values = f"{figure['value']:+.{digits}f} [{figure['low']:+.{digits}f}, {figure['high']:+.{digits}f}]"
            cells.append(values + star)
        lines.append(f"| {entry['to']} − {entry['from']}, w = {entry['w']:g} | " + " | ".join(cells) + " |")
    return lines
