"""The arguments of every command. Nothing heavy is imported before a command runs."""
from __future__ import annotations

import argparse
from typing import get_args

from ..types import Border, Colour, Grain, GrayMode, LargeFaces, MaskShape, Order
from .bulk import add_bulk_parser
from .models import add_models_parser
from .video import add_clip_options

COMMANDS = ("restore", "detect", "score", "people", "demo", "bulk", "models")


def build_parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog="python -m idcodeformer",
        description="Blind face restoration that keeps the person.",
        epilog="Without a command, 'restore' is meant. Underscores may stand for dashes in every option.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="{" + ",".join(COMMANDS) + "}")
    _add_restore(commands)
    _add_detect(commands)
    _add_score(commands)
    _add_people(commands)
    _add_demo(commands)
    add_bulk_parser(commands, (_add_recogniser, _add_device, _add_faces))
    add_models_parser(commands)
    return parser


def _add_restore(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("restore", help="restore the faces of files and folders", allow_abbrev=False)
    sub.set_defaults(handler=_restore)
    _add_inputs(sub)
    files = sub.add_argument_group("files")
    files.add_argument("-o", "--output", "--output-path", metavar="OUT", help="default results/<name>_<w>; holds "
                       "final_results and, where asked, restored_faces, cropped_faces and compare")
    files.add_argument("--overwrite", action="store_true", help="replace existing results")
    files.add_argument("--skip-existing", action="store_true", help="go on where an earlier run stopped")
    files.add_argument("--format", choices=("png", "jpg", "webp"), default=None,
                       help="of the results; default png, and an animation keeps its own")
    files.add_argument("--suffix", default="", help="added to the names of the results")
    files.add_argument("--save-crops", action="store_true", help="also write faces; of clips the sharpest frames")
    files.add_argument("--compare", action="store_true", help="also write a before/after sheet per picture")
    files.add_argument("--json", metavar="FILE", help="write a report of every face; - for standard output")
    look = sub.add_argument_group("restoring")
    look.add_argument("-w", "--w", "--fidelity-weight", dest="w", type=float, default=0.8, metavar="0..1",
                      help="fidelity: 0 looks best, 1 stays closest to the input; default 0.8")
    look.add_argument("-s", "--upscale", type=float, default=1.0, help="output px per input px, default 1")
    look.add_argument("--aligned", "--has-aligned", action="store_true", help="inputs are aligned crops of one face")
    look.add_argument("--face-upsample", action="store_true", help="enlarge the faces with --bg-upsampler as well")
    look.add_argument("--bg-upsampler", metavar="FILE", help="an upscaler that spandrel loads, or realesrgan_x2plus")
    look.add_argument("--bg-tile", type=int, default=400, metavar="PX", help="upscaler tile, default 400; 0: none")
    look.add_argument("--strength", type=float, default=1.0, metavar="0..1", help="blend with the input, default 1")
    look.add_argument("--gray", choices=get_args(GrayMode), default="auto", help="keep monochrome faces so")
    look.add_argument("--colour", "--color", choices=get_args(Colour), default="low_band", help="low_band: the broad "
                      "colours are the input's, and where it is hardly degraded all that it shows; adain: the latent "
                      "match alone, as the reference; off: neither")
    look.add_argument("--large-faces", choices=get_args(LargeFaces), default="auto", help="faces that the network "
                      "would soften: auto leaves those as sharp as it, and small ones as sharp as they can be "
                      "unless they are enlarged; skip all larger ones; keep restores under their own detail; restore "
                      "softens them")
    look.add_argument("--grain", choices=get_args(Grain), default="auto", help="put back grain, halftone and paper "
                      "measured around each face; auto: in monochrome ones, and the dots of colour prints")
    look.add_argument("--border", choices=get_args(Border), default="reflect", help="what a crop sees "
                      "outside the picture: reflect mirrors it; constant is the reference's grey")
    look.add_argument("--mask-shape", choices=get_args(MaskShape), default="face", help="face: what is pasted keeps to "
                      "the face and off its neighbours; square: the whole crop, as the reference")
    look.add_argument("--no-hair", action="store_true", help="leave hair as it is (needs a parser)")
    look.add_argument("--min-identity", type=float, default=0.0, metavar="0..1",
                      help="leave a face as it was where its ID-Sim to the input would fall below this; default 0")
    look.add_argument("--target-identity", type=float, default=0.0, metavar="0..1", help="for each face the lowest w "
                      "whose result is this like the person on the photos, or like the input without; -w is not used")
    _add_guidance(sub.add_argument_group("guidance by photos of the person"))
    add_clip_options(sub)
    models = sub.add_argument_group("models")
    models.add_argument("--model", metavar="NAME", help="restorer: a name or a file; default codeformer where it has "
                        "been downloaded, else the built-in mini_id_codeformer")
    models.add_argument("--parser", default="auto", metavar="NAME",
                        help="face parser: a name, a file or none; default parsenet if there, else mini_parser")
    models.add_argument("--batch-size", type=int, default=0, metavar="FACES", help="per forward; 0 = by free memory")
    models.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    _add_recogniser(models)
    _add_device(models)
    _add_faces(sub)


def _add_guidance(group) -> None:
    group.add_argument("--reference", nargs="+", metavar="PHOTO", help="photos of the person, to score against")
    _add_gallery(group)
    group.add_argument("--guide", type=int, default=0, metavar="STEPS",
                       help="steps that bring a face nearer to the person on the photos, e.g. 15; default 0")
    group.add_argument("--guide-strength", type=float, default=1.0, metavar="0..1", help="how near, default 1")
    group.add_argument("--guide-by", metavar="NAME", help="recogniser that guides; default another one than "
                       "--recogniser where there is one, so that this can judge")
    group.add_argument("--judge", metavar="NAME", help="recogniser that scores; --recogniser then guides")
    group.add_argument("--force-guide", action="store_true", help="guide faces that do not look like the person, too")


def _add_gallery(group) -> None:
    group.add_argument("--people", metavar="FOLDER", help="a folder with a sub-folder of photos for each person, or a "
                       "file that 'people' made of it: faces are named, one person to one face")


def _add_inputs(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("inputs", nargs="*", metavar="IN", help="picture files and folders")
    sub.add_argument("-i", "--input-path", action="append", default=[], metavar="IN", help="the same")
    sub.add_argument("--recursive", action="store_true", help="sub-folders as well")
    sub.add_argument("--debug", action="store_true", help="show where an error came from")


def _add_faces(sub: argparse.ArgumentParser) -> None:
    faces = sub.add_argument_group("faces")
    faces.add_argument("--detector", "--detection-model", default="retinaface_mobile0.25", metavar="NAME",
                       help="retinaface_mobile0.25 (built in), retinaface_resnet50, scrfd_10g, or a weight file")
    faces.add_argument("--confidence", type=float, default=0.8, metavar="0..1", help="lowest probability, default 0.8")
    faces.add_argument("--min-eye-distance", type=float, default=5.0, metavar="PX", help="default 5")
    faces.add_argument("--max-faces", type=int, default=0, metavar="N", help="per picture; 0 = no limit")
    faces.add_argument("--order", choices=get_args(Order), default="size")
    faces.add_argument("--keep", choices=("all", "largest", "centre", "person"), default="all",
                       help="person: of clips, those who are on --reference or in --people")
    faces.add_argument("--only-center-face", action="store_true", help="same as --keep centre")


def _add_recogniser(group) -> None:
    group.add_argument("--recogniser", "--recognizer", default="mini_recogniser", metavar="NAME",
                       help="measures ID-Sim: a name, a file or none; default mini_recogniser (built in)")


def _add_device(group) -> None:
    group.add_argument("--device", help="cuda, cuda:1, mps or cpu; default the best there is")


def _add_looking(sub: argparse.ArgumentParser) -> None:
    """Who is looked for, by which networks, and which faces count."""
    _add_gallery(sub)
    _add_recogniser(sub)
    _add_device(sub)
    _add_faces(sub)


def _add_detect(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("detect", help="list the faces of pictures", allow_abbrev=False)
    sub.set_defaults(handler=_detect)
    _add_inputs(sub)
    sub.add_argument("--draw", metavar="FOLDER", help="write the pictures with their faces marked")
    sub.add_argument("--overwrite", action="store_true", help="replace existing pictures")
    sub.add_argument("--json", metavar="FILE", help="write the faces as JSON; - for standard output")
    _add_looking(sub)


def _add_score(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("score", help="is this the same person? cosine similarity of faces", allow_abbrev=False)
    sub.set_defaults(handler=_score)
    sub.add_argument("reference", help="picture of the person (its largest face counts)")
    sub.add_argument("candidates", nargs="+", help="pictures to compare; every face is scored, the most alike counts")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing report")
    sub.add_argument("--threshold", type=float, default=0.35, help="same person from here on, default 0.35")
    sub.add_argument("--json", metavar="FILE", help="write the scores as JSON; - for standard output")
    sub.add_argument("--debug", action="store_true", help="show where an error came from")
    _add_looking(sub)


def _add_people(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("people", help="embed the people of a folder, and name photos that do not belong",
                              allow_abbrev=False)
    sub.set_defaults(handler=_people)
    sub.add_argument("folder", help="holds a sub-folder of photos for each person; or a file made from one")
    sub.add_argument("-o", "--output", metavar="FILE", help="write the people as .safetensors")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing file")
    sub.add_argument("--json", metavar="FILE", help="write people and doubtful photos as JSON; - for standard output")
    sub.add_argument("--detector", "--detection-model", default="retinaface_mobile0.25", metavar="NAME")
    sub.add_argument("--debug", action="store_true", help="show where an error came from")
    _add_recogniser(sub)
    _add_device(sub)


def _add_demo(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("demo", help="degrade photographs, restore and guide them, show and score",
                              allow_abbrev=False)
    sub.set_defaults(handler=_demo)
    sub.add_argument("-o", "--output", default="demo-output", metavar="FOLDER")
    sub.add_argument("--model", default="mini_id_codeformer", metavar="NAME", help="restorer: a name or a file")
    sub.add_argument("--control", default="mini_codeformer", metavar="NAME", help="the CodeFormer to compare with")
    sub.add_argument("--guide", type=int, default=15, metavar="STEPS", help="steps of guidance, default 15")
    sub.add_argument("--judge", metavar="NAME", help="recogniser that scores; default another one than --recogniser, "
                     "which guides, where there is one")
    sub.add_argument("--picture", metavar="FILE", help="also write the faces as a small JPEG (docs/guided.jpg)")
    sub.add_argument("-w", "--w", dest="w", type=float, default=0.8, metavar="0..1")
    sub.add_argument("--seed", type=int, default=2022, help="of the degradation")
    sub.add_argument("--debug", action="store_true", help="show where an error came from")
    _add_recogniser(sub)
    sub.set_defaults(recogniser="mobileface_v2")  # it guides, so that mini_recogniser can score
    _add_device(sub)


def _restore(args: argparse.Namespace) -> int:
    from .restore import run_restore

    return run_restore(args)


def _detect(args: argparse.Namespace) -> int:
    from .faces import run_detect

    return run_detect(args)


def _score(args: argparse.Namespace) -> int:
    from .faces import run_score

    return run_score(args)


def _people(args: argparse.Namespace) -> int:
    from .people import run_people

    return run_people(args)


def _demo(args: argparse.Namespace) -> int:
    from .demo import run_demo

    return run_demo(args)
