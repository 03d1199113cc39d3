"""The Stable Diffusion WebUIs' door: face restorer, Extras entry, API and XYZ axes over the core."""
from __future__ import annotations

from typing import Any


def open_door() -> tuple[type, type | None]:
    """Register everything with the host that runs this; the classes of the Extras entry and of the infotext script.

    The second is None where the host has no face restorers (SD.Next). No model is loaded and no file is read.
    """
    from . import axes, extras, host, processing, restorer, settings
    from .models import Models

    models, jobs = Models(), processing.Jobs()
    host.on("ui_settings", settings.register)
    host.on("app_started", lambda _, app: _add_routes(app, models))
    host.on("script_unloaded", models.clear)
    entry = extras.entry_class(models)
    if not host.has_face_restorers():
        return entry, None
    restorer.register(restorer.FaceRestorer(models, jobs))
    host.on("script_unloaded", restorer.unregister)
    host.on("before_ui", axes.register)
    return entry, processing.script_class(jobs)


def _add_routes(app: Any, models: Any) -> None:
    from . import api  # here, because it needs FastAPI, which is there once the host has started

    api.register(app, models)
