"""Where the result of a file goes."""
from __future__ import annotations

from pathlib import Path

from ..errors import BadImage, BadOption
from ..files.origin import fingerprint, origin_of
from ..files.reading import Picture
from .outcome import Outcome
from .settings import RestoreSettings


def out_of(settings: RestoreSettings) -> Path:
    """The output folder. Raises BadOption where there is none."""
    if settings.out is None:
        raise BadOption("No output folder is named; give settings with out=, or use attempt_bytes.")
    return settings.out


def free_name(settings: RestoreSettings, folder: str, source: Path, target: Path, outcome: Outcome) -> Path | None:
    """Where the result goes, None where it is there already; found out before any work is done.

    A result that bears the mark of another source (grandma.jpg where this is grandma.png) is not this one's.
    """
    out = out_of(settings)
    endings = [f".{settings.format}"] if settings.format else dict.fromkeys([".png", source.suffix.lower()])
    own = fingerprint(source) if settings.skip_existing and source.is_file() else ""
    ending = source.suffix.lstrip(".") or "file"
    names = [target.name, f"{target.name}_{ending}", *(f"{target.name}_{ending}_{n}" for n in range(2, 100))]
    for name in names:
        files = [out / folder / target.with_name(f"{name}{settings.suffix}{end}") for end in endings]
        there = [file for file in files if file.exists()]
        if not there or settings.overwrite:
            return target.with_name(name)
        if not settings.skip_existing:
            raise BadImage(f"{there[0]} exists already; add --overwrite or --skip-existing, or another output.")
        if origin_of(there[0]) in ("", own):
            outcome.status, outcome.output = "kept", str(there[0])
            return None
    raise BadImage(f"{source}: a hundred results bear this name; name another output folder.")


def ending_of(settings: RestoreSettings, picture: Picture) -> str:
    """The ending of a result, with its dot."""
    if settings.format:
        return f".{settings.format}"
    return picture.suffix if len(picture.frames) > 1 else ".png"


def result_file(settings: RestoreSettings, folder: str, free: Path, picture: Picture) -> Path:
    """The file of a result whose ``free_name`` is known."""
    return out_of(settings) / folder / free.with_name(f"{free.name}{settings.suffix}{ending_of(settings, picture)}")
