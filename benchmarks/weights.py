"""A CodeFormer for the benchmarks: a weight file, or a seeded network whose activations and codes are as lively."""
from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
from idcodeformer.weights.loading import build


def load(path: Path | None = None, config: CodeFormerConfig | None = None) -> CodeFormer:
    """From a .pth or .safetensors file, or a folder with a ``recipe.py`` of deterministic weights; None = seeded."""
    if path is None:
        return seeded(config or CodeFormerConfig())
    if path.is_dir():
        return _from_recipe(path)
    network = build(path)
    if not isinstance(network, CodeFormer):
        raise SystemExit(f"{path} holds a {type(network).__name__}; give a CodeFormer.")
    return network.eval().requires_grad_(False)


@torch.no_grad()
def seeded(config: CodeFormerConfig, seed: int = 11) -> CodeFormer:
    """Random weights in the place of trained ones: residual branches that matter, norms off one, codes far apart."""
    generator = torch.Generator().manual_seed(seed)
    network = CodeFormer(config).eval().requires_grad_(False)

    def noise(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator)

    for name, p in network.named_parameters():
        if p.ndim == 1:
            p.copy_(0.05 * noise(p.shape) + (1 + 0.05 * noise(p.shape) if _is_scale(network, name) else 0))
        elif name in ("quantize.embedding.weight", "position_emb"):
            p.copy_(noise(p.shape))
        else:
            p.copy_(noise(p.shape) / (p.numel() / p.shape[0]) ** 0.5)
    network.idx_pred_layer[1].weight.mul_(4)  # logits of standard deviation 4, as in a trained network
    network.generator.blocks[-1].weight.mul_(0.4)  # a picture's contrast: errors are judged against that
    for fuse in network.fuse_convs_dict.values():  # modulation well below the features that it modulates
        for branch in (fuse.scale, fuse.shift):
            branch[2].weight.mul_(0.4)
    return network


def _is_scale(network: nn.Module, name: str) -> bool:
    owner = network.get_submodule(name.rpartition(".")[0])
    return name.endswith("weight") and isinstance(owner, (nn.GroupNorm, nn.LayerNorm))


def _from_recipe(folder: Path) -> CodeFormer:
    spec = importlib.util.spec_from_file_location("parity_recipe", folder / "recipe.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder} has no recipe.py.")
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = recipe
    spec.loader.exec_module(recipe)
    network = CodeFormer()
    network.load_state_dict(recipe.torch_state_dict("codeformer"))
    return network.eval().requires_grad_(False)


def face_like(count: int, size: int, seed: int = 2) -> Tensor:
    """[count,3,size,size] in [-1,1]: smooth random pictures with some grain."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, size // 32, size // 32, generator=generator)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (0.5 * smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(-1, 1)
