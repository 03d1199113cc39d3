"""Feature extractors for the Frechet distance, built here, weights by path.

A Frechet *Inception* distance is one with a single, old network: Inception-v3 as it was ported from TensorFlow
(Heusel et al. 2017; Seitzer's port, 1008 classes). Anything else that a file may hold is measured too, but under a name
of its own, since the numbers cannot be compared.
"""
from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idcodeformer.errors import CorruptWeights, UnsupportedWeights
from idcodeformer.weights.loading import read_state

from ..stages.perceptual import PerceptualDistance, load_perceptual


class InceptionFeatures(nn.Module):
    """[N,3,H,W] in [0,1] -> [N,2048]: pooled features of Inception-v3 on 299-px images in [-1,1].

    ``tensorflow`` selects the ported network: its average pools leave the zero border out of the mean, and its last
    block has a maximum in place of one of them.
    """

    def __init__(self, classes: int):
        super().__init__()
        from torchvision.models import Inception3

        with warnings.catch_warnings():  # torchvision announces a change of its random initialisation
            warnings.simplefilter("ignore")
            net = Inception3(num_classes=classes, aux_logits=False, transform_input=False, init_weights=False)
        self.tensorflow = classes == 1008
        self.label = "FID" if self.tensorflow else "FD (torchvision Inception-v3)"
        if self.tensorflow:
            for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
                _leave_border_out(getattr(net, f"Mixed_{name}"))
            _pool_by_maximum(net.Mixed_7c)
        self.net = net

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False)
        x, net = 2 * x - 1, self.net
        x = net.maxpool1(net.Conv2d_2b_3x3(net.Conv2d_2a_3x3(net.Conv2d_1a_3x3(x))))
        x = net.maxpool2(net.Conv2d_4a_3x3(net.Conv2d_3b_1x1(x)))
        for block in (net.Mixed_5b, net.Mixed_5c, net.Mixed_5d, net.Mixed_6a, net.Mixed_6b, net.Mixed_6c, net.Mixed_6d,
                      net.Mixed_6e, net.Mixed_7a, net.Mixed_7b, net.Mixed_7c):  # fmt: skip
            x = block(x)
        return x.mean((2, 3))


def _leave_border_out(block: nn.Module) -> None:
    """Give a block of torchvision its TensorFlow pooling, by the one method that pools."""
    branches = block._forward

    def forward(x: Tensor) -> list[Tensor]:
        out = branches(x)
        out[-1] = block.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False))
        return out

    block._forward = forward  # type: ignore[assignment]


def _pool_by_maximum(block: nn.Module) -> None:
    branches = block._forward

    def forward(x: Tensor) -> list[Tensor]:
        out = branches(x)
        out[-1] = block.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1))
        return out

    block._forward = forward  # type: ignore[assignment]


class BackboneFeatures(nn.Module):
    """[N,3,H,W] in [0,1] -> [N,256 or 512]: the mean of a perceptual network's deepest map, before unit length."""

    def __init__(self, net: PerceptualDistance):
        super().__init__()
        self.net = net
        self.label = f"FD ({net.label} backbone)"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x = (images * 2 - 1 - self.net.shift) / self.net.scale
        for part in self.net.slices:
            x = part(x)
        return x.mean((2, 3))


def load_extractor(path: str | Path) -> nn.Module:
    """The extractor of a file; ``.label`` says what its distance may be called.

    Read: Inception-v3 state dicts with torchvision's names (``pt_inception-2015-12-05-*.pth`` with 1008 classes is the
    one of FID; torchvision's own has 1000), and the files of ``load_perceptual``. Raises UnsupportedWeights otherwise.
    """
    state, _ = read_state(path)
    if "fc.weight" not in state or "Mixed_7c.branch_pool.conv.weight" not in state:
        try:
            return BackboneFeatures(load_perceptual(path))
        except UnsupportedWeights as error:
            raise UnsupportedWeights(f"{path} is neither an Inception-v3 nor an LPIPS file; FID needs one.") from error
    net = InceptionFeatures(classes=state["fc.weight"].shape[0])
    own = {k: v for k, v in state.items() if not k.startswith("AuxLogits.")}
    result = net.net.load_state_dict(own, strict=False)
    missing = [k for k in result.missing_keys if not k.endswith("num_batches_tracked")]
    if missing or result.unexpected_keys:
        first = [*missing, *result.unexpected_keys][0]
        raise UnsupportedWeights(f"{path} is no Inception-v3 with torchvision's names: {first}.")
    return net.eval().requires_grad_(False)


def load_moments(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a reference set: an .npz with ``mu`` [D] and ``sigma`` [D,D], as pytorch-fid writes it."""
    with np.load(path, allow_pickle=False) as stored:
        if "mu" not in stored or "sigma" not in stored:
            raise CorruptWeights(f"{path} holds no 'mu' and 'sigma'; give statistics as pytorch-fid saves them.")
        return stored["mu"].astype(np.float64), stored["sigma"].astype(np.float64)
