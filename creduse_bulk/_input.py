"""Input files: one item in each record. Reading records (`_records`) does not belong here."""

import hashlib
import re
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

from creduse_core.arguments import checked_user_id

from ._records import (
    MOST_PROBLEMS,
    InputError,
    Record,
    Records,
    Values,
    check_problems,
    shown,
)

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "add": ("end_user_id", "amount", "validity_days"),
    "subtract": ("end_user_id", "amount"),
    "start_cycle": ("end_user_id", "amount", "validity_days"),
    "stop_cycle": ("end_user_id",),
}
"""The columns that each method uses. ``validity_days`` can be left out."""
DEFAULT_DAYS: Final = 31
"""``validity_days`` where nothing is given."""

_KNOWN: Final = ("end_user_id", "amount", "validity_days", "id")
_OF_A_REPORT: Final = frozenset({"line", "state", "outcome", "event"})
_NUMBER: Final = re.compile(r"[0-9]{1,3000}")


class Item(NamedTuple):
    """One call to make."""

    number: int
    """The number of its record."""
    method: str
    user: UUID
    amount: int | None
    validity_days: int | None


@dataclass(slots=True)
class Overview:
    """What is in a file, or in a shard of it."""

    items: int = 0
    total: int = 0
    """The sum of the amounts."""
    users: int = 0
    ignored: tuple[str, ...] = ()
    """Columns that are not used."""
    parts: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    """Items and their amounts in each shard of the file, by its number."""


class Input(Records):
    """An open input file, for the calls of one method.

    Raises:
        InputError: The file cannot be read, or its header is wrong.
    """

    def __init__(self, path: Path, method: str) -> None:
        self.method = method
        super().__init__(path)

    def _begin(self) -> None:
        super()._begin()
        if self.is_json:
            return
        try:
            self._check_columns(self.columns)
        except ValueError as error:
            raise InputError(f"{self.path}: {error}") from None
        for name in COLUMNS[self.method]:
            if name not in self.columns and name != "validity_days":
                raise InputError(
                    f"{self.path}: the first line must name the columns, among them {name}; "
                    f"it has {shown(', '.join(self.columns))}"
                )

    def _check_columns(self, names: Collection[str]) -> None:
        """Raise ``ValueError`` if a column may be a misspelled one, or belongs to another method."""
        missing = tuple(name for name in COLUMNS[self.method] if name not in names)
        for name in names:
            if problem := _problem_of_column(self.method, name, missing):
                raise ValueError(problem)

    def item(self, record: Record) -> Item:
        """Return a record's item, or raise ``ValueError``."""
        return self._item(record.number, self.values(record))

    def _item(self, number: int, values: Values) -> Item:
        if self.is_json:
            self._check_columns(values)
        try:
            used = COLUMNS[self.method]
            return Item(
                number,
                self.method,
                _user(values),
                _count("amount", values) if "amount" in used else None,
                _days(values) if "validity_days" in used else None,
            )
        except TypeError as error:
            raise ValueError(str(error)) from None

    def examine(self, shard: "Shard | None" = None) -> Overview:
        """Check the whole file, and return what is in it, or in a shard of it.

        Raises:
            InputError: Something is wrong. It names the first lines.
        """
        # On the disk: nothing else must know all items at once.
        with closing(sqlite3.connect("", isolation_level=None)) as seen:
            try:
                return self._examine(shard, seen)
            except sqlite3.Error as error:
                raise InputError(
                    f"{self.path} cannot be checked: a temporary file: {error}"
                ) from error

    def _examine(self, shard: "Shard | None", seen: sqlite3.Connection) -> Overview:
        problems: list[str] = []
        overview = Overview()
        names = dict.fromkeys(self.columns)
        seen.execute("CREATE TABLE seen (line INTEGER, user BLOB, id TEXT)")
        seen.execute("BEGIN")
        for chunk in self.chunks():
            rows: list[tuple[int, bytes | None, str | None]] = []
            for record in chunk:
                try:
                    values = self.values(record)
                    item, item_id = self._item(record.number, values), _item_id(values)
                    _check_report(values)
                except ValueError as error:
                    problems.append(f"line {record.line}: {error}")
                    continue
                if self.is_json:
                    names |= dict.fromkeys(values)
                part = shard_of(item.user, 1 if shard is None else shard.count)
                is_ours = shard is None or part == shard.number
                rows.append((record.line, item.user.bytes if is_ours else None, item_id))
                items, total = overview.parts.get(part, (0, 0))
                overview.parts[part] = items + 1, total + (item.amount or 0)
            seen.executemany("INSERT INTO seen VALUES (?, ?, ?)", rows)
            if len(problems) >= MOST_PROBLEMS:
                break
        problems += [
            f"line {last}: the id {shown(item_id)} is that of line {first}, too"
            for item_id, first, last in seen.execute(_SAME_IDS, (MOST_PROBLEMS,))
        ]
        check_problems(self.path, problems)
        ((overview.users,),) = seen.execute("SELECT count(DISTINCT user) FROM seen")
        overview.items, overview.total = overview.parts.get(
            1 if shard is None else shard.number, (0, 0)
        )
        overview.ignored = tuple(name for name in names if name not in _KNOWN)
        return overview


_SAME_IDS: Final = """
    SELECT id, min(line), max(line) FROM seen WHERE id IS NOT NULL
    GROUP BY id HAVING count(*) > 1 ORDER BY min(line) LIMIT ?
"""


def _user(values: Values) -> UUID:
    user: object = values.get("end_user_id")
    return checked_user_id(user.strip() if isinstance(user, str) else user)[0]


def _count(name: str, values: Values) -> int:
    value: object = values.get(name)
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{name} must be a whole number such as 100, not {shown(value)}")
    return int(text)


def _days(values: Values) -> int:
    value: object = values.get("validity_days")
    if value is None or (isinstance(value, str) and not value.strip()):
        return DEFAULT_DAYS
    return _count("validity_days", values)


def _check_report(values: Values) -> None:
    """Raise ``ValueError`` if this is the line of a report, and may have been applied."""
    if values.keys() >= _OF_A_REPORT and values["state"] not in ("refused", "waiting"):
        raise ValueError(
            f"the file is a report, and this line's state is {shown(values['state'])}: send only those "
            "that were refused or are waiting, as report --only waiting prints"
        )


def _item_id(values: Values) -> str | None:
    if "id" not in values:
        return None
    item_id: object = values["id"]
    if isinstance(item_id, bool) or not isinstance(item_id, str | int) or not str(item_id).strip():
        raise ValueError("id must be text that no other line has")
    return str(item_id)


@lru_cache
def _problem_of_column(method: str, name: str, missing: tuple[str, ...]) -> str | None:
    """Return what is wrong with a column that may be a misspelled one, or another method's."""
    if name in COLUMNS[method] or name == "id":
        return None
    if name in _KNOWN:
        return f"{method.replace('_', '-')} has no {name}: remove it, or use another method"
    folded = re.sub(r"[\s-]", "_", name.strip().lower())
    meant = get_close_matches(folded, _KNOWN, 1, 0.85) or get_close_matches(
        folded, missing, 1, 0.75
    )
    return f"the column {shown(name)} must be called {meant[0]!r}" if meant else None


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of all users: part ``number`` of ``count``. A user is always in the same one."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"shard must be from 1/{self.count} to {self.count}/{self.count}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, user: UUID) -> bool:
        """Return whether a user is in this part."""
        return shard_of(user, self.count) == self.number


def shard_of(user: UUID, count: int) -> int:
    """Return the number of a user's part, of ``count`` parts."""
    if count == 1:
        return 1
    digest = hashlib.sha256(user.bytes).digest()
    return int.from_bytes(digest[:8]) % count + 1
