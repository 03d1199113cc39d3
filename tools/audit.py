"""Licences of all that the requirements pull in, and what the advisory databases say of the installed versions.

    python tools/audit.py [--licences]

Exit status 1 where a licence is unknown or not on the list, or a version has a known hole; 2 where nobody could be
asked about holes. With ``--licences`` the network is not used.
"""
from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What a program under Apache-2.0 may depend on without a second thought; MPL-2.0 binds its own files alone.
GOOD = re.compile(r"apache|\bbsd|0bsd|\bmit\b|mit-cmu|mpl-?2|mozilla public license 2|isc\b|zlib|psf|python software|"
                  r"hpnd|unlicense|cc0|public domain|boost|bsl-1", re.IGNORECASE)  # fmt: skip
BAD = re.compile(r"\b(a|l)?gpl|affero|gnu |non-?commercial|proprietary|cc-by-nc", re.IGNORECASE)
KNOWN = {  # looked at, and told in SECURITY.md
    r"nvidia-|cuda-": "NVIDIA's terms for CUDA; comes with torch and can be passed on",
    r"pillow-jxl-plugin": "GPL; only where a person installs it to read JPEG XL",
}


@dataclass(frozen=True)
class Package:
    """An installed distribution and its licence, "" where its metadata do not say."""

    name: str
    version: str
    licence: str

    @property
    def remark(self) -> str:
        """What was found where its licence is not on the list."""
        return next((told for names, told in KNOWN.items() if re.match(names, self.name)), "")

    @property
    def good(self) -> bool:
        listed = bool(GOOD.search(self.licence)) and not BAD.search(self.licence)
        return listed or bool(self.remark)


def direct(root: Path = ROOT) -> list[str]:
    """The requirements of the program, its options and the training, as they stand in their files."""
    options = sorted((root / "requirements").glob("*.txt"))
    files = [root / "requirements.txt", *options, root / "training/requirements.txt"]
    lines = (line.partition("#")[0].strip() for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in dict.fromkeys(lines) if line]


def installed(wanted: Iterable[str]) -> Iterator[Package]:
    """Each requirement that is installed, and what it requires in turn, by name."""
    from packaging.requirements import Requirement

    waiting, seen, found = [Requirement(line) for line in wanted], set(), {}
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        key = (name, frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            about = metadata.metadata(requirement.name)
        except metadata.PackageNotFoundError:  # of an option, or of another system
            continue
        found[name] = Package(name, about["Version"], licence_of(about))
        for line in metadata.requires(requirement.name) or ():
            inner = Requirement(line)
            extras = ["", *requirement.extras]
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(inner)
    yield from (found[name] for name in sorted(found))


def licence_of(about: metadata.PackageMetadata) -> str:
    """The expression, else the classifiers, else the first line of the text."""
    if expression := about.get("License-Expression"):
        return expression
    classifiers = [line.split(" :: ") for line in about.get_all("Classifier") or () if line.startswith("License ::")]
    named = [parts[-1] for parts in classifiers if parts[-1] != "OSI Approved"]
    text = (about.get("License") or "").strip()
    return "; ".join(named) or (text.splitlines()[0] if text else "")


def advisories() -> int:
    """Exit status of pip-audit over this environment: 0, 1 with holes, 2 where it could not ask."""
    line = [sys.executable, "-m", "pip_audit", "--local", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        why = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        print(f"pip-audit could not ask ({why}). Is it installed (pip install pip-audit), and the network there?")
        return 2
    asked = [one for one in found if "skip_reason" not in one]
    holes = [(one, hole) for one in asked for hole in one["vulns"]]
    for one, hole in holes:
        fixed = ", ".join(hole["fix_versions"]) or "no release"
        print(f"{one['name']} {one['version']}: {hole['id']}, mended in {fixed}")
    print(f"{len(holes)} known holes in {len(asked)} packages; {len(found) - len(asked)} could not be looked up")
    return 1 if holes else 0 if asked else 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--licences", action="store_true", help="these alone, without the network")
    args = parser.parse_args()
    packages = list(installed(direct()))
    for package in packages:
        told = f"{package.licence[:90] or '?'}{f' ({package.remark})' if package.remark else ''}"
        print(f"{package.name:28} {package.version:16} {told}{'' if package.good else '  <- look'}")
    bad = [package.name for package in packages if not package.good]
    print(f"{len(packages)} packages" + (f"; look at {', '.join(bad)}" if bad else ", all under known free licences"))
    return (1 if bad else 0) or (0 if args.licences else advisories())


if __name__ == "__main__":
    sys.exit(main())
