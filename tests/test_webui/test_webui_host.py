"""On a real host: WEBUI_DIR names its folder, WEBUI_PYTHON its Python, WEBUI_FLAGS its arguments (docs/webui.md)."""
from __future__ import annotations

import base64
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Iterator

import pytest
from webui_parts import DOUBLE, ROOT

pytestmark = [pytest.mark.webui, pytest.mark.slow]
FLAGS = (
    "--skip-prepare-environment --skip-install --skip-torch-cuda-test --skip-version-check --use-cpu all --no-half "
    "--ui-debug-mode --api"
)
_STARTED = "Startup time"  # ends the log of every host
GROUP, PORTRAIT = (ROOT / "idcodeformer" / "assets" / name for name in ("group.jpg", "portrait.jpg"))


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


class Host:
    """A running WebUI whose data folder is a temporary one with this repository among its extensions."""

    def __init__(self, data: Path):
        self.data, self.process = data, None
        (data / "extensions").mkdir(parents=True)
        (data / "extensions" / "ID-CodeFormer").symlink_to(ROOT, target_is_directory=True)

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        flags = shlex.split(os.environ.get("WEBUI_FLAGS", FLAGS))
        command = [os.environ.get("WEBUI_PYTHON", sys.executable), "launch.py", *flags]
        command += ["--data-dir", str(self.data), "--port", str(port)]
        log = open(self.data / "host.log", "w")  # noqa: SIM115 - the host writes to it until it ends
        self.process = subprocess.Popen(command, cwd=os.environ["WEBUI_DIR"], stdout=log, stderr=subprocess.STDOUT)
        for _ in range(600):
            if self.process.poll() is not None:
                break
            # A request that comes before the host has its routes makes A1111 fail ("Cannot add middleware").
            if _STARTED in (self.data / "host.log").read_text(errors="replace") and self._answers():
                return
            time.sleep(1)
        raise AssertionError((self.data / "host.log").read_text()[-3000:])

    def _answers(self) -> bool:
        try:
            return self.ask("/id-codeformer/v1/models")[0] == 200
        except (OSError, ValueError):
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def memory(self) -> int:
        """Resident memory in MB."""
        text = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = Host(tmp_path_factory.mktemp("webui"))
    running.start()
    yield running
    running.stop()


def has_restorers() -> bool:
    return not Path(os.environ["WEBUI_DIR"], "modules", "scripts_manager.py").exists()


def test_the_restorer_is_listed(host: Host) -> None:
    if not has_restorers():
        pytest.skip("this host has no list of face restorers")
    names = [entry["name"] for entry in host.ask("/sdapi/v1/face-restorers")[1]]
    assert names.count("ID-CodeFormer") == 1 and "CodeFormer" in names


def test_the_hosts_own_extras_call_leaves_us_off(host: Host) -> None:
    if not has_restorers():
        pytest.skip("SD.Next passes script arguments")
    status, answer = host.ask("/sdapi/v1/extra-single-image", {"image": encoded(PORTRAIT), "upscaling_resize": 1})
    assert status == 200 and "ID-CodeFormer" not in answer["html_info"]


def test_restore_and_score(host: Host) -> None:
    status, answer = host.ask("/id-codeformer/v1/restore", {
        "image": encoded(GROUP), "reference": [encoded(PORTRAIT)], "large_faces": "restore", "grain": "on",
    })  # fmt: skip
    assert status == 200 and [face["status"] for face in answer["faces"]] == ["restored"] * 4
    assert all(-1 <= face["reference_before"] <= 1 for face in answer["faces"])
    status, answer = host.ask("/id-codeformer/v1/restore", {"image": encoded(PORTRAIT)})  # sharp and large: left
    assert status == 200 and f"into {host.data / 'models'}" in answer["faces"][0]["reason"]
    status, answer = host.ask("/id-codeformer/v1/restore", {"image": encoded(PORTRAIT), "grain": "sand"})
    assert status == 422 and "choose one of auto, on, off" in answer["detail"]
    status, answer = host.ask("/id-codeformer/v1/score", {"image": encoded(PORTRAIT), "reference": [encoded(PORTRAIT)]})
    assert status == 200 and answer["best"] > 0.99


def test_a_missing_model_is_a_sentence(host: Host) -> None:
    status, answer = host.ask("/id-codeformer/v1/restore", {"image": encoded(PORTRAIT), "model": "gone.pth"})
    assert status == 404 and "There is no gone.pth" in answer["detail"]


def test_runs_leave_no_memory_behind(host: Host) -> None:
    def run() -> int:
        assert host.ask("/id-codeformer/v1/restore", {"image": encoded(GROUP), "large_faces": "restore"})[0] == 200
        return host.memory()

    first = [run() for _ in range(3)][-1]
    assert [run() for _ in range(5)][-1] < first + 60


def test_settings_are_kept_over_a_restart(host: Host) -> None:
    assert host.ask("/sdapi/v1/options", {"id_codeformer_gray": "force"})[0] == 200
    host.stop()
    host.start()
    # Forge's GET leaves out the options of extensions; what it saves after the restart is what it had read.
    assert host.ask("/sdapi/v1/options", {"id_codeformer_recogniser": "none"})[0] == 200
    saved = json.loads((host.data / "config.json").read_text("utf-8"))
    assert (saved["id_codeformer_gray"], saved["id_codeformer_recogniser"]) == ("force", "none")


def test_the_double_has_what_this_host_has() -> None:
    """Every name that the double offers of the host's modules is there in the real one's source."""
    import ast

    modules = Path(os.environ["WEBUI_DIR"], "modules")
    double = [path for path in (DOUBLE / "common" / "modules").glob("*.py") if (modules / path.name).exists()]
    asked = {
        "call_queue": {"queue_lock"}, "ui_components": {"InputAccordion"},
        "devices": {"torch_gc", "get_optimal_device"},
        "scripts_postprocessing": {"ScriptPostprocessing", "PostprocessedImage"},
        "script_callbacks": {"on_ui_settings", "on_app_started", "on_script_unloaded", "on_before_ui"},
    }  # fmt: skip
    seen = 0
    for path in double:
        source = (modules / path.name).read_text("utf-8")
        defined = {
            getattr(node, "name", None) or ast.unparse(node.targets[0])
            for node in ast.parse(source).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Assign))
        }
        missing = asked.get(path.stem, set()) - defined
        assert not missing, f"{path.name}: {missing}"
        seen += len(asked.get(path.stem, ()))
    assert seen == sum(map(len, asked.values()))
