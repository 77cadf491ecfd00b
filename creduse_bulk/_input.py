"""Input files: CSV or JSON Lines, one item in each record. What happens to items does not belong here.

A file is read as a stream, so that memory does not grow with it.
"""

import csv
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO, TypeAlias
from uuid import UUID

from creduse_core.arguments import checked_count, checked_user_id

if TYPE_CHECKING:
    import _csv  # it has the type of csv.reader
    from typing import Self

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "add": ("end_user_id", "amount", "validity_days"),
    "subtract": ("end_user_id", "amount"),
    "start_cycle": ("end_user_id", "amount", "validity_days"),
    "stop_cycle": ("end_user_id",),
}
"""The columns that each method uses. ``validity_days`` can be left out."""
CHUNK: Final = 1000
"""Records at a time."""

_KNOWN: Final = ("end_user_id", "amount", "validity_days", "id")
DEFAULT_DAYS: Final = 31
_SHOWN: Final = 10
"""Problems that an error lists."""
_MOST_PROBLEMS: Final = 1000
"""Problems after which the rest of the file is not read."""
_NUMBER: Final = re.compile(r"[0-9]{1,3000}")

Cells: TypeAlias = list[str] | str
"""The cells of CSV, or a line of JSON."""
Values: TypeAlias = dict[str, Any]
"""A record's values by their columns."""


class InputError(ValueError):
    """The input file cannot be used. Nothing was sent."""


class Item(NamedTuple):
    """One call to make."""

    number: int
    """Its place in the file, from 1 on."""
    user: UUID
    amount: int | None
    validity_days: int | None


class Record(NamedTuple):
    """A record as it stands in the file."""

    number: int
    """Its place in the file, from 1 on. An item has the number of its record."""
    line: int
    """The line in which it begins, from 1 on."""
    cells: Cells


@dataclass(slots=True)
class Overview:
    """What is in a file."""

    items: int = 0
    total: int = 0
    """The sum of the amounts."""
    users: int = 0
    ignored: tuple[str, ...] = ()
    """Columns that are not used."""


class Input:
    """An open input file. Use it with ``with``.

    Raises:
        InputError: The file cannot be read, or its header is wrong.
    """

    def __init__(self, path: Path, method: str) -> None:
        self.path = path
        self.method = method
        try:
            self._file = path.open("rb")
            self._stamp = self._read_stamp()
            self.digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        with self._lines() as lines:
            head = lines.readline()
        self.is_json = head.lstrip().startswith("{")
        self._delimiter = max(",;\t", key=head.count)
        self.columns: Sequence[str] = ()
        """The columns of CSV."""
        if not self.is_json:
            self._read_header()

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    # Reading.

    def _read_stamp(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns

    @contextmanager
    def _lines(self) -> Generator[TextIO]:
        """Read the file from its beginning."""
        self._file.seek(0)
        # The same file, even if another one has its name by now. Excel writes a byte order mark.
        with open(os.dup(self._file.fileno()), encoding="utf-8-sig", newline="") as lines:  # noqa: PTH123 - a descriptor
            try:
                yield lines
            except UnicodeDecodeError as error:
                raise InputError(f"{self.path} is not UTF-8: {error}") from None

    def _read_header(self) -> None:
        with self._lines() as lines:
            names = next(self._reader(lines), list[str]())
        self.columns = [name.strip() for name in names]
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise InputError(f"{self.path}: the header has the column {twice[0]!r} twice")
        try:
            self._check_columns(self.columns)
        except ValueError as error:
            raise InputError(f"{self.path}: {error}") from None
        for name in COLUMNS[self.method]:
            if name not in self.columns and name != "validity_days":
                shown = ", ".join(map(repr, self.columns)) or "nothing"
                raise InputError(
                    f"{self.path}: the first line must name the columns, among them {name}; "
                    f"it has {shown[:200]}"
                )

    def _reader(self, lines: TextIO) -> "_csv.Reader":
        return csv.reader(lines, strict=True, delimiter=self._delimiter)

    def _check_columns(self, names: Iterable[str]) -> None:
        """Raise ``ValueError`` if a column may be a misspelled one, or belongs to another method."""
        wanted = COLUMNS[self.method]
        for name in names:
            if name in wanted or name == "id":
                continue
            if name in _KNOWN:
                method = self.method.replace("_", "-")
                raise ValueError(f"{method} has no {name}: remove it, or use another method")
            folded = re.sub(r"[\s-]", "_", name.strip().lower())
            if meant := get_close_matches(folded, _KNOWN, 1, 0.85):
                raise ValueError(f"the column {name!r} must be called {meant[0]!r}")

    def chunks(self) -> Iterator[list[Record]]:
        """Return all records, many at a time.

        Raises:
            InputError: A record is not CSV, or the file was changed.
        """
        with self._lines() as lines:
            read = self._json_rows if self.is_json else self._csv_rows
            rows = enumerate(read(lines), 1)
            while chunk := [Record(number, *row) for number, row in islice(rows, CHUNK)]:
                # Whoever reads on may send what is in the chunk.
                if self._read_stamp() != self._stamp:
                    raise InputError(f"{self.path} was changed while it was read")
                yield chunk

    def _csv_rows(self, lines: TextIO) -> Iterator[tuple[int, Cells]]:
        reader = self._reader(lines)
        line = 1
        try:
            for cells in reader:
                # The first record is the header. An empty line is none.
                if line > 1 and cells:
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"{self.path}, line {line}: {error}") from None

    def _json_rows(self, lines: TextIO) -> Iterator[tuple[int, Cells]]:
        return ((line, text) for line, text in enumerate(lines, 1) if text.strip())

    def values(self, record: Record) -> Values:
        """Return a record's values, or raise ``ValueError``."""
        cells = record.cells
        if isinstance(cells, list):
            if len(cells) != len(self.columns):
                raise ValueError(f"{len(cells)} values, but {len(self.columns)} columns")
            return dict(zip(self.columns, cells, strict=True))
        try:
            values: object = json.loads(cells)
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004 - it is the value of a file
        return dict[str, Any](values)

    def item(self, record: Record) -> Item:
        """Return a record's item, or raise ``ValueError``."""
        values = self.values(record)
        if self.is_json:
            self._check_columns(values)
        try:
            return Item(record.number, *_READERS[self.method](values))
        except TypeError as error:
            raise ValueError(str(error)) from None

    def examine(self, shard: "Shard | None" = None) -> Overview:
        """Check the whole file, and return what is in it, or in a shard of it.

        Raises:
            InputError: Something is wrong. It names the first lines.
        """
        problems: list[str] = []
        overview = Overview()
        names = dict.fromkeys(self.columns)
        # On the disk: nothing else must know all items at once.
        with closing(sqlite3.connect("", isolation_level=None)) as seen:
            seen.execute("CREATE TABLE seen (line INTEGER, user BLOB, id TEXT)")
            seen.execute("BEGIN")
            for chunk in self.chunks():
                rows: list[tuple[int, bytes | None, str | None]] = []
                for record in chunk:
                    try:
                        values, item = self.values(record), self.item(record)
                        item_id = _item_id(values)
                    except ValueError as error:
                        problems.append(f"line {record.line}: {error}")
                        continue
                    if self.is_json:
                        names |= dict.fromkeys(values)
                    is_ours = shard is None or shard.has(item.user)
                    rows.append((record.line, item.user.bytes if is_ours else None, item_id))
                    overview.items += is_ours
                    overview.total += (item.amount or 0) if is_ours else 0
                seen.executemany("INSERT INTO seen VALUES (?, ?, ?)", rows)
                if len(problems) > _MOST_PROBLEMS:
                    break
            problems += [
                f"line {last}: the id {item_id!r} is that of line {first}, too"
                for item_id, first, last in seen.execute(_SAME_IDS, (_MOST_PROBLEMS,))
            ]
            ((overview.users,),) = seen.execute("SELECT count(DISTINCT user) FROM seen")
        if problems:
            more = len(problems) - _SHOWN
            rest = [f"and {more} more"] if more > 0 else []
            raise InputError("\n".join([f"{self.path}:", *problems[:_SHOWN], *rest]))
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
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value.strip()):
            raise ValueError(f"{name} must be a whole number such as 100, not {value[:100]!r}")
        return int(value)
    return checked_count(name, value)


def _days(values: Values) -> int:
    if values.get("validity_days") in {None, ""}:
        return DEFAULT_DAYS
    return _count("validity_days", values)


def _item_id(values: Values) -> str | None:
    if "id" not in values:
        return None
    item_id: object = values["id"]
    if isinstance(item_id, bool) or not isinstance(item_id, str | int) or item_id == "":
        raise ValueError("id must be text that no other line has")
    return str(item_id)


_READERS: Final[Mapping[str, Callable[[Values], tuple[UUID, int | None, int | None]]]] = {
    "add": lambda values: (_user(values), _count("amount", values), _days(values)),
    "subtract": lambda values: (_user(values), _count("amount", values), None),
    "start_cycle": lambda values: (_user(values), _count("amount", values), _days(values)),
    "stop_cycle": lambda values: (_user(values), None, None),
}


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
        digest = hashlib.sha256(user.bytes).digest()
        return int.from_bytes(digest[:8]) % self.count == self.number - 1
