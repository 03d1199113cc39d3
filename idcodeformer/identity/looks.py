"""What is known of each photo of a person, its face's embedding above all, and the file that remembers it."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import BadImage, CorruptWeights, UnsafeWeights, UnsupportedWeights
from ..files.origin import fingerprint
from ..geometry.alignment import align
from ..types import DetectOptions, Detector, Faces
from .recogniser import IdentityRecogniser

CACHE_KIND = "idcodeformer_looks"
_DETAIL_SIDE = 128  # px of the crop in which detail is measured


@dataclass(frozen=True, eq=False)
class Look:
    """One photo: the embedding of its largest face, None where it shows none, and a figure that falls with blur."""

    vector: Tensor | None  # [D], L2-normalised
    detail: float


def largest_faces(photos: Sequence[Tensor], detector: Detector) -> list[Faces]:
    """The largest face of each photo [3,H,W]; an empty tuple where none is shown."""
    return [tuple(sorted(here, key=lambda f: -f.area)[:1]) for here in detector(photos, DetectOptions())]


def look_at(photos: Sequence[Tensor], detector: Detector, recogniser: IdentityRecogniser) -> list[Look]:
    """A look at each photo [3,H,W] in [0,1]."""
    largest = largest_faces(photos, detector)
    shown = [number for number, here in enumerate(largest) if here]
    found = [Look(None, 0.0)] * len(photos)
    if shown:
        vectors = recogniser.embed_faces([photos[n] for n in shown], [largest[n] for n in shown]).vectors.cpu()
        for number, vector in zip(shown, vectors):
            found[number] = Look(vector, _detail(photos[number], largest[number]))
    return found


def _detail(photo: Tensor, faces: Faces) -> float:
    """Contrast between blurs of 1 and 2 px as a share of the face's: blur lowers it, noise hardly counts."""
    import cv2

    luma = align([photo], [faces], _DETAIL_SIDE).pixels[0].mean(0).cpu().numpy()[24:112, 24:104]
    band = cv2.GaussianBlur(luma, (0, 0), 1) - cv2.GaussianBlur(luma, (0, 0), 2)
    return float(band.std() / max(float(luma.std()), 1e-6))


class RememberedLooks:
    """Looks at the photos below ``folder``, kept in a file there, so that a gallery is embedded once.

    The file holds embeddings and names, no pictures. It is of one recogniser, one kind of detector and one version of
    this package; a photo whose time or contents have changed is looked at again.
    """

    def __init__(self, folder: Path, detector: Detector, recogniser: IdentityRecogniser):
        from .. import __version__

        self.folder, self.detector, self.recogniser = folder, detector, recogniser
        self.file = folder / f".idcodeformer-{recogniser.digest[:16]}.safetensors"
        self.texts = {"kind": CACHE_KIND, "version": __version__, "recogniser_sha256": recogniser.digest,
                      "detector": type(detector).__name__}  # fmt: skip
        self.known = self._read()
        self.used: dict[str, tuple[list, Look]] = {}

    def __call__(self, files: Sequence[Path]) -> list[Look]:
        """A look at each photo. Raises what reading a picture raises."""
        from ..files.reading import read

        stamps = [_stamp(file) for file in files]
        names = [file.relative_to(self.folder).as_posix() for file in files]
        held = [self.known.get(name) for name in names]
        new = [n for n, (entry, stamp) in enumerate(zip(held, stamps)) if entry is None or entry[0] != stamp]
        photos = [read(files[n]).frames[0] for n in new]
        seen = dict(zip(new, look_at(photos, self.detector, self.recogniser) if new else ()))
        looks = [seen[n] if n in seen else entry[1] for n, entry in enumerate(held)]
        self.used |= dict(zip(names, zip(stamps, looks)))
        return looks

    def save(self) -> None:
        """Keep the looks that were used, where they are not what the file holds. A folder that cannot be written keeps
        nothing: the next run looks again."""
        if {n: e[0] for n, e in self.used.items()} == {n: e[0] for n, e in self.known.items()}:
            return
        from safetensors.torch import save

        from ..files.writing import write_bytes

        entries = [[name, *stamp, look.vector is not None, look.detail] for name, (stamp, look) in self.used.items()]
        vectors = [look.vector for _, look in self.used.values() if look.vector is not None]
        tensors = {"vectors": torch.stack(vectors) if vectors else torch.zeros(0, 1)}
        try:
            write_bytes(self.file, save(tensors, self.texts | {"photos": json.dumps(entries)}), overwrite=True)
        except BadImage:  # read-only, or full: what was asked for does not need the file
            return

    def _read(self) -> dict[str, tuple[list, Look]]:
        """Name -> (stamp, look); nothing where the file is missing, damaged, or of other settings."""
        from ..weights.reading import read_state

        try:
            if not self.file.is_file():
                return {}
            state, texts = read_state(self.file)
            if {key: texts.get(key) for key in self.texts} != self.texts:
                return {}
            vectors = iter(F.normalize(state["vectors"].float(), dim=1))
            entries = json.loads(texts["photos"])
            return {str(n): ([t, h], Look(next(vectors) if shown else None, float(d))) for n, t, h, shown, d in entries}
        except (CorruptWeights, UnsafeWeights, UnsupportedWeights, OSError):
            return {}
        except (KeyError, TypeError, ValueError, StopIteration, RecursionError):
            return {}


def _stamp(file: Path) -> list:
    """The time of the last change in ns, and what ``fingerprint`` tells of the contents."""
    try:
        return [file.stat().st_mtime_ns, fingerprint(file)]
    except OSError as error:
        raise BadImage(f"{file} cannot be read ({error.strerror}); check its permissions.") from error
