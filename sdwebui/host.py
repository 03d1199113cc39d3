"""Everything the extension asks of the WebUIs, in one place; no other module of ``sdwebui`` imports ``modules``.

Four hosts answer here: AUTOMATIC1111's WebUI (A1111), Forge, reForge and SD.Next. Where they differ, what is there is
looked at; nobody's name is compared. Host modules are imported inside the functions.
"""
from __future__ import annotations

import importlib
import importlib.util
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator

if TYPE_CHECKING:
    import torch

PREFIX = "[ID-CodeFormer]"


def say(text: str) -> None:
    """A line on the host's console."""
    print(f"{PREFIX} {text}", flush=True)


def on(event: str, callback: Callable) -> None:
    """Have ``callback`` called at the host's event, as script_callbacks.on_<event> does."""
    from modules import script_callbacks

    getattr(script_callbacks, f"on_{event}")(callback)


# ---------------------------------------------------------------- settings


def option(name: str, default: Any) -> Any:
    """The value of a setting; ``default`` where this host does not have it."""
    from modules import shared

    value = getattr(shared.opts, name, None)
    return default if value is None else value


def add_option(name: str, default: Any, label: str, section: tuple[str, str], about: str = "", **more: Any) -> None:
    """A setting on the page ``section`` (id, title)."""
    from modules import shared

    info = shared.OptionInfo(default, label, section=section, **more)
    shared.opts.add_option(name, info.info(about) if about else info)


def argument(name: str, default: Any = None) -> Any:
    """A command-line argument the host was started with."""
    from modules import shared

    return getattr(shared.cmd_opts, name, default)


def api_users() -> dict[str, str]:
    """Names and passwords that the host's API asks for; empty where it asks for none.

    A1111, Forge and reForge: --api-auth. SD.Next: --auth and --auth-file. "name:password", several with "," between
    or one a line.
    """
    given = [str(argument(name) or "") for name in ("api_auth", "auth")]
    if argument("auth_file"):
        given.append(Path(argument("auth_file")).read_text(encoding="utf-8"))
    pairs = [pair.strip().strip('"') for text in given for pair in text.replace("\n", ",").split(",")]
    return dict(pair.split(":", 1) for pair in pairs if ":" in pair)


def language() -> str:
    """The language of the page as the user chose it, such as zh_CN; empty for English."""
    chosen = str(option("localization", "") or option("ui_locale", ""))
    return "" if chosen in ("None", "Auto") else chosen


def models_folder() -> Path:
    """The host's models folder."""
    from modules import paths

    return Path(paths.models_path)


# ---------------------------------------------------------------- device and memory


def device() -> torch.device:
    """Where face restoration runs: --use-cpu and --device-id are obeyed, Forge's memory management is asked."""
    import torch
    from modules import devices

    for name in ("device_codeformer", "device"):  # the second is SD.Next's
        if getattr(devices, name, None) is not None:
            return torch.device(getattr(devices, name))
    return torch.device(devices.get_optimal_device())


def precision() -> str:
    """fp32 where the user asked the host for full precision, else what the core chooses."""
    full = ("no_half", "all_in_fp32")  # A1111; Forge and reForge
    return "fp32" if any(argument(name, False) for name in full) else "auto"


def make_room(needed: int, where: torch.device) -> None:
    """Ask Forge's or reForge's memory management to move other models away; the other hosts have none."""
    if where.type == "cpu":
        return
    for name in ("backend.memory_management", "ldm_patched.modules.model_management"):
        if _exists(name):
            importlib.import_module(name).free_memory(needed, where)
            return


def unload_after_use() -> bool:
    """The host's setting "Move face restoration model from VRAM into RAM after processing"."""
    return bool(option("face_restoration_unload", False))


def give_back() -> None:
    """Return cached device memory to the driver."""
    from modules import devices

    devices.torch_gc()


# ---------------------------------------------------------------- jobs


def interrupted() -> bool:
    """Whether the user has pressed Interrupt or Skip."""
    from modules import shared

    return bool(shared.state.interrupted or shared.state.skipped)


def show_progress(text: str) -> None:
    """The line beside the progress bar."""
    from modules import shared

    shared.state.textinfo = text


@contextmanager
def job(title: str) -> Iterator[None]:
    """Wait for the host's other jobs to end, then be the running job."""
    from modules import call_queue, shared

    with call_queue.queue_lock:
        number = shared.state.begin(title)  # SD.Next numbers its jobs
        try:
            yield
        finally:
            shared.state.end() if number is None else shared.state.end(number)


# ---------------------------------------------------------------- what a host has


def has_face_restorers() -> bool:
    """False in SD.Next, which has dropped the list."""
    return face_restorers() is not None


def face_restorers() -> list | None:
    """The host's list of face restorers, to be changed in place."""
    from modules import shared

    return getattr(shared, "face_restorers", None)


def frames_extras_itself() -> bool:
    """Whether the host puts each Extras script into an accordion of its own (SD.Next)."""
    return _exists("modules.scripts_manager")


def accordion_switch() -> Callable | None:
    """The host's accordion that is a check box too; None where scripts need a plain check box."""
    from modules import ui_components

    return None if frames_extras_itself() else getattr(ui_components, "InputAccordion", None)


def extras_base() -> type:
    """The base class of Extras scripts."""
    from modules import scripts_postprocessing

    return scripts_postprocessing.ScriptPostprocessing


def script_base() -> tuple[type, Any]:
    """The base class of scripts, and what ``show`` returns for one that always runs."""
    from modules import scripts

    return scripts.Script, scripts.AlwaysVisible


def xyz_module() -> Any:
    """The loaded module of the X/Y/Z plot; None where there is none."""
    from modules import scripts

    for data in scripts.scripts_data:
        if Path(data.path).name == "xyz_grid.py":
            return data.module
    return None


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False
