"""What a person at the terminal is told. Standard output stays for results, all else goes to standard error."""
from __future__ import annotations

import sys


def note(text: str) -> None:
    """Tell the person at the terminal."""
    print(printable(text), file=sys.stderr)


def printable(line: str) -> str:
    """``line`` with control characters escaped: a file name may hold line breaks and terminal commands."""
    return "".join(c if _is_plain(c) else c.encode("unicode_escape").decode() for c in line)


def _is_plain(character: str) -> bool:
    code = ord(character)
    return 32 <= code < 127 or code >= 160 or 0xDC80 <= code <= 0xDCFF  # the last ones are bytes that are no text
