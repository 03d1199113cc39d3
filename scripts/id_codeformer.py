"""Door of AUTOMATIC1111's WebUI, Forge, reForge and SD.Next; all it does lies in the package ``sdwebui``.

The host executes this file, it does not import it. The package is loaded below a name of its own, because the host's
path holds other extensions and a ``webui.py``; what this name held before (Reload UI) is left behind.
"""
import importlib
import sys
from pathlib import Path
from types import ModuleType

_NAME = "id_codeformer_extension"


def _load() -> ModuleType:
    for name in [name for name in sys.modules if name.split(".")[0] == _NAME]:
        del sys.modules[name]
    package = ModuleType(_NAME)  # not the pack's __init__.py, which is ComfyUI's door
    package.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules[_NAME] = package
    return importlib.import_module(f"{_NAME}.sdwebui")


# The host registers every class it finds here that is one of its scripts.
ExtrasEntry, ScoresInInfotext = _load().open_door()
