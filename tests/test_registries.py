"""Restorers, detectors and recognisers of other projects, each of which is one file and one row."""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from idcodeformer import FacePipeline, load_detector, load_recogniser, load_restorer
from idcodeformer.batch import ModelChoice, RestoreJob, RestoreSettings
from idcodeformer.detection import SCRFDDetector, YuNetDetector
from idcodeformer.errors import BadImage, BadOption, UnsupportedWeights
from idcodeformer.guidance.options import GuidanceOptions
from idcodeformer.networks.adaface import AdaFaceIR
from idcodeformer.networks.arcface import IResNetConfig
from idcodeformer.restoration.foreign import ForeignRestorer
from idcodeformer.types import DetectOptions, Embeddings, Face, RestoreOptions
from idcodeformer.weights.loading import build, save

pytest.importorskip("spandrel")


def shaken(network: nn.Module) -> nn.Module:
    """Weights away from their initial values, so that every one of them shows in the output."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def gfpgan(**numbers: object) -> nn.Module:
    from spandrel.architectures.GFPGAN import GFPGAN

    return shaken(GFPGAN(**({"out_size": 32, "num_style_feat": 16, "narrow": 1 / 32, "num_mlp": 2} | numbers)))


def restoreformer(**numbers: object) -> nn.Module:
    from spandrel.architectures.RestoreFormer import RestoreFormer

    small = {"n_embed": 8, "embed_dim": 16, "ch": 32, "ch_mult": (1, 1), "resolution": 32, "z_channels": 16}
    return shaken(RestoreFormer(**(small | numbers)))


@pytest.fixture(params=["gfpgan", "restoreformer"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[nn.Module, Path]:
    """A network of spandrel's and a file of its tensors as they are published."""
    network = {"gfpgan": gfpgan, "restoreformer": restoreformer}[request.param]()
    file = tmp_path / f"{request.param}.pth"
    if request.param == "gfpgan":
        torch.save({"params_ema": network.state_dict()}, file)
    else:
        torch.save({"state_dict": {f"vqvae.{k}": v for k, v in network.state_dict().items()}}, file)
    return network, file


def test_a_foreign_restorer_computes_what_its_network_does(foreign: tuple[nn.Module, Path]) -> None:
    network, file = foreign
    restorer = load_restorer(file, "cpu")
    assert isinstance(restorer, ForeignRestorer) and restorer.size == 32 and not restorer.has_fidelity
    faces = torch.rand(3, 3, 32, 32)
    arguments = {"randomize_noise": False} if "gfpgan" in file.name else {}
    with torch.no_grad():
        expected = (network(faces * 2 - 1, **arguments)[0].clamp(-1, 1) + 1) / 2
    seen: list[int] = []
    once = restorer(faces, RestoreOptions(batch_size=2), lambda done, total, what: seen.append(done))
    torch.testing.assert_close(once, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(once, restorer(faces, RestoreOptions(batch_size=2, w=0.1))) and seen == [2, 3]
    assert float(expected.std()) > 0.01


def test_foreign_files_are_converted_and_read_back(foreign: tuple[nn.Module, Path], tmp_path: Path) -> None:
    network, file = foreign
    again = build(save(build(file, "restorer"), tmp_path / "again.safetensors"), "restorer")
    assert type(again) is type(network)
    for (name, tensor), other in zip(network.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


@pytest.mark.parametrize(
    "numbers", [{"different_w": True}, {"sft_half": False, "out_size": 64}, {"out_size": 64, "channel_multiplier": 1}]
)
def test_the_sizes_of_a_gfpgan_are_read_off_its_tensors(numbers: dict[str, object], tmp_path: Path) -> None:
    network = gfpgan(**numbers)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "g.safetensors")
    assert load_restorer(tmp_path / "g.safetensors", "cpu").size == numbers.get("out_size", 32)


class Given:
    """A detector that finds one face in the middle."""

    def __call__(self, images: list[Tensor], options: DetectOptions | None = None) -> tuple[tuple[Face, ...], ...]:
        from idcodeformer.geometry.templates import ffhq_template

        points = torch.tensor(ffhq_template(60)).float() + 10
        return tuple((Face(torch.tensor([20.0, 20, 60, 60]), 0.9, points),) for _ in images)


class Mean(nn.Module):
    """A recogniser that looks at colours."""

    embedding_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.weight + 2


def test_gate_scores_and_report_are_the_same_as_for_a_codeformer(foreign: tuple[nn.Module, Path]) -> None:
    from idcodeformer.identity.recogniser import IdentityRecogniser

    recogniser = IdentityRecogniser(Mean(), "mean", "cpu")
    pipeline = FacePipeline(load_restorer(foreign[1], "cpu"), Given(), recogniser)
    picture = torch.rand(3, 80, 80)
    result = pipeline([picture])
    (line,) = result.report
    assert line.status == "restored" and line.w is None and -1 <= line.id_sim_input <= 1
    assert not torch.equal(result.images[0], picture) and torch.equal(result.images[0][:, 0], picture[:, 0])
    kept = pipeline([picture], RestoreOptions(min_identity=1.0))
    assert line.id_sim_input < 1 and kept.report[0].status == "skipped" and torch.equal(kept.images[0], picture)
    with pytest.raises(BadOption, match="Guidance needs a CodeFormer"):
        pipeline([picture], references=Embeddings(torch.ones(1, 3), "mean"), guidance=GuidanceOptions(3))


def test_the_job_takes_any_restorer(foreign: tuple[nn.Module, Path], photos: Path) -> None:
    models = ModelChoice(str(foreign[1]), recogniser="none", parser="none", device="cpu")
    data, outcome = RestoreJob(RestoreSettings(models=models)).attempt_bytes((photos / "portrait.jpg").read_bytes())
    assert data and outcome.status == "restored" and outcome.faces[0]["w"] is None


def test_what_a_foreign_restorer_cannot_do_is_said(foreign: tuple[nn.Module, Path], tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="runs in fp32"):
        load_restorer(foreign[1], "cpu", "bf16")
    with pytest.raises(BadImage, match=r"takes \[N,3,32,32\]"):
        load_restorer(foreign[1], "cpu")(torch.rand(1, 3, 64, 64))
    state = build(foreign[1]).state_dict()
    name = next(iter(state))
    torch.save({k: v for k, v in state.items() if k != name}, tmp_path / "cut.pth")
    with pytest.raises(UnsupportedWeights):
        load_restorer(tmp_path / "cut.pth", "cpu")


@pytest.mark.slow
def test_a_gfpgan_of_the_published_size_restores_512_px() -> None:
    network = gfpgan(out_size=512, num_style_feat=512, narrow=1, num_mlp=8, different_w=True, sft_half=True)
    restorer = ForeignRestorer(build(network.state_dict(), "restorer"), "cpu")
    assert restorer.size == 512 and sum(p.numel() for p in network.parameters()) > 80e6
    assert restorer(torch.rand(1, 3, 512, 512)).shape == (1, 3, 512, 512)


# ---------------------------------------------------------------- AdaFace
SMALL = IResNetConfig((1, 2, 1, 1), (4, 8, 12, 16), 24, 112)


def test_an_adaface_checkpoint_is_read_as_its_trainer_writes_it(tmp_path: Path) -> None:
    network = shaken(AdaFaceIR(SMALL))
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    state = {f"model.{k}": v for k, v in network.state_dict().items()}
    torch.save({"state_dict": state | {"head.kernel": torch.rand(24, 7)}}, tmp_path / "adaface_ir50.ckpt")
    recogniser = load_recogniser(tmp_path / "adaface_ir50.ckpt", "cpu")
    assert type(recogniser.network) is AdaFaceIR and recogniser.network.config == SMALL
    x = torch.rand(2, 3, 112, 112) * 2 - 1
    torch.testing.assert_close(recogniser.network(x), network(x))
    assert recogniser(torch.rand(2, 3, 64, 64)).vectors.shape == (2, 24)


def test_adaface_sees_blue_first() -> None:
    network = shaken(AdaFaceIR(SMALL))
    x = torch.rand(1, 3, 112, 112) * 2 - 1
    torch.testing.assert_close(network(x), network.embed(x[:, [2, 1, 0]]))
    assert not torch.allclose(network(x), network.embed(x))


def test_the_keys_of_ir_101_are_those_published() -> None:
    """Counted from the published layout: 49 units, of which 3 change the width."""
    with torch.device("meta"):
        network = AdaFaceIR(IResNetConfig((3, 13, 30, 3)))
    keys = set(network.state_dict())
    assert {"body.48.res_layer.5.running_var", "body.3.shortcut_layer.1.weight", "output_layer.3.bias"} <= keys
    assert "body.0.shortcut_layer.0.weight" not in keys and "output_layer.4.weight" not in keys
    assert network.output_layer[3].weight.shape == (512, 512 * 7 * 7)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(65.1e6, rel=0.01)  # 65 million in the paper


# ---------------------------------------------------------------- YuNet
class StandIn:
    """OpenCV's FaceDetectorYN as far as it is used: finds the white rectangle of a picture."""

    def __init__(self) -> None:
        self.size, self.threshold = (0, 0), 0.0

    def setInputSize(self, size: tuple[int, int]) -> None:
        self.size = size

    def setScoreThreshold(self, threshold: float) -> None:
        self.threshold = threshold

    def detect(self, pixels: np.ndarray) -> tuple[int, np.ndarray | None]:
        assert pixels.shape[:2] == self.size[::-1] and pixels.dtype == np.uint8
        score = float(pixels[..., 2].max()) / 255  # red is the last channel
        ys, xs = np.nonzero(pixels[..., 2] > 100)
        if len(xs) == 0 or score < self.threshold:
            return 0, None
        x, y, wide, tall = xs.min() - 0.5, ys.min() - 0.5, np.ptp(xs) + 1, np.ptp(ys) + 1
        places = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
        points = places * [wide, tall] + [x, y]
        return 1, np.array([[x, y, wide, tall, *points.ravel(), score]], np.float32)


@pytest.fixture
def yunet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file in YuNet's layout and a stand-in for what OpenCV makes of it: the published one has no package."""
    file = tmp_path / "face_detection_yunet_2023mar.onnx"
    file.write_bytes(b"onnx cls_8 obj_8 obj_16 obj_32 bbox_32 kps_32")
    creator = type("FaceDetectorYN", (), {"create": staticmethod(lambda *_: StandIn())})
    monkeypatch.setattr(cv2, "FaceDetectorYN", creator)
    return file


def test_yunet_is_told_by_its_outputs_and_maps_back(yunet: Path) -> None:
    detector = load_detector(yunet, "cpu")
    assert isinstance(detector, YuNetDetector)
    detector.steady = False
    small, large = torch.zeros(3, 100, 120), torch.zeros(3, 1280, 960)
    small[0, 20:60, 30:70] = 1.0  # red alone
    large[:, 400:720, 160:480] = 0.9
    found = detector([small, large, torch.zeros(3, 50, 50)], DetectOptions(confidence=0.5))
    assert [len(here) for here in found] == [1, 1, 0]
    assert found[0][0].box.tolist() == [29.5, 19.5, 69.5, 59.5] and found[0][0].score == 1.0
    np.testing.assert_allclose(found[1][0].box.numpy(), [159.5, 399.5, 479.5, 719.5], atol=1e-3)  # seen at half size
    np.testing.assert_allclose(found[1][0].landmarks[0].numpy(), [159.5 + 96, 399.5 + 128], atol=1e-3)
    assert len(detector([large], DetectOptions(confidence=0.95))[0]) == 0


def test_yunet_landmarks_are_seen_again(yunet: Path) -> None:
    image = torch.zeros(3, 200, 200)
    image[:, 60:140, 60:140] = 1.0
    once, again = (YuNetDetector(yunet, steady=steady)([image])[0][0] for steady in (False, True))
    assert torch.equal(once.box, again.box) and not torch.equal(once.landmarks, again.landmarks)


def test_an_onnx_of_other_outputs_is_taken_for_scrfd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(SCRFDDetector, "__init__", lambda self, path, device: made.append(path))
    (tmp_path / "det_10g.onnx").write_bytes(b"onnx 448 471 494")
    assert isinstance(load_detector(tmp_path / "det_10g.onnx", "cpu"), SCRFDDetector) and len(made) == 1


def test_a_broken_yunet_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "y.onnx").write_bytes(b"obj_32 kps_32")
    with pytest.raises(UnsupportedWeights, match="no YuNet that OpenCV"):
        load_detector(tmp_path / "y.onnx", "cpu")


def test_findings_that_do_not_belong_together_are_no_faces(yunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score without a box is a fault of the runtime; no face is left out for it in silence."""
    detector = YuNetDetector(yunet, steady=False)
    odd = np.zeros((2, 4), np.float32), np.zeros((2, 5, 2), np.float32), np.ones(1, np.float32)
    monkeypatch.setattr(detector, "find", lambda *_, **__: odd)
    with pytest.raises(ValueError):
        detector([torch.zeros(3, 64, 64)])


def test_of_many_findings_in_a_crop_the_best_are_looked_at(yunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = YuNetDetector(yunet)
    scores = np.array([0.6, 0.9, 0.7], np.float32)
    found = scores[:, None].repeat(4, 1), scores[:, None, None].repeat(5, 1).repeat(2, 2), scores
    monkeypatch.setattr(detector, "find", lambda *_, **__: found)
    seen, boxes, landmarks = detector._see(torch.zeros(1, 3, 32, 32), 2)
    assert seen[0].tolist() == boxes[0, :, 0].tolist() == landmarks[0, :, 0, 0].tolist() == pytest.approx([0.9, 0.7])
    assert detector._see(torch.zeros(1, 3, 32, 32), 5)[0][0].tolist() == pytest.approx([0.9, 0.7, 0.6, 0, 0])
