"""Who a track is: named by its sharpest frames, treated as one, guided by one offset that goes on along it."""
from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("av")

from video_clips import make_clip  # noqa: E402

from idcodeformer import FacePipeline  # noqa: E402
from idcodeformer.batch.settings import RestoreSettings  # noqa: E402
from idcodeformer.cli import main  # noqa: E402
from idcodeformer.errors import BadOption  # noqa: E402
from idcodeformer.geometry.templates import ffhq_template  # noqa: E402
from idcodeformer.guidance import along, descent, judging  # noqa: E402
from idcodeformer.guidance.along import SharedGuide  # noqa: E402
from idcodeformer.guidance.optimise import GuidanceOptions  # noqa: E402
from idcodeformer.identity.known import Known, one_person  # noqa: E402
from idcodeformer.identity.people import People, Person  # noqa: E402
from idcodeformer.restoration.codeformer import CodeFormerRestorer  # noqa: E402
from idcodeformer.types import DetectOptions, Embeddings, RestoreOptions  # noqa: E402
from idcodeformer.video.analysis import Analysis  # noqa: E402
from idcodeformer.video.job import ClipSettings, VideoJob  # noqa: E402
from idcodeformer.video.people import Treatment, Wanted, _one_each  # noqa: E402
from idcodeformer.video.pipeline import VideoPipeline  # noqa: E402
from idcodeformer.video.sequence import MemoryClip  # noqa: E402
from idcodeformer.video.tracks import BOX, FRAME, POINTS, SCORE, SHARP, WIDTH  # noqa: E402
from tests.tiny import tiny_codeformer, tiny_eye  # noqa: E402

COLOURS = ((220, 40, 40), (40, 60, 220), (40, 200, 60))


class ByColour:
    """Takes the mean colour of a crop for its identity."""

    name, device, digest = "by_colour", torch.device("cpu"), "0"

    def __call__(self, pixels):
        middle = pixels[..., 20:44, 20:44].mean((2, 3))
        return Embeddings(F.normalize(middle - middle.mean(1, keepdim=True), dim=1), self.name)

    def embed_faces(self, images, faces):
        return self(torch.cat([F.interpolate(image[None], (64, 64)) for image in images for _ in faces[0]]))


class AsItIs(CodeFormerRestorer):
    """Restores nothing where it is called, so that who a face is shows in its colour."""

    def __call__(self, pixels, options=None, progress=None, w=None):
        return pixels


@pytest.fixture(scope="module")
def plain() -> FacePipeline:
    tiny = tiny_codeformer()
    return FacePipeline(AsItIs(tiny.network, "cpu"), None, ByColour())


def picture(number: int) -> np.ndarray:
    """Two faces, red and blue; from frame 12 on, after a cut, green and red."""
    out = np.full((96, 200, 3), 128, np.uint8)
    for x, colour in zip((50, 150), (COLOURS[0], COLOURS[1]) if number < 12 else (COLOURS[2], COLOURS[0])):
        out[20:76, x - 28 : x + 28] = colour
    return out


def planned(pipeline: FacePipeline, frames: int = 24):
    """(video, source, analysis, tracks) of ``picture``, its faces given."""
    analysis = Analysis(frames=frames, pts=list(range(frames)), complete=True)
    for frame in range(frames):
        analysis.shots.add(np.full((9, 16, 3), 40 if frame < 12 else 220, np.uint8))
        for x in (50, 150):
            row = np.zeros(WIDTH)
            row[FRAME], row[SCORE], row[SHARP] = frame, 0.95, 1.0 + frame % 5
            row[BOX] = (x - 20, 28, x + 20, 68)
            row[POINTS] = ((ffhq_template(512) - 256) * (40 / 250) + (x, 48)).ravel()
            analysis.rows.append(row)
    source = MemoryClip(picture, frames, (96, 200), Fraction(25))
    video = VideoPipeline(pipeline)
    return video, source, analysis, video.plan(analysis, source)


def gallery(*colours: int) -> Known:
    vectors = [torch.tensor(COLOURS[n]).float() / 255 for n in colours]
    persons = [Person(f"{'RBG'[n]}", Embeddings(F.normalize((v - v.mean())[None], dim=1), "by_colour"), ("p",))
               for n, v in zip(colours, vectors)]  # fmt: skip
    return Known((People(tuple(persons), "by_colour", "0"),))


def test_tracks_bear_the_names_of_their_people_across_a_cut(plain) -> None:
    video, source, analysis, tracks = planned(plain)
    assert [(t.start, t.stop) for t in tracks] == [(0, 12), (0, 12), (12, 24), (12, 24)]
    video.know(tracks, source, analysis, None, Wanted(gallery(0, 1)))
    assert [t.name for t in tracks] == ["R", "B", "", "R"]
    assert tracks[0].likeness > 0.95 and "strangers reach" in tracks[2].unknown and all(t.kept for t in tracks)


def test_strangers_stay_as_they_are_where_known_people_alone_are_asked_for(plain) -> None:
    video, source, analysis, tracks = planned(plain)
    reference = Known((one_person(gallery(1).galleries[0].persons[0].embeddings),), shared=True)
    people = video.know(tracks, source, analysis, None, Wanted(reference, only=True))
    assert [bool(t.kept) for t in tracks] == [False, True, False, False]
    assert tracks[1].name == "reference" and "nobody known (likeness to the reference" in tracks[0].reason
    for frame in video.restore(source, tracks, people=people):
        before = picture(frame.source.index)
        assert np.array_equal(frame.pixels[:, :100], before[:, :100])
        assert (np.abs(frame.pixels[:, 120:180].astype(int) - before[:, 120:180]).max() > 20) == (
            frame.source.index < 12
        )
        names = {line["track"]: (line["name"], line["status"]) for line in frame.lines}
        assert frame.source.index >= 12 or names == {0: ("", "skipped"), 1: ("reference", "restored")}
    with pytest.raises(BadOption, match="needs their photos"):
        Wanted(None, only=True)


def test_nobody_is_two_faces_at_a_time_and_the_likelier_wins(plain) -> None:
    tracks = planned(plain)[3]
    scores = np.array([[0.6, 0.5], [0.9, 0.1], [0.7, 0.2], [0.1, 0.2]])
    assert sorted(_one_each(tracks, scores, 0.3)) == [(0, 1), (1, 0), (2, 0)]


def test_one_fidelity_for_a_track(plain, monkeypatch) -> None:
    from idcodeformer.guidance.fidelity import Fidelity
    from idcodeformer.video import people as module

    video, source, analysis, tracks = planned(plain)
    asked = []

    def lowest(restorer, pixels, aims, judge, options):
        asked.append(aims)
        w = torch.tensor([0.25, 0.5, 0.75, 0.125])[: len(pixels)]
        return Fidelity(pixels, w, (0.5,) * len(pixels), (True,) * (len(pixels) - 1) + (False,))

    monkeypatch.setattr(module, "lowest_fidelity", lowest)
    options = RestoreOptions(identity_target=0.6)
    people = video.know(tracks, source, analysis, options, Wanted(gallery(0)))
    treatment = people.treat(tracks[0])
    assert treatment.w == 0.75 and treatment.note == "identity target 0.6 not reached: 0.50 at w 1"
    assert torch.allclose(asked[0], gallery(0).galleries[0].identities.vectors.expand(4, -1))
    people.treat(tracks[1])  # nobody known: as much like its own input as asked
    assert torch.allclose(asked[1], ByColour()(people._crops(tracks[1], [1, 4, 7, 10])).vectors, atol=1e-5)
    lines = [line for frame in video.restore(source, tracks[:1], options, people=people) for line in frame.lines]
    assert {line["w"] for line in lines} == {0.75} and lines[0]["reason"] == treatment.note


@pytest.fixture
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random networks move pictures and likeness on scales of their own."""
    monkeypatch.setattr(judging, "_LEAST_GAIN", 1e-4)
    monkeypatch.setattr(judging, "MOST_DRIFT", 1.0)
    monkeypatch.setitem(descent.SAME_PERSON, "tiny", 2.0)
    from idcodeformer.video import people

    monkeypatch.setattr(people, "MOST_DRIFT", 1.0)


def test_one_offset_brings_all_frames_nearer_and_goes_on(_room) -> None:
    torch.manual_seed(2)
    restorer, eye = tiny_codeformer(), tiny_eye(5, "tiny")
    pixels = F.interpolate(torch.rand(3, 3, 8, 8), (64, 64), mode="bicubic").clamp(0, 1)
    person = eye(torch.rand(1, 3, 64, 64))
    rule = GuidanceOptions(steps=6, rate=0.3, consistency=1.0)
    guide = SharedGuide(restorer, eye, person, RestoreOptions(), rule)
    first = guide(pixels, restorer(pixels), 6)
    assert first.after > first.before and first.reason == "" and first.steps == 6
    assert first.offset.shape == (16, 16, 16) and first.offset.dtype == torch.float16
    on = guide(pixels[:1], restorer(pixels[:1]), 1)
    anew = SharedGuide(restorer, eye, person, RestoreOptions(), rule)(pixels[:1], restorer(pixels[:1]), 1)
    assert on.before == pytest.approx(anew.before) and on.after > on.before
    moved = (on.offset - first.offset).abs().float()  # one small step from where it was, not one from nothing
    assert 0 < float(moved.max()) < 0.5 * float(anew.offset.abs().max()) < 0.5 * float(first.offset.abs().max())
    none = SharedGuide(restorer, eye, person, RestoreOptions(), GuidanceOptions(steps=6, strength=0.0))
    assert none(pixels, restorer(pixels), 6).reason.startswith("guidance brought no likeness")


def test_frames_are_guided_until_they_are_near_on_average(_room, monkeypatch) -> None:
    """Frame by frame, as where memory is short; the goal of 5 is reached in the third look, after two steps."""
    torch.manual_seed(2)
    restorer, eye = tiny_codeformer(), tiny_eye(5, "tiny")
    pixels = F.interpolate(torch.rand(2, 3, 8, 8), (64, 64), mode="bicubic").clamp(0, 1)
    monkeypatch.setattr(along, "faces_per_batch", lambda config, device: 1)
    guide = SharedGuide(restorer, eye, eye(torch.rand(1, 3, 64, 64)), RestoreOptions(), GuidanceOptions(steps=9))
    given = iter([0.0, 3.0, 8.0, 1.0, 2.0, 9.0])  # no cosines, so that no face starts beyond the goal

    def likeness(image, faces, random):
        assert len(faces) == 1
        return image.mean((1, 2, 3)) * 0 + next(given)

    monkeypatch.setattr(guide._run, "likeness", likeness)
    monkeypatch.setattr(guide._run, "goal", 5.0)
    assert guide(pixels, restorer(pixels), 9).steps == 2


def test_offsets_lie_on_a_line_between_keys() -> None:
    treatment = Treatment(0.5, keys=(10, 20), offsets=(torch.zeros(1, 2, 2).half(), torch.ones(1, 2, 2).half()))
    assert [float(treatment.offset(frame)[0, 0, 0]) for frame in (0, 10, 15, 20, 99)] == [0, 0, 0.5, 1, 1]
    assert Treatment(0.5).offset(3) is None


def test_guided_tracks_say_so_and_strangers_stay_unguided(_room, plain, monkeypatch) -> None:
    video, source, analysis, tracks = planned(FacePipeline(tiny_codeformer(), None, tiny_eye(5, "tiny")))
    persons = tuple(Person(n, video.pipeline.recogniser(torch.rand(1, 3, 64, 64)), ("p",)) for n in ("Ann", "Bea"))
    known = Known((People(persons, "tiny", ""),))
    rule = GuidanceOptions(steps=5, rate=0.3, consistency=1.0, force=True)
    people = video.know(tracks, source, analysis, None, Wanted(known, rule))
    named = {track.name for track in tracks}
    assert named == {"Ann", "Bea"}
    done = people.treat(tracks[0])
    assert done.told["guidance"].startswith("guided by tiny, ") and done.told["guided_by"] == "tiny"
    assert done.told["id_sim_after"] > done.told["id_sim_before"] - 1 and len(done.keys) == len(done.offsets) == 1
    guided = [frame.pixels for frame in video.restore(source, tracks, people=people)]
    unguided = [frame.pixels for frame in video.restore(source, tracks)]
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(guided, unguided)) > 3
    monkeypatch.setattr("idcodeformer.video.people.least_likeness", lambda name: 2.0)
    monkeypatch.setattr("idcodeformer.guidance.restoring.refusal", lambda likeness, name: "not guided: a stranger")
    for track in tracks:
        track.name, track.who = "", None
    rule = GuidanceOptions(steps=5, rate=0.3, consistency=1.0)
    people = video.know(tracks, source, analysis, None, Wanted(known, rule))
    assert people.treat(tracks[0]).told["guidance"] == "not guided: a stranger" and not people.treat(tracks[0]).keys


def test_the_clips_own_sharpest_frames_serve_as_references(_room) -> None:
    video, source, analysis, tracks = planned(FacePipeline(tiny_codeformer(), None, tiny_eye(5, "tiny")))
    rule = GuidanceOptions(steps=2, rate=0.3, consistency=1.0)
    people = video.know(tracks, source, analysis, None, Wanted(None, rule, own=True))
    numbers = sorted({track.person for track in tracks})
    assert [track.who for track in tracks] == [numbers.index(track.person) for track in tracks]
    vectors = people.known.galleries[0].persons[0].embeddings
    best = [row for row in range(12) if tracks[0].sharp[row] == 5.0]
    assert len(vectors) >= 1 and best[0] == 4
    crops = people._crops(tracks[0], [4])
    assert float((video.pipeline.recogniser(crops).vectors @ vectors.vectors.t()).max()) == pytest.approx(1, abs=1e-4)
    assert "guid" in people.treat(tracks[0]).told["guidance"]
    with pytest.raises(BadOption, match="choose one"):
        Wanted(gallery(0), rule, own=True)


def test_the_command_line_names_people_in_clips_and_refuses_what_does_not_go(tmp_path: Path, monkeypatch, plain, capsys
                                                                             ) -> None:  # fmt: skip
    from idcodeformer.batch import job as batch_job

    class Finder:
        def __call__(self, images, options=None):
            return tuple(self._one(image) for image in images)

        def _one(self, image):
            from idcodeformer.types import Face

            points = torch.from_numpy((ffhq_template(512) - 256) * (40 / 250)).float()
            return tuple(Face(torch.tensor([x - 20.0, 28, x + 20, 68]), 0.95, points + torch.tensor([x, 48.0]))
                         for x in (50.0, 150.0))  # fmt: skip

    pipeline = FacePipeline(plain.restorer, Finder(), plain.recogniser)
    monkeypatch.setattr(batch_job, "load_pipeline", lambda settings: pipeline)
    monkeypatch.setattr(batch_job, "load_galleries", lambda *rest: list(gallery(0).galleries))
    make_clip(tmp_path / "clip.mp4", [picture(n) for n in range(20)], steady=True, pix_fmt="yuv444p")
    report = tmp_path / "report.json"
    line = ["restore", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "out"), "--json", str(report)]
    assert main([*line, "--people", "folder", "--keep", "person"]) == 0
    said = capsys.readouterr().out
    assert "shows R" in said and "nobody known" in said
    (told,) = json.loads(report.read_text())["files"]
    assert {(t["name"], t["kept"]) for t in told["tracks"]} == {("R", True), ("", False)}
    assert all(line["name"] == "R" for line in told["faces"] if line["status"] == "restored")
    for wrong, why in (
        (["--keep", "person"], "--keep person needs"),
        (["--own-reference"], "--own-reference needs --guide"),
        (["--own-reference", "--guide", "3", "--people", "f"], "give one of them"),
    ):
        assert main(["restore", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "o2"), *wrong]) == 2
        assert why in capsys.readouterr().err


def test_a_guided_clip_says_so_in_its_comment(tmp_path: Path) -> None:
    import av

    from idcodeformer.video.reading import Clip
    from idcodeformer.video.telling import mark
    from idcodeformer.video.writing import Encoding, SegmentWriter, join

    make_clip(tmp_path / "clip.mp4", 4)
    source = Clip(tmp_path / "clip.mp4")
    writer = SegmentWriter(tmp_path, 0, source.info, Encoding("h264", None, "yuv420p", source.info.size))
    for frame in source.frames():
        writer.write(frame.pixels, frame.pts, frame.duration)
    writer.close()
    guided = {"state": {"lines": [{"guided_by": "eye"}, {"guided_by": ""}, {}]}}
    join(tmp_path, tmp_path / "out.mp4", source.info, "mp4", comment=mark([guided], "model"))
    with av.open(str(tmp_path / "out.mp4")) as opened:
        assert "guidance: faces guided by photos of a person; model model, guide eye" in opened.metadata["comment"]
        assert opened.metadata["title"] == "A clip"
    assert mark([{"state": {"lines": [{"guided_by": ""}]}}], "model") == ""


def test_other_people_are_other_work(tmp_path: Path, plain) -> None:
    from idcodeformer.video.job import Encoding

    make_clip(tmp_path / "clip.mp4", 4)
    settings = RestoreSettings(RestoreOptions(), DetectOptions(), out=tmp_path)
    keys = {
        VideoJob(plain, settings, ClipSettings(), people=None if who is None else gallery(who).galleries)._key(
            tmp_path / "clip.mp4", Encoding("h264", None, "yuv420p", (64, 96)))
        for who in (None, 0, 1)
    }  # fmt: skip
    assert len(keys) == 3
