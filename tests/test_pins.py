"""The pinned versions in ``.ci/pins.txt``, which all sessions of nox install."""

import tomllib
from collections import defaultdict

import pytest
from packaging.requirements import Requirement

from tests.archives import ROOT

PYPROJECT = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))
LINES = ROOT.joinpath(".ci", "pins.txt").read_text(encoding="utf-8").splitlines()


def requirements() -> dict[str, Requirement]:
    """Return all that pyproject.toml requires, by its text."""
    project, groups = PYPROJECT["project"], PYPROJECT["dependency-groups"]
    lists = (
        PYPROJECT["build-system"]["requires"],
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *groups.values(),
    )
    texts = {text for texts in lists for text in texts if isinstance(text, str)}
    return {text: Requirement(text) for text in texts if not text.startswith("creduse[")}


def pins() -> dict[str, list[Requirement]]:
    """Return the lines of the file by the name of their package."""
    found = defaultdict[str, list[Requirement]](list)
    for line in LINES:
        if not line.startswith("#"):
            pin = Requirement(line)
            found[pin.name].append(pin)
    return found


@pytest.mark.parametrize("text", sorted(requirements()))
def test_each_requirement_is_pinned(text: str) -> None:
    """Each requirement in pyproject.toml has a pin that it allows. If not, run ``nox -s pins``."""
    requirement = requirements()[text]
    versions = [
        specifier.version for pin in pins()[requirement.name] for specifier in pin.specifier
    ]
    assert versions
    assert all(requirement.specifier.contains(version) for version in versions)


def test_pins_are_exact() -> None:
    """A pin allows one version, and says nothing about where it comes from."""
    for pin in (pin for found in pins().values() for pin in found):
        assert pin.url is None
        assert [specifier.operator for specifier in pin.specifier] == ["=="]
    assert not [line for line in LINES if line.startswith("-")]
