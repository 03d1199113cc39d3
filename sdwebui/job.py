"""One picture restored, and what is said about it in the infotext."""
from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import files, host

if TYPE_CHECKING:
    from torch import Tensor

    from .core import FaceReport, Wishes
    from .models import Choice, Models

NAME = "ID-CodeFormer"
FIDELITY, VISIBILITY, MODEL = f"{NAME} fidelity", f"{NAME} visibility", f"{NAME} model"
GUIDANCE, STRENGTH, GUIDED = f"{NAME} guidance steps", f"{NAME} guidance strength", f"{NAME} guidance"
FACES, MINIMUM, GRAY = f"{NAME} faces", f"{NAME} minimum identity", f"{NAME} gray mode"
LARGE, GRAIN, COLOUR = f"{NAME} large faces", f"{NAME} grain", f"{NAME} colour"
IDENTITY, LIKENESS, SKIPPED = f"{NAME} identity", f"{NAME} like the reference", f"{NAME} skipped"


class Interrupted(Exception):
    """The user pressed Interrupt or Skip; the picture is as it was."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """``image`` [3,H,W] in [0,1] and the core's line for every face found."""

    image: Tensor
    report: tuple[FaceReport, ...]
    model: str
    wishes: Wishes

    @property
    def restored(self) -> list[FaceReport]:
        return [face for face in self.report if face.status == "restored"]

    def summary(self) -> str:
        """One sentence: how many faces, and why others were left."""
        if not self.report:
            return "no face found"
        return f"{len(self.restored)} of {len(self.report)} faces restored"

    def infotext(self) -> dict[str, str]:
        """Texts for the infotext; what was at its default and changes nothing is left out."""
        wishes, done = self.wishes, self.restored
        texts = {NAME: self.summary(), MODEL: self.model, FIDELITY: f"{wishes.fidelity:g}"}
        if wishes.visibility < 1:
            texts[VISIBILITY] = f"{wishes.visibility:g}"
        if wishes.faces != "all":
            texts[FACES] = wishes.faces
        if wishes.minimum_identity > 0:
            texts[MINIMUM] = f"{wishes.minimum_identity:g}"
        if wishes.gray != "auto":
            texts[GRAY] = wishes.gray
        for key, value, usual in (
            (LARGE, wishes.large_faces, "auto"), (GRAIN, wishes.grain, "auto"), (COLOUR, wishes.colour, "low_band")
        ):  # fmt: skip
            if value != usual:
                texts[key] = value
        if scores := [face.id_sim_input for face in done if face.id_sim_input is not None]:
            texts[IDENTITY] = " ".join(f"{score:.2f}" for score in scores)
        pairs = [(face.id_sim_before, face.id_sim_after) for face in done if face.id_sim_after is not None]
        if pairs:
            texts[LIKENESS] = " ".join(f"{before:.2f}>{after:.2f}" for before, after in pairs)
        if wishes.guidance_steps > 0:
            texts[GUIDANCE] = f"{wishes.guidance_steps:g}"
            if wishes.guidance_strength < 1:
                texts[STRENGTH] = f"{wishes.guidance_strength:g}"
            texts[GUIDED] = "; ".join(face.guidance for face in done if face.guidance)
        if reasons := sorted({face.reason for face in self.report if face.status == "skipped"}):
            texts[SKIPPED] = "; ".join(reasons)
        return texts


def run(models: Models, choice: Choice, picture: Tensor, wishes: Wishes, photos: list[Tensor]) -> Outcome:
    """Restore one picture [3,H,W] in [0,1]. Raises Interrupted and the core's sentences; the models rest afterwards."""
    from . import core

    try:
        pipeline = models.pipeline(choice, guiding=wishes.guidance_steps > 0 and bool(photos))
        person = models.person(choice, photos, pipeline.guide)
        result = core.restore(pipeline, picture, wishes, person, _progress)
        return Outcome(result.images[0], _for_this_host(result.report), models.name_of("restorer"), wishes)
    finally:
        models.rest()


def _for_this_host(report: tuple[FaceReport, ...]) -> tuple[FaceReport, ...]:
    """With the folder where this host looks for a larger network, in the place of those that the core names."""
    folder = files.folders("restorer")[0]
    return tuple(
        replace(face, reason=re.sub(r" into [^;]*, in ComfyUI [^,;]*,", lambda _: f" into {folder},", face.reason))
        for face in report
    )


def _progress(done: int, total: int, what: str) -> None:
    if host.interrupted():
        raise Interrupted("interrupted")
    host.show_progress(f"{NAME}: {what} {done}/{total}")


def not_restored(error: Exception) -> str:
    """What is said where the picture goes on as it was."""
    return f"not restored: {error}"


def read_infotext(text: str) -> dict[str, Any]:
    """The values that ``Outcome.infotext`` wrote, of those that can be set: numbers as float, texts as str."""
    values: dict[str, Any] = {}
    for key in (FIDELITY, VISIBILITY, MINIMUM, STRENGTH):
        if found := re.search(rf"{re.escape(key)}:\s*(\d(?:\.\d+)?)", text):
            values[key] = min(float(found[1]), 1.0)
    if found := re.search(rf"{re.escape(GUIDANCE)}:\s*(\d+)", text):
        values[GUIDANCE] = min(float(found[1]), 200.0)
    for key in (FACES, GRAY, LARGE, GRAIN, COLOUR):
        if found := re.search(rf"{re.escape(key)}:\s*(\w+)", text):
            values[key] = found[1]
    if values.keys() or NAME in text:  # what was at its default is not written
        usual = {
            VISIBILITY: 1.0, MINIMUM: 0.0, FACES: "all", GRAY: "auto", GUIDANCE: 0.0, STRENGTH: 1.0, LARGE: "auto",
            GRAIN: "auto", COLOUR: "low_band",
        }  # fmt: skip
        values = {**usual, **values}
    return values
