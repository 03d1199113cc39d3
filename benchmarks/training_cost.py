"""What one training image costs in each stage, counted and not measured: python -m benchmarks.training_cost

The real networks run forward and backward on PyTorch's meta device, which computes shapes only: floating-point
operations are counted by torch's own counter (a multiply-add is two), activations by what autograd keeps. Needs no GPU
and no weights. docs/training.md explains the table.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from idcodeformer.models.arcface import DEPTHS, IResNet, IResNetConfig
from idcodeformer.models.codeformer import CodeFormer
from idcodeformer.models.vqgan import PatchDiscriminator, VQAutoEncoder
from training.config import TrainConfig, load_config
from training.perceptual import LPIPSVgg
from training.stages import codeformer_config, vqgan_config

STATE_BYTES = 20  # a trained parameter in fp32: itself, gradient, two Adam moments, moving average
FROZEN_BYTES = 4
CONFIGS = Path("training/configs/full")


class Cost:
    """FLOPs and kept activations of one image, and parameters."""

    def __init__(self) -> None:
        self.flops = self.activations = 0.0
        self.trained: list[nn.Parameter] = []
        self.frozen: list[nn.Parameter] = []

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


def _parameters(*modules: nn.Module | Iterable[nn.Module]) -> list[nn.Parameter]:
    return [p for m in modules for p in m.parameters()]  # type: ignore[union-attr]


def _image_terms(cost: Cost, image: Tensor, truth: Tensor, config: TrainConfig, judge: LPIPSVgg, last: Tensor) -> Tensor:
    """L1, LPIPS, the GAN with its adaptive weight (two more passes back to the last layer): the sum to go back from."""
    rec = F.l1_loss(image, truth) + judge(image, judge.reference_features(truth)).mean()
    if not config.loss.gan:
        return rec
    critic = cost.critic  # type: ignore[attr-defined]
    critic.requires_grad_(False)
    adversarial = -critic(image).mean()
    for loss in (rec, adversarial):
        torch.autograd.grad(loss, last, retain_graph=True)
    critic.requires_grad_(True)
    return rec + adversarial


def _critic_step(cost: Cost, image: Tensor) -> None:
    critic = cost.critic  # type: ignore[attr-defined]
    cost.add(lambda: critic(torch.cat([image.detach(), image.detach()])).mean().backward())


def _begin(config: TrainConfig) -> tuple[Cost, Tensor, LPIPSVgg]:
    cost = Cost()
    side = config.net.img_size
    cost.critic = PatchDiscriminator(config.loss.gan_ndf)  # type: ignore[attr-defined]
    return cost, torch.zeros(1, 3, side, side), LPIPSVgg()


def stage1(config: TrainConfig) -> Cost:
    cost, image, judge = _begin(config)
    net = VQAutoEncoder(vqgan_config(config))
    cost.trained, cost.frozen = _parameters(net, cost.critic), _parameters(judge)  # type: ignore[attr-defined]

    def step() -> None:
        out, codes, _ = net(image)
        (_image_terms(cost, out, image, config, judge, net.generator.blocks[-1].weight) + codes).backward()

    cost.add(step)
    _critic_step(cost, image)
    return cost


def stage2(config: TrainConfig) -> Cost:
    cost, image, _ = _begin(config)
    net, target = CodeFormer(codeformer_config(config)), VQAutoEncoder(vqgan_config(config)).requires_grad_(False)
    net.generator.requires_grad_(False)
    net.fuse_convs_dict.requires_grad_(False)
    cost.trained = [p for p in net.parameters() if p.requires_grad]
    cost.frozen = [p for p in net.parameters() if not p.requires_grad] + _parameters(target)

    def step() -> None:
        with torch.no_grad():
            codes = target.tokenize(image)
        feature = net.encoder(image)
        logits = net.predict(feature)
        (F.cross_entropy(logits.flatten(0, 1), codes.flatten()) + feature.square().mean()).backward()

    cost.add(step)
    return cost


def stage3(config: TrainConfig) -> Cost:
    cost, image, judge = _begin(config)
    net, target = CodeFormer(codeformer_config(config)), VQAutoEncoder(vqgan_config(config)).requires_grad_(False)
    face = IResNet(IResNetConfig(layers=DEPTHS["r50"])).eval().requires_grad_(False)
    net.generator.requires_grad_(False)
    net.quantize.requires_grad_(False)
    cost.trained = [p for p in _parameters(net, cost.critic) if p.requires_grad]  # type: ignore[attr-defined]
    cost.frozen = [p for p in net.parameters() if not p.requires_grad] + _parameters(target, judge)
    cost.frozen += _parameters(face) if config.loss.identity else []

    def step() -> None:
        with torch.no_grad():
            codes = target.tokenize(image)
        state = net.encode(image, "straight_through")
        out = net.decode(state, 1.0)
        last = net.fuse_convs_dict[str(max(net.config.connect_list))].shift[-1].weight
        total = _image_terms(cost, out, image, config, judge, last)
        total = total + F.cross_entropy(state.logits.flatten(0, 1), codes.flatten()) + state.lq_feat.square().mean()
        if config.loss.identity:
            # the crop's two matrix products are nothing beside the network; plain resizing stands in for them
            with torch.no_grad():
                truth = face(F.interpolate(image, (112, 112)))
            total = total - F.cosine_similarity(face(F.interpolate(out, (112, 112))), truth).mean()
        total.backward()

    cost.add(step)
    _critic_step(cost, image)
    return cost


STAGES = {"stage1": stage1, "stage2": stage2, "stage3": stage3, "stage3_id": stage3}


def count(config: TrainConfig) -> Cost:
    """The cost of one image of a configuration of stage I, II or III."""
    with torch.device("meta"):
        return STAGES[config.stage](config)


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
