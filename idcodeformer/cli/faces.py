"""``detect`` and ``score``: which faces are there, and is it the same person."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import BadImage, BadOption, IDCodeFormerError
from ..files.finding import look_through
from ..files.reading import Picture, read
from ..files.writing import write
from ..types import DetectOptions, Detector, Embeddings, Faces
from .telling import note, printable

if TYPE_CHECKING:
    from ..identity.people import Named
    from ..identity.recogniser import IdentityRecogniser


def run_detect(args: argparse.Namespace) -> int:
    """Print the faces of every picture; exit code 1 where a file could not be read."""
    from ..detection import load_detector
    from .reports import check_report, write_json
    from .settings import detect_options_of, named
    from .targets import plan_targets

    options = detect_options_of(args)
    listed = look_through(named(args), args.recursive)
    for file, why in listed.unread:
        note(f"not read: {file}: {why}")
    check_report(args)
    detector = load_detector(args.detector, args.device)
    namer = load_namer(args, detector)
    found: list[dict[str, Any]] = []
    for path, target in plan_targets(listed.pictures):
        found.append(_detect(path, target, detector, options, args, namer))
    if args.json:
        write_json(args.json, found, args)
    failed = [entry for entry in found if entry["error"]]
    for entry in failed:
        note(f"failed: {entry['error']}")
    return 1 if failed else 0


Namer = Callable[[Tensor, Faces], Sequence["Named | None"]]


def load_namer(
    args: argparse.Namespace, detector: Detector, recogniser: IdentityRecogniser | None = None
) -> Namer | None:
    """Who the faces of a picture [3,H,W] are, by ``--people``; None where it is not given."""
    from ..identity.people import load_people
    from ..identity.recogniser import load_recogniser

    if not args.people:
        return None
    judge = recogniser or load_recogniser(args.recogniser, args.device)
    people = load_people(args.people, detector, judge, remember=True)
    for doubt in people.doubts:
        note(f"{'doubtful' if doubt.kept else 'left out'}: {doubt.photo}: {doubt.reason}")
    return lambda frame, faces: people.name(judge.embed_faces([frame], [faces]))


def _detect(
    path: Path,
    target: Path,
    detector: Detector,
    options: DetectOptions,
    args: argparse.Namespace,
    namer: Namer | None,
) -> dict[str, Any]:
    from ..detection.selection import select
    from ..files.drawing import marked

    entry: dict[str, Any] = {"input": str(path), "size": None, "faces": [], "error": ""}
    try:
        picture = read(path).frames[:1]
        entry["size"] = [picture.shape[-1], picture.shape[-2]]
        faces = select(detector(list(picture), options)[0], options, tuple(picture.shape[-2:])).faces
        named = None if namer is None else namer(picture[0], faces)
        if args.draw:
            names = None if named is None else ["" if who is None else who.name for who in named]
            marks = Picture(marked(picture[0], faces, names)[None])
            write(Path(args.draw) / target.with_name(f"{target.name}.png"), marks, args.overwrite)
    except IDCodeFormerError as error:
        entry["error"] = str(error)
        return entry
    for number, face in enumerate(faces):
        line = {"score": face.score, "box": face.box.tolist(), "landmarks": face.landmarks.tolist()}
        entry["faces"].append(line if named is None else line | _who(named[number]))
    _print_faces(entry, sys.stderr if args.json == "-" else sys.stdout)
    return entry


def _who(named: Named | None) -> dict[str, Any]:
    """The person of a face as JSON values."""
    return {"person": named.name, "similarity": named.similarity} if named else {"person": "", "similarity": None}


def _print_faces(entry: dict[str, Any], stream) -> None:
    count = len(entry["faces"])
    print(printable(f"{entry['input']}: {count or 'no'} face{'s' * (count != 1)}"), file=stream)
    for number, face in enumerate(entry["faces"]):
        x0, y0, x1, y1 = face["box"]
        line = f"  {number}: score {face['score']:.3f}, box {x0:.1f},{y0:.1f} to {x1:.1f},{y1:.1f} px"
        if "person" in face:
            line += f", {face['person']} {face['similarity']:.2f}" if face["person"] else ", nobody known"
        print(printable(line), file=stream)


def run_score(args: argparse.Namespace) -> int:
    """Print the similarity of every candidate picture to the reference; 1 where a candidate cannot be compared."""
    from ..batch.models import embed_person
    from ..detection import load_detector
    from ..identity.recogniser import load_recogniser
    from .reports import check_report, write_json
    from .settings import detect_options_of

    if not -1 <= args.threshold <= 1:
        raise BadOption(f"--threshold is {args.threshold:g}; a cosine lies between -1 and 1.")
    options = detect_options_of(args)
    check_report(args)
    detector, recogniser = load_detector(args.detector, args.device), load_recogniser(args.recogniser, args.device)
    person = embed_person([args.reference], detector, recogniser)
    namer = load_namer(args, detector, recogniser)
    lines = [_score(path, person, detector, recogniser, options, args.threshold, namer) for path in args.candidates]
    stream = sys.stderr if args.json == "-" else sys.stdout
    for line in lines:
        if line["error"]:
            note(f"failed: {line['error']}")
            continue
        verdict = "same person" if line["same"] else "another person"
        others = f" (of {len(line['scores'])} faces)" if len(line["scores"]) > 1 else ""
        names = "" if namer is None else f"  shows {', '.join(name or 'nobody known' for name in line['people'])}"
        print(printable(f"{line['best']:.4f}  {verdict}  {line['candidate']}{others}{names}"), file=stream)
    if args.json:
        report = {"reference": args.reference, "recogniser": recogniser.name, "threshold": args.threshold}
        write_json(args.json, report | {"candidates": lines}, args)
    return 1 if any(line["error"] for line in lines) else 0


def _score(
    path: str,
    person: Embeddings,
    detector: Detector,
    recogniser: IdentityRecogniser,
    options: DetectOptions,
    threshold: float,
    namer: Namer | None,
) -> dict[str, Any]:
    from ..detection.selection import select
    from ..identity.recogniser import cosine

    line: dict[str, Any] = {"candidate": path, "scores": [], "best": None, "same": None, "error": ""}
    try:
        frame = read(path).frames[0]
        faces = select(detector([frame], options)[0], options, tuple(frame.shape[-2:])).faces
        if not faces:
            raise BadImage(f"{path} shows no face; lower --confidence, or give another picture.")
    except IDCodeFormerError as error:
        return line | {"error": str(error)}
    scores = cosine(recogniser.embed_faces([frame], [faces]), person)[:, 0].tolist()
    if namer is not None:
        line["people"] = ["" if who is None else who.name for who in namer(frame, faces)]
    return line | {"scores": scores, "best": max(scores), "same": max(scores) >= threshold}
