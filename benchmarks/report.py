"""The report of a run: tables in Markdown, and a picture."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median, quantiles
from typing import Final

from benchmarks.measures import ALL, IMPORT, MEASURES, TARGETS, Measure, Target, Unit
from benchmarks.subjects import SUBJECTS

Results = Mapping[str, Sequence[float]]
"""By subject, what came of each round."""
Samples = Mapping[str, Results]
"""By measure."""


def _quartiles(numbers: Sequence[float]) -> list[float]:
    return quantiles(numbers, method="inclusive") if len(numbers) > 1 else [*numbers] * 3


def ratio(results: Results, one: str, other: str) -> list[float]:
    """Return the quartiles of the ratios of ``one`` to ``other``, round by round."""
    # A slow subject has fewer rounds: the first ones of the other.
    pairs = zip(results[one], results[other], strict=False)
    return _quartiles([mine / theirs for mine, theirs in pairs])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rounded(quartiles: Sequence[float]) -> list[float]:
    """Return the figures as they are shown and compared with targets."""
    return [round(number, 2 if quartiles[1] >= 0.1 else 4) for number in quartiles]


def _spread(quartiles: Sequence[float]) -> str:
    low, middle, high = (
        f"{number:.2f}" if number >= 0.1 else f"{number:g}" for number in _rounded(quartiles)
    )
    return middle if low == high else f"{middle} ({low}-{high})"


def _figure(numbers: Sequence[float], unit: Unit) -> str:
    return f"{median(numbers) * unit.scale:,.{unit.digits}f} {unit.name}"


def _cell(measure: Measure, results: Results, subject: str) -> str:
    if subject not in results:
        return ""
    figure = _figure(results[subject], measure.unit)
    reference = next(family[0] for family in measure.families if subject in family)
    if reference not in results or subject == reference:
        return figure
    return f"{_spread(ratio(results, subject, reference))}, {figure}"


def tables(samples: Samples) -> Iterator[str]:
    """Return the lines of all tables that have results."""
    for title in dict.fromkeys(it.table for it in MEASURES if it.name in samples):
        measures = [it for it in MEASURES if it.table == title and it.name in samples]
        families = [family for measure in measures for family in measure.families]
        yield from ("", f"### {title}", "")
        yield _row("", *(measure.column for measure in measures))
        yield _row("---", *("---:" for _ in measures))
        for name in dict.fromkeys(subject for family in families for subject in family):
            cells = [_cell(measure, samples[measure.name], name) for measure in measures]
            subject = SUBJECTS[name]
            label = f"{subject.title}: `import {subject.imports}`" if title == IMPORT else None
            if any(cells):
                yield _row(label or subject.title, *cells)


def _target(target: Target, samples: Samples) -> str | None:
    name, subject, reference, at_most = target
    results = samples.get(name, {})
    if not {subject, reference or subject} <= results.keys():
        return None
    measure = next(it for it in MEASURES if it.name == name)
    quartiles = ratio(results, subject, reference) if reference else _quartiles(results[subject])
    sides = " / ".join(SUBJECTS[it].title for it in (subject, reference) if it)
    met = "met" if _rounded(quartiles)[1] <= at_most else "**missed**"
    what = f"{measure.table}: {measure.column}".removesuffix(": ")
    return _row(what, sides, f"{at_most:g}", _spread(quartiles), met)


def targets(samples: Samples) -> Iterator[str]:
    """Return the lines of the table of targets."""
    yield from ("", "### Targets", "")
    yield _row("what", "of what", "at most", "measured", "")
    yield _row("---", "---", "---:", "---:", "---")
    yield from filter(None, (_target(target, samples) for target in TARGETS))


_LEFT, _ONE, _RIGHT, _ROW = 190, 300, 700, 28  # pixels: labels, the length of 1, the edge, a row

# One grey for all text, which is legible on white and on black.
_STYLE: Final = (
    "text{font:14px system-ui,sans-serif;fill:#7a8088}line{stroke:#7a8088}"
    ".ours{fill:#3b82c4}.theirs{fill:#a0a6ad}"
)


def picture(results: Results) -> str:
    """Return an SVG: the time of a call, as a multiple of a call with hand-written code."""
    bars = [
        (subject, ratio(results, subject, family[0]))
        for family in ALL
        for subject in family[1:]
        if subject in results and "creduse" in SUBJECTS[subject].title
    ]
    height = _ROW * (len(bars) + 1)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_RIGHT + 60} {height + 8}">',
        f"<style>{_STYLE}</style>",
        f'<text x="{_LEFT + _ONE}" y="16" text-anchor="middle">written by hand = 1</text>',
    ]
    for number, (subject, (low, middle, high)) in enumerate(bars, 1):
        y = number * _ROW
        kind = "theirs" if SUBJECTS[subject].published else "ours"
        end, left, right = (min(_LEFT + _ONE * value, _RIGHT) for value in (middle, low, high))
        lines += [
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{SUBJECTS[subject].title}</text>',
            f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{end - _LEFT:.0f}" height="18"/>',
            f'<line x1="{left:.0f}" x2="{right:.0f}" y1="{y + 9}" y2="{y + 9}" stroke-width="3"/>',
            f'<text x="{right + 8:.0f}" y="{y + 14}">{middle:.2f}</text>',
        ]
    one = _LEFT + _ONE
    lines.append(f'<line x1="{one}" x2="{one}" y1="22" y2="{height}" stroke-dasharray="4"/>')
    return "\n".join([*lines, "</svg>\n"])
