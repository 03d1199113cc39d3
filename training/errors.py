"""What training can refuse. All are ``IDCodeFormerError``: the command line prints their sentence and exits with 2."""
from __future__ import annotations

from idcodeformer.errors import IDCodeFormerError


class TrainingError(IDCodeFormerError):
    """Base of the errors of this package."""


class ConfigError(TrainingError, ValueError):
    """A key or a value in a configuration is wrong, or a file it names does not fit; the message names it."""


class DataError(TrainingError, RuntimeError):
    """Nothing to train on; the message says which folder or file."""


class NotFinite(TrainingError, RuntimeError):
    """The loss or the weights became NaN or infinite; names step, files and last good checkpoint."""
