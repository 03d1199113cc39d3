"""Who is who while faces are restored: one person to one face, fidelity by target, who guides and who judges."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from idcodeformer.batch import ModelChoice, RestoreSettings
from idcodeformer.batch.models import load_guide, second_recogniser
from idcodeformer.cli import main
from idcodeformer.detection import load_detector
from idcodeformer.errors import BadOption, MissingWeights
from idcodeformer.files.reading import Picture, read
from idcodeformer.files.writing import write
from idcodeformer.geometry.alignment import align
from idcodeformer.guidance import descent, fidelity, gate, judging
from idcodeformer.guidance.fidelity import lowest_fidelity
from idcodeformer.guidance.optimise import guide
from idcodeformer.guidance.options import GuidanceOptions
from idcodeformer.guidance.restoring import FaceWork
from idcodeformer.identity.known import Known, known_people
from idcodeformer.identity.people import People, Person, save_people
from idcodeformer.identity.recogniser import IdentityRecogniser, load_recogniser
from idcodeformer.networks.codeformer import CodeState
from idcodeformer.pipeline import FacePipeline
from idcodeformer.restoration.codeformer import CodeFormerRestorer, load_restorer
from idcodeformer.restoration.tone import match_tone
from idcodeformer.types import Embeddings, Face, RestoreOptions
from idcodeformer.weights.store import find
from tests.tiny import tiny_codeformer, tiny_eye

EAGER = GuidanceOptions(steps=4, rate=0.3, consistency=1.0)
PLAIN = RestoreOptions(gray="off", colour="off")


@pytest.fixture(scope="module")
def restorer() -> CodeFormerRestorer:
    return tiny_codeformer()


@pytest.fixture(scope="module")
def eye() -> IdentityRecogniser:
    return tiny_eye(5, "tiny")


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    torch.manual_seed(1)
    return F.interpolate(torch.rand(3, 3, 8, 8), (64, 64), mode="bicubic").clamp(0, 1)


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random networks move pictures and likeness on scales of their own."""
    monkeypatch.setattr(judging, "_LEAST_GAIN", 1e-4)
    monkeypatch.setattr(judging, "MOST_DRIFT", 1.0)
    monkeypatch.setitem(descent.SAME_PERSON, "tiny", 2.0)


def gallery(vectors: torch.Tensor, recogniser: IdentityRecogniser, *names: str) -> People:
    persons = (Person(n, Embeddings(F.normalize(v[None]), recogniser.name), ("x.jpg",)) for n, v in zip(names, vectors))
    return People(tuple(persons), recogniser.name, recogniser.digest)


def whole(pixels: torch.Tensor) -> tuple[list[torch.Tensor], list[tuple[Face, ...]]]:
    """The three crops side by side as one picture, with a face in each."""
    from idcodeformer.geometry.templates import FFHQ_512

    points = torch.from_numpy(FFHQ_512).float() * 64 / 512
    faces = tuple(
        Face(torch.tensor([64.0 * n + 8, 8, 64 * n + 56, 56]), 0.99, points + torch.tensor([64.0 * n, 0]))
        for n in range(3)
    )
    return [torch.cat(list(pixels), 2)], [faces]


# ---------------------------------------------------------------- people


def test_each_face_goes_to_its_own_person_and_nobody_stays_unguided(restorer, eye, pixels, monkeypatch) -> None:
    """Alone, face 0 is nearest to Ann; beside face 1, which is nobody but Ann, it is Bob. Face 2 is like neither."""
    images, faces = whole(pixels)
    cut = FacePipeline(restorer, recogniser=eye)(images, PLAIN, faces=faces).crops_in.pixels
    seen = eye(restorer(cut, PLAIN)).vectors
    first, second = (F.normalize(v - (v @ seen[2]) * seen[2], dim=0) for v in seen[:2])
    apart = F.normalize(first - (first @ second) * second, dim=0)
    basis = torch.linalg.qr(torch.cat([seen, torch.eye(16)[:1]]).t())[0]  # its last column is like no face
    people = gallery(torch.stack([first + second, apart + basis[:, 3]]), eye, "Ann", "Bob")
    monkeypatch.setitem(gate.STRANGERS, "tiny", 0.03)
    lines = FacePipeline(restorer, recogniser=eye).restore_aligned(cut[:1], PLAIN, people=people)[1]
    assert lines[0].person == "Ann"
    result = FacePipeline(restorer, recogniser=eye)(images, PLAIN, faces=faces, people=people, guidance=EAGER)
    assert [line.person for line in result.report] == ["Bob", "Ann", ""]
    assert [line.guided_by for line in result.report] == ["tiny", "tiny", ""]
    assert [line.judged_by for line in result.report] == ["tiny", "tiny", ""]
    assert result.report[2].guidance.startswith("not guided: likeness to ") and result.report[2].id_sim_after is None
    assert "the score is by the recogniser that guided" in result.report[0].guidance
    plain = FacePipeline(restorer, recogniser=eye)(images, PLAIN, faces=faces, people=people)
    assert [line.person for line in plain.report] == ["Bob", "Ann", ""] and not any(x.guidance for x in plain.report)
    torch.testing.assert_close(result.crops_out.pixels[2], plain.crops_out.pixels[2])
    for face, person in ((0, 1), (1, 0)):
        vector = people.persons[person].identity.vectors[0]
        before, after = (float(eye(r.crops_out.pixels[face : face + 1]).vectors[0] @ vector) for r in (plain, result))
        assert after > before and result.report[face].id_sim_after == pytest.approx(after, abs=1e-5)


def test_one_person_is_not_given_to_two_faces(restorer, eye, pixels, monkeypatch) -> None:
    monkeypatch.setitem(gate.STRANGERS, "tiny", -0.99)
    seen = eye(restorer(pixels, PLAIN)).vectors
    images, faces = whole(pixels)
    pipeline = FacePipeline(restorer, recogniser=eye)
    result = pipeline(images, PLAIN, faces=faces, people=gallery(seen[1:2], eye, "Ann"), guidance=EAGER)
    assert [line.person for line in result.report] == ["", "Ann", ""]
    assert result.report[0].guidance == "not guided: another face of the picture is nearer to Ann"
    shared = pipeline(images, PLAIN, faces=faces, references=Embeddings(seen[1:2], "tiny"), guidance=EAGER)
    assert [line.guided_by for line in shared.report] == ["", "tiny", ""]
    assert all(line.id_sim_after is not None and not line.person for line in shared.report)
    torch.testing.assert_close(shared.crops_out.pixels, result.crops_out.pixels)
    apart = pipeline.restore_aligned(pixels, PLAIN, EAGER, people=gallery(seen[1:2], eye, "Ann"))[1]
    assert [line.person for line in apart] == ["Ann"] * 3  # three pictures, not one


def test_a_stranger_takes_a_person_only_by_force(restorer, eye, pixels, monkeypatch) -> None:
    monkeypatch.setitem(gate.STRANGERS, "tiny", 0.999)
    other = gallery(torch.randn(1, 16, generator=torch.Generator().manual_seed(3)), eye, "Ann")
    pipeline = FacePipeline(restorer, recogniser=eye)
    _, (line,) = pipeline.restore_aligned(pixels[:1], PLAIN, EAGER, people=other)
    assert not line.person and "strangers reach 1.00" in line.guidance and "likeness to Ann" in line.guidance
    _, (line,) = pipeline.restore_aligned(pixels[:1], PLAIN, replace(EAGER, force=True), people=other)
    assert line.person == "Ann" and line.guided_by == "tiny"


def test_who_judges_need_not_guide_and_a_file_of_people_knows_one(restorer, eye, pixels, monkeypatch) -> None:
    monkeypatch.setitem(gate.STRANGERS, "tiny", -0.99)
    judge = tiny_eye(6, "judge")
    both = [gallery(r(pixels).vectors[:1], r, "Ann") for r in (judge, eye)]
    pipeline = FacePipeline(restorer, recogniser=judge, guide=eye)
    _, (line,) = pipeline.restore_aligned(pixels[:1], PLAIN, EAGER, people=both)
    assert line.judged_by == "judge" and line.person == "Ann"
    _, (alone,) = pipeline.restore_aligned(pixels[:1], PLAIN, EAGER, people=both[1])
    assert alone.judged_by == "tiny" and "the recogniser that guided" in alone.guidance
    with pytest.raises(BadOption, match="not embedded by tiny"):
        pipeline.restore_aligned(pixels[:1], PLAIN, EAGER, people=both[0])
    with pytest.raises(BadOption, match="another tiny"):
        FacePipeline(restorer, recogniser=tiny_eye(7, "tiny")).restore_aligned(pixels[:1], PLAIN, people=both[1])
    with pytest.raises(BadOption, match="give one of them"):
        pipeline.restore_aligned(pixels[:1], PLAIN, references=judge(pixels), people=both)
    with pytest.raises(BadOption, match="different people"):
        known_people(None, [both[0], gallery(eye(pixels).vectors[:1], eye, "Bob")], None, [])


def test_the_guide_names_where_it_guides_else_the_judge_who_knows_the_people(eye, pixels) -> None:
    judge = tiny_eye(6, "judge")
    by = {r.name: gallery(r(pixels).vectors[:1], r, "Ann") for r in (judge, eye)}

    def naming(steps: int, *known: str, recogniser: IdentityRecogniser | None = judge) -> str:
        people = Known(tuple(by[name] for name in known), shared=False)
        namer, found = FaceWork(PLAIN, people, GuidanceOptions(steps=steps), recogniser, eye).namer
        assert found is by[namer.name]
        return namer.name

    assert naming(2, "judge", "tiny") == "tiny"
    assert naming(0, "judge", "tiny") == "judge"
    assert naming(0, "tiny") == "tiny"  # whom the judge does not know
    assert naming(0, "tiny", recogniser=None) == "tiny"


# ---------------------------------------------------------------- fidelity by target


@pytest.fixture(scope="module")
def degraded() -> torch.Tensor:
    """A face of the demo's photograph, aligned and degraded."""
    from idcodeformer.cli.demo import degrade, photo

    group = photo("group")
    crops = align([group], load_detector(device="cpu")([group]), 128).pixels[:1].clamp(0, 1)
    return torch.stack([degrade(crop, n) for n, crop in enumerate(crops)])


def test_the_lowest_fidelity_that_keeps_the_person(degraded) -> None:
    """Against every 64th of w: the answer meets the target, and no eighth below it does."""
    restorer, eye = load_restorer("mini_id_codeformer", "cpu"), load_recogniser(device="cpu")
    aims = eye(degraded).vectors
    ws = [n / 8 for n in range(9)]
    shown = [match_tone(faces, degraded, RestoreOptions()) for faces in restorer.sweep(degraded, ws)]
    curve = torch.stack([(eye(faces).vectors * aims).sum(1) for faces in shown])
    target = float((curve[0, 0] + curve[-1, 0]) / 2)
    assert float(curve[0, 0]) < target < float(curve[-1, 0])
    encodes = []
    encode = restorer._engine.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restorer._engine, "encode", lambda x: encodes.append(len(x)) or encode(x))
        options = RestoreOptions(identity_target=target, batch_size=1)
        found = lowest_fidelity(restorer, degraded, aims, eye, options)
    assert encodes == [1] and found.reached == (True,) and found.notes(target) == ("",)
    w = float(found.w[0])
    assert 0 < w < 1 and w * 64 == int(w * 64) and found.likeness[0] >= target
    assert float(curve[[n for n, eighth in enumerate(ws) if eighth < w], 0].max()) < target
    just = match_tone(restorer(degraded, w=torch.tensor([w - 1 / 64])), degraded, RestoreOptions())
    assert float((eye(just).vectors * aims).sum()) < target
    torch.testing.assert_close(found.pixels, restorer(degraded, w=found.w), atol=1e-4, rtol=0)


def test_a_target_out_of_reach_is_told_and_w_is_one(degraded) -> None:
    restorer, eye = load_restorer("mini_id_codeformer", "cpu"), load_recogniser(device="cpu")
    pipeline = FacePipeline(restorer, recogniser=eye)
    out, lines = pipeline.restore_aligned(degraded[:1], RestoreOptions(w=0.2, identity_target=1.0))
    assert lines[0].w == 1 and lines[0].reason.startswith("identity target 1 not reached: 0.")
    assert lines[0].status == "restored" and lines[0].guidance == ""
    torch.testing.assert_close(out, pipeline.restore_aligned(degraded[:1], RestoreOptions(w=1.0))[0], atol=1e-4, rtol=0)
    out, lines = pipeline.restore_aligned(degraded[:1], RestoreOptions(w=0.7, identity_target=0.01))
    assert lines[0].w == 0 and lines[0].reason == "aligned input"


def test_the_target_is_the_person_where_photos_are_given_and_guidance_goes_on_from_there(
    restorer, eye, pixels, monkeypatch
) -> None:
    """To the references, not to the input; then guided at the face's own w."""
    aim = Embeddings(eye(restorer(pixels[:1], PLAIN, w=torch.tensor([0.5]))).vectors, "tiny")
    monkeypatch.setitem(gate.STRANGERS, "tiny", -0.99)
    options = replace(PLAIN, identity_target=0.9999)
    pipeline = FacePipeline(restorer, recogniser=eye)
    _, (line,) = pipeline.restore_aligned(pixels[:1], options, references=aim)
    found = lowest_fidelity(restorer, pixels[:1], aim.vectors, eye, options)
    assert line.w == float(found.w[0]) <= 0.5 and line.id_sim_after >= 0.9999
    other = Embeddings(eye(pixels[2:]).vectors, "tiny")
    options = replace(PLAIN, identity_target=0.999)
    out, (line,) = pipeline.restore_aligned(pixels[:1], options, EAGER, references=other)
    assert line.w == 1 and line.reason.startswith("identity target") and line.guided_by == "tiny"
    straight = guide(restorer, pixels[:1], other, eye, PLAIN, EAGER, w=torch.ones(1))
    torch.testing.assert_close(out, straight.pixels, atol=1e-3, rtol=0)


def test_a_target_needs_a_recogniser_and_a_codeformer(restorer, eye, pixels) -> None:
    with pytest.raises(BadOption, match="needs a recogniser"):
        FacePipeline(restorer).restore_aligned(pixels, RestoreOptions(identity_target=0.5))
    with pytest.raises(BadOption, match="identity_target is 1.5"):
        RestoreOptions(identity_target=1.5)

    def other(pixels, options=None, progress=None):
        return pixels

    other.size = pixels.shape[-1]
    with pytest.raises(BadOption, match="needs a CodeFormer"):
        FacePipeline(other, recogniser=eye).restore_aligned(pixels, RestoreOptions(identity_target=0.5))


def test_likeness_that_falls_with_w_still_gives_the_lowest_eighth(restorer, eye, pixels, monkeypatch) -> None:
    """A recogniser that likes w = 0.25 alone, and w = 1."""
    shown: list[float] = []

    def decode(state, w, options=None):
        shown.extend(w.tolist())
        return w.view(-1, 1, 1, 1).expand(-1, 3, 64, 64).clone()

    class Likes:
        def __call__(self, faces):
            w = faces[:, 0, 0, 0]
            there = ((w > 0.2) & (w < 0.26)) | (w > 0.99)
            return Embeddings(torch.stack([there.float(), 1 - there.float()], 1), "likes")

    monkeypatch.setattr(restorer, "decode", decode)
    monkeypatch.setattr(fidelity, "match_tone", lambda faces, pixels, options, gray, ws: faces)
    options = RestoreOptions(identity_target=0.9)
    found = lowest_fidelity(restorer, pixels[:1], torch.tensor([[1.0, 0.0]]), Likes(), options)
    assert float(found.w[0]) == pytest.approx(0.203125) and shown[:3] == [0, 0.125, 0.25] and len(shown) == 6


def test_each_face_of_several_batches_gets_its_own_fidelity(restorer, eye, monkeypatch) -> None:
    """Five faces, told apart by their green, that each need another w; two go together."""
    needs, crops = torch.tensor([0.0, 0.4, 2.0, 0.7, 1.0]), torch.zeros(5, 3, 64, 64)
    crops[:, 1] = torch.arange(5).view(-1, 1, 1) / 10
    batches: list[int] = []

    def encode(pixels):
        batches.append(len(pixels))
        part = pixels[:, 1, :1, :1]
        return CodeState(part, part, part, {32: part})

    def decode(state, w, options=None):
        assert torch.equal(state.logits, state.features[32]) and torch.equal(state.quant, state.lq_feat)
        red = w.view(-1, 1, 1).expand(-1, 64, 64)
        return torch.stack([red, state.logits.expand(-1, 64, 64), torch.zeros_like(red)], 1)

    def likes(faces):
        who = (faces[:, 1, 0, 0] * 10).round().long()
        w = faces[:, 0, 0, 0]
        likeness = torch.where(w >= needs[who], 0.95 + w / 100, w / 5)
        return Embeddings(F.one_hot(who, 5) * likeness[:, None], "likes")

    monkeypatch.setattr(restorer, "encode", encode)
    monkeypatch.setattr(restorer, "decode", decode)
    monkeypatch.setattr(fidelity, "match_tone", lambda faces, pixels, options, gray, ws: faces + 0 * pixels)
    steps: list[tuple[int, int]] = []
    options = RestoreOptions(identity_target=0.9, batch_size=2)
    found = lowest_fidelity(restorer, crops, torch.eye(5), likes, options, lambda *at: steps.append(at[:2]))
    assert batches == [2, 2, 1] and steps == [(2, 5), (4, 5), (5, 5)]
    assert found.w.tolist() == [0, 26 / 64, 1, 45 / 64, 1] and found.reached == (True, True, False, True, True)
    assert torch.equal(found.pixels[:, 0, 0, 0], found.w) and torch.allclose(found.pixels[:, 1], crops[:, 1])
    assert found.likeness == pytest.approx((0.95, 0.95 + 26 / 6400, 0.2, 0.95 + 45 / 6400, 0.96))
    assert found.notes(0.9)[1:4] == ("", "identity target 0.9 not reached: 0.20 at w 1", "")


# ---------------------------------------------------------------- who guides by default


def test_a_second_recogniser_that_is_there_guides(tiny_recogniser: Path, tmp_path: Path, monkeypatch) -> None:
    cpu = ModelChoice(device="cpu")
    settings = RestoreSettings(references=("a.jpg",), guidance=GuidanceOptions(steps=3), models=cpu)
    first = load_recogniser(device="cpu")
    assert load_guide(settings, first).name == "mobileface_v2"  # the other built-in one
    (tmp_path / "second.safetensors").write_bytes(tiny_recogniser.read_bytes())
    monkeypatch.setenv("IDCODEFORMER_MODELS", str(tmp_path))
    assert load_guide(settings, first).name == "second"
    assert second_recogniser(load_recogniser(tmp_path / "second.safetensors", "cpu"), "cpu").name == "mobileface_v2"
    assert second_recogniser(load_recogniser("mobileface_v2", "cpu"), "cpu").name == "second"
    assert load_guide(replace(settings, guidance=GuidanceOptions(steps=0)), first) is None
    named = replace(settings, models=ModelChoice(guide="mini_recogniser", device="cpu"))
    assert load_guide(named, first).name == "mini_recogniser"
    (tmp_path / "second.safetensors").write_bytes(find("mini_recogniser").read_bytes())
    assert second_recogniser(first, "cpu").name == "mobileface_v2"  # the same weights again judge no better


def test_the_recogniser_of_a_file_of_people_guides(tiny_recogniser: Path, tmp_path: Path, monkeypatch) -> None:
    eye = load_recogniser(tiny_recogniser, "cpu")
    file = save_people(gallery(torch.randn(1, 16), eye, "Ann"), tmp_path / "people.safetensors")
    (tmp_path / tiny_recogniser.name).write_bytes(tiny_recogniser.read_bytes())
    monkeypatch.setenv("IDCODEFORMER_MODELS", str(tmp_path))
    settings = RestoreSettings(people=file, models=ModelChoice(device="cpu"))
    assert load_guide(settings, load_recogniser(device="cpu")).name == "tiny_recogniser"
    assert load_guide(settings, eye) is None
    monkeypatch.delenv("IDCODEFORMER_MODELS")
    with pytest.raises(MissingWeights, match="by the recogniser tiny_recogniser, which is not here"):
        load_guide(settings, load_recogniser(device="cpu"))


# ---------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def family(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """people/Ann and people/Bob with a photo each, and group.png, degraded, with two more faces."""
    from idcodeformer.cli.demo import degrade

    root, group = tmp_path_factory.mktemp("family"), read(photos / "group.jpg").frames[0]
    faces = sorted(load_detector(device="cpu")([group])[0], key=lambda face: float(face.box[0]))
    for name, face in zip(("Ann", "Bob"), (faces[0], faces[2])):
        x0, y0, x1, y1 = (int(v) for v in face.box.tolist())
        reach = (x1 - x0) // 2
        cut = group[None, :, max(0, y0 - reach) :, max(0, x0 - reach) : x1 + reach]
        write(root / "people" / name / "0.png", Picture(cut))
    write(root / "group.png", Picture(degrade(group, 1)[None]))
    return root


def run(family: Path, out: Path, *more: str) -> list[dict]:
    line = ["restore", str(family / "group.png"), "-o", str(out), "--people", str(family / "people"), "--device", "cpu"]
    assert main([*line, "--json", str(out / "r.json"), "--order", "left_to_right", *more]) == 0
    entry = json.loads((out / "r.json").read_text())["files"][0]
    return entry["faces"]


def names_of(faces: list[dict]) -> list[str]:
    """From left to right."""
    return [face["person"] for face in sorted(faces, key=lambda face: face["box"][0])]


def test_a_family_picture_is_named_and_guided_person_by_person(family: Path, tmp_path: Path, capsys) -> None:
    faces = run(family, tmp_path, "--guide", "2", "--save-crops")
    assert names_of(faces) == ["Ann", "", "Bob", ""]
    for key, name in (("guided_by", "mobileface_v2"), ("judged_by", "mini_recogniser")):
        assert [face[key] for face in faces] == [name if face["person"] else "" for face in faces]
    said = capsys.readouterr().out
    shown = ", ".join(face["person"] or "nobody known" for face in faces)
    assert f"shows {shown}" in said and "Bob: guided by mobileface_v2" in said
    texts = [Image.open(tmp_path / "final_results/group.png").text]
    texts += [Image.open(tmp_path / f"restored_faces/group_{n:02d}.png").text for n in range(4)]
    marks = [each.get("IDCodeFormer guidance", "") for each in texts]
    assert marks[0] == marks[1] == marks[3] and marks[2] == marks[4] == ""
    assert "model mini_id_codeformer, guide mobileface_v2, idcodeformer 0." in marks[0]
    assert not Image.open(tmp_path / "cropped_faces/group_00.png").text


@pytest.mark.slow
def test_a_target_for_each_face_and_no_mark_without_guidance(family: Path, tmp_path: Path, capsys) -> None:
    faces = run(family, tmp_path, "--target-identity", "0.86")
    said = capsys.readouterr().out
    assert names_of(faces) == ["Ann", "", "Bob", ""]
    assert "w " + " ".join(f"{face['w']:.2f}" for face in faces) in said
    assert len({face["w"] for face in faces}) > 1
    for face in faces:
        likeness = face["id_sim_after"] if face["person"] else face["id_sim_input"]
        assert likeness >= 0.86 - 1e-4 or (face["w"] == 1 and face["reason"].startswith("identity target 0.86 not"))
    assert not Image.open(tmp_path / "final_results/group.png").text


def test_aligned_crops_are_named_by_a_file_of_people(family: Path, tmp_path: Path, capsys) -> None:
    """Without a detector: the file of people holds embeddings, and the crop is the face."""
    people, crop = str(tmp_path / "people.safetensors"), tmp_path / "crop.png"
    assert main(["people", str(family / "people"), "-o", people, "--device", "cpu"]) == 0
    photo = read(family / "people/Bob/0.png").frames[0]
    faces = load_detector(device="cpu")([photo])
    write(crop, Picture(align([photo], faces, 128).pixels[:1].clamp(0, 1)))
    line = ["restore", str(crop), "--aligned", "-o", str(tmp_path), "--people", people, "--large-faces", "restore"]
    assert main([*line, "--guide", "1", "--force-guide", "--json", str(tmp_path / "r.json")]) == 0
    (face,) = json.loads((tmp_path / "r.json").read_text())["files"][0]["faces"]
    assert face["person"] == "Bob" and face["id_sim_after"] > 0.5 and face["judged_by"] == "mini_recogniser"
    told = capsys.readouterr()
    assert "mini_recogniser guides and scores" in told.err and "shows Bob" in told.out
    text = Image.open(tmp_path / "restored_faces/crop.png").text
    assert ("IDCodeFormer guidance" in text) == bool(face["guided_by"])


def test_detect_and_score_name_people(family: Path, tmp_path: Path, capsys) -> None:
    group, people = str(family / "group.png"), str(family / "people")
    report = tmp_path / "d.json"
    line = ["detect", group, "--people", people, "--order", "left_to_right", "--draw", str(tmp_path), "--device", "cpu"]
    assert main([*line, "--json", str(report)]) == 0
    found = json.loads(report.read_text())[0]["faces"]
    assert [face["person"] for face in found] == ["Ann", "", "Bob", ""]
    assert found[0]["similarity"] > 0.3 and found[1]["similarity"] is None
    said = capsys.readouterr().out
    assert "px, Ann 0." in said and "px, nobody known" in said
    photo = str(family / "people/Bob/0.png")
    assert main(["score", photo, group, "--people", people, "--order", "left_to_right", "--device", "cpu"]) == 0
    assert "shows Ann, nobody known, Bob, nobody known" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, said",
    [
        (["--reference", "a.jpg"], "--reference and --people"),
        (["--recogniser", "none"], "--people needs a recogniser"),
        (["--target-identity", "2"], "identity_target is 2"),
        (["--judge", "none"], "--people needs a recogniser"),
    ],
)
def test_what_does_not_go_together_is_said(family: Path, tmp_path: Path, capsys, more, said) -> None:
    line = ["restore", str(family / "group.png"), "-o", str(tmp_path), "--people", str(family / "people"), *more]
    assert main(line) == 2
    assert said in capsys.readouterr().err
