"""Walking through a torch file's pickles with harmless stand-ins, before torch reads them.

Nothing of the file's choosing is imported or called, and nothing in it may cost more than its length: a memo index of
2**31 makes the C reader allocate 16 GB, and a tuple of itself twice, sixty times over, is never hashed to an end.
"""
from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UnsafeWeights

LARGEST_PICKLE = 100_000_000  # bytes; names and shapes of a large network take less than one percent of it
SAFE_GLOBALS = frozenset(
    [("collections", "OrderedDict"), ("torch", "Size"), ("torch", "device"), ("torch.storage", "UntypedStorage")]
    + [("torch._utils", f"_rebuild_{what}") for what in ("tensor", "tensor_v2", "parameter")]
    + [("torch", f"{t}Storage") for t in "Float Double Half BFloat16 Long Int Short Char Byte Bool".split()]
    + [("torch", t) for t in "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()]
)
_SCALAR = (str, bytes, int, float, type(None))
_MOST_UNPACKED = 4  # times the archive's own size; torch stores its numbers uncompressed
_SMALL = 1 << 26  # bytes; below it the ratio is not looked at


def refuse_unsafe(file: BinaryIO, path: Path) -> None:
    """Raise UnsafeWeights, naming the global, where a pickle of the torch file ``file`` asks for more than tensors.

    Whatever else is wrong with the file comes out as one of the many errors of pickle and zipfile.
    """
    for stream in _pickles(file, path.stat().st_size):
        _Walker(stream, path).load()


def _pickles(file: BinaryIO, size: int) -> Iterator[BinaryIO]:
    """Every pickle stream of a torch file: data.pkl of a zip, or the five in a row of the legacy format.

    Which of the two it is, the first bytes say, as for torch: a legacy file may have a zip glued to its end.
    """
    if file.read(2) == b"PK":
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            if unpacked > max(_SMALL, _MOST_UNPACKED * size):
                raise zipfile.BadZipFile(f"{size} bytes that unpack to {unpacked}")
            members = [m for m in members if m.filename.endswith(".pkl")]
            if not members:
                raise zipfile.BadZipFile("a zip without data.pkl")
            for member in members:
                if member.file_size > LARGEST_PICKLE:
                    raise zipfile.BadZipFile(f"{member.filename} claims {member.file_size} bytes")
                yield io.BytesIO(archive.read(member))
        return
    file.seek(0)
    for _ in range(5):  # magic number, protocol, system, the object, storage keys; the rest is raw numbers
        yield file


def _check_key(key: Any) -> None:
    flat = isinstance(key, tuple) and all(isinstance(part, _SCALAR) for part in key)
    if not flat and not isinstance(key, _SCALAR):
        raise pickle.UnpicklingError(f"a {type(key).__name__} as a key")


class _StandIn:
    """What every allowed global is taken for."""

    def __new__(cls, *_: Any, **__: Any):
        return object.__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


class _Ordered(_StandIn):
    """An OrderedDict that keeps nothing."""

    def __init__(self, items: Any = ()):
        for pair in items:
            _check_key(pair[0])

    def __setitem__(self, key: Any, _: Any) -> None:
        _check_key(key)


class _Walker(pickle._Unpickler):  # the one in Python, whose memo is a dictionary and whose opcodes can be replaced
    """Reads one pickle, refusing what is no part of a tensor and what costs more than its bytes."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, stream: BinaryIO, path: Path):
        super().__init__(stream)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in SAFE_GLOBALS:
            raise UnsafeWeights(
                f"{self.path} is refused: its pickle asks for {module}.{name}, which is not part of a tensor. "
                "Nothing was executed. Get the file from its publisher, or as .safetensors."
            )
        return _Ordered if name == "OrderedDict" else _StandIn

    def persistent_load(self, pid: Any) -> Any:
        for part in pid if isinstance(pid, tuple) else (pid,):
            if part is not _StandIn:
                _check_key(part)
        return _StandIn()

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _setitems(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            _check_key(key)
            target[key] = value

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("an opcode that no weight file needs")

    dispatch[pickle.DICT[0]] = _dict
    dispatch[pickle.SETITEM[0]] = _setitem
    dispatch[pickle.SETITEMS[0]] = _setitems
    for _code in (pickle.FROZENSET, pickle.ADDITEMS, pickle.EMPTY_SET, pickle.BYTEARRAY8, pickle.NEXT_BUFFER,
                  pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID):  # fmt: skip
        dispatch[_code[0]] = _refuse
