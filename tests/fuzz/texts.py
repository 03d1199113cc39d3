"""People files, training configs and reports of a run."""
from __future__ import annotations

import json
import random

import torch

from .damage import damage, safetensors_file

VALUES = ("null", "true", "-1", "0", "1e999", ".nan", "[]", "{}", "'x'", "2022-01-01", "0x7fffffffffffffff", "9" * 400)


def make_people(rng: random.Random) -> tuple[str, bytes]:
    """A gallery file whose texts and tensors do not agree."""
    photos = rng.choice((["a.jpg"], [], "a", 5, None, {"a": 1}, ["a"] * 3, ["\ud800"]))
    entries = rng.choice((
        json.dumps([{"name": rng.choice(("Ada", "", "../x", "\0", 5, None)), "photos": photos}]),
        "[" * 100_000, "{}", "null", "5", '[{"name": "Ada"}]', '[5]', "9" * 5000, "",
    ))  # fmt: skip
    dims = rng.choice(((1, 16), (0, 16), (1, 0), (16,), (3, 16), (1, 2, 3), ()))
    vectors = torch.full(dims, rng.choice((1.0, 0.0, float("nan"), float("inf"))))
    vectors = vectors.to(rng.choice((torch.float32, torch.float16, torch.int64, torch.bool)))
    texts = {"kind": "idcodeformer_people", "version": "1", "recogniser": "mini_recogniser",
             "recogniser_sha256": "0" * 64, "people": entries}  # fmt: skip
    for name in list(texts):
        if rng.random() < 0.08:
            del texts[name]
    data = safetensors_file({f"person.{rng.choice((0, 0, 0, 1))}": vectors}, texts)
    return "people.safetensors", damage(data, rng) if rng.random() < 0.4 else data


def make_config(rng: random.Random) -> tuple[str, bytes]:
    """A YAML file of a training that lies, loops or never ends."""
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 28))
    keys = ("stage", "seed", "data", "optim", "model", "train", "base", "_base_", "loss", "out", "nonsense")
    lines = "".join(f"{rng.choice(keys)}: {rng.choice(VALUES)}\n" for _ in range(rng.randint(0, 6)))
    nested = "data:\n  roots: " + rng.choice(VALUES) + "\n  size: " + rng.choice(VALUES) + "\n"
    text = rng.choice((
        laughs, lines, nested, "base: config.yaml\n" + lines, "x: ${x}\n", "x: ${oc.env:HOME}\n", "a: *b\n",
        "a: &a [*a]\n",
        "!!python/object/apply:os.system ['true']\n", "\t- x", "[" * 50_000, "? {a: b}\n: c\n", "a: 1\na: 2\n", "\0",
        "", "- 1\n- 2\n", "%YAML 9.9\n---\n", "--- \n--- \n",
    ))  # fmt: skip
    data = text.encode()
    return "config.yaml", damage(data, rng) if rng.random() < 0.4 else data


def make_report(rng: random.Random) -> tuple[str, bytes]:
    """A report that ``--skip-existing`` would go on with."""
    entry = {"input": "a.png", "output": "b.png", "status": "restored", "faces": []}
    for name in list(entry):
        if rng.random() < 0.2:
            entry[name] = rng.choice((None, 5, [], {}, "x"))
        elif rng.random() < 0.1:
            del entry[name]
    text = rng.choice((json.dumps({"version": "1", "files": rng.choice(([entry] * 2, {}, None, [5], "x"))}),
                       "[" * 100_000, "{}", "", '{"files": [' + "\n{" * 5000, "null"))  # fmt: skip
    data = text.encode()
    return "report.json", damage(data, rng) if rng.random() < 0.5 else data
