"""Which parameters an image loss reaches under each rule of choosing codes, the published one included."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig

TINY = CodeFormerConfig(
    img_size=64, nf=8, ch_mult=(1, 2, 2), res_blocks=1, attn_resolutions=(16,), codebook_size=32, emb_dim=16,
    dim_embd=32, dim_mlp=64, n_head=2, n_layers=1, connect_list=(16, 32),
)  # fmt: skip
GROUPS = {
    "encoder": ("encoder",), "transformer": ("position_emb", "feat_emb", "ft_layers"), "head": ("idx_pred_layer",),
    "fusion": ("fuse_convs_dict",),
}  # fmt: skip
EVERYWHERE = {"encoder", "transformer", "head", "fusion"}


def reached(rule: str, detach: bool, w: float = 1.0) -> set[str]:
    """Groups of parameters to which an image loss sends a gradient; generator and codebook frozen as published."""
    torch.manual_seed(0)
    net = CodeFormer(TINY)
    nn.init.normal_(net.position_emb, std=0.02)
    net.quantize.requires_grad_(False)
    net.generator.requires_grad_(False)
    image = net(torch.rand(2, 3, 64, 64) * 2 - 1, torch.full((2,), w), False, rule, detach)[0]
    image.abs().mean().backward()

    def has(part: str) -> bool:
        grads = [p.grad for n, p in net.named_parameters() if n.split(".")[0] == part and p.grad is not None]
        return any(bool(g.abs().sum() > 0) for g in grads)

    assert not has("generator") and not has("quantize")
    return {group for group, parts in GROUPS.items() if all(has(p) for p in parts)}


@pytest.mark.parametrize(
    "rule, detach, expected",
    [
        ("hard", True, {"fusion"}),  # the published rule: neither encoder nor Transformer learns from the image
        ("hard", False, {"fusion", "encoder"}),
        ("straight_through", True, EVERYWHERE),
        ("straight_through", False, EVERYWHERE),
        ("soft", False, EVERYWHERE),
        ("gumbel", False, EVERYWHERE),
    ],
)
def test_which_parameters_an_image_loss_reaches(rule, detach, expected):
    assert reached(rule, detach) == expected


def test_at_w_0_the_published_rule_reaches_nothing_but_straight_through_does():
    assert reached("hard", True, w=0.0) == set()
    assert reached("straight_through", False, w=0.0) == {"encoder", "transformer", "head"}


def test_straight_through_computes_what_inference_computes():
    torch.manual_seed(0)
    net, x, w = CodeFormer(TINY), torch.rand(2, 3, 64, 64) * 2 - 1, torch.tensor([0.3, 1.0])
    hard, through, soft = (net(x, w, False, rule)[0] for rule in ("hard", "straight_through", "soft"))
    assert torch.equal(hard, through) and not torch.allclose(hard, soft, atol=1e-6)
