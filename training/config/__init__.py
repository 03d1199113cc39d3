"""YAML files and ``key=value`` overrides -> a checked ``TrainConfig``. OmegaConf does the merging; whatever it or the
checks refuse becomes a ConfigError that names the key."""
from __future__ import annotations

import difflib
import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import ConfigError
from .check import check
from .schema import (
    STAGES,
    CodebookConfig,
    DataConfig,
    DegradationConfig,
    FidelityConfig,
    LossConfig,
    NetConfig,
    OptimConfig,
    ParserConfig,
    RecogniserConfig,
    TrainConfig,
)

__all__ = [
    "STAGES", "CodebookConfig", "ConfigError", "DataConfig", "DegradationConfig", "FidelityConfig", "LossConfig",
    "NetConfig", "OptimConfig", "ParserConfig", "RecogniserConfig", "TrainConfig", "check", "compose", "from_dict",
    "load_config", "save_yaml", "to_dict",
]  # fmt: skip


def _plain(loaded: Any, source: str) -> dict[str, Any]:
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{source} does not hold keys and values.")
    return OmegaConf.to_container(loaded, resolve=False)  # type: ignore[return-value]


def _load(path: Path, seen: tuple[Path, ...] = ()) -> DictConfig:
    """A YAML file, over the one its key ``base`` names (relative to itself)."""
    if not os.path.isfile(path):  # unlike Path's, no error for a name that is too long
        raise ConfigError(f"There is no configuration {path}. training/configs holds the ones to start from.")
    if path.resolve() in seen:
        raise ConfigError(f"{path} is its own base. Remove the key 'base' from it.")
    try:
        loaded = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    _check_shape(_plain(loaded, str(path)), TrainConfig, extra=("base",))
    assert isinstance(loaded, DictConfig)
    base = loaded.pop("base", None)
    if base is None:
        return loaded
    merged = OmegaConf.merge(_load(path.parent / str(base), (*seen, path.resolve())), loaded)
    assert isinstance(merged, DictConfig)
    return merged


def _parse(overrides: Sequence[str]) -> DictConfig:
    """``key=value`` strings; the values are YAML, so lists and 1e-4 are what they look like."""
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not (key and equals):
            raise ConfigError(f"'{text}' is not key=value. For example: optim.lr=1e-4")
    try:
        parsed = OmegaConf.from_dotlist(list(overrides))
    except yaml.YAMLError as error:
        raise ConfigError(f"One of {', '.join(overrides)} is not key=value: {' '.join(str(error).split())}") from error
    _check_shape(_plain(parsed, "The command line"), TrainConfig)
    return parsed


def _check_shape(values: Mapping[Any, Any], kind: type, prefix: str = "", extra: tuple[str, ...] = ()) -> None:
    """Groups are groups, lists are flat lists, switches are true or false: what OmegaConf does not refuse, or refuses
    without naming the key."""
    hints = get_type_hints(kind)
    for key, value in values.items():
        if key in extra:
            continue
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, 3, 0.5) or [f.name for f in fields(kind)]
            raise ConfigError(f"Configuration key '{prefix}{key}' does not exist; did you mean {', '.join(close)}?")
        _check_value(value, hints[key], f"{prefix}{key}")


def _check_value(value: Any, hint: Any, name: str) -> None:
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"Configuration key '{name}' is a group of keys, not {value!r}.")
        _check_shape(value, hint, f"{name}.")  # type: ignore[arg-type]
    elif get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"Configuration key '{name}' holds named groups of keys, not {value!r}.")
        for key, inner in value.items():
            _check_value(inner, get_args(hint)[1], f"{name}.{key}")
    elif get_origin(hint) is list:
        if not isinstance(value, list):
            raise ConfigError(f"Configuration key '{name}' is a list; write {name}=[{value}].")
        for i, inner in enumerate(value):
            if isinstance(inner, (list, Mapping)) or inner is None:
                raise ConfigError(f"Configuration key '{name}[{i}]' is one value, not {inner!r}.")
    elif isinstance(value, (list, Mapping)):
        raise ConfigError(f"Configuration key '{name}' is one value, not {value!r}.")
    elif hint is bool and not isinstance(value, (bool, str)):
        raise ConfigError(f"Configuration key '{name}' is true or false, not {value!r}.")


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Merge the dataclasses' defaults, a YAML file and ``key=value`` strings. Raises ConfigError naming the key."""
    parts = [] if path is None else [_load(Path(path))]
    return _build([*parts, _parse(overrides)])


def compose(base: str | Path, layers: Sequence[Mapping[str, Any]], overrides: Sequence[str] = ()) -> TrainConfig:
    """As ``load_config``, with mappings merged in between the file and the overrides. Raises ConfigError."""
    for layer in layers:
        _check_shape(layer, TrainConfig)
    return _build([_load(Path(base)), *map(dict, layers), _parse(overrides)])


def _build(parts: Sequence[Any]) -> TrainConfig:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), *parts)
        missing = OmegaConf.missing_keys(merged)
        if missing:
            raise ConfigError(f"Configuration key '{min(missing)}' has no value.")
        built = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise ConfigError(f"Configuration key '{key}': {str(error).splitlines()[0]}") from error
    assert isinstance(built, TrainConfig)
    check(built)
    return built


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain containers, for checkpoints and YAML."""
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """What ``to_dict`` gave, also by an older version: keys that it did not have yet take their defaults.

    Raises ConfigError naming a key that no longer exists.
    """
    _check_shape(values, TrainConfig)
    return _build([dict(values)])


def save_yaml(config: TrainConfig, path: Path) -> None:
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
