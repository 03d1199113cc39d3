"""The loop: one for all stages, on one process or many (Lightning Fabric, DDP)."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from .checkpoint import SCORE, check_same, read_checkpoint, write_checkpoint
from .config import ConfigError, TrainConfig, save_yaml, to_dict
from .data.dataset import PositionBatches, make_loader, to_unit
from .errors import NotFinite
from .fingerprints import digests
from .launch import StopSignal, make_fabric, precision_notice
from .optim import EMA, adam, learning_rate, set_rate
from .processes import average_buffers, gathered, total
from .runlog import RunLog, sample_grid
from .stages import FROZEN, Stage, build_stage
from .stages.losses import hinge_discriminator
from .validation import restore_samples, training_data, validate, validation_set
from .weights import move, split

__all__ = ["EMA", "NotFinite", "Trainer", "learning_rate"]


class Trainer:
    """Everything of one run. ``run()`` goes from the last step done to ``config.steps``."""

    def __init__(self, config: TrainConfig, resume: str | Path | None = None, fabric: Fabric | None = None):
        self.config, self.fabric = config, fabric or make_fabric(config)
        if config.threads:
            torch.set_num_threads(config.threads)
        if fabric is None:
            self.fabric.launch()
        torch.manual_seed(config.seed)  # the same start on every process
        self.data = training_data(config)
        self.data.check()
        self.stage: Stage = build_stage(config, len(self.data.labels))
        self.sources = digests(config, self.data.entries)
        self.ema = EMA(self.stage.net, config.optim.ema, config.optim.ema_share)
        self._setup()
        self.start, self.end, self.best = 0, config.steps, math.inf
        self.stop, self.stopping = StopSignal(), False
        self.folder = Path(config.out)
        schedule = self._resume(Path(resume)) if resume else None
        self.fixed = validation_set(config) if self.fabric.is_global_zero else {"skipped": []}
        self.log = RunLog(self.folder, self.start, config.steps, self.fabric.is_global_zero)
        self.log.skip(self.fixed.pop("skipped"))
        if self.fabric.is_global_zero:
            self.log.notice(precision_notice(config, self.fabric.device))
            self.log.notice(schedule)
            save_yaml(config, self.folder / "config.yaml")

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

    # ------------------------------------------------------------------ checkpoints
    def _own_state(self) -> dict[str, Tensor]:
        """The stage's state without the frozen networks, which come from their files."""
        return {k: v for k, v in self.stage.state_dict().items() if k.split(".")[0] not in FROZEN}

    def save(self, name: str, step: int) -> None:
        """Write a checkpoint of the state after ``step`` steps, on the first process only.

        Raises NotFinite instead where a weight is not finite, so that the file before stays.
        """
        if not self.fabric.is_global_zero:
            return
        model, discriminator = self._own_state(), self.stage.discriminator
        judge = {} if discriminator is None else discriminator.state_dict()
        everything = [*model.items(), *((f"discriminator.{k}", v) for k, v in judge.items())]
        broken = [k for k, v in everything if v.is_floating_point() and not bool(v.isfinite().all())]
        if broken:
            raise self._not_finite(f"The weights ({broken[0]}) are not finite after step {step - 1}")
        state = {
            "stage": self.config.stage,
            "config": to_dict(self.config),
            "step": step,
            "model": model,
            "ema": self.ema.net.state_dict(),
            "optimisers": [o.state_dict() for o in (self.optimiser, self.optimiser_d) if o is not None],
            "discriminator": judge,
            "precision": self.fabric.strategy.precision.state_dict(),
            "best": self.best,
            "score": SCORE,
            "sources": self.sources,
        }
        write_checkpoint(state, self.folder / name)

    def forget_earlier(self) -> None:
        """Remove the checkpoints of the run that this one replaces."""
        for name in ("last.ckpt", "best.ckpt"):
            (self.folder / name).unlink(missing_ok=True)

    def _resume(self, path: Path) -> str | None:
        """Take over a checkpoint; returns a sentence where another length of the run changes the rates to come."""
        state = read_checkpoint(path)
        check_same(path, state, self.config, self.sources)
        lacking, extra = self.stage.load_state_dict(state["model"], strict=False)
        lacking = [k for k in lacking if k.split(".")[0] not in FROZEN]
        if lacking or extra:
            raise ConfigError(f"{path} does not hold this stage: '{[*lacking, *extra][0]}'. Start anew with init=...")
        self.ema.net.load_state_dict(state["ema"])
        optimisers = [o for o in (self.optimiser, self.optimiser_d) if o is not None]
        for optimiser, stored in zip(optimisers, state["optimisers"]):
            optimiser.load_state_dict(stored)
        if self.stage.discriminator is not None:
            self.stage.discriminator.load_state_dict(state["discriminator"])
        self.fabric.strategy.precision.load_state_dict(state.get("precision", {}))
        self.start = state["step"]
        if state.get("score") == SCORE:  # a score of other terms cannot be compared
            self.best = state["best"]
        before = state["config"]["steps"]
        if before == self.config.steps or self.config.optim.schedule != "cosine":
            return None
        return f"steps={self.config.steps} in place of {before}: the cosine schedule gives all later steps other rates."

    # ------------------------------------------------------------------ steps
    def _rate(self, step: int) -> float:
        rate = learning_rate(self.config.optim, step, self.config.steps)
        set_rate(self.optimiser, rate)
        if self.optimiser_d is not None:
            set_rate(self.optimiser_d, learning_rate(self.config.optim_d, step, self.config.steps))
        return rate

    def _seed(self, step: int) -> None:
        # Dropout and Gumbel noise: a function of run, step and process, so that a resumed run draws what an unbroken
        # one would have drawn. All other draws depend on the sample's position alone (see draws).
        torch.manual_seed((self.config.seed * 1_000_003 + step) * 65_537 + self.fabric.global_rank)

    def _not_finite(self, what: str) -> NotFinite:
        last = self.folder / "last.ckpt"
        good = f"{last} is the last good state" if last.exists() else "no checkpoint was written before"
        return NotFinite(f"{what}; {good}. Lower optim.lr or set optim.clip.")

    def _agree(self, values: list[Tensor], step: int, batch: dict[str, Any]) -> None:
        """Raise NotFinite where a value is not finite on any process, and take note where any was asked to stop.

        Every process must stop at the same step, or the others would wait for it for ever.
        """
        broken = ~torch.stack([v.detach().float() for v in values]).isfinite().all()
        asked = torch.tensor(self.stop.asked, device=broken.device)
        anywhere, self.stopping = (total(torch.stack([broken, asked]).float()) > 0).tolist()
        if not anywhere:
            return
        names = [name for part in gathered(batch["name"] if broken else []) for name in part]
        raise self._not_finite(
            f"The loss ({values[0].item():g}) or its gradient is not finite at step {step} with {', '.join(names)}"
        )

    def step(self, batch: dict[str, Any], step: int) -> dict[str, Any]:
        """One update of the network and of the discriminator where there is one; NotFinite comes before any update."""
        config, discriminator = self.config, self.stage.discriminator
        self._seed(step)
        extra: dict[str, Any] = dict(self.stage.before_step(batch, step, self.fabric))
        self._follow_jumps()
        if discriminator is not None:
            discriminator.requires_grad_(False)
        self.optimiser.zero_grad(set_to_none=True)
        out = self._gradients(batch, step)
        watched = [out["total"]]
        if config.optim.clip:
            extra["grad_norm"] = self.fabric.clip_gradients(
                self.stage, self.optimiser, max_norm=config.optim.clip, error_if_nonfinite=False
            )
            if config.precision != "16-mixed":  # there an overflow is normal: the scaler leaves the step out
                watched.append(extra["grad_norm"])
        self._agree(watched, step, batch)  # after backward is queued: the device works on while this waits
        self.optimiser.step()
        image = out.pop("image", None)
        if discriminator is not None and image is not None and step >= config.loss.gan_start:
            out["d"] = self._step_discriminator(discriminator, batch, image, step)
        self.ema.update(self.stage.net, step)
        return {**extra, **out}

    def _gradients(self, batch: dict[str, Any], step: int) -> dict[str, Any]:
        """The gradient of the batch's mean loss, part after part; returns means of the terms, and all images."""
        parts = split(batch, self.config.accumulate)
        outs: list[dict[str, Any]] = []
        for part in parts:
            last = part is parts[-1]
            with self.fabric.no_backward_sync(self.wrapped, enabled=not last):
                out = self.wrapped(part, step)
                self.fabric.backward(out["total"] / len(parts))
            outs.append({name: value.detach() for name, value in out.items()})
        if len(outs) == 1:
            return outs[0]
        joined = {name: torch.stack([out[name] for out in outs]).mean(0) for name in outs[0] if name != "image"}
        return joined | ({"image": torch.cat([out["image"] for out in outs])} if "image" in outs[0] else {})

    @torch.no_grad()
    def _follow_jumps(self) -> None:
        """Rows of a parameter that were set by hand start anew: the average takes them over, Adam forgets its moments.

        Otherwise the exported code would be a mixture of two places, where no encoder output ever was.
        """
        assert self.optimiser is not None
        for name, rows in self.stage.jumped.items():
            parameter = self.stage.net.get_parameter(name)
            self.ema.net.get_parameter(name)[rows] = parameter[rows]
            for moment in self.optimiser.optimizer.state.get(parameter, {}).values():
                if moment.shape == parameter.shape:
                    moment[rows] = 0
        self.stage.jumped = {}

    def _step_discriminator(self, discriminator: nn.Module, batch: dict[str, Any], image: Tensor, step: int) -> Tensor:
        assert self.wrapped_d is not None and self.optimiser_d is not None
        discriminator.requires_grad_(True)
        self.optimiser_d.zero_grad(set_to_none=True)
        parts = split({"truth": batch["truth"], "image": image}, self.config.accumulate)
        loss = image.new_zeros(())
        for part in parts:
            with self.fabric.no_backward_sync(self.wrapped_d, enabled=part is not parts[-1]):
                # apart: batch norm over both would tell them by their share of the statistics, which the generator's
                # step lacks
                real = self.wrapped_d(to_unit(part["truth"], image.device))
                share = hinge_discriminator(real.float(), self.wrapped_d(part["image"]).float()) / len(parts)
                self.fabric.backward(share)
            loss = loss + share.detach()
        if self.config.optim_d.clip:
            self.fabric.clip_gradients(
                discriminator, self.optimiser_d, max_norm=self.config.optim_d.clip, error_if_nonfinite=False
            )
        self.optimiser_d.step()
        return loss

    # ------------------------------------------------------------------ the run
    def run(self, until: int | None = None) -> Path:
        """Train to the end; returns the folder. Raises NotFinite; KeyboardInterrupt saves before it passes on.

        ``until``: end after that many steps instead, on the schedule of ``config.steps``.
        """
        config, fabric = self.config, self.fabric
        self.end = min(until or config.steps, config.steps)
        if self.start >= self.end:
            self.log.write(f"All {self.end} steps are done already.")
            self.log.close()
            return self.folder
        positions = PositionBatches(config.batch, fabric.global_rank, fabric.world_size, self.start, self.end)
        loader = make_loader(self.data, positions, config.data.workers)
        self.stage.train()
        try:
            with self.stop:
                for step, batch in zip(range(self.start, self.end), loader):
                    self.log.skip(batch.pop("skipped"))
                    rate = self._rate(step)
                    logs = self.step(move(batch, fabric.device), step)
                    done = step + 1
                    self.log.step(step, {**logs, "lr": rate}, done % config.log_every == 0 or done == self.end)
                    self._periodic(done)
                    if self.stopping:
                        self._interrupt(done)
        except NotFinite as error:
            self.log.write(str(error))
            raise
        finally:
            self.log.close()
        return self.folder

    def _interrupt(self, done: int) -> None:
        average_buffers(self.stage, self.ema.net, self.stage.discriminator)
        self.save("last.ckpt", done)
        self.log.write(f"Interrupted after {done} steps; {self.folder / 'last.ckpt'} holds them.")
        self.fabric.barrier()  # no process ends while the first one still writes
        raise KeyboardInterrupt

    def _periodic(self, done: int) -> None:
        """Validation, checkpoints and sample grids, each in its turn, all of them at the end."""
        config, last = self.config, done == self.end
        judge = bool(config.val_every) and (done % config.val_every == 0 or last)
        keep = done % config.save_every == 0 or last
        if judge or keep:
            average_buffers(self.stage, self.ema.net, self.stage.discriminator)
        if judge:
            self._validate(done)
        if keep:
            self.log.share_skipped()
            self.save("last.ckpt", done)
        if config.sample_every and (done % config.sample_every == 0 or last):
            self._sample(done)

    def _validate(self, done: int) -> None:
        if not self.fabric.is_global_zero:
            return
        means = validate(self.stage, self.ema.net, self.fixed)
        self.log.values(done, means)
        if means["val_score"] < self.best:
            self.best = means["val_score"]
            self.save("best.ckpt", done)

    def _sample(self, done: int) -> None:
        if self.fabric.is_global_zero and self.config.stage != "recogniser":
            chunk, image = restore_samples(self.stage, self.ema.net, self.fixed)
            sheet = sample_grid(chunk, image, self.stage.needs_degraded)
            self.log.picture(done, sheet)
