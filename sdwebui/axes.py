"""Axes of the X/Y/Z plot script: fidelity and model of the face restorer."""
from __future__ import annotations

from typing import Any, Callable

from . import files, host
from .job import NAME
from .settings import PREFIX


def register() -> None:
    """Add our axes to the host's list, once."""
    module = host.xyz_module()
    if module is None or any(axis.label.startswith(f"[{NAME}]") for axis in module.axis_options):
        return
    fidelity = _setting({f"{PREFIX}host_weight": False}, f"{PREFIX}fidelity")
    module.axis_options.append(module.AxisOption(f"[{NAME}] fidelity", float, fidelity))
    model = _setting({}, f"{PREFIX}model")
    choices = {"choices": lambda: files.choices("restorer"), "cost": 0.5}
    module.axis_options.append(module.AxisOption(f"[{NAME}] model", str, model, **choices))


def _setting(others: dict[str, Any], name: str) -> Callable[[Any, Any, Any], None]:
    """An axis that restores faces with our restorer and one option set to the value of the cell."""

    def apply(p: Any, x: Any, xs: Any) -> None:
        p.restore_faces = True
        p.override_settings.update({"face_restoration_model": NAME, **others, name: x})

    return apply
