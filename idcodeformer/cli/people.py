"""``people``: a folder of people's photos -> one file, and the photos that do not belong."""
from __future__ import annotations

import argparse
import sys

from ..identity.people import People, load_people, save_people
from .telling import printable


def run_people(args: argparse.Namespace) -> int:
    """Print the people and every doubtful photo; the exit code is 0, as a gallery without those photos is whole."""
    from ..detection import load_detector
    from ..identity.recogniser import load_recogniser
    from .reports import check_report, write_json

    check_report(args)
    recogniser = load_recogniser(args.recogniser, args.device)
    people = load_people(args.folder, load_detector(args.detector, args.device), recogniser, remember=True)
    if args.output:
        save_people(people, args.output, args.overwrite)
    _tell(people, args, sys.stderr if args.json == "-" else sys.stdout)
    if args.json:
        write_json(args.json, summary(people), args)
    return 0


def summary(people: People) -> dict:
    """The gallery as JSON values, without its embeddings."""
    return {
        "recogniser": people.recogniser,
        "recogniser_sha256": people.digest,
        "people": [{"name": person.name, "photos": list(person.photos)} for person in people.persons],
        "doubts": [dict(doubt.__dict__) for doubt in people.doubts],
    }


def _tell(people: People, args: argparse.Namespace, stream) -> None:
    for person in people.persons:
        count = len(person.photos)
        print(printable(f"{person.name}: {count} photo{'s' * (count != 1)}"), file=stream)
    for doubt in people.doubts:
        told = "doubtful" if doubt.kept else "left out"
        print(printable(f"  {told}: {doubt.photo}: {doubt.reason}"), file=stream)
    if args.output:
        print(f"{len(people)} people -> {args.output}", file=stream)
