"""The parser's data, its objective, its figures, and the way from a run to the file that the pack loads."""
from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from idcodeformer.compositing.parsing import CLASSES, load_parser
from training.__main__ import main
from training.config import DataConfig, ParserConfig
from training.config.schema import DegradationConfig
from training.data.parsing import MIRRORED, ParsingDataset, cover, list_pairs, read_pair, recolour, warp
from training.errors import DataError
from training.evaluation.parsing import GROUPS, confusion, f_scores, figures, grouped
from training.stages.parser import soft_dice

SKIN, HAIR, LEFT_EYE, RIGHT_EYE = (CLASSES.index(name) for name in ("skin", "hair", "left_eye", "right_eye"))
COLOURS = {
    0: (40, 60, 80), SKIN: (210, 170, 150), HAIR: (90, 50, 20), LEFT_EYE: (20, 40, 220), RIGHT_EYE: (20, 220, 40),
}  # fmt: skip


def draw(rng: np.random.Generator, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """RGB uint8 and labels of a head with hair and two eyes of different colours."""
    map_ = np.zeros((size, size), np.uint8)
    middle = (size // 2 + int(rng.integers(-6, 7)), size // 2)
    cv2.ellipse(map_, (middle[0], size // 3), (size // 3, size // 3), 0, 0, 360, HAIR, -1)
    cv2.ellipse(map_, middle, (size // 4, size // 3), 0, 0, 360, SKIN, -1)
    for label, side in ((LEFT_EYE, -1), (RIGHT_EYE, 1)):
        cv2.circle(map_, (middle[0] + side * size // 8, size // 2), size // 14, label, -1)
    image = np.zeros((size, size, 3), np.uint8)
    for label, colour in COLOURS.items():
        image[map_ == label] = colour
    return image, map_


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("maps"), np.random.default_rng(3)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for number in range(20):
        image, map_ = draw(rng)
        cv2.imwrite(str(root / "images" / f"{number:02d}.png"), image[..., ::-1])
        cv2.imwrite(str(root / "masks" / f"{number:02d}.png"), map_)
    return root


def test_every_tenth_name_is_held_out(maps) -> None:
    held, kept = (list_pairs(DataConfig(roots=[str(maps)], split=split)) for split in ("val", "train"))
    assert [picture.stem for picture, _ in held] == ["00", "10"]
    assert len(kept) == 18 and not set(held) & set(kept)
    assert all(picture.stem == labels.stem for picture, labels in kept)


def test_what_is_no_pair_is_named(maps, tmp_path) -> None:
    with pytest.raises(DataError, match="images and masks"):
        list_pairs(DataConfig(roots=[str(tmp_path)], split="train"))
    wrong = tmp_path / "wrong.png"
    cv2.imwrite(str(wrong), np.full((64, 64), 19, np.uint8))
    with pytest.raises(ValueError, match="label 19; there are 19 classes"):
        read_pair(maps / "images" / "01.png", wrong, 64)
    with pytest.raises(ValueError, match="cannot be read"):
        read_pair(maps / "images" / "01.png", tmp_path / "none.png", 64)


def test_mirroring_a_face_exchanges_left_and_right() -> None:
    for name in ("eye", "brow", "ear"):
        assert MIRRORED[CLASSES.index(f"left_{name}")] == CLASSES.index(f"right_{name}")
    assert sorted(MIRRORED.tolist()) == list(range(len(CLASSES))) and (MIRRORED[MIRRORED] == np.arange(19)).all()


def test_picture_and_labels_move_together(maps) -> None:
    """After every turn, colour and mirror aside, a pixel's colour still is that of its label."""
    image, map_ = draw(np.random.default_rng(5))
    rule = ParserConfig(turn=30, zoom=1.3, shift=0.1)
    for seed in range(5):
        moved, labels = warp(image, map_, rule, np.random.default_rng(seed))
        for label, colour in COLOURS.items():
            if label:  # outside the picture lies any colour, and it is background
                inside = cv2.erode((labels == label).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
                assert inside.sum() > 20 and (np.abs(moved[inside].astype(int) - colour) < 3).mean() > 0.999


def test_a_mirrored_sample_keeps_the_eyes_names(maps) -> None:
    rule = ParserConfig(turn=0, zoom=1, shift=0, colour=0, gray=0, cover=0, degrade=0)
    dataset = ParsingDataset(DataConfig(roots=[str(maps)], split="train", size=128), DegradationConfig(), rule, 1)
    places = set()
    for position in range(12):
        sample = dataset[position]
        seen, labels = sample["degraded"].numpy(), sample["mask"].numpy()
        left = cv2.erode((labels == LEFT_EYE).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        colour = seen[:, left].mean(1)
        mirrored = np.abs(colour - COLOURS[RIGHT_EYE]).max() < 30
        assert mirrored or np.abs(colour - COLOURS[LEFT_EYE]).max() < 30
        assert np.nonzero(labels == LEFT_EYE)[1].mean() < np.nonzero(labels == RIGHT_EYE)[1].mean()
        places.add(bool(mirrored))
    assert places == {True, False}


def test_what_covers_a_face_is_background() -> None:
    image, map_ = draw(np.random.default_rng(6))
    covered = 0
    for seed in range(10):
        seen, labels = cover(image, map_, ParserConfig(cover=1.0), np.random.default_rng(seed))
        changed = (seen != image).any(2)
        assert (labels[changed] == 0).all() and (labels[~changed] == map_[~changed])[map_[~changed] > 0].mean() > 0.99
        covered += int(changed.sum())
    assert covered > 1000
    untouched = recolour(image, ParserConfig(colour=0, gray=0), np.random.default_rng(1))
    assert np.abs(untouched.astype(int) - image).max() <= 1


def test_dice_is_one_less_the_mean_overlap() -> None:
    labels = torch.tensor([[[0, 0, 1, 1]]])
    right = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    assert float(soft_dice(right, labels)) == pytest.approx(0)
    wrong = right[:, [1, 0, 2]]
    assert float(soft_dice(wrong, labels)) == pytest.approx(1)
    half = torch.full((1, 3, 1, 4), 0.5)  # class 0: 2 * 1 / (2 + 2), class 1 alike; class 2 is not in the batch
    assert float(soft_dice(half, labels)) == pytest.approx(0.5)


def test_figures_count_pixels_by_class_and_group() -> None:
    truth = torch.tensor([0, 0, SKIN, SKIN, HAIR, LEFT_EYE])
    said = torch.tensor([0, SKIN, SKIN, LEFT_EYE, HAIR, LEFT_EYE])
    counts = confusion(said, truth)
    assert counts[0, SKIN] == 1 and counts[SKIN, LEFT_EYE] == 1 and counts.sum() == 6
    scores = f_scores(counts)
    assert scores[0].item() == pytest.approx(2 / 3) and scores[SKIN].item() == pytest.approx(0.5)
    assert scores[HAIR] == 1 and scores[CLASSES.index("hat")].isnan()
    groups = grouped(counts)
    assert groups.tolist() == [[3, 0, 0], [0, 1, 0], [1, 0, 1]]  # an eye taken for skin is no fault of the group
    told = figures(counts)
    assert told["mean"] == pytest.approx((2 / 3 + 0.5 + 1 + 2 / 3) / 4) and set(told["groups"]) == set(GROUPS)
    assert sorted(sum(map(list, GROUPS.values()), [])) == list(range(len(CLASSES)))


def test_a_run_becomes_the_file_that_the_pack_loads(maps, tmp_path, capsys) -> None:
    """Thirty steps on six colours are enough to tell face, hair and rest apart; the exported file says the same."""
    words = [
        "stage=parser", "steps=40", "batch=6", "accelerator=cpu", "threads=1", "seed=2", "val_images=2", "val_every=40",
        "log_every=10", "sample_every=40", "data.size=64", "data.workers=0", "loss.perceptual=0", "optim.lr=5e-3",
        "optim.ema=0.9", "optim.warmup=1", "parser.widths=[8,16]", "parser.blocks=[1,1]", "parser.colour=0",
        "parser.gray=0", f"data.roots=[{maps}]", f"val.roots=[{maps}]", "val.split=val", f"out={tmp_path / 'run'}",
    ]  # fmt: skip
    config = tmp_path / "parser.yaml"
    config.write_text("stage: parser\n", encoding="utf-8")
    assert main(["train", "--config", str(config), *words]) == 0
    out = tmp_path / "parser.safetensors"
    assert main(["export", str(tmp_path / "run" / "last.ckpt"), str(out), "--fp16"]) == 0
    parser = load_parser(out, "cpu")
    assert parser.size == 64
    told = tmp_path / "told.json"
    command = ["evaluate-parser", str(maps), "--weights", str(out), "--size", "64", "--device", "cpu"]
    assert main([*command, "--json", str(told)]) == 0
    result = json.loads(told.read_text(encoding="utf-8"))
    assert result["maps"] == 2 and result["groups_mean"] > 0.8 and set(result["classes"]) >= {"skin", "hair"}
    assert "F-scores" in capsys.readouterr().out
