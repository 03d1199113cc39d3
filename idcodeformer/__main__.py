"""``python -m idcodeformer``: the command line."""
import os
import sys

from .cli import main


def leave(code: int) -> None:
    """End the process with ``code``, at once where Ray took part.

    Its threads have aborted a process now and then while the interpreter was taken down, after all was written and
    told and Ray had been shut down: whoever started it then read exit code 134 for work that was done.
    """
    if "ray" not in sys.modules:
        sys.exit(code)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # nobody reads any more
            code = code or 1
    os._exit(code)


if __name__ == "__main__":
    leave(main())
