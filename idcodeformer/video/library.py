"""PyAV, imported where it is needed."""
from __future__ import annotations

from typing import Any

from ..errors import MissingPackage


def pyav() -> Any:
    """The module ``av``. Raises MissingPackage where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise MissingPackage(f"Clips need PyAV, which is not there ({error}); run: pip install av") from error
    av.logging.set_level(None)  # what FFmpeg says on its own is not what a user is told
    return av
