"""The report of a run: valid JSON after every file, so that a killed run loses nothing and a later one goes on."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import BadImage, BadOption
from .finding import CLIPS, EXTENSIONS
from .writing import make_folder, write_bytes

_END = b"\n]}\n"


def to_json(value: Any, **settings: Any) -> bytes:
    """UTF-8; the bytes of a file name that are no text become escapes that Python reads back."""
    return json.dumps(value, ensure_ascii=False, **settings).encode("utf-8", "backslashreplace")


class RunReport:
    """``header`` and the list "files", one entry a line. ``add`` costs the same for the first and the last entry."""

    def __init__(self, path: Path, header: dict[str, Any], earlier: list[dict[str, Any]]):
        self.path, self.earlier = path, earlier
        self.header = {name: value for name, value in header.items() if name != "files"}  # the list comes last
        self.added: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None

    def add(self, entry: dict[str, Any]) -> None:
        """Append one entry to the file. Raises BadImage where it cannot be written."""
        same = [
            old
            for old in self.earlier
            if (old["input"], old["output"]) == (entry["input"], entry["output"]) and old["status"] != "failed"
        ]
        if entry["status"] == "kept" and same:
            return  # the earlier entry tells what became of the faces when the result was made
        try:
            if self._file is None:
                write_bytes(self.path, self._text(self.earlier), overwrite=True)
                self._file = self.path.open("r+b")
            self._file.seek(-len(_END), 2)
            self._file.write((b",\n" if self.earlier or self.added else b"\n") + to_json(entry) + _END)
            self._file.flush()
        except OSError as error:
            raise BadImage(f"{self.path} cannot be written ({error.strerror}); free space.") from error
        self.added.append(entry)

    def close(self) -> None:
        """Write the report anew, without entries that later ones replace. Nothing where no file was done."""
        if self._file is not None:
            self._file.close()
            self._file = None
            write_bytes(self.path, self._text(_last_of_each(self.earlier + self.added)), overwrite=True)

    def _text(self, entries: list[dict[str, Any]]) -> bytes:
        head = to_json(self.header | {"files": []})[: -len(b"]}")]
        return head + b",".join(b"\n" + to_json(entry) for entry in entries) + _END


def read_report(path: Path) -> list[dict[str, Any]]:
    """The entries of an earlier report, each input's results once. A torn last line is left out.

    Raises BadImage where the file is something else.
    """
    other = BadImage(f"{path} is no report of this command; name another file.")
    text = path.read_bytes().decode("utf-8", "replace")
    while True:
        try:
            entries = json.loads(text)["files"]
            break
        except RecursionError:
            raise other from None
        except (ValueError, KeyError, TypeError):
            cut = text.rstrip("]}\n ,").rfind("\n{")
            if '"files": [' not in text[: max(cut, 0)]:
                raise other from None
            text = text[:cut].rstrip(",\n") + "\n]}"
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise other
    return _last_of_each(entries)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(k), str) for k in ("input", "output", "status"))


def _last_of_each(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = {(entry["input"], entry["output"]): entry for entry in entries}
    done = {entry["input"] for entry in entries if entry["status"] != "failed"}
    return [entry for entry in last.values() if entry["status"] != "failed" or entry["input"] not in done]


def check_target(path: Path, overwrite: bool, resume: bool) -> list[dict[str, Any]]:
    """Earlier entries to go on with. Raises BadImage for a report that must not be replaced.

    What is no JSON is never replaced, whatever is asked: a photo may have been named by mistake.
    """
    if path.suffix.lower() in EXTENSIONS | CLIPS:
        raise BadOption(f"The report {path} would bear the name of a picture or clip; name it like report.json.")
    make_folder(path.parent)
    if not path.exists():
        return []
    if not path.is_file():
        raise BadImage(f"{path} is a folder or a device, not a report; name another file, or - for standard output.")
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip()[:1]
    except OSError as error:
        raise BadImage(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    if not start:  # a run that died before its first line
        return []
    if resume and not overwrite:
        return read_report(path)
    if not overwrite:
        raise BadImage(f"{path} exists already; add --overwrite or --skip-existing, or name another report.")
    if start not in b"{[":
        raise BadImage(f"{path} is no report and is not replaced; name another file.")
    return []
