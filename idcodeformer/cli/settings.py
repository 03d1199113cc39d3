"""Arguments as the options of the core and the settings of a job, checked before a model is loaded."""
from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..batch import ModelChoice, RestoreSettings
from ..errors import BadOption
from ..guidance.options import GuidanceOptions
from ..types import DetectOptions, RestoreOptions


def named(args: argparse.Namespace) -> list[str]:
    named = [*args.inputs, *args.input_path]
    if not named:
        raise BadOption("No input is named; give picture files or folders: restore photo.jpg -o results")
    if "" in named:  # pathlib takes it for the current folder
        raise BadOption("An input has an empty name, as a shell makes of an unset variable; name a file or a folder.")
    return named


def options_of(args: argparse.Namespace) -> tuple[RestoreOptions, DetectOptions]:
    """The core's options, checked. Raises BadOption with the range."""
    from ..compositing.parsing import REFERENCE_CLASSES_WITHOUT_HAIR
    from ..restoration.upscaling import check_tile

    if args.batch_size < 0:
        raise BadOption(f"--batch-size is {args.batch_size}; give a number of faces, or 0 for what fits the memory.")
    check_tile(args.bg_tile)
    if args.guide and not args.reference and not args.people and not args.own_reference:
        raise BadOption("--guide needs --reference PHOTO, other photos of the person, or --people FOLDER.")
    if args.reference and args.people:
        raise BadOption("--reference and --people were given; put the photos into a folder of --people.")
    if args.no_hair and args.parser == "none":
        raise BadOption("--no-hair needs a face parser; leave --parser none out.")
    options = RestoreOptions(
        w=args.w,
        upscale=args.upscale,
        strength=args.strength,
        face_upsample=args.face_upsample,
        border=args.border,
        gray=args.gray,
        parse_classes=REFERENCE_CLASSES_WITHOUT_HAIR if args.no_hair else None,
        batch_size=args.batch_size,
        min_identity=args.min_identity,
        colour=args.colour,
        identity_target=args.target_identity,
        mask_shape=args.mask_shape,
        large_faces=args.large_faces,
        grain=args.grain,
    )
    return options, detect_options_of(args)


def settings_of(
    args: argparse.Namespace, out: Path, options: RestoreOptions, detect_options: DetectOptions
) -> RestoreSettings:
    """The arguments as settings of a job. Raises BadOption."""
    scorer = args.judge or args.recogniser
    for name in ("reference", "people", "target_identity"):
        if getattr(args, name) and scorer.lower() == "none":
            raise BadOption(f"--{name.replace('_', '-')} needs a recogniser; leave --recogniser none out.")
    models = ModelChoice(
        restorer=args.model or "",
        detector=args.detector,
        recogniser=scorer,
        parser=args.parser,
        guide=args.guide_by or (args.recogniser if args.judge else ""),
        upscaler=args.bg_upsampler or "",
        upscaler_tile=args.bg_tile,
        device=args.device,
        precision=args.precision,
    )
    return RestoreSettings(
        options,
        detect_options,
        models,
        references=tuple(args.reference or ()),
        guidance=GuidanceOptions(0 if args.own_reference else args.guide, args.guide_strength, force=args.force_guide),
        aligned=args.aligned,
        out=out,
        format=args.format,
        suffix=args.suffix,
        overwrite=args.overwrite,
        skip_existing=args.skip_existing,
        save_crops=args.save_crops,
        compare=args.compare,
        people=args.people,
    )


def detect_options_of(args: argparse.Namespace) -> DetectOptions:
    for name, value in (("max-faces", args.max_faces), ("min-eye-distance", args.min_eye_distance)):
        if value < 0:
            raise BadOption(f"--{name} is {value:g}; it must not be negative.")
    if args.order == "reference" and not getattr(args, "reference", None):
        raise BadOption("--order reference needs --reference PHOTO.")
    return DetectOptions(
        confidence=args.confidence,
        min_eye_distance=args.min_eye_distance,
        max_faces=args.max_faces,
        order=args.order,
        keep="centre" if args.only_center_face else args.keep,
    )


def default_output(args: argparse.Namespace) -> Path:
    """results/<folder>_<w>, or results/test_img_<w> for single files, as the reference names them."""
    named = [Path(path) for path in [*args.inputs, *args.input_path]]
    folder = named[0].resolve().name if len(named) == 1 and os.path.isdir(named[0]) else "test_img"
    return Path("results") / f"{folder}_{args.w:g}"
