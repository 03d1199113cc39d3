"""Run the tests against a real ComfyUI, with its Python found or made.

    make test-comfy                  the ComfyUI of $COMFYUI_DIR, or the one this repository lies in, or ~/ComfyUI
    python tools/comfy.py [-k NAME]  the same; arguments go to pytest

The host's own environment is used where it has one; else .venv-comfy is made from the host's requirements and ours,
with a torch that is there already. Nothing of the host is changed: it runs in a base folder of its own.
"""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MADE = ROOT / ".venv-comfy"


def host_folder() -> Path:
    """The ComfyUI to test with. Exits with a sentence where there is none."""
    named = os.environ.get("COMFYUI_DIR")
    places = [Path(named)] if named else [*ROOT.parents[1:2], ROOT.parent / "ComfyUI", Path.home() / "ComfyUI"]
    for place in places:
        if (place / "main.py").is_file() and (place / "comfy").is_dir():
            return place.resolve()
    looked = ", ".join(map(str, places))
    sys.exit(f"No ComfyUI in {looked}; clone one, and name its folder: COMFYUI_DIR=/path/to/ComfyUI make test-comfy")


def host_python(host: Path) -> Path:
    """A Python that runs the host: the named one, the host's own, or one made here."""
    if named := os.environ.get("COMFYUI_PYTHON"):
        return Path(named)
    tails = ("bin/python", "Scripts/python.exe")
    own = [host / folder / tail for folder in ("venv", ".venv") for tail in tails]
    portable = host.parent / "python_embeded" / "python.exe"
    for python in [*own, portable, MADE / tails[0], MADE / tails[1], Path(sys.executable)]:
        if python.is_file() and runs(python, host):
            return python
    return made(host)


def runs(python: Path, host: Path) -> bool:
    """Whether this Python has what the host and the pack import."""
    code = "import aiohttp, comfyui_frontend_package, cv2, facexlib, safetensors, torch, torchsde, transformers"
    return subprocess.run([str(python), "-c", code], cwd=host, capture_output=True).returncode == 0


def made(host: Path) -> Path:
    """.venv-comfy, from this Python with its torch."""
    import importlib.util

    print(f"Making {MADE.name} from {host / 'requirements.txt'} ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(MADE)], check=True)
    python = next(p for p in (MADE / "bin/python", MADE / "Scripts/python.exe") if p.exists())
    command = [str(python), "-m", "pip", "install", "-q", "-r", str(host / "requirements.txt")]
    command += ["-r", str(ROOT / "requirements.txt")]
    found = importlib.util.find_spec("torch")
    if found is not None and found.submodule_search_locations:
        borrowed = Path(found.submodule_search_locations[0]).parent
        site = subprocess.run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                              capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
        Path(site, "base_torch.pth").write_text(f"{borrowed}\n", encoding="utf-8")
        version = subprocess.run([str(python), "-c", "from importlib.metadata import version; print(version('torch'))"],
                                 capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
        keep = MADE / "keep.txt"
        keep.write_text(f"torch=={version}\n", encoding="utf-8")
        command += ["-c", str(keep)]
    if subprocess.call(command) != 0:
        sys.exit("pip could not install the host's requirements (its own words are above); mend that and repeat.")
    return python


def main() -> int:
    host = host_folder()
    python = host_python(host)
    print(f"ComfyUI in {host}, run by {python}", flush=True)
    environment = {**os.environ, "COMFYUI_DIR": str(host), "COMFYUI_PYTHON": str(python)}
    command = [sys.executable, "-m", "pytest", "-m", "comfy", "tests/test_nodes", *sys.argv[1:]]
    return subprocess.call(command, cwd=ROOT, env=environment)


if __name__ == "__main__":
    sys.exit(main())
