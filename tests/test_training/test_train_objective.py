"""The objective of each stage: which terms, with which weight and sign, from which image."""
from __future__ import annotations

import pytest
import torch

from training.config import load_config
from training.data.dataset import PairDataset, collate, to_unit
from training.stages import build_stage
from training.stages.losses import adaptive_weight

PRIMES = {"l1": 2.0, "pooled": 3.0, "mse": 5.0, "ssim": 7.0, "code": 11.0, "feature": 13.0, "identity": 17.0}


@pytest.fixture
def make(base, faces, runs, arguments):
    """``make("stage3_id", *words)`` -> the stage in training mode and a batch whose inputs differ from their truths."""

    def build(name, *words):
        if name.startswith(("stage2", "stage3", "control")):
            runs["stage2"]
        config = load_config(base, [f"data.roots=[{faces}]", *arguments[name], *words])
        torch.manual_seed(0)
        data = PairDataset(config.data, config.degradation, 0)
        return build_stage(config, 4).train(), collate([data[i] for i in range(3)])

    return build


def norm(part) -> float:
    return sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None)


@pytest.mark.parametrize("codebook, commitment", [(3, 0), (0, 3)])
def test_stage_1_weighs_codes_and_encoder_apart(make, codebook, commitment):
    """Both terms have one value; only their gradients tell which weight belongs to which."""
    words = [f"loss.codebook={codebook}", f"loss.commitment={commitment}", "loss.l1=0", "loss.perceptual=0"]
    stage, batch = make("stage1", *words, "loss.gan=0", "codebook.kmeans_steps=0")
    out = stage(batch, 0)
    assert out["total"].item() == pytest.approx(3 * out["codebook"].item(), rel=1e-5)
    out["total"].backward()
    assert (norm(stage.net.quantize) > 0) == (codebook > 0) and (norm(stage.net.encoder) > 0) == (commitment > 0)


def test_stage_2_learns_the_codes_of_the_truth_with_its_weights(make):
    stage, batch = make("stage2", "loss.code=11", "loss.feature=13")
    out = stage(batch, 0)
    assert out["total"].item() == pytest.approx(11 * out["code"].item() + 13 * out["feature"].item(), rel=1e-5)
    truth, degraded = (to_unit(batch[k]) for k in ("truth", "degraded"))
    codes, others = stage.target.tokenize(truth), stage.target.tokenize(degraded)
    assert not torch.equal(codes, others)
    _, targets, quant = stage._targets(batch)
    assert torch.equal(targets, codes)
    assert torch.equal(quant, stage.target.quantize.lookup(codes, 16, 16))
    features = stage.net.encoder(degraded)
    logits = stage.net.predict(features)
    likely = logits.log_softmax(2).gather(2, codes[..., None]).mean()
    assert out["code"].item() == pytest.approx(-likely.item(), rel=1e-4)
    assert out["feature"].item() == pytest.approx((features - quant).square().mean().item(), rel=1e-4)
    right = (logits.argmax(2) == codes).float().mean().item()
    assert out["code_accuracy"].item() == pytest.approx(right)


@pytest.mark.parametrize("validating", [False, True])
def test_stage_3_weighs_every_term(make, validating, runs):
    anchor = runs["stage3_id"] / "last.ckpt"
    words = [f"loss.{k}={v}" for k, v in PRIMES.items()]
    words += ["loss.gan=0", "loss.anchor=19", f"loss.anchor_weights={anchor}"]
    stage, batch = make("stage3_id", *words)
    if validating:
        with torch.no_grad():
            out = stage.eval().validate(batch)
    else:
        out = stage(batch, 0)
    total = out["score" if validating else "total"].item()
    parts = {**PRIMES, "anchor": 19.0}
    assert min(out[k].item() for k in parts) > 0
    assert total == pytest.approx(sum(v * out[k].item() for k, v in parts.items()), rel=1e-5)


def test_stage_1_is_judged_by_all_that_it_weighs(make):
    words = ["loss.l1=2", "loss.pooled=3", "loss.mse=5", "loss.ssim=7", "loss.perceptual=11", "loss.codebook=13"]
    stage, batch = make("stage1", *words, "loss.commitment=17", "loss.perceptual_every=2")
    with torch.no_grad():
        out = stage.eval().validate(batch)
    weights = {"l1": 2, "pooled": 3, "mse": 5, "ssim": 7, "perceptual": 11, "codebook": 13, "commitment": 17}
    assert out["score"].item() == pytest.approx(sum(v * out[k].item() for k, v in weights.items()), rel=1e-5)
    assert set(out) == {*weights, "psnr", "score"}


def test_the_perceptual_term_comes_in_its_steps_with_a_larger_weight(make):
    stage, batch = make("stage1", "loss.gan=0", "loss.l1=2", "loss.perceptual=3", "loss.perceptual_every=4")
    truth = to_unit(batch["truth"])
    for step, there in ((3, False), (4, True)):
        out: dict[str, torch.Tensor] = {}
        total = stage._reconstruction(truth * 0.5, truth, step, out).item()
        assert ("perceptual" in out) == there
        extra = 3 * 4 * out["perceptual"].item() if there else 0
        assert total == pytest.approx(2 * out["l1"].item() + extra, rel=1e-5)


def test_the_identity_term_starts_at_its_step(make):
    stage, batch = make("stage3_id", "loss.gan=0", "loss.identity_start=5")
    assert "identity" not in stage(batch, 4) and "identity" in stage(batch, 5)


def test_a_step_of_the_generator_raises_the_discriminators_score(make):
    stage, batch = make("stage1", "loss.gan=1", "loss.gan_start=3")
    layer = (torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 0.1).requires_grad_()
    image = to_unit(batch["truth"]) * 0.5 + layer
    out: dict[str, torch.Tensor] = {}
    assert float(stage._adversarial(image, image.abs().mean(), 2, layer, out)) == 0 and "gan" not in out
    term = stage._adversarial(image, image.abs().mean() * 100, 3, layer, out)
    (slope,) = torch.autograd.grad(term, layer)
    assert not out["image"].requires_grad and torch.equal(out["image"], image)
    with torch.no_grad():
        before = stage.discriminator(image).mean()
        after = stage.discriminator(image - 0.02 * slope / slope.abs().max()).mean()
    assert after > before and out["gan"].item() == pytest.approx(-before.item(), rel=1e-4)
    assert term.item() == pytest.approx(out["gan_weight"].item() * out["gan"].item(), rel=1e-5)


@pytest.mark.parametrize("detached", [True, False])
def test_detached_features_keep_image_losses_from_the_encoder(make, detached):
    words = ["loss.code=0", "loss.feature=0", "loss.gan=0", "loss.identity=0", "fidelity.code_selection=hard"]
    stage, batch = make("stage3_id", *words, f"fidelity.detach_features={detached}")
    stage(batch, 0)["total"].backward()
    assert norm(stage.net.fuse_convs_dict) > 0 and (norm(stage.net.encoder) > 0) != detached


def test_identity_and_w_go_by_the_sample(make, monkeypatch):
    stage, batch = make("stage3_id", "loss.gan=0", "fidelity.full=0.25", "fidelity.low=0.2", "fidelity.high=0.6")
    w = stage._draw_w(list(range(400)))
    rest = w[w < 1]
    assert (w == 1).float().mean().item() == pytest.approx(0.25, abs=0.07)
    assert 0.2 <= rest.min() < 0.25 and 0.55 < rest.max() <= 0.6
    given, decode = [], stage.net.decode
    monkeypatch.setattr(stage.net, "decode", lambda state, w, *more: given.append(w) or decode(state, w, *more))
    stage(batch, 0)
    assert torch.equal(given[0], stage._draw_w(batch["position"]))


def test_the_adaptive_weight_holds_in_half_precision():
    """Gradients of a mean over millions of pixels lie below what fp16 can hold."""
    weights = []
    for dtype in (torch.float32, torch.float16):
        layer = torch.ones(8, requires_grad=True)
        image = layer.to(dtype).float()
        weights.append(float(adaptive_weight(image.sum() * 3e-7, image.sum() * 7e-7, layer, 1.0)))
    scaled = [3e-7 * 8**0.5 / (7e-7 * 8**0.5 + 1e-4)] * 2
    assert weights == pytest.approx(scaled, rel=1e-3)
    layer = torch.ones(2, requires_grad=True)
    assert float(adaptive_weight(layer.sum(), (layer * float("inf")).sum(), layer, 0.8)) == 0


def test_validation_says_psnr_in_units_of_0_to_1(make):
    stage, batch = make("stage1", "loss.perceptual=0")
    truth = to_unit(batch["truth"]) * 0.5
    error = torch.tensor([0.2, 0.02, 0.02]).view(3, 1, 1, 1)  # of -1..1: 20, 40 and 40 dB, averaged over the images
    out: dict[str, torch.Tensor] = {}
    stage._judged(truth + error, truth, out)
    assert out["psnr"].item() == pytest.approx(100 / 3, abs=1e-3) and out["l1"].item() == pytest.approx(0.08, rel=1e-4)


def test_what_a_stage_does_not_train_stays_in_evaluation_mode(make):
    stage, _ = make("stage3_id", "fidelity.train_generator=false", "fidelity.freeze=[encoder]")
    still = {name for name, part in stage.net.named_children() if not part.training}
    assert still == {"encoder", "quantize", "generator"}
    stage.eval().train()
    assert still == {name for name, part in stage.net.named_children() if not part.training}
