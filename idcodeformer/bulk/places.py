"""Folders and URLs: what lies in a source, and a target in which files appear whole or not at all."""
from __future__ import annotations

import errno
import posixpath
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import BadImage, BadOption, BadTarget, first_line

_PUT_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "memory"}  # an object appears when it is complete


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a folder or URL, and the path in it. Raises BadOption, naming a package to install."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise BadOption(f"{url} needs another package ({error}).") from error
    except ValueError as error:
        raise BadOption(f"{url} is no address that is known ({error}); use s3://, gs://, az:// or a folder.") from error


def read_url(url: str) -> bytes:
    """The bytes of one file. Raises BadImage with the reason."""
    try:
        if "://" not in url:
            return Path(url).read_bytes()
        fs, path = filesystem(url)
        return fs.cat_file(path)
    except BadOption as error:
        raise BadImage(str(error)) from error
    except Exception as error:  # every store has its own kinds
        told = first_line(error)[:200]
        told = "not found" if isinstance(error, FileNotFoundError) else told
        raise BadImage(f"{url} cannot be read ({told}); check that it is there, and the rights.") from error


def system_error(error: BaseException | None) -> OSError | None:
    """The system's error behind ``error``, None where there is none."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error


class Place:
    """A target: names below one folder or URL."""

    def __init__(self, url: str):
        self.url = url
        self.fs, self.root = filesystem(url)
        protocol = self.fs.protocol
        self.kind = protocol if isinstance(protocol, str) else protocol[0]

    def path(self, name: str) -> str:
        """The filesystem's path of ``name``."""
        return posixpath.join(self.root, name) if name else self.root

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole, replacing what is there. Raises BadTarget."""
        from ..files.writing import write_bytes

        try:
            if self.kind in ("file", "local"):
                write_bytes(self.path(name), data, overwrite=True)
            elif self.kind in _PUT_WHOLE:
                self.fs.pipe_file(self.path(name), data)
            else:
                self._write_beside(self.path(name), data)
        except Exception as error:  # every store has its own kinds
            raise BadTarget(self._told(error)) from error

    def _write_beside(self, path: str, data: bytes) -> None:
        """To a file beside it, then renamed: for servers that show files while they grow."""
        folder, _, stem = path.rpartition("/")
        beside = f"{folder}/.{stem[:40]}.{secrets.token_hex(6)}.partial"
        self.fs.makedirs(folder, exist_ok=True)
        try:
            self.fs.pipe_file(beside, data)
            self.fs.mv(beside, path)
        except BaseException:
            if self.fs.exists(beside):
                self.fs.rm_file(beside)
            raise

    def _told(self, error: Exception) -> str:
        cause = system_error(error)
        full = cause is not None and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else first_line(cause or error)[:200]
        return f"{self.url} cannot be written: {why}. Mend that and run the same line again: it goes on from here."

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None where there is none. Raises BadTarget."""
        try:
            return self.fs.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        except Exception as error:  # every store has its own kinds
            raise BadTarget(f"{self.url} cannot be read ({error}); check the address and the rights.") from error

    def exists(self, name: str) -> bool:
        return self.fs.exists(self.path(name))

    def names(self, folder: str) -> list[str]:
        """The files directly and deeper in ``folder``, relative to this place, sorted."""
        self.fs.invalidate_cache()
        if not self.fs.exists(self.path(folder)):
            return []
        cut = len(self.root.rstrip("/")) + 1
        return sorted(path[cut:] for path in self.fs.find(self.path(folder)))

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone already is as good."""
        try:
            self.fs.rm_file(self.path(name))
        except FileNotFoundError:
            return

    def remove_folder(self, name: str) -> None:
        if self.fs.exists(self.path(name)):
            self.fs.rm(self.path(name), recursive=True)

    def url_of(self, name: str) -> str:
        """Where a person finds ``name``."""
        return posixpath.join(self.url.rstrip("/"), name)


def walk(fs: Any, root: str) -> Iterator[tuple[str, list[str]]]:
    """(folder, its file names, sorted) of everything below ``root``, folder by folder, without hidden ones."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        entries = sorted(fs.ls(folder, detail=True), key=lambda entry: entry["name"], reverse=True)
        base = folder.rstrip("/")
        names = [e["name"] for e in entries if e["type"] == "file" and e["name"].rstrip("/") != base]
        yield folder, [posixpath.basename(name) for name in reversed(names)]
        folders = [e["name"].rstrip("/") for e in entries if e["type"] == "directory"]
        waiting += [f for f in folders if f != base and not posixpath.basename(f).startswith((".", "__MACOSX"))]
