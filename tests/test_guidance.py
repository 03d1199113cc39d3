"""Guidance: nearer to the person, the same picture, never worse, and only where it is the person."""
from __future__ import annotations

import json
import math
import re

import pytest
import torch
import torch.nn.functional as F

from idcodeformer.errors import BadOption
from idcodeformer.files.reading import Picture, read
from idcodeformer.files.writing import write
from idcodeformer.guidance import descent, gate, judging
from idcodeformer.guidance.gate import least_likeness, refusal
from idcodeformer.guidance.judging import drifts, squares_of, visible_scale, why_not
from idcodeformer.guidance.optimise import guide
from idcodeformer.guidance.options import GuidanceOptions
from idcodeformer.identity.recogniser import IdentityRecogniser
from idcodeformer.pipeline import FacePipeline
from idcodeformer.restoration.codeformer import CodeFormerRestorer
from idcodeformer.runtime import winograd
from idcodeformer.types import Embeddings, RestoreOptions
from tests.tiny import tiny_codeformer, tiny_eye

EAGER = GuidanceOptions(steps=6, rate=0.3, consistency=1.0, force=True)


@pytest.fixture(scope="module")
def restorer() -> CodeFormerRestorer:
    return tiny_codeformer()


@pytest.fixture(scope="module")
def recogniser() -> IdentityRecogniser:
    return tiny_eye(5, "tiny")


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    torch.manual_seed(1)
    return F.interpolate(torch.rand(3, 3, 8, 8), (64, 64), mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def person(recogniser: IdentityRecogniser) -> Embeddings:
    torch.manual_seed(9)
    return recogniser(torch.rand(1, 3, 64, 64))


def likeness(recogniser, faces, person) -> list[float]:
    return (recogniser(faces).vectors @ person.vectors.t())[:, 0].tolist()


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random networks move pictures and likeness on scales of their own."""
    monkeypatch.setattr(judging, "_LEAST_GAIN", 1e-4)
    monkeypatch.setattr(judging, "MOST_DRIFT", 1.0)
    monkeypatch.setitem(descent.SAME_PERSON, "tiny", 2.0)


def test_a_guided_face_is_nearer_to_the_person(restorer, recogniser, pixels, person) -> None:
    result = guide(restorer, pixels, person, recogniser, guidance=EAGER)
    assert result.reasons == ("", "", "") and result.steps == (6, 6, 6)
    assert torch.equal(result.unguided, restorer(pixels))
    assert list(result.before) == pytest.approx(likeness(recogniser, result.unguided, person), abs=1e-5)
    assert list(result.after) == pytest.approx(likeness(recogniser, result.pixels, person), abs=1e-5)
    assert all(after > before for before, after in zip(result.before, result.after))
    assert float(result.pixels.min()) >= 0 and float(result.pixels.max()) <= 1


def test_steps_run_by_winograds_way(restorer, recogniser, pixels, person, monkeypatch) -> None:
    """Forward, and the gradient to the codes."""
    if not winograd.winograd_available():
        pytest.skip("this torch has no NNPACK")
    calls, run = [], winograd.Winograd.run

    def spy(self, x, weight, bias, pad):
        calls.append((bias is not None, min(x.shape[2:])))
        return run(self, x, weight, bias, pad)

    monkeypatch.setattr(winograd.Winograd, "run", spy)
    guide(restorer, pixels[:1], person, recogniser, guidance=GuidanceOptions(steps=1, force=True))
    assert {forward for forward, _ in calls} == {True, False}
    assert all(side >= 24 for _, side in calls)


def test_faces_do_not_depend_on_their_batch(restorer, recogniser, pixels, person) -> None:
    together = guide(restorer, pixels, person, recogniser, RestoreOptions(batch_size=12), EAGER)
    alone = guide(restorer, pixels[1:2], person, recogniser, guidance=EAGER)
    # Adam goes by the sign of the first gradients, so that their rounding, another in a batch, is enlarged. Neighbours
    # that shared a mean or a shift would differ as much as guidance changes the face.
    apart = (together.pixels[1:2] - alone.pixels).abs().mean()
    assert apart < 0.05 * (alone.pixels - alone.unguided).abs().mean()


def test_consistency_holds_the_means_over_squares(restorer, recogniser, pixels, person) -> None:
    """The same steps with a heavier weight stay nearer to the unguided face where the input shows it."""

    def drift(weight: float) -> float:
        rule = GuidanceOptions(steps=6, rate=0.3, consistency=weight, force=True)
        result = guide(restorer, pixels, person, recogniser, guidance=rule)
        return float((F.avg_pool2d(result.pixels, 4) - F.avg_pool2d(result.unguided, 4)).square().mean())

    assert drift(1e4) < 0.5 * drift(0.0)


def test_it_stops_where_two_photos_of_a_person_are(restorer, recogniser, pixels, person, monkeypatch) -> None:
    monkeypatch.setitem(descent.SAME_PERSON, "tiny", -1.0)  # every face is there already
    assert guide(restorer, pixels, person, recogniser, guidance=EAGER).steps == (1, 1, 1)
    half = GuidanceOptions(steps=6, rate=0.3, consistency=1.0, force=True, strength=0.0)
    assert guide(restorer, pixels, person, recogniser, guidance=half).steps == (0, 0, 0)


def test_each_face_has_its_own_person_and_fidelity(restorer, recogniser, pixels, person) -> None:
    other = recogniser(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(77)))
    people = Embeddings(torch.cat([person.vectors, other.vectors]), "tiny")
    w = torch.tensor([0.2, 1.0])
    result = guide(restorer, pixels[:2], people, recogniser, guidance=EAGER, w=w)
    for i, one in enumerate((person, other)):
        alone = guide(restorer, pixels[i : i + 1], one, recogniser, guidance=EAGER, w=w[i : i + 1])
        assert torch.allclose(result.pixels[i : i + 1], alone.pixels, atol=1e-4)


def test_a_face_that_is_not_made_better_stays_unguided(restorer, recogniser, pixels, person, monkeypatch) -> None:
    monkeypatch.setattr(judging, "_LEAST_GAIN", 3.0)
    result = guide(restorer, pixels, person, recogniser, guidance=EAGER)
    assert torch.equal(result.pixels, result.unguided) and result.after == result.before
    assert all("brought no likeness" in reason for reason in result.reasons)
    monkeypatch.setattr(judging, "_LEAST_GAIN", 1e-4)
    monkeypatch.setattr(judging, "MOST_DRIFT", 0.0)
    result = guide(restorer, pixels, person, recogniser, guidance=EAGER)
    assert torch.equal(result.pixels, result.unguided)
    assert all("changed the picture" in reason for reason in result.reasons)


def test_the_judge_has_the_last_word(restorer, recogniser, pixels, person) -> None:
    """A judge to whom the reference is the opposite person sees every guided face move away."""
    opposite = Embeddings(-person.vectors, "tiny")
    result = guide(restorer, pixels, person, recogniser, guidance=EAGER, judge=(recogniser, opposite))
    assert torch.equal(result.pixels, result.unguided) and all("by the judge" in reason for reason in result.reasons)
    same = guide(restorer, pixels, person, recogniser, guidance=EAGER, judge=(recogniser, person))
    assert same.reasons == ("", "", "")


def test_strangers_are_refused_before_a_step(restorer, recogniser, pixels, person) -> None:
    seen = likeness(recogniser, restorer(pixels), person)
    order = sorted(range(3), key=seen.__getitem__)
    between = (seen[order[0]] + seen[order[1]]) / 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gate.STRANGERS, "tiny", between)
        result = guide(restorer, pixels, person, recogniser, guidance=GuidanceOptions(steps=3, rate=0.3, consistency=1))
    assert result.steps[order[0]] == 0 and result.reasons[order[0]].startswith("not guided: likeness")
    assert torch.equal(result.pixels[order[0]], result.unguided[order[0]])
    assert result.steps[order[1]] == result.steps[order[2]] == 3


def test_the_gate_names_the_level_of_strangers() -> None:
    assert refusal(0.31, "mini_recogniser") == "" and least_likeness("mini_recogniser") == 0.30
    assert refusal(0.18, "mobileface_v2") == "" and refusal(0.17, "mobileface_v2")
    assert "0.12, strangers reach 0.30" in refusal(0.12, "mini_recogniser")
    assert refusal(float("nan"), "mini_recogniser")


def test_under_inference_mode_and_with_weights_made_there(recogniser, pixels, person) -> None:
    """As ComfyUI runs nodes: tensors made in inference mode cannot be kept for a gradient."""
    with torch.inference_mode():
        made_there = tiny_codeformer()
        eye = tiny_eye(0, "tiny")
        eye.network.load_state_dict(recogniser.network.state_dict())
        inside = guide(made_there, pixels.clone(), eye(pixels[:1]), eye, guidance=EAGER)
    assert max(inside.steps) == 6 and all(p.grad is None for p in recogniser.network.parameters())


def test_progress_can_cancel_and_counts_steps(restorer, recogniser, pixels, person) -> None:
    seen: list[tuple[int, int, str]] = []
    guide(restorer, pixels, person, recogniser, guidance=EAGER, progress=lambda *a: seen.append(a))
    assert seen[-1] == (18, 18, "guiding") and [done for done, *_ in seen] == sorted(done for done, *_ in seen)

    def cancel(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guide(restorer, pixels, person, recogniser, guidance=EAGER, progress=cancel)


def test_memory_that_runs_out_halves_the_batch(restorer, recogniser, pixels, person, monkeypatch) -> None:
    original, calls = descent.Descent.__call__, []

    def small(self, pixels, *rest):
        calls.append(len(pixels))
        if len(pixels) > 1:
            raise RuntimeError("out of memory")
        return original(self, pixels, *rest)

    monkeypatch.setattr(descent.Descent, "__call__", small)
    result = guide(restorer, pixels, person, recogniser, RestoreOptions(batch_size=12), EAGER)
    assert calls == [3, 1, 1, 1] and result.reasons == ("", "", "")


@pytest.mark.parametrize(
    "change, said",
    [({"steps": -1}, "steps"), ({"strength": 1.5}, "strength"), ({"rate": 0.0}, "rate"), ({"consistency": -1}, "cons")],
)
def test_options_out_of_range_are_refused(change, said) -> None:
    with pytest.raises(BadOption, match=said):
        GuidanceOptions(**change)


@pytest.mark.parametrize("name, least, most", [("strength", 0, 1), ("rate", 1e-6, 1), ("consistency", 0, 1e9)])
def test_options_reach_their_limits_and_no_further(name, least, most) -> None:
    for value in (least, most):
        assert getattr(GuidanceOptions(**{name: value}), name) == value
    for value in (least - 1e-7, most + 0.5, math.nan):
        with pytest.raises(BadOption, match=name):
            GuidanceOptions(**{name: value})


def test_embeddings_of_another_recogniser_or_number_are_refused(restorer, recogniser, pixels, person) -> None:
    with pytest.raises(BadOption, match="embedded by other"):
        guide(restorer, pixels, Embeddings(person.vectors, "other"), recogniser)
    with pytest.raises(BadOption, match="2 people for 3 faces"):
        guide(restorer, pixels, Embeddings(person.vectors.repeat(2, 1), "tiny"), recogniser)


def test_the_scale_that_an_input_shows() -> None:
    torch.manual_seed(3)
    fine = F.interpolate(torch.rand(1, 3, 64, 64), (128, 128), mode="bicubic").clamp(0, 1)
    small = [F.interpolate(F.avg_pool2d(fine, k), (128, 128), mode="bicubic") for k in (4, 16, 32)]
    sides = [int(visible_scale(x)) for x in (fine, *small)]
    assert sides == sorted(sides) and sides[0] == 2 and sides[-1] == 8
    assert int(visible_scale(small[-1], most=4)) == 4
    assert visible_scale(torch.cat([fine, small[-1]])).tolist() == [2, 8]


# ---------------------------------------------------------------- through the pipeline and the command line


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory):
    """A clean portrait, and the same degraded, as files."""
    from idcodeformer.cli.demo import degrade, photo

    folder, clean = tmp_path_factory.mktemp("photos"), photo("portrait")
    write(folder / "clean.png", Picture(clean[None]))
    write(folder / "bad.png", Picture(degrade(clean, 1)[None]))
    return folder


def test_the_command_guides_and_says_so(photographs, tmp_path, capsys) -> None:
    from idcodeformer.cli import main

    bad, clean = str(photographs / "bad.png"), str(photographs / "clean.png")
    common = ["restore", bad, "--reference", clean, "--device", "cpu", "--large-faces", "restore"]
    for side, more in (("a", ["--guide", "4"]), ("b", [])):
        assert main([*common, "-o", str(tmp_path / side), "--json", str(tmp_path / f"{side}.json"), *more]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "guided by mobileface_v2" in said[0] and ", judged by mini_recogniser" in said[0]
    assert "guided" not in said[1]
    guided, plain = (json.loads((tmp_path / f"{side}.json").read_text())["files"][0]["faces"][0] for side in "ab")
    before, after = map(float, re.search(r"(0\.\d+) to (0\.\d+) in 4 steps", guided["guidance"]).groups())
    assert after > before + 0.02 and guided["id_sim_after"] > plain["id_sim_after"] + 0.005 and not plain["guidance"]
    pictures = [read(tmp_path / side / "final_results" / "bad.png").frames for side in "ab"]
    assert not torch.equal(*pictures) and float((pictures[0] - pictures[1]).abs().mean()) < 0.02


def test_a_stranger_is_not_guided_and_aligned_crops_are(photographs, tmp_path, capsys) -> None:
    """The reference shows nobody of the picture: the result is the unguided one, and the line says why."""
    from idcodeformer.cli import main

    bad = str(photographs / "bad.png")
    face = read(bad).frames
    side = min(face.shape[-2:])
    crop = F.interpolate(face[..., :side, :side], (128, 128), mode="area")
    write(tmp_path / "crop.png", Picture(crop))
    common = ["restore", str(tmp_path / "crop.png"), "--aligned", "--device", "cpu", "--large-faces", "restore"]
    guided = ["--reference", bad, "--guide", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gate.STRANGERS, "mobileface_v2", 1.0)
        assert main([*common, *guided, "-o", str(tmp_path / "a")]) == 0
    assert main([*common, "-o", str(tmp_path / "b")]) == 0
    assert main([*common, *guided, "--force-guide", "-o", str(tmp_path / "c")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "not guided: likeness to the reference" in said[0] and "guided by" not in said[0]
    a, b, c = (read(tmp_path / side / "restored_faces" / "crop.png").frames for side in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_guidance_without_photos_is_refused(photographs, tmp_path, capsys) -> None:
    from idcodeformer.cli import main

    assert main(["restore", str(photographs / "bad.png"), "-o", str(tmp_path), "--guide", "5"]) == 2
    assert "--guide needs --reference" in capsys.readouterr().err


def test_one_guides_and_another_judges(restorer, recogniser, pixels, person) -> None:
    """The pipeline scores by its recogniser; the one that guides is another, and the report names it."""
    other = tiny_eye(6, "judge")
    pipeline = FacePipeline(restorer, None, other, None, recogniser)
    references = [recogniser(pixels[:1]), other(pixels[:1])]
    options = RestoreOptions(gray="off", colour="off")
    restored, lines = pipeline.restore_aligned(pixels, options, EAGER, references)
    straight = guide(restorer, pixels, references[0], recogniser, options, EAGER, judge=(other, references[1]))
    assert torch.equal(restored, straight.pixels)
    notes = [line.guidance for line in lines]
    assert all("the recogniser that guided" not in note for note in notes)
    assert [note.startswith("guided by tiny") for note in notes] == [not reason for reason in straight.reasons]
    assert all(note.endswith(", judged by judge") for note in notes if note.startswith("guided by"))
    guided = ["tiny" if not reason else "" for reason in straight.reasons]
    assert [line.guided_by for line in lines] == guided and "tiny" in guided
    assert [line.judged_by for line in lines] == ["judge"] * 3
    assert [line.id_sim_after for line in lines] == pytest.approx(likeness(other, restored, references[1]), abs=1e-5)
    with pytest.raises(BadOption, match="not embedded by tiny"):
        pipeline.restore_aligned(pixels, RestoreOptions(), EAGER, [references[1]])
    with pytest.raises(BadOption, match="needs photos"):
        pipeline.restore_aligned(pixels, RestoreOptions(), EAGER)


# ---------------------------------------------------------------- figures


def test_drift_is_that_of_the_means_over_each_faces_own_squares() -> None:
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2 - 1).float() * 0.1
    flat = torch.full((3, 3, 16, 16), 0.5)
    changed = torch.stack([flat[0] + 0.03, flat[1] + board, flat[2] + board])
    assert drifts(flat, changed, [4, 2, 1]) == pytest.approx([0.03, 0.0, 0.1], abs=1e-6)


@pytest.mark.parametrize(("side", "fine", "coarse"), [(64, 1, 4), (128, 2, 8), (512, 8, 32)])
def test_squares_are_in_px_of_the_crop(side: int, fine: int, coarse: int) -> None:
    torch.manual_seed(3)
    sharp = F.interpolate(torch.rand(1, 3, 128, 128), (side, side), mode="nearest")
    assert squares_of(torch.cat([sharp, torch.full_like(sharp, 0.3)])) == [fine, coarse]
    assert squares_of(torch.zeros(1, 3, 8, 8)) == [1]


def test_detail_is_what_a_mean_over_three_px_takes_away() -> None:
    """A board of one px at 0.5 +- a loses a * 8 / 9: between the limits it is what an input at x4 shows."""
    board = ((torch.arange(128)[:, None] + torch.arange(128)) % 2 * 2 - 1).float()
    inner = [0.5 + a * 9 / 8 * board.expand(1, 3, -1, -1) for a in (0.0054, 0.0052, 0.003, 0.0028)]
    assert visible_scale(torch.cat(inner)).tolist() == [2, 4, 4, 8]


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ((0.30, 0.32, 0.03, 0.0, 4), ""), ((0.30, 0.305, 0.0, 0.0, 4), "no likeness (0.30 to 0.30)"),
        ((0.30, 0.25, 0.0, 0.0, 4), "no likeness"), ((0.30, 0.50, 0.045, 0.0, 4), "changed the picture itself (by 11 "),
        ((0.30, 0.50, 0.03, -0.01, 4), "by the judge (-0.01)"), ((0.30, 0.50, 0.03, 0.0, 0), "not guided"),
        ((0.30, float("nan"), 0.03, 0.0, 4), "no likeness"), ((0.30, 0.50, float("nan"), 0.0, 4), "changed the pict"),
    ],
)  # fmt: skip
def test_why_a_guided_face_is_not_taken(monkeypatch, figures, said) -> None:
    monkeypatch.undo()  # the limits as they are shipped
    reason = why_not(*figures)
    assert said in reason and bool(said) == bool(reason)


def descent_of(restorer, recogniser, monkeypatch, likenesses, **rule) -> descent.Descent:
    """Steps whose likeness is given: a list of one value a face for every step; the goal is 0.8."""
    run = descent.Descent(restorer, recogniser, RestoreOptions(), GuidanceOptions(force=True, **rule))
    run.goal, given = 0.8, iter(likenesses)

    def likeness(image, faces, random):
        return image.mean((1, 2, 3)) * 0 + torch.tensor(next(given)[: len(faces)])

    monkeypatch.setattr(run, "likeness", likeness)
    return run


def test_a_face_goes_its_share_of_the_way_and_rests(restorer, recogniser, pixels, person, monkeypatch) -> None:
    """From 0.2 half of the way to 0.8 is 0.5; a face that starts beyond 0.8 is there. The others go on."""
    series = [[0.2, 0.9], [0.3], [0.49], [0.51], [9.0]]
    run, told = descent_of(restorer, recogniser, monkeypatch, series, steps=9, strength=0.5), []
    unguided, w = restorer(pixels[:2]), torch.ones(2)
    _, steps = run(pixels[:2], unguided, person.vectors.expand(2, -1), w, told.append)
    assert steps == [4, 1] and told == [2, 4, 6, 8]


def test_consistency_alone_leads_back_to_the_unguided_face(restorer, recogniser, pixels, person, monkeypatch) -> None:
    """A face that starts darker than it is said to be unguided, without any likeness to follow."""
    start = restorer(pixels[:1], w=torch.ones(1))
    unguided, squares, left = (start * 0.8).clamp(0, 1), squares_of(pixels[:1]), []
    for weight in (0.0, 50.0):
        run = descent_of(restorer, recogniser, monkeypatch, [[0.0]] * 9, steps=6, rate=0.02, consistency=weight)
        images, steps = run(pixels[:1], unguided, person.vectors, torch.ones(1), lambda done: None)
        assert steps == [6]
        left.append(drifts(unguided, images, squares)[0])
    assert left[0] == pytest.approx(drifts(unguided, start, squares)[0], rel=0.02) and left[1] < 0.98 * left[0]


def test_a_step_looks_under_a_small_shift_and_noise(restorer, recogniser, pixels, person, monkeypatch) -> None:
    """At most a 64th of the side; the shifts and the noise of a run are those of every other."""
    run = descent.Descent(restorer, recogniser, RestoreOptions(), GuidanceOptions())
    seen = []
    monkeypatch.setattr(run, "eye", lambda crop: seen.append(crop) or crop.flatten(1)[:, :16])
    ramp = torch.linspace(-1, 1, 128).expand(1, 3, 128, 128)
    face = type("Face", (), {"target": person.vectors})
    random = torch.Generator().manual_seed(0)
    for _ in range(40):
        run.likeness(ramp, [face], random)
    assert run.likeness(ramp, [face], torch.Generator().manual_seed(0)).shape == (1,)
    assert torch.equal(seen[0], seen[-1]) and not torch.equal(seen[0], seen[1])
    monkeypatch.setattr(descent, "_NOISE", 0.0)
    monkeypatch.setattr(descent, "_SHIFT", 0.0)
    run.likeness(ramp, [face], random)
    still = seen[-1]
    pixel = float(still[0, 0, 50, 51] - still[0, 0, 50, 50]) * 112 / (0.749 * 128)  # one px of the picture
    shifts = torch.stack([(crop - still)[0, :, 20:90, 20:90].mean() / pixel for crop in seen[:40]])
    assert 1.5 < shifts.max() < 2.3 and -2.3 < shifts.min() < -1.5
    grain = [(crop - still - (crop - still).mean())[0, :, 20:90, 20:90].std() for crop in seen[:40]]
    assert float(torch.stack(grain).mean()) == pytest.approx(0.02, rel=0.1)


def test_a_restorer_for_which_the_latent_match_is_asked_starts_from_it(restorer, recogniser, pixels, person) -> None:
    plain, matched = (
        guide(restorer, pixels[:1], person, recogniser, RestoreOptions(adain=match), EAGER).unguided
        for match in (False, True)
    )
    assert not torch.equal(plain, matched)
    for match, wanted in ((False, plain), (True, matched)):
        run = descent.Descent(restorer, recogniser, RestoreOptions(adain=match), GuidanceOptions(steps=0))
        images, _ = run(pixels[:1], wanted, person.vectors, torch.full((1,), RestoreOptions().w), lambda done: None)
        assert torch.allclose(images, wanted, atol=1e-3)
