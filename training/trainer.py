"""The loop: one for all stages, on one process or many (Lightning Fabric, DDP)."""
from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn

from .checkpoint import check_same, read_checkpoint, write_checkpoint
from .config import ConfigError, OptimConfig, TrainConfig, save_yaml, to_dict
from .data import DataConfig, PairDataset, PositionBatches, fixed_set, make_loader, to_unit
from .losses import hinge_discriminator
from .runlog import RunLog, sample_grid
from .stages import Stage, build_stage
from .weights import move


class NotFinite(RuntimeError):
    """The loss became NaN or infinite; names the step, the files of the batch and the last good checkpoint."""


class EMA:
    """Exponential moving average of a network's floating-point state; the first steps use a shorter memory."""

    def __init__(self, net: nn.Module, decay: float):
        self.net, self.decay = copy.deepcopy(net).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for mine, new in zip(self.net.state_dict().values(), net.state_dict().values()):
            if mine.is_floating_point():
                mine.lerp_(new.to(mine.dtype), 1 - decay)
            else:
                mine.copy_(new)


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Rate of a step (0-based): linear warm-up, then cosine to lr_min, halving at milestones, or constant."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    if optim.schedule == "cosine":
        share = (step - optim.warmup) / max(1, steps - optim.warmup)
        return optim.lr_min + 0.5 * (optim.lr - optim.lr_min) * (1 + math.cos(math.pi * min(1.0, share)))
    if optim.schedule == "steps":
        return optim.lr * 0.5 ** sum(step >= m for m in optim.milestones)
    if optim.schedule == "constant":
        return optim.lr
    raise ConfigError(f"Configuration key 'optim.schedule': {optim.schedule!r} is none of cosine, steps, constant.")


def make_fabric(config: TrainConfig) -> Fabric:
    world = config.devices * config.nodes
    # w = 0, code-only steps and the k-means start leave parameters out of some steps
    strategy: Any = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False) if world > 1 else "auto"
    return Fabric(
        accelerator=config.accelerator, devices=config.devices, num_nodes=config.nodes, strategy=strategy,
        precision=config.precision,  # type: ignore[arg-type]
    )  # fmt: skip


def adam(params: list[nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    make = torch.optim.AdamW if optim.weight_decay else torch.optim.Adam
    extra = {"weight_decay": optim.weight_decay} if optim.weight_decay else {}
    return make(params, lr=optim.lr, betas=(optim.betas[0], optim.betas[1]), **extra)


class Trainer:
    """Everything of one run. ``run()`` goes from the last step done to ``config.steps``."""

    def __init__(self, config: TrainConfig, resume: str | Path | None = None, fabric: Fabric | None = None):
        self.config, self.fabric = config, fabric or make_fabric(config)
        if config.threads:
            torch.set_num_threads(config.threads)
        if fabric is None:
            self.fabric.launch()
        torch.manual_seed(config.seed)  # the same start on every process
        self.data = PairDataset(config.data, config.degradation, config.seed)
        self.stage = self._build()
        self.ema = EMA(self.stage.net, config.optim.ema)
        self._setup()
        self.start, self.best = 0, math.inf
        self.folder = Path(config.out)
        if resume:
            self._resume(Path(resume))
        self.log = RunLog(self.folder, self.start, config.steps, self.fabric.is_global_zero)
        if self.fabric.is_global_zero:
            save_yaml(config, self.folder / "config.yaml")
        self.fixed = self._fixed()

    def _build(self) -> Stage:
        if self.config.stage == "recogniser" and self.config.recogniser.method == "arcface":
            from .recogniser import RecogniserStage

            return RecogniserStage(self.config, len(self.data.labels))
        return build_stage(self.config)

    def _setup(self) -> None:
        config, stage = self.config, self.stage
        self.optimiser = adam(stage.trainable(), config.optim)
        stage.to(self.fabric.device)
        self.ema.net.to(self.fabric.device)
        self.wrapped, self.optimiser = self.fabric.setup(stage, self.optimiser)
        self.optimiser_d, self.wrapped_d = None, None
        if stage.discriminator is not None:
            optimiser_d = adam(list(stage.discriminator.parameters()), config.optim_d)
            self.wrapped_d, self.optimiser_d = self.fabric.setup(stage.discriminator, optimiser_d)

    def _fixed(self) -> dict[str, Any] | None:
        source = self.config.val if self.config.val.roots else self.config.data
        named = self.config.degradations.get(self.config.val_degradation, self.config.degradation)
        source = DataConfig(**{**vars(source), "size": self.config.data.size})
        return fixed_set(source, named, self.config.seed + 7, self.config.val_images)

    # ------------------------------------------------------------------ checkpoints
    def _own_state(self) -> dict[str, Tensor]:
        """The stage's state without the frozen networks, which come from their files."""
        frozen = ("teacher.", "target.", "perceptual.", "identity.")
        return {k: v for k, v in self.stage.state_dict().items() if not k.startswith(frozen)}

    def save(self, name: str, step: int) -> None:
        if not self.fabric.is_global_zero:
            return
        discriminator = self.stage.discriminator
        write_checkpoint(
            {
                "stage": self.config.stage,
                "config": to_dict(self.config),
                "step": step,
                "model": self._own_state(),
                "ema": self.ema.net.state_dict(),
                "optimisers": [o.state_dict() for o in (self.optimiser, self.optimiser_d) if o is not None],
                "discriminator": discriminator.state_dict() if discriminator is not None else {},
                "best": self.best,
            },
            self.folder / name,
        )

    def _resume(self, path: Path) -> None:
        state = read_checkpoint(path)
        check_same(path, state["config"], to_dict(self.config))
        self.stage.load_state_dict(state["model"], strict=False)
        self.ema.net.load_state_dict(state["ema"])
        optimisers = [o for o in (self.optimiser, self.optimiser_d) if o is not None]
        for optimiser, stored in zip(optimisers, state["optimisers"]):
            optimiser.load_state_dict(stored)
        if self.stage.discriminator is not None:
            self.stage.discriminator.load_state_dict(state["discriminator"])
        self.start, self.best = state["step"], state["best"]

    # ------------------------------------------------------------------ steps
    def _rate(self, step: int) -> float:
        rate = learning_rate(self.config.optim, step, self.config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        if self.optimiser_d is not None:
            for group in self.optimiser_d.param_groups:
                group["lr"] = learning_rate(self.config.optim_d, step, self.config.steps)
        return rate

    def _seed(self, step: int) -> None:
        # A function of run, step and process alone: a resumed run draws what an unbroken one would have drawn.
        torch.manual_seed((self.config.seed * 1_000_003 + step) * 65_537 + self.fabric.global_rank)

    def _check_finite(self, total: Tensor, step: int, batch: dict[str, Any]) -> None:
        # Every process must stop together, or the others would wait for it for ever.
        if bool(self.fabric.all_reduce(total.detach().isfinite().float(), reduce_op="sum") == self.fabric.world_size):
            return
        last = self.folder / "last.ckpt"
        good = f"{last} is the last good state" if last.exists() else "no checkpoint was written before"
        raise NotFinite(
            f"The loss is {total.item()} at step {step}; {good}. Lower optim.lr or set optim.clip. "
            f"The batch was: {', '.join(map(str, batch['name']))}"
        )

    def step(self, batch: dict[str, Any], step: int) -> dict[str, Any]:
        """One update of the network and, where there is one, of the discriminator."""
        config, discriminator = self.config, self.stage.discriminator
        self._seed(step)
        extra = self.stage.before_step(batch, step, self.fabric)
        if discriminator is not None:
            discriminator.requires_grad_(False)
        out = self.wrapped(batch, step)
        self._check_finite(out["total"], step, batch)
        self.optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(out["total"])
        if config.optim.clip:
            norm = self.fabric.clip_gradients(self.stage, self.optimiser, max_norm=config.optim.clip, error_if_nonfinite=False)
            extra["grad_norm"] = float(norm)
        self.optimiser.step()
        image = out.pop("image", None)
        if discriminator is not None and image is not None and step >= config.loss.gan_start:
            out["d"] = self._step_discriminator(discriminator, batch, image)
        self.ema.update(self.stage.net, step)
        return {**extra, **out}

    def _step_discriminator(self, discriminator: nn.Module, batch: dict[str, Any], image: Tensor) -> Tensor:
        assert self.wrapped_d is not None and self.optimiser_d is not None
        discriminator.requires_grad_(True)
        both = self.wrapped_d(torch.cat([to_unit(batch["truth"], image.device), image]))
        loss = hinge_discriminator(*both.float().chunk(2))
        self.optimiser_d.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.optimiser_d.step()
        return loss.detach()

    def run(self) -> Path:
        """Train to the end; returns the folder. Raises NotFinite; KeyboardInterrupt saves before it passes on."""
        config, fabric = self.config, self.fabric
        positions = PositionBatches(config.batch, fabric.global_rank, fabric.world_size, self.start, config.steps)
        loader = make_loader(self.data, positions, config.data.workers)
        self.stage.train()
        step = self.start
        try:
            for step, batch in zip(range(self.start, config.steps), loader):
                rate = self._rate(step)
                logs = self.step(move(batch, fabric.device), step)
                self.log.step(step, {**logs, "lr": rate}, (step + 1) % config.log_every == 0)
                self._periodic(step + 1)
        except KeyboardInterrupt:
            self.log.write(f"Interrupted in step {step}; {self.folder / 'last.ckpt'} holds the last saved state.")
            raise
        finally:
            self.log.skipped(self.data.skipped.reasons)
            self.log.close()
        self.save("last.ckpt", config.steps)
        return self.folder

    def _periodic(self, done: int) -> None:
        config = self.config
        last = done == config.steps
        if config.val_every and (done % config.val_every == 0 or last):
            self._validate(done)
        if done % config.save_every == 0:
            self.save("last.ckpt", done)
        if config.sample_every and (done % config.sample_every == 0 or last) and self.fabric.is_global_zero:
            self._sample(done)

    @torch.no_grad()
    def _with_ema(self):
        """The stage with the averaged weights in place of the trained ones, as a context."""
        return _Swapped(self.stage, self.ema.net)

    @torch.no_grad()
    def _validate(self, done: int) -> None:
        if not self.fabric.is_global_zero or self.fixed is None:
            return
        with self._with_ema() as stage:
            parts = [stage.validate(chunk) for chunk in _chunks(self.fixed, 16)]
        means = {f"val_{k}": float(torch.stack([p[k].float() for p in parts]).mean()) for k in parts[0]}
        self.log.values(done, means)
        if means["val_score"] < self.best:
            self.best = means["val_score"]
            self.save("best.ckpt", done)

    @torch.no_grad()
    def _sample(self, done: int) -> None:
        if self.fixed is None or self.config.stage == "recogniser":
            return
        chunk = next(_chunks(self.fixed, 8))
        with self._with_ema() as stage:
            image = stage.restored(chunk)
        sample_grid(chunk, image, self.folder / "samples" / f"{done:07d}.png", self.stage.needs_degraded)


class _Swapped:
    """Puts the averaged network into the stage, in eval mode, for as long as the context lasts."""

    def __init__(self, stage: Stage, net: nn.Module):
        self.stage, self.net = stage, net

    def __enter__(self) -> Stage:
        self.trained = self.stage.net
        self.stage.net = self.net
        self.stage.eval()
        return self.stage

    def __exit__(self, *_: object) -> None:
        self.stage.net = self.trained
        self.stage.train()


def _chunks(batch: dict[str, Any], size: int):
    for first in range(0, len(batch["truth"]), size):
        yield {k: v[first : first + size] for k, v in batch.items()}
