"""Pixels are a function of seed and position; what cannot be read is skipped, counted and listed."""
from __future__ import annotations

import tarfile
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from training.config import DataConfig, DegradationConfig
from training.data.dataset import (
    DataError,
    PairDataset,
    PositionBatches,
    fixed_set,
    list_images,
    make_loader,
    read_image,
)
from training.data.degradation import degrade, gaussian_kernel, sample_rng
from training.data.sources import expand, index_shard

RULE = DegradationConfig(kernel_size=7, sigma=[0.2, 2.0], downscale=[1.0, 4.0], gray=0.2)


def batches(faces, workers: int = 0, world: int = 1, start: int = 0, config: DataConfig | None = None, seed: int = 3):
    """truth, degraded, label and name of six steps of four images, over all processes."""
    config = config or DataConfig(roots=[str(faces)], size=64)
    parts = []
    for rank in range(world):
        positions = PositionBatches(4, rank, world, start, 6)
        loader = make_loader(PairDataset(config, RULE, seed), positions, workers)
        parts.append([(b["truth"], b["degraded"], b["label"], b["name"]) for b in loader])
    rows = zip(*parts)
    return [
        (*(torch.cat([r[i] for r in row]) for i in range(3)), [name for r in row for name in r[3]]) for row in rows
    ]


def same(a, b) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(torch.equal(x[i], y[i]) for x, y in pairs for i in range(3)) and all(x[3] == y[3] for x, y in pairs)


@pytest.fixture(scope="module")
def reference(faces):
    return batches(faces)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_same_pixels_whatever_the_workers(faces, reference, workers):
    assert same(reference, batches(faces, workers))


@pytest.mark.parametrize("world", [2, 4])
def test_same_pixels_whatever_the_processes(faces, reference, world):
    assert same(reference, batches(faces, world=world))


def test_same_pixels_after_a_resume_and_other_pixels_with_another_seed(faces, reference):
    assert same(reference[4:], batches(faces, start=4))
    assert not same(reference, batches(faces, seed=4))


def test_an_epoch_shows_every_image_once_in_another_order_and_degraded_anew(reference):
    first, second = [sum((b[3] for b in part), []) for part in (reference[:3], reference[3:])]
    assert sorted(first) == sorted(second) and len(set(first)) == 12 and first != second
    of = {name: [b[1][b[3].index(name)] for b in reference if name in b[3]] for name in first}
    assert all(not torch.equal(*pair) for pair in of.values())


def test_labels_are_the_folders(reference):
    for batch in reference:
        assert [f"person{label}" in name for label, name in zip(batch[2].tolist(), batch[3])] == [True] * 4


def test_degradation_is_pure_and_keeps_type_and_size():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    before = image.copy()
    first, second = (degrade(image, RULE, sample_rng(1, 2)) for _ in range(2))
    assert np.array_equal(first, second) and np.array_equal(image, before)
    assert first.shape == image.shape and first.dtype == np.uint8
    assert not np.array_equal(first, degrade(image, RULE, sample_rng(1, 3)))


def test_degradation_takes_its_ranges_from_the_configuration():
    rng = np.random.default_rng(0)
    detail = cv2.resize(rng.integers(0, 256, (16, 16), dtype=np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
    image = np.stack([detail, detail, detail // 2], axis=2)  # one hue: JPEG halves the resolution of colour
    still = DegradationConfig(3, [1e-3, 1e-3], 0.0, [1.0, 1.0], [0.0, 0.0], [100.0, 100.0])

    def error(**changes) -> float:
        bad = degrade(image, replace(still, **changes), sample_rng(0, 0))
        return float(np.abs(bad.astype(float) - image).mean())

    assert error() < 2  # what JPEG at quality 100 leaves
    for change in ({"sigma": [3.0, 3.0], "kernel_size": 15}, {"downscale": [8.0, 8.0]}, {"noise": [20.0, 20.0]},
                   {"jpeg": [5.0, 5.0]}, {"gray": 1.0}):  # fmt: skip
        assert error(**change) > 2 * error() + 2, change
    grey = degrade(image, replace(still, gray=1.0), sample_rng(0, 0))
    assert np.ptp(grey.astype(int), axis=2).max() == 0


def test_blur_kernel():
    kernel = gaussian_kernel(21, 1.0, 3.0, 0.0)
    y, x = np.mgrid[-10:11, -10:11]
    assert kernel.sum() == pytest.approx(1)
    assert (kernel * x**2).sum() == pytest.approx(1, rel=1e-2) and (kernel * y**2).sum() == pytest.approx(9, rel=2e-2)
    turned = gaussian_kernel(21, 1.0, 3.0, np.pi / 2)
    assert np.allclose(turned, kernel.T)


# ---------------------------------------------------------------------------------------------- what cannot be used
@pytest.fixture
def spoilt(faces, tmp_path):
    """The good faces, and five files that are of no use."""
    for path in faces.rglob("*.png"):
        copy = tmp_path / path.relative_to(faces)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(next(faces.rglob("*.png")).read_bytes()[:100])
    cv2.imwrite(str(tmp_path / "tiny.png"), np.zeros((31, 200, 3), np.uint8))
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image at all")
    return tmp_path


REASONS = {name: "not readable" for name in ("text.jpg", "empty.png", "cut.png")} | {"tiny.png": "200x31 is too small"}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_images_are_skipped_counted_and_listed(train, spoilt, tmp_path_factory, workers):
    out = tmp_path_factory.mktemp("run")
    words = ["stage=stage1", f"data.roots=[{spoilt}]", "steps=8", "sample_every=0", "val_every=0"]
    assert train(out, *words, f"data.workers={workers}") == 0
    log = (out / "log.txt").read_text()
    for name, reason in REASONS.items():
        (line,) = [x for x in log.splitlines() if f"{spoilt / name}:" in x]
        assert line.startswith("skipped") and reason in line
    assert "4 files were skipped" in log and "notes.txt" not in log


def test_batches_keep_their_size(spoilt):
    dataset = PairDataset(DataConfig(roots=[str(spoilt)], size=64), RULE, 0)
    samples = [dataset[i] for i in range(len(dataset))]
    assert len(samples) == 16 and all(s["truth"].shape == (3, 64, 64) for s in samples)
    assert sorted(n.rsplit("/")[-1] for s in samples for n, _ in s["skipped"]) == sorted(REASONS)
    assert not any(s["skipped"] for s in (dataset[i] for i in range(16)))  # named once


@pytest.mark.parametrize(
    "prepare, said",
    [
        (lambda p: {"roots": []}, "names no folder"),
        (lambda p: {"roots": [str(p / "absent")]}, "no folder .*absent"),
        (lambda p: {"roots": [str(p)]}, "No image in"),
        (lambda p: {"roots": [str(p)], "list_csv": "absent.csv"}, "no table .*absent.csv"),
        (lambda p: {"roots": [str(p)], "list_csv": "rows.csv", "split": "train"}, "no column split"),
        (lambda p: {"roots": [str(p)], "list_csv": "split.csv", "split": "test"}, "No image in .* split test"),
        (lambda p: {"shards": [str(p / "{00..02}.tar")]}, "no shard .*00.tar"),
        (lambda p: {"shards": ["s3://bucket/faces.tar"]}, "Download or mount"),
        (lambda p: {"shards": [str(p / "rows.csv")]}, "not an uncompressed tar"),
    ],
)
def test_nothing_to_train_on_says_where(tmp_path, prepare, said):
    (tmp_path / "rows.csv").write_text("path,identity\na.png,ann\n")
    (tmp_path / "split.csv").write_text("path,identity,split\na.png,ann,train\n")
    with pytest.raises(DataError, match=said):
        list_images(DataConfig(**prepare(tmp_path)))


def test_folder_of_useless_images_stops_before_the_first_step(train, tmp_path, capsys):
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((16, 16, 3), np.uint8))
    assert train(tmp_path / "run", "stage=stage1", f"data.roots=[{tmp_path}]", "data.workers=1") == 2
    assert "None of the 3 images can be used" in (error := capsys.readouterr().err) and "16x16 is too small" in error


def test_reading_crops_the_centre_and_gives_rgb(tmp_path):
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, 16:80] = (255, 0, 0)  # blue, as OpenCV counts
    path = tmp_path / "Zoë.png"
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    for size in (32, 64, 128):
        read = read_image(path, size)
        assert read.shape == (size, size, 3) and (read == (0, 0, 255)).all()
    with pytest.raises(ValueError, match="96x64 is too small for 129 px"):
        read_image(path, 129)


def test_table_gives_paths_identities_and_splits(faces, tmp_path):
    rows = "path,identity,split\ndeep/person0/1.png,ann,train\ndeep/person1/0.png,bob,test\ndeep/person2/0.png,,train\n"
    (faces / "table.csv").write_text(rows)
    found = list_images(DataConfig(roots=[str(faces)], list_csv="table.csv", split="train"))
    (faces / "table.csv").unlink()
    assert [(e.path.parent.name, e.identity) for e in found] == [("person0", "ann"), ("person2", "person2")]


def test_fixed_set_never_changes_and_can_hold_pairs(faces):
    config = DataConfig(roots=[str(faces)], size=64, hflip=True)
    first, second = (fixed_set(config, RULE, 7, 8, pairs=True) for _ in range(2))
    assert torch.equal(first["degraded"], second["degraded"])
    assert first["label"][::2].tolist() == first["label"][1::2].tolist() and len(set(first["label"].tolist())) == 4
    plain = {n: t for n, t in zip(first["name"], first["truth"])}
    assert all(np.array_equal(t.permute(1, 2, 0).numpy(), read_image(faces / n, 64)) for n, t in plain.items())


# ---------------------------------------------------------------------------------------------- shards
@pytest.fixture(scope="module")
def shards(faces, tmp_path_factory):
    """The faces again, three to a tar, with class files."""
    folder = tmp_path_factory.mktemp("shards")
    for i, person in enumerate(sorted((faces / "deep").iterdir())):
        with tarfile.open(folder / f"faces-{i:03d}.tar", "w") as tar:
            for path in sorted(person.iterdir()):
                tar.add(path, f"{path.stem}.png")
                (folder / "label").write_text(person.name)
                tar.add(folder / "label", f"{path.stem}.cls")
    return folder


def test_shards_hold_the_same_faces(faces, shards):
    config = DataConfig(shards=[str(shards / "faces-{000..003}.tar")], size=64, labels=True)
    ours = PairDataset(config, RULE, 3, shuffle=False)
    theirs = PairDataset(DataConfig([str(faces)], size=64), RULE, 3, shuffle=False)
    assert len(ours) == len(theirs) == 12
    for a, b in zip((ours[i] for i in range(12)), (theirs[i] for i in range(12))):
        assert torch.equal(a["degraded"], b["degraded"]) and a["label"] == b["label"]
    assert ours[0]["name"].endswith("faces-000.tar/0.png")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_shards_are_as_reproducible_as_folders(shards):
    config = DataConfig(shards=[str(shards / "faces-*.tar")], size=64)
    whole = batches(None, config=config)
    assert same(whole, batches(None, workers=2, config=config))
    assert same(whole, batches(None, world=2, config=config)) and same(whole[4:], batches(None, start=4, config=config))
    assert not same(whole, batches(None, config=config, seed=4))
    names = sum((b[3] for b in whole), [])
    assert len(set(names[:12])) == 12 and names[:12] != names[12:]


def test_shards_are_read_a_few_at_a_time(shards, monkeypatch):
    monkeypatch.setattr("training.data.dataset.SHARDS_MIXED", 2)
    dataset = PairDataset(DataConfig(shards=[str(shards / "faces-*.tar")], size=64), RULE, 3)
    order = [dataset.entries[dataset._index(p)].path.name for p in range(12)]
    assert len(set(order[:6])) == 2 and not set(order[:6]) & set(order[6:])


def test_shard_names_and_damaged_shards(shards, tmp_path):
    assert [p.name for p in expand([str(shards / "faces-{001..002}.tar")])] == ["faces-001.tar", "faces-002.tar"]
    packed = tmp_path / "packed.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(shards / "faces-000.tar")
    with pytest.raises(DataError, match="packed.tar.gz is not an uncompressed tar"):
        index_shard(packed)
    cut = tmp_path / "cut.tar"
    cut.write_bytes((shards / "faces-000.tar").read_bytes()[:700])
    with pytest.raises(DataError, match="cut.tar"):
        index_shard(cut)
