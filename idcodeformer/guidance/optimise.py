"""A few gradient steps on the code features bring a restored face nearer to photos of the person.

Encoder and Transformer run once. The variable is a continuous offset on the chosen codes, zero at the start, so the
codebook's ceiling does not bind. Each step decodes, crops the face as recognisers see it under a small shift and noise,
and follows the gradient of

    1 - cos(embedding, reference)  +  consistency * mean square of (means over squares, guided - unguided)

The second term holds pose, expression, light and colour at the scale that the input shows. Weights stay as they are, so
any CodeFormer serves. Compare classifier guidance (Dhariwal & Nichol 2021, section 4). Figures and what was tried:
docs/guidance.md.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BadOption
from ..geometry.templates import arcface_crop
from ..networks.codeformer import CodeState, adain_codes
from ..runtime.memory import faces_per_batch, in_batches
from ..runtime.winograd import fast_convolutions
from ..types import Embeddings, Progress, RestoreOptions
from .gate import refusal

if TYPE_CHECKING:
    from ..identity.recogniser import IdentityRecogniser
    from ..restoration.codeformer import CodeFormerRestorer

_SHIFT = 2 / 128  # of the crop's side: the largest shift of the crop in a step, so that no one pixel grid is met
_NOISE = 0.02  # standard deviation, in [-1,1], of the noise that a step lays over the crop
_GRADIENT_FACES = 4  # a face with its activations kept for the gradient needs the memory of that many without
_LEAST_GAIN = 0.01  # cosine; a guided face that is not nearer to the reference by that much is not worth a change
# rms in [0,1] of what a 3-px mean takes away from a 128-px crop: medians of 145 LFW faces are 0.0155 clean, 0.0069 at
# x2, 0.0041 at x4, 0.0021 at x8; the limits lie between the 5 % and 95 % points of neighbours.
_DETAIL_X4, _DETAIL_X8 = 0.0053, 0.0029
_MOST_DRIFT = 0.04  # rms in [0,1] of the means over squares; further from the unguided face is another picture
# Cosine that one in ten pairs of photos of one person reaches (145 people of LFW set 8); above it the recogniser is fed
# texture. Others than these are taken to be as strict as ArcFace's ResNets.
SAME_PERSON = {"mini_recogniser": 0.80, "mobileface_v2": 0.77, "mobilefacenet_112_192d": 0.85}
_SAME_PERSON = 0.80


@dataclass(frozen=True)
class GuidanceOptions:
    """How far and how a face is guided."""

    steps: int = 15  # gradient steps; 0 leaves faces unguided
    strength: float = 1.0  # 0..1, share of the way from the unguided likeness to that of two photos of one person
    rate: float = 0.03  # size of a step, in units of the code features' own spread
    consistency: float = 1000.0  # weight of staying with the unguided face at the scale that the input shows
    force: bool = False  # guide although the face does not look like the person

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise BadOption(f"Guidance steps are {self.steps}; give 0 for none, 15 for most faces, 40 for tiny ones.")
        for name, low, high in (("strength", 0, 1), ("rate", 1e-6, 1), ("consistency", 0, 1e9)):
            if not low <= getattr(self, name) <= high:
                raise BadOption(f"Guidance {name} is {getattr(self, name)}; it must lie between {low:g} and {high:g}.")


@dataclass(frozen=True, eq=False)
class Guided:
    """Faces after guidance. A face that was not made better is the unguided one, and ``reasons`` says why."""

    pixels: Tensor  # [N,3,S,S] in [0,1]
    unguided: Tensor  # [N,3,S,S] in [0,1]
    before: tuple[float, ...]  # cosine of the unguided face and the reference, by the recogniser that guides
    after: tuple[float, ...]  # the same of the face returned
    steps: tuple[int, ...]  # steps that were made
    reasons: tuple[str, ...]  # "" where the guided face is returned


def told(result: Guided, recogniser: str, judge: str) -> tuple[str, ...]:
    """A line for every face; without the name of a second recogniser as judge it says that the score is the guide's."""
    own = f", judged by {judge}" if judge else "; the score is by the recogniser that guided"
    return tuple(
        reason or f"guided by {recogniser}, {before:.2f} to {after:.2f} in {steps} steps{own}"
        for reason, before, after, steps in zip(result.reasons, result.before, result.after, result.steps)
    )


def visible_scale(pixels: Tensor, most: int = 8) -> Tensor:
    """[N] int64: side of the squares, a power of two in px of a 128-px crop, below which an input shows no detail.

    ``pixels`` [N,3,S,S] in [0,1]. An input that was enlarged k times loses little where it is reduced k times and
    enlarged again. Noise and JPEG count as detail, so the answer errs towards the finer scale.
    """
    small = F.interpolate(pixels.float(), (128, 128), mode="area") if pixels.shape[-1] != 128 else pixels.float()
    luma = small.mean(1, keepdim=True)
    detail = (luma - F.avg_pool2d(luma, 3, 1, 1, count_include_pad=False)).square().mean((1, 2, 3)).sqrt()
    found = torch.full((len(pixels),), 2, dtype=torch.int64, device=pixels.device)
    for side, least in ((4, _DETAIL_X4), (8, _DETAIL_X8)):
        if side <= most:
            found = torch.where(detail < least, side, found)
    return found


def guide(
    restorer: CodeFormerRestorer,
    pixels: Tensor,
    target: Embeddings,
    recogniser: IdentityRecogniser,
    options: RestoreOptions | None = None,
    guidance: GuidanceOptions | None = None,
    w: Tensor | None = None,
    judge: tuple[IdentityRecogniser, Embeddings] | None = None,
    progress: Progress | None = None,
    unguided: Tensor | None = None,
) -> Guided:
    """Restore ``pixels`` [N,3,S,S] in [0,1] towards the person of ``target``, one embedding for all faces or one each.

    ``recogniser`` made ``target`` and guides. ``w`` [N] gives each face its own fidelity. ``judge``: another recogniser
    and the same people's embeddings by it; a face that is less like them by it than unguided is not returned.
    ``progress(done, total, "guiding")`` is called after every step and may raise to cancel. ``unguided``: the faces as
    the restorer makes them at that fidelity, where they are at hand. Works inside ``torch.inference_mode``. Raises
    BadOption for embeddings of another recogniser or number, OutOfMemory.
    """
    options, guidance = options or RestoreOptions(), guidance or GuidanceOptions()
    vectors = _vectors(target, recogniser, len(pixels))
    unguided = restorer(pixels, options, None, w) if unguided is None else unguided
    out, steps = unguided.clone(), [0] * len(pixels)
    refused = ["" if guidance.force else refusal(c, recogniser.name) for c in _cosines(recogniser, unguided, vectors)]
    open_to = torch.tensor([i for i, why in enumerate(refused) if not why], dtype=torch.int64)
    total = len(open_to) * guidance.steps

    def step(start: int, stop: int) -> None:
        places = open_to[start:stop]
        here = places.to(pixels.device)
        each = torch.full((len(places),), options.w) if w is None else w[places.to(w.device)]

        def report(done: int) -> None:
            if progress is not None:
                progress(start * guidance.steps + done, total, "guiding")

        guided, made = run(pixels[here], unguided[here], vectors[places.to(vectors.device)], each, report)
        out[here] = guided
        for place, count in zip(places.tolist(), made):
            steps[place] = count

    if total and guidance.strength > 0:
        run = _Run(restorer, recogniser, options, guidance)
        batch = max(1, (options.batch_size or faces_per_batch(restorer.config, restorer.device)) // _GRADIENT_FACES)
        in_batches(len(open_to), batch, step, None, "guiding")
    return _better(pixels, unguided, out, vectors, recogniser, judge, steps, refused)


def _vectors(target: Embeddings, recogniser: IdentityRecogniser, count: int) -> Tensor:
    if target.recogniser != recogniser.name:
        raise BadOption(
            f"The person was embedded by {target.recogniser}, but {recogniser.name} guides; embed the photos with it."
        )
    if len(target) not in (1, count):
        raise BadOption(f"{len(target)} people for {count} faces; give one embedding, or one for each face.")
    return target.vectors.to(recogniser.device).expand(count, -1)


class _Run:
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
        state, squares = self.restorer.encode(pixels), _squares(pixels)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
            state = _copied(state)
            faces = self.faces(state, unguided, vectors, w, squares)
            with self.fast:
                self._steps(faces, state, report)
                images = self.pictures(faces, state)
        return images.to(unguided.device), [face.steps for face in faces]

    def faces(
        self, state: CodeState, unguided: Tensor, vectors: Tensor, w: Tensor, squares: Sequence[int]
    ) -> list["_Face"]:
        """The faces of a copied ``state`` at their start."""
        start = adain_codes(state) if self.options.latent_match else state.quant
        return [
            _Face(start[i : i + 1].clone(), {s: f[i : i + 1] for s, f in state.features.items()}, w[i : i + 1],
                  vectors[i : i + 1].clone(), unguided[i : i + 1].to(self.device, torch.float32) * 2 - 1, square)
            for i, square in enumerate(squares)
        ]  # fmt: skip

    def pictures(self, faces: list["_Face"], state: CodeState) -> Tensor:
        """The faces as they are now [n,3,S,S] in [0,1], one after another."""
        images = torch.cat([self._decode([face], state).detach() for face in faces])
        return images.clamp(-1, 1).add(1).mul(0.5)

    def _steps(self, faces: list["_Face"], state: CodeState, report: Callable[[int], None]) -> None:
        """Until every face has its steps or has come as near to the person as photos of one person are."""
        groups = [{"params": [face.offset], "lr": self.guidance.rate * face.spread} for face in faces]
        optimiser = torch.optim.Adam(groups)
        random = torch.Generator().manual_seed(0)  # the same shifts and noise for every face: batches change nothing
        for step in range(self.guidance.steps):
            active = [face for face in faces if not face.done]
            if not active:
                break
            optimiser.zero_grad(set_to_none=True)  # a face without a gradient is left alone by Adam
            image = self._decode(active, state)
            likeness = self._likeness(image, active, random)
            drift = torch.stack([f.drift(image[i : i + 1]) for i, f in enumerate(active)])
            (1 - likeness + self.guidance.consistency * drift).sum().backward()
            optimiser.step()
            for face, reached in zip(active, likeness.tolist()):
                face.steps += 1
                face.start = reached if face.start is None else face.start
                face.done = reached >= face.start + self.guidance.strength * max(0.0, self.goal - face.start)
            report((step + 1) * len(faces))

    def _decode(self, faces: list["_Face"], state: CodeState) -> Tensor:
        codes = torch.cat([face.codes + face.offset for face in faces]).to(self.dtype)
        features = {s: torch.cat([f.features[s] for f in faces]).to(self.dtype) for s in state.features}
        w = torch.cat([face.w for face in faces]).to(self.device, self.dtype)
        return self.decoder.decode(CodeState(state.logits, codes, codes, features), w).float()

    def _likeness(self, image: Tensor, faces: list["_Face"], random: torch.Generator) -> Tensor:
        """[n] cosines to the person under this step's shift and noise."""
        reach = round(_SHIFT * image.shape[-1])
        dx, dy = torch.randint(0, 2 * reach + 1, (2,), generator=random).tolist()
        side = image.shape[-1]
        moved = F.pad(image.clamp(-1, 1), (reach,) * 4, mode="replicate")[..., dy : dy + side, dx : dx + side]
        crop = arcface_crop(moved)
        noise = torch.randn(1, *crop.shape[1:], generator=random).to(self.device) * _NOISE
        embedding = self.eye(crop + noise)
        return F.cosine_similarity(embedding, torch.cat([face.target for face in faces]), dim=1)


class _Face:
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
    with torch.device("meta"):
        return type(network)(network.config)


def _copied(state: CodeState) -> CodeState:
    """The state as tensors that autograd may keep."""
    features = {side: f.float().clone() for side, f in state.features.items()}
    return CodeState(state.logits.clone(), state.quant.float().clone(), state.lq_feat.float().clone(), features)


def _better(
    pixels: Tensor,
    unguided: Tensor,
    guided: Tensor,
    vectors: Tensor,
    recogniser: IdentityRecogniser,
    judge: tuple[IdentityRecogniser, Embeddings] | None,
    steps: Sequence[int],
    refused: Sequence[str],
) -> Guided:
    """Each face as it is better: guided where it is nearer to the person and still the picture that it was."""
    before, after = (_cosines(recogniser, faces, vectors) for faces in (unguided, guided))
    drift = _drifts(unguided, guided, _squares(pixels))
    judged = [0.0] * len(pixels)
    if judge is not None:
        other, people = judge
        theirs = _vectors(people, other, len(pixels))
        judged = [b - a for a, b in zip(*(_cosines(other, faces, theirs) for faces in (unguided, guided)))]
    reasons = [why or _reason(*v) for why, *v in zip(refused, before, after, drift, judged, steps)]
    keep = torch.tensor([not reason for reason in reasons], device=unguided.device).view(-1, 1, 1, 1)
    reached = [a if not reason else b for a, b, reason in zip(after, before, reasons)]
    return Guided(torch.where(keep, guided, unguided), unguided, tuple(before), tuple(reached), tuple(steps),
                  tuple(reasons))  # fmt: skip


def _squares(pixels: Tensor) -> list[int]:
    """Side in px of the squares over which each crop [N,3,S,S] keeps its means: what the input shows."""
    return (visible_scale(pixels) * pixels.shape[-1] // 128).clamp(min=1).tolist()


def _drifts(unguided: Tensor, guided: Tensor, squares: Sequence[int]) -> list[float]:
    """rms in [0,1] by which the means over squares of each face changed."""
    return [
        float((F.avg_pool2d(a[None], k) - F.avg_pool2d(b[None], k)).square().mean().sqrt())
        for a, b, k in zip(unguided, guided, squares)
    ]


def _reason(before: float, after: float, drift: float, judged: float, steps: int) -> str:
    if not steps:
        return "not guided"
    if not after >= before + _LEAST_GAIN:
        return f"guidance brought no likeness ({before:.2f} to {after:.2f})"
    if judged < 0:
        return f"guidance lost likeness by the judge ({judged:+.2f})"
    if not drift <= _MOST_DRIFT:
        return f"guidance changed the picture itself (by {drift * 255:.0f} levels)"
    return ""


def _cosines(recogniser: IdentityRecogniser, faces: Tensor, vectors: Tensor) -> list[float]:
    found = recogniser(faces).vectors
    return (found * vectors.to(found.device)).sum(1).clamp(-1, 1).tolist()
