"""Faces followed through a clip: gaps, crossings, cuts, people, and an alignment that is steady and does not lag."""
from __future__ import annotations

import numpy as np
import pytest

from idcodeformer.geometry.templates import ffhq_template
from idcodeformer.types import DetectOptions
from idcodeformer.video.shots import Shots
from idcodeformer.video.smoothing import UNIT, landmarks_of, parameters, smooth, smooth_track
from idcodeformer.video.tracks import BOX, FRAME, POINTS, SCORE, SHARP, WIDTH, choose, follow, name_people, sharpest


def seen(frame: int, x: float, y: float = 50.0, side: float = 40.0, score: float = 0.95) -> np.ndarray:
    row = np.zeros(WIDTH)
    row[FRAME], row[SCORE], row[SHARP] = frame, score, 1.0
    row[BOX] = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    points = (ffhq_template(UNIT) - UNIT / 2) * (side / 250) + (x, y)
    row[POINTS] = points.ravel()
    return row


def person(number: int) -> np.ndarray:
    return np.eye(8)[number]


def test_a_gap_is_filled_on_the_line_and_a_long_one_ends_the_track() -> None:
    rows = np.stack([seen(frame, 50 + 2 * frame) for frame in range(30) if frame not in (10, 11, 12)])
    (track,) = follow(rows, {}, [], 25)
    assert (track.start, track.stop) == (0, 30) and (track.scores == 0).sum() == 3
    assert track.boxes[11, 0] == pytest.approx(50 + 22 - 20)
    rows = np.stack([seen(frame, 50) for frame in [*range(10), *range(30, 40)]])
    assert [(t.start, t.stop) for t in follow(rows, {}, [], 25)] == [(0, 10), (30, 40)]


def test_identity_tells_faces_apart_that_pass_each_other() -> None:
    rows, vectors = [], {}
    for frame in range(21):
        for who, x in ((0, 40 + 6 * frame), (1, 160 - 6 * frame)):
            vectors[len(rows)] = person(who)
            rows.append(seen(frame, x))
    tracks = follow(np.stack(rows), vectors, [], 25)
    assert len(tracks) == 2
    for track in tracks:
        straight = np.diff((track.boxes[:, 0] + track.boxes[:, 2]) / 2)
        assert np.allclose(straight, straight[0])


def test_tracks_end_at_cuts_and_are_joined_again_by_identity() -> None:
    rows = [seen(frame, 50) for frame in range(20)]
    rows += [seen(frame, 52) for frame in range(20, 40)]
    vectors = {n: person(0) if n < 20 else person(1) for n in range(40)}
    tracks = follow(np.stack(rows), vectors, [20], 25)
    assert [(t.start, t.stop) for t in tracks] == [(0, 20), (20, 40)]
    name_people(tracks, "mini_recogniser")
    assert [t.person for t in tracks] == [0, 1]
    back = follow(np.stack(rows), {n: person(0) for n in range(40)}, [20], 25)
    name_people(back, "mini_recogniser")
    assert [t.person for t in back] == [0, 0]


def test_a_face_that_flashes_up_is_no_track_and_two_at_once_are_two_people() -> None:
    rows = [seen(frame, 50) for frame in range(20)]
    rows.insert(5, seen(4, 150))
    assert len(follow(np.stack(rows), {}, [], 25)) == 1
    rows = [seen(frame, x) for frame in range(10) for x in (50, 150)]
    tracks = follow(np.stack(rows), {n: person(0) for n in range(20)}, [], 25)
    name_people(tracks, "mini_recogniser")
    assert sorted(t.person for t in tracks) == [0, 1]


def test_a_track_is_kept_or_left_as_a_whole() -> None:
    rows = [seen(frame, x, side=side) for frame in range(20)
            for x, side in ((50, 40), (150, 38 if frame % 5 else 42))]  # fmt: skip
    tracks = follow(np.stack(rows), {}, [], 25)
    choose(tracks, DetectOptions(keep="largest"), (100, 200))
    assert [bool(t.kept) for t in tracks] == [True, False] and tracks[1].reason == "not the largest face"
    choose(tracks, DetectOptions(order="reference", max_faces=1), (100, 200), [0.1, 0.7])
    assert [bool(t.kept) for t in tracks] == [False, True]
    tracks[0].sharp[7] = tracks[0].sharp[8] = 5
    assert [frame for _, frame in sharpest(tracks, 0, 2, apart=5)][0] == 7


def test_alignment_follows_motion_without_lag_and_without_noise() -> None:
    rng = np.random.default_rng(0)
    frames = np.arange(60)
    x = 100 + 40 * np.sin(frames / 12)  # over and back within three seconds
    rows = np.stack([seen(frame, x[frame], side=80) for frame in frames])
    noise = rng.normal(0, 0.6, (60, 10))
    noisy = rows.copy()
    noisy[:, POINTS] += noise
    (clean,), (track,) = follow(rows, {}, [], 25), follow(noisy, {}, [], 25)
    middle = ffhq_template(UNIT).mean(0)
    truth, steady = parameters(smooth_track(clean, 25), middle), parameters(smooth_track(track, 25), middle)
    centre = parameters(_raw(clean), middle)
    assert np.abs(truth[:, 2] - centre[:, 2])[3:-3].max() < 0.4  # of a motion of 3 px a frame: no lag
    raw = parameters(_raw(track), middle)
    for column in range(4):
        jitter = np.abs(np.diff(steady[:, column] - centre[:, column])).mean()
        assert jitter < 0.35 * np.abs(np.diff(raw[:, column] - centre[:, column])).mean()


def _raw(track) -> np.ndarray:
    import torch

    from idcodeformer.geometry.templates import fit_lmeds

    return fit_lmeds(torch.from_numpy(track.points).float(), UNIT).double().numpy()


def test_a_turning_face_keeps_its_size_and_outliers_count_little() -> None:
    turn = np.linspace(3.0, 3.4, 40)  # past 180 degrees, where angles wrap
    matrices = np.stack([[[np.cos(a), -np.sin(a), 5], [np.sin(a), np.cos(a), 7]] for a in turn])
    values = parameters(matrices, np.array([256.0, 256.0]))
    assert np.allclose(values[:, 0], 0) and np.allclose(np.diff(values[:, 1]), np.diff(turn))
    line = np.arange(40.0)
    line[20] += 30
    line += np.random.default_rng(1).normal(0, 0.05, 40)
    assert abs(smooth(line, np.ones(40), 4)[20] - 20) < 1
    assert np.allclose(landmarks_of(np.array([[1.0, 0, 0], [0, 1, 0]])), ffhq_template(UNIT))


def test_cuts_are_found_and_flashes_and_motion_are_none() -> None:
    rng = np.random.default_rng(2)
    scenes = [rng.integers(0, 255, (9, 16, 3)).repeat(8, 0).repeat(8, 1) for _ in range(2)]
    scenes[1] = scenes[1] // 3
    shots = Shots()
    for frame in range(40):
        picture = np.roll(scenes[frame >= 17], 2 * frame, 1).astype(np.uint8)
        if frame == 30:
            picture = np.full_like(picture, 250)  # a flash
        shots.add(picture)
    assert shots.cuts() == [17]
