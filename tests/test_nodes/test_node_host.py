"""Against a real ComfyUI (mark ``comfy``): is the double true to it, and does it run the pack's own workflows?

    COMFYUI_DIR=/path/to/ComfyUI COMFYUI_PYTHON=/path/to/its/python pytest -m comfy tests/test_nodes
"""
from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Iterator

import pytest

from tests.test_nodes.test_node_schemas import FOREVER

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = ROOT / "tests" / "host_contract.py"
DOUBLE = ROOT / "tests" / "host_double"


def python() -> str:
    return os.environ.get("COMFYUI_PYTHON", sys.executable)


def answers(host: Path, base: Path, interpreter: str) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(host), "HOST_DOUBLE_BASE": str(base)}
    command = [interpreter, str(CONTRACT), str(base)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_double_answers_the_contract(tmp_path):
    said = answers(DOUBLE, tmp_path, sys.executable)
    assert said["paths"] == ["some_models"] and said["extensions"] == [] and said["raised"].startswith("Interrupt")


@pytest.mark.comfy
def test_double_is_true_to_the_host(tmp_path):
    assert answers(Path(os.environ["COMFYUI_DIR"]), tmp_path, python()) == answers(DOUBLE, tmp_path, sys.executable)


class Server:
    """A ComfyUI with this pack, in a base folder of its own, asked over HTTP."""

    def __init__(self, base: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        for folder in ("custom_nodes", "input", "models/facerestore_models"):
            (base / folder).mkdir(parents=True)
        (base / "custom_nodes" / "ComfyUI-ID-CodeFormer").symlink_to(ROOT)
        for sample in (ROOT / "web" / "samples").glob("idcodeformer_*"):
            shutil.copy(sample, base / "input")
        (base / "models/facerestore_models/codeformer_bad.pth").write_bytes(b"not a model")
        self.log = base / "log.txt"
        command = [python(), "main.py", "--cpu", "--port", self.url.rsplit(":", 1)[1], "--base-directory", str(base)]
        command += ["--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
        self.process = subprocess.Popen(
            command, cwd=os.environ["COMFYUI_DIR"], stdout=self.log.open("wb"), stderr=subprocess.STDOUT
        )

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=60) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def wait(self, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.ask("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        raise AssertionError("ComfyUI did not start:\n" + self.log.read_text(errors="replace")[-3000:])

    def run(self, prompt: dict, seconds: float = 300) -> dict:
        """The history entry of a prompt that was accepted."""
        status, body = self.ask("/prompt", {"prompt": prompt})
        assert status == 200, body
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            history = self.ask(f"/history/{body['prompt_id']}")[1]
            if history:
                return history[body["prompt_id"]]
            time.sleep(0.2)
        raise AssertionError("the prompt did not end")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("comfy"))
    try:
        running.wait()
        yield running
    finally:
        running.process.terminate()
        running.process.wait(20)


def api(name: str) -> dict:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.api.json").read_text())


def messages(history: dict, kind: str) -> list[dict]:
    return [body for name, body in history["status"]["messages"] if name == kind]


RUNNABLE = [path.name.removesuffix(".api.json") for path in sorted((ROOT / "workflows" / "api").glob("*.api.json"))]
RUNNABLE = [name for name in RUNNABLE if "text-to-image" not in name]


@pytest.mark.comfy
@pytest.mark.parametrize("name", RUNNABLE)
def test_workflow_runs_and_is_cached(server, name):
    prompt = api(name)
    first = server.run(prompt)
    said = [error["exception_message"] for error in messages(first, "execution_error")]
    assert first["status"]["status_str"] == "success", said
    assert first["outputs"]
    (cached,) = messages(server.run(prompt), "execution_cached")
    assert set(cached["nodes"]) == set(prompt)


@pytest.mark.comfy
def test_changing_fidelity_does_not_detect_again(server):
    prompt = api("choose-one-face")
    server.run(prompt)
    detect, restore = (
        next(key for key, node in prompt.items() if node["class_type"] == f"IDCodeFormer{name}")
        for name in ("DetectFaces", "RestoreFaces")
    )
    prompt[restore]["inputs"]["fidelity"] = 0.35
    (cached,) = messages(server.run(prompt), "execution_cached")
    assert detect in cached["nodes"] and restore not in cached["nodes"]


@pytest.mark.comfy
@pytest.mark.parametrize(
    ("node", "values", "said"),
    [
        ("Loader", {"model_name": "codeformer.pth"}, "put codeformer.pth into"),
        ("Loader", {"precision": "int8"}, "not in"),
        ("RestoreFaces", {"fidelity": 1.5}, "bigger than max"),
    ],
    ids=["missing model", "bad choice", "w out of range"],
)
def test_wrong_values_are_refused(server, node, values, said):
    prompt = api("restore-a-photo")
    next(n for n in prompt.values() if n["class_type"] == f"IDCodeFormer{node}")["inputs"].update(values)
    status, body = server.ask("/prompt", {"prompt": prompt})
    assert status == 400 and said in json.dumps(body)


@pytest.mark.comfy
def test_corrupt_model_fails_with_our_sentence(server):
    prompt = api("restore-a-photo")
    loader = next(node for node in prompt.values() if node["class_type"] == "IDCodeFormerLoader")
    loader["inputs"]["model_name"] = "codeformer_bad.pth"
    (error,) = messages(server.run(prompt), "execution_error")
    assert "codeformer_bad.pth" in error["exception_message"] and error["exception_type"].endswith("CorruptWeights")


@pytest.mark.comfy
def test_nodes_are_registered_with_their_texts(server):
    info = server.ask("/object_info")[1]
    ours = {key: node for key, node in info.items() if key.startswith("IDCodeFormer")}
    assert set(ours) == set(FOREVER) and all(node["description"] for node in ours.values())
    assert set(server.ask("/i18n")[1]) >= {"en", "zh"}
    templates = server.ask("/workflow_templates")[1]["ComfyUI-ID-CodeFormer"]
    assert set(templates) == {path.stem for path in (ROOT / "workflows").glob("*.json")}
