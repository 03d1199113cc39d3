"""Values that no widget would take, as links hand them on: refused in the node's own names, never passed over."""
from __future__ import annotations

import pytest
import torch

from tests.test_nodes.conftest import defaults

NAN = float("nan")


@pytest.fixture
def picked(found, portrait):
    """All that the nodes ask for beside their widgets."""
    faces = found(portrait)
    both = {"reference": portrait, "candidate": portrait}
    return {
        "DetectFaces": {"image": portrait},
        "RestoreFaces": {"image": portrait, "faces": faces},
        "IdentityScore": {**both, "reference_faces": faces, "candidate_faces": faces},
        "Person": {"photos": portrait},
        "FacesFromBoxes": {"image": portrait, "found": []},
        "FacesToSegs": {"image": portrait, "faces": faces},
        "PasteFaces": {"image": [portrait], "faces": [faces], "crops": [torch.rand(1, 64, 64, 3)], "visibility": [1.0]},
    }


@pytest.mark.parametrize(
    ("node", "name", "value", "said"),
    [
        ("RestoreFaces", "fidelity", None, "'fidelity' is nothing; link a number from 0 to 1, or unlink it."),
        ("RestoreFaces", "fidelity", "0.5", "'fidelity' is '0.5'; link a number from 0 to 1, or unlink it."),
        ("RestoreFaces", "fidelity", [0.5], "'fidelity' is a list; link a number"),
        ("RestoreFaces", "visibility", 2.0, "'visibility' is 2.0; it must lie between 0 and 1."),
        ("RestoreFaces", "upscale_factor", NAN, "'upscale_factor' is nan; it must lie between 0.25 and 8."),
        ("RestoreFaces", "guidance_steps", 1.5, "'guidance_steps' is 1.5; it must be a whole number."),
        ("RestoreFaces", "aligned", "false", "'aligned' is 'false'; link true or false, or unlink it."),
        ("RestoreFaces", "paste_classes", "nose", "'paste_classes' is 'nose'; choose one of automatic, face and hair"),
        ("RestoreFaces", "border", "x", "'border' is 'x'; choose one of constant, reflect."),
        ("RestoreFaces", "gray_mode", None, "'gray_mode' is nothing; choose one of auto, force, off."),
        ("RestoreFaces", "when_no_face", 0, "'when_no_face' is 0; choose one of pass, error."),
        ("RestoreFaces", "detector", 5, "'detector' is 5; choose one from the list."),
        ("DetectFaces", "min_similarity", NAN, "'min_similarity' is nan; it must lie between -1 and 1."),
        ("DetectFaces", "min_eye_distance", -1.0, "'min_eye_distance' is -1.0; it must lie between 0 and 2048."),
        ("DetectFaces", "keep", "some", "'keep' is 'some'; choose one of all, largest"),
        ("DetectFaces", "indices", [0], "'indices' is a list; link a text, or unlink it."),
        ("IdentityScore", "threshold", NAN, "'threshold' is nan; it must lie between -1 and 1."),
        ("IdentityScore", "compare", "all", "'compare' is 'all'; choose one of auto"),
        ("Person", "name", None, "'name' is nothing; link a text, or unlink it."),
        ("FacesFromBoxes", "detector", None, "'detector' is nothing; choose one from the list."),
        ("FacesToSegs", "crop_factor", NAN, "'crop_factor' is nan; it must lie between 1 and 100."),
        ("PasteFaces", "visibility", [None], "'visibility' is nothing; link a number from 0 to 1"),
        ("PasteFaces", "visibility", [3.0], "'visibility' is 3.0; it must lie between 0 and 1."),
        ("Loader", "model_name", 5, "'model_name' is 5; choose one from the list."),
        ("Loader", "recogniser", None, "'recogniser' is nothing; choose one from the list."),
    ],
)
def test_a_linked_value_is_checked_like_a_typed_one(pack, picked, model, node, name, value, said):
    cls = getattr(pack.nodes, node)
    given = {**defaults(cls), **picked.get(node, {}), **({"model": model} if node == "RestoreFaces" else {})}
    with pytest.raises(pack.errors.BadOption) as raised:
        getattr(cls(), cls.FUNCTION)(**{**given, name: value})
    assert str(raised.value).startswith(said)


def test_numbers_of_other_kinds_count(run, pack, picked):
    """What calculators hand on is not always a Python float, and a whole number may come as 2.0."""
    import numpy as np

    faces = run("DetectFaces", **picked["DetectFaces"], confidence=np.float32(0.5), max_faces=1.0)[0]
    assert faces.count == 1
    segs = run("FacesToSegs", **picked["FacesToSegs"], crop_factor=np.int64(2))[0]
    assert len(segs[0][1]) == 1


def test_a_mask_that_holds_nan_is_refused(run, pack, model, picked):
    """It would make every pixel NaN, and count as restored."""
    mask = torch.ones(1, 384, 384)
    mask[0, 9, 9] = NAN
    with pytest.raises(pack.errors.BadImage, match="'mask' holds NaN; repair"):
        run("RestoreFaces", model=model, **picked["RestoreFaces"], mask=mask)


def test_a_picture_of_truth_values_is_black_and_white(pack):
    """As a mask made into an image: white is 1, not 1 of 255."""
    frames = pack.sub("convert").frames_of(torch.ones(1, 4, 5, 3, dtype=torch.bool))
    assert torch.equal(frames.part(0, 1), torch.ones(1, 3, 4, 5))


def test_a_list_of_pictures_is_not_cut_to_its_first(run, pack, picked, portrait):
    given = picked["PasteFaces"]
    with pytest.raises(pack.errors.BadOption, match="'image' is a list of 2; link one"):
        run("PasteFaces", **{**given, "image": [portrait, portrait]})
    image, _ = run("PasteFaces", **given)
    assert not torch.equal(image, portrait)


def test_a_value_is_shown_in_sixty_letters_at_most(pack):
    shown = pack.sub("values")._shown
    assert shown("a" * 57) == "'" + "a" * 57 + "'"
    assert shown("a" * 58) == "'" + "a" * 56 + "..." and len(shown("a" * 58)) == 60
