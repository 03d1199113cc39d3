"""The texts of our own in the language the host shows, from locales/<language>/webui.json."""
from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from . import host

_FOLDER = Path(__file__).resolve().parent.parent / "locales"


def text(key: str) -> str:
    """The text of that key: Chinese where the host's page is, else English."""
    chosen = host.language().lower()
    chinese = chosen.startswith(("zh", "chinese")) or "中文" in chosen
    return _read("zh" if chinese else "en")[key]


@lru_cache
def _read(language: str) -> dict[str, str]:
    return json.loads((_FOLDER / language / "webui.json").read_text(encoding="utf-8"))
