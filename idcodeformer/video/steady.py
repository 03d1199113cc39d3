"""One face through a shot: restored frame after frame, without what flickers while the input stands still.

Alignment has taken the head's motion out of the crops, so what is compared between frames is the face itself:

- the code of each token is chosen by its log probabilities averaged over neighbouring frames in which the input looks
  the same there, and an old code stays until a new one is clearly likelier;
- the channel statistics that AdaIN hands on are averaged over time, and whether a face is gray is decided once;
- each restored pixel is drawn towards where it was a frame ago, followed by optical flow in the input (Kroeger et al.
  2016), as far as the input there is the same (compare Lai et al. 2018, "Learning Blind Video Temporal Consistency").
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..networks.codeformer import CodeState
from ..restoration.tone import luminance, match_tone
from ..types import RestoreOptions

_LOOK_AHEAD = 0.13  # seconds; what bounds the frames that wait with their encoder features
_LOOK_BACK = 0.27  # seconds
_SIGMA = 0.11  # seconds of the Gaussian over time
_SAME = 0.03  # rms in [0,1] of a token's pixels, averaged over a quarter of its side, up to which it stands still
_SAME_LIGHT = 0.02  # change of the mean colour of a crop up to which its statistics are averaged
_LEAD = 0.5  # nats by which a new code must be likelier than the old where the input stands still
_CELL = 4  # pixels a side into which a token is averaged before frames are compared
_DAMPING = 0.88  # share of the previous frame in a pixel whose input did not change
_SAME_PIXEL = 0.05  # change of a blurred input pixel in [0,1] up to which it is the same
_HALF = 65504.0  # the largest number in half precision
_FLOW_SIDE = 256  # px at most of the crops between which flow is sought


@dataclass(eq=False)
class _Moment:
    """A frame of the face while it is needed."""

    frame: int
    pixels: Tensor  # [3,S,S] input crop
    small: Tensor  # [3,4h,4h]
    logs: Tensor  # [T,codes] log probabilities
    mean: Tensor  # [D,1,1] of the encoder output
    spread: Tensor  # [D,1,1]
    features: dict[int, Tensor] | None  # until it has been decoded


class SteadyFace:
    """Restores the crops of one track. Feed them in order with ``push``; they come back a few frames later."""

    def __init__(self, restorer: Any, options: RestoreOptions, rate: float, gray: bool, steadiness: float = 1.0,
                 offset: Callable[[int], Tensor | None] | None = None):  # fmt: skip
        """``restorer``: a CodeFormerRestorer. ``rate``: frames a second. ``steadiness`` 0..1, 0 = frame by frame.

        ``offset(frame)`` [D,h,w] is added to the codes of a frame; guidance makes it.
        """
        self.restorer, self.steadiness, self.offset = restorer, steadiness, offset
        self.options = replace(options, gray="off" if not gray and options.gray == "auto" else
                               "force" if options.gray == "auto" else options.gray)  # fmt: skip
        steady = steadiness > 0
        self.ahead = max(1, round(_LOOK_AHEAD * rate)) if steady else 0
        self.back = max(1, round(_LOOK_BACK * rate)) if steady else 0
        self.sigma = max(0.5, _SIGMA * rate)
        self._moments: list[_Moment] = []
        self._next = 0  # place in _moments of the first that has not been decoded
        self._codes: Tensor | None = None
        self._shown: tuple[Tensor, Tensor] | None = None  # input and result of the last frame

    def push(self, frames: Sequence[int], pixels: Tensor, last: bool = False) -> list[tuple[int, Tensor, Tensor]]:
        """(frame, input crop, restored crop [3,S,S]) of those that are ready; all of them where ``last``.

        ``pixels`` [n,3,S,S] in [0,1] are the crops of ``frames``.
        """
        if len(frames):
            self._moments += self._encoded(frames, pixels)
        ready = range(self._next, len(self._moments) if last else max(self._next, len(self._moments) - self.ahead))
        if not ready:
            return []
        quants = [self._steady_codes(place) for place in ready]
        done = [self._moments[place] for place in ready]
        features = {side: _together([moment.features[side] for moment in done]) for side in done[0].features}
        quant = torch.stack(quants)
        # lq_feat is only asked for its statistics, which are in the codes already.
        state = CodeState(torch.empty(0), quant, quant, features)
        restored = self.restorer.decode(state, self.options.w, replace(self.options, adain=False))
        crops = torch.stack([moment.pixels for moment in done])
        restored = match_tone(restored.to(crops.device), crops, self.options)
        out = []
        for moment, face in zip(done, restored):
            moment.features = None
            out.append((moment.frame, moment.pixels, self._damped(moment.pixels, face)))
        self._next = ready.stop
        drop = max(0, self._next - self.back)
        self._moments, self._next = self._moments[drop:], self._next - drop
        return out

    def _encoded(self, frames: Sequence[int], pixels: Tensor) -> list[_Moment]:
        state = self.restorer.encode(pixels)
        side = state.lq_feat.shape[-1]
        small = F.interpolate(pixels, (side * _CELL, side * _CELL), mode="area").to(state.logits.device)
        logs = state.logits.log_softmax(2)
        variance, mean = torch.var_mean(state.lq_feat, dim=(2, 3), keepdim=True)
        return [
            _Moment(frame, pixels[n], small[n], logs[n], mean[n], (variance[n] + 1e-5).sqrt(),
                    {size: _packed(kept[n], self.ahead > 0) for size, kept in state.features.items()})
            for n, frame in enumerate(frames)
        ]  # fmt: skip

    def _steady_codes(self, place: int) -> Tensor:
        """[D,h,w] of the frame at ``place``, with the statistics it is to have."""
        now = self._moments[place]
        side = now.small.shape[-1] // _CELL
        logs, mean, spread = now.logs, now.mean, now.spread
        still_before = None
        if self.steadiness > 0:
            window = self._moments[max(0, place - self.back) : place + self.ahead + 1]
            time = torch.tensor([math.exp(-0.5 * ((m.frame - now.frame) / self.sigma) ** 2) for m in window])
            still = torch.stack([_stillness(m.small, now.small, side) for m in window])  # [W,T]
            weights = time.to(still)[:, None] * still
            logs = torch.einsum("wt,wtc->tc", weights / weights.sum(0), torch.stack([m.logs for m in window]))
            light = torch.stack([(m.small - now.small).mean((1, 2)).square().mean().sqrt() for m in window])
            even = time.to(light) * torch.exp(-((light / _SAME_LIGHT) ** 2))
            even = (even / even.sum())[:, None, None, None]
            mean = (even * torch.stack([m.mean for m in window])).sum(0)
            spread = (even * torch.stack([m.spread for m in window])).sum(0)
            if place and self._codes is not None:
                still_before = _stillness(self._moments[place - 1].small, now.small, side)
        codes = logs.argmax(1)
        if still_before is not None and self._codes is not None:
            lead = logs.gather(1, codes[:, None]) - logs.gather(1, self._codes[:, None])
            keep = lead[:, 0] < _LEAD * self.steadiness * still_before
            codes = torch.where(keep, self._codes, codes)
        self._codes = codes
        quant = self.restorer.decoder.quantize.lookup(codes[None], side, side)[0].float()
        if self.options.latent_match:
            quant = _with_statistics(quant, mean, spread)
        offset = None if self.offset is None else self.offset(now.frame)
        return quant if offset is None else quant + offset.to(quant)

    def _damped(self, pixels: Tensor, face: Tensor) -> Tensor:
        """``face`` drawn towards the frame before it where the input is the same."""
        if self.steadiness <= 0:
            return face
        if self._shown is not None:
            before, result = self._shown
            flow, trust = _motion(before, pixels)
            moved = _follow(result, flow)
            face = torch.lerp(face, moved, trust * (_DAMPING * self.steadiness))
        self._shown = (pixels, face)
        return face


def _packed(features: Tensor, waits: bool) -> Tensor:
    """In half precision where they wait and fit it: half the memory, and rounded only once."""
    if not waits:
        return features
    low, high = features.aminmax()  # one pass; NaN compares as false
    return features.half() if bool((low > -_HALF) & (high < _HALF)) else features


def _together(parts: Sequence[Tensor]) -> Tensor:
    """[n,...] float32 of n features; one alone is not copied twice."""
    return (parts[0][None] if len(parts) == 1 else torch.stack(parts)).float()


def _with_statistics(quant: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """``quant`` [D,h,w] with these channel means and standard deviations [D,1,1], as networks.codeformer.adain does."""
    variance, middle = torch.var_mean(quant, dim=(1, 2), keepdim=True)
    return (quant - middle) / (variance + 1e-5).sqrt() * spread + mean


def _stillness(a: Tensor, b: Tensor, side: int) -> Tensor:
    """[T] in 0..1: how far each token and its neighbours look the same in two frames."""
    change = F.avg_pool2d((a - b).square().mean(0, keepdim=True)[None], _CELL)
    change = F.max_pool2d(change, 3, 1, 1).flatten()
    return torch.exp(-change / _SAME**2)


def _motion(before: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    """Flow [2,S,S] in px from ``now`` back to ``before``, and how far to trust it [1,S,S]."""
    import cv2

    side = now.shape[-1]
    small = min(side, _FLOW_SIDE)
    pair = F.interpolate(torch.stack([before, now]), (small, small), mode="area") if small < side else torch.stack(
        [before, now])  # fmt: skip
    gray = luminance(pair).mul(255).round().clamp(0, 255).byte().cpu().numpy()
    gray = [cv2.GaussianBlur(one, (0, 0), 1.0) for one in gray]
    engine = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = torch.from_numpy(engine.calc(gray[1], gray[0], None)).movedim(-1, 0).to(now.device)
    moved = _follow(pair[0], flow)
    change = F.avg_pool2d((moved - pair[1])[None], 5, 1, 2, count_include_pad=False)[0].abs().amax(0, keepdim=True)
    change = F.max_pool2d(change[None], 3, 1, 1)[0]
    trust = torch.exp(-((change / _SAME_PIXEL) ** 2))
    if small < side:
        flow = F.interpolate(flow[None], (side, side), mode="bilinear", align_corners=False)[0] * (side / small)
        trust = F.interpolate(trust[None], (side, side), mode="bilinear", align_corners=False)[0]
    return flow, trust


def _follow(image: Tensor, flow: Tensor) -> Tensor:
    """[C,S,S] ``image`` read where ``flow`` [2,S,S] points to, bicubic, so that repeated steps keep it sharp."""
    side = image.shape[-1]
    axis = torch.arange(side, dtype=torch.float32, device=image.device)
    x, y = axis[None] + flow[0], axis[:, None] + flow[1]
    grid = torch.stack([(2 * x + 1) / side - 1, (2 * y + 1) / side - 1], -1)
    read = F.grid_sample(image[None], grid[None], "bicubic", "border", align_corners=False)[0]
    return read.clamp_(0, 1)
