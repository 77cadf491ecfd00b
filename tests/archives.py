"""What the sdist and the wheel hold: the files that git tracks, and nothing else.

``python -m tests.archives dist`` checks the two archives in a folder. It needs only the standard
library and git. The tests of the check build archives themselves.
"""

import base64
import csv
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
GIT = "git"
# The backend writes these.
SDIST_OWN = {"PKG-INFO"}
WHEEL_OWN = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def tracked(root: Path) -> dict[str, bytes]:
    """Return the names of the files that git tracks, each with its present content."""
    command = [GIT, "ls-files", "-z"]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, check=True)
    names = os.fsdecode(done.stdout).split("\0")[:-1]
    return {name: root.joinpath(name).read_bytes() for name in names}


def in_wheel(names: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return those files that belong into a wheel: all of each package of ours."""
    packages = {name.split("/")[0] for name in names if name.startswith("creduse")}
    return {name: content for name, content in names.items() if name.split("/")[0] in packages}


def find_archives(folder: Path) -> tuple[Path, Path]:
    """Return the sdist and the wheel in a folder. There must be one of each."""
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def read_sdist(path: Path) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of an sdist without the folder that holds all, and what is wrong with it."""
    files, faults = dict[str, bytes](), list[str]()
    top = path.name.removesuffix(".tar.gz") + "/"
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is None or not member.name.startswith(top):
                faults.append(f"{member.name} is no file in {top}")
                continue
            files[member.name.removeprefix(top)] = content.read()
            if member.mode not in {0o644, 0o755} or member.uid or member.gid:
                faults.append(f"{member.name} has mode {member.mode:o}, or an owner")
    return files, faults


def read_wheel(path: Path) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of a wheel, and what is wrong with it.

    The files of its metadata have names without their folder.
    """
    with zipfile.ZipFile(path) as archive:
        files = {it.filename: archive.read(it) for it in archive.infolist()}
        modes = {it.filename: it.external_attr >> 16 for it in archive.infolist()}
    regular = {0o644, 0o100644}
    faults = [f"{name} has mode {mode:o}" for name, mode in modes.items() if mode not in regular]
    own = "-".join(path.name.split("-")[:2]) + ".dist-info/"
    recorded = {row[0]: row[1:] for row in csv.reader(files[own + "RECORD"].decode().splitlines())}
    if recorded.keys() != files.keys() or len(files) != len(modes):
        faults.append(f"RECORD differs in {sorted(recorded.keys() ^ files.keys())}")
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        right = ["", ""] if name == own + "RECORD" else [f"sha256={digest}", str(len(content))]
        if recorded.get(name) != right:
            faults.append(f"RECORD is wrong about {name}")
    return {name.removeprefix(own): content for name, content in files.items()}, faults


def compare(where: str, found: Mapping[str, bytes], right: Mapping[str, bytes]) -> Iterator[str]:
    """Yield how the files of an archive differ from those of the work tree."""
    for name in sorted(found.keys() - right.keys()):
        yield f"{where}: {name} is not tracked by git: remove it, or `git add` it"
    for name in sorted(right.keys() - found.keys()):
        yield f"{where}: {name} is missing: does [tool.hatch.build] leave out its kind?"
    for name in sorted(right.keys() & found.keys()):
        if found[name] != right[name]:
            yield f"{where}: {name} is not the file of the work tree"


def find_faults(folder: Path, root: Path = ROOT) -> Iterator[str]:
    """Yield all that is wrong with the sdist and the wheel in a folder, made from ``root``."""
    names = tracked(root)
    sdist, wheel = find_archives(folder)
    readings = (
        (sdist, *read_sdist(sdist), names, SDIST_OWN),
        (wheel, *read_wheel(wheel), in_wheel(names), WHEEL_OWN),
    )
    for path, files, faults, right, own in readings:
        yield from (f"{path.name}: {fault}" for fault in faults)
        yield from (f"{path.name}: {name} is missing" for name in sorted(own - files.keys()))
        content = {name: it for name, it in files.items() if name not in own}
        yield from compare(path.name, content, right)


if __name__ == "__main__":
    sys.exit("\n".join(find_faults(Path(sys.argv[1]))) or None)
