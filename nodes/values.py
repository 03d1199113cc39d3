"""One check of what comes in for widgets: the host looks at typed values alone, and lets NaN pass there too."""
from __future__ import annotations

from functools import wraps
from numbers import Real
from typing import Any, Callable

from ..idcodeformer.errors import BadOption


def checked(*apart: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For a node's function: it raises BadOption, in the names of its inputs, for what its widgets would not take.

    Links are not checked by the host: a switch may hand on None, a calculator NaN, a text node "0.5". Inputs named in
    ``apart`` are left to the node.
    """

    def around(run: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(run)
        def call(self: Any, *args: Any, **given: Any) -> Any:
            specs = {name: spec for group in type(self).INPUT_TYPES().values() for name, spec in group.items()}
            for name in given.keys() & specs.keys() - set(apart):
                if getattr(self, "INPUT_IS_LIST", False):
                    given[name] = [_checked(name, value, *specs[name]) for value in given[name]]
                else:
                    given[name] = _checked(name, given[name], *specs[name])
            return run(self, *args, **given)

        return call

    return around


def _checked(name: str, value: Any, kind: Any, options: dict[str, Any]) -> Any:
    """``value`` as the widget hands it on: numbers come in many kinds. What is no widget's passes. Raises BadOption."""
    said = f"'{name}' is {_shown(value)}; "
    if kind in ("FLOAT", "INT"):
        low, high = options["min"], options["max"]
        if not isinstance(value, Real):
            raise BadOption(f"{said}link a number from {low:g} to {high:g}, or unlink it.")
        if not low <= value <= high:  # NaN as well
            raise BadOption(f"{said}it must lie between {low:g} and {high:g}.")
        if kind == "INT" and value != int(value):
            raise BadOption(f"{said}it must be a whole number.")
        return int(value) if kind == "INT" else float(value)
    if kind == "BOOLEAN" and not isinstance(value, (bool, int)):
        raise BadOption(f"{said}link true or false, or unlink it.")
    if kind == "STRING" and not isinstance(value, str):
        raise BadOption(f"{said}link a text, or unlink it.")
    if type(kind) is list and value not in kind:
        raise BadOption(f"{said}choose one of {', '.join(map(str, kind))}.")
    if isinstance(kind, list) and not isinstance(value, str):  # lists of files know better what is there
        raise BadOption(f"{said}choose one from the list.")
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(value) if isinstance(value, (str, Real)) else f"a {type(value).__name__}"
    return text if len(text) < 60 else text[:57] + "..."
