"""``python -m training evaluate`` from end to end on synthetic faces and tiny networks."""
from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from idcodeformer.files.drawing import font, wrapped
from idcodeformer.guidance import descent, gate, judging
from idcodeformer.guidance.optimise import guide
from idcodeformer.guidance.options import GuidanceOptions
from idcodeformer.networks.arcface import IResNet, IResNetConfig
from idcodeformer.networks.codeformer import CodeFormer, CodeFormerConfig
from idcodeformer.pipeline import FacePipeline
from idcodeformer.restoration.tone import match_tone
from idcodeformer.types import Embeddings, RestoreOptions
from idcodeformer.weights.loading import build, save
from idcodeformer.weights.registry import WEIGHTS
from training.__main__ import main, parser
from training.checkpoint import write_checkpoint
from training.config import ConfigError, load_config, to_dict
from training.data.dataset import DataError
from training.data.degradation import degrade, sample_rng
from training.data.sources import read_image
from training.evaluation.evalset import load_set
from training.evaluation.evaluate import Evaluation
from training.evaluation.fid import BackboneFeatures, _leave_border_out, _pool_by_maximum, load_extractor
from training.evaluation.judges import Judges, RecogniserJudge, check_independence
from training.evaluation.report import _colours
from training.evaluation.sheets import CELL, Sheet, draw
from training.evaluation.subjects import CeilingSubject, LossRecognisers, ModelSubject, load_network, split_name
from training.stages.perceptual import STLPIPS
from training.tools.export import export

SIZE = 64
NET = CodeFormerConfig(
    img_size=SIZE, nf=32, ch_mult=(1, 2, 2), res_blocks=1, attn_resolutions=(16,), codebook_size=32, emb_dim=16,
    dim_embd=32, dim_mlp=64, n_head=2, n_layers=1, connect_list=(32,),
)  # fmt: skip
YAML = """
net: {img_size: 64, ch_mult: [1, 2, 2], connect_list: [32]}
data: {size: 64}
degradations:
  soft: {kernel_size: 9, sigma: [0.6, 0.6], anisotropic: 0, downscale: [2, 2], noise: [2, 2], jpeg: [90, 90]}
  hard: {kernel_size: 9, sigma: [2, 2], anisotropic: 0, downscale: [8, 8], noise: [8, 8], jpeg: [40, 40]}
"""


def face(person: int, photo: int) -> np.ndarray:
    """A picture that is alike for photographs of one person: coarse random colours, and a little of its own."""
    coarse = np.random.default_rng(person).uniform(40, 215, (6, 6, 3))
    fine = np.random.default_rng(1000 * person + photo).uniform(-20, 20, (24, 24, 3))
    big = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return (big + cv2.resize(fine, (SIZE, SIZE))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 faces of 8 people (6 of them in split test), two models, two recognisers and a config."""
    root = tmp_path_factory.mktemp("kit")
    lines = [["path", "identity", "split"]]
    for person in range(8):
        for photo in range(3):
            name = f"p{person}/{photo}.png"
            (root / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / "faces" / name), face(person, photo)[..., ::-1])
            lines.append([name, f"p{person}", "train" if person > 5 else "test"])
    with open(root / "faces/images.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    (root / "config.yaml").write_text(YAML)
    for seed, name in enumerate(("control", "identity")):
        torch.manual_seed(seed)
        loss = {"loss": {"identity": float(seed), "identity_weights": ["loss_net.safetensors"]}}
        save(CodeFormer(NET), root / f"{name}.safetensors", {"training": json.dumps(loss)})
    for seed, name in enumerate(("loss_net", "other_net")):
        torch.manual_seed(10 + seed)
        save(IResNet(IResNetConfig((1, 1, 1, 1), (8, 8, 16, 16), 32)), root / f"{name}.safetensors")
    return root


def command(kit: Path, out: Path, *more: str, models: tuple[str, ...] = ("control", "identity")) -> list[str]:
    words = ["evaluate", "--data", kit / "faces", "--list", "images.csv", "--split", "test"]
    words += ["--config", kit / "config.yaml"]
    for name in models:
        words += ["--model", kit / f"{name}.safetensors"]
    words += ["--loss-recogniser", kit / "loss_net.safetensors", "--independent", kit / "other_net.safetensors"]
    words += ["--ceiling", kit / "control.safetensors", "--out", out, "--device", "cpu", "--bootstrap", "50"]
    return [*map(str, words), "--far", "0.05", "--samples", "3", *more]


def measured(words: list[str]) -> dict:
    """The report as it would be written, without drawing plots."""
    return Evaluation(parser().parse_args(words)).report()


@pytest.fixture(scope="module")
def result(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("result")
    assert main(command(kit, out, "--degradation", "soft", "hard", "--w", "1", "0")) == 0
    return out, json.loads((out / "report.json").read_text())


def row(report: dict, degradation: str, kind: str, name: str | None = None, w: float | None = None) -> dict:
    rows = report["degradations"][degradation]["rows"]
    (found,) = (r for r in rows if r["kind"] == kind and (name is None or r["name"] == name) and r["w"] == w)
    return found


def test_the_files_and_their_rows(result) -> None:
    out, report = result
    for name in ("soft", "hard"):
        for suffix in ("w", "id-sim", "samples", "worst"):
            assert cv2.imread(str(out / f"{name}-{suffix}.png")).std() > 1
        kinds = [r["kind"] for r in report["degradations"][name]["rows"]]
        assert kinds == ["input", *["model"] * 4, "ceiling", "truth"]
    assert (report["images"], report["identities"], report["pairs"]) == (18, 6, 36)
    assert [r["w"] for r in report["degradations"]["soft"]["rows"][1:3]] == [0.0, 1.0]
    with open(out / "images.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 18 * 6 and {line["image"] for line in lines} >= {"p0/0.png", "p5/2.png"}


def test_floor_and_truth_are_where_they_must_be(result) -> None:
    _, report = result
    soft, hard = (row(report, name, "input")["figures"] for name in ("soft", "hard"))
    assert soft["psnr"]["value"] > hard["psnr"]["value"] and soft["ssim"]["value"] > hard["ssim"]["value"]
    for figure in (*soft.values(), *hard.values()):
        assert figure["low"] <= figure["value"] <= figure["high"]
    truth = row(report, "soft", "truth")
    assert "psnr" not in truth["figures"] and truth["figures"]["id_sim other_net"]["value"] == pytest.approx(1)
    assert truth["far_measured"]["other_net"] == pytest.approx(0.05, abs=0.01)
    first, second = (row(report, name, "ceiling") for name in ("soft", "hard"))
    assert first == second  # the ceiling does not look at the input


def test_figures_are_those_of_the_definition(kit: Path, result) -> None:
    """PSNR and ID-Sim of one model, from its own network and from the pixels on disk."""
    _, report = result
    degradation = load_config(kit / "config.yaml").degradations["soft"]
    net, judge = build(kit / "identity.safetensors"), build(kit / "other_net.safetensors")
    eye = RecogniserJudge("x", "independent", judge, "", "")
    psnrs, sims = [], []
    for place, path in enumerate(sorted((kit / "faces").rglob("p[0-5]/*.png"))):
        truth = read_image(path, SIZE)
        bad = degrade(truth, degradation, sample_rng(0, place))
        x, y = (torch.from_numpy(i).permute(2, 0, 1)[None].float() / 255 for i in (bad, truth))
        with torch.no_grad():
            image = net(x * 2 - 1, w=1.0, adain=True)[0]
        image = match_tone((image.clamp(-1, 1) + 1) / 2, x, RestoreOptions())
        image = (image * 255).round() / 255
        psnrs.append(float(-10 * (image - y).square().mean().log10()))
        sims.append(float((eye.embed(image) * eye.embed(y)).sum()))
    figures = row(report, "soft", "model", "identity", 1.0)["figures"]
    assert figures["psnr"]["value"] == pytest.approx(np.mean(psnrs), abs=1e-3)
    assert figures["id_sim other_net"]["value"] == pytest.approx(np.mean(sims), abs=1e-4)


def test_faces_are_judged_in_the_colours_that_users_get(kit: Path, tmp_path: Path) -> None:
    """By default as the pipeline makes an aligned face by default, else as the network makes it."""
    words = command(kit, tmp_path, "--degradation", "soft", "--w", "1", models=("control",))
    chosen = {"low_band": [], "adain": ["--colour", "adain"], "off": ["--colour", "off"]}
    runs = {colour: Evaluation(parser().parse_args([*words, *more])) for colour, more in chosen.items()}
    _, truth, degraded = next(runs["off"].faces.batches(runs["off"].degradations["soft"], 0, 4))
    made = {colour: run.models[0].make(truth, degraded)[0] for colour, run in runs.items()}
    net = build(kit / "control.safetensors")
    for colour in ("adain", "off"):
        with torch.no_grad():
            alone = (net(degraded * 2 - 1, w=1.0, adain=colour == "adain")[0].clamp(-1, 1) + 1) / 2
        assert torch.allclose(made[colour], alone, atol=1e-4)
    product, _ = FacePipeline(runs["off"].models[0].restorer).restore_aligned(degraded, RestoreOptions(w=1.0))
    assert torch.allclose(made["low_band"], product, atol=1e-5)
    assert (made["low_band"] - made["adain"]).abs().mean() > 0.01
    assert len({run.models[0].key for run in runs.values()}) == 3
    said = [_colours(run._settings()) for run in runs.values()]
    assert "of the input, as users get them (low_band), latent colour match (AdaIN) on" in said[0]
    assert "as the network makes them, latent colour match (AdaIN) on" in said[1] and "(AdaIN) off" in said[2]


def test_recognisers_of_the_loss_and_independent_ones_are_apart(result) -> None:
    out, report = result
    roles = {name: info["role"] for name, info in report["settings"]["recognisers"].items()}
    assert roles == {"loss_net": "loss", "other_net": "independent"}
    text = (out / "report.md").read_text()
    assert "ID-Sim loss_net (loss)" in text and "ID-Sim other_net (independent)" in text
    assert report["settings"]["models"]["identity"]["loss_recognisers"] == ["loss_net"]
    assert report["settings"]["models"]["control"]["loss_recognisers"] == []


def test_markdown_says_why_a_column_is_empty(result) -> None:
    text = (result[0] / "report.md").read_text()
    assert "--fid-weights was not given" in text and "--perceptual was not given" in text
    table = next(line for line in text.splitlines() if line.startswith("| input"))
    assert "–" in table
    assert re.search(r"identity − control, w = 1 \| [+-]\d", text)


def test_differences_are_paired(result) -> None:
    _, report = result
    (entry,) = (d for d in report["degradations"]["soft"]["differences"] if d["w"] == 1.0)
    a, b = (row(report, "soft", "model", name, 1.0)["figures"]["psnr"] for name in ("control", "identity"))
    change = entry["figures"]["psnr"]
    assert change["value"] == pytest.approx(b["value"] - a["value"], abs=1e-5)
    assert change["low"] <= change["value"] <= change["high"]


def test_the_worst_sheet_holds_the_lowest(result) -> None:
    out, report = result
    with open(out / "images.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["degradation"] == "hard" and r["row"] == "identity, w = 1"]
    lowest = sorted(rows, key=lambda r: float(r["id_sim other_net"]))[:10]
    sheets = {s["name"]: s["images"] for s in report["degradations"]["hard"]["sheets"]}
    assert set(sheets["worst"]) == {r["image"] for r in lowest} and len(sheets["samples"]) == 3
    assert sheets["samples"] == report["degradations"]["soft"]["sheets"][0]["images"]


def test_what_was_measured_is_not_measured_again(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(kind: type) -> None:
        make = kind.make
        monkeypatch.setattr(kind, "make", lambda self, t, d: calls.append(f"{self.key} {len(t)}") or make(self, t, d))

    counted(ModelSubject)
    counted(CeilingSubject)
    words = command(kit, tmp_path, "--degradation", "soft", "--w", "1", "--batch", "18", models=("control",))
    first = measured(words)
    assert sum(c.endswith(" 18") for c in calls) == 2
    calls.clear()
    second = measured([*words, "--model", str(kit / "identity.safetensors")])
    assert sum(c.endswith(" 18") for c in calls) == 1  # the new model alone; sheets are drawn one face at a time
    assert row(first, "soft", "model", "control", 1.0) == row(second, "soft", "model", "control", 1.0)
    calls.clear()
    measured([*words, "--seed", "5"])  # other pixels: the model again, the ceiling not
    assert [c.split()[0] for c in calls if c.endswith(" 18")] == ["codeformer"]


def test_batches_change_nothing(kit: Path, result, tmp_path: Path) -> None:
    words = ["--degradation", "soft", "--w", "1", "0", "--batch", "5", "--no-cache"]
    again = measured(command(kit, tmp_path, *words, models=("control",)))
    for name, figure in row(again, "soft", "model", "control", 1.0)["figures"].items():
        if not name.startswith("tar"):
            expected = row(result[1], "soft", "model", "control", 1.0)["figures"][name]["value"]
            assert figure["value"] == pytest.approx(expected, abs=1e-3)
    assert not (tmp_path / "cache").exists()


def test_a_subset_keeps_people_and_pixels(kit: Path) -> None:
    whole = load_set(kit / "faces", "images.csv", "test", SIZE, 0, 0)
    part = load_set(kit / "faces", "images.csv", "test", SIZE, 7, 3)
    assert len(part) == 7 and len(set(part.identities)) == 3  # whole people, the last one cut
    assert part.digest != whole.digest
    degradation = load_config(kit / "config.yaml").degradations["hard"]
    pixels = {whole.name(r[0]): bad for r, _, bad in whole.batches(degradation, 0, 1)}
    for rows, _, bad in part.batches(degradation, 0, 1):
        assert torch.equal(bad, pixels[part.name(rows[0])])


def test_unreadable_files_are_left_out_and_named(kit: Path, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    cv2.imwrite(str(tmp_path / "p/good.png"), face(0, 0))
    cv2.imwrite(str(tmp_path / "p/small.png"), face(0, 0)[:20, :20])
    (tmp_path / "p/bad.png").write_bytes(b"nothing")
    found = load_set(tmp_path, None, None, SIZE, 0, 0)
    assert len(found) == 1 and {Path(p).name for p in found.skipped} == {"small.png", "bad.png"}
    (tmp_path / "p/good.png").unlink()
    with pytest.raises(DataError, match="None of the 2 images"):
        load_set(tmp_path, None, None, SIZE, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--degradation", "x99"], "there is no 'x99'; there: hard, soft"),
        (["--w", "0", "1.5"], "between 0 and 1"),
        (["--main-w", "0.3"], "not among"),
        (["--far", "0"], "between 0 and 1"),
        (["--split", "dev"], "No image"),
        (["--list", "absent.csv"], "no table"),
        (["--device", "cuda:99"], "no such device"),
        (["--degradation", "soft", "--config", "training/configs/mini/base.yaml"], "there is no 'soft'"),
        (["--degradation", "x4", "--config", "training/configs/mini/base.yaml"], "for 128 px"),
    ],
)
def test_what_cannot_be_measured_is_said(kit: Path, tmp_path: Path, root: Path, capsys, change, message) -> None:
    change = [str(root / c) if c.startswith("training/") else c for c in change]
    defaults = [] if "--degradation" in change else ["--degradation", "soft"]
    assert main(command(kit, tmp_path, *defaults, *change)) == 2
    assert message in capsys.readouterr().err


def test_a_recogniser_of_the_loss_cannot_judge_as_independent(kit: Path, tmp_path: Path) -> None:
    words = command(kit, tmp_path, "--degradation", "soft")
    loss, other = (words.index(str(kit / f"{n}.safetensors")) for n in ("loss_net", "other_net"))
    words[loss], words[other] = words[other], words[loss]
    with pytest.raises(ConfigError, match="'loss_net' was in the loss of 'identity'"):
        Evaluation(parser().parse_args(words))
    words[loss] = words[other]
    with pytest.raises(ConfigError, match="same file"):
        Evaluation(parser().parse_args(words))


def test_models_of_two_sizes_do_not_share_a_table(kit: Path, tmp_path: Path) -> None:
    small = CodeFormerConfig.from_dict({**NET.to_dict(), "img_size": 32, "attn_resolutions": [8], "connect_list": [16]})
    save(CodeFormer(small), tmp_path / "small.safetensors")
    words = [*command(kit, tmp_path, "--degradation", "soft"), "--model", str(tmp_path / "small.safetensors")]
    with pytest.raises(ConfigError, match="different sizes"):
        Evaluation(parser().parse_args(words))
    with pytest.raises(ConfigError, match="same name"):
        twice = command(kit, tmp_path, "--degradation", "soft", models=("control", "control"))
        Evaluation(parser().parse_args(twice))


def test_what_is_written_on_a_sheet_stays_in_its_column() -> None:
    """A white column without labels stays white between columns with long ones."""
    long = "mobilefacenet_112x96_128d, likeness: 0.55\nanother_recogniser_with_a_long_name_of_its_own: 0.42"
    grey, white = (np.full((SIZE, SIZE, 3), level, np.uint8) for level in (120, 255))
    sheet = Sheet("s", "title", ["a", "b"], [long, "", long], [[grey, white, grey]] * 2, [[long, "", long]] * 2)
    pixels = np.asarray(draw(sheet).convert("L"))
    step, wide = CELL + 6, 3 * (CELL + 6) + 16
    assert pixels.shape[1] == 8 + 2 * wide
    for left in (8 + step, 8 + wide + step):
        assert (pixels[25:, left - 4 : left + CELL] == 255).all()
    assert (pixels[-3:] == 255).all()  # nothing is cut off below
    letters = font(11)
    for width in (30, 90, 160):
        lines = wrapped(long, letters, width).split("\n")
        assert max(map(letters.getlength, lines)) <= width
        assert "".join(lines).replace(" ", "") == long.replace(" ", "").replace("\n", "")
    assert wrapped("two words\n", letters, 500) == "two words\n"


def test_perceptual_and_frechet_columns(kit: Path, tmp_path: Path) -> None:
    """With a random st-LPIPS file the perceptual column is named after it, and its backbone's distance is no FID."""
    torch.manual_seed(0)
    net, state = STLPIPS(), {}
    for conv, key in zip(net.convolutions(), ("1.0", "2.5", "3.9", "4.11", "5.13"), strict=True):
        state[f"net.slice{key}.weight"], state[f"net.slice{key}.bias"] = conv.weight, conv.bias
    state |= {f"lin{i}.model.1.weight": h.weight.abs() for i, h in enumerate(net.heads)}
    state["net.slice1.1.filt"] = torch.ones(64, 1, 3, 3)
    torch.save({k: v.detach() for k, v in state.items()}, tmp_path / "st.pth")
    weights = ["--perceptual", str(tmp_path / "st.pth"), "--fid-weights", str(tmp_path / "st.pth")]
    report = measured(command(kit, tmp_path, "--degradation", "hard", "--w", "1", *weights, models=("control",)))
    assert report["settings"]["perceptual"] == "st-LPIPS (AlexNet)"
    assert report["settings"]["fid"] == "FD (st-LPIPS (AlexNet) backbone)"
    given = row(report, "hard", "input")
    assert given["figures"]["perceptual"]["value"] > 0 and given["fid"] > 0
    assert row(report, "hard", "truth")["fid"] == pytest.approx(0, abs=1e-6)
    assert isinstance(load_extractor(tmp_path / "st.pth"), BackboneFeatures)


def test_inception_blocks_pool_as_tensorflow_does() -> None:
    from torchvision.models.inception import InceptionA, InceptionE

    x = torch.rand(1, 8, 9, 9)
    block = InceptionA(8, pool_features=4).eval()
    plain = block(x)
    _leave_border_out(block)
    ported = block(x)
    averaged = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(ported[:, -4:], block.branch_pool(averaged))
    torch.testing.assert_close(ported[:, :-4], plain[:, :-4])
    assert not torch.allclose(ported[:, -4:], plain[:, -4:])
    last = InceptionE(8).eval()
    _pool_by_maximum(last)
    torch.testing.assert_close(last(x)[:, -192:], last.branch_pool(nn.functional.max_pool2d(x, 3, 1, 1)))


@pytest.mark.slow
def test_the_whole_inception_is_read(tmp_path: Path) -> None:
    from torchvision.models import Inception3

    torch.manual_seed(0)
    net = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    torch.save({k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}, tmp_path / "i.pth")
    extractor = load_extractor(tmp_path / "i.pth")
    assert extractor.label == "FID" and extractor(torch.rand(1, 3, 64, 64)).shape == (1, 2048)


def test_names_on_the_command_line() -> None:
    assert split_name("arm=runs/a/best.ckpt") == ("arm", "runs/a/best.ckpt")
    assert split_name("runs/mini-stage3/best.ckpt") == ("mini-stage3", "runs/mini-stage3/best.ckpt")
    assert split_name("weights/codeformer.pth") == ("codeformer", "weights/codeformer.pth")
    assert split_name("mini_recogniser") == ("mini_recogniser", "mini_recogniser")


def test_a_report_is_written_and_printed_in_a_locale_that_is_not_utf_8(
    kit: Path, tmp_path: Path, latin_locale, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(kit, tmp_path, "--degradation", "soft", "--w", "1")) == 0
    assert "PSNR / dB \u2191" in capsys.readouterr().out
    assert "\u2212" in (tmp_path / "report.md").read_bytes().decode("utf-8")


def judge(stem: str, digest: str) -> Judges:
    return Judges((RecogniserJudge("judge", "independent", torch.nn.Identity(), digest, stem),), None, None, "")


R50 = next(w for w in WEIGHTS if w.name == "arcface_ms1mv3_r50")


@pytest.mark.parametrize(
    ("stem", "digest", "names", "digests", "refused"),
    [
        ("renamed", "aa", ["backbone"], ["aa"], True),  # the same contents under another name
        ("backbone", "bb", ["backbone"], ["aa"], False),  # two files of one name
        ("backbone", "bb", ["backbone"], [], True),  # an older model, that says names alone
        ("other", "bb", ["backbone"], [], False),
        (Path(R50.file).stem, R50.sha256, ["arcface_ms1mv3_r50"], [], True),  # the registry's name of the file
        ("mine", R50.sha256, ["arcface_ms1mv3_r50"], [], True),
        ("mine", R50.sha256, [Path(R50.file).stem], [], True),
        (Path(R50.file).stem, "converted", ["arcface_ms1mv3_r50"], ["cc"], True),  # the same row in another format
        (Path(R50.file).stem, "converted", ["x"], [R50.sha256], True),
        (Path(R50.file).stem, R50.sha256, ["arcface_ms1mv3_r100"], [], False),
    ],
)
def test_independence_is_told_by_contents(stem, digest, names, digests, refused) -> None:
    used = {"model": LossRecognisers(names, digests)}
    if refused:
        with pytest.raises(ConfigError, match="'judge' was in the loss of 'model'"):
            check_independence(judge(stem, digest), used)
    else:
        check_independence(judge(stem, digest), used)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_model_says_which_recognisers_were_in_its_loss(tmp_path: Path, suffix: str) -> None:
    words = [f"{k}={v}" for k, v in (("loss.identity", 0.5), ("loss.identity_weights", "[/x/arcface_v0.25, /y/b.pth]"))]
    net = {f"net.{k}": v for k, v in NET.to_dict().items()}
    words += [f"{k}={list(v) if isinstance(v, (list, tuple)) else v}".replace(" ", "") for k, v in net.items()]
    config = load_config(None, ["stage=stage3_id", f"data.size={NET.img_size}", *words])
    state = {"stage": "stage3_id", "config": to_dict(config), "step": 1, "ema": CodeFormer(NET).state_dict()}
    path = tmp_path / "model.ckpt"
    write_checkpoint({**state, "sources": {"loss.identity_weights": ["aa", "bb"]}}, path)
    if suffix != ".ckpt":
        export(path, tmp_path / "model.safetensors")
        path = tmp_path / "model.safetensors"
    found = LossRecognisers.of(path, load_network(path, "codeformer"))
    assert found == LossRecognisers(["arcface_v0.25", "b"], ["aa", "bb"])


# ---------------------------------------------------------------- guidance by other photos of the person


GUIDED = ["--degradation", "soft", "--w", "1", "--guide-steps", "1", "2", "--references", "1", "2", "--force-guide"]


def guided_command(kit: Path, out: Path, *more: str) -> list[str]:
    return command(kit, out, *GUIDED, "--guide-by", str(kit / "loss_net.safetensors"), *more, models=("control",))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random networks move pictures and likeness on scales of their own."""
    monkeypatch.setattr(judging, "_LEAST_GAIN", -1.0)
    monkeypatch.setattr(judging, "MOST_DRIFT", 1.0)
    monkeypatch.setitem(descent.SAME_PERSON, "loss_net", 2.0)


def test_guided_rows_by_photos_steps_and_strangers(kit: Path, tmp_path: Path, eager: None) -> None:
    assert main(guided_command(kit, tmp_path)) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    block = report["degradations"]["soft"]
    rows = {r["name"]: r for r in block["rows"]}
    made = [name for name, r in rows.items() if r["kind"] in ("guided", "stranger")]
    assert made == ["control + 1 photo, 2 steps", "control + 2 photos, 1 steps", "control + 2 photos, 2 steps",
                    "control + 2 photos of a stranger, 2 steps"]  # fmt: skip
    assert [rows[name]["figures"]["guided"]["value"] for name in made] == [1, 1, 1, 1]
    differences = {d["to"]: d for d in block["differences"]}
    assert list(differences) == made and {d["from"] for d in differences.values()} == {"control"}
    psnr = differences[made[2]]["figures"]["psnr"]
    plain, guided = (rows[name]["figures"]["psnr"]["value"] for name in ("control", made[2]))
    assert psnr["value"] == pytest.approx(guided - plain) and psnr["low"] <= psnr["value"] <= psnr["high"]
    assert guided != plain
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "loss_net guides" in text and "the gate that refuses strangers is open" in text and "| guided |" in text
    assert {"guided", "psnr"} <= set((tmp_path / "images.csv").read_text().splitlines()[0].split(","))


def test_a_guided_row_is_what_guidance_makes(kit: Path, tmp_path: Path, eager: None) -> None:
    """One face by hand: its own other photos, their mean, the core's guidance."""
    run = Evaluation(parser().parse_args(guided_command(kit, tmp_path, "--no-cache")))
    guided = next(s for s in run.guided if s.count == 2 and s.guidance.steps == 2)
    references = guided.references
    for place in range(len(run.faces)):
        own, other = references.rows[place]
        person = run.faces.entries[place].identity
        assert [run.faces.pool[p].identity for p in own] == [person] * 2 and run.faces.places[place] not in own
        stranger = {run.faces.pool[p].identity for p in other}
        assert len(stranger) == 1 and person not in stranger
    row_of = 4
    rows, truth, degraded = next(run.faces.batches(run.degradations["soft"], 0, 1, np.array([row_of])))
    bound = guided.of(rows.tolist())
    (image,) = bound.make(truth, degraded)
    photos = [read_image(run.faces.pool[p], SIZE) for p in references.rows[row_of][0]]
    crops = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float() / 255
    eye = references.recogniser
    person = Embeddings(nn.functional.normalize(eye(crops).vectors.mean(0, keepdim=True), dim=1), eye.name)
    rule = GuidanceOptions(2, force=True)
    by_hand = guide(run.models[0].restorer, degraded, person, eye, RestoreOptions(w=1.0), rule)
    assert bound.figures[0]["guided"].tolist() == [1]
    plain, toned = (match_tone(p, degraded, RestoreOptions()) for p in (by_hand.unguided, by_hand.pixels))
    moved = (image - plain).abs().mean()
    assert moved > 0 and (image - toned).abs().mean() < 0.05 * moved  # rounding, by the size of a batch


def test_the_gate_is_that_of_the_product(kit: Path, tmp_path: Path, eager: None, monkeypatch) -> None:
    monkeypatch.setitem(gate.STRANGERS, "loss_net", 1.0)
    words = [word for word in guided_command(kit, tmp_path) if word != "--force-guide"]
    rows = measured(words)["degradations"]["soft"]["rows"]
    plain = next(r for r in rows if r["kind"] == "model")
    for each in (r for r in rows if r["kind"] in ("guided", "stranger")):
        assert each["figures"]["guided"]["value"] == 0
        assert each["figures"]["psnr"]["value"] == pytest.approx(plain["figures"]["psnr"]["value"], abs=1e-4)


def test_who_guides_does_not_judge_and_people_need_photos(kit: Path, tmp_path: Path) -> None:
    other = ["--guide-by", str(kit / "other_net.safetensors")]
    with pytest.raises(ConfigError, match="'other_net' guides, so it is no independent judge"):
        Evaluation(parser().parse_args([*guided_command(kit, tmp_path), *other]))
    words = guided_command(kit, tmp_path)
    place = words.index("--independent")
    with pytest.raises(ConfigError, match="need a judge that does not guide"):
        Evaluation(parser().parse_args(words[:place] + words[place + 2 :]))
    with pytest.raises(DataError, match="Nobody in .* has 3 other photos"):
        Evaluation(parser().parse_args([*words, "--references", "3"]))
    with pytest.raises(ConfigError, match="at least 1"):
        Evaluation(parser().parse_args([*words, "--guide-steps", "0"]))
