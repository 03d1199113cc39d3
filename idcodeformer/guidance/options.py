"""What is asked of guidance."""
from __future__ import annotations

from dataclasses import dataclass

from ..errors import BadOption


@dataclass(frozen=True)
class GuidanceOptions:
    """How far and how a face is guided."""

    steps: int = 15  # gradient steps; 0 leaves faces unguided
    strength: float = 1.0  # 0..1, share of the way from the unguided likeness to that of two photos of one person
    rate: float = 0.03  # size of a step, in units of the code features' own spread
    consistency: float = 1000.0  # weight of staying with the unguided face at the scale that the input shows
    force: bool = False  # guide although the face does not look like the person

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise BadOption(f"Guidance steps are {self.steps}; give 0 for none, 15 for most faces, 40 for tiny ones.")
        for name, low, high in (("strength", 0, 1), ("rate", 1e-6, 1), ("consistency", 0, 1e9)):
            if not low <= getattr(self, name) <= high:
                raise BadOption(f"Guidance {name} is {getattr(self, name)}; it must lie between {low:g} and {high:g}.")
