"""Adds what this pack needs and a Python lacks. Run by ComfyUI-Manager, by the WebUI at every start, or by hand.

    python install.py [--dry-run] [--without-insightface]

It never replaces or removes a package that works: everything installed is pinned while pip plans, what would come
beside a package of the same purpose (a second OpenCV, a second ONNX Runtime) is left out, and torch is the host's
business. insightface (optional, the SCRFD detector) comes with exactly one ONNX Runtime: the GPU build only where CUDA
is. Weights are never downloaded here; small ones are part of the pack. Importing this file does nothing.
"""
from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PACK = Path(__file__).resolve().parent
# import name -> what pip calls it; torch and torchvision are looked for, not installed
NEEDED = {
    "facexlib": "facexlib>=0.3.0",
    "cv2": "opencv-python",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "PIL": "pillow",
    "scipy": "scipy",
    "tqdm": "tqdm",
}
HOST = ("torch", "torchvision")
ONE_OF_A_KIND = {"opencv-": "cv2", "onnxruntime": "onnxruntime"}  # several distributions, one module


class InstallError(Exception):
    """One sentence on what stands in the way and what to do."""


def say(text: str) -> None:
    print(f"[ID-CodeFormer] {text}", flush=True)


def has(module: str) -> bool:
    """Whether ``module`` could be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Version of every distribution this Python sees, by canonical name."""
    found = importlib.metadata.distributions()
    return {canonical(d.metadata["Name"]): d.version for d in found if d.metadata and d.metadata["Name"]}


def has_cuda() -> bool:
    """Whether an NVIDIA driver and a CUDA build of torch are here. torch itself is too slow to import for that."""
    version = installed().get("torch", "")
    cuda_torch = "+cpu" not in version and "+rocm" not in version and "+xpu" not in version
    if not cuda_torch or platform.system() == "Darwin":
        return False
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def choose_onnxruntime(present: dict[str, str], cuda: bool, system: str, machine: str) -> str | None:
    """The ONNX Runtime to add; None where one of any build is there already."""
    if any(name.startswith("onnxruntime") for name in present):
        return None
    gpu_built_for = {("Linux", "x86_64"), ("Windows", "AMD64")}
    return "onnxruntime-gpu" if cuda and (system, machine) in gpu_built_for else "onnxruntime"


def choose_opencv(system: str) -> str:
    """The window-less build where a Linux has no GL library, because the other one cannot be imported there."""
    if system == "Linux":
        try:
            ctypes.CDLL("libGL.so.1")
        except OSError:
            return "opencv-python-headless"
    return "opencv-python"


def keep_only_additions(planned: list[tuple[str, str]], present: dict[str, str], chosen: set[str]) -> list[str]:
    """name==version of what may be added: nothing that is there, nothing of the host, one distribution of a kind.

    ``chosen`` names the distributions that were picked on purpose among those that share a module.
    """
    keep = []
    for name, version in planned:
        name = canonical(name)
        if name in present or name in HOST or name.startswith(("nvidia-", "triton")):
            continue
        kind = next((prefix for prefix in ONE_OF_A_KIND if name.startswith(prefix)), None)
        if kind and (name not in chosen or any(other.startswith(kind) for other in present)):
            continue
        keep.append(f"{name}=={version}")
    return keep


def index_options() -> list[str]:
    """The package index that the WebUIs' launchers take from $INDEX_URL."""
    return ["--index-url", os.environ["INDEX_URL"]] if under_webui() and os.environ.get("INDEX_URL") else []


def pip(*arguments: str) -> subprocess.CompletedProcess:
    flags = ["-s"] if sys.flags.no_user_site else []
    command = [sys.executable, *flags, "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]
    command += index_options() if arguments[:1] == ("install",) else []
    return subprocess.run(command, capture_output=True, text=True)


def plan(wanted: list[str], present: dict[str, str]) -> list[tuple[str, str]]:
    """(name, version) of all that pip would add for ``wanted`` with every installed version held."""
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder, "held.txt")
        held.write_text("\n".join(f"{name}=={version}" for name, version in present.items()), encoding="utf-8")
        report = Path(folder, "report.json")
        options = ("--dry-run", "--quiet", "--report", str(report), "-c", str(held), "--prefer-binary")
        run = pip("install", *options, *wanted)
        if run.returncode != 0:
            raise InstallError(f"pip finds no way to add {', '.join(wanted)}: {last_line(run.stderr)}")
        entries = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [(entry["metadata"]["name"], entry["metadata"]["version"]) for entry in entries]


def last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip() and not line.startswith("WARNING")]
    return lines[-1].strip() if lines else "no reason given"


def add(wanted: list[str], present: dict[str, str], dry_run: bool) -> None:
    """Install ``wanted`` and what they need, as additions only."""
    if not has("pip"):
        raise InstallError(f"this Python has no pip; add by hand what is missing: {' '.join(wanted)}")
    additions = keep_only_additions(plan(wanted, present), present, {canonical(name) for name in wanted})
    if not additions:
        return
    say(("would add " if dry_run else "adding ") + ", ".join(additions))
    if dry_run:
        return
    run = pip("install", "--quiet", "--no-deps", *additions)
    if run.returncode != 0:
        raise InstallError(f"pip could not add {', '.join(additions)}: {last_line(run.stderr)}")
    importlib.invalidate_caches()


def imports(module: str) -> bool:
    """Whether a Python like this one can import ``module``."""
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 0


def mend_opencv(dry_run: bool) -> None:
    """Write the window-less cv2 over one that cannot be imported because this Linux has no GL library.

    Both builds share one folder, and who installs requirements.txt line by line (ComfyUI-Manager before it runs this
    file; pip for facexlib) puts the windowed one over a window-less one.
    """
    present = installed()
    windowed = [name for name in ("opencv-python", "opencv-contrib-python") if name in present]
    if not windowed or not has("cv2") or choose_opencv(platform.system()) == "opencv-python" or imports("cv2"):
        return
    headless = next((n for n in ("opencv-contrib-python-headless", "opencv-python-headless") if n in present), None)
    name = headless or f"{windowed[0]}-headless"
    wanted = f"{name}=={present[headless or windowed[0]]}"
    how = "would write" if dry_run else "writing"
    say(f"cv2 of {windowed[0]} needs libGL, which is not here; {how} {wanted} over it")
    if dry_run:
        return
    run = pip("install", "--quiet", "--no-deps", "--force-reinstall", wanted)
    if run.returncode != 0 or not imports("cv2"):
        reason = last_line(run.stderr) if run.returncode else "it still cannot be imported"
        raise InstallError(f"cv2 does not work ({reason}); add libGL, on Debian: apt install libgl1")


def under_webui() -> bool:
    """The WebUIs run this file at every start, with their own folder on the path (SD.Next has installer.py there)."""
    return has("launch") and (has("modules.launch_utils") or has("installer"))


def report_weights() -> None:
    built_in = sorted(path.stem for path in (PACK / "idcodeformer/weights/embedded").glob("*.safetensors"))
    say(f"built-in weights: {', '.join(built_in) or 'none (this copy of the pack is incomplete; clone it again)'}.")
    say("larger ones are downloaded only when you ask: see 'python -m idcodeformer models list' in the pack's folder.")


def install(dry_run: bool, with_insightface: bool) -> int:
    """Exit status 0 where restoring works after this call; insightface is optional and never changes it."""
    present = installed()
    missing_host = [name for name in HOST if not has(name)]
    if missing_host:
        say(f"{' and '.join(missing_host)} missing: install PyTorch first (https://pytorch.org/get-started/locally).")
        return 1
    missing = [choose_opencv(platform.system()) if m == "cv2" else name for m, name in NEEDED.items() if not has(m)]
    try:
        if missing:
            add(missing, present, dry_run)
        else:
            say("everything needed is there.")
        mend_opencv(dry_run)
    except InstallError as error:
        say(str(error))
        return 1
    if with_insightface:
        add_insightface(dry_run)
    report_weights()
    return 0


def add_insightface(dry_run: bool) -> None:
    present = installed()
    runtimes = sorted(name for name in present if name.startswith("onnxruntime"))
    if len(runtimes) > 1:
        say(f"{' and '.join(runtimes)} are installed together, which loses CUDA; keep one: pip uninstall the others.")
    runtime = choose_onnxruntime(present, has_cuda(), platform.system(), platform.machine())
    if has("insightface") and runtime is None:
        say(f"insightface is there, with {runtimes[0]}.")
        return
    try:
        add([name for name in ("insightface", runtime) if name], present, dry_run)
    except InstallError as error:
        say(f"without insightface (only the SCRFD detector needs it): {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="say what would be added, add nothing")
    parser.add_argument("--without-insightface", action="store_true", help="leave the optional SCRFD detector out")
    options, _ = parser.parse_known_args()  # a host may pass arguments of its own
    # At every start of the WebUI nothing may take seconds, so the optional part is not tried again and again there.
    return install(options.dry_run, not options.without_insightface and not under_webui())


if __name__ == "__main__":
    sys.exit(main())
