"""Files of records: CSV with a header, or JSON Lines. What the values mean does not belong here.

A file is read as a stream, so that memory does not grow with it.
"""

import csv
import hashlib
import json
import os
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO, TypeAlias, TypeGuard

if TYPE_CHECKING:
    from typing import Self

_CHUNK: Final = 1000
"""Records at a time."""
_SHOWN: Final = 10
"""Problems that an error lists."""
MOST_PROBLEMS: Final = 1000
"""Problems after which a file is not read on."""
_LONGEST: Final = 100
"""Characters of a value in a message."""

Cells: TypeAlias = list[str] | str
"""The cells of CSV, or a line of JSON."""
Values: TypeAlias = dict[str, Any]
"""A record's values by their columns."""


class InputError(ValueError):
    """A file cannot be used. Nothing was sent."""


class Record(NamedTuple):
    """A record as it stands in the file."""

    number: int
    """Its place in the file, from 1 on."""
    line: int
    """The line in which it begins, from 1 on."""
    cells: Cells


class Records:
    """An open file of records. Use it with ``with``.

    Raises:
        InputError: The file cannot be read, or its header is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._errors():
            # Before it is opened: to open a pipe would wait for its writer.
            if not stat.S_ISREG(path.stat().st_mode):
                raise InputError(f"{path} must be a file, which can be read more than once")
            self._file = path.open("rb", buffering=0)
            try:
                self._begin()
            except BaseException:
                self._file.close()
                raise

    def _begin(self) -> None:
        self._stamp = _stamp(os.fstat(self._file.fileno()))
        self.digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        """The SHA-256 of the file."""
        with self._lines() as lines:
            head = next((line for line in lines if line.strip()), "")
        self.is_json = head.lstrip().startswith("{")
        self._delimiter = max(",;\t", key=head.count)
        self.columns: Sequence[str] = ()
        """The columns of CSV."""
        if not self.is_json:
            with self._lines() as lines:
                _, names = next(self._csv_rows(lines), (1, list[str]()))
            self.columns = [name.strip() for name in names]
            twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
            if twice:
                raise InputError(f"{self.path}: the header has the column {shown(twice[0])} twice")

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    @contextmanager
    def _errors(self) -> Generator[None]:
        """Raise errors of the system as `InputError`."""
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from None

    @contextmanager
    def _lines(self) -> Generator[TextIO]:
        """Read the file from its beginning."""
        self._file.seek(0)
        # The same file, even if another one has its name by now. Excel writes a byte order mark.
        with (
            self._errors(),
            open(os.dup(self._file.fileno()), encoding="utf-8-sig", newline="") as lines,  # noqa: PTH123 - a descriptor
        ):
            try:
                yield lines
            except UnicodeDecodeError:
                raise InputError(
                    f"{self.path}, line {self._line_not_in_utf8()}: not UTF-8: save it as UTF-8"
                ) from None

    def _line_not_in_utf8(self) -> int:
        """Return the first line that is not UTF-8."""
        self._file.seek(0)
        with open(os.dup(self._file.fileno()), "rb") as lines:  # noqa: PTH123 - a descriptor
            return next((number for number, line in enumerate(lines, 1) if not _is_utf8(line)), 1)

    def chunks(self) -> Iterator[list[Record]]:
        """Return all records, many at a time. Only one reader can read at a time.

        Raises:
            InputError: A record is not CSV, or the file was changed.
        """
        with self._lines() as lines:
            rows: Iterator[tuple[int, Cells]] = (
                self._json_rows(lines) if self.is_json else islice(self._csv_rows(lines), 1, None)
            )
            numbered = enumerate(rows, 1)
            while True:
                chunk = [Record(number, *row) for number, row in islice(numbered, _CHUNK)]
                # The caller sends what is in the chunk. At its end, the file can have been cut.
                if _stamp(os.fstat(self._file.fileno())) != self._stamp:
                    raise InputError(f"{self.path} was changed while it was read")
                if not chunk:
                    return
                yield chunk

    def _csv_rows(self, lines: TextIO) -> Iterator[tuple[int, list[str]]]:
        """Return the header and all records. An empty line is neither."""
        reader = csv.reader(lines, strict=True, delimiter=self._delimiter)
        line = 1
        try:
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"{self.path}, line {line}: {error}") from None

    def _json_rows(self, lines: TextIO) -> Iterator[tuple[int, str]]:
        return ((line, text) for line, text in enumerate(lines, 1) if text.strip())

    def values(self, record: Record) -> Values:
        """Return a record's values, or raise ``ValueError``."""
        cells = record.cells
        if isinstance(cells, list):
            if len(cells) != len(self.columns):
                raise ValueError(f"{len(cells)} values, but {len(self.columns)} columns")
            return dict(zip(self.columns, cells, strict=True))
        try:
            values: object = json.loads(cells, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
        except RecursionError as error:
            raise ValueError(str(error)) from None
        if not _is_object(values):
            raise ValueError("not a JSON object")
        if "\\u" in cells:
            # Half of a character cannot be written anywhere.
            json.dumps(values, ensure_ascii=False).encode()
        return values


def check_problems(path: Path, problems: list[str]) -> None:
    """Raise `InputError` if there are any."""
    if problems:
        more = len(problems) - _SHOWN
        least = "at least " if len(problems) >= MOST_PROBLEMS else ""
        rest = [f"and {least}{more:,} more"] if more > 0 else []
        raise InputError("\n".join([f"{path}:", *problems[:_SHOWN], *rest]))


def shown(value: object) -> str:
    """Return a value for a message. A long one is cut."""
    is_short = value is None or isinstance(value, str | int | float)
    text = repr(value) if is_short else type(value).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _stamp(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _object(pairs: list[tuple[str, object]]) -> Values:
    """Return a JSON object, each of whose names is there once."""
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {shown(twice)} is there twice")
    return values


def _is_object(value: object) -> TypeGuard[Values]:
    return isinstance(value, dict)
