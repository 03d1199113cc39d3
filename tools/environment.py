"""Make the project's own .venv, once, and say in a sentence what is wrong where that fails.

    python3 tools/environment.py [--venv .venv] [--dev] [--requirements FILE]

A stamp inside the environment holds a digest of the requirement files, so a second call does nothing. A working
torch of the calling Python is used from where it lies; nothing outside the environment is ever changed. Only the
standard library is used, and syntax that Python 3.6 reads, so that an old interpreter gets the sentence too.
"""
import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 10), (3, 13)
PAIR_CHECK = "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
PAIR_VERSIONS = "import importlib.metadata as m; print(*(n + ' ' + m.version(n) for n in ('torch', 'torchvision')))"


class SetupError(Exception):
    """One sentence for the person who typed `make`."""


def ask(python, code):
    """(exit status, last line printed) of ``code`` in another Python; (127, ...) where it cannot be started."""
    try:
        run = subprocess.run([str(python), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=str(ROOT))
    except OSError as error:
        return 127, str(error)
    lines = run.stdout.decode("utf-8", "replace").strip().splitlines()
    return run.returncode, lines[-1] if lines else ""


def base_python():
    """The calling Python where its version fits, else the newest fitting one on PATH."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and ask(found, "import venv")[0] == 0:
            return found
    if sys.version_info[:2] > NEWEST:
        print("Python {}.{} is newer than what this project is tested with; trying it.".format(*sys.version_info))
        return sys.executable
    raise SetupError(
        "Python {}.{} is too old: install Python 3.10 to 3.13, or name one: make PYTHON=/path/to/python3.12".format(
            *sys.version_info
        )
    )


def torch_of(base):
    """Where the base Python has a torch that works, the folder it lies in, else None (and a sentence if broken)."""
    status, where = ask(base, "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")
    if status != 0:
        return None
    has_vision = ask(base, "import importlib.util as u, sys; sys.exit(u.find_spec('torchvision') is None)")[0] == 0
    status, said = ask(base, PAIR_CHECK if has_vision else "import torch")
    if status == 0:
        return Path(where).parent
    versions = ask(base, PAIR_VERSIONS)[1]
    print(f"The torch of {base} does not work ({versions}: {said}). It is left alone; .venv gets one of its own.")
    return None


def create(venv, base, borrow=True):
    """A new environment that sees the base's torch where there is a good one, if it may ``borrow`` it."""
    torch_folder = torch_of(base) if borrow else None
    command = [base, "-m", "venv", "--clear"]
    if torch_folder:
        print(f"Using the torch in {torch_folder}.")
        command.append("--system-site-packages")
    print(f"Making {venv} with {base} ...", flush=True)
    if subprocess.call(command + [str(venv)]) != 0:
        raise SetupError(f"{base} cannot make a virtual environment; on Debian or Ubuntu install python3-venv.")
    python = venv_python(venv)
    if torch_folder and ask(python, "import torch")[0] != 0:
        # The base is a virtual environment itself, and those are not seen through --system-site-packages.
        site = ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))")[1]
        (Path(site) / "base_torch.pth").write_text(str(torch_folder) + os.linesep, encoding="utf-8")


def venv_python(venv):
    return venv / ("Scripts/python.exe" if sysconfig.get_platform().startswith("win") else "bin/python")


def install(venv, files):
    """pip install what the files name, with every torch that is visible already kept as it is."""
    python = venv_python(venv)
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += [] if sys.stdout.isatty() else ["-q"]
    for file in files:
        command += ["-r", str(file)]
    status, version = ask(python, "from importlib.metadata import version; print(version('torch'))")
    if status == 0:
        keep = venv / "keep.txt"
        keep.write_text(f"torch=={version}\n", encoding="utf-8")
        command += ["-c", str(keep)]
    cost = f"torch {version} is kept" if status == 0 else "torch alone is some GB; a few minutes"
    names = " and ".join(str(file.relative_to(ROOT)) for file in files)
    print(f"Installing what {names} name ({cost}) ...", flush=True)
    if subprocess.call(command) != 0:
        raise SetupError(
            "pip could not install the requirements (its own words are above); repeat the command once that is mended."
        )
    status, said = ask(python, PAIR_CHECK)
    if status != 0:
        raise SetupError(
            f"{ask(python, PAIR_VERSIONS)[1]} in {venv} do not work together ({said}); "
            "install the torchvision made for this torch, then repeat."
        )


def stamped(venv, files):
    """Whether an earlier call has installed just these files' contents here."""
    stamp = venv / "ready.txt"
    return stamp.is_file() and digest(venv, files) in stamp.read_text(encoding="utf-8").split()


def digest(venv, files):
    sha = hashlib.sha256(str(venv).encode())
    for file in files:
        sha.update(file.read_bytes())
    return sha.hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", default=".venv")
    parser.add_argument("--dev", action="store_true", help="what the tests and the training need as well")
    parser.add_argument("--requirements", help="a file of its own, in an environment that borrows no torch")
    args = parser.parse_args()
    venv = ROOT / args.venv
    run, dev = ROOT / "requirements.txt", ROOT / "tests/requirements.txt"
    wanted = [run, dev] if args.dev else [run]
    if args.requirements:
        run = dev = ROOT / args.requirements
        wanted = [run]
    works = ask(venv_python(venv), "import pip")[0] == 0
    if works and (stamped(venv, [run, dev]) or stamped(venv, wanted)):
        return 0
    if not works:
        create(venv, base_python(), borrow=not args.requirements)
    install(venv, wanted)
    (venv / "ready.txt").write_text(digest(venv, wanted) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SetupError as error:
        sys.exit("make: " + str(error))
