"""Callbacks by event, cleared when scripts are loaded again."""
from collections import defaultdict

registered = defaultdict(list)


def _register(event):
    return lambda callback: registered[event].append(callback)


on_ui_settings = _register("ui_settings")
on_app_started = _register("app_started")
on_script_unloaded = _register("script_unloaded")
on_before_ui = _register("before_ui")


def fire(event, *arguments):
    for callback in registered[event]:
        callback(*arguments)
