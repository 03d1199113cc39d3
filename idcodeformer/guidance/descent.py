"""Gradient steps on the offsets of faces, with the loss that ``optimise`` tells."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry.templates import arcface_crop
from ..networks.codeformer import CodeState, adain_codes
from ..runtime.skeleton import skeletons
from ..runtime.winograd import fast_convolutions
from ..types import RestoreOptions
from .judging import squares_of
from .options import GuidanceOptions

if TYPE_CHECKING:
    from ..identity.recogniser import IdentityRecogniser
    from ..restoration.codeformer import CodeFormerRestorer

_SHIFT = 2 / 128  # of the crop's side: the largest shift of the crop in a step, so that no one pixel grid is met
_NOISE = 0.02  # standard deviation, in [-1,1], of the noise that a step lays over the crop
GRADIENT_FACES = 4  # a face with its activations kept for the gradient needs the memory of that many without
# Cosine that one in ten pairs of photos of one person reaches (145 people of LFW set 8); above it the recogniser is fed
# texture. Others than these are taken to be as strict as ArcFace's ResNets.
SAME_PERSON = {"mini_recogniser": 0.80, "mobileface_v2": 0.77, "mobilefacenet_112_192d": 0.85}
_SAME_PERSON = 0.80


class Descent:
    """The steps of one batch after another, with networks whose tensors autograd may keep."""

    def __init__(
        self,
        restorer: CodeFormerRestorer,
        recogniser: IdentityRecogniser,
        options: RestoreOptions,
        guidance: GuidanceOptions,
    ):
        self.restorer, self.options, self.guidance, self.device = restorer, options, guidance, restorer.device
        with torch.inference_mode(False):
            self.decoder = ordinary(restorer.decoder)
            self.eye = ordinary(recogniser.network).to(self.device)
        self.dtype = next(self.decoder.generator.parameters()).dtype
        self.fast = fast_convolutions(self.device)
        self.goal = SAME_PERSON.get(recogniser.name, _SAME_PERSON)

    def __call__(
        self, pixels: Tensor, unguided: Tensor, vectors: Tensor, w: Tensor, report: Callable[[int], None]
    ) -> tuple[Tensor, list[int]]:  # fmt: skip
        """Guided faces in [0,1] on the device of ``unguided``, and the steps that each took."""
        state, squares = self.restorer.encode(pixels), squares_of(pixels)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
            state = copied(state)
            faces = self.faces(state, unguided, vectors, w, squares)
            with self.fast:
                self._steps(faces, state, report)
                images = self.pictures(faces, state)
        return images.to(unguided.device), [face.steps for face in faces]

    def faces(
        self, state: CodeState, unguided: Tensor, vectors: Tensor, w: Tensor, squares: Sequence[int]
    ) -> list["GuidedFace"]:
        """The faces of a copied ``state`` at their start."""
        start = adain_codes(state) if self.options.latent_match else state.quant
        return [
            GuidedFace(start[i : i + 1].clone(), {s: f[i : i + 1] for s, f in state.features.items()}, w[i : i + 1],
                  vectors[i : i + 1].clone(), unguided[i : i + 1].to(self.device, torch.float32) * 2 - 1, square)
            for i, square in enumerate(squares)
        ]  # fmt: skip

    def pictures(self, faces: list["GuidedFace"], state: CodeState) -> Tensor:
        """The faces as they are now [n,3,S,S] in [0,1], one after another."""
        images = torch.cat([self.decode([face], state).detach() for face in faces])
        return images.clamp(-1, 1).add(1).mul(0.5)

    def _steps(self, faces: list["GuidedFace"], state: CodeState, report: Callable[[int], None]) -> None:
        """Until every face has its steps or has come as near to the person as photos of one person are."""
        groups = [{"params": [face.offset], "lr": self.guidance.rate * face.spread} for face in faces]
        optimiser = torch.optim.Adam(groups)
        random = torch.Generator().manual_seed(0)  # the same shifts and noise for every face: batches change nothing
        for step in range(self.guidance.steps):
            active = [face for face in faces if not face.done]
            if not active:
                break
            optimiser.zero_grad(set_to_none=True)  # a face without a gradient is left alone by Adam
            image = self.decode(active, state)
            likeness = self.likeness(image, active, random)
            drift = torch.stack([f.drift(image[i : i + 1]) for i, f in enumerate(active)])
            (self.guidance.consistency * drift - likeness).sum().backward()
            optimiser.step()
            for face, reached in zip(active, likeness.tolist()):
                face.steps += 1
                face.start = reached if face.start is None else face.start
                face.done = reached >= face.start + self.guidance.strength * max(0.0, self.goal - face.start)
            report((step + 1) * len(faces))

    def decode(self, faces: list["GuidedFace"], state: CodeState) -> Tensor:
        codes = torch.cat([face.codes + face.offset for face in faces]).to(self.dtype)
        features = {s: torch.cat([f.features[s] for f in faces]).to(self.dtype) for s in state.features}
        w = torch.cat([face.w for face in faces]).to(self.device, self.dtype)
        return self.decoder.decode(CodeState(state.logits, codes, codes, features), w).float()

    def likeness(self, image: Tensor, faces: list["GuidedFace"], random: torch.Generator) -> Tensor:
        """[n] cosines to the person under this step's shift and noise."""
        reach = round(_SHIFT * image.shape[-1])
        dx, dy = torch.randint(0, 2 * reach + 1, (2,), generator=random).tolist()
        side = image.shape[-1]
        moved = F.pad(image.clamp(-1, 1), (reach,) * 4, mode="replicate")[..., dy : dy + side, dx : dx + side]
        crop = arcface_crop(moved)
        noise = torch.randn(1, *crop.shape[1:], generator=random).to(self.device) * _NOISE
        embedding = self.eye(crop + noise)
        return F.cosine_similarity(embedding, torch.cat([face.target for face in faces]), dim=1)


class GuidedFace:
    """One face on its way: what it starts from, where it has to go, and its offset."""

    def __init__(self, codes: Tensor, features: dict, w: Tensor, target: Tensor, unguided: Tensor, square: int):
        self.codes, self.features, self.w, self.target, self.square = codes, features, w, target, square
        self.offset = torch.zeros_like(codes, requires_grad=True)
        self.spread = float(codes.std())
        self.kept = F.avg_pool2d(unguided, square)
        self.steps, self.done, self.start = 0, False, None

    def drift(self, image: Tensor) -> Tensor:
        """Mean square, in [-1,1], of the change of the means over squares."""
        return F.mse_loss(F.avg_pool2d(image.clamp(-1, 1), self.square), self.kept)


def ordinary(network: nn.Module) -> nn.Module:
    """The network, or a copy of it where its weights were made in inference mode and autograd may not keep them."""
    tensors = [*network.parameters(), *network.buffers()]
    if not any(t.is_inference() or t.requires_grad for t in tensors):
        return network
    with torch.inference_mode(False):
        copied = _skeleton(network)
        copied.load_state_dict({k: v.detach().clone() for k, v in network.state_dict().items()}, assign=True)
    return copied.eval().requires_grad_(False)


def _skeleton(network: nn.Module) -> nn.Module:
    with skeletons():
        return type(network)(network.config)


def copied(state: CodeState) -> CodeState:
    """The state as tensors that autograd may keep."""
    features = {side: f.float().clone() for side, f in state.features.items()}
    return CodeState(state.logits.clone(), state.quant.float().clone(), state.lq_feat.float().clone(), features)
