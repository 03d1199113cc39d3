"""Fetching a weight file: resumed where it broke off, checked before it gets its name, never half there."""
from __future__ import annotations

import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from http.client import HTTPException, IncompleteRead
from pathlib import Path

from ..errors import CorruptWeights, DownloadError, MissingWeights
from ..types import Progress
from .registry import Weight, by_name

TIMEOUT = 30  # seconds without a byte
TRIES = 3  # connections per URL that may break off
PIECE = 1 << 18  # bytes
PAUSE = 1.0  # seconds before the second try; each further one waits as much longer


def download(name: str, folder: str | os.PathLike | None = None, progress: Progress | None = None) -> Path:
    """Fetch a registry file into ``folder`` (``$IDCODEFORMER_MODELS``, else the user cache).

    Returns its path. A file that is there and has the registered hash is left alone. ``progress(done, total, what)``
    counts bytes (total 0 where unknown) and may raise to cancel; a later call resumes. Raises DownloadError (no
    network: with file, URL and folder), CorruptWeights (wrong bytes: both hashes, the file kept aside as .rejected)
    and MissingWeights.
    """
    from .store import EMBEDDED, download_folder

    weight = by_name(name)
    if weight.embedded:
        if (EMBEDDED / weight.file).is_file():
            return EMBEDDED / weight.file
        raise MissingWeights(f"{weight.file} comes with this package and is not published elsewhere.")
    target = Path(folder) if folder is not None else download_folder()
    if not weight.urls and not weight.archive:
        raise DownloadError(
            f"{weight.file} has no direct link: get it from {weight.page} ({weight.terms}) and put it into {target}."
        )
    path = target / weight.file
    if path.is_file():
        _check(path, path, weight.bytes, weight.sha256, found=True)
        return path
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise DownloadError(f"{weight.file} from {weight.source} cannot be put into {target}: {exc.strerror}.") from exc
    if weight.archive:
        return _from_archive(weight, path, progress)
    partial = path.with_name(path.name + ".partial")
    _fetch_any(weight.urls, partial, weight.bytes, path, progress)
    _check(partial, path, weight.bytes, weight.sha256)
    os.replace(partial, path)
    return path


def _from_archive(weight: Weight, path: Path, progress: Progress | None) -> Path:
    archive = weight.archive
    assert archive is not None
    partial = path.with_name(archive.url.rsplit("/", 1)[1] + ".partial")
    _fetch_any((archive.url,), partial, archive.bytes, path, progress)
    _check(partial, partial.with_suffix(""), archive.bytes, archive.sha256)
    taken = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial) as bundle:
        member = next((m for m in bundle.namelist() if m.rsplit("/", 1)[-1] in (weight.file, *weight.aliases)), None)
        if member is None:
            raise CorruptWeights(f"{archive.url} does not hold {weight.file}.")
        with bundle.open(member) as source, taken.open("wb") as out:
            shutil.copyfileobj(source, out, PIECE)
    _check(taken, path, weight.bytes, weight.sha256)
    os.replace(taken, path)
    partial.unlink()
    return path


def _fetch_any(urls: tuple[str, ...], partial: Path, size: int | None, path: Path, progress: Progress | None) -> None:
    """The first URL that delivers; every failure is told."""
    failures = []
    for url in urls:
        try:
            return _fetch(url, partial, size, path.name, progress)
        except (OSError, HTTPException, ValueError) as exc:  # URLError, timeouts and broken connections are OSErrors
            failures.append(f"{url} ({getattr(exc, 'reason', None) or exc})")
    tried = " or ".join(failures)
    raise DownloadError(f"{path.name} could not be downloaded from {tried}; put it into {path.parent} yourself.")


def _fetch(url: str, partial: Path, size: int | None, what: str, progress: Progress | None) -> None:
    for attempt in range(TRIES):
        done = partial.stat().st_size if partial.exists() else 0
        if size is not None and done >= size:
            return  # all there; whether it is right, the hash says
        total, whole = _receive(url, partial, done, size, what, progress)
        now = partial.stat().st_size
        if whole and (total is None or now >= total):
            return
        if attempt == TRIES - 1:
            raise OSError(f"broke off after {now} of {total or 'unknown'} bytes; the next try resumes there")
        time.sleep(PAUSE * (attempt + 1))  # a server that has just failed rarely answers at once


def _receive(
    url: str, partial: Path, done: int, size: int | None, what: str, progress: Progress | None
) -> tuple[int | None, bool]:
    """One connection: append to ``partial`` from byte ``done`` on.

    Returns the total in bytes (None where the server did not say) and whether the transfer ended as it should.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError("only http and https are fetched")
    request = urllib.request.Request(url, headers={"User-Agent": "idcodeformer"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310 - scheme checked above
    except urllib.error.HTTPError as exc:
        if exc.code != 416 or not done:
            raise
        partial.unlink()  # the server has nothing beyond this: it is not the same file
        return _receive(url, partial, 0, size, what, progress)
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            raise OSError(f"the server answered with another range than bytes {done}-")
        done = done if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        _refuse_full_disk(partial, (size or total or 0) - done)
        with partial.open("ab" if resumed else "wb") as out:
            while True:
                whole, piece = _piece(response)
                if whole and not piece:
                    return total, True
                out.write(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, size or total or 0, what)
                if not whole:
                    return total if total is not None else size, False  # the caller resumes


def _piece(response) -> tuple[bool, bytes]:
    """The next bytes, and False where the connection broke off behind them."""
    try:
        return True, response.read(PIECE)
    except IncompleteRead as exc:
        return False, exc.partial
    except (OSError, HTTPException):
        return False, b""


def _refuse_full_disk(partial: Path, needed: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if needed > free:
        raise DownloadError(f"{partial.parent} has {free} bytes free, {needed} are needed.")


def _check(file: Path, path: Path, size: int | None, sha256: str | None, found: bool = False) -> None:
    """Size and hash of a file that is to be used as ``path``. A wrong one is moved aside, but not one that was
    ``found`` there: it is the user's."""
    from .reading import refuse_impostors
    from .store import sha256_of

    actual = file.stat().st_size
    if sha256 is None:
        with file.open("rb") as stream:
            refuse_impostors(file, stream.read(512))
    digest = sha256_of(file)
    if (sha256 is None or digest == sha256) and (size is None or actual == size):
        return
    if found:
        raise CorruptWeights(
            f"{path} is there already and is not the published file: sha256 {digest} ({actual} bytes), registered "
            f"{sha256 or 'unknown'} ({size or 'unknown'} bytes). Move it away, or name another folder."
        )
    aside = path.with_name(path.name + ".rejected")
    os.replace(file, aside)
    raise CorruptWeights(
        f"{path.name} is not the published file: sha256 {digest} ({actual} bytes), registered {sha256 or 'unknown'} "
        f"({size or 'unknown'} bytes). It is kept as {aside} and not used; download it again."
    )
