"""The front-end scripts, run by Node.js with doubles of what they import; skipped where there is none."""
from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "web" / "js"
NODE = shutil.which("node")

WORLD = """
const given = JSON.parse(process.argv[1]);
const events = [], asked = [];
let extension;
const api = {
  async fetchApi(path) { asked.push(path); return { ok: true, json: async () => given.history }; },
  dispatchEvent(event) { events.push([event.type, event.detail]); },
};
const app = {
  nodeOutputs: given.shown,
  async graphToPrompt() { return { output: given.prompt }; },
  registerExtension(one) { extension = one; },
};
"""
END = "process.on('exit', () => console.log(JSON.stringify([events, asked]))); extension.afterConfigureGraph();"


def events(prompt: dict, history: list[tuple[dict, dict]], shown: dict | None = None) -> list[Any]:
    """What after_reload.js sends to the front end; ``history``: (prompt, outputs) of each run, oldest first."""
    runs = {
        f"run{number}": {"prompt": [number, f"run{number}", past, {}, []], "outputs": outputs}
        for number, (past, outputs) in enumerate(history)
    }
    code = re.sub(r"^import .*$", "", (SCRIPTS / "after_reload.js").read_text(), flags=re.M)
    given = json.dumps({"prompt": prompt, "history": runs, "shown": shown or {}})
    command = [str(NODE), "-e", WORLD + code + END, given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    sent, asked = json.loads(done.stdout)
    assert len(asked) == (0 if shown else 1)
    return [(kind, detail["node"], detail["output"], detail["prompt_id"]) for kind, detail in sent]


def graph(fidelity: float = 0.8, picture: str = "a.jpg") -> dict:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": picture}},
        "2": {"class_type": "IDCodeFormerRestoreFaces", "inputs": {"image": ["1", 0], "fidelity": fidelity}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
def test_a_reloaded_page_shows_again_what_the_same_node_has_shown():
    old, new = ({"2": {"images": [{"filename": name}]}, "3": {"images": []}} for name in ("old.png", "new.png"))
    again = events(graph(), [(graph(), old), (graph(), new), (graph(0.1), old)])
    assert again == [("executed", "2", {"images": [{"filename": "new.png"}]}, "run1")]
    cached = [(graph(), old), (graph(), {"3": {"images": []}})]  # the last run had everything in the cache
    assert events(graph(), cached) == [("executed", "2", old["2"], "run0")]


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
def test_a_reloaded_page_shows_nothing_of_another_run():
    output = {"2": {"images": [{"filename": "old.png"}]}}
    assert events(graph(0.5), [(graph(), output)]) == []  # another value
    assert events(graph(picture="b.jpg"), [(graph(), output)]) == []  # another picture leads to it
    assert events(graph(), [(graph(), output)], shown={"2": output["2"]}) == []  # it shows something already
    assert events(graph(), []) == []
