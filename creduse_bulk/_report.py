"""What became of each item: the records of the input, with columns from the journal.

It only reads. What writes to a journal (`_run`, `_resolve`) does not belong here.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Final

from creduse_core import Outcome
from creduse_journal import State

from ._input import Input, Shard
from ._items import Row, check_identity
from ._progress import read_begun
from ._records import Record

ADDED: Final = ("line", "state", "outcome", "event", "status", "error_code", "evidence")
"""The columns that a report adds."""

STATES: Final[Mapping[State, str]] = {
    State.FREE: "waiting",
    State.CLAIMED: "unclear",
    State.APPLIED: "applied",
    State.REFUSED: "refused",
    State.UNCLEAR: "unclear",
}
"""What became of an item, in the words of a report."""
_OUTCOMES: Final = {
    "waiting": Outcome.NOT_APPLIED,
    "unclear": Outcome.UNKNOWN,
    "applied": Outcome.APPLIED,
    "refused": Outcome.NOT_APPLIED,
}


def report(
    file: str | PathLike[str],
    *,
    journal: str | PathLike[str] | None = None,
    shard: Shard | None = None,
    only: str | None = None,
) -> Iterator[str]:
    """Return the lines of a report, in the format of the input and in its order.

    Each has the input's columns and ``line``, ``state``, ``outcome``, ``event``, ``status``,
    ``error_code`` and ``evidence``. ``only`` is one of ``applied``, ``refused``, ``unclear`` and
    ``waiting``. The run may be going on.

    Raises:
        InputError: The file cannot be read.
        JournalError: No run has begun, it is that of another shard, or the file was changed since.
        ValueError: ``only`` is something else.
    """
    if only is not None and only not in _OUTCOMES:
        raise ValueError(f"only must be one of {', '.join(_OUTCOMES)}, not {only!r}")
    lines = _lines(Path(file), journal, shard, only)
    next(lines)  # raises what there is to raise
    return lines


def _lines(
    path: Path, journal: str | PathLike[str] | None, shard: Shard | None, only: str | None
) -> Iterator[str]:
    """Yield an empty line when all has been opened and checked, and then those of the report."""
    where, begun, _ = read_begun(path, journal, shard)
    with Input(path, begun.identity.method) as source, where.read() as reader:
        assert reader is not None  # noqa: S101 - it was read before
        check_identity(where, begun.identity, replace(begun.identity, digest=source.digest))
        yield ""
        columns = [*(name for name in source.columns if name not in ADDED), *ADDED]
        if not source.is_json:
            yield _csv_line(columns)
        for record, row in matched(source, reader.rows(), shard):
            added = _added(record, row)
            if only is not None and added["state"] != only:
                continue
            values = source.values(record) | added
            yield (
                json.dumps(values)
                if source.is_json
                else _csv_line([values[name] for name in columns])
            )


def matched(
    source: Input, found: Iterator[Row], shard: Shard | None
) -> Iterator[tuple[Record, Row | None]]:
    """Return each record of a file, or of a shard, with its row if it has one."""
    row = next(found, None)
    for chunk in source.chunks():
        for record in chunk:
            if row is not None and row.number == record.number:
                yield record, row
                row = next(found, None)
            elif shard is None or shard.has(source.item(record).user):
                yield record, None


def _added(record: Record, row: Row | None) -> dict[str, Any]:
    state = STATES[State.FREE if row is None else row.state]
    return {
        "line": record.line,
        "state": state,
        "outcome": _OUTCOMES[state].name,
        "event": None if row is None else row.event,
        "status": None if row is None else row.status,
        "error_code": None if row is None else row.error_code,
        "evidence": None if row is None else row.note,
    }


def _csv_line(cells: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)  # it quotes line breaks if they end its lines
    return line.getvalue().removesuffix("\r\n")
