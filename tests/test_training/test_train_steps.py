"""Optimisers, moving average, draws, and what one step does."""
from __future__ import annotations

import pytest
import torch
from test_train_stages import figures
from torch import nn

from training.checkpoint import read_checkpoint
from training.config import ConfigError, OptimConfig, load_config
from training.data.dataset import collate, to_unit
from training.data.sampling import uniform
from training.launch import half_precision_cost
from training.optim import EMA, adam, learning_rate
from training.stages.losses import hinge_discriminator
from training.trainer import Trainer


def test_moving_average():
    net = nn.BatchNorm1d(2)
    average = EMA(net, 0.9, 1 / 9)
    nn.init.constant_(net.weight, 11.0)
    net.num_batches_tracked += 5
    average.update(net, 1000)
    assert torch.allclose(average.net.weight, torch.full((2,), 0.9 * 1 + 0.1 * 11))
    assert average.net.num_batches_tracked == 5 and not average.net.weight.requires_grad
    early = EMA(nn.BatchNorm1d(2), 0.9, 1 / 9)
    early.update(net, 0)  # at the start a memory of (1 + step) / (10 + step)
    assert torch.allclose(early.net.weight, torch.full((2,), 0.1 * 1 + 0.9 * 11))


@pytest.mark.parametrize("share, mean", [(1.0, 50.5), (1 / 9, 91.0)])
def test_moving_average_spans_a_share_of_the_steps(share, mean):
    """Weights 1 to 100 in as many steps: the whole share gives their plain mean, a ninth the end of the run."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    average = EMA(net, 0.999, share)
    for step in range(100):
        nn.init.constant_(net.weight, step + 1.0)
        average.update(net, step)
    assert float(average.net.weight) == pytest.approx(mean, abs=1)


def test_learning_rates():
    cosine = OptimConfig(lr=1.0, lr_min=0.2, warmup=10)
    assert [learning_rate(cosine, s, 110) for s in (0, 4, 10, 60, 110)] == pytest.approx([0.1, 0.5, 1.0, 0.6, 0.2])
    assert [learning_rate(cosine, s, 110) for s in (160, 210)] == [0.2, 0.2]  # a run that goes on stays down there
    steps = OptimConfig(lr=1.0, schedule="steps", milestones=[5, 8])
    assert [learning_rate(steps, s, 10) for s in (4, 5, 8)] == [1.0, 0.5, 0.25]
    assert learning_rate(OptimConfig(lr=1.0, schedule="constant"), 9, 10) == 1.0


def test_weight_decay_makes_it_adamw():
    params = [nn.Parameter(torch.ones(1))]
    assert type(adam(params, OptimConfig())) is torch.optim.Adam
    decayed = adam(params, OptimConfig(weight_decay=0.1, betas=[0.5, 0.9]))
    assert type(decayed) is torch.optim.AdamW and decayed.param_groups[0]["betas"] == (0.5, 0.9)


def test_draws_depend_on_position_seed_and_stream_alone():
    positions = torch.arange(400)
    whole = uniform(positions, 1, "fidelity", 2)
    assert torch.equal(whole[:, 100:], uniform(positions[100:], 1, "fidelity", 2))
    assert whole.min() >= 0 and whole.max() < 1 and whole.mean() == pytest.approx(0.5, abs=0.05)
    for other in (uniform(positions, 2, "fidelity", 2), uniform(positions, 1, "jitter", 2)):
        assert abs(float(torch.corrcoef(torch.stack([whole[0], other[0]]))[0, 1])) < 0.15


def test_gradients_are_clipped(base, faces, arguments, tmp_path):
    norms = []
    for clip in (1e9, 1e-3):
        config = load_config(base, [f"data.roots=[{faces}]", f"out={tmp_path}", "stage=stage1", f"optim.clip={clip}"])
        trainer = Trainer(config)
        batch = collate([trainer.data[i] for i in range(4)])
        said = trainer.step(batch, 0)["grad_norm"]
        grads = torch.cat([p.grad.flatten() for p in trainer.stage.trainable() if p.grad is not None])
        norms.append((float(said), float(grads.norm())))
        trainer.log.close()
    assert norms[0][0] == pytest.approx(norms[0][1], rel=1e-4) == pytest.approx(norms[1][0], rel=1e-4)
    assert norms[0][0] > 0.01 and norms[1][1] == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("name", ["stage2", "control"])
def test_the_gradient_of_parts_is_that_of_the_batch(runs, base, faces, arguments, tmp_path, name):
    """Also the discriminator's, under group norm; terms are means over the parts."""
    runs["stage2"]
    seen = []
    for parts in (1, 2, 4):
        words = [f"data.roots=[{faces}]", *arguments[name], f"out={tmp_path / str(parts)}", f"accumulate={parts}"]
        words += ["optim.clip=1e9", "loss.gan_start=0", "loss.gan=0", "loss.perceptual=0"]
        trainer = Trainer(load_config(base, words))
        batch = collate([trainer.data[i] for i in range(4)])
        logs = trainer.step(batch, 0)
        grads = torch.cat([p.grad.flatten() for p in trainer.stage.trainable() if p.grad is not None])
        seen.append((float(logs["total"]), grads))
        trainer.log.close()
    for total, grads in seen[1:]:
        assert total == pytest.approx(seen[0][0], rel=1e-4)
        assert float((grads - seen[0][1]).norm()) < 1e-3 * float(seen[0][1].norm())


def test_the_discriminator_sees_every_part(runs, base, faces, arguments, tmp_path):
    runs["stage2"]
    norms = []
    for parts in (1, 2):
        words = [f"data.roots=[{faces}]", *arguments["control"], f"out={tmp_path / str(parts)}", f"accumulate={parts}"]
        trainer = Trainer(load_config(base, [*words, "loss.gan_start=0", "optim_d.clip=1e9", "optim_d.lr=0"]))
        batch = collate([trainer.data[i] for i in range(4)])
        logs = trainer.step(batch, 0)
        grads = [p.grad.flatten() for p in trainer.stage.discriminator.parameters() if p.grad is not None]
        norms.append((float(logs["d"]), torch.cat(grads)))
        trainer.log.close()
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-4)
    assert float((norms[0][1] - norms[1][1]).norm()) < 1e-3 * float(norms[0][1].norm())


def test_each_step_draws_by_run_step_and_process(base, faces, tmp_path, monkeypatch):
    """Dropout and Gumbel noise of a resumed run are those of an unbroken one, whatever was drawn before."""

    def drawn(step, rank=0, *words):
        config = load_config(base, [f"data.roots=[{faces}]", f"out={tmp_path}", "stage=stage1", *words])
        trainer, seen = Trainer(config), []
        monkeypatch.setattr(type(trainer.fabric), "global_rank", property(lambda _: rank))
        monkeypatch.setattr(trainer.stage, "before_step", lambda *_: seen.append(float(torch.rand(()))) or {})
        torch.rand(step + 5)
        trainer.step(collate([trainer.data[i] for i in range(4)]), step)
        monkeypatch.undo()
        trainer.log.close()
        return seen[0]

    first = drawn(3)
    assert first == drawn(3)
    others = [drawn(4), drawn(3, 1), drawn(3, 0, "seed=7")]
    assert len({first, *others}) == 4


def test_a_parameter_that_a_step_does_not_use_stays_where_it_is(runs, base, faces, arguments, tmp_path):
    """A gradient of zeros in place of none would move it on by its momentum."""
    runs["stage2"]
    words = [*arguments["control"], "fidelity.code_only_every=2", "fidelity.code_only_from=1", "loss.gan=0"]
    trainer = Trainer(load_config(base, [f"data.roots=[{faces}]", f"out={tmp_path}", *words]))
    batch, fusion = collate([trainer.data[i] for i in range(4)]), trainer.stage.net.fuse_convs_dict
    trainer.step(batch, 0)
    before = [p.clone() for p in fusion.parameters()]
    assert "l1" not in trainer.step(batch, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, fusion.parameters()))
    trainer.step(batch, 2)
    assert not all(torch.equal(a, b) for a, b in zip(before, fusion.parameters()))
    trainer.log.close()


def test_the_generators_step_costs_the_discriminator_no_gradient(base, faces, tmp_path, monkeypatch):
    words = [f"data.roots=[{faces}]", f"out={tmp_path}", "stage=stage1", "loss.gan=0.8"]
    trainer, seen = Trainer(load_config(base, words)), []
    learn = trainer._step_discriminator

    def watched(discriminator, *given):
        seen.extend(p.grad is None for p in discriminator.parameters())
        return learn(discriminator, *given)

    monkeypatch.setattr(trainer, "_step_discriminator", watched)
    logs = trainer.step(collate([trainer.data[i] for i in range(4)]), 0)
    trainer.log.close()
    assert "gan" in logs and seen and all(seen)


def test_a_run_takes_the_threads_it_is_given(base, faces, tmp_path):
    config = load_config(base, [f"data.roots=[{faces}]", f"out={tmp_path}", "stage=stage1", "threads=2"])
    Trainer(config).log.close()
    assert torch.get_num_threads() == 2


def test_parts_have_to_be_equal(base, faces, tmp_path):
    with pytest.raises(ConfigError, match="accumulate.*4 images of a process do not divide into 3 parts"):
        load_config(base, [f"data.roots=[{faces}]", f"out={tmp_path}", "stage=stage1", "accumulate=3"])


def test_discriminator_learns_only_from_its_own_loss(base, faces, arguments, tmp_path):
    config = load_config(
        base, [f"data.roots=[{faces}]", f"out={tmp_path}", "stage=stage1", "loss.gan=0.8", "loss.gan_start=1"]
    )
    trainer = Trainer(config)
    batch = collate([trainer.data[i] for i in range(4)])
    before = [p.clone() for p in trainer.stage.discriminator.parameters()]
    assert "gan" not in trainer.step(batch, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.stage.discriminator.parameters()))
    logs = trainer.step(batch, 1)
    assert float(logs["d"]) == pytest.approx(1, abs=0.3)  # it cannot tell yet
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.stage.discriminator.parameters())]
    assert all(moved[:-1])  # the last bias shifts real and fake alike: no gradient
    assert not any(p is q for p in trainer.stage.trainable() for q in trainer.stage.discriminator.parameters())
    falls = [float(trainer.step(batch, s)["d"]) for s in range(2, 12)]
    assert falls[-1] < falls[0]
    trainer.log.close()


def test_discriminator_judges_restored_faces_as_the_generator_step_does(base, faces, tmp_path):
    """Under batch norm a pass over real and restored faces together would give other logits for the same faces."""
    words = [f"data.roots=[{faces}]", f"out={tmp_path}", "stage=stage1", "loss.gan=0.8", "loss.gan_norm=batch"]
    trainer = Trainer(load_config(base, words))
    batch, seen = collate([trainer.data[i] for i in range(4)]), []
    trainer.stage.discriminator.register_forward_hook(lambda _m, args, out: seen.append((args[0], out.detach())))
    logs = trainer.step(batch, 0)
    trainer.log.close()
    generator, real, fake = seen
    assert torch.equal(real[0], to_unit(batch["truth"])) and torch.equal(fake[0], generator[0])
    assert torch.equal(fake[1], generator[1]) and not torch.equal(real[1], fake[1])
    assert float(logs["gan"].detach()) == pytest.approx(-float(generator[1].mean()))
    assert float(logs["d"]) == pytest.approx(float(hinge_discriminator(real[1], fake[1])))


@pytest.mark.parametrize("name", ["stage1", "stage3_id", "distil"])
def test_mixed_precision_follows_fp32_and_keeps_fp32_weights(runs, train, arguments, base, faces, tmp_path, name):
    runs["stage2"]
    curves = []
    for precision in ("32-true", "bf16-mixed"):
        out = tmp_path / precision
        words = [*arguments[name], "loss.gan=0", "codebook.kmeans_steps=0", "steps=3", "log_every=1", "val_every=0"]
        assert train(out, *words, f"precision={precision}") == 0
        curves.append(figures(out)["total"])
        assert all(v.dtype == torch.float32 for v in read_checkpoint(out / "last.ckpt")["model"].values() if v.ndim)
    assert list(curves[1].values()) == pytest.approx(list(curves[0].values()), rel=0.03)
    assert curves[0] != curves[1]


@pytest.mark.parametrize(
    "precision, cost, said", [("bf16-mixed", 5.0, True), ("bf16-mixed", 0.7, False), ("32-true", 5.0, False)]
)
def test_slow_mixed_precision_is_named(train, arguments, tmp_path, monkeypatch, capsys, precision, cost, said):
    monkeypatch.setattr("training.launch.half_precision_cost", lambda dtype: cost)
    assert train(tmp_path / "run", *arguments["distil"], "steps=1", "val_every=0", f"precision={precision}") == 0
    sentence = "precision=bf16-mixed is slow on this CPU: a convolution takes 5 times"
    assert (sentence in (tmp_path / "run" / "log.txt").read_text()) == said
    assert (sentence in capsys.readouterr().err) == said


def test_cost_of_half_precision_is_a_ratio_of_times():
    before = torch.get_rng_state()
    assert 0.05 < half_precision_cost() < 1000
    assert torch.equal(before, torch.get_rng_state())  # a run that is told of it draws the same
