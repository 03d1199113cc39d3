"""``python -m training align IN OUT``: FFHQ crops of the faces in a folder, resumable, with a list of what was dropped.

Every source picture gets one line in OUT/journal.jsonl once all its crops are on disk, so a run that was cut off at any
moment goes on where it stopped. From the journal come images.csv (the table that ``data.list_csv`` and ``evaluate
--list`` read), dropped.csv and report.json.
"""
from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import ConfigError
from ..data.dataset import DataError

JOURNAL, SETTINGS = "journal.jsonl", "settings.json"
GRID = 48  # points along one side of a crop at which it is asked whether they lie inside the picture


@dataclass(frozen=True)
class AlignOptions:
    """What decides which crops come out; a folder is gone on with under the same options only."""

    size: int = 512  # px, side of a crop
    detector: str = "retinaface_mobile0.25"
    confidence: float = 0.9
    min_eye_distance: float = 0.0  # px in the source; max_upscale is the limit that grows with size
    max_upscale: float = 1.5  # a face enlarged further is blur, not truth
    max_outside: float = 0.1  # share of the crop that may lie outside the picture
    keep: str = "all"  # all | largest | centre
    border: str = "reflect"  # reflect | constant
    format: str = "png"


def add_parser(commands: Any) -> None:
    """Add the sub-command to what ``ArgumentParser.add_subparsers`` returned."""
    d = AlignOptions()
    p = commands.add_parser("align", help="cut FFHQ-aligned training crops out of a folder of photographs")
    p.add_argument("input", type=Path, help="folder of photographs, any depth")
    p.add_argument("out", type=Path, help="folder for the crops, with the same sub-folders")
    p.add_argument("--size", type=int, default=d.size, help="side of the crops in px (%(default)s)")
    p.add_argument("--detector", default=d.detector, help="name or weight file (%(default)s)")
    p.add_argument("--confidence", type=float, default=d.confidence, help="least probability of a face (%(default)s)")
    p.add_argument("--min-eye-distance", type=float, default=d.min_eye_distance, help="px in the source (%(default)s)")
    p.add_argument("--max-upscale", type=float, default=d.max_upscale, help="crop px per source px (%(default)s)")
    p.add_argument("--max-outside", type=float, default=d.max_outside, help="share of the crop (%(default)s)")
    p.add_argument("--keep", choices=("all", "largest", "centre"), default=d.keep, help="of a picture (%(default)s)")
    p.add_argument("--border", choices=("reflect", "constant"), default=d.border, help="outside (%(default)s)")
    p.add_argument("--format", choices=("png", "jpg", "webp"), default=d.format, help="of the crops (%(default)s)")
    p.add_argument("--batch", type=int, default=4, help="pictures detected together (%(default)s)")
    p.add_argument("--device", default=None, help="cpu, cuda, cuda:1 ...; default: the best there is")
    p.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    names = AlignOptions.__dataclass_fields__
    options = AlignOptions(**{k: v for k, v in vars(args).items() if k in names})
    report = align_folder(args.input, args.out, options, max(1, args.batch), args.device)
    crops, faces = report["crops"], report["faces_dropped"]
    print(f"{report['sources']} pictures: {crops} crops in {args.out}, {faces} faces dropped.")
    for reason, count in report["dropped"].items():
        print(f"  {count:6d}  {reason}")
    return 0


def align_folder(
    source: Path, out: Path, options: AlignOptions, batch: int = 4, device: str | None = None
) -> dict[str, Any]:
    """Align everything under ``source`` that OUT's journal does not know yet; returns the report.

    Raises DataError where there is nothing to align, ConfigError where OUT was begun with other options.
    """
    from idcodeformer.detection import load_detector
    from idcodeformer.runtime.progress import progress_bar

    pictures = _sources(source, out)
    _check_settings(out, options)
    done = _read_journal(out)
    todo = [p for p in pictures if str(p) not in done]
    taken = {crop["path"] for record in done.values() for crop in record["crops"]}
    names = _crop_names(pictures)
    if todo:
        detector = load_detector(options.detector, device)
        bar = progress_bar(len(pictures), "picture", done=len(pictures) - len(todo))
        with open(out / JOURNAL, "a", encoding="utf-8") as journal:
            for first in range(0, len(todo), batch):
                part = todo[first : first + batch]
                for record in _align_batch(source, out, part, names, options, detector, taken):
                    journal.write(json.dumps(record, ensure_ascii=False) + "\n")
                    journal.flush()
                bar.update(len(part))
        bar.close()
    return _write_report(out, list(_read_journal(out).values()), options)


def _sources(source: Path, out: Path) -> list[Path]:
    """Pictures relative to ``source``, sorted; crops of an OUT inside IN are no sources."""
    from idcodeformer.errors import BadImage
    from idcodeformer.files.finding import look_through

    if not source.is_dir():
        raise DataError(f"There is no folder {source}.")
    try:
        listed = look_through([source], recursive=True)
    except BadImage as error:
        raise DataError(str(error)) from error
    for file, why in listed.unread:
        print(f"not read: {file}: {why}", file=sys.stderr)
    target = out.resolve()
    found = [relative for file, relative in listed.pictures if not file.resolve().is_relative_to(target)]
    if not found:
        raise DataError(f"The folder {source} holds no picture besides crops of an earlier run; name another.")
    return found


def _check_settings(out: Path, options: AlignOptions) -> None:
    """Crops of two option sets must not mix in one folder."""
    if options.size < 16 or not 0 < options.max_upscale or not 0 <= options.confidence <= 1:
        raise ConfigError("align: size must be 16 px or more, max-upscale above 0, confidence between 0 and 1.")
    out.mkdir(parents=True, exist_ok=True)
    file = out / SETTINGS
    now = asdict(options)
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        different = [f"{k} {before.get(k)!r} then, {v!r} now" for k, v in now.items() if before.get(k) != v]
        if different:
            raise ConfigError(f"{out} was begun with other options: {'; '.join(different)}. Name another folder.")
        return
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(now, indent=1), encoding="utf-8")
    os.replace(partial, file)


def _read_journal(out: Path) -> dict[str, dict[str, Any]]:
    """source -> record. A last line that was cut off is cut away, so that the next one starts on its own line."""
    file = out / JOURNAL
    if not file.is_file():
        return {}
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with open(file, "r+b") as opened:
            opened.truncate(len(whole))
    records = [json.loads(line) for line in whole.decode("utf-8").splitlines() if line.strip()]
    return {r["source"]: r for r in records}


def _crop_names(pictures: Sequence[Path]) -> dict[Path, str]:
    """Path of the crops without ending. Where a.jpg and a.png lie together, the ending becomes part of the name."""
    stems = Counter(p.with_suffix("") for p in pictures)
    names = {
        p: str(p.with_suffix("") if stems[p.with_suffix("")] == 1 else p.with_name(p.name.replace(".", "_")))
        for p in pictures
    }
    first: dict[str, Path] = {}
    for picture, name in names.items():
        if first.setdefault(name, picture) != picture:
            raise DataError(f"The crops of {first[name]} and {picture} would have the same names. Rename one of them.")
    return names


def _align_batch(
    source: Path,
    out: Path,
    part: Sequence[Path],
    names: dict[Path, str],
    options: AlignOptions,
    detector: Any,
    taken: set[str],
) -> Iterator[dict[str, Any]]:
    """One journal record for each picture of the batch, after its crops are written."""
    from idcodeformer.errors import BadImage
    from idcodeformer.files.reading import read
    from idcodeformer.types import DetectOptions

    frames: dict[Path, Any] = {}
    for name in part:
        try:
            frames[name] = read(source / name).frames[0]
        except BadImage as error:
            yield {"source": str(name), "crops": [], "dropped": [{"face": None, "reason": f"not readable: {error}"}]}
    if not frames:
        return
    # Everything found is judged here, so that a face is dropped with its reason and not in silence.
    everything = DetectOptions(confidence=min(0.5, options.confidence), min_eye_distance=0, doubtful=True)
    faces = detector(list(frames.values()), everything)
    for (name, frame), found in zip(frames.items(), faces, strict=True):
        yield _align_picture(out, name, names[name], frame, found, options, taken)


def _align_picture(
    out: Path, name: Path, crop_name: str, frame: Any, found: Sequence[Any], options: AlignOptions, taken: set[str]
) -> dict[str, Any]:
    from idcodeformer.detection.selection import select
    from idcodeformer.geometry.alignment import align
    from idcodeformer.types import DetectOptions

    rule = DetectOptions(options.confidence, options.min_eye_distance, keep=options.keep)  # type: ignore[arg-type]
    chosen = select(found, rule, tuple(frame.shape[1:]))
    dropped = [{"face": number, "reason": _general(why)} for number, why in chosen.dropped]
    if not found:
        dropped.append({"face": None, "reason": "no face found"})
    crops = align([frame], [chosen.faces], options.size, options.border)  # type: ignore[arg-type]
    kept: list[dict[str, Any]] = []
    for place, (face, number) in enumerate(zip(chosen.faces, chosen.indices, strict=True)):
        scale = float(crops.matrices[place, :, :2].det().abs().sqrt())
        outside = outside_share(crops.matrices[place], options.size, tuple(frame.shape[1:]))
        reason = _too_poor(scale, outside, options)
        if reason:
            dropped.append({"face": number, "reason": reason})
            continue
        path = f"{crop_name}_{len(kept)}.{options.format}"  # always a number: photo_1.jpg has crops of its own
        if path in taken:  # a folder that an older version began names its crops otherwise
            raise DataError(f"{out / path} is there already, from another picture. Align into a new folder.")
        taken.add(path)
        _write_crop(out / path, crops.pixels[place])
        kept.append({
            "path": path, "identity": name.parent.name, "source": str(name), "face": number,
            "score": round(face.score, 4), "eye_distance": round(face.eye_distance, 2),
            "scale": round(scale, 4), "outside": round(outside, 4),
        })  # fmt: skip
    return {"source": str(name), "crops": kept, "dropped": dropped}


def _general(reason: str) -> str:
    """A reason without the numbers of the single face, so that reasons can be counted."""
    known = (
        ("score", "score below the confidence"),
        ("eyes", "eyes too close together"),
        ("no face is seen", "no face when looked at closely"),
        ("its landmarks do not lie", "landmarks unlike a face"),
    )
    for start, general in known:
        if reason.startswith(start):
            return general
    return reason


def _too_poor(scale: float, outside: float, options: AlignOptions) -> str:
    if scale > options.max_upscale:
        return f"would be enlarged more than {options.max_upscale:g} times"
    if outside > options.max_outside:
        return f"more than {options.max_outside:.0%} of the crop lies outside the picture"
    return ""


def outside_share(matrix: Any, size: int, image_size: tuple[int, int]) -> float:
    """Share of a crop of ``size`` px that lies outside a picture (height, width); ``matrix`` [2,3] image -> crop."""
    import torch

    from idcodeformer.geometry.templates import invert

    reach = (torch.arange(GRID, dtype=torch.float64) + 0.5) * (size / GRID) - 0.5
    y, x = torch.meshgrid(reach, reach, indexing="ij")
    back = invert(matrix[None].cpu().double())[0]
    points = torch.stack([x.flatten(), y.flatten(), torch.ones(GRID * GRID, dtype=torch.float64)], 1) @ back.t()
    height, width = image_size
    inside = (points > -0.5).all(1) & (points[:, 0] < width - 0.5) & (points[:, 1] < height - 0.5)
    return float((~inside).double().mean())


def _write_crop(path: Path, pixels: Any) -> None:
    """A crop that a killed run wrote without getting to its journal line is simply written again."""
    from idcodeformer.files.reading import Picture
    from idcodeformer.files.writing import write

    write(path, Picture(pixels[None].clamp(0, 1).cpu()), overwrite=True)


def _write_report(out: Path, records: list[dict[str, Any]], options: AlignOptions) -> dict[str, Any]:
    records.sort(key=lambda r: r["source"])
    crops = [c for r in records for c in r["crops"]]
    dropped = [{"source": r["source"], **d} for r in records for d in r["dropped"]]
    reasons = Counter(d["reason"].split(":")[0] for d in dropped)
    columns = ["path", "identity", "source", "face", "score", "eye_distance", "scale", "outside"]
    _write_csv(out / "images.csv", columns, crops)
    _write_csv(out / "dropped.csv", ["source", "face", "reason"], dropped)
    report = {
        "options": asdict(options),
        "sources": len(records),
        "crops": len(crops),
        "sources_without_crop": sum(not r["crops"] for r in records),
        "faces_dropped": sum(d["face"] is not None for d in dropped),
        "dropped": dict(reasons.most_common()),
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (out / "report.json").write_text(text, encoding="utf-8")
    return report


def _write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
