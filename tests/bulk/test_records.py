"""Files as people have them: what a record is, and in which line it begins."""

import csv
import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from creduse_bulk import InputError
from creduse_bulk._records import MOST_PROBLEMS, Records, check_problems, shown


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file."""
    return tmp_path / "file"


def read(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the line and the values of each record."""
    with Records(path) as records:
        found = [record for chunk in records.chunks() for record in chunk]
        assert [record.number for record in found] == list(range(1, len(found) + 1))
        return [(record.line, records.values(record)) for record in found]


def problem(path: Path) -> str:
    """Return why a file, or a record of it, is refused."""
    with pytest.raises(ValueError, match=r".") as caught:
        read(path)
    return str(caught.value).replace(str(path), "FILE")


FIRST, SECOND = {"a": "1", "b": "2"}, {"a": "3", "b": "4"}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"a,b\n1,2\n3,4\n", [(2, FIRST), (3, SECOND)]),
        (b"a,b\n1,2\n3,4", [(2, FIRST), (3, SECOND)]),
        (b"a,b\r\n1,2\r\n3,4\r\n", [(2, FIRST), (3, SECOND)]),
        (b"a,b\r1,2\r3,4\r", [(2, FIRST), (3, SECOND)]),
        (b"\xef\xbb\xbfa,b\n1,2\n", [(2, FIRST)]),
        (b'\xef\xbb\xbf"a";"b"\r\n"1";"2"\r\n', [(2, FIRST)]),
        (b"a;b\n1;2\n", [(2, FIRST)]),
        (b"a\tb\n1\t2\n", [(2, FIRST)]),
        (b" a , b\n1,2\n", [(2, FIRST)]),
        (b"a;b\n1,5;2\n", [(2, {"a": "1,5", "b": "2"})]),
        (b"a\n1\n", [(2, {"a": "1"})]),
        (b"a,b\n\n1,2\n\r\n\n3,4\n\n", [(3, FIRST), (6, SECOND)]),
        (b"\n\na,b\n1,2\n", [(4, FIRST)]),
        (b'a,b\n"1\n\r\n",2\n3,4\n', [(2, {"a": "1\n\r\n", "b": "2"}), (5, SECOND)]),
        (b'a,"b\nb"\n1,2\n', [(3, {"a": "1", "b\nb": "2"})]),
        (b'a,b\n"1""",","\n', [(2, {"a": '1"', "b": ","})]),
        (b"a,b\n 1 ,\xc3\xa9\n", [(2, {"a": " 1 ", "b": "é"})]),
        (b"a,b\n1\0,2\n", [(2, {"a": "1\0", "b": "2"})]),
        (b"a,b\n,\n", [(2, {"a": "", "b": ""})]),
        (b"a,b\n", []),
        (b"a,b", []),
        (b"", []),
        (b"\n\n", []),
        (b"\xef\xbb\xbf", []),
    ],
)
def test_csv(path: Path, content: bytes, found: list[tuple[int, Any]]) -> None:
    """CSV is read as Excel, databases and editors write it, and lines are counted as they do."""
    path.write_bytes(content)
    assert read(path) == found


CELLS = st.text(st.sampled_from('a1,;\t"\r\n é\0'), max_size=6)


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.tuples(CELLS, CELLS), max_size=20),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_any_cells(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    delimiter: str,
    end: str,
    mark: bool,  # noqa: FBT001 - hypothesis passes it
) -> None:
    """Whatever the cells hold, they are read as they were written, and their lines are right."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(["a", "b"])
    wanted: list[tuple[int, dict[str, str]]] = []
    for a, b in rows:
        line = 1 + len(re.findall("\r\n|\r|\n", text.getvalue()))
        wanted.append((line, {"a": a, "b": b}))
        writer.writerow([a, b])
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    path.write_bytes(text.getvalue().encode("utf-8-sig" if mark else "utf-8"))
    assert read(path) == wanted


JSON: dict[bytes, list[tuple[int, Any]]] = {
    b'{"a": 1}\n{"a": "2"}\n': [(1, {"a": 1}), (2, {"a": "2"})],
    b'{"a": 1}\r\n{"a": 2}': [(1, {"a": 1}), (2, {"a": 2})],
    b'\xef\xbb\xbf{"a": 1}\n': [(1, {"a": 1})],
    b'\n\n  {"a": 1}\n \t\n\n{"a": 2}\n\n': [(3, {"a": 1}), (6, {"a": 2})],
    b'{"a": [null, true, 1.5, {"b": {}}]}\n': [(1, {"a": [None, True, 1.5, {"b": {}}]})],
    b'{"a": "\\u00e9\xc3\xa9\xe2\x80\xa8\\ud83d\\ude00"}\n': [(1, {"a": "éé\u2028😀"})],
    b"{}\n": [(1, {})],
}


@pytest.mark.parametrize(("content", "found"), JSON.items())
def test_json(path: Path, content: bytes, found: list[tuple[int, Any]]) -> None:
    """A file whose first line with anything in it begins with { is JSON Lines."""
    path.write_bytes(content)
    assert read(path) == found


NOT_UTF8 = "not UTF-8: save it as UTF-8"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,a\n", "FILE: the header has the column 'a' twice"),
        (b"a, a \n", "FILE: the header has the column 'a' twice"),
        (b"a,,\n", "FILE: the header has the column '' twice"),
        (b"x" * 999 + b"," + b"x" * 999, f"FILE: the header has the column '{'x' * 99}… twice"),
        (b'"a,b\n1,2\n', "FILE, line 1: unexpected end of data"),
        (b'a,b\n1,2\n"3,4\n5,6\n', "FILE, line 3: unexpected end of data"),
        (b'a,b\n"\n",2\n"3"4,5\n', "FILE, line 4: ',' expected after '\"'"),
        (
            b"a,b\n1," + b"x" * 200_000,
            "FILE, line 2: field larger than field limit (131072)",
        ),
        (b"\xe9,b\n1,2\n", f"FILE, line 1: {NOT_UTF8}"),
        (b"a,b\n1,2\n" * 5000 + b"1,\xe9\n" * 2, f"FILE, line 10001: {NOT_UTF8}"),
        ("a,b\n1,2\n".encode("utf-16"), f"FILE, line 1: {NOT_UTF8}"),
        (b"a,b\n1\n", "1 values, but 2 columns"),
        (b"a,b\n1,2,3\n", "3 values, but 2 columns"),
        (b"a,b\n   \n", "1 values, but 2 columns"),
        (b'{"a": "\xe9"}', f"FILE, line 1: {NOT_UTF8}"),
        (b'{"a": }', "not JSON: Expecting value at column 7"),
        (b'{"a": 1', "not JSON: Expecting ',' delimiter at column 8"),
        (b'{"a": "1\0"}', "not JSON: Invalid control character at at column 9"),
        (b'{"a": 1} {"a": 2}', "not JSON: Extra data at column 10"),
        (b"{}\n[1]", "not a JSON object"),
        (b"{}\nnull", "not a JSON object"),
        (b'{}\n"a"', "not a JSON object"),
        (b'{"a": 1, "a": 2}', "the name 'a' is there twice"),
        (b'{"a": {"b": 1, "b": 1}}', "the name 'b' is there twice"),
    ],
)
def test_wrong_file(path: Path, content: bytes, message: str) -> None:
    """What is not CSV or JSON Lines is refused, with its line."""
    path.write_bytes(content)
    assert problem(path) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": %b}' % (b"1" * 5000), "Exceeds the limit"),
        (b'{"a": %b' % (b"[" * 200_000), "while decoding a JSON array"),
        (b'{"a": %b' % (b'{"b":' * 200_000), "while decoding a JSON object"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"\\udfff": 1}', "surrogates not allowed"),
    ],
)
def test_what_python_cannot_read(path: Path, content: bytes, message: str) -> None:
    """JSON with what Python cannot read or write is refused."""
    path.write_bytes(content)
    assert message in problem(path)


def test_no_file(path: Path) -> None:
    """What does not exist, or cannot be read twice, is refused, and nobody waits for a pipe."""
    assert problem(path) == "FILE cannot be read: No such file or directory"
    os.mkfifo(path)
    assert problem(path) == "FILE must be a file, which can be read more than once"
    path.unlink()
    path.mkdir()
    assert problem(path) == "FILE must be a file, which can be read more than once"
    assert "cannot be read: Not a directory" in problem(Path(__file__) / "x")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no such file")
def test_cannot_be_read() -> None:
    """A file that the system cannot read is refused."""
    with pytest.raises(InputError, match="/proc/self/mem cannot be read: Input/output error"):
        Records(Path("/proc/self/mem"))


def test_read_again(path: Path) -> None:
    """Each reading begins at the beginning, whatever became of the one before."""
    path.write_text("a\n" + "".join(f"{number}\n" for number in range(2500)))
    with Records(path) as records:
        assert records.digest == hashlib.sha256(path.read_bytes()).hexdigest()
        abandoned = records.chunks()
        assert [len(chunk) for chunk in (next(abandoned), next(abandoned))] == [1000, 1000]
        for _ in range(2):
            found = [record for chunk in records.chunks() for record in chunk]
            assert [record.cells for record in found] == [[str(it)] for it in range(2500)]


def append(path: Path) -> None:
    """Add a record."""
    with path.open("a") as file:
        file.write("5\n")


def overwrite(path: Path) -> None:
    """Change a record, not the file's size."""
    found = path.stat()
    with path.open("r+") as file:
        file.write("a\n9")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


def shorten(path: Path) -> None:
    """Take what was not yet read."""
    os.truncate(path, len("a\n") + 1000 * len("1111111111\n"))


@pytest.mark.parametrize("change", [append, overwrite, shorten])
@pytest.mark.parametrize("lines", [1000, 3000])
@pytest.mark.parametrize("chunks", [0, 1])
def test_changed(path: Path, change: Any, lines: int, chunks: int) -> None:
    """A file that is changed in place is noticed before another record is given out, or the end."""
    path.write_text("a\n" + "1111111111\n" * (lines + 1))
    with Records(path) as records:
        reading = records.chunks()
        for _ in range(chunks):
            next(reading)
        change(path)
        with pytest.raises(InputError, match="was changed while it was read"):
            list(reading)


def test_emptied(path: Path) -> None:
    """A file that has lost all its records is not an empty one."""
    path.write_text("a\n1\n")
    with Records(path) as records:
        os.truncate(path, 2)
        with pytest.raises(InputError, match="was changed while it was read"):
            list(records.chunks())


def test_replaced(path: Path) -> None:
    """If another file takes the name, the one that was opened is read on."""
    path.write_text("a\n" + "1\n" * 3000)
    with Records(path) as records:
        reading = records.chunks()
        next(reading)
        other = path.with_name("other")
        other.write_text("a\n9\n")
        other.replace(path)
        assert [len(chunk) for chunk in reading] == [1000, 1000]
        path.unlink()
        assert sum(map(len, records.chunks())) == 3000


def test_problems(path: Path) -> None:
    """An error lists ten problems, and counts the rest as far as the file was read."""
    check_problems(path, [])

    def lines(count: int) -> list[str]:
        with pytest.raises(InputError) as caught:
            check_problems(path, [f"line {number}" for number in range(count)])
        return str(caught.value).splitlines()

    assert lines(1) == [f"{path}:", "line 0"]
    ten = [f"{path}:", *(f"line {number}" for number in range(10))]
    assert lines(10) == ten
    assert lines(11) == [*ten, "and 1 more"]
    assert lines(MOST_PROBLEMS - 1) == [*ten, "and 989 more"]
    assert lines(MOST_PROBLEMS + 5) == [*ten, "and at least 995 more"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("5", "'5'"),
        (None, "None"),
        (True, "True"),
        (1.5, "1.5"),
        (10**99, "1" + "0" * 99),
        (10**100, "1" + "0" * 99 + "…"),
        ("x" * 98, f"'{'x' * 98}'"),
        ("x" * 99, f"'{'x' * 99}…"),
        ([json.loads("[" * 50 + "]" * 50)], "list"),
    ],
)
def test_shown(value: object, text: str) -> None:
    """A message shows a value, or the beginning of a long one."""
    assert shown(value) == text
