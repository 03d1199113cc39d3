"""Restore Video, and Restore Faces for a batch that is one clip."""
from __future__ import annotations

import copy
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from ..idcodeformer.errors import BadOption
from ..idcodeformer.types import DetectOptions, FaceReport, Faces, RestoreOptions, Upscaler
from . import convert, host, stream
from .managed import IDCodeFormerModel, load_together, model_of
from .preview import StagedProgress
from .upscale import upscaler_of
from .values import checked

if TYPE_CHECKING:
    from ..idcodeformer.pipeline import FacePipeline
    from ..idcodeformer.restoration.codeformer import CodeFormerRestorer

_FACES_AT_ONCE = 2
_RATE = 25  # frames a second that a batch without any is taken for
CODECS = ("auto", "h264", "h265", "av1", "ffv1", "prores")
_ALL = DetectOptions(confidence=0.0, min_eye_distance=0.0)  # of faces that were chosen already
PICTURES, VIDEO = "pictures", "video"
_STAGES = {"detecting": (0.0, 0.3), "restoring": (0.3, 1.0)}


class RestoreVideo:
    """Thin: a clip as a file through VideoJob."""

    DESCRIPTION = (
        "Restores the faces of a clip and keeps them steady: faces are followed, aligned without shaking, and restored "
        "without flicker. Frames go through a few at a time, so a long clip needs no more memory than a short one. "
        "Sound, timing and size stay."
    )
    CATEGORY = "face/ID-CodeFormer"
    FUNCTION = "restore"
    RETURN_TYPES = ("VIDEO", "STRING")
    RETURN_NAMES = ("video", "report")
    OUTPUT_TOOLTIPS = ("The clip with its faces restored, for Save Video.", "A line for each track, and what was lost.")
    SEARCH_ALIASES = ["codeformer", "video face restoration", "restore video", "face enhance video", "deflicker faces"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("ID_CODEFORMER", {"tooltip": "From Load ID-CodeFormer."}),
                "video": ("VIDEO", {"tooltip": "From Load Video."}),
                "fidelity": (
                    "FLOAT",
                    {"default": 0.8, "min": 0.0, "max": 1.0, "step": 0.05, "round": 0.001, "display": "slider",
                     "tooltip": "CodeFormer's w. 1 stays closest to the input; 0 is cleanest, and freest to change "
                     "the person."},
                ),
                "steadiness": (
                    "FLOAT",
                    {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05, "round": 0.001, "display": "slider",
                     "tooltip": "How far flicker is damped where the clip itself stands still. 0 restores frame by "
                     "frame."},
                ),
                "upscale_factor": (
                    "FLOAT",
                    {"default": 1.0, "min": 0.25, "max": 8.0, "step": 0.25, "round": 0.01,
                     "tooltip": "Size of the output relative to the input. The background is enlarged by "
                     "'upscale_model', or bicubic without it."},
                ),
                "keep": (
                    ["all", "largest", "centre"],
                    {"default": "all",
                     "tooltip": "Which faces are restored. A face is chosen for as long as it is seen, so it does not "
                     "come and go."},
                ),
                "codec": (
                    list(CODECS),
                    {"default": "auto", "tooltip": "auto: the clip's own, or H.264. ffv1 is lossless, prores is for "
                     "editing."},
                ),
                "crf": (
                    "INT",
                    {"default": -1, "min": -1, "max": 63, "step": 1,
                     "tooltip": "Quality of h264, h265 and av1; lower is better. -1: a good default."},
                ),
            },
            "optional": {
                "upscale_model": ("UPSCALE_MODEL", {"tooltip": "Enlarges the background."}),
                "min_identity": (
                    "FLOAT",
                    {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01, "round": 0.001,
                     "tooltip": "A restored face less like the input face than this (cosine similarity) fades back to "
                     "the input. 0: none does."},
                ),
            },
        }  # fmt: skip

    @checked()
    def restore(
        self, model: IDCodeFormerModel, video: Any, fidelity: float, steadiness: float, upscale_factor: float,
        keep: str, codec: str, crf: int, upscale_model: Any = None, min_identity: float = 0.0,
    ) -> tuple[Any, str]:  # fmt: skip
        from ..idcodeformer.batch.settings import RestoreSettings
        from ..idcodeformer.video.job import ClipSettings, VideoJob

        if model_of(model).recogniser is None and min_identity > 0:
            raise BadOption("'min_identity' needs a recogniser, and Load ID-CodeFormer has 'none'; choose one there.")
        options = RestoreOptions(w=fidelity, upscale=upscale_factor, min_identity=min_identity)
        folder = host.temporary_folder() / f"idcodeformer_{uuid.uuid4().hex[:12]}"
        folder.mkdir(parents=True)
        progress = StagedProgress(host.Progress(100), _STAGES)
        try:
            with host.work(), upscaler_of(upscale_model) as upscaler:
                source, span = _file_of(video, folder)
                settings = RestoreSettings(options, DetectOptions(keep=keep), out=folder)
                named, quality = None if codec == "auto" else codec, None if crf < 0 else float(crf)
                clips = ClipSettings(named, quality, span, steadiness)
                job = VideoJob(_pipeline(model), settings, clips, None, upscaler, model.name)
                outcome = job.restore(source, Path(source.stem), progress)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return host.video_of(outcome.output), _report(outcome)


def _pipeline(model: IDCodeFormerModel) -> FacePipeline:
    """The parts of ``model`` in place; without ParseNet's file the whole square is put back with soft edges."""
    from ..idcodeformer.pipeline import FacePipeline

    parts = [model.restorer, model.detector(), model.recogniser, model.parser()]
    load_together(parts, model.memory(_FACES_AT_ONCE))
    _, *tools = (None if part is None else part.ready() for part in parts)
    return FacePipeline(_bare(model), *tools)


def _bare(model: IDCodeFormerModel) -> CodeFormerRestorer:
    """The restorer without a store: no frame of a clip comes twice, and each would take room there."""
    restorer = copy.copy(model.restorer.ready())
    restorer.states = None
    return restorer


def _file_of(video: Any, folder: Path) -> tuple[Path, tuple[float, float] | None]:
    """The file of a VIDEO, and the part of it that counts. What lies in memory is written first."""
    if not hasattr(video, "save_to"):
        raise BadOption(f"'video' is a {type(video).__name__}; link the output of Load Video.")
    source = video.get_stream_source() if hasattr(video, "get_stream_source") else None
    if isinstance(source, (str, Path)):
        window = video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0.0, 0.0)
        start, length = (float(part) for part in window)
        return Path(source), None if not start and not length else (start, start + length if length else float("inf"))
    file = folder / "input.mp4"
    if source is None:
        video.save_to(str(file))
    else:
        source.seek(0)
        with file.open("wb") as out:
            shutil.copyfileobj(source, out)
    return file, None


def _report(outcome: Any) -> str:
    lines = [f"{outcome.frames} frames, {outcome.status}"]
    for track in outcome.tracks:
        faces = [face for face in outcome.faces if face["track"] == track["track"] and face["id_sim_input"] is not None]
        line = f"track {track['track']} (person {track['person']}), frames {track['first']} to {track['last']}: "
        line += "restored" if track["kept"] else f"skipped, {track['reason']}"
        if faces:
            line += f", ID-Sim to the input {sum(face['id_sim_input'] for face in faces) / len(faces):.2f}"
        lines.append(line)
    return "\n".join([*lines, *outcome.notes, *([outcome.error] if outcome.error else [])])


def restore_frames(
    model: IDCodeFormerModel,
    tools: tuple[Any, Any, Any],
    frames: convert.Frames,
    options: RestoreOptions,
    detect_options: DetectOptions,
    found: Sequence[Faces] | None,
    masks: convert.Masks | None,
    upscaler: Upscaler | None,
    progress: StagedProgress,
) -> stream.Restored:
    """What stream.restore does, for frames that are one clip: by tracks, and steady.

    ``tools``: detector, recogniser and parser, each of which may be None.
    """
    from fractions import Fraction

    from ..idcodeformer.compositing.plan import output_size
    from ..idcodeformer.pipeline import FacePipeline
    from ..idcodeformer.video.analysis import of_given
    from ..idcodeformer.video.pipeline import VideoPipeline
    from ..idcodeformer.video.reading import to_pixels, to_tensor
    from ..idcodeformer.video.sequence import MemoryClip

    def get(number: int) -> np.ndarray:
        return to_pixels(frames.part(number, number + 1)[0], True)

    clip = MemoryClip(get, len(frames), frames.size, Fraction(_RATE), 16)
    video = VideoPipeline(FacePipeline(_bare(model), *tools))
    progress.part(0, 1, 1)
    if found is None:
        analysis = video.analyse(clip, detect_options, lambda done: progress(done, len(frames), "detecting"))
    else:
        analysis = of_given(clip, found, tools[1])
    tracks = video.plan(analysis, clip, detect_options if found is None else _ALL, restoring=options)
    size = output_size(*frames.size, options.upscale)
    image = convert.Output(frames, size)
    done = stream.Restored(image.image, convert.empty_mask(len(frames), size))
    done.found = len(analysis.rows)
    limit = None if masks is None else lambda number: masks.part(number, number + 1)[0]
    for frame in video.restore(clip, tracks, options, 1.0, upscaler, masks=limit):
        number = frame.source.index
        image.write(number, to_tensor(frame.pixels).to(image.image.device))
        if frame.share is not None:
            done.mask[number].copy_(frame.share[0]).clamp_(0, 1)
        _take(done, frame, number, options)
        progress(number + 1, len(frames), "restoring")
    return done


def _take(done: stream.Restored, frame: Any, number: int, options: RestoreOptions) -> None:
    for place, line in enumerate(frame.lines):
        restored = line["status"] == "restored"
        crop = sum(map(len, done.after)) if restored else None
        if restored:
            before, after = frame.crops[line["track"]]
            done.before.append(before[None].float().cpu())
            done.after.append(after[None].float().cpu())
        done.report.append(FaceReport(number, place, tuple(line["box"]), 1.0, line["status"], line["reason"], options.w,
                                      line["id_sim_input"], crop=crop))  # fmt: skip
