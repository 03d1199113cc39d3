"""The identity loss: what the recognisers are shown, in which numbers, and where the gradient goes."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from idcodeformer.geometry.templates import ARCFACE_112, ffhq_template
from idcodeformer.networks.arcface import IResNet, IResNetConfig
from idcodeformer.runtime.device import cuda_tf32
from training.stages.losses import IdentityLoss, blurred


class Listener(nn.Module):
    """A recogniser that remembers what it is shown."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 112 * 112, 8)
        self.norm = nn.BatchNorm1d(8)
        self.seen: list[torch.Tensor] = []
        self.types: list[torch.dtype] = []
        self.rounds: list[tuple[bool, bool]] = []  # whether CUDA might round convolutions and products

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach())
        out = self.norm(self.layer(x.flatten(1)))
        self.types.append(out.dtype)
        self.rounds.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return out


@pytest.fixture
def listener() -> Listener:
    torch.manual_seed(0)
    return Listener()


@pytest.mark.parametrize("size", [64, 128, 512])
def test_identity_crop_puts_the_landmarks_on_the_arcface_template(listener, size):
    """A soft dot at each FFHQ landmark arrives within 2.6 px of its place; the templates differ by 1.9 px rms."""
    grid = torch.arange(size).float()
    for point, place in zip(torch.from_numpy(ffhq_template(size)).float(), ARCFACE_112):
        dot = torch.exp(-((grid[None] - point[0]) ** 2 + (grid[:, None] - point[1]) ** 2) / (2 * (size / 100) ** 2))
        image = (dot * 2 - 1).expand(1, 3, size, size)
        IdentityLoss([listener])(image, image)
        crop = listener.seen[-1][0, 0] + 1
        assert crop.shape == (112, 112)
        found = [(crop.sum(d) * torch.arange(112)).sum() / crop.sum() for d in (0, 1)]
        assert max(abs(float(f) - p) for f, p in zip(found, place)) < 2.6


def test_recogniser_sees_rgb_between_minus_one_and_one(listener):
    colour = torch.tensor([1.0, 0.2, -1.0]).view(1, 3, 1, 1).expand(2, 3, 128, 128)
    IdentityLoss([listener])(colour, colour)
    assert torch.allclose(listener.seen[0].mean((0, 2, 3)), torch.tensor([1.0, 0.2, -1.0]), atol=1e-5)


def test_identity_crop_is_anti_aliased(listener):
    """A one-pixel chequerboard at 512 px is grey at 112; plain sampling would show a false pattern."""
    board = (torch.arange(512)[:, None] + torch.arange(512)) % 2 * 2.0 - 1
    IdentityLoss([listener])(*[board.expand(1, 3, 512, 512)] * 2)
    assert listener.seen[0].abs().max() < 0.05


def test_identity_loss_is_one_minus_cosine_and_zero_for_the_same_image(listener):
    a, b = torch.rand(3, 3, 128, 128) * 2 - 1, torch.rand(3, 3, 128, 128) * 2 - 1
    loss = IdentityLoss([listener])
    assert float(loss(a, a)) == pytest.approx(0, abs=1e-6)
    value = loss(a, b)
    e, f = (listener.eval()(x) for x in listener.seen[-2:])
    assert 0 < float(value) <= 2
    assert float(value) == pytest.approx(float(1 - F.cosine_similarity(e, f).mean()), abs=1e-5)


def test_several_recognisers_are_averaged():
    torch.manual_seed(1)
    first, second = Listener(), Listener()
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    both, one, other = (float(IdentityLoss(nets)(a, b)) for nets in ([first, second], [first], [second]))
    assert both == pytest.approx((one + other) / 2, abs=1e-6) and one != pytest.approx(other, abs=1e-3)


def test_gradient_flows_through_the_crop_and_not_into_the_recogniser(listener):
    image = (torch.rand(2, 3, 128, 128) * 2 - 1).requires_grad_()
    truth = (torch.rand(2, 3, 128, 128) * 2 - 1).requires_grad_()
    loss = IdentityLoss([listener]).train()
    loss(image, truth).backward()
    assert truth.grad is None and all(p.grad is None for p in listener.parameters())
    inside, edge = image.grad[..., 20:108, 20:108].abs(), image.grad[..., :10].abs()
    assert (inside > 0).float().mean() > 0.9 and edge.max() == 0  # the frame outside the template says nothing
    assert not listener.training and listener.norm.num_batches_tracked == 0


def test_recogniser_runs_in_fp32_whatever_surrounds_it(listener):
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    loss = IdentityLoss([listener])
    plain = loss(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(a, b)
        assert F.linear(a, torch.zeros(1, 64)).dtype == torch.bfloat16  # autocast is on out here
    assert torch.equal(plain, mixed) and set(listener.types) == {torch.float32}
    assert loss(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_recogniser_does_not_round_to_tf32_where_the_training_does(listener):
    with cuda_tf32(True):
        IdentityLoss([listener])(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64))
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32  # put back
    assert set(listener.rounds) == {(False, False)}


def test_a_face_weighs_what_its_input_still_shows(listener):
    generator = torch.Generator().manual_seed(0)
    truth, restored, other = (torch.rand(3, 3, 128, 128, generator=generator) * 2 - 1 for _ in range(3))
    degraded = torch.stack([truth[0], truth[1].lerp(other[1], 0.5), -truth[2]])
    loss = IdentityLoss([listener], seen=0.5)
    alone = [[x[i : i + 1] for x in (restored, truth, degraded)] for i in range(3)]
    seen = torch.stack([loss(a, b, degraded=c) for a, b, c in alone])
    plain = torch.stack([loss(a, b) for a, b, _ in alone])  # without an input all alike
    crops = [listener(loss._crop(x, None, None)) for x in (degraded, truth)]
    share = F.cosine_similarity(*crops).clamp(min=0).sqrt()
    assert torch.allclose(seen, share * plain, atol=1e-5)
    assert share[0] == pytest.approx(1, abs=1e-3) and 0 < share[1] < 0.99 and share.min() == share[2]
    assert torch.equal(IdentityLoss([listener])(restored, truth, degraded=degraded), loss(restored, truth))  # power 0
    inputs = degraded.requires_grad_()
    loss(restored.requires_grad_(), truth, degraded=inputs).backward()
    assert inputs.grad is None and restored.grad.abs().sum() > 0


def test_jitter_belongs_to_the_sample(listener):
    image = (torch.rand(1, 3, 128, 128) * 2 - 1).expand(3, -1, -1, -1).clone()
    loss = IdentityLoss([listener], jitter=3.0, seed=1)

    def crops(positions):
        loss(image, image, positions)
        assert torch.equal(*listener.seen[-2:])  # restored and truth are shifted alike
        return listener.seen[-1]

    still, moved = crops(None), crops(torch.tensor([4, 5, 6]))
    assert torch.equal(still[0], still[1])
    assert not torch.allclose(moved[0], still[0], atol=1e-3) and not torch.allclose(moved[0], moved[1], atol=1e-3)
    assert torch.equal(moved[1], crops(torch.tensor([9, 5, 8]))[1])  # whoever its neighbours are
    IdentityLoss([listener], jitter=3.0, seed=2)(image, image, torch.tensor([4, 5, 6]))
    assert not torch.allclose(moved, listener.seen[-1], atol=1e-3)


def test_jitter_is_bounded_and_in_px(listener):
    ramp = torch.linspace(-1, 1, 128).expand(64, 3, 128, 128)  # brightness tells the column
    loss = IdentityLoss([listener], jitter=2.0)
    loss(ramp, ramp)
    still = listener.seen[-1][:, 0, 56, 56]
    slope = float(listener.seen[-1][0, 0, 56, 57] - still[0])
    loss(ramp, ramp, torch.arange(64))
    shift = (listener.seen[-1][:, 0, 56, 56] - still) / slope
    assert 1.5 < shift.abs().max() <= 2.001 and shift.min() < -0.5 < 0.5 < shift.max()


def test_blur_belongs_to_the_sample_and_takes_fine_noise_away(listener):
    noise = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1).clone()
    loss = IdentityLoss([listener], seed=1, blur=1.0)
    loss(noise, noise)
    still = listener.seen[-1]
    loss(noise, noise, torch.tensor([4, 5, 6, 7]))
    assert torch.equal(*listener.seen[-2:])  # restored and truth are blurred alike
    left = listener.seen[-1].std((1, 2, 3)) / still.std((1, 2, 3))
    assert 0.9 < left.max() < 1.001 and left.min() < 0.8
    loss(noise, noise, torch.tensor([9, 5, 8, 3]))
    assert listener.seen[-1].std((1, 2, 3))[1] .item() == pytest.approx((left[1] * still[1].std()).item(), rel=1e-5)


def test_noise_belongs_to_the_sample_and_is_the_same_on_both_crops(listener):
    plain = torch.zeros(3, 3, 128, 128)
    loss = IdentityLoss([listener], seed=1, noise=0.2)

    def grain(positions):
        assert float(loss(plain, plain, positions)) == pytest.approx(0, abs=1e-6)
        assert torch.equal(*listener.seen[-2:])
        return listener.seen[-1]

    assert grain(None).abs().max() == 0
    first = grain(torch.tensor([4, 5, 6]))
    spread = first.std((1, 2, 3))
    assert spread.unique().numel() == 3 and 0 < spread.min() and spread.max() < 0.2
    assert first.mean().abs() < 1e-3
    assert torch.equal(first[1], grain(torch.tensor([9, 5, 8]))[1])  # whoever its neighbours are
    IdentityLoss([listener], seed=2, noise=0.2)(plain, plain, torch.tensor([4, 5, 6]))
    assert not torch.equal(first, listener.seen[-1])


def test_all_crops_of_a_sample_are_shifted_blurred_and_grained_alike(listener):
    """Else what the input shows, and what two photos have in common, would be judged by the noise between them."""
    image = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    loss = IdentityLoss([listener], jitter=3.0, blur=1.0, noise=0.2, seen=1.0, other=0.5)
    loss(image, image, torch.tensor([4, 5]), degraded=image, other=image)
    assert len(listener.seen) == 4 and all(torch.equal(crop, listener.seen[0]) for crop in listener.seen)
    plain = loss._crop(image, None, None)
    assert not torch.allclose(listener.seen[0], plain, atol=0.05)


def test_blur_is_gaussian():
    point = torch.zeros(2, 1, 15, 15)
    point[:, 0, 7, 7] = 1
    soft = blurred(point, torch.tensor([0.0, 0.9]))
    assert torch.equal(soft[0], point[0])
    x = torch.arange(-3.0, 4.0)
    row = torch.exp(-(x**2) / (2 * 0.81))
    expected = torch.outer(row, row) / row.sum() ** 2
    assert torch.allclose(soft[1, 0, 4:11, 4:11], expected, atol=1e-6)
    assert soft[1].sum().item() == pytest.approx(1, abs=1e-5)

def test_maps_compare_where_the_face_is_not_the_persons():
    torch.manual_seed(0)
    network = IResNet(IResNetConfig(layers=(1, 2), widths=(8, 12), embedding_dim=16, input_size=32)).eval()
    a, b = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 64, 64) * 2 - 1
    plain, loss = IdentityLoss([network]), IdentityLoss([network], maps=3.0)
    assert float(loss(a, a)) == pytest.approx(0, abs=1e-5)
    crops = [network.prepare(loss._crop(x, None, None)) for x in (a, b)]
    fine = [network.layer1(network.prelu(network.bn1(network.conv1(x)))) for x in crops]
    coarse = [network.layer2(x) for x in fine]
    far = [float(1 - F.cosine_similarity(*maps, dim=1).mean()) for maps in (fine, coarse)]
    assert far[0] != pytest.approx(far[1], abs=1e-3)
    assert float(loss(a, b)) == pytest.approx(float(plain(a, b)) + 3 * sum(far) / 2, abs=1e-5)
    image = a.requires_grad_()
    loss(image, b).backward()
    assert image.grad.abs().sum() > 0 and all(p.grad is None for p in network.parameters())
    assert not any(level._forward_hooks for level in network.levels)  # nothing stays behind
