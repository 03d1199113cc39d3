"""What no run can mean is refused before anything is loaded, by the name of the key."""
from __future__ import annotations

import math
from typing import Any, get_args

from idcodeformer.networks.codeformer import CodeSelection

from ..errors import ConfigError
from .schema import PRECISIONS, STAGES, DegradationConfig, OptimConfig, TrainConfig


def _refuse(key: str, why: str) -> None:
    raise ConfigError(f"Configuration key '{key}': {why}.")


def _one_of(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        _refuse(key, f"{value!r} is none of {', '.join(allowed)}")


def _between(key: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:  # also refuses NaN
        _refuse(key, f"{value} is outside [{low:g}, {high:g}]" if high < math.inf else f"{value} is less than {low:g}")


def check(config: TrainConfig) -> None:
    """Raise ConfigError naming the first key whose value cannot work."""
    _one_of("stage", config.stage, STAGES)
    _one_of("precision", config.precision, PRECISIONS)
    for key in ("steps", "batch", "accumulate", "devices", "nodes", "log_every", "save_every"):
        _between(key, getattr(config, key), 1)
    for key in ("seed", "threads", "sample_every", "val_every", "val_images"):
        _between(key, getattr(config, key), 0)
    world = config.devices * config.nodes
    if config.batch % world:
        _refuse("batch", f"{config.batch} does not divide over {world} processes")
    if config.batch // world % config.accumulate:
        share = config.batch // world
        _refuse("accumulate", f"{share} images of a process do not divide into {config.accumulate} parts")
    _check_data(config)
    _check_optim("optim", config.optim)
    _check_optim("optim_d", config.optim_d)
    _check_degradation("degradation", config.degradation)
    for name, degradation in config.degradations.items():
        _check_degradation(f"degradations.{name}", degradation)
    _check_losses(config)
    _check_fidelity(config)
    _check_parser(config)
    _one_of("recogniser.method", config.recogniser.method, ("distil", "arcface"))


def _check_data(config: TrainConfig) -> None:
    for name in ("data", "val"):
        data = getattr(config, name)
        for key in ("workers", "limit"):
            _between(f"{name}.{key}", getattr(data, key), 0)
        _between(f"{name}.size", data.size, 16)
        if data.roots and data.shards:
            _refuse(f"{name}.shards", f"give {name}.roots or {name}.shards, not both")
    if config.stage not in ("recogniser", "parser") and config.data.size != config.net.img_size:
        _refuse("data.size", f"{config.data.size} px is not net.img_size, {config.net.img_size} px")


def _check_parser(config: TrainConfig) -> None:
    rule = config.parser
    for key in ("gray", "cover", "degrade", "colour"):
        _between(f"parser.{key}", getattr(rule, key), 0, 1)
    for key, low, high in (("dice", 0, math.inf), ("rare", 1, 100), ("turn", 0, 180), ("zoom", 1, 4), ("shift", 0, 1)):
        _between(f"parser.{key}", getattr(rule, key), low, high)
    if config.stage == "parser":
        for name in ("data", "val"):
            data = getattr(config, name)
            if data.shards or data.extra or data.list_csv:
                _refuse(f"{name}.roots", "stage parser reads folders of images/ and masks/, no table, shards or extra")
            if data.split not in (None, "train", "val"):
                _refuse(f"{name}.split", f"{data.split!r} is neither train nor val")


def _check_optim(name: str, optim: OptimConfig) -> None:
    _one_of(f"{name}.schedule", optim.schedule, ("cosine", "steps", "constant"))
    for key in ("lr", "lr_min", "warmup", "weight_decay", "clip"):
        _between(f"{name}.{key}", getattr(optim, key), 0)
    _between(f"{name}.ema", optim.ema, 0, 1)
    _between(f"{name}.ema_share", optim.ema_share, 1e-6, 1)
    if len(optim.betas) != 2 or not all(0 <= b < 1 for b in optim.betas):
        _refuse(f"{name}.betas", f"give two numbers in [0, 1), not {optim.betas}")


def _check_degradation(name: str, config: DegradationConfig) -> None:
    ranges = {"sigma": (1e-3, math.inf), "downscale": (0.1, math.inf), "noise": (0, 255), "jpeg": (1, 100)}
    for key, (lowest, highest) in ranges.items():
        value = getattr(config, key)
        if len(value) != 2 or not value[0] <= value[1]:
            _refuse(f"{name}.{key}", f"give [low, high], not {value}")
        _between(f"{name}.{key}", value[0], lowest, highest)
        _between(f"{name}.{key}", value[1], lowest, highest)
    if config.kernel_size < 1 or config.kernel_size % 2 == 0:
        _refuse(f"{name}.kernel_size", f"{config.kernel_size} is not an odd number of px")
    for key in ("anisotropic", "gray", "clean"):
        _between(f"{name}.{key}", getattr(config, key), 0, 1)
    if len(config.severity) != 2 or not 0 <= config.severity[0] <= config.severity[1] <= 1:
        _refuse(f"{name}.severity", f"give [low, high] in [0, 1], not {config.severity}")
    _between(f"{name}.severity_power", config.severity_power, 1e-3)


def _check_losses(config: TrainConfig) -> None:
    loss = config.loss
    image = ("l1", "pooled", "mse", "ssim", "perceptual", "gan")
    for key in (*image, "anchor", "codebook", "commitment", "feature", "code", "identity"):
        _between(f"loss.{key}", getattr(loss, key), 0)
    for key in ("identity_jitter", "identity_blur", "identity_noise", "identity_seen", "identity_maps"):
        _between(f"loss.{key}", getattr(loss, key), 0)
    _between("loss.identity_other", loss.identity_other, 0, 1)
    _between("loss.perceptual_every", loss.perceptual_every, 1)
    _between("loss.pooled_side", loss.pooled_side, 1, config.net.img_size)
    _one_of("loss.gan_norm", loss.gan_norm, ("batch", "group"))
    if config.stage == "stage3" and loss.identity:
        _refuse("loss.identity", "stage3 has no identity loss; write stage: stage3_id")
    if config.stage not in ("stage3", "stage3_id") and loss.anchor:
        _refuse("loss.anchor", f"{config.stage} has no anchor; only stage III has")
    codes_only = config.stage == "stage2" or config.stage.startswith("stage3") and config.fidelity.code_only_every > 1
    if codes_only and not (loss.code or loss.feature):
        _refuse("loss.code", "steps of codes alone have nothing to learn from; give it or loss.feature a weight")
    always = loss.l1 or loss.pooled or loss.mse or loss.ssim or (loss.perceptual and loss.perceptual_every == 1)
    if config.stage in ("stage1", "stage3", "stage3_id") and loss.gan and not always:
        _refuse("loss.gan", "it follows the gradient of l1 and perceptual; give one of them a weight in every step")


def _check_fidelity(config: TrainConfig) -> None:
    rule = config.fidelity
    _one_of("fidelity.code_selection", rule.code_selection, get_args(CodeSelection))
    for key in ("full", "low", "high"):
        _between(f"fidelity.{key}", getattr(rule, key), 0, 1 if key == "full" else math.inf)
    if rule.low > rule.high:
        _refuse("fidelity.low", f"{rule.low} is more than fidelity.high, {rule.high}")
    _between("fidelity.code_only_every", rule.code_only_every, 0)
