"""Check that a tag can be released, and print the notes of its release.

``python .ci/release.py v0.2.0`` compares the tag with the version and with CHANGELOG.md. It imports
only the standard library, since it runs before anything is installed.
"""  # noqa: INP001 - a script, not part of a package

import re
import sys
import time
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[1]
_UNRELEASED: Final = "Unreleased"
# From a heading to the next one, or to the definitions of links at the end of the file.
_SECTION: Final = re.compile(
    r"^## \[(?P<name>[^]]+)\](?P<rest>.*)\n(?P<text>(?s:.)*?)(?=^## \[|(?:^\[[^]]+\]: .*\n)*\Z)",
    re.MULTILINE,
)


def read_version() -> str:
    """Return the version that the build gives the package."""
    text = _ROOT.joinpath("creduse_core", "_version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError('creduse_core/_version.py has no line __version__ = "…"')
    return found[1]


def notes_of(tag: str, version: str, changelog: str) -> str:
    """Return the section of a version. Raise ``ValueError`` unless it is complete."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"a release has a version such as 0.2.0, not {version}")
    if tag != f"v{version}":
        raise ValueError(f"the tag of version {version} must be v{version}, not {tag}")
    wanted = f"## [{version}] - YYYY-MM-DD"
    sections = list(_SECTION.finditer(changelog))
    found = [it for it in sections if it["name"] == version]
    if len(found) != 1:
        raise ValueError(f"CHANGELOG.md must have one section {wanted}, not {len(found)}")
    (section,) = found
    try:
        time.strptime(section["rest"], " - %Y-%m-%d")
    except ValueError:
        heading = section[0].splitlines()[0]
        raise ValueError(f"CHANGELOG.md must have {wanted}, not {heading}") from None
    notes = section["text"].strip()
    if not re.search("^- ", notes, re.MULTILINE):
        raise ValueError(f"the section of {version} in CHANGELOG.md is empty")
    if any(it["name"] == _UNRELEASED and it["text"].strip() for it in sections):
        raise ValueError(
            f"CHANGELOG.md still has lines under [{_UNRELEASED}]: move them to {wanted}"
        )
    # GitHub shows each line end in the notes of a release.
    return re.sub(r"\n +(?![-`\s])", " ", notes)


def main(*arguments: str) -> None:
    """Print the notes of a tag's release, or end with what is wrong."""
    if len(arguments) != 1:
        sys.exit("usage: python .ci/release.py TAG")
    changelog = _ROOT.joinpath("CHANGELOG.md").read_text(encoding="utf-8")
    try:
        notes = notes_of(*arguments, read_version(), changelog)
    except ValueError as error:
        sys.exit(f"release.py: {error}")
    sys.stdout.write(f"{notes}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
