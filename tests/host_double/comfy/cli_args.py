"""The part of ComfyUI's options that the pack reads."""
from types import SimpleNamespace

args = SimpleNamespace(extra_model_paths_config=None)
