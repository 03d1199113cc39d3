"""The entry in the Extras (SD.Next: Process) tab."""
from __future__ import annotations

from typing import Any

from . import host, job, settings
from .models import Choice, Models
from .texts import text

FACES = ("all", "largest", "centre", "reference")
_ORDER = 3100  # after the host's upscalers (1000) and restorers (2000, 3000), as faces are pasted at the final size
_ID = "extras_id_codeformer"
_MODES = {"large_faces": settings.LARGE_FACES, "grain": settings.GRAINS, "colour": settings.COLOURS}


def entry_class(models: Models) -> type:
    """The host's ScriptPostprocessing, filled in."""

    class RestoreFaces(host.extras_base()):
        name = job.NAME
        order = _ORDER

        def ui(self) -> dict[str, Any]:
            return controls()

        def process(
            self, pp: Any, enable: bool | None = None, fidelity: float | None = None, visibility: float | None = None,
            faces: str | None = None, minimum_identity: float | None = None, reference: Any = None,
            guidance_steps: float | None = None, guidance_strength: float | None = None,
            large_faces: str | None = None, grain: str | None = None, colour: str | None = None,
        ) -> None:  # fmt: skip
            # The hosts' own API calls every script with None for whatever the caller did not name.
            if not enable or visibility == 0 or getattr(pp, "image", None) is None:
                return
            given = {
                "fidelity": fidelity, "visibility": visibility, "faces": faces,
                "minimum_identity": minimum_identity, "guidance_strength": guidance_strength,
                "large_faces": large_faces, "grain": grain, "colour": colour,
                "guidance_steps": None if guidance_steps is None else int(guidance_steps),
            }  # fmt: skip
            process(models, pp, {key: value for key, value in given.items() if value is not None}, reference)

    return RestoreFaces


def controls() -> dict[str, Any]:
    """The controls by the names of ``process``'s parameters."""
    import gradio as gr

    share = {"minimum": 0.0, "maximum": 1.0, "step": 0.01}
    accordion = host.accordion_switch()
    with (accordion or gr.Group)(**({"value": False, "label": job.NAME, "elem_id": _ID} if accordion else {})) as frame:
        enable = frame if accordion else gr.Checkbox(value=False, label=text("extras.enable"), elem_id=f"{_ID}_enable")
        with gr.Row():
            fidelity = gr.Slider(value=0.8, label=text("extras.fidelity"), elem_id=f"{_ID}_fidelity", **share)
            visibility = gr.Slider(value=1.0, label=text("extras.visibility"), elem_id=f"{_ID}_visibility", **share)
        with gr.Row():
            names = {"choices": list(FACES), "value": FACES[0]}
            faces = gr.Dropdown(label=text("extras.faces"), elem_id=f"{_ID}_faces", **names)
            least = gr.Slider(value=0.0, label=text("extras.minimum_identity"), elem_id=f"{_ID}_minimum", **share)
        reference = gr.Image(type="pil", label=text("extras.reference"), elem_id=f"{_ID}_reference")
        with gr.Row():
            count = {"minimum": 0, "maximum": 200, "step": 1}
            steps = gr.Slider(value=0, label=text("extras.guidance_steps"), elem_id=f"{_ID}_guidance", **count)
            strength = gr.Slider(value=1.0, label=text("extras.guidance_strength"), elem_id=f"{_ID}_strength", **share)
        with gr.Row():
            large, grain, colour = (_listed(name, modes) for name, modes in _MODES.items())
        with gr.Row():
            pasted = gr.Textbox(label=text("extras.infotext"), lines=1, elem_id=f"{_ID}_infotext")
            read = gr.Button(text("extras.read"), elem_id=f"{_ID}_read")
        set_here = [fidelity, visibility, faces, least, steps, strength, large, grain, colour]
        read.click(fn=values_of, inputs=[pasted, *set_here], outputs=set_here)
    return {
        "enable": enable, "fidelity": fidelity, "visibility": visibility, "faces": faces, "minimum_identity": least,
        "reference": reference, "guidance_steps": steps, "guidance_strength": strength,
        "large_faces": large, "grain": grain, "colour": colour,
    }  # fmt: skip


def _listed(name: str, modes: tuple[str, ...]) -> Any:
    import gradio as gr

    return gr.Dropdown(label=text(f"extras.{name}"), elem_id=f"{_ID}_{name}", choices=list(modes), value=modes[0])


def values_of(infotext: str, *now: Any) -> list[Any]:
    """The controls' values from a pasted infotext; as they are now where it has nothing of ours."""
    values = job.read_infotext(infotext or "")
    keys = (job.FIDELITY, job.VISIBILITY, job.FACES, job.MINIMUM, job.GUIDANCE, job.STRENGTH, job.LARGE, job.GRAIN,
            job.COLOUR)  # fmt: skip
    known = {2: FACES, 6: settings.LARGE_FACES, 7: settings.GRAINS, 8: settings.COLOURS}
    found = [values.get(key, old) for key, old in zip(keys, now)]
    return [new if new in known.get(place, (new,)) else now[place] for place, new in enumerate(found)]


def process(models: Models, pp: Any, given: dict[str, Any], reference: Any) -> None:
    """Restore ``pp.image`` in place and write scores into ``pp.info``.

    A picture that cannot be restored goes on as it is, with the reason in its infotext; what would stop every picture
    alike (a missing model, a wrong option) is raised, and the host shows the sentence.
    """
    from . import pictures
    from .core import BadImage, OutOfMemory, Wishes

    wishes = Wishes(**{"gray": settings.value("gray", "auto"), **given})
    choice: Choice = settings.choice()
    photos = pictures.photos_of(reference)
    try:
        outcome = job.run(models, choice, pictures.from_pil(pp.image), wishes, photos)
    except job.Interrupted:
        pp.info[job.NAME] = "interrupted"
        return
    except (BadImage, OutOfMemory) as error:
        host.say(job.not_restored(error))
        pp.info[job.NAME] = job.not_restored(error)
        return
    pp.image = pictures.replaced(pp.image, outcome.image)
    pp.info.update(outcome.infotext())
