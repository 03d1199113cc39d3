"""Which generation runs now, so that scores and errors of its faces reach its infotext and its page."""
from __future__ import annotations

import threading
import weakref
from typing import Any

from . import host
from .job import NAME


class Jobs:
    """The running generations of each thread; an inner one (a detailer's, say) hides the outer while it lasts."""

    def __init__(self) -> None:
        self._local = threading.local()

    def _stack(self) -> list[weakref.ref]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        return self._local.stack

    def begin(self, p: Any) -> None:
        """``p`` (the host's StableDiffusionProcessing) starts. Held weakly: it may end by an error."""
        self._stack().append(weakref.ref(p))

    def end(self, p: Any) -> None:
        """``p`` is through."""
        still = [(held, held()) for held in self._stack()]  # by identity: the host's class compares field by field
        self._local.stack = [held for held, other in still if other is not None and other is not p]

    def running(self) -> Any:
        """The innermost generation of this thread; None outside of any."""
        alive = [p for held in self._stack() if (p := held()) is not None]
        return alive[-1] if alive else None

    def tell(self, p: Any, texts: dict[str, str], comment: bool = False) -> None:
        """Put ``texts`` into the infotext of the picture at work, not the last one's; a comment is shown too."""
        if p is None:
            return
        known = p.extra_generation_params
        for key in [key for key in known if key.startswith(NAME)]:
            del known[key]
        known.update(texts)
        if comment:
            p.comment(f"{NAME}: {texts[NAME]}")


def script_class(jobs: Jobs) -> type:
    """The host's script that always runs and tells ``jobs`` what runs. It has no controls."""
    base, always = host.script_base()

    class ScoresInInfotext(base):
        create_group = False

        def title(self) -> str:
            return f"{NAME} scores"

        def show(self, is_img2img: bool) -> Any:
            return always

        def process(self, p: Any, *args: Any) -> None:
            jobs.begin(p)

        def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
            jobs.end(p)

    return ScoresInInfotext
