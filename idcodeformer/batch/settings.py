"""What a run of restoring is asked, in one frozen value that can be sent to another process."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from ..errors import BadOption
from ..files.origin import fingerprint
from ..guidance.options import GuidanceOptions
from ..types import DetectOptions, RestoreOptions

FORMATS = ("png", "jpg", "webp")


@dataclass(frozen=True)
class ModelChoice:
    """Names or files of the networks, and where they run."""

    restorer: str = ""  # "": codeformer where it has been downloaded, else the built-in mini_id_codeformer
    detector: str = "retinaface_mobile0.25"
    recogniser: str = "mini_recogniser"  # "none": nothing is scored
    parser: str = "auto"  # "auto": ParseNet where it has been downloaded, else mini_parser; "none": no labels
    guide: str = ""  # recogniser that guides; "": another one than scores where there is one, else the same
    upscaler: str = ""  # of the background; "" or "none": interpolation
    upscaler_tile: int = 400  # px; 0: whole pictures
    device: str | None = None  # None: the best there is
    precision: str = "auto"


@dataclass(frozen=True)
class RestoreSettings:
    """What to do with each picture, which networks do it, and where results go."""

    options: RestoreOptions = field(default_factory=RestoreOptions)
    detect_options: DetectOptions = field(default_factory=DetectOptions)
    models: ModelChoice = field(default_factory=ModelChoice)
    references: tuple[str | Path | bytes, ...] = ()  # photos of the person: files or the bytes of files
    guidance: GuidanceOptions = field(default_factory=lambda: GuidanceOptions(steps=0))
    aligned: bool = False  # pictures are aligned crops of one face: no detection, no pasting
    out: Path | None = None  # folder of the results; None: results are handed back and no file is written
    format: str | None = None  # of FORMATS; None: PNG, and an animation keeps its own
    suffix: str = ""  # added to the names of results
    overwrite: bool = False
    skip_existing: bool = False
    save_crops: bool = False  # also write every face before and after
    compare: bool = False  # also write a sheet of before and after
    people: str | Path | None = None  # folder with a sub-folder of photos for each person, or a file made from one

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise BadOption(f"The format is {self.format!r}; choose one of {', '.join(FORMATS)}.")
        if set(self.suffix) & set("/\\\0"):
            raise BadOption(f"The suffix is {self.suffix!r}; it becomes part of file names, so leave out / and \\.")
        if self.guidance.steps and not self.references and self.people is None:
            raise BadOption("Guidance needs photos of the person; give references or people, or guidance steps of 0.")
        if self.references and self.people is not None:
            raise BadOption("Reference photos and a gallery of people were given; give one of them.")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values; photos that were given as bytes are named by their fingerprint."""
        return _plain(self)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return f"bytes:{fingerprint(value)}"
    return str(value) if isinstance(value, Path) else value
