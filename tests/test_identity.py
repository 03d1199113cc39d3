"""Recognising: alignment, embeddings, comparison, one-to-one matching."""
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from idcodeformer import load_recogniser
from idcodeformer.errors import BadImage, BadOption, MissingWeights, NoDevice, UnsupportedWeights
from idcodeformer.geometry.alignment import align
from idcodeformer.geometry.templates import ARCFACE_112, ffhq_template
from idcodeformer.identity.recogniser import IdentityRecogniser, cosine, match, mean_identity
from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
from idcodeformer.networks.mobilefacenet import MobileFaceNet, MobileFaceNetConfig
from idcodeformer.types import Embeddings, Face
from idcodeformer.weights.loading import save


class Pixels(nn.Module):
    """A recogniser whose embedding is the crop itself: shows what the network is given."""

    embedding_dim = 3 * 112 * 112

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return x.flatten(1)


def embeddings(rows, name: str = "a") -> Embeddings:
    vectors = torch.tensor(rows, dtype=torch.float32)
    return Embeddings(nn.functional.normalize(vectors, dim=1), name)


@pytest.fixture(scope="module")
def tiny() -> IdentityRecogniser:
    torch.manual_seed(0)
    stages = ((2, 8, 1, 2), (2, 8, 1, 2), (2, 8, 1, 2))
    config = MobileFaceNetConfig(stages=stages, stem=8, head=16, embedding_dim=8)
    return IdentityRecogniser(MobileFaceNet(config), "tiny", "cpu")


def dots(size: int, points: np.ndarray) -> torch.Tensor:
    """A black picture [3,size,size] with a white spot at every point."""
    y, x = np.mgrid[0:size, 0:size]
    spots = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (size / 60) ** 2)) for px, py in points)
    return torch.tensor(np.clip(spots, 0, 1), dtype=torch.float32).expand(3, size, size)


def centre(picture: torch.Tensor, point: np.ndarray, reach: int = 6) -> np.ndarray:
    """Centre of mass around ``point``."""
    x0, y0 = (int(round(v)) - reach for v in point)
    patch = picture[0, y0 : y0 + 2 * reach + 1, x0 : x0 + 2 * reach + 1].double().numpy()
    y, x = np.mgrid[y0 : y0 + 2 * reach + 1, x0 : x0 + 2 * reach + 1]
    return np.array([(patch * x).sum(), (patch * y).sum()]) / patch.sum()


@pytest.mark.parametrize("size", [128, 512])
def test_crop_lies_on_the_arcface_template(size):
    """The points of an FFHQ-aligned face arrive within what the two templates differ by (2.1 px); merely resizing the
    crop would leave them up to 12 px off."""
    network = Pixels()
    IdentityRecogniser(network, "pixels", "cpu")(dots(size, ffhq_template(size))[None])
    assert network.seen.shape == (1, 3, 112, 112)
    assert network.seen.min() >= -1 and network.seen.max() <= 1.0001
    shown = (network.seen[0] + 1) / 2
    for point in ARCFACE_112:
        assert np.abs(centre(shown, point) - point).max() < 2.2


def test_landmarks_of_a_picture_are_fitted_directly():
    points = (ffhq_template(512) - 256) @ np.array([[0.6, 0.3], [-0.3, 0.6]]) * 0.5 + [150, 140]
    face = Face(torch.tensor([80.0, 70, 220, 210]), 0.9, torch.tensor(points).float())
    network = Pixels()
    recogniser = IdentityRecogniser(network, "pixels", "cpu")
    recogniser.embed_faces([torch.zeros(3, 20, 20), dots(300, points)], [(), (face,)])
    shown = (network.seen[0] + 1) / 2
    for point in ARCFACE_112:
        assert np.abs(centre(shown, point) - point).max() < 2.2


def test_both_ways_agree(tiny):
    """From the picture by landmarks and from the FFHQ crop: the same person."""
    picture = nn.functional.interpolate(torch.rand(1, 3, 12, 12), (300, 300), mode="bicubic").clamp(0, 1)[0]
    points = (ffhq_template(512) - 256) * 0.3 + 150
    face = Face(torch.tensor([80.0, 70, 220, 210]), 0.9, torch.tensor(points).float())
    direct = tiny.embed_faces([picture], [(face,)])
    through_crop = tiny(align([picture], [(face,)], 256).pixels)
    assert float(cosine(direct, through_crop)) > 0.97


def test_embeddings_are_unit_vectors_in_fp32(tiny):
    pixels = torch.rand(3, 3, 64, 64)
    out = tiny(pixels.half())
    assert out.vectors.dtype == torch.float32
    assert not out.vectors.requires_grad
    torch.testing.assert_close(out.vectors.norm(dim=1), torch.ones(3))
    assert out.recogniser == "tiny"
    with torch.autocast("cpu", torch.bfloat16):
        inside = tiny(pixels).vectors
    torch.testing.assert_close(inside, tiny(pixels).vectors, atol=1e-6, rtol=0)


def test_batches_do_not_change_embeddings(tiny):
    pixels = torch.rand(40, 3, 48, 48)
    torch.testing.assert_close(tiny(pixels).vectors[37:38], tiny(pixels[37:38]).vectors, atol=1e-5, rtol=0)


def test_no_face(tiny):
    assert tiny(torch.zeros(0, 3, 64, 64)).vectors.shape == (0, 8)
    assert tiny.embed_faces([torch.zeros(3, 9, 9)], [()]).vectors.shape == (0, 8)
    assert cosine(tiny.none(), tiny(torch.rand(2, 3, 64, 64))).shape == (0, 2)
    assert match(tiny.none(), tiny.none()) == ()


def test_wrong_shapes(tiny):
    with pytest.raises(BadImage, match="FFHQ"):
        tiny(torch.rand(3, 64, 64))
    with pytest.raises(BadOption, match="one list per image"):
        tiny.embed_faces([torch.rand(3, 64, 64)], [(), ()])


# ---------------------------------------------------------------- comparing


def test_cosine():
    a, b = embeddings([[1, 0], [1, 1]]), embeddings([[0, 2], [-3, 0], [5, 5]])
    half = math.sqrt(0.5)
    torch.testing.assert_close(cosine(a, b), torch.tensor([[0, -1, half], [half, -half, 1]]))


def test_different_recognisers_are_not_compared():
    with pytest.raises(BadOption, match="a and b"):
        cosine(embeddings([[1, 0]]), embeddings([[1, 0]], "b"))


def test_several_photos_make_one_person():
    person = mean_identity(embeddings([[1, 0, 0], [0, 1, 0]]))
    torch.testing.assert_close(person.vectors, torch.tensor([[math.sqrt(0.5), math.sqrt(0.5), 0]]))
    with pytest.raises(BadOption, match="at least one photo"):
        mean_identity(Embeddings(torch.zeros(0, 3), "a"))


@pytest.mark.parametrize("n,m", [(1, 1), (3, 3), (2, 5), (5, 2), (4, 6)])
def test_match_is_the_best_one_to_one_assignment(n, m):
    rng = np.random.default_rng(n * 10 + m)
    for _ in range(20):
        a, b = embeddings(rng.normal(size=(n, 3))), embeddings(rng.normal(size=(m, 3)))
        scores = cosine(a, b).double().numpy()
        pairs = match(a, b)
        assert len(pairs) == min(n, m)
        assert len({i for i, _, _ in pairs}) == len({j for _, j, _ in pairs}) == len(pairs)
        assert all(score == pytest.approx(scores[i, j]) for i, j, score in pairs)
        few, many = (scores, m) if n <= m else (scores.T, n)
        best = max(sum(few[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(many), len(few)))
        assert sum(score for _, _, score in pairs) == pytest.approx(best)


def test_match_is_not_greedy():
    """The first face would take the second's partner."""
    a, b = embeddings([[1, 0.2], [1, 0]]), embeddings([[1, 0.1], [0.2, 1]])
    assert [(i, j) for i, j, _ in match(a, b)] == [(0, 1), (1, 0)]


# ---------------------------------------------------------------- loading


def test_load_from_a_file(tmp_path, tiny):
    path = tmp_path / "somebody.safetensors"
    save(tiny.network, path, {})
    loaded = load_recogniser(path, device="cpu")
    pixels = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(loaded(pixels).vectors, tiny(pixels).vectors, atol=1e-6, rtol=0)
    assert loaded.name == "somebody"


def test_load_refuses_other_networks(tmp_path):
    path = tmp_path / "restorer.safetensors"
    cfg = CodeFormerConfig(
        img_size=32, nf=16, ch_mult=(1, 2, 2), attn_resolutions=(8,), codebook_size=32, emb_dim=16,
        dim_embd=32, dim_mlp=64, n_head=2, n_layers=1, connect_list=(16, 32),
    )  # fmt: skip
    save(CodeFormer(cfg), path, {})
    with pytest.raises(UnsupportedWeights, match="restorer.safetensors"):
        load_recogniser(path, device="cpu")


def test_missing_file_and_device(tmp_path):
    with pytest.raises(MissingWeights):
        load_recogniser(tmp_path / "nobody.pth", device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(NoDevice, match="CUDA"):
            load_recogniser(device="cuda")
