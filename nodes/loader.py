"""Load ID-CodeFormer."""
from __future__ import annotations

from typing import Any

from ..idcodeformer.errors import BadOption
from . import folders, host
from .managed import NO_RECOGNISER, IDCodeFormerModel, allowed
from .values import checked


class Precisions(list):
    """All precisions are listed on every machine, for workflows travel; what this one cannot do is refused with why."""

    _refused = ""

    def __contains__(self, value: object) -> bool:
        from ..idcodeformer.restoration.engine.execution import choose_precision

        if not list.__contains__(self, value):
            return False
        try:
            choose_precision(host.compute_device(), allowed(str(value)))
        except BadOption as error:
            self._refused = str(error)
        return not self._refused

    def __str__(self) -> str:
        return self._refused or repr(list(self))


class LoadIDCodeFormer:
    """Thin: reads what the combos name; see managed.IDCodeFormerModel."""

    DESCRIPTION = (
        "Loads a CodeFormer for Restore Faces, and the recogniser that scores how much a face stays the same person. "
        "Works at once with the small models built into the pack. For 512 px put codeformer.pth (or an export of our "
        "training) into models/facerestore_models."
    )
    CATEGORY = "face/ID-CodeFormer"
    FUNCTION = "load"
    RETURN_TYPES = ("ID_CODEFORMER",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("Restorer and recogniser, for Restore Faces, Detect Faces and Identity Score.",)
    SEARCH_ALIASES = ["codeformer", "face restore model loader", "load face restoration model", "arcface"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        models, recognisers = folders.choices("restorer"), folders.choices("recogniser", NO_RECOGNISER)
        return {
            "required": {
                "model_name": (
                    models,
                    {
                        "default": models[0],
                        "tooltip": "A CodeFormer (.pth or .safetensors) in models/facerestore_models or "
                        "models/idcodeformer, or one of the small models built into the pack, which suit faces up to "
                        "about 128 px.",
                    },
                ),
                "precision": (
                    Precisions(["auto", "fp32", "bf16", "fp16"]),
                    {
                        "default": "auto",
                        "tooltip": "auto takes the fastest that is exact enough on this device. Half precision is used "
                        "for the image generator only, so that the face that is chosen stays the same.",
                    },
                ),
                "recogniser": (
                    recognisers,
                    {
                        "default": recognisers[0],
                        "tooltip": "Measures identity: the built-in one, or an ArcFace file (w600k_r50.onnx, "
                        "arcface_torch .pth) in models/insightface or models/idcodeformer. none: no scores.",
                    },
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, model_name: str | None = None, recogniser: str | None = None, **_: Any) -> str:
        named = [folders.fingerprint_of("restorer", model_name), folders.fingerprint_of("recogniser", recogniser)]
        return "\n".join([*named, folders.fingerprint(folders.parser_file())])

    @checked()
    def load(self, model_name: str, precision: str, recogniser: str) -> dict[str, Any]:
        with host.packages():
            model = IDCodeFormerModel(model_name, precision, recogniser)
        return {"ui": {"text": folders.hint()}, "result": (model,)}
