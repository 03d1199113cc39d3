"""ID-CodeFormer: blind face restoration that keeps the person."""
from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name lives. They are imported on first use, so that `import idcodeformer` stays cheap.
_HOMES = {
    "load_restorer": "restoration.codeformer",
    "load_detector": "detection",
    "load_recogniser": "identity.recogniser",
    "load_parser": "compositing.parsing",
    "FacePipeline": "pipeline",
    "CodeFormerRestorer": "restoration.codeformer",
    "IdentityRecogniser": "identity.recogniser",
    "cosine": "identity.recogniser",
    "match": "identity.recogniser",
    "DetectOptions": "types",
    "RestoreOptions": "types",
    "Restoration": "types",
    "FaceReport": "types",
    "Face": "types",
    "Crops": "types",
    "Embeddings": "types",
    "IDCodeFormerError": "errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
