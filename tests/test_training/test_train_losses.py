"""The terms of the objective other than identity: codes, adversary, recogniser."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from idcodeformer.networks.vqgan import VectorQuantizer, VQGANConfig
from training.config import load_config
from training.data.dataset import PairDataset, collate, to_unit
from training.metrics import ssim
from training.stages import build_stage
from training.stages.codebook import kmeans, reset_dead
from training.stages.losses import (
    adaptive_weight,
    arcface_logits,
    code_losses,
    distillation,
    hinge_discriminator,
    pooled_l1,
    rim_weights,
)


def test_commitment_moves_the_encoder_and_the_codebook_term_the_codes():
    """beta = 0.25 belongs to the commitment term (equation 2); the published code weighs the other one."""
    quantise = VectorQuantizer(VQGANConfig(img_size=64, ch_mult=(1, 2, 2), codebook_size=8, emb_dim=4))
    for term, codes_move in ((1, True), (2, False)):
        z = torch.randn(2, 4, 3, 3, requires_grad=True)
        quantise.zero_grad()
        quantise(z)[term].backward()
        moved = quantise.embedding.weight.grad
        assert (moved is not None and bool(moved.abs().sum() > 0)) == codes_move
        assert (z.grad is not None and bool(z.grad.abs().sum() > 0)) != codes_move


def test_stage_1_weighs_the_terms_as_configured(base, faces):
    config = load_config(base, [f"data.roots=[{faces}]", "stage=stage1", "loss.l1=0", "loss.codebook=1"])
    assert config.loss.commitment == 0.25
    torch.manual_seed(0)
    stage = build_stage(config)
    data = PairDataset(config.data, config.degradation, 0)
    out = stage(collate([data[0], data[1]]), 0)
    assert torch.allclose(out["total"], out["codebook"] + 0.25 * out["commitment"])


def test_code_losses_are_those_of_a_right_and_a_wrong_prediction():
    codes, quant = torch.tensor([[0, 1]]), torch.randn(1, 4, 1, 2)
    sure = torch.tensor([[[20.0, 0, 0], [0, 20.0, 0]]])
    right = code_losses(sure, quant, codes, quant)
    wrong = code_losses(sure.flip(1), quant + 2, codes, quant)
    assert float(right[0]) < 1e-6 and float(right[1]) == 0
    assert float(wrong[0]) == pytest.approx(20, abs=1e-3) and float(wrong[1]) == pytest.approx(4, rel=1e-5)


def test_pooled_l1_sees_a_shift_of_colour_beneath_detail():
    truth, noise = torch.zeros(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    detail = noise - F.interpolate(F.avg_pool2d(noise, 16), scale_factor=16)  # no square has a mean
    assert pooled_l1(detail, truth, 16) < 1e-6
    image = (detail + 0.05).requires_grad_()
    loss = pooled_l1(image, truth, 16)
    loss.backward()
    assert loss.item() == pytest.approx(0.05, rel=1e-4)
    assert torch.allclose(image.grad, torch.full_like(image, 1 / image.numel()))  # each pixel pulls the same way
    assert pooled_l1(torch.ones(1, 3, 20, 20), torch.zeros(1, 3, 20, 20), 16) == 1  # squares cut by the edge count


@pytest.mark.parametrize("side", [64, 128, 512])
def test_the_rim_is_what_lies_beyond_the_recognisers_crop(side):
    """The crop of the FFHQ template is the square (64.8, 61.2) to (448.2, 444.6) of 512 px."""
    rim, scale, reach = rim_weights(side), side / 512, side // 8
    middle = round(254 * scale)
    assert rim.shape == (side, side) and float(rim.min()) == 0 and float(rim.max()) == 1
    for line, start in ((rim[middle], 64.8), (rim[:, middle], 61.2)):
        near, far = round(start * scale), round((start + 383.4) * scale)
        assert bool((line[near + reach + 2 : far - reach - 2] == 0).all())
        assert bool((line[: near - 1] > 0.9).all()) and bool((line[far + 1 :] > 0.9).all())
        assert float(line[near + reach // 2]) == pytest.approx(0.5, abs=0.15)  # half-way down the slope
        assert bool((line[: near + reach].diff() <= 1e-6).all())  # falls towards the face


def test_the_pooled_term_enters_with_its_weight(base, faces):
    config = load_config(base, [f"data.roots=[{faces}]", "stage=stage1", "loss.l1=0", "loss.pooled=3"])
    torch.manual_seed(0)
    stage = build_stage(config)
    data = PairDataset(config.data, config.degradation, 0)
    out = stage(collate([data[0], data[1]]), 0)
    assert torch.allclose(out["total"], 3 * out["pooled"] + out["codebook"] + 0.25 * out["commitment"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_mean_square_and_ssim_enter_with_their_weights(base, faces, precision):
    """Under mixed precision too the variances of SSIM are taken in fp32."""
    words = [f"data.roots=[{faces}]", "stage=stage1", "loss.l1=0", "loss.mse=3", "loss.ssim=0.5"]
    stage = build_stage(load_config(base, words))
    truth = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image, out = (0.5 * truth + 0.1).requires_grad_(), {}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        total = stage._reconstruction(image, truth, 0, out)
    assert out["mse"].item() == pytest.approx((0.5 * truth - 0.1).square().mean().item(), rel=1e-5)
    likeness = ssim(image.detach() / 2 + 0.5, truth / 2 + 0.5).mean().item()
    assert out["ssim"].item() == pytest.approx(1 - likeness, abs=1e-5)
    assert torch.allclose(total, 3 * out["mse"] + 0.5 * out["ssim"])
    slope, after = torch.autograd.grad(out["ssim"], image)[0], {}
    stage._reconstruction(image.detach() - 0.02 * slope / slope.abs().max(), truth, 0, after)
    assert after["ssim"] < out["ssim"]  # the gradient leads towards the truth


@pytest.mark.parametrize("adain", [False, True])
def test_stage_3_is_validated_as_it_is_trained(base, faces, runs, arguments, adain):
    words = [f"data.roots=[{faces}]", *arguments["stage3"], f"fidelity.adain={adain}"]
    assert runs["stage2"].exists()
    config = load_config(base, words)
    torch.manual_seed(0)
    stage = build_stage(config).eval()
    batch = collate([PairDataset(config.data, config.degradation, 0)[0]])
    degraded = to_unit(batch["degraded"])
    with torch.no_grad():
        got, with_it, without = (
            stage.restored(batch), stage.net(degraded, w=1.0, adain=True)[0], stage.net(degraded, w=1.0)[0]
        )  # fmt: skip
    assert not torch.allclose(with_it, without, atol=1e-3)
    assert torch.allclose(got, with_it if adain else without, atol=1e-5)
    shown = (with_it if adain else without).clamp(-1, 1)  # what is judged is what would be seen
    with torch.no_grad():
        assert float(stage.validate(batch)["l1"]) == pytest.approx(float(F.l1_loss(shown, to_unit(batch["truth"]))))


def test_kmeans_finds_the_clusters():
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    points = middles.repeat(50, 1) + torch.randn(150, 2, generator=generator) * 0.1
    centres = kmeans(points, 3, 20, generator)
    assert torch.cdist(middles, centres).min(1).values.max() < 0.1
    assert kmeans(points[:2], 5, 3, generator).isfinite().all()  # fewer points than codes


def test_only_dead_codes_move_and_to_points():
    codes, points = torch.arange(8.0).view(4, 2), torch.full((3, 2), 99.0)
    dead = reset_dead(codes, torch.tensor([1, 0, 5, 0]), points, torch.Generator().manual_seed(0))
    assert dead == 2 and codes.tolist() == [[0, 1], [99, 99], [4, 5], [99, 99]]


def test_adaptive_weight_levels_the_gradients():
    layer = torch.ones(10, requires_grad=True)
    assert float(adaptive_weight(3 * layer.sum(), 6 * layer.sum(), layer, 0.8)) == pytest.approx(0.4, rel=1e-3)
    assert float(adaptive_weight(9 * layer.sum(), layer.sum(), layer, 0.8)) == pytest.approx(0.8)  # clamped to 1
    assert not adaptive_weight(layer.sum(), layer.sum(), layer, 0.8).requires_grad


def test_adaptive_weight_of_an_unused_layer_is_zero():
    layer, other = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    assert float(adaptive_weight(other.sum(), other.sum(), layer, 0.8)) == 0
    assert float(adaptive_weight((0 * layer).sum(), (0 * layer).sum(), layer, 0.8)) == 0


def test_hinge_stops_where_the_discriminator_is_sure():
    assert float(hinge_discriminator(torch.tensor([2.0]), torch.tensor([-2.0]))) == 0
    assert float(hinge_discriminator(torch.tensor([0.0]), torch.tensor([0.0]))) == 1
    assert float(hinge_discriminator(torch.tensor([-1.0]), torch.tensor([1.0]))) == 2


def test_arcface_margin_is_added_to_the_angle_of_the_own_class():
    embedding, centres = F.normalize(torch.randn(4, 8)), torch.randn(5, 8)
    labels = torch.tensor([0, 1, 2, 3])
    plain, margin = (arcface_logits(embedding, centres, labels, m, 64.0) / 64 for m in (0.0, 0.3))
    own = F.one_hot(labels, 5).bool()
    assert torch.allclose(margin[~own], plain[~own])
    assert torch.allclose(margin[own].acos(), plain[own].acos() + 0.3, atol=1e-3)


def test_distillation_is_zero_for_the_teacher_itself_at_any_length():
    teacher = torch.randn(6, 8)
    assert all(float(v) == pytest.approx(0, abs=1e-6) for v in distillation(3 * teacher, teacher, 1.0))
    direct, relation = distillation(torch.randn(6, 8), teacher, 1.0)
    assert float(direct) > 0.3 and float(relation) > 0.01


def test_distillation_weighs_the_relations_within_the_batch():
    """Two faces whose likeness to each other is 0 for the student and 1 for the teacher, both half right."""
    teacher = torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    student = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    direct, relation = distillation(student, teacher, 2.0)
    assert float(direct) == pytest.approx(1 - 0.5**0.5, abs=1e-6)
    assert float(relation) == pytest.approx(2 * (1 + 1) / 4, abs=1e-5)  # of four pairs two are off by 1


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_arcface_learns_on_from_a_face_at_its_centre_and_from_its_opposite(side):
    """The slope of the angle is infinite there; and no margin turns a face beyond the opposite of its centre."""
    embedding = torch.tensor([[side, 0.0]], requires_grad=True)
    logits = arcface_logits(embedding, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0]), 0.5, 10.0)
    wanted = math.cos(0.5) if side > 0 else -1.0
    assert logits[0].tolist() == pytest.approx([10 * wanted, 0], abs=0.02)
    F.cross_entropy(logits, torch.tensor([0])).backward()
    assert bool(embedding.grad.isfinite().all())
