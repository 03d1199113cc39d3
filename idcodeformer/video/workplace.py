"""Where a clip is worked on until its result is there, and results that appear whole or not at all."""
from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BadClip, BadImage
from ..files.writing import make_folder


def write_copy(source: Path, file: Path, overwrite: bool) -> None:
    """A copy of ``source`` that appears whole or not at all."""
    if file.exists() and not overwrite:
        raise BadImage(f"{file} exists already; add --overwrite, or another output.")
    temporary = file.with_name(f".{file.stem[:40]}.{hashlib.sha256(str(source).encode()).hexdigest()[:12]}.partial")
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(file)
    except OSError as error:
        raise BadImage(f"{file} cannot be written ({error.strerror}); free space or name another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def workplace(file: Path, key: str) -> Iterator[Path]:
    """The folder of one piece of work, held against other runs; the system lets go of it when a run ends, however."""
    folder = file.with_name(f".{file.stem[:40]}.{key}.parts")
    make_folder(folder)
    with (folder / "lock").open("ab") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError as error:
            raise BadClip(f"{file} is being made by another run; wait for it, or end it.") from error
        yield folder
