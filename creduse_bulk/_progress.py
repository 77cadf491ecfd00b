"""How far a run is, and where its journal is. What each item became (`_report`) does not belong here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from creduse_journal import JournalError, State
from creduse_journal.urls import is_url

from ._input import Shard
from ._items import Begun, Place, check_identity, name_of
from ._records import InputError
from ._sqlite import SqlitePlace


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. Each item is counted once."""

    items: int
    """All items of the file, or of the shard."""
    applied: int
    refused: int
    unclear: int
    in_flight: int = 0
    pause: str | None = None
    """Why nothing is sent at the moment, or ``None``."""
    stopped: str | None = None
    """Why the run, or some shards of it, have stopped before their end, or ``None``."""
    is_going_on: bool = False
    """For `status`: whether a process has the run, or a shard of it, open, and sends."""

    @property
    def waiting(self) -> int:
        """Items that were not applied, and can be sent. Some may wait for an unclear one."""
        return self.items - self.applied - self.refused - self.unclear - self.in_flight

    @property
    def exit_status(self) -> int:
        """The exit status of the command.

        0 if all items are applied, 1 if some were refused, 3 if some are unclear, 75 if some are waiting
        and another run can send them.
        """
        if self.in_flight or (self.waiting and (self.stopped is not None or not self.unclear)):
            return 75
        if self.unclear:
            return 3
        return 1 if self.refused else 0


def progress_of(items: int, states: Mapping[State, int], *rest: Any) -> Progress:
    """Return how far a run is, from the number of rows in each state."""
    return Progress(
        items, states[State.APPLIED], states[State.REFUSED], states[State.UNCLEAR], *rest
    )


def place_of(file: Path, journal: str | PathLike[str] | None, shard: Shard | None) -> Place:
    """Return where the journal of a file, or of a shard, is: beside the file by default."""
    if not file.name:
        raise InputError(f"{file} must be a file")
    if is_url(journal):
        from ._postgres import PostgresPlace  # noqa: PLC0415 - it may not be installed

        return PostgresPlace(journal, file.name, shard)
    part = "" if shard is None else f".{shard.number}-of-{shard.count}"
    path = Path(f"{file}{part}.journal" if journal is None else journal)
    if not path.name:
        raise InputError(f"{path} must be a file")
    return SqlitePlace(path)


def check_alone(file: Path, shard: Shard | None) -> None:
    """Raise `JournalError` if a run of the file has begun that divides it otherwise.

    Both together would send lines twice. A journal elsewhere is not found.
    """
    of_shards = re.compile(re.escape(file.name) + r"\.[0-9]+-of-[0-9]+\.journal")
    shards = sorted(it for it in file.parent.iterdir() if of_shards.fullmatch(it.name))
    for place in (place_of(file, None, None), *map(SqlitePlace, shards)):
        found = read_journal(place)
        if found is None:
            continue
        part = found[0].identity.shard
        if part.partition("/")[2] != ("" if shard is None else str(shard.count)):
            raise JournalError(
                f"{place}: a run of {part} has begun, so {name_of(shard)} cannot be sent: lines would "
                "be sent twice"
            )


def read_journal(place: Place) -> tuple[Begun, Progress] | None:
    """Return what a journal says of its run, and how far it is; or ``None`` if it has not begun.

    Another process may be its owner, which sends just now.
    """
    with place.read() as reader:
        run = None if reader is None else reader.begun()
        if reader is None or run is None:
            return None
        states, is_going_on = reader.counts(), reader.is_going_on
    return run, progress_of(
        run.items, states, states[State.CLAIMED], None, run.stopped, is_going_on
    )


def read_begun(
    file: Path, journal: str | PathLike[str] | None, shard: Shard | None
) -> tuple[Place, Begun, Progress]:
    """Return where the journal of a run is, what it says, and how far the run is.

    Raises:
        JournalError: No run has begun, or the journal cannot be read.
    """
    place = place_of(file, journal, shard)
    found = read_journal(place)
    if found is None:
        raise JournalError(f"{place}: no run of {file} has begun")
    kept = found[0].identity
    check_identity(place, kept, replace(kept, shard=name_of(shard)))
    return place, *found


def status(
    file: str | PathLike[str],
    *,
    journal: str | PathLike[str] | None = None,
    shard: Shard | None = None,
) -> Progress:
    """Return how far the run of a file is. It may be going on in another process.

    Raises:
        JournalError: No run has begun, or the journal cannot be read.
    """
    return read_begun(Path(file), journal, shard)[2]
