"""Notes at the target of what is in work, so that a picture that kills its worker is known when it comes again."""
from __future__ import annotations

from collections.abc import Sequence

from .listing import digest
from .manifest import WORK
from .places import Place


class Attempts:
    """Notes of one run. A note that is there when its work begins was left by a worker that died."""

    def __init__(self, place: Place, run: str):
        self.place, self.folder = place, f"{WORK}/attempts-{run}"

    def _name(self, keys: Sequence[str]) -> str:
        return f"{self.folder}/{digest(chr(10).join(keys))}"

    def begin(self, keys: Sequence[str]) -> bool:
        """Note that these pictures are in work together; True where a worker died over them before."""
        again = self.place.exists(self._name(keys))
        if not again:
            self.place.write(self._name(keys), b"")
        return again

    def end(self, keys: Sequence[str]) -> None:
        self.place.remove(self._name(keys))
