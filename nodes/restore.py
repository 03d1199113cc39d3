"""Restore Faces."""
from __future__ import annotations

from typing import Any

from torch import Tensor

from ..idcodeformer.errors import BadImage, BadOption
from ..idcodeformer.types import RestoreOptions
from . import convert, draw, folders, host, report
from . import faces as found
from .managed import BUILT_IN_DETECTOR, IDCodeFormerModel, Kept, model_of
from .people import people_of
from .restoring import AUTOMATIC, SQUARE, Request, restored
from .values import checked
from .video import PICTURES, VIDEO

PASTE_CLASSES = (AUTOMATIC, "face and hair", "face without hair", "inner face", SQUARE)
_INNER_FACE = (1, 2, 4, 5, 6, 7, 10, 11, 12)  # skin, nose, eyes, brows, mouth and lips of ParseNet's labels


class RestoreFaces:
    """Thin: options and conversions; the work is FacePipeline's."""

    DESCRIPTION = (
        "Restores every face of every frame with CodeFormer and puts it back. Reports for each face how much it stayed "
        "the same person. A frame without a face passes unchanged (enlarged, if asked)."
    )
    CATEGORY = "face/ID-CodeFormer"
    FUNCTION = "restore"
    RETURN_TYPES = ("IMAGE", "IMAGE", "IMAGE", "MASK", "STRING")
    RETURN_NAMES = ("image", "restored_faces", "original_faces", "mask", "report")
    OUTPUT_TOOLTIPS = (
        "The image with its faces restored.",
        "The restored faces, aligned, in one batch; one black picture where there is none.",
        "The same faces before restoring.",
        "How much of each pixel was replaced.",
        "One line for each face found: restored, or skipped and why, with identity scores.",
    )
    SEARCH_ALIASES = ["codeformer", "face restoration", "restore face", "fix face", "face enhance", "gfpgan", "reactor"]

    def __init__(self) -> None:
        self._kept = Kept()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        detectors = folders.choices("detector")
        return {
            "required": {
                "model": ("ID_CODEFORMER", {"tooltip": "From Load ID-CodeFormer."}),
                "image": ("IMAGE", {"tooltip": "One picture, or the frames of a video in one batch."}),
                "fidelity": (
                    "FLOAT",
                    {"default": 0.8, "min": 0.0, "max": 1.0, "step": 0.05, "round": 0.001, "display": "slider",
                     "tooltip": "CodeFormer's w. 1 stays closest to the input; 0 is cleanest, and freest to change "
                     "the person."},
                ),
                "visibility": (
                    "FLOAT",
                    {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05, "round": 0.001, "display": "slider",
                     "tooltip": "How much of the restored face is blended over the original one."},
                ),
                "upscale_factor": (
                    "FLOAT",
                    {"default": 1.0, "min": 0.25, "max": 8.0, "step": 0.25, "round": 0.01,
                     "tooltip": "Size of the output relative to the input. The background is enlarged by "
                     "'upscale_model', or bicubic without it."},
                ),
                "face_upsample": (
                    "BOOLEAN",
                    {"default": False,
                     "tooltip": "Enlarge the restored faces with 'upscale_model' too before they are put back."},
                ),
                "paste_classes": (
                    list(PASTE_CLASSES),
                    {"default": "automatic",
                     "tooltip": "Which part of the restored square is put back. automatic: face and hair. "
                     "The built-in parser finds the parts, or ParseNet where its file is in models/facedetection."},
                ),
                "colour_match": (
                    "BOOLEAN",
                    {"default": True,
                     "tooltip": "Give the restored face the colours of the input face, as 'colour' says. Off: the "
                     "network's own colours."},
                ),
                "gray_mode": (
                    ["auto", "force", "off"],
                    {"default": "auto",
                     "tooltip": "auto keeps faces of black-and-white and tinted pictures without colour; force does so "
                     "for all; off leaves the colours that the network makes."},
                ),
                "border": (
                    ["constant", "reflect"],
                    {"default": "reflect",
                     "tooltip": "What the network sees beyond the edge of the picture: reflect mirrors the picture; "
                     "constant is the reference's grey, which shows in faces that the edge cuts."},
                ),
                "when_no_face": (
                    ["pass", "error"],
                    {"default": "pass", "tooltip": "No face in any frame: pass the image on, or stop with an error."},
                ),
            },
            "optional": {
                "faces": ("FACES", {"tooltip": "From Detect Faces of the same image. Without it all are restored."}),
                "upscale_model": ("UPSCALE_MODEL", {"tooltip": "Enlarges the background (and faces: face_upsample)."}),
                "mask": ("MASK", {"tooltip": "Only here anything changes. One mask for all frames, or one for each."}),
                "reference": (
                    "IMAGE",
                    {"tooltip": "Photos of the person. The report then also says how like them each face was before "
                     "and after."},
                ),
                "min_identity": (
                    "FLOAT",
                    {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01, "round": 0.001,
                     "tooltip": "A restored face less like the input face than this (cosine similarity) is not put "
                     "back. 0: all are."},
                ),
                "colour": (
                    ["low_band", "adain", "off"],
                    {"default": "low_band",
                     "tooltip": "low_band: the broad colours of the face stay those of the input, and of one that is "
                     "hardly degraded all that it shows. adain: only the network's own match, as in the reference. "
                     "off: neither."},
                ),
                "person": (
                    "ID_PERSON",
                    {"tooltip": "From Load Person. Faces that are this person are guided nearer to the photos; "
                     "strangers are not. The report says what was done to each, and which recogniser judges."},
                ),
                "guidance_steps": (
                    "INT",
                    {"default": 15, "min": 0, "max": 200,
                     "tooltip": "With 'person': gradient steps for each face, 15 for most, 40 for tiny ones; it stops "
                     "by itself before. 0: the person is compared with, nothing is guided."},
                ),
                "guidance_strength": (
                    "FLOAT",
                    {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05, "round": 0.001, "display": "slider",
                     "tooltip": "With 'person': share of the way to the likeness that two photos of one person have."},
                ),
                "aligned": (
                    "BOOLEAN",
                    {"default": False,
                     "tooltip": "Every frame is one aligned face (as 'crops' of Detect Faces): nothing is detected or "
                     "pasted, and the image comes out in the size of the network."},
                ),
                "detector": (
                    detectors,
                    {"default": detectors[0], "tooltip": "Finds the faces where 'faces' is not linked."},
                ),
                "confidence": (
                    "FLOAT",
                    {"default": 0.8, "min": 0.0, "max": 1.0, "step": 0.01, "round": 0.001, "display": "slider",
                     "tooltip": "How sure the detector must be where 'faces' is not linked."},
                ),
                "frames": (
                    [PICTURES, VIDEO],
                    {"default": PICTURES,
                     "tooltip": "video: the batch is one clip at about 25 frames a second. Faces are followed through "
                     "it, aligned without shaking and restored without flicker."},
                ),
                "large_faces": (
                    ["auto", "restore", "keep", "skip"],
                    {"default": "auto",
                     "tooltip": "Faces that the network would soften. auto leaves those as they are that are as sharp "
                     "as it or sharper, or, not enlarged, as sharp as their size allows; skip leaves all larger ones; "
                     "keep restores under the face's own detail; restore replaces them."},
                ),
                "grain": (
                    ["auto", "on", "off"],
                    {"default": "auto",
                     "tooltip": "Put back grain, halftone and paper as measured around each face, so that it does not "
                     "show as a clean patch. auto: where the face is monochrome, and the dots of colour prints."},
                ),
                "identity_target": (
                    "FLOAT",
                    {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01, "round": 0.001,
                     "tooltip": "For each face the lowest fidelity at which it is this like the person, or like the "
                     "input without one (cosine similarity), in place of 'fidelity'. 0: off."},
                ),
                "fidelities": (
                    "STRING",
                    {"default": "",
                     "tooltip": "With 'faces': a fidelity for each face, in their order, as '0.3, 0.8', in place of "
                     "'fidelity'. Empty: one for all."},
                ),
            },
        }  # fmt: skip

    @classmethod
    def VALIDATE_INPUTS(cls, fidelities: Any = None) -> bool | str:
        try:
            found.fidelities_of(fidelities)
        except BadOption as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, detector: str | None = None, **_: Any) -> str:
        return folders.fingerprint_of("detector", detector or BUILT_IN_DETECTOR)

    @checked("fidelities")
    def restore(
        self, model: IDCodeFormerModel, image: Tensor, fidelity: float, visibility: float, upscale_factor: float,
        face_upsample: bool, paste_classes: str, colour_match: bool, gray_mode: str, border: str, when_no_face: str,
        faces: Any = None, upscale_model: Any = None, mask: Tensor | None = None, reference: Tensor | None = None,
        min_identity: float = 0.0, colour: str = "low_band", person: Any = None, guidance_steps: int = 15,
        guidance_strength: float = 1.0, aligned: bool = False, detector: str | None = None, confidence: float = 0.8,
        frames: str = PICTURES, large_faces: str = "auto", grain: str = "auto", identity_target: float = 0.0,
        fidelities: Any = "",
    ) -> dict[str, Any]:  # fmt: skip
        from ..idcodeformer.guidance.options import GuidanceOptions

        options = RestoreOptions(
            w=fidelity, adain=colour_match, upscale=upscale_factor, strength=visibility, face_upsample=face_upsample,
            border=border, gray=gray_mode, parse_classes=_classes(paste_classes), min_identity=min_identity,
            colour=colour if colour_match else "off", large_faces=large_faces, grain=grain,
            identity_target=identity_target,
        )  # fmt: skip
        asked = Request(
            convert.frames_of(image), options, paste_classes, faces, mask, reference, people_of(person),
            GuidanceOptions(guidance_steps, guidance_strength), upscale_model, aligned, detector, confidence,
            clip=frames == VIDEO, fidelities=found.fidelities_of(fidelities),
        )  # fmt: skip
        done = restored(model_of(model), asked, self._kept)
        if when_no_face == "error" and not done.found and not done.masked:
            raise BadImage(
                "No face was found. Lower 'confidence' or 'min_eye_distance' in Detect Faces, or set when_no_face "
                "to pass."
            )
        text = report.restoration(done, model, asked)
        shown = draw.before_and_after(done.before, done.after)
        ui = {"images": host.show_on_node([] if shown is None else [shown])}
        crops = (convert.joined(parts, model.config.img_size) for parts in (done.after, done.before))
        return {"ui": ui, "result": (done.image, *crops, done.mask, text)}


def _classes(choice: str) -> tuple[int, ...] | None:
    from ..idcodeformer.compositing.parsing import REFERENCE_CLASSES_WITHOUT_HAIR

    return {"face without hair": REFERENCE_CLASSES_WITHOUT_HAIR, "inner face": _INNER_FACE}.get(choice)
