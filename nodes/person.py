"""Load Person."""
from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ..idcodeformer.errors import BadOption
from ..idcodeformer.files.drawing import image_of
from . import convert, folders, host
from .managed import Kept, load_together
from .people import LinkedPeople, joined, people_of, person_from, photos_of
from .values import checked

NO_FILE = "none"
_GUIDE = "MobileFace V2, built in"  # not the loader's default, which then judges what this one guided
_SHOWN = 24  # photos on the node
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


class LoadPerson:
    """Thin: options and conversions; see people.LinkedPeople."""

    DESCRIPTION = (
        "Makes a person of photos, or loads people from a saved file: Restore Faces brings faces nearer to them, "
        "Detect Faces looks for them, Identity Score compares with them. Chain several for a family; photos of "
        "the same name are put together. Photos that show another face or are blurred are left out and named in the "
        "report."
    )
    CATEGORY = "face/ID-CodeFormer"
    FUNCTION = "load"
    OUTPUT_NODE = True  # so that it saves without being linked
    RETURN_TYPES = ("ID_PERSON", "STRING")
    RETURN_NAMES = ("person", "report")
    OUTPUT_TOOLTIPS = (
        "For Restore Faces, Detect Faces, Identity Score, and the next Load Person.",
        "Who is in it, by how many photos, and which photos look wrong.",
    )
    SEARCH_ALIASES = [
        "load face model", "save face model", "build face model", "identity", "reference photos", "face gallery",
        "person", "family", "reference face",
    ]  # fmt: skip

    def __init__(self) -> None:
        self._kept = Kept()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        recognisers = folders.choices("recogniser")
        saved = folders.choices("people", first=(NO_FILE,))
        return {
            "required": {
                "name": (
                    "STRING",
                    {"default": "person", "tooltip": "Who is on the photos; the reports name the person so."},
                ),
                "file": (
                    saved,
                    {"default": NO_FILE,
                     "tooltip": "People saved before, in models/idcodeformer/people. none: only the photos and people "
                     "that are linked."},
                ),
                "recogniser": (
                    recognisers,
                    {"default": _GUIDE if _GUIDE in recognisers else recognisers[0],
                     "tooltip": "Embeds the photos, and guides in Restore Faces. Where Load ID-CodeFormer has another "
                     "one, that one judges the result: the honest score."},
                ),
                "save_as": (
                    "STRING",
                    {"default": "",
                     "tooltip": "Saves all people of this node as models/idcodeformer/people/NAME.safetensors: names "
                     "and embeddings, no pictures. Empty: nothing is saved."},
                ),
            },
            "optional": {
                "photos": ("IMAGE", {"tooltip": "Photos of the person; the largest face of each counts."}),
                "people": ("ID_PERSON", {"tooltip": "From another Load Person: these people are added to those."}),
            },
        }  # fmt: skip

    @classmethod
    def VALIDATE_INPUTS(cls, save_as: Any = None) -> bool | str:
        try:
            _target(save_as)
        except BadOption as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, recogniser: str | None = None, file: str | None = None, save_as: str = "", **_: Any) -> str:
        named = [folders.fingerprint_of("recogniser", recogniser)]
        if file not in (None, NO_FILE):
            named.append(folders.fingerprint_of("people", file))
        target = _target(save_as)
        return "\n".join(named) + ("" if target is None or target.exists() else "\nnot saved yet")

    @checked()
    def load(
        self, name: str, file: str, recogniser: str, save_as: str = "", photos: Tensor | None = None, people: Any = None
    ) -> dict[str, Any]:
        target = _target(save_as)
        with host.work():
            linked, doubts = self._made(name.strip(), file, recogniser, photos, people)
        saved = None if target is None else _save(linked, target)
        text = _report(linked, doubts, saved)
        pictures = [image_of(photo.pixels) for here in linked.photos for photo in here][:_SHOWN]
        return {"ui": {"images": host.show_on_node(pictures), "text": text.splitlines()}, "result": (linked, text)}

    def _made(self, name: str, file: str, recogniser_name: str, photos: Tensor | None, given: Any):
        """Everything that computes: people of the file, of the photos, and those linked, in one."""
        from ..idcodeformer.identity.people import Doubt, People, read_people

        first = people_of(given, "people")
        if photos is None and file == NO_FILE and first is None:
            raise BadOption("There is nobody yet; link photos or people to Load Person, or choose a file.")
        part = self._kept.recogniser(recogniser_name)
        detector = None if photos is None else self._kept.detector()
        load_together([part, detector])
        recogniser, doubts = part.ready(), []
        if file != NO_FILE:
            found = read_people(folders.locate("people", file))
            found.check(recogniser)
            first, odd = joined(first, LinkedPeople(found, part, ((),) * len(found)))
            doubts += odd
        if photos is not None:
            if not name:
                raise BadOption("'name' is empty; give the person on the photos a name.")
            assert detector is not None
            frames = convert.frames_of(photos, "photos")
            shown = photos_of(frames, detector.ready())
            person, kept, odd = person_from(name, shown, recogniser)
            labels = [photo.label for photo in shown]
            numbered = (f"photo {number}" for number in range(len(frames)))
            doubts += [Doubt(name, label, "no face") for label in numbered if label not in labels]
            here = People((person,), recogniser.name, recogniser.digest)
            first, more = joined(first, LinkedPeople(here, part, (kept,)))
            doubts += [*odd, *more]
        assert first is not None
        return first, doubts


def _target(save_as: Any) -> Path | None:
    """The file that ``save_as`` names, None for none. Raises BadOption for what is no file name."""
    name = str(save_as or "").strip().removesuffix(".safetensors")
    if not name:
        return None
    if _FORBIDDEN.search(name) or name.startswith(".") or len(name) > 100:
        raise BadOption(f"save_as is '{name}'; give a plain file name without folders, such as 'family'.")
    return folders.search_folders("people")[0] / f"{name}.safetensors"


def _save(linked: LinkedPeople, target: Path) -> Path:
    """Write the people; a file of other people stays. Raises BadOption."""
    from ..idcodeformer.identity.people import read_people, save_people

    if target.exists():
        there = [person.name for person in read_people(target).persons]
        if not set(there) <= set(linked.names):
            raise BadOption(
                f"{target.name} holds {', '.join(there)}, who are not all here; choose another save_as, or delete "
                f"{target}."
            )
    os.makedirs(target.parent, exist_ok=True)
    return save_people(linked.people, target, overwrite=True)


def _report(linked: LinkedPeople, doubts: list, saved: Path | None) -> str:
    lines = [f"{len(linked.people)} people by {linked.people.recogniser}: {', '.join(linked.names)}"]
    if len(linked.people) == 1:
        lines = [f"{linked.names[0]} by {linked.people.recogniser}"]
    for person in linked.people.persons:
        count = len(person.photos)
        lines.append(f"{person.name}: {count} photo{'s' if count != 1 else ''}")
    for doubt in doubts:
        lines.append(f"{doubt.person}, {doubt.photo}: {doubt.reason}" + ("" if doubt.kept else ", left out"))
    if saved is not None:
        lines.append(f"saved as {saved}")
    return "\n".join(lines)
