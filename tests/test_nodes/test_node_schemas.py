"""What the host and the user read off the nodes: ids, names, order, tooltips, locales, help, workflows."""
from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WIDGETS = ("FLOAT", "INT", "BOOLEAN", "STRING")

# For ever: saved workflows name nodes and inputs, and store widget values by position.
FOREVER = {
    "IDCodeFormerLoader": ["model_name", "precision", "recogniser"],
    "IDCodeFormerDetectFaces": [
        "image", "detector", "confidence", "min_eye_distance", "max_faces", "order", "keep", "indices",
        "min_similarity", "mask", "reference", "model", "person",
    ],
    "IDCodeFormerRestoreFaces": [
        "model", "image", "fidelity", "visibility", "upscale_factor", "face_upsample", "paste_classes", "colour_match",
        "gray_mode", "border", "when_no_face", "faces", "upscale_model", "mask", "reference", "min_identity",
        "colour", "person", "guidance_steps", "guidance_strength", "aligned", "detector", "confidence",
        "frames", "large_faces", "grain", "identity_target", "fidelities",
    ],
    "IDCodeFormerIdentityScore": [
        "reference", "candidate", "threshold", "compare", "model", "reference_faces", "candidate_faces",
    ],
    "IDCodeFormerPerson": ["name", "file", "recogniser", "save_as", "photos", "people"],
    "IDCodeFormerPasteFaces": ["image", "faces", "crops", "visibility", "mask"],
    "IDCodeFormerRestoreVideo": [
        "model", "video", "fidelity", "steadiness", "upscale_factor", "keep", "codec", "crf", "upscale_model",
        "min_identity",
    ],
    "IDCodeFormerFacesFromBoxes": ["image", "found", "detector"],
    "IDCodeFormerFacesToSegs": ["image", "faces", "crop_factor"],
}  # fmt: skip
OUTPUTS = {
    "IDCodeFormerLoader": ("ID_CODEFORMER",),
    "IDCodeFormerDetectFaces": ("FACES", "INT", "IMAGE", "MASK", "IMAGE"),
    "IDCodeFormerRestoreFaces": ("IMAGE", "IMAGE", "IMAGE", "MASK", "STRING"),
    "IDCodeFormerIdentityScore": ("FLOAT", "FLOAT", "BOOLEAN", "STRING", "IMAGE"),
    "IDCodeFormerPerson": ("ID_PERSON", "STRING"),
    "IDCodeFormerPasteFaces": ("IMAGE", "MASK"),
    "IDCodeFormerRestoreVideo": ("VIDEO", "STRING"),
    "IDCodeFormerFacesFromBoxes": ("FACES", "INT", "IMAGE", "MASK", "IMAGE"),
    "IDCodeFormerFacesToSegs": ("SEGS", "BOUNDING_BOX"),
}


def inputs_of(node) -> dict:
    return {name: spec for group in node.INPUT_TYPES().values() for name, spec in group.items()}


def test_ids_inputs_and_their_order_stay(pack):
    mapping = pack.module.NODE_CLASS_MAPPINGS
    assert {key: list(inputs_of(node)) for key, node in mapping.items()} == FOREVER
    assert {key: node.RETURN_TYPES for key, node in mapping.items()} == OUTPUTS


def test_what_widgets_start_with_and_reach_stays(pack):
    """A default or a limit that moves changes what saved workflows and API calls do: on purpose only, here as well."""
    import inspect

    def told(node) -> dict[str, list]:
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
        empty, out = inspect.Parameter.empty, {}
        for name, (kind, *options) in inputs_of(node).items():
            limits = {k: v for k, v in (options[0] if options else {}).items() if k not in ("tooltip", "advanced")}
            without = {} if parameters[name].default is empty else {"unlinked": parameters[name].default}
            out[name] = ["choice" if isinstance(kind, list) else kind, limits | without]
        return out

    here = {key: told(node) for key, node in pack.module.NODE_CLASS_MAPPINGS.items()}
    wanted = json.loads((ROOT / "tests" / "data" / "node_widgets.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(here)) == wanted


@pytest.mark.parametrize("key", FOREVER)
def test_everything_is_explained(pack, key):
    node = pack.module.NODE_CLASS_MAPPINGS[key]
    assert pack.module.NODE_DISPLAY_NAME_MAPPINGS[key] != key
    assert node.CATEGORY == "face/ID-CodeFormer"
    assert len(node.DESCRIPTION) > 40 and node.SEARCH_ALIASES
    assert len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    for name, (kind, *options) in inputs_of(node).items():
        assert options[0]["tooltip"].endswith("."), name
        if isinstance(kind, list):
            assert options[0]["default"] in kind
        elif kind in WIDGETS:
            assert "default" in options[0], name
        if kind in ("FLOAT", "INT"):
            assert options[0]["min"] <= options[0]["default"] <= options[0]["max"]
    json.dumps(node.INPUT_TYPES())  # /object_info must be able to hold it


@pytest.mark.parametrize("key", FOREVER)
def test_optional_inputs_have_defaults_in_the_signature(pack, key):
    import inspect

    node = pack.module.NODE_CLASS_MAPPINGS[key]
    parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
    assert [name for name in parameters if name != "self"] == FOREVER[key]
    for name in node.INPUT_TYPES().get("optional", {}):
        assert parameters[name].default is not inspect.Parameter.empty


def test_manager_finds_the_ids_in_the_source():
    tree = ast.parse((ROOT / "nodes" / "__init__.py").read_text())
    literal = next(
        node.value for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "NODE_CLASS_MAPPINGS"
    )  # fmt: skip
    assert isinstance(literal, ast.Dict)
    assert [key.value for key in literal.keys if isinstance(key, ast.Constant)] == list(FOREVER)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_locale_covers_every_text(pack, language):
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text())
    assert set(texts) == set(FOREVER)
    for key, node in pack.module.NODE_CLASS_MAPPINGS.items():
        here = texts[key]
        assert set(here["inputs"]) == set(FOREVER[key])
        assert set(here["outputs"]) == {str(n) for n in range(len(node.RETURN_TYPES))}
        for part in (*here["inputs"].values(), *here["outputs"].values()):
            assert part["name"] and part["tooltip"]


def test_english_locale_says_what_the_nodes_say(pack):
    texts = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text())
    for key, node in pack.module.NODE_CLASS_MAPPINGS.items():
        assert texts[key]["display_name"] == pack.module.NODE_DISPLAY_NAME_MAPPINGS[key]
        assert texts[key]["description"] == node.DESCRIPTION
        for name, spec in inputs_of(node).items():
            assert texts[key]["inputs"][name]["tooltip"] == spec[1]["tooltip"]
        for number, tooltip in enumerate(node.OUTPUT_TOOLTIPS):
            assert texts[key]["outputs"][str(number)]["tooltip"] == tooltip


@pytest.mark.parametrize("key", FOREVER)
def test_help_page_names_every_input_and_output(pack, key):
    page = (ROOT / "web" / "docs" / f"{key}.md").read_text()
    node = pack.module.NODE_CLASS_MAPPINGS[key]
    for name in (*FOREVER[key], *node.RETURN_NAMES):
        assert f"`{name}`" in page, name


WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))


def test_the_promised_workflows_are_there():
    assert {path.stem for path in WORKFLOWS} >= {
        "restore-a-photo", "fix-faces-text-to-image", "fix-faces-of-an-image", "choose-one-face", "compare-fidelity",
        "video-frames", "identity-gate", "restore-video",
        "restore-with-a-photo-of-the-person", "family-picture-with-a-gallery",
    }  # fmt: skip


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_fits_the_nodes(pack, path):
    """A preview of the same name that is square, an API twin, and values that the widgets take."""
    from PIL import Image

    with Image.open(path.with_suffix(".jpg")) as thumbnail:
        assert thumbnail.format == "JPEG" and thumbnail.size[0] == thumbnail.size[1]
    assert (path.parent / "api" / f"{path.stem}.api.json").is_file()
    graph = json.loads(path.read_text())
    for node in graph["nodes"]:
        if node["type"] not in FOREVER:
            continue
        specs = inputs_of(pack.module.NODE_CLASS_MAPPINGS[node["type"]])
        widgets = {name: spec for name, spec in specs.items() if isinstance(spec[0], list) or spec[0] in WIDGETS}
        assert len(node["widgets_values"]) == len(widgets)
        for value, (name, (kind, options)) in zip(node["widgets_values"], widgets.items()):
            if isinstance(kind, list):
                assert value in kind, name
            elif kind in ("FLOAT", "INT"):
                assert options["min"] <= value <= options["max"], name
        assert {entry["name"] for entry in node["inputs"]} <= set(specs)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_front_end_can_offer_the_large_model(path):
    """It reads name, URL, hash and folder from the loader's properties when that file is chosen and missing."""
    from idcodeformer.weights.registry import by_name

    weight = by_name("codeformer")
    loaders = [n for n in json.loads(path.read_text())["nodes"] if n["type"] == "IDCodeFormerLoader"]
    for loader in loaders:
        (model,) = loader["properties"]["models"]
        assert (model["name"], model["url"]) == (weight.file, weight.urls[0])
        assert (model["hash"], model["hash_type"], model["directory"]) == (weight.sha256, "SHA256", weight.folder)


def test_no_script_of_ours_imports_what_the_front_end_calls_internal():
    for script in (ROOT / "web" / "js").glob("*.js"):
        imported = re.findall(r'from "\.\./\.\./\.\./scripts/([a-z]+)\.js"', script.read_text())
        assert set(imported) <= {"app", "api"} and script.read_text().count("import ") == len(imported)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_api_twin_is_the_same_graph(path):
    graph = json.loads(path.read_text())
    twin = json.loads((path.parent / "api" / f"{path.stem}.api.json").read_text())
    drawn = {str(node["id"]): node["type"] for node in graph["nodes"] if node["type"] != "MarkdownNote"}
    assert {key: node["class_type"] for key, node in twin.items()} == drawn
    links = {link[0]: link for link in graph["links"]}
    for node in graph["nodes"]:
        for entry in node["inputs"]:
            if entry["link"] is not None:
                _, source, slot, *_ = links[entry["link"]]
                assert twin[str(node["id"])]["inputs"][entry["name"]] == [str(source), slot]


def test_samples_of_the_workflows_ship_with_the_pack():
    script = (ROOT / "web" / "js" / "sample_pictures.js").read_text()
    offered = set(re.findall(r'"(idcodeformer_[a-z_]+\.(?:jpg|mp4))"', script))
    used = set()
    for path in WORKFLOWS:
        for node in json.loads(path.read_text())["nodes"]:
            if node["type"] in ("LoadImage", "LoadVideo"):
                used.add(node["widgets_values"][0])
    assert used <= offered
    assert offered == {path.name for path in (ROOT / "web" / "samples").glob("idcodeformer_*")}


def test_importing_the_pack_is_cheap_and_clean(tmp_path):
    """No heavy module, no change of sys.path or of torch, nothing read or written beside the pack's own source."""
    code = """
import importlib.util, json, sys, torch
before, path = set(sys.modules), list(sys.path)
spec = importlib.util.spec_from_file_location("/a-b/ComfyUI-ID-CodeFormer", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
print(json.dumps([sorted({n.split(".")[0] for n in set(sys.modules) - before}), sys.path == path,
                  str(torch.get_default_dtype()), torch.backends.cudnn.benchmark, sorted(module.NODE_CLASS_MAPPINGS)]))
"""
    environment = {"PATH": "", "HOST_DOUBLE_BASE": str(tmp_path), "PYTHONPATH": str(ROOT / "tests" / "host_double")}
    command = [sys.executable, "-c", code, str(ROOT / "__init__.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    new, same_path, dtype, benchmark, nodes = json.loads(done.stdout)
    heavy = {"cv2", "facexlib", "PIL", "onnx", "onnxruntime", "insightface", "torchvision", "safetensors", "numba"}
    assert not heavy & set(new)
    assert same_path and dtype == "torch.float32" and benchmark is False
    assert nodes == sorted(FOREVER)
    assert not any(tmp_path.iterdir())


def test_the_door_is_silent_as_a_plain_module():
    """pytest and linters import it so."""
    done = subprocess.run([sys.executable, str(ROOT / "__init__.py")], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "" and done.stderr == ""


BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_blueprint_fits_the_nodes(pack, path):
    """Its one node is the subgraph; inside, every value, link and shown widget is one that the nodes have."""
    graph = json.loads(path.read_text())
    (outer,), (inner,) = graph["nodes"], graph["definitions"]["subgraphs"]
    assert outer["type"] == inner["id"] and outer["title"] == inner["name"] == path.stem
    assert inner["description"] and inner["category"] == "face/ID-CodeFormer"
    for kind in ("inputs", "outputs"):
        assert [(e["name"], e["type"]) for e in outer[kind]] == [(e["name"], e["type"]) for e in inner[kind]]
    nodes = {node["id"]: node for node in inner["nodes"]}
    widgets = {}
    for node in nodes.values():
        specs = inputs_of(pack.module.NODE_CLASS_MAPPINGS[node["type"]])
        widgets[node["id"]] = [name for name, spec in specs.items() if isinstance(spec[0], list) or spec[0] in WIDGETS]
        assert len(node["widgets_values"]) == len(widgets[node["id"]])
        assert [entry["name"] for entry in node["inputs"]] == [n for n in specs if n not in widgets[node["id"]]]
        assert [entry["type"] for entry in node["outputs"]] == list(OUTPUTS[node["type"]])
    for number, name in outer["properties"]["proxyWidgets"]:
        assert name in widgets[int(number)]
    for link in inner["links"]:
        start = inner["inputs"] if link["origin_id"] == -10 else nodes[link["origin_id"]]["outputs"]
        end = inner["outputs"] if link["target_id"] == -20 else nodes[link["target_id"]]["inputs"]
        source, target = start[link["origin_slot"]], end[link["target_slot"]]
        assert source["type"] == link["type"] and link["type"] in target["type"].split(",")
        assert link["id"] in source.get("linkIds", source.get("links"))
        assert target["link"] == link["id"] if "link" in target else link["id"] in target["linkIds"]
    assert len(BLUEPRINTS) == 2
