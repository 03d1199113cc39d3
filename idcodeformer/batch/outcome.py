"""What became of a picture."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..files.marks import GUIDED_KEY, guided_text
from ..files.reading import Picture
from ..types import FaceReport, Restoration

# Folders of results, as the reference names them.
FINAL, RESTORED, CROPPED, COMPARE = "final_results", "restored_faces", "cropped_faces", "compare"


@dataclass
class Outcome:
    """What became of one input."""

    input: str
    output: str = ""
    status: str = "failed"  # restored, no face, kept (a result was there), failed
    error: str = ""
    seconds: float = 0.0
    size: tuple[int, int] | None = None  # (width, height) of the input
    faces: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""  # what of the input is not in the result

    @property
    def restored(self) -> int:
        return sum(face["status"] == "restored" for face in self.faces)

    def entry(self) -> dict[str, Any]:
        """The line of a report."""
        return self.__dict__ | {"restored": self.restored}


@dataclass(frozen=True, eq=False)
class Restored:
    """A picture after restoring: ``result`` is None for an aligned crop, whose restored face ``picture`` holds."""

    picture: Picture
    faces: tuple[FaceReport, ...]
    result: Restoration | None = None

    @property
    def status(self) -> str:
        return "restored" if any(face.status == "restored" for face in self.faces) else "no face"


def marked(picture: Picture, faces: Sequence[FaceReport], model: str) -> Picture:
    """The picture with a text, which its file keeps, where photos of a person guided one of ``faces``."""
    guides = {face.guided_by for face in faces if face.guided_by}
    if not guides:
        return picture
    others = tuple(each for each in picture.notes.texts if each[0] != GUIDED_KEY)
    texts = (*others, (GUIDED_KEY, guided_text(guides, model)))
    return replace(picture, notes=replace(picture.notes, texts=texts))
