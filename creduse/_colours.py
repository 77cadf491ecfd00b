"""Colours of the command's text on a terminal: few, and never in JSON.

Which texts there are (`_calls`, `_bulk`, `_demo`) does not belong here.
"""

import os
import re
from typing import Final, TextIO

_RED: Final = "31"
_GREEN: Final = "32"
_YELLOW: Final = "33"
_BOLD: Final = "1"

_STYLES: Final = (
    (re.compile(r"^creduse[a-z -]*:(?! following )", re.MULTILINE), _RED),
    (re.compile(r"\b(?:NOT_APPLIED|APPLIED)\b"), _GREEN),
    (re.compile(r"\b(?:UNKNOWN|NOT_YET|OPEN)\b"), _YELLOW),
    # The heads of a balance's table and of the demonstration's parts.
    (re.compile(r"^(?:AMOUNT  .*|(?:Async)?CreduseClient.*)$", re.MULTILINE), _BOLD),
)


def has_colours(stream: TextIO) -> bool:
    """Return whether a stream shows colours. ``NO_COLOR`` and ``FORCE_COLOR`` overrule the terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def paint(text: str) -> str:
    """Return a text with colours for a terminal."""
    for pattern, style in _STYLES:
        text = pattern.sub(rf"\033[{style}m\g<0>\033[0m", text)
    return text
