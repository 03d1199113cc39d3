"""Pictures in, restored pictures out, as settings say: what command line, WebUI and bulk runs share."""
from __future__ import annotations

from .job import COMPARE, CROPPED, FINAL, RESTORED, Outcome, Restored, RestoreJob
from .settings import ModelChoice, RestoreSettings

__all__ = [
    "COMPARE", "CROPPED", "FINAL", "RESTORED", "ModelChoice", "Outcome", "RestoreJob", "RestoreSettings", "Restored",
]  # fmt: skip
