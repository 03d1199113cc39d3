"""Labels at any size, and the soft mask the reference makes of them."""
from __future__ import annotations

import math
import os
import sys

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idcodeformer.compositing.parsing import (
    CLASSES,
    HAIR,
    REFERENCE_CLASSES,
    REFERENCE_CLASSES_WITHOUT_HAIR,
    FaceParser,
    blur,
    find_parser,
    load_parser,
    soft_mask,
)
from idcodeformer.detection import load_detector
from idcodeformer.errors import BadImage, BadOption, MissingWeights, OutOfMemory
from idcodeformer.files.reading import read
from idcodeformer.geometry.alignment import align
from idcodeformer.geometry.templates import ffhq_template
from idcodeformer.networks.mini_parser import MiniParser, MiniParserConfig
from idcodeformer.weights.loading import build


class Bands(nn.Module):
    """Stands in for ParseNet: the brighter a pixel's red, the higher its label; remembers what it was given."""

    def __init__(self, most: int = 99) -> None:
        super().__init__()
        self.most, self.sizes = most, []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        assert -1 <= x.min() and x.max() <= 1
        self.sizes.append(tuple(x.shape[2:]))
        level = (x[:, :1] + 1) / 2 * 18
        labels = torch.arange(19.0)[None, :, None, None]
        return -((level - labels) ** 2), x


def test_reference_classes_are_named_right() -> None:
    assert [CLASSES[i] for i in range(len(CLASSES)) if i not in REFERENCE_CLASSES] == [
        "background", "hat", "necklace", "neck", "cloth",
    ]  # fmt: skip
    assert set(REFERENCE_CLASSES) - set(REFERENCE_CLASSES_WITHOUT_HAIR) == {HAIR} == {13}


@pytest.mark.parametrize(("side", "size"), [(512, 512), (128, 512), (200, 256), (512, 256), (64, 64), (1, 64)])
def test_labels_have_the_size_of_the_crop(side: int, size: int) -> None:
    bands = torch.linspace(0, 18, side).round()
    pixels = (bands / 18).expand(2, 3, side, side).contiguous()
    network = Bands()
    labels = FaceParser(network, "cpu", size)(pixels)
    assert labels.shape == (2, side, side) and labels.dtype == torch.uint8
    assert set(network.sizes) == {(size, size)}
    assert (labels == bands.to(torch.uint8)).float().mean() > 0.8  # borders between bands may move by a pixel


def test_crops_go_one_by_one_on_the_cpu_and_memory_is_asked_for_in_words() -> None:
    network = Bands(most=1)
    assert FaceParser(network, "cpu", 64)(torch.rand(3, 3, 64, 64)).shape == (3, 64, 64) and len(network.sizes) == 3
    assert FaceParser(network, "cpu", 64)(torch.rand(0, 3, 64, 64)).shape == (0, 64, 64)
    with pytest.raises(OutOfMemory, match="parsing"):
        FaceParser(Bands(most=0), "cpu", 64)(torch.rand(1, 3, 64, 64))


def test_bad_input_is_named() -> None:
    parser = FaceParser(Bands(), "cpu", 64)
    for shape in ((3, 64, 64), (1, 1, 64, 64), (1, 3, 0, 64)):
        with pytest.raises(BadImage, match="RGB crops"):
            parser(torch.zeros(shape))
    with pytest.raises(BadOption, match="multiple of 16"):
        FaceParser(Bands(), "cpu", 100)
    with pytest.raises(BadOption, match="from 64"):
        FaceParser(Bands(), "cpu", 48)
    with pytest.raises(BadOption, match="no parsing classes"):
        soft_mask(torch.zeros(1, 8, 8, dtype=torch.uint8), (1, 19))


def faces_labels(seed: int) -> np.ndarray:
    """A 512-px map of ellipses with labels of every kind."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((512, 512), np.uint8)
    for label in (13, 1, 14, 10, 17, 15, 18, 4):
        centre, axes = rng.integers(40, 470, 2).tolist(), rng.integers(10, 160, 2).tolist()
        cv2.ellipse(labels, centre, axes, float(rng.uniform(0, 180)), 0, 360, label, -1)
    return labels


@pytest.mark.parametrize("classes", [None, REFERENCE_CLASSES_WITHOUT_HAIR, (18,), ()])
def test_the_soft_mask_is_the_reference_s(classes: tuple[int, ...] | None) -> None:
    """The published procedure: two Gaussian blurs of the 0/255 mask, then a border of zeros."""
    labels = np.stack([faces_labels(1), faces_labels(2)])
    mine = soft_mask(torch.tensor(labels), classes)
    assert mine.shape == (2, 1, 512, 512)
    chosen = REFERENCE_CLASSES if classes is None else classes
    for one, result in zip(labels, mine, strict=True):
        wanted = np.isin(one, chosen) * 255.0
        wanted = cv2.GaussianBlur(cv2.GaussianBlur(wanted, (101, 101), 11), (101, 101), 11)
        for side in (np.s_[:10], np.s_[-10:], np.s_[:, :10], np.s_[:, -10:]):
            wanted[side] = 0
        assert np.abs(result[0].numpy() * 255 - wanted).max() < 0.05


@pytest.mark.parametrize("side", [64, 128, 1024])
def test_the_soft_mask_is_in_proportion_at_other_sizes(side: int) -> None:
    labels = torch.tensor(faces_labels(3))[None]
    other = nn.functional.interpolate(labels[None].float(), (side, side), mode="nearest-exact")[0].to(torch.uint8)
    shown = nn.functional.interpolate(soft_mask(labels), (side, side), mode="bilinear", antialias=True)
    inner = slice(side // 16, -side // 16)
    difference = (soft_mask(other) - shown)[..., inner, inner].abs()
    assert difference.mean() < 0.01 and difference.max() < 0.15


@pytest.mark.parametrize("side", [1, 2, 3, 16])
def test_tiny_masks_are_finite(side: int) -> None:
    mask = soft_mask(torch.ones(1, side, side, dtype=torch.uint8))
    assert mask.shape == (1, 1, side, side) and mask.isfinite().all() and mask.max() <= 1 + 1e-6


def test_missing_weights_name_file_and_url() -> None:
    with pytest.raises(MissingWeights, match=r"parsing_parsenet.pth.*https://"):
        load_parser("parsenet", "cpu")


def test_the_published_parser_is_taken_where_it_is(tmp_path) -> None:
    built_in = find_parser([tmp_path])
    assert built_in.name == "mini_parser.safetensors" and built_in.is_file()
    (tmp_path / "parsing_parsenet.pth").write_bytes(b"x")
    assert find_parser([tmp_path]) == tmp_path / "parsing_parsenet.pth"


def test_the_built_in_parser_knows_a_face(photos) -> None:
    """The sitter of the portrait that comes with the package: parts where the landmarks are, hair above, no face in the
    corners, at the crop's own size and at others."""
    image = read(photos / "portrait.jpg").frames
    (faces,) = load_detector("retinaface_mobile0.25", "cpu")(list(image))
    crops = align(list(image), [faces[:1]], 512)
    parser = load_parser("mini_parser", "cpu")
    labels = parser(crops.pixels)[0]
    assert parser.size == 176 and labels.shape == (512, 512)
    left, right, nose, *_ = ffhq_template(512).round().astype(int).tolist()  # as seen; the labels name the person's own
    assert CLASSES[labels[left[1], left[0]]] == "right_eye" and CLASSES[labels[right[1], right[0]]] == "left_eye"
    assert CLASSES[labels[nose[1], nose[0]]] == "nose"
    shares = torch.bincount(labels.flatten().long(), minlength=len(CLASSES)) / labels.numel()
    assert 0.15 < shares[CLASSES.index("skin")] < 0.5 and shares[HAIR] > 0.02
    small = parser(F.interpolate(crops.pixels, (200, 200), mode="bilinear", antialias=True))
    large = F.interpolate(labels[None, None].float(), (200, 200), mode="nearest-exact")[0].to(torch.uint8)
    assert (small == large).float().mean() > 0.95


def test_the_mini_parser_is_told_by_its_tensors() -> None:
    config = MiniParserConfig((8, 16), (1, 2), 19, 64)
    net = build(MiniParser(config).state_dict(), "parser")
    assert (net.config.widths, net.config.blocks, net.config.classes) == ((8, 16), (1, 2), 19)
    assert net(torch.zeros(1, 3, 32, 48)).shape == (1, 19, 32, 48)
    x = torch.rand(2, 3, 64, 64)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.running_mean)
    before = net(x)
    FaceParser(net, "cpu")
    FaceParser(net, "cpu")  # folded once
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert torch.allclose(net(x), before, atol=1e-4)
    with pytest.raises(ValueError, match="multiples of 4"):
        net(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match="differ in length"):
        MiniParserConfig((8, 16), (1,))


@pytest.mark.parity
@pytest.mark.slow
def test_parsenet_matches_the_goldens() -> None:
    from idcodeformer.weights.loading import build

    folder = os.environ["IDCODEFORMER_PARITY"]
    sys.path.insert(0, folder)
    import recipe

    goldens = np.load(os.path.join(folder, "facenets.npz"))
    parser = FaceParser(build(recipe.torch_state_dict("parsenet"), "parsenet"), "cpu")
    for seed in (4, 8):
        pixels = torch.tensor(recipe.image_u8(seed)).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            logits = parser.logits(pixels)[0].numpy()
        assert np.abs(recipe.stats(logits) - goldens[f"parsenet/s{seed}/mask_stats"]).max() < 1e-3
        assert np.abs(recipe.projections(logits) - goldens[f"parsenet/s{seed}/mask_proj"]).max() < 1e-3
        top = np.sort(logits, axis=0)[-2:]
        clear = (top[1] - top[0])[::4, ::4] > 1e-3
        assert (logits.argmax(0)[::4, ::4] == goldens[f"parsenet/s{seed}/argmax"])[clear].all()


def test_a_blur_reaches_as_far_as_it_says() -> None:
    spot = torch.zeros(1, 1, 5, 5)
    spot[..., 2, 2] = 1
    near = blur(spot, 1.0, 0.2)[0, 0]  # one px to each side
    side = math.exp(-0.5) / (1 + 2 * math.exp(-0.5))
    assert float(near[2, 1]) == pytest.approx(side * (1 - 2 * side)) and not near[2, 0] and not near[0, 2]
    assert float(blur(torch.tensor([[[[1.0, 0], [0, 0]]]]), 1.0, 5.0)[0, 0, 0, 1]) > 0.1  # as far as two px allow
    assert float(near.sum()) == pytest.approx(1)
