"""The part of ComfyUI's folder_paths that the pack uses."""
import os

base_path = os.environ["HOST_DOUBLE_BASE"]
models_dir = os.path.join(base_path, "models")
folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {}


def add_model_folder_path(folder_name: str, full_folder_path: str, is_default: bool = False) -> None:
    paths, _ = folder_names_and_paths.setdefault(folder_name, ([], set()))
    if full_folder_path not in paths:
        paths.insert(0 if is_default else len(paths), full_folder_path)


def get_temp_directory() -> str:
    return os.path.join(base_path, "temp")
