"""Draw the states of a call, and their table, from the table in the code."""

from collections.abc import Iterable
from html import escape
from typing import Final

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from creduse_core import TRANSITIONS, Reply, State


def _table(heads: Iterable[str], rows: Iterable[Iterable[nodes.Node]]) -> nodes.table:
    titles = [nodes.Text(head) for head in heads]
    group = nodes.tgroup(cols=len(titles))
    group += [nodes.colspec(colwidth=1) for _ in titles]
    group += nodes.thead("", _row(titles))
    group += nodes.tbody("", *map(_row, rows))
    return nodes.table("", group)


def _row(cells: Iterable[nodes.Node]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))


def _code(text: str) -> nodes.literal:
    return nodes.literal(text, text)


class _Drawn(SphinxDirective):
    """A directive whose content is for readers of the page's source; Sphinx replaces it."""

    has_content = True


class Transitions(_Drawn):
    """``{transitions}`` shows the rows of ``TRANSITIONS``."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = (
            (nodes.Text(before), _code(given), _code(reply), nodes.Text(after))
            for (before, given, reply), after in TRANSITIONS.items()
        )
        return [_table(("state", "input", "reply", "then"), rows)]


# The drawing: the place of each state, by column and row. The arrows come from the table.
_PLACES: Final = {
    State.READY: (0, 0),
    State.IN_FLIGHT: (1, 0),
    State.SUCCEEDED: (2, 0),
    State.ABANDONED: (0, 1),
    State.WAITING: (1, 1),
    State.FAILED: (2, 1),
}
_ACROSS, _DOWN = 320, 210  # from one state to the next
_HALF_WIDTH, _HALF_HEIGHT = 62, 24  # of a state
_MARGIN: Final = 10
_APART: Final = 14  # from the middle to each of two opposite arrows
_LINE: Final = 17  # of text


def _centre(state: State) -> tuple[float, float]:
    column, row = _PLACES[state]
    return (
        _MARGIN + _HALF_WIDTH + column * _ACROSS,
        _MARGIN + _HALF_HEIGHT + row * _DOWN,
    )


def _box(state: State) -> str:
    x, y = _centre(state)
    kind = "live" if state.live else "end"
    return (
        f'<rect class="{kind}" x="{x - _HALF_WIDTH}" y="{y - _HALF_HEIGHT}" rx="8" '
        f'width="{2 * _HALF_WIDTH}" height="{2 * _HALF_HEIGHT}"/>'
        f'<text class="state" x="{x}" y="{y}">{escape(state)}</text>'
    )


def _arrow(before: State, after: State, labels: list[str], *, to_and_fro: bool) -> str:
    (x1, y1), (x2, y2) = _centre(before), _centre(after)
    dx, dy = x2 - x1, y2 - y1
    # From border to border: the part of the line between the centres that is outside both boxes.
    inside = min(
        (_HALF_WIDTH + 4) / abs(dx) if dx else 1.0, (_HALF_HEIGHT + 4) / abs(dy) if dy else 1.0
    )
    length = (dx * dx + dy * dy) ** 0.5
    side = _APART if to_and_fro else 0
    sx, sy = -dy / length * side, dx / length * side  # to the right of the arrow
    x1, y1, x2, y2 = (
        x1 + dx * inside + sx,
        y1 + dy * inside + sy,
        x2 - dx * inside + sx,
        y2 - dy * inside + sy,
    )
    x, y, anchor = (x1 + x2) / 2, (y1 + y2) / 2 + _LINE / 4, "middle"
    if not dx:  # beside the line and low, where there is space
        anchor = "end" if sx < 0 else "start"
        x += -8 if sx < 0 else 8
        y += abs(dy) * 0.15
    y -= (_LINE if not dy else _LINE / 2) * (len(labels) - 1)
    y -= 12 if not dy else 0  # above the line
    texts = "".join(
        f'<text class="label" text-anchor="{anchor}" x="{x:g}" y="{y + number * _LINE:g}">'
        f"{escape(label)}</text>"
        for number, label in enumerate(labels)
    )
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>{texts}'


def draw() -> str:
    """Return the state diagram as SVG. The style sheet of the page sets its colours."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for (before, given, reply), after in TRANSITIONS.items():
        label = given if reply is Reply.NOTHING else f"{given} → {reply}"
        arrows.setdefault((before, after), []).append(label)
    width = 2 * (_MARGIN + _HALF_WIDTH) + 2 * _ACROSS
    height = 2 * (_MARGIN + _HALF_HEIGHT) + _DOWN
    lines = (
        _arrow(before, after, labels, to_and_fro=(after, before) in arrows)
        for (before, after), labels in arrows.items()
    )
    return (
        f'<svg class="states" role="img" viewBox="0 0 {width} {height}" '
        'xmlns="http://www.w3.org/2000/svg">'
        "<title>The states of a call; the table below says the same in words</title>"
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" '
        'markerHeight="9" orient="auto"><path d="M0 1 10 5 0 9z"/></marker></defs>'
        f"{''.join(lines)}{''.join(map(_box, State))}</svg>"
    )


class States(_Drawn):
    """``{states}`` shows the state diagram."""

    def run(self) -> list[nodes.Node]:
        """Return the diagram."""
        return [nodes.raw("", draw(), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives with Sphinx."""
    app.add_directive("states", States)
    app.add_directive("transitions", Transitions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
