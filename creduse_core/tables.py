"""How results read: as text for a terminal, and as HTML for a notebook.

Which words and columns a result has does not belong here: see `creduse_core.models`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias

Rows: TypeAlias = Sequence[tuple[str, ...]]
"""A table. The first row has the heads of the columns. Numbers are in the first column."""


def counted(number: int, noun: str) -> str:
    """Return a number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def moment(time: datetime) -> str:
    """Return a time to the second, in its own time zone: near the year 9999, no other has it."""
    return f"{time:%Y-%m-%d %H:%M:%S %Z}"


def printable(text: str) -> str:
    """Return somebody else's text with its control characters escaped."""
    if text.isprintable():
        return text
    return "".join(it if it.isprintable() else it.encode("unicode_escape").decode() for it in text)


def as_text(head: str, rows: Rows) -> str:
    """Return a sentence, and a table below it if there are rows."""
    if not rows:
        return head
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [f"{row[0]:>{widths[0]}}", *map(str.ljust, row[1:], widths[1:])],
        ).rstrip()
        for row in rows
    ]
    return "\n".join([head, *lines])


def as_html(head: str, rows: Rows) -> str:
    """Return the same as `as_text`, as HTML."""
    from html import escape  # noqa: PLC0415 - only notebooks need it

    if not rows:
        return f"<p>{escape(head)}</p>"
    cells = [
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th", *["td"] * (len(rows) - 1)], rows, strict=True)
    ]
    lines = "\n".join(f"<tr>{line}</tr>" for line in cells)
    return f"<table>\n<caption>{escape(head)}</caption>\n{lines}\n</table>"
