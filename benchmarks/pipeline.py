"""All that happens around the networks, stage by stage, against the published procedure: python -m benchmarks.pipeline

One 1080p picture with eight faces. Both sides run in turn in one process. The time inside networks is taken off on both
sides (RetinaFace runs for real in both; the restoring network and ParseNet are stand-ins that return at once).
"""
from __future__ import annotations

import argparse
from typing import Callable

import numpy as np
import torch

from idcodeformer import FacePipeline, RestoreOptions, load_detector
from idcodeformer.compositing.blend import paste
from idcodeformer.files.pixels import planes, to_levels
from idcodeformer.geometry.alignment import align
from idcodeformer.restoration.codeformer import CodeFormerRestorer
from idcodeformer.types import Crops, Faces

from . import reference
from .common import CLOCKS, arguments, finish, interleaved, set_threads, table
from .scenes import Clocked, Echo, crowd, face_labels, narrow_network


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """A decoded file, RGB uint8 [H,W,3], as the pipeline takes it."""
    return planes(lambda a, b: image[a:b], *image.shape, 255, levels=True)[0]


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """What is written to a file."""
    return to_levels(image)


class Ours:
    """The package, with networks that can be left out of the count."""

    def __init__(self, image: np.ndarray, clock: Callable[[], float]):
        self.image = image
        self.detector = load_detector(device="cpu")
        self.detector.network = self.network = Clocked(self.detector.network, clock)
        self.restorer = CodeFormerRestorer(narrow_network(), "cpu", "fp32")
        self.restorer._engine = Echo()
        self.tensor = to_tensor(image)
        self.faces: tuple[Faces, ...] = self.detector([self.tensor])
        self.crops: Crops = align([self.tensor], self.faces, 512)
        self.restored = self.restorer(self.crops.pixels)
        self.labels = face_labels(len(self.crops))  # made beforehand, as the reference's are

    def parser(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.labels[: len(pixels)]

    def whole(self, upscale: float) -> np.ndarray:
        pipeline = FacePipeline(self.restorer, self.detector, parser=self.parser)
        result = pipeline([to_tensor(self.image)], RestoreOptions(upscale=upscale), in_place=True)
        return to_uint8(result.images[0])

    def stages(self, upscale: float) -> dict[str, Callable[[], object]]:
        options = RestoreOptions(upscale=upscale)
        return {
            "detect": lambda: self.detector([self.tensor]),
            "align": lambda: align([self.tensor], self.faces, 512),
            "restore": lambda: self.restorer(self.crops.pixels, options),
            "paste": lambda: paste([self.tensor], self.crops, self.restored, options),
            "paste, parsed": lambda: paste([self.tensor], self.crops, self.restored, options, self.parser),
            "whole": lambda: self.whole(upscale),
        }


class Reference:
    """The published procedure with the same detection network."""

    def __init__(self, image: np.ndarray, network: torch.nn.Module, clock: Callable[[], float]):
        self.image = np.ascontiguousarray(image[:, :, ::-1])
        self.network = Clocked(network, clock)
        self.landmarks = self.detect()
        self.crops, self.matrices = zip(*(reference.align(self.image, points) for points in self.landmarks))
        self.restored = self.restore()
        self.labels = [labels.numpy() for labels in face_labels(len(self.crops))]

    @torch.no_grad()
    def detect(self) -> list[np.ndarray]:
        x, scale = reference.detection_input(self.image)
        return reference.detections(self.network(x), tuple(x.shape[2:]), scale)

    def restore(self) -> list[np.ndarray]:
        echo = Echo()
        return [reference.network_output(echo.decode(reference.network_input(c), 0.5, True)) for c in self.crops]

    def whole(self, upscale: int) -> np.ndarray:
        crops, matrices = zip(*(reference.align(self.image, points) for points in self.detect()))
        echo = Echo()
        faces = [reference.network_output(echo.decode(reference.network_input(c), 0.5, True)) for c in crops]
        return reference.paste(self.image, faces, matrices, self.labels, upscale)

    def stages(self, upscale: int) -> dict[str, Callable[[], object]]:
        return {
            "detect": self.detect,
            "align": lambda: [reference.align(self.image, points) for points in self.landmarks],
            "restore": self.restore,
            "paste": lambda: reference.paste(self.image, self.restored, self.matrices, None, upscale),
            "paste, parsed": lambda: reference.paste(self.image, self.restored, self.matrices, self.labels, upscale),
            "whole": lambda: self.whole(upscale),
        }


def without_network(run: Callable[[], object], network: Clocked, clock: Callable[[], float]) -> Callable[[], float]:
    """Seconds of ``run`` outside of the network."""

    def measured() -> float:
        network.seconds, start = 0.0, clock()
        run()
        return clock() - start - network.seconds

    return measured


def compare(ours: Ours, theirs: Reference, upscale: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """One row per stage: seconds of both outside of the networks."""
    now, rows = CLOCKS[options.clock], []
    for stage in ours.stages(upscale):
        pair = {
            "reference": without_network(theirs.stages(upscale)[stage], theirs.network, now),
            "ours": without_network(ours.stages(upscale)[stage], ours.network, now),
        }
        seconds = interleaved(pair, options.rounds, options.statistic)
        ratio = seconds["reference"] / seconds["ours"]
        rows.append({"upscale": upscale, "stage": stage, **seconds, "ratio": ratio})
    return rows


def main() -> None:
    options = arguments(__doc__).parse_args()
    set_threads(options.threads)
    image = to_uint8(crowd())
    ours = Ours(image, CLOCKS[options.clock])
    theirs = Reference(image, ours.network.network, CLOCKS[options.clock])
    counts = len(ours.faces[0]), len(theirs.landmarks)
    print(f"1920 x 1080, faces found: {counts[0]} by the package, {counts[1]} by the reference procedure")
    results: dict[str, object] = {"faces": counts}
    for upscale in (1, 2):
        rows = compare(ours, theirs, upscale, options)
        results[f"x{upscale}"] = rows
        lines = [[r["stage"], r["reference"] * 1e3, r["ours"] * 1e3, r["ratio"]] for r in rows]
        table(f"Output x{upscale}, ms outside of the networks", ["stage", "reference", "ours", "ratio"], lines)
    difference = np.abs(ours.whole(1).astype(int) - theirs.whole(1)[:, :, ::-1].astype(int))
    results["grey_levels"] = {"mean": float(difference.mean()), "max": int(difference.max())}
    print(f"\nDifference of the results at x1: mean {difference.mean():.3f}, max {difference.max()} grey levels")
    finish("pipeline", results, options.json)


if __name__ == "__main__":
    main()
