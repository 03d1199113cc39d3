"""The terms of the objective. Images are [N,3,S,S] RGB in [-1,1]; every loss is a mean over the batch."""
from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idcodeformer.geometry.templates import arcface_crop
from idcodeformer.runtime.device import cuda_tf32

from ..data.sampling import Positions, noise, uniform
from ..processes import mean as mean_over_processes

# A mean over some million pixels has gradients below what fp16 can hold; a power of two changes nothing else.
HALF_SCALE = 4096.0


def code_losses(logits: Tensor, lq_feat: Tensor, codes: Tensor, quant: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits [N,T,K] against codes [N,T], and mean square of lq_feat against quant [N,D,h,w].

    CodeFormer, equation 3: the two anchors of code prediction.
    """
    return F.cross_entropy(logits.flatten(0, 1), codes.flatten()), F.mse_loss(lq_feat, quant)


def pooled_l1(image: Tensor, truth: Tensor, side: int) -> Tensor:
    """L1 between the means over squares of ``side`` px.

    The sign of a pixel's error says little about a small shift of colour beneath much larger errors of detail, so L1
    alone leaves such shifts for long; their means over squares have no detail left to hide them.
    """
    return F.l1_loss(F.avg_pool2d(image, side, ceil_mode=True), F.avg_pool2d(truth, side, ceil_mode=True))


def rim_weights(side: int) -> Tensor:
    """[side,side] in [0,1] for FFHQ-aligned faces: 1 outside the ArcFace crop, falling to 0 over an eighth of ``side``.

    Recognisers see little at the border of their crop, so the weight falls off within it.
    """
    pixels = torch.zeros(1, 1, side, side, requires_grad=True)
    (seen,) = torch.autograd.grad(arcface_crop(pixels).sum(), pixels)  # what each pixel gives to the crop
    reach = side // 8
    inside = (seen > seen.max() / 2).to(seen.dtype)
    means = F.avg_pool2d(inside, 2 * reach + 1, 1, reach)  # 1/2 at the border of the crop, 1 from ``reach`` inside
    return 1 - (2 * means[0, 0] - 1).clamp(0, 1)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator (Lim & Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, scale: float) -> Tensor:
    """Weight that makes the GAN's gradient at the generator's last layer as large as the reconstruction's.

    Esser et al. 2021, equation 7; clamped to [0, 1] and multiplied by ``scale`` as CodeFormer does. The gradients are
    those of the whole batch, over all processes. A layer that a step does not use (w = 0 in every sample) gives 0, and
    so does a gradient of the GAN that is not finite.
    """
    gradients = torch.stack(
        [
            torch.autograd.grad(
                term * HALF_SCALE, last_layer, retain_graph=True, allow_unused=True, materialize_grads=True
            )[0]
            for term in (reconstruction, adversarial)
        ]
    )
    rec, gan = mean_over_processes(gradients.float() / HALF_SCALE)
    return torch.nan_to_num(rec.norm() / (gan.norm() + 1e-4)).clamp(0, 1).detach() * scale


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of images [N,C,H,W], each by its own of ``sigma`` [N] px; the kernel reaches 3 px."""
    reach = torch.arange(-3.0, 4.0, device=images.device)
    kernel = torch.exp(-(reach**2) / (2 * sigma[:, None].clamp(min=1e-3) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)[:, None, :, None]
    flat = F.pad(images.flatten(0, 1)[None], (3, 3, 3, 3), mode="replicate")
    rows = F.conv2d(flat, kernel, groups=len(kernel))
    return F.conv2d(rows, kernel.mT, groups=len(kernel))[0].unflatten(0, images.shape[:2])


class IdentityLoss(nn.Module):
    """1 - cosine between the embeddings of the restored face and of the truth, averaged over frozen recognisers.

    The face is cropped to the ArcFace template by the fixed map between the two templates (never the whole frame), in
    RGB, [-1,1], anti-aliased, with gradients through the crop. The recognisers run in fp32 (the forward pass without
    TF32) and in eval mode whatever the surrounding precision. Deng et al. 2019 (ArcFace) for the embedding, Richardson
    et al. 2021 (pSp) for the loss.
    """

    def __init__(
        self,
        recognisers: Sequence[nn.Module],
        jitter: float = 0.0,
        seed: int = 0,
        blur: float = 0.0,
        noise: float = 0.0,
        seen: float = 0.0,
        maps: float = 0.0,
        other: float = 0.0,
    ):
        super().__init__()
        self.recognisers = nn.ModuleList(recognisers).eval().requires_grad_(False)
        self.jitter, self.seed, self.blur, self.noise = jitter, seed, blur, noise
        self.seen, self.maps, self.other = seen, maps, other

    def train(self, mode: bool = True):
        return super().train(False)  # frozen batch statistics, also when the owner switches to training

    def _crop(self, images: Tensor, offset: Tensor | None, sigma: Tensor | None) -> Tensor:
        crop = arcface_crop(images.float())
        if sigma is not None:
            crop = blurred(crop, sigma.to(crop.device))
        if offset is None:
            return crop
        theta = torch.eye(2, 3, device=crop.device).repeat(len(crop), 1, 1)
        theta[:, :, 2] = offset.to(crop.device) * 2 / crop.shape[-1]
        grid = F.affine_grid(theta, list(crop.shape), align_corners=False)
        return F.grid_sample(crop, grid, padding_mode="border", align_corners=False)

    def _look(self, network: nn.Module, crop: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The embedding of a crop and, where they count, the maps of every resolution behind it."""
        seen: list[Tensor] = []
        levels = network.levels if self.maps else []
        handles = [level.register_forward_hook(lambda _module, _args, out: seen.append(out)) for level in levels]
        try:
            return network(crop), seen
        finally:
            for handle in handles:
                handle.remove()

    def forward(
        self,
        restored: Tensor,
        truth: Tensor,
        positions: Positions | None = None,
        degraded: Tensor | None = None,
        other: Tensor | None = None,
    ) -> Tensor:
        """[N,3,S,S] each -> scalar in [0,2], with ``maps`` in [0, 2 + 2 maps].

        Jitter, blur and noise go by the samples' ``positions`` [N], alike for all crops; None = none of them. With
        ``degraded`` and ``seen`` > 0 each face weighs cos(degraded, truth) ** ``seen``, at least 0: what the input no
        longer shows of the person can only be guessed, and a guess costs fidelity. ``maps`` > 0 adds that many times
        1 - cosine of the maps behind the embedding, over channels, averaged over positions and resolutions: one number
        a face makes a noisy gradient, they say where the face is not the person's. (Rosberg et al. 2023, FaceDancer,
        compare inner maps of a recogniser too.)

        With ``other`` [N,3,S,S], another photo of each person, and ``self.other`` > 0 the target is the mean of both
        unit embeddings, the other's with that share: what two photos have in common is the person. Maps, and what the
        input shows, are still compared with the truth.
        """
        offset, sigma, grain = None, None, 0.0
        if self.jitter and positions is not None:
            offset = (uniform(positions, self.seed, "jitter", 2).t() * 2 - 1) * self.jitter  # px of the 112 crop
        if self.blur and positions is not None:
            sigma = uniform(positions, self.seed, "blur", 1)[0] * self.blur
        with torch.autocast(restored.device.type, enabled=False), cuda_tf32(False):
            crop = self._crop(restored, offset, sigma)
            if self.noise and positions is not None:
                grain = noise(positions, self.seed, self.noise, tuple(crop.shape[1:]), crop.device)
            crop = crop + grain
            with torch.no_grad():
                crop_truth = self._crop(truth, offset, sigma) + grain
                crop_input = self._crop(degraded, offset, sigma) + grain if self.seen and degraded is not None else None
                crop_other = self._crop(other, offset, sigma) + grain if self.other and other is not None else None
            total = torch.zeros((), device=restored.device)
            for network in self.recognisers:
                with torch.no_grad():
                    target, target_maps = self._look(network, crop_truth)
                    shown = 1.0
                    if crop_input is not None:
                        shown = F.cosine_similarity(network(crop_input), target, dim=1).clamp(min=0) ** self.seen
                    if crop_other is not None:
                        target = F.normalize(target).lerp(F.normalize(network(crop_other)), self.other)
                embedding, own_maps = self._look(network, crop)
                away = 1 - F.cosine_similarity(embedding, target, dim=1)
                for own, other in zip(own_maps, target_maps, strict=True):
                    differ = 1 - F.cosine_similarity(own, other, dim=1).mean((1, 2))
                    away = away + self.maps / len(own_maps) * differ
                total = total + (shown * away).mean()
            return total / len(self.recognisers)


def arcface_logits(embeddings: Tensor, centres: Tensor, labels: Tensor, margin: float, scale: float) -> Tensor:
    """Additive angular margin logits [N,C] (Deng et al. 2019, equation 3); margin in radians."""
    cosine = F.normalize(embeddings) @ F.normalize(centres).t()
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
    chosen = F.one_hot(labels, centres.shape[0]).bool()
    return torch.where(chosen, (angle + margin).clamp(max=torch.pi).cos(), cosine) * scale


def distillation(student: Tensor, teacher: Tensor, relation: float) -> tuple[Tensor, Tensor]:
    """1 - cosine to the teacher's embeddings, and mean square of the difference of similarities within the batch."""
    student, teacher = F.normalize(student), F.normalize(teacher)
    direct = (1 - (student * teacher).sum(1)).mean()
    return direct, F.mse_loss(student @ student.t(), teacher @ teacher.t()) * relation
