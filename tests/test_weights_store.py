"""The registry, the search order, verification and the embedded set."""
from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from idcodeformer.errors import MissingWeights, UnsupportedWeights
from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
from idcodeformer.weights import loading, registry, store

GOLDEN_BOXES = [  # x0, y0, x1, y1 in px of the four faces of assets/group.jpg
    [906.8, 49.5, 1090.2, 300.5],
    [636.4, 50.7, 807.8, 287.5],
    [65.7, 42.4, 254.3, 303.9],
    [357.7, 55.7, 535.6, 297.5],
]
TINY = CodeFormerConfig(
    img_size=32, nf=8, ch_mult=(1, 2), attn_resolutions=(), codebook_size=4, emb_dim=4, dim_embd=8, dim_mlp=8,
    n_layers=1, connect_list=(),
)  # fmt: skip


@pytest.fixture
def places(tmp_path, monkeypatch) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("variable", "comfy", "cache", "embedded")}
    for folder in found.values():
        folder.mkdir()
    monkeypatch.setenv("IDCODEFORMER_MODELS", str(found["variable"]))
    monkeypatch.setattr(store, "cache_folder", lambda: found["cache"])
    monkeypatch.setattr(store, "EMBEDDED", found["embedded"])
    return found


def test_registry_is_complete_and_consistent():
    names = [w.name for w in registry.WEIGHTS]
    files = [f for w in registry.WEIGHTS for f in (w.file, *w.aliases)]
    assert len(set(names)) == len(names) and len(set(files)) == len(files)
    for weight in registry.WEIGHTS:
        assert weight.licence and weight.kind in (*loading.KINDS, *registry.OTHER_RUNTIMES, "upscaler")
        assert weight.sha256 is None or re.fullmatch("[0-9a-f]{64}", weight.sha256)
        assert weight.embedded or weight.source.startswith("https://")
    codeformer = registry.by_name("codeformer")
    assert codeformer.bytes == 376_637_898 and codeformer.sha256.startswith("1009e537") and codeformer.non_commercial
    assert "NON-COMMERCIAL" in codeformer.terms


def test_unknown_name_offers_the_nearest():
    with pytest.raises(MissingWeights, match="codeformer"):
        registry.by_name("codefromer")
    with pytest.raises(MissingWeights, match="codeformer"):
        store.find("codefromer")


def test_search_order(places):
    for name in ("embedded", "cache", "comfy", "variable"):
        (places[name] / "codeformer.pth").write_bytes(b"x")
        assert store.find("codeformer", "restorer", [places["comfy"]]) == places[name] / "codeformer.pth"
    explicit = places["cache"].parent / "mine.pth"
    explicit.write_bytes(b"x")
    assert store.find(explicit) == explicit
    assert store.find("codeformer.pth") == places["variable"] / "codeformer.pth"


@pytest.mark.parametrize("below", ["", "buffalo_l", "models/buffalo_l", "insightface/models/buffalo_l"])
def test_a_comfyui_folder_may_be_any_level(places, below):
    path = places["comfy"] / below / "w600k_r50.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    assert store.find("arcface_w600k_r50", "recogniser", [places["comfy"]]) == path


@pytest.mark.parametrize("file", ["codeformer-v0.1.0.pth", "codeformer.safetensors"])
def test_other_names_of_the_same_file_are_found(places, file):
    (places["comfy"] / "facerestore_models").mkdir()
    path = places["comfy"] / "facerestore_models" / file
    path.write_bytes(b"x")
    assert store.find("codeformer", folders=[places["comfy"]]) == path


def test_missing_says_file_url_folder_and_licence(places):
    with pytest.raises(MissingWeights) as caught:
        store.find("codeformer", "restorer")
    for word in ("codeformer.pth", "github.com/sczhou", str(places["variable"]), "NON-COMMERCIAL", "models download"):
        assert word in str(caught.value)
    with pytest.raises(MissingWeights, match=re.escape(str(places["comfy"]))):
        store.find("codeformer", "restorer", [places["comfy"]])
    with pytest.raises(MissingWeights, match="nothere.pth"):
        store.find("nothere.pth")
    with pytest.raises(MissingWeights, match="nothere.pth"):
        store.find(places["cache"] / "nothere.pth")
    with pytest.raises(MissingWeights, match="arcface_torch"):
        store.find("arcface_ms1mv3_r100")


def test_a_name_of_another_kind_is_refused(places):
    with pytest.raises(UnsupportedWeights, match="parsenet is a parsenet, not a restorer"):
        store.find("parsenet", "restorer")


def test_available_lists_files_and_our_exports_by_kind(places):
    (places["comfy"] / "codeformer.pth").write_bytes(b"x")
    (places["cache"] / "parsing_parsenet.pth").write_bytes(b"x")
    (places["cache"] / "broken.safetensors").write_bytes(b"x")
    loading.save(CodeFormer(TINY), places["variable"] / "mine.safetensors")
    listed = {f.name: f.path for f in store.available("restorer", [places["comfy"]])}
    assert listed == {
        "codeformer": places["comfy"] / "codeformer.pth", "mine": places["variable"] / "mine.safetensors",
    }  # fmt: skip
    assert {f.name for f in store.available()} == {"parsenet", "mine"}
    assert store.find("mine.safetensors") == listed["mine"]


def test_verify_needs_an_equal_hash(tmp_path, monkeypatch):
    path = tmp_path / "codeformer.pth"
    path.write_bytes(b"something else")
    verdict = store.verify(path)
    assert verdict.status == "altered"
    assert registry.by_name("codeformer").sha256 in verdict.detail
    assert hashlib.sha256(b"something else").hexdigest() in verdict.detail
    row = replace(registry.by_name("codeformer"), sha256=hashlib.sha256(b"something else").hexdigest())
    assert store.verify(path, row).status == "verified"


def test_a_file_without_a_known_hash_is_never_verified(tmp_path):
    path = tmp_path / "codeformer_stage2.pth"
    path.write_bytes(b"x")
    verdict = store.verify(path)
    assert verdict.status == "unknown" and "cannot be verified" in verdict.detail
    other = tmp_path / "stranger.pth"
    other.write_bytes(b"x")
    assert store.verify(other).status == "unknown"
    with pytest.raises(MissingWeights):
        store.verify(tmp_path / "none.pth")


def test_a_known_file_under_another_name_is_recognised(tmp_path):
    embedded = store.EMBEDDED / "retinaface_mobile0.25.safetensors"
    (tmp_path / "copy.bin").write_bytes(embedded.read_bytes())
    assert "retinaface_mobile0.25" in store.verify(tmp_path / "copy.bin").detail


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x/cache"}, "/x/cache/idcodeformer"),
        ("linux", {"XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/idcodeformer"),
        ("darwin", {"HOME": "/Users/me"}, "/Users/me/Library/Caches/idcodeformer"),
        ("win32", {"LOCALAPPDATA": "/C/Local"}, "/C/Local/idcodeformer/Cache"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX paths")
def test_cache_folder_of_every_platform(monkeypatch, platform, variables, expected):
    monkeypatch.setattr(store.sys, "platform", platform)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert store.cache_folder() == Path(expected)


@pytest.mark.parametrize("path", sorted(store.EMBEDDED.glob("*.safetensors")), ids=lambda p: p.stem)
def test_embedded_files_are_registered_small_and_load(path):
    """After replacing an embedded file, put its new size and sha256 into registry.py."""
    weight = registry.by_name(path.stem)
    assert weight.embedded and path.stat().st_size <= 16e6
    assert (weight.bytes, weight.sha256) == (path.stat().st_size, store.sha256_of(path))
    network = loading.build(path, weight.kind)
    assert network.weights_metadata["licence"] and network.weights_metadata["config"]
    assert path.name in (store.EMBEDDED / "README.md").read_text()


def test_embedded_retinaface_finds_the_same_faces_as_the_published_network(root):
    """Golden: boxes of facexlib's detection_mobilenet0.25_Final.pth on the same photo."""
    pytest.importorskip("facexlib")
    from idcodeformer.detection import load_detector
    from idcodeformer.files.reading import read

    golden = torch.tensor(GOLDEN_BOXES)
    image = read(root / "idcodeformer" / "assets" / "group.jpg").frames[0]
    (faces,) = load_detector()([image])
    assert len(faces) == len(golden)
    boxes = torch.stack([f.box for f in faces])
    low = torch.maximum(boxes[:, None, :2], golden[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], golden[None, :, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    area = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (boxes, golden)]
    overlap = common / (area[0][:, None] + area[1][None] - common)
    assert overlap.max(1).values.min() > 0.75 and overlap.max(0).values.min() > 0.75
