"""The errors a user can meet. Every message is a short sentence with a remedy: which file, which folder, which URL."""
from __future__ import annotations


class IDCodeFormerError(Exception):
    """Base of all errors raised on purpose by this package."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class MissingWeights(IDCodeFormerError):
    """A weight file is in none of the places searched. The message names file, URL and folder."""


class UnsupportedWeights(IDCodeFormerError):
    """The file is readable, but it is not (a known size of) the network asked for."""


class CorruptWeights(IDCodeFormerError):
    """The file is truncated, altered, not a weight file at all, or its hash differs from the registry's."""


class UnsafeWeights(CorruptWeights):
    """A pickle that asks for anything but tensors. It is never executed; the message names the offending global."""


class DownloadError(IDCodeFormerError):
    """No network, or the server refused. The message names file, URL and destination folder."""


class MissingPackage(IDCodeFormerError):
    """An optional package is not installed; the message says which to install."""


class BadClip(IDCodeFormerError):
    """A file is not a clip that can be restored, or a clip cannot be written."""


class BadImage(IDCodeFormerError):
    """A file or a tensor is not a picture that can be restored."""


class BadOption(IDCodeFormerError, ValueError):
    """An option is outside its range; the message gives the range."""


class BadTarget(IDCodeFormerError):
    """The place where a bulk run's results go cannot be read or written, or holds those of other options."""


class WorkersFailed(IDCodeFormerError):
    """The workers of a bulk run cannot start or cannot go on; what is done is kept."""


class OutOfMemory(IDCodeFormerError):
    """Not even one face fits; the message says what to lower."""


class NoDevice(IDCodeFormerError):
    """The device asked for does not exist here."""
