"""Everything the pack asks of ComfyUI, in one place; the other modules of ``nodes`` import no host module.

The host's modules are imported inside the functions, so that importing the pack does no work and needs no ComfyUI.
"""
from __future__ import annotations

import os
import sys
import traceback
import uuid
import weakref
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Iterator

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..idcodeformer.errors import MissingPackage

if TYPE_CHECKING:
    from PIL.Image import Image

PREVIEW_SIDE = 512  # px of the live preview under a node
_LOOK_EVERY = 0.002  # seconds between two looks at the Cancel button


def compute_device() -> torch.device:
    """Where ComfyUI wants networks to run."""
    import comfy.model_management as mm

    return mm.get_torch_device()


def output_device() -> torch.device:
    """Where ComfyUI wants the results of nodes (the CPU, unless started with --gpu-only)."""
    import comfy.model_management as mm

    return mm.intermediate_device()


def half_precision_allowed(device: torch.device) -> bool:
    """False on cards that are slow in fp16; a CPU is left to the core, which knows its own."""
    import comfy.model_management as mm

    return device.type == "cpu" or bool(mm.should_use_fp16(device))


def forced_fp32() -> bool:
    """Whether the user started ComfyUI with --force-fp32."""
    import comfy.model_management as mm

    return bool(getattr(mm, "FORCE_FP32", False))


def out_of_memory() -> type[BaseException]:
    """The class of the host's out-of-memory errors."""
    import comfy.model_management as mm

    return mm.OOM_EXCEPTION


def free_memory(needed: int, device: torch.device) -> None:
    """Ask the host to make room for ``needed`` bytes by moving other models away."""
    import comfy.model_management as mm

    mm.free_memory(needed, device)


class MemoryReturn:
    """When this goes, what the process has freed by then goes back to the system.

    glibc keeps freed blocks of up to 32 MB for itself, and most weights are smaller: after /free the process would look
    as large as before. Elsewhere this does nothing.
    """

    def __init__(self) -> None:
        weakref.finalize(self, _return_memory).atexit = False


def _return_memory() -> None:
    if sys.platform == "linux":
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def tiled_upscale(images: Tensor, model: Any, tile: int) -> Tensor:
    """[N,3,H,W] through an UPSCALE_MODEL in tiles of ``tile`` px, with the host's own blending of the seams."""
    import comfy.utils

    return comfy.utils.tiled_scale(
        images, lambda part: model(part), tile_x=tile, tile_y=tile, overlap=32, upscale_amount=model.scale
    )


# ---------------------------------------------------------------- cancel, progress, previews


def raise_if_cancelled() -> None:
    """Raise the host's interrupt exception if the user has pressed Cancel."""
    import comfy.model_management as mm

    mm.throw_exception_if_processing_interrupted()


class _CancelBetweenOperations(TorchFunctionMode):
    """On a CPU one forward pass may last many seconds; this looks at the Cancel button between torch operations.

    Not before each: a face takes thousands of them, and the host's look costs as much as a small one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        now = monotonic()
        if now >= self._next:
            self._next = now + _LOOK_EVERY
            raise_if_cancelled()
        return func(*args, **kwargs) if kwargs else func(*args)


@contextmanager
def packages() -> Iterator[None]:
    """Where a package that the pack needs is missing, the error names install.py, which adds it."""
    from ..idcodeformer.errors import MissingPackage

    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith(__package__.rsplit(".", 1)[0]):
            raise  # a module of our own: no package to install
        script = Path(__file__).resolve().parent.parent / "install.py"
        what = f"The package '{error.name}'" if error.name else f"A package ({error})"
        raise MissingPackage(
            f"{what} is missing: install.py of this pack was not run. Run it with ComfyUI's Python and start ComfyUI "
            f'again: "{sys.executable}" "{script}"'
        ) from error


@contextmanager
def work() -> Iterator[None]:
    """Around the computing part of a node: Cancel acts at once, no gradients are kept, and a failure keeps no tensors.

    Where not even one face fits, the host's other models are moved away before the error goes on, as the host does for
    its own out-of-memory error, so that a second try has more room.
    """
    from ..idcodeformer.errors import OutOfMemory

    raise_if_cancelled()
    try:
        with packages(), torch.inference_mode(), _CancelBetweenOperations():
            yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # the host keeps the error a while, and with it all that was local
        if isinstance(error, OutOfMemory):
            import comfy.model_management as mm

            mm.unload_all_models()
        raise


class Progress:
    """The green bar of the running node and the picture under it. Every update also lets Cancel act."""

    def __init__(self, total: int = 1):
        import comfy.utils

        self._bar = comfy.utils.ProgressBar(max(1, total))
        self._done = 0

    def __call__(self, done: int, total: int, preview: Image | None = None) -> None:
        """``done`` of ``total`` steps; ``preview`` is shown under the node until the next one."""
        raise_if_cancelled()
        self._done = done
        shown = ("JPEG", preview, PREVIEW_SIDE) if preview is not None else None
        self._bar.update_absolute(done, max(1, total), shown)


def temporary_folder() -> Path:
    """The host's folder for files that it removes when it starts again."""
    import folder_paths

    return Path(folder_paths.get_temp_directory())


def video_of(path: str) -> Any:
    """A VIDEO of the graph from a clip's file; the file must stay where it is."""
    try:
        from comfy_api.input_impl import VideoFromFile
    except ImportError as error:
        raise MissingPackage(f"This ComfyUI has no videos ({error}); update it to 0.3.34 or later.") from error
    return VideoFromFile(path)


def show_on_node(pictures: list[Image]) -> list[dict[str, str]]:
    """Write pictures to the host's temporary folder; the result is the value of ``ui.images``."""
    import folder_paths

    folder = folder_paths.get_temp_directory()
    os.makedirs(folder, exist_ok=True)
    shown = []
    for picture in pictures:
        name = f"idcodeformer_{uuid.uuid4().hex[:12]}.png"
        picture.save(os.path.join(folder, name), compress_level=1)
        shown.append({"filename": name, "subfolder": "", "type": "temp"})
    return shown
