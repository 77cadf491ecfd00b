"""The sdist and the wheel, built from clean and from dirty work trees."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from creduse_core._version import __version__
from tests.archives import GIT, ROOT, SDIST_OWN, find_archives, find_faults, read_sdist, tracked

pytest.importorskip("hatchling", reason="the build backend is not installed")
if not ROOT.joinpath(".git").exists():
    pytest.skip("this is no clone", allow_module_level=True)

SECRET = b"-----BEGIN SECRET-----"
# No archive holds these, whoever builds it.
OTHER_KINDS = (
    ".ci/.env",
    ".coverage.host.1234",
    ".env",
    ".hypothesis/examples/1",
    ".netrc",
    ".nox/tests/lib/module.py",
    ".pypirc",
    ".pytest_cache/README.md",
    ".venv/lib/module.py",
    "benchmarks/results.json",
    "build/docs/index.html",
    "build/lib/creduse/__init__.py",
    "creduse.egg-info/PKG-INFO",
    "creduse/#calls.py#",
    "creduse/.env.local",
    "creduse_core/.client.py.swp",
    "creduse_core/.env",
    "creduse_core/__pycache__/client.cpython-311.pyc",
    "creduse_core/client.cpython-311-x86_64-linux-gnu.so",
    "creduse_core/client.py.orig",
    "creduse_core/client.py~",
    "creduse_core/id_ed25519",
    "creduse_journal/journal.sqlite-wal",
    "creduse_notes.txt",
    "creduse_sandbox/page_files/server.key",
    "dist/creduse-0.1.tar.gz",
    "docs/_build/page.doctree",
    "docs/scratch.sqlite",
    "examples/.ipynb_checkpoints/example.ipynb",
    "tests/certs/x.pem",
)
# These look like ours. The check names them.
LIKE_OURS = (
    "creduse_core/.hidden.py",
    "creduse_core/new/deep/module.py",
    "creduse_core/scratch.py",
    "creduse_notes/__init__.py",
    "creduse_sandbox/page_files/old.js",
    "docs/todo.md",
    "scratch.py",
    "tests/test_mine.py",
)
# A link to a file.
LINK = "creduse_core/linked.py"


def git(tree: Path, *arguments: str) -> None:
    """Run git."""
    subprocess.run((GIT, *arguments), cwd=tree, check=True, capture_output=True)


def clone(tree: Path) -> Path:
    """Make a repository with the present files that git tracks here."""
    for name, content in tracked(ROOT).items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(ROOT.joinpath(name).stat().st_mode)
    git(tree, "init")
    git(tree, "add", "--all", "--force")
    return tree


def build(tree: Path, *arguments: str) -> Path:
    """Build the sdist and the wheel into the folder "dist", and return it."""
    env = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    command = [sys.executable, "-m", "hatchling", "build", *arguments]
    subprocess.run(command, cwd=tree, env=env, check=True, capture_output=True)
    return tree / "dist"


def check(tree: Path) -> tuple[int, list[str]]:
    """Check the archives as `nox -s build` does. Return the exit status and the lines."""
    command = [sys.executable, "-m", "tests.archives", "dist"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.splitlines()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean clone with both archives built."""
    tree = clone(tmp_path_factory.mktemp("clean"))
    build(tree)
    return tree


def unpack(sdist: Path, where: Path) -> Path:
    """Unpack an sdist, and return its folder."""
    with tarfile.open(sdist) as archive:
        archive.extractall(where, filter="data")
    return where / sdist.name.removesuffix(".tar.gz")


def plant(tree: Path, names: Sequence[str]) -> None:
    """Write a file that git does not track under each name."""
    for name in names:
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SECRET)


def test_clean_tree(clean: Path) -> None:
    """From a clean tree, the check finds no fault."""
    assert check(clean) == (0, [])


def test_dirty_tree(tmp_path: Path) -> None:
    """No stray file of another kind gets in, and the check names each that looks like ours."""
    tree, outside = clone(tmp_path / "tree"), tmp_path / "outside"
    plant(tree, (*OTHER_KINDS, *LIKE_OURS))
    plant(outside, ("key.pem", "page.md"))
    tree.joinpath("creduse_core", "linked.pem").symlink_to(outside / "key.pem")
    tree.joinpath(LINK).symlink_to(outside / "key.pem")
    tree.joinpath("docs", "linked").symlink_to(outside)
    shutil.rmtree(tree / "dist")
    dist = build(tree)

    sdist, wheel = find_archives(dist)
    own = sdist.name.removesuffix(".tar.gz")
    in_sdist = {*LIKE_OURS, "docs/linked/page.md"}
    in_wheel = {it for it in in_sdist if it.startswith(("creduse_core", "creduse_sandbox"))}
    status, lines = check(tree)
    named = {tuple(line.replace(f"{own}/", "").split()[:2]) for line in lines}
    assert status == 1
    assert named == {
        *((f"{sdist.name}:", name) for name in {*in_sdist, LINK}),
        *((f"{wheel.name}:", name) for name in {*in_wheel, LINK}),
    }
    held = {name for name, content in read_sdist(sdist)[0].items() if content == SECRET}
    assert held == in_sdist

    for name in {*in_sdist, LINK}:
        tree.joinpath(name).unlink()
    shutil.rmtree(dist)
    build(tree)
    assert check(tree) == (0, [])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("creduse_core/words.py", "is not the file of the work tree"),
        ("docs/new.md", "is missing"),
    ],
)
def test_tree_that_went_on(clean: Path, tmp_path: Path, name: str, fault: str) -> None:
    """The check names a file that an archive lacks, or has with other content."""
    tree = shutil.copytree(clean, tmp_path / "tree")
    tree.joinpath(name).write_bytes(b"# New")
    git(tree, "add", name)
    sdist, _ = find_archives(tree / "dist")
    (first, *_) = find_faults(tree / "dist", tree)
    assert first.startswith(f"{sdist.name}: {name} {fault}")


def test_wheel_that_was_changed(clean: Path, tmp_path: Path) -> None:
    """The check compares each file of a wheel with its RECORD, and looks at its mode."""
    dist = shutil.copytree(clean / "dist", tmp_path / "dist")
    _, wheel = find_archives(dist)
    changed = f"creduse-{__version__}.dist-info/METADATA"
    with zipfile.ZipFile(clean / "dist" / wheel.name) as old, zipfile.ZipFile(wheel, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename == changed:
                info.external_attr = 0o600 << 16
                content += b"More"
            new.writestr(info, content)
    assert list(find_faults(dist, clean)) == [
        f"{wheel.name}: {changed} has mode 600",
        f"{wheel.name}: RECORD is wrong about {changed}",
    ]


def test_wheel_from_sdist(clean: Path, tmp_path: Path) -> None:
    """The wheel made from the sdist equals the one made from the tree."""
    sdist, wheel = find_archives(clean / "dist")
    unpacked = unpack(sdist, tmp_path)
    (second,) = build(unpacked, "-t", "wheel").glob("*.whl")
    assert second.read_bytes() == wheel.read_bytes()


def test_reproducible(clean: Path, tmp_path: Path) -> None:
    """A build at another time, elsewhere, with other permissions gives the same bytes."""
    tree = clone(tmp_path)
    for path in tree.rglob("*"):
        if ".git" not in path.parts:
            os.utime(path, (10**9, 10**9))
            path.chmod(path.stat().st_mode & 0o700)
    before = os.umask(0o077)
    try:
        second = build(tree)
    finally:
        os.umask(before)
    for first, again in zip(find_archives(clean / "dist"), find_archives(second), strict=True):
        assert first.read_bytes() == again.read_bytes()


def test_sdist_runs_its_tests(clean: Path, tmp_path: Path) -> None:
    """The tests of an unpacked sdist run there."""
    sdist, _ = find_archives(clean / "dist")
    unpacked = unpack(sdist, tmp_path)
    assert unpacked.joinpath(".ci", "run").stat().st_mode & 0o111
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/core/test_words.py"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=unpacked, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode()


def test_metadata(clean: Path) -> None:
    """The metadata has what pyproject.toml says, and is the same in both archives."""
    sdist, wheel = find_archives(clean / "dist")
    project = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = f"creduse-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        written = archive.read(f"{own}/METADATA")
        entry_points = archive.read(f"{own}/entry_points.txt").decode().split()
        names = set(archive.namelist())
    (info,) = SDIST_OWN
    assert read_sdist(sdist)[0][info] == written

    metadata = message_from_bytes(written)
    single = ("Name", "Version", "Requires-Python", "License-Expression", "License-File")
    assert [metadata[it] for it in single] == ["creduse", __version__, ">=3.11", "MIT", "LICENSE"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "CreduseClient" in str(metadata.get_payload())
    required = map(Requirement, metadata.get_all("Requires-Dist", []))
    always = {it for it in required if it.marker is None}
    assert always == {Requirement(it) for it in project["dependencies"]}
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    script, plugin = ("creduse=creduse_entry:script", "creduse=creduse_pytest")
    expected = f"[console_scripts] {script} [pytest11] {plugin}".replace("=", " = ").split()
    assert entry_points == expected
    packages = {name.split("/")[0] for name in names if name.endswith(".py")}
    assert {f"{package}/py.typed" for package in packages} <= names
