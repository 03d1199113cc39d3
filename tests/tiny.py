"""Networks of a few thousand random weights that tests of guidance, people and weight files share."""
from __future__ import annotations

import torch

from idcodeformer.identity.recogniser import IdentityRecogniser
from idcodeformer.networks.arcface import IResNet, IResNetConfig
from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
from idcodeformer.restoration.codeformer import CodeFormerRestorer

TINY = CodeFormerConfig(
    img_size=64, nf=8, ch_mult=(1, 2, 2), res_blocks=1, attn_resolutions=(16,), codebook_size=32, emb_dim=16,
    dim_embd=32, dim_mlp=64, n_head=2, n_layers=1, connect_list=(16, 32),
)  # fmt: skip


def tiny_codeformer() -> CodeFormerRestorer:
    """A restorer on the CPU whose codes lie apart."""
    torch.manual_seed(0)
    net = CodeFormer(TINY)
    torch.nn.init.normal_(net.quantize.embedding.weight)
    return CodeFormerRestorer(net, "cpu")


def tiny_eye(seed: int, name: str) -> IdentityRecogniser:
    """A recogniser on the CPU; another seed is another one."""
    torch.manual_seed(seed)
    return IdentityRecogniser(IResNet(IResNetConfig((1, 1, 1, 1), (8, 8, 8, 8), 16, 56)).eval(), name, "cpu")
