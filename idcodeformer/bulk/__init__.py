"""Whole archives: pictures from folders, lists and object stores through many workers, every outcome in a manifest."""
from __future__ import annotations

from .settings import BulkSettings

__all__ = ["BulkSettings"]
