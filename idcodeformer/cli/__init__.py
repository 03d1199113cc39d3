"""The command line: exit codes, signals and streams. The work is done in the modules beside.

Exit codes: 0 done, 1 a file failed or something is missing, 2 wrong arguments, 130 interrupted (Ctrl-C), 129
terminal closed, 143 terminated.
"""
from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import BadOption, IDCodeFormerError
from ..files.limits import lift_pillows_limit
from ..runtime.allocator import keep_pages
from .arguments import COMMANDS, build_parser


def normalise(argv: Sequence[str]) -> list[str]:
    """The reference's spelling (--input_path) becomes ours, and a line without a command means restore.

    A file whose name begins with a dash is no option. A line in the reference's form (no command, --input_path) writes
    the faces too, as that program does.
    """
    out = []
    published = bool(argv) and argv[0] not in COMMANDS
    for position, token in enumerate(argv):
        if token == "--":
            out += argv[position:]
            break
        if token.startswith("-") and "." in token and Path(token).is_file():
            out.append(f"./{token}")
            continue
        if published and token.partition("=")[0] in ("--input_path", "--input-path", "-i"):
            out.append("--save-crops")
            published = False
        name, equals, value = token.partition("=")
        out.append(name.replace("_", "-") + equals + value if name.startswith("--") else token)
    if out and out[0] not in (*COMMANDS, "-h", "--help", "--version"):
        out.insert(0, "restore")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    with _writable_streams():
        return _run(argv)


@contextmanager
def _writable_streams() -> Iterator[None]:
    """Escape what an output's encoding lacks (cp1252, undecodable bytes of a file name) instead of failing on it."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before):
            if not stream.closed:
                stream.reconfigure(errors=errors)


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    args = parser.parse_args(normalise(sys.argv[1:] if argv is None else argv))
    if not getattr(args, "handler", None):
        parser.print_help(sys.stderr)
        return 2
    if argv is None:
        _end_orderly()
        keep_pages()
    try:
        lift_pillows_limit()
        return args.handler(args)
    except KeyboardInterrupt:
        print("Interrupted; every file that is there is whole.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, `| head` for one
        sys.stderr.close()
        return 1
    except IDCodeFormerError as error:
        if getattr(args, "debug", False):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadOption) else 1


def _end_orderly() -> None:
    """Unwind at SIGTERM, and where the terminal is closed; ``nohup`` has SIGHUP ignored, which stays so."""
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _terminate)


def _terminate(number: int, frame: object) -> None:
    sys.exit(128 + number)  # SystemExit unwinds, so that temporary files are removed


if __name__ == "__main__":
    sys.exit(main())
