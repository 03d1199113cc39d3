"""The routes: what they do, with which limits and which answers to what is wrong."""
from __future__ import annotations

import base64
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webui_parts import Door

ROUTES = "/id-codeformer/v1"


def encoded(picture: Image.Image | np.ndarray, kind: str = "PNG") -> str:
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def asked(image: str, **more: Any) -> SimpleNamespace:
    """A request with the defaults of the route."""
    usual = {
        "reference": [], "model": None, "detector": None, "recogniser": None, "fidelity": 0.8, "visibility": 1.0,
        "minimum_identity": 0.0, "gray": "auto", "faces": "all", "upscale": 1.0,
        "guidance_steps": 0, "guidance_strength": 1.0, "large_faces": "auto", "grain": "auto", "colour": "low_band",
    }  # fmt: skip
    return SimpleNamespace(**{"image": image, **usual, **more})


def test_restore_is_a_job_of_the_host(door: Door, portrait: np.ndarray) -> None:
    door.settings()
    work, models = door.sub("api_work"), door.sub("models").Models()
    answer = work.restore(models, asked(encoded(portrait), upscale=2.0, reference=[encoded(portrait)]))
    result = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    assert result.format == "PNG" and result.size == (portrait.shape[1] * 2, portrait.shape[0] * 2)
    (face,) = answer["faces"]
    assert answer["summary"] == "1 of 1 faces restored" and face["status"] == "restored"
    assert face["reference_before"] > 0.9 and 0.3 < face["identity"] < 1  # the photo is the picture itself
    assert door.shared.state.jobs[-2:] == ["ID-CodeFormer", "end"]


def test_guidance_is_told_of_each_face(door: Door, portrait: np.ndarray) -> None:
    door.settings()
    work, models = door.sub("api_work"), door.sub("models").Models()
    given = {"reference": [encoded(portrait)], "fidelity": 0.3}
    (plain,) = work.restore(models, asked(encoded(portrait), **given))["faces"]
    (guided,) = work.restore(models, asked(encoded(portrait), **given, guidance_steps=3))["faces"]
    assert plain["guidance"] == "" and guided["guidance"].startswith("guided by mobileface_v2, ")
    assert guided["reference_after"] > plain["reference_after"] + 0.01
    with pytest.raises(door.sub("core").BadOption, match="Guidance needs a reference photo"):
        work.restore(models, asked(encoded(portrait), guidance_steps=3))


def test_modes_of_a_request_reach_the_core(door: Door, portrait: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    work, core, seen = door.sub("api_work"), door.sub("core"), []

    def restore(pipeline, picture, wishes, person, progress):
        seen.append(wishes.restore_options())
        raise core.BadImage("enough")

    monkeypatch.setattr(core, "restore", restore)
    door.settings()
    with pytest.raises(core.BadImage, match="enough"):
        given = asked(encoded(portrait), large_faces="skip", grain="on", colour="off")
        work.restore(door.sub("models").Models(), given)
    assert (seen[0].large_faces, seen[0].grain, seen[0].colour) == ("skip", "on", "off")
    assert seen[0].strength == 1.0


def test_score_finds_the_person(door: Door, group: np.ndarray) -> None:
    door.settings()
    work, models = door.sub("api_work"), door.sub("models").Models()
    second = group[:, group.shape[1] // 4 : group.shape[1] // 2]
    answer = work.score(models, asked(encoded(group), reference=[encoded(second)]))
    best = max(answer["faces"], key=lambda face: face["identity"])
    assert len(answer["faces"]) == 4 and answer["best"] == best["identity"] > 0.7
    middle = (best["box"][0] + best["box"][2]) / 2
    assert group.shape[1] / 4 < middle < group.shape[1] / 2
    with pytest.raises(door.sub("core").BadOption, match="at least one photo"):
        work.score(models, asked(encoded(group)))


def test_an_empty_picture_has_no_best_score(door: Door, portrait: np.ndarray) -> None:
    door.settings()
    grey = Image.new("RGB", (120, 100), (90, 90, 90))
    answer = door.sub("api_work").score(
        door.sub("models").Models(), asked(encoded(grey), reference=[encoded(portrait)])
    )
    assert answer["best"] is None and answer["faces"] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://127.0.0.1/x.png", "no base64"),
        ("bm90IGEgcGljdHVyZQ==", "no picture that can be read"),
        (encoded(Image.new("RGB", (9, 9)))[:60] + "AAAA", "damaged"),
        (encoded(Image.new("1", (9000, 8000))), "at most 64 megapixels"),
    ],
)
def test_what_is_no_picture_is_refused(door: Door, text: str, said: str) -> None:
    with pytest.raises(door.sub("core").BadImage, match=said):
        door.sub("pictures").from_pil(door.sub("pictures").decode(text))


def test_orientation_is_applied(door: Door) -> None:
    picture, exif = Image.new("RGB", (40, 20)), Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=exif)
    text = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert door.sub("pictures").decode(text).size == (20, 40)


def test_users_of_the_hosts(door: Door, tmp_path: Path) -> None:
    host, given = door.sub("host"), door.shared.cmd_opts
    assert host.api_users() == {}
    given.api_auth = "ann:one,bob:two:three"  # A1111
    assert host.api_users() == {"ann": "one", "bob": "two:three"}
    given.api_auth, given.auth, given.auth_file = None, '"cid:four"', str(tmp_path / "users.txt")  # SD.Next
    (tmp_path / "users.txt").write_text("dan:five\neve:six\n")
    assert host.api_users() == {"cid": "four", "dan": "five", "eve": "six"}


@pytest.fixture
def client(door: Door, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The routes in an application of FastAPI, which comes with the hosts and not with this package."""
    fastapi = pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient")
    door.settings()

    def make() -> Any:
        app = fastapi.FastAPI()
        for callback in door.callbacks.registered["app_started"]:
            callback(None, app)
        return testclient.TestClient(app)

    return make


def test_routes_answer_and_are_documented(client: Any, portrait: np.ndarray) -> None:
    web = client()
    assert web.get(f"{ROUTES}/models").json()["model"][0] == "automatic"
    assert {f"{ROUTES}/restore", f"{ROUTES}/score", f"{ROUTES}/models"} <= set(web.get("/openapi.json").json()["paths"])
    answer = web.post(f"{ROUTES}/restore", json={"image": encoded(portrait)})
    assert answer.status_code == 200 and answer.json()["faces"][0]["status"] == "restored"


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ({"image": "?"}, 422, "no base64"),
        ({"model": "gone.pth"}, 404, "gone.pth"),
        ({"faces": "reference"}, 422, "reference photo"),
        ({"gray": "pink"}, 422, "auto, force or off"),
        ({"grain": "sand"}, 422, "choose one of auto, on, off"),
        ({"fidelity": 1.5}, 422, "fidelity"),
    ],
)
def test_errors_are_sentences(client: Any, portrait: np.ndarray, request_: dict, status: int, said: str) -> None:
    answer = client().post(f"{ROUTES}/restore", json={"image": encoded(portrait), **request_})
    assert answer.status_code == status and said in answer.text


def test_large_requests_are_refused(client: Any, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door.sub("api"), "MOST_BYTES", 1000)
    body = b'{"image": "' + b"A" * 2000 + b'"}'
    web = client()
    for sent in (body, iter([body[:700], body[700:]])):  # with its length told, and in pieces
        answer = web.post(f"{ROUTES}/restore", content=sent, headers={"content-type": "application/json"})
        assert answer.status_code == 413


def test_passwords_of_the_host_are_asked_for(client: Any, door: Door) -> None:
    door.shared.cmd_opts.api_auth = "ann:one"
    web = client()
    assert web.get(f"{ROUTES}/models").status_code == 401
    assert web.get(f"{ROUTES}/models", auth=("ann", "two")).status_code == 401
    assert web.get(f"{ROUTES}/models", auth=("ann", "one")).status_code == 200


def test_no_routes_without_the_hosts_api(client: Any, door: Door) -> None:
    door.shared.cmd_opts.api = False
    assert client().get(f"{ROUTES}/models").status_code == 404
