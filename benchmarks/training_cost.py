"""What one training image costs in each stage, counted and not measured: python -m benchmarks.training_cost

The real networks run forward and backward on PyTorch's meta device, which computes shapes only: floating-point
operations are counted by torch's own counter (a multiply-add is two), activations by what autograd keeps. Needs no GPU
and no weights. docs/training.md explains the table.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from idcodeformer.networks.arcface import DEPTHS, IResNet, IResNetConfig
from idcodeformer.networks.codeformer import CodeFormer
from idcodeformer.networks.vqgan import PatchDiscriminator, VQAutoEncoder
from training.config import TrainConfig, load_config
from training.stages import codeformer_config, vqgan_config
from training.stages.perceptual import LPIPSVgg

STATE_BYTES = 20  # a trained parameter in fp32: itself, gradient, two Adam moments, moving average
FROZEN_BYTES = 4
CONFIGS = Path("training/configs/full")


class Cost:
    """FLOPs and kept activations of one image of a run, its parameters, and what the stages share."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.flops = self.activations = 0.0
        self.trained: list[nn.Parameter] = []
        self.frozen: list[nn.Parameter] = []
        self.image = torch.zeros(1, 3, config.net.img_size, config.net.img_size)
        self.judge, self.critic = LPIPSVgg(), PatchDiscriminator(config.loss.gan_ndf)

    def owns(self, *modules: nn.Module) -> None:
        """Parameters count as trained where they want a gradient, else as frozen."""
        for p in (p for m in modules for p in m.parameters()):
            (self.trained if p.requires_grad else self.frozen).append(p)

    def add(self, work: Callable[[], object]) -> None:
        """Count what ``work`` computes and what autograd keeps for it; storages are counted once, parameters never."""
        own = {p.untyped_storage()._cdata for p in [*self.trained, *self.frozen]}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            work()
        self.flops += counter.get_total_flops()
        self.activations = max(self.activations, sum(kept.values()))

    def image_terms(self, image: Tensor, last: Tensor) -> Tensor:
        """L1, LPIPS and GAN; the adaptive weight takes two more passes back to the ``last`` layer."""
        target = self.judge.reference_features(self.image)
        rec = F.l1_loss(image, self.image) + self.judge(image, target).mean()
        if not self.config.loss.gan:
            return rec
        self.critic.requires_grad_(False)
        adversarial = -self.critic(image).mean()
        for loss in (rec, adversarial):
            torch.autograd.grad(loss, last, retain_graph=True)
        self.critic.requires_grad_(True)
        return rec + adversarial

    def critic_step(self) -> None:
        """The discriminator looks at the truth and at the result."""
        if self.config.loss.gan:
            self.add(lambda: self.critic(torch.cat([self.image, self.image])).mean().backward())


def _target(config: TrainConfig) -> VQAutoEncoder:
    return VQAutoEncoder(vqgan_config(config)).requires_grad_(False)


def _code_terms(state_logits: Tensor, feature: Tensor, codes: Tensor) -> Tensor:
    return F.cross_entropy(state_logits.flatten(0, 1), codes.flatten()) + feature.square().mean()


def stage1(cost: Cost) -> None:
    net = VQAutoEncoder(vqgan_config(cost.config))
    cost.owns(net, cost.critic, cost.judge)

    def step() -> None:
        out, codes, _ = net(cost.image)
        (cost.image_terms(out, net.generator.blocks[-1].weight) + codes).backward()

    cost.add(step)
    cost.critic_step()


def stage2(cost: Cost) -> None:
    net, target = CodeFormer(codeformer_config(cost.config)), _target(cost.config)
    for part in (net.generator, net.quantize, net.fuse_convs_dict):
        part.requires_grad_(False)
    cost.owns(net, target)

    def step() -> None:
        codes = target.tokenize(cost.image)
        feature = net.encoder(cost.image)
        _code_terms(net.predict(feature), feature, codes).backward()

    cost.add(step)


def stage3(cost: Cost) -> None:
    net, target = CodeFormer(codeformer_config(cost.config)), _target(cost.config)
    face = IResNet(IResNetConfig(layers=DEPTHS["r50"])).eval().requires_grad_(False)
    for part in (net.generator, net.quantize):
        part.requires_grad_(False)
    cost.owns(net, target, cost.critic, cost.judge, *([face] if cost.config.loss.identity else []))

    def step() -> None:
        codes = target.tokenize(cost.image)
        state = net.encode(cost.image, "straight_through")
        out = net.decode(state, 1.0)
        last = net.fuse_convs_dict[str(max(net.config.connect_list))].shift[-1].weight
        total = cost.image_terms(out, last) + _code_terms(state.logits, state.lq_feat, codes)
        if cost.config.loss.identity:
            # the crop's two matrix products are nothing beside the network; plain resizing stands in for them
            with torch.no_grad():
                truth = face(F.interpolate(cost.image, (112, 112)))
            total = total - F.cosine_similarity(face(F.interpolate(out, (112, 112))), truth).mean()
        total.backward()

    cost.add(step)
    cost.critic_step()


STAGES = {"stage1": stage1, "stage2": stage2, "stage3": stage3, "stage3_id": stage3}


def count(config: TrainConfig) -> Cost:
    """The cost of one image of a configuration of stage I, II or III."""
    with torch.device("meta"):
        cost = Cost(config)
        STAGES[config.stage](cost)
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="*", type=Path, help="YAML files; default: the stages of training/configs/full")
    parser.add_argument("--tflops", type=float, default=100.0, help="sustained TFLOP/s of one GPU (%(default)s)")
    args = parser.parse_args()
    files = args.config or [CONFIGS / f"{name}.yaml" for name in STAGES]
    print("| stage | trained / frozen parameters | TFLOP an image | activations an image (fp32) | weights and optimiser"
          " | images | GPU-hours |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for file in files:
        config = load_config(file)
        cost = count(config)
        trained, frozen = (sum(p.numel() for p in group) for group in (cost.trained, cost.frozen))
        state = (trained * STATE_BYTES + frozen * FROZEN_BYTES) / 2**30
        images = config.steps * config.batch
        hours = images * cost.flops / (args.tflops * 1e12) / 3600
        print(
            f"| {config.stage} | {trained / 1e6:.1f} M / {frozen / 1e6:.1f} M | {cost.flops / 1e12:.2f} "
            f"| {cost.activations / 2**30:.2f} GiB | {state:.2f} GiB | {images / 1e6:.1f} M | {hours:,.0f} |"
        )


if __name__ == "__main__":
    main()
