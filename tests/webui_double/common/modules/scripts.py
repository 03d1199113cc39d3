"""Runs script files as the hosts do, and registers the classes they leave."""
import importlib.util
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

from modules import script_callbacks, scripts_postprocessing

AlwaysVisible = object()
KEEPS_PATH = importlib.util.find_spec("backend") is not None or importlib.util.find_spec("ldm_patched") is not None
scripts_data, postprocessing_scripts_data = [], []


class Script:
    create_group = True


def load_script(path):
    script_callbacks.registered.clear()
    scripts_data.clear()
    postprocessing_scripts_data.clear()
    before, extension = sys.path, str(Path(path).parents[1])
    sys.path = [extension, *before]
    spec = importlib.util.spec_from_file_location(Path(path).name, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path = sys.path if KEEPS_PATH else before
    for found in vars(module).values():
        if inspect.isclass(found) and issubclass(found, Script):
            scripts_data.append(SimpleNamespace(script_class=found, path=path, module=module))
        elif inspect.isclass(found) and issubclass(found, scripts_postprocessing.ScriptPostprocessing):
            postprocessing_scripts_data.append(SimpleNamespace(script_class=found, path=path, module=module))
    return module


def add_xyz_grid():
    class AxisOption:
        def __init__(self, label, type, apply, cost=0.0, choices=None):
            self.label, self.type, self.apply, self.cost, self.choices = label, type, apply, cost, choices

    module = SimpleNamespace(AxisOption=AxisOption, axis_options=[AxisOption("Nothing", str, None)])
    scripts_data.append(SimpleNamespace(script_class=Script, path="scripts/xyz_grid.py", module=module))
    return module
