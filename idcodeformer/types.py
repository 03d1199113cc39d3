"""What flows through the core: frozen dataclasses of tensors.

Images are RGB float in [0,1], NCHW (a single image: [3,H,W]); whole pictures may be uint8 levels. Points are (x, y) at
pixel centres: the centre of the top-left pixel is (0, 0). Matrices are 2x3 and map image points to crop points.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Callable, Literal, Protocol, Sequence, get_args

import torch
from torch import Tensor

from .errors import BadOption

Order = Literal["size", "left_to_right", "score", "centre", "reference"]
Keep = Literal["all", "largest", "centre", "indices", "mask"]
Border = Literal["constant", "reflect"]
GrayMode = Literal["auto", "force", "off"]
Colour = Literal["low_band", "adain", "off"]
MaskShape = Literal["face", "square"]
Grain = Literal["auto", "on", "off"]
LargeFaces = Literal["auto", "restore", "keep", "skip"]
_CHOICES = {  # of RestoreOptions
    "colour": get_args(Colour), "mask_shape": get_args(MaskShape), "large_faces": get_args(LargeFaces),
    "grain": get_args(Grain),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Face:
    """One detected face: box [4] = x0,y0,x1,y1 in px; score a probability; landmarks [5,2] = left eye, right eye, nose,
    left and right mouth corner, as seen with the face upright. ``doubt`` says why a detector takes what it found for no
    face; such findings are reported and never restored. Tensors are float32 on the CPU."""

    box: Tensor
    score: float
    landmarks: Tensor
    doubt: str = ""

    @property
    def eye_distance(self) -> float:
        """px between the two eyes."""
        return float((self.landmarks[0] - self.landmarks[1]).norm())

    @property
    def area(self) -> float:
        """Box area in px^2."""
        return float((self.box[2] - self.box[0]).clamp(min=0) * (self.box[3] - self.box[1]).clamp(min=0))


Faces = tuple[Face, ...]  # the faces of one image; empty is normal


@dataclass(frozen=True, eq=False)
class Crops:
    """Aligned faces of a batch of images and all that pasting them back needs."""

    pixels: Tensor  # [N,3,S,S], [0,1]
    matrices: Tensor  # [N,2,3] float32, image -> crop
    image_index: Tensor  # [N] int64, which image each crop is from
    image_sizes: tuple[tuple[int, int], ...]  # (height, width) of every image

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def size(self) -> int:
        """Side of the crops in px."""
        return self.pixels.shape[-1]

    def with_pixels(self, pixels: Tensor) -> "Crops":
        return replace(self, pixels=pixels)

    def only(self, kept: Sequence[int]) -> "Crops":
        """The crops of these positions."""
        places = torch.tensor(list(kept), dtype=torch.int64)
        parts = (part[places.to(part.device)] for part in (self.pixels, self.matrices, self.image_index))
        return Crops(*parts, self.image_sizes)


@dataclass(frozen=True, eq=False)
class Embeddings:
    """[N,D] L2-normalised vectors of one recogniser. Cosine similarity is the matrix product."""

    vectors: Tensor
    recogniser: str

    def __len__(self) -> int:
        return self.vectors.shape[0]


@dataclass(frozen=True)
class DetectOptions:
    """How faces are found and which are kept."""

    confidence: float = 0.8  # probability, 0..1
    min_eye_distance: float = 5.0  # px of the input image
    max_faces: int = 0  # per image; 0 = no limit
    order: Order = "size"
    keep: Keep = "all"
    indices: tuple[int, ...] = ()  # for keep="indices", in the chosen order
    doubtful: bool = False  # detectors also hand out what they take for no face, for a report; it is never kept

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise BadOption(f"confidence is {self.confidence}; it must lie between 0 and 1.")


@dataclass(frozen=True)
class RestoreOptions:
    """What restoring and pasting may be asked."""

    w: float = 0.8  # fidelity, 0..1
    adain: bool = True  # latent colour match, as the reference inference does
    upscale: float = 1.0  # output px per input px
    strength: float = 1.0  # 0..1, blend of the restored face with what was there
    face_upsample: bool = False  # enlarge restored faces with the background upscaler before pasting
    border: Border = "reflect"  # what a crop sees outside: the mirrored picture; "constant": the reference's grey
    gray: GrayMode = "auto"
    parse_classes: tuple[int, ...] | None = None  # ParseNet classes that are pasted; None = the reference's choice
    batch_size: int = 0  # faces per forward; 0 = by free memory
    min_identity: float = 0.0  # 0..1, a restored face less similar to its input crop is not pasted; 0 = all are
    colour: Colour = "low_band"  # the input's own low band; "adain": latent match alone, the reference; "off": neither
    identity_target: float = 0.0  # 0..1, lowest w whose face is this like the person, or the input; 0 = w as given
    mask_shape: MaskShape = "face"  # what is pasted keeps to the face and off its neighbours; "square": the reference
    # Faces larger than the network: "auto" leaves sharp ones as they are, "skip" all; "keep" restores under their own
    # detail; "restore" replaces them as any other.
    large_faces: LargeFaces = "auto"
    grain: Grain = "auto"  # put back what is measured around a face; "auto": monochrome ones, and print dots

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise BadOption(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        ranges = (("w", 0, 1), ("strength", 0, 1), ("upscale", 1 / 16, 16), ("min_identity", 0, 1),
                  ("identity_target", 0, 1))  # fmt: skip
        for name, low, high in ranges:
            if not low <= getattr(self, name) <= high:
                raise BadOption(f"{name} is {getattr(self, name)}; it must lie between {low} and {high}.")
        if self.batch_size < 0:
            raise BadOption(f"batch_size is {self.batch_size}; it must be at least 1, or 0 to go by free memory.")

    @property
    def latent_match(self) -> bool:
        """Whether the codes take mean and deviation of the input's features (AdaIN)."""
        return self.adain and self.colour != "off"


@dataclass(frozen=True, eq=False)
class FaceReport:
    """One line for every face found. Scores are cosine similarities, None where not measured."""

    image: int  # index of the image in the call
    face: int  # index of the face in its image
    box: tuple[float, float, float, float]
    score: float
    status: Literal["restored", "skipped"]
    reason: str = ""  # why skipped, or what was done besides
    w: float | None = None
    id_sim_input: float | None = None  # restored face against the input crop
    id_sim_before: float | None = None  # input crop against the reference photos
    id_sim_after: float | None = None  # restored face against the reference photos
    crop: int | None = None  # index in the crops of the Restoration; None where skipped
    guidance: str = ""  # what guidance by the reference photos did, or why it did nothing; "" where none was asked for
    person: str = ""  # name of the person of a gallery that the face was taken for; "" for nobody known
    guided_by: str = ""  # recogniser that guided; "" where the face is unguided
    judged_by: str = ""  # recogniser that measured id_sim_before and id_sim_after

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True, eq=False)
class Restoration:
    """The result of FacePipeline: one entry per input image where a tuple, one per restored face where Crops."""

    images: tuple[Tensor, ...]  # [3, round(H*upscale), round(W*upscale)]; uint8 ones of uint8 that keep their size
    masks: tuple[Tensor, ...]  # [1, ...] same size: share of each pixel that was replaced
    faces: tuple[Faces, ...]
    crops_in: Crops
    crops_out: Crops
    report: tuple[FaceReport, ...] = field(default=())


Progress = Callable[[int, int, str], None]  # (done, total, what); may raise to cancel
Upscaler = Callable[[Tensor], Tensor]  # [N,3,H,W] -> [N,3,k*H,k*W]


class Detector(Protocol):
    """Images (a list of [3,H,W] in [0,1], any sizes) -> the faces of each.

    One with an attribute ``takes_levels`` that is true is given pictures of 8 bits as uint8, which saves memory.
    """

    def __call__(self, images: Sequence[Tensor], options: DetectOptions = ...) -> tuple[Faces, ...]: ...


class Restorer(Protocol):
    """Crops [N,3,S,S] in [0,1] -> the same, restored. ``size`` is S."""

    size: int

    def __call__(self, pixels: Tensor, options: RestoreOptions = ..., progress: Progress | None = None) -> Tensor: ...


def empty_crops(size: int, image_sizes: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> Crops:
    """Crops of no face at all."""
    return Crops(
        torch.zeros(0, 3, size, size, device=device),
        torch.zeros(0, 2, 3, device=device),
        torch.zeros(0, dtype=torch.int64, device=device),
        tuple(image_sizes),
    )
