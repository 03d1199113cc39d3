"""The page "ID-CodeFormer" of the host's settings, and what it says about the next picture."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files, host
from .job import COLOUR, FIDELITY, GRAIN, GRAY, GUIDANCE, LARGE, MINIMUM, MODEL, NAME, STRENGTH, VISIBILITY
from .models import Choice
from .texts import text

if TYPE_CHECKING:
    from torch import Tensor

    from .core import Wishes

PREFIX = "id_codeformer_"
HOST_WEIGHT = f"{NAME} fidelity of the host"
KEEP, STOP = "keep the picture and say so", "stop the job"
GRAY_MODES = ("auto", "force", "off")
LARGE_FACES = ("auto", "restore", "keep", "skip")  # the first of each is the default
GRAINS = ("auto", "on", "off")
COLOURS = ("low_band", "adain", "off")
_SECTION = ("id_codeformer", NAME)


def register() -> None:
    """Add the options. Where the host has no face restorers only those that the Extras entry reads."""
    import gradio as gr

    def listed(kind: str) -> dict[str, Any]:
        # Files are looked for whenever the list is drawn, so the host's refresh button has nothing else to do.
        return {"component_args": lambda: {"choices": files.choices(kind)}, "refresh": lambda: None}

    share = {"minimum": 0, "maximum": 1, "step": 0.01}
    _add("model", files.AUTOMATIC, gr.Dropdown, **listed("restorer"), infotext=MODEL)
    _add("detector", Choice.detector, gr.Dropdown, **listed("detector"))
    _add("recogniser", Choice.recogniser, gr.Dropdown, **listed("recogniser"))
    _add("gray", "auto", gr.Radio, component_args={"choices": list(GRAY_MODES)}, infotext=GRAY)
    if not host.has_face_restorers():
        return
    _add("host_weight", True, gr.Checkbox, infotext=HOST_WEIGHT)
    _add("fidelity", 0.8, gr.Slider, component_args=share, infotext=FIDELITY)
    _add("visibility", 1.0, gr.Slider, component_args=share, infotext=VISIBILITY)
    _add("minimum_identity", 0.0, gr.Slider, component_args=share, infotext=MINIMUM)
    _add("reference", "", gr.Textbox, restrict_api=True)  # a path on the host's machine
    steps = {"minimum": 0, "maximum": 200, "step": 1}
    _add("guidance_steps", 0, gr.Slider, component_args=steps, infotext=GUIDANCE)
    _add("guidance_strength", 1.0, gr.Slider, component_args=share, infotext=STRENGTH)
    for name, modes, infotext in (
        ("large_faces", LARGE_FACES, LARGE), ("grain", GRAINS, GRAIN), ("colour", COLOURS, COLOUR)
    ):  # fmt: skip
        _add(name, modes[0], gr.Radio, component_args={"choices": list(modes)}, infotext=infotext)
    _add("on_error", KEEP, gr.Radio, component_args={"choices": [KEEP, STOP]})


def _add(name: str, default: Any, component: type, **more: Any) -> None:
    label, about = text(f"settings.{name}"), text(f"settings.{name}.about")
    host.add_option(PREFIX + name, default, label, _SECTION, about, component=component, **more)


def value(name: str, default: Any) -> Any:
    """The value of one of our options."""
    return host.option(PREFIX + name, default)


def choice() -> Choice:
    """Which networks the settings name."""
    usual = Choice()
    return Choice(
        value("model", usual.restorer), value("detector", usual.detector), value("recogniser", usual.recogniser)
    )


def wishes(fidelity: float | None = None) -> Wishes:
    """What the settings ask of the face restorer; ``fidelity`` is a caller's own."""
    from .core import Wishes

    if fidelity is None and value("host_weight", True):
        fidelity = host.option("code_former_weight", 0.5)
    return Wishes(
        fidelity=float(value("fidelity", 0.8) if fidelity is None else fidelity),
        visibility=float(value("visibility", 1.0)),
        minimum_identity=float(value("minimum_identity", 0.0)),
        gray=value("gray", "auto"),
        guidance_steps=int(value("guidance_steps", 0)) if str(value("reference", "")).strip() else 0,
        guidance_strength=float(value("guidance_strength", 1.0)),
        large_faces=value("large_faces", LARGE_FACES[0]),
        grain=value("grain", GRAINS[0]),
        colour=value("colour", COLOURS[0]),
    )


def photos() -> list[Tensor]:
    """The reference photos the settings name, one path or several with ";" between. Raises BadImage."""
    from .core import read_photo

    named = [part.strip().strip('"') for part in str(value("reference", "")).split(";")]
    return [read_photo(Path(part).expanduser()) for part in named if part]


def stops_on_error() -> bool:
    """Whether a picture that cannot be restored ends the job."""
    return value("on_error", KEEP) == STOP
