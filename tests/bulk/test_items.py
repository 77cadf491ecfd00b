"""The journal of a run: each state with each change, and who may open it."""

import itertools
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from creduse_bulk import Shard, status
from creduse_bulk._items import Begun, Claim, Ended, Items, Place, check_identity
from creduse_bulk._progress import place_of, read_journal
from creduse_bulk._sqlite import SqlitePlace
from creduse_core import LocalProtocolError
from creduse_journal import RULES, Change, InUseError, Journal, JournalError, State
from tests.bulk.conftest import (
    IDENTITY,
    begin,
    claim,
    contents,
    ended,
    is_owned,
    put,
    rows,
    states,
    user,
)
from tests.common import KEY, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a journal in SQLite."""
    return tmp_path / "grants.csv.journal"


@pytest.fixture
def sqlite(path: Path) -> Place:
    """Where the journal is, for what only SQLite has."""
    return SqlitePlace(path)


def can_end(place: Place) -> set[State]:
    """Return the states that the end of a call changes.

    In PostgreSQL, others may have doubted or settled the items of a process that has lost its locks.
    """
    return {State.CLAIMED, *(() if isinstance(place, SqlitePlace) else (State.UNCLEAR, State.FREE))}


# States and changes


@pytest.mark.parametrize("state", [None, *State])
def test_claim(place: Place, state: State | None) -> None:
    """An item is claimed if it has no row, or is free. Only then it is returned."""
    items = begin(place)
    if state is not None:
        put(items, 1, state)
    numbers = items.write([], [claim(1, 1)]).result()
    after = RULES[state or State.FREE].get(Change.CLAIM)
    assert numbers == (set() if after is None else {1})
    assert states(place)[1] is (after or state)
    items.close()


@pytest.mark.parametrize(("state", "change"), [*itertools.product([None, *State], Change)])
def test_end(place: Place, state: State | None, change: Change) -> None:
    """The end of a call changes an item that can end, as the rules say, and no other."""
    items = begin(place)
    if state is not None:
        put(items, 1, state)
    future = items.write([ended(1, change, "the end")], [])
    after = RULES[State.CLAIMED].get(change)
    if after is None:
        with pytest.raises(KeyError):
            future.result()
    else:
        assert future.result() == set()
    if state in can_end(place) and after is not None:
        assert states(place) == {1: after}
        (row,) = rows(place)
        assert (row.event, row.status, row.error_code) == ("the end", 299, "CODE")
    else:
        assert states(place) == ({} if state is None else {1: state})
    items.close()


@pytest.mark.parametrize(("state", "change"), [*itertools.product([None, *State], Change)])
def test_settle(place: Place, state: State | None, change: Change) -> None:
    """A decision changes an item as the rules say, or is rejected."""
    items = begin(place)
    if state is not None:
        put(items, 1, state)
    future = items.settle([(1, change, "Ada")])
    after = RULES[state or State.FREE].get(change)
    if after is None:
        name = state or State.FREE
        with pytest.raises(LocalProtocolError, match=f"cannot {change} an entry that is {name}"):
            future.result()
        assert states(place) == ({} if state is None else {1: state})
    elif state is not None:
        future.result()
        (row,) = rows(place)
        assert (row.state, row.note) == (after, "Ada")
    items.close()


def test_settle_many(place: Place) -> None:
    """Decisions are all written, or none of them."""
    items = begin(place)
    for number, state in enumerate(State):
        put(items, number, state)
    before = states(place)
    good = [(4, Change.SETTLE_APPLIED, "Ada"), (3, Change.SETTLE_FREE, "Ada")]
    for bad in [(2, Change.SETTLE_FREE, "Ada"), (9, Change.SETTLE_APPLIED, "Ada")]:
        with pytest.raises(LocalProtocolError):
            items.settle([*good, bad]).result()
        assert states(place) == before
    items.settle(good).result()
    assert states(place) == before | {4: State.APPLIED, 3: State.FREE}
    items.settle([]).result()
    items.close()


@pytest.mark.parametrize("state", [None, *State])
@pytest.mark.parametrize("number", [1, 3])
def test_other_items_of_the_user(place: Place, state: State | None, number: int) -> None:
    """An item is not claimed while another one of its user is claimed or unclear, and only then."""
    items = begin(place)
    put(items, 5, State.UNCLEAR)  # another user's
    if state is not None:
        put(items, 2, state, of=1)
    numbers = items.write([], [claim(number, 1)]).result()
    if state in {State.CLAIMED, State.UNCLEAR}:
        assert numbers == set()
        assert states(place) == {2: state, 5: State.UNCLEAR}
    else:
        assert numbers == {number}
        assert states(place)[number] is State.CLAIMED
    items.close()


def test_two_of_a_user_at_once(place: Place) -> None:
    """Of two claims of a user in one batch, the first one succeeds."""
    items = begin(place)
    batch = [claim(3, 1), claim(4, 2), claim(1, 1), claim(2, 2)]
    assert items.write([], batch).result() == {3, 4}
    assert states(place) == {3: State.CLAIMED, 4: State.CLAIMED}
    items.close()


def test_ended_before_claims(place: Place) -> None:
    """Within a batch, what has ended makes room for its user's next item, and for itself."""
    items = begin(place)
    for number in (1, 2, 3):
        put(items, number, State.CLAIMED)
    ends = [ended(1, Change.APPLY), ended(2, Change.RELEASE), ended(3, Change.DOUBT)]
    claims = [claim(11, 1), claim(2, 2), claim(13, 3)]
    assert items.write(ends, claims).result() == {11, 2}
    assert states(place) == {
        1: State.APPLIED,
        2: State.CLAIMED,
        3: State.UNCLEAR,
        11: State.CLAIMED,
    }
    items.close()


def test_nothing(place: Place) -> None:
    """A batch can be empty."""
    items = begin(place)
    assert items.write([], []).result() == set()
    assert states(place) == {}
    items.close()


def test_large_batch(place: Place) -> None:
    """A batch can be much larger than the largest window."""
    items = begin(place)
    claims = [claim(number, number) for number in range(3000)]
    assert items.write([], claims).result() == set(range(3000))
    ends = [ended(number, Change.APPLY) for number in range(3000)]
    again = [claim(number, number) for number in range(2999, 5000)]
    assert items.write(ends, again).result() == set(range(3000, 5000))
    assert items.counts().result() == dict.fromkeys(State, 0) | {
        State.APPLIED: 3000,
        State.CLAIMED: 2000,
    }
    items.close()


ENDS = list(RULES[State.CLAIMED])
BATCHES = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 9), st.sampled_from(ENDS)), unique_by=lambda it: it[0]),
        st.lists(st.integers(0, 9), unique=True),
        st.lists(st.tuples(st.integers(0, 9), st.sampled_from(list(Change)))),
    ),
    max_size=8,
)
"""Ends, claims and decisions, of ten items of four users."""


class Model(dict[int, State]):
    """What the rows must be. Users are numbers from 0 to 3."""

    def __init__(self, can_end: set[State]) -> None:
        super().__init__()
        self._can_end = can_end

    def write(self, ends: list[tuple[int, Change]], claims: list[int]) -> set[int]:
        """End and claim items, and return those that are claimed."""
        for it, change in ends:
            if self.get(it) in self._can_end:
                self[it] = RULES[State.CLAIMED][change]
        blocked = {it % 4 for it in self if self[it] in {State.CLAIMED, State.UNCLEAR}}
        claimed: set[int] = set()
        for it in claims:
            if it % 4 not in blocked and self.get(it, State.FREE) is State.FREE:
                self[it] = State.CLAIMED
                claimed.add(it)
            blocked.add(it % 4)
        return claimed

    def settle(self, it: int, change: Change) -> bool:
        """Decide, and return whether the rules allow it."""
        after = RULES[self.get(it, State.FREE)].get(change)
        if after is not None and it in self:
            self[it] = after
        return after is not None


@pytest.fixture
def begun(place: Place) -> Iterator[tuple[Items, "itertools.count[int]"]]:
    """A journal for many histories, each with items and users of its own."""
    items = begin(place)
    yield items, itertools.count(1000, 1000)
    items.close()


# The machine may be busy. All histories use the same journal, so as not to make a hundred.
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=BATCHES)
def test_histories(
    place: Place,
    begun: tuple[Items, "itertools.count[int]"],
    batches: list[tuple[list[tuple[int, Change]], list[int], list[tuple[int, Change]]]],
) -> None:
    """Whatever comes in batches, SQL does what the rules say, and returns what it has claimed."""
    items, starts = begun
    base = next(starts)
    model, notes = Model(can_end(place)), itertools.count()
    for ends, claims, decisions in batches:
        numbers = items.write(
            [ended(base + it, change) for it, change in ends],
            [claim(base + it, base + it % 4) for it in claims],
        ).result()
        assert {number - base for number in numbers} == model.write(ends, claims)
        for it, change in decisions:
            future = items.settle([(base + it, change, f"note {next(notes)}")])
            if model.settle(it, change):
                future.result()
            else:
                with pytest.raises(LocalProtocolError):
                    future.result()
        found = {number - base: state for number, state in states(place).items() if number >= base}
        assert found == model
        taken = {number - base for number in items.taken(base, base + 9).result()}
        assert taken == {it for it, state in model.items() if state is not State.FREE}


def test_taken(place: Place) -> None:
    """Items that are not free must not be sent."""
    items = begin(place)
    for number, state in enumerate(State, 10):
        put(items, number, state)
    assert items.taken(1, 99).result() == {11, 12, 13, 14}
    assert items.taken(11, 12).result() == {11, 12}
    assert items.taken(15, 99).result() == set()
    items.close()


def test_rows(place: Place) -> None:
    """A row says what was sent and how it ended, in the order of the file."""
    items = begin(place)
    items.write([], [claim(2, 2, 1000.5, "balance"), claim(1, 1, 2000.5, "balance")]).result()
    before = time.time()
    ends = [
        Ended(1, Change.DOUBT, "no_response", None, None),
        Ended(2, Change.REFUSE, "refused", 402, "CODE"),
    ]
    items.write(ends, []).result()
    items.annotate(1, "evidence").result()
    first, second = rows(place)
    with place.read() as reader:
        assert reader is not None
        assert reader.unclear_users() == {user(1)}
    assert first[:4] == (1, State.UNCLEAR, user(1), 2000.5)
    assert first[5:] == ("balance", "no_response", None, None, "evidence")
    assert second[:4] == (2, State.REFUSED, user(2), 1000.5)
    assert second[5:] == (None, "refused", 402, "CODE", None)
    assert before <= first.changed_at == second.changed_at <= time.time()
    items.close()


def test_claimed_again(place: Place) -> None:
    """A claim forgets how the call ended before, and keeps what somebody has decided."""
    items = begin(place)
    put(items, 1, State.UNCLEAR)
    items.settle([(1, Change.SETTLE_FREE, "Ada")]).result()
    items.write([], [claim(1, 1, 7.5, "balance")]).result()
    items.close()
    begin(place).close()
    (row,) = rows(place)
    assert row[:4] == (1, State.UNCLEAR, user(1), 7.5)
    assert row[5:] == ("balance", None, None, None, "Ada")


def test_counts(place: Place) -> None:
    """Rows are counted in each state."""
    items = begin(place)
    for number, state in enumerate([*State, State.APPLIED], 1):
        put(items, number, state)
    wanted = dict.fromkeys(State, 1) | {State.APPLIED: 2}
    with place.read() as reader:
        assert reader is not None
        assert items.counts().result() == reader.counts() == wanted
    items.close()


# Opening


def test_opened_again(place: Place) -> None:
    """What another process has left claimed is unclear. All other states stay."""
    items = begin(place)
    for number, state in enumerate(State):
        put(items, number, state)
    items.close()
    before, now = states(place), time.time()
    for _ in range(2):
        items = begin(place)
        items.close()
        assert states(place) == before | {1: State.UNCLEAR}
    assert [row.number for row in rows(place) if row.changed_at >= now] == [1]


DIFFERENT: dict[str, tuple[dict[str, str], str]] = {
    "method": ({"method": "subtract"}, "it is that of add, not of subtract"),
    "digest": (
        {"digest": "1" * 64},
        (
            "the file was changed since the run began, and lines of it may have been sent. Restore it "
            "to go on. Put new lines into a file of their own"
        ),
    ),
    "base_url": (
        {"base_url": "http://127.0.0.1:2"},
        "the run began at http://127.0.0.1:1, not at http://127.0.0.1:2",
    ),
    "shard": ({"shard": "shard 1/2"}, "it is that of the whole file, not of shard 1/2"),
    "key": (
        {"key": f"{KEY}x"},
        (
            "the run began with another API key, and some lines were sent. Use that key to go on; or "
            "send the rest as a new file: see creduse bulk report --only waiting"
        ),
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_another_run(place: Place, path: Path, journal: str | None, what: str) -> None:
    """A journal of something else is refused, and nothing in it changes."""
    items = begin(place)
    for number, state in enumerate(State):
        put(items, number, state)
    items.close()

    def found() -> list[object]:
        with place.read() as reader:
            assert reader is not None
            return [reader.begun(), *reader.rows()]

    before = found()
    changes, message = DIFFERENT[what]
    shard = Shard(1, 2) if what == "shard" else None
    other = place_of(path.with_name("grants.csv"), journal or path, shard)
    with pytest.raises(JournalError) as caught:
        begin(other, **changes)
    assert str(caught.value) == f"{place}: {message}"
    assert found() == before
    assert not is_owned(place)
    begin(place).close()


def test_key_that_was_rejected(place: Place) -> None:
    """As long as nothing was sent, another key takes the place of the first one."""
    items = begin(place, key="rejected-key")
    put(items, 1, State.FREE)
    items.close()
    items = begin(place)
    put(items, 2, State.APPLIED)
    items.close()
    begin(place).close()
    with pytest.raises(JournalError, match="another API key"):
        begin(place, key="rejected-key")


def test_key_of_another_process(place: Place) -> None:
    """A process that cannot own the journal does not replace its key."""
    items = begin(place)
    with pytest.raises(InUseError):
        begin(place, key="another-key")
    put(items, 1, State.APPLIED)
    items.close()
    begin(place).close()


def test_same_identity(place: Place) -> None:
    """What a journal belongs to is kept, with what was in the file, and why it stopped."""
    items = begin(place)
    items.set_stopped("SIGINT").result()
    items.close()
    with place.read() as reader:
        assert reader is not None
        assert reader.begun() == Begun(IDENTITY, 9, "SIGINT")
    check_identity(place, IDENTITY, IDENTITY)


def test_no_key_in_the_files(path: Path, sqlite: Place) -> None:
    """The files hold no API key, and are their owner's alone. Each journal has its own fingerprint."""
    other = path.with_name("other")
    journals = [begin(sqlite), begin(SqlitePlace(other))]
    for items in journals:
        put(items, 1, State.UNCLEAR)
    files = list(path.parent.iterdir())
    held = contents(files)
    assert KEY.encode() not in held
    assert KEY[8:].encode() not in held
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    for items in journals:
        items.close()
    assert KEY.encode() not in contents(path.parent.iterdir())
    with closing(sqlite3.connect(path)) as one, closing(sqlite3.connect(other)) as two:
        for name in ("key", "salt"):
            found = [
                it.execute("SELECT value FROM run WHERE name = ?", (name,)).fetchone()[0]
                for it in (one, two)
            ]
            assert len(set(found)) == 2


def test_two_owners(place: Place) -> None:
    """A journal has one owner. Others can read meanwhile, and cannot write."""
    assert not is_owned(place)
    items = begin(place)
    items.set_stopped(None).result()
    put(items, 1, State.CLAIMED)
    assert is_owned(place)
    with pytest.raises(InUseError, match="is in use: another process"):
        begin(place)
    with place.read() as reader:
        assert reader is not None
        assert reader.begun() == Begun(IDENTITY, 9, None)
        assert [row.state for row in reader.rows()] == [State.CLAIMED]
        put(items, 2, State.APPLIED)
    assert list(states(place).values()) == [State.CLAIMED, State.APPLIED]
    items.close()
    assert not is_owned(place)
    begin(place).close()


def test_read_only(sqlite: Place) -> None:
    """Who reads a file cannot write."""
    begin(sqlite).close()

    def write() -> None:
        with sqlite.read() as found:
            reader: Any = found
            reader._database.execute("DELETE FROM items")  # noqa: SLF001 - what it must not do

    with pytest.raises(JournalError, match="readonly"):
        write()


OWNER = """
import sys
from pathlib import Path
from creduse_bulk._progress import place_of
from creduse_journal import State
from tests.bulk.conftest import begin, put
items = begin(place_of(Path(sys.argv[1]), sys.argv[2] or None, None))
put(items, 1, State.APPLIED)
put(items, 2, State.CLAIMED)
print("open", flush=True)
sys.stdin.read()
"""


def start(code: str, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start a program."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_killed_owner(place: Place, tmp_path: Path, journal: str | None) -> None:
    """A journal is in use while its owner lives. When it was killed, its claims are unclear."""
    with start(OWNER, str(tmp_path / "grants.csv"), journal or "") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        assert is_owned(place)
        with pytest.raises(InUseError):
            begin(place)
        assert states(place) == {1: State.APPLIED, 2: State.CLAIMED}
        found = read_journal(place)
        assert found is not None
        assert (found[1].in_flight, found[1].unclear, found[1].waiting) == (1, 0, 7)
        process.kill()
        process.wait()
    wait_until(lambda: not is_owned(place))
    found = read_journal(place)
    assert found is not None
    assert (found[1].in_flight, found[1].unclear, found[1].waiting) == (0, 1, 7)
    assert states(place) == {1: State.APPLIED, 2: State.CLAIMED}
    begin(place).close()
    assert states(place) == {1: State.APPLIED, 2: State.UNCLEAR}


DIES = """
import os
import signal
import sys
from pathlib import Path
import creduse_bulk._sqlite as sqlite
from tests.bulk.conftest import begin

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

sqlite._begin = die
begin(sqlite.SqlitePlace(Path(sys.argv[1])))
"""


def make_empty(path: Path) -> None:
    """Make a file as it is before its first transaction."""
    path.touch()


def make_header(path: Path) -> None:
    """Make a file whose log is chosen, and which has no tables."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.close()


def kill_while_it_begins(path: Path) -> None:
    """Kill the owner within the first transaction."""
    with start(DIES, str(path)) as process:
        assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("make", [make_empty, make_header, kill_while_it_begins])
def test_not_begun(path: Path, sqlite: Place, make: Callable[[Path], None]) -> None:
    """A journal whose owner was killed before its first transaction has not begun."""
    make(path)
    assert path.exists()
    with sqlite.read() as reader:
        assert reader is not None
        assert reader.begun() is None
    assert read_journal(sqlite) is None
    with pytest.raises(JournalError, match="no run of file has begun"):
        status("file", journal=path)
    begin(sqlite).close()
    assert read_journal(sqlite) is not None


def test_old_sqlite(monkeypatch: pytest.MonkeyPatch, path: Path, sqlite: Place) -> None:
    """An SQLite that is too old is refused before a file is made."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 32, 3))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.32.3")
    with pytest.raises(JournalError, match=r"need SQLite 3.33 or later; this Python has 3.32.3"):
        begin(sqlite)
    assert list(path.parent.iterdir()) == []
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 33, 0))
    begin(sqlite).close()


def make_text(path: Path) -> None:
    """Make a text file."""
    path.write_text("end_user_id,amount\n" * 99)


def make_database(path: Path) -> None:
    """Make a database of another program."""
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE theirs (a)")
    database.close()


def make_journal(path: Path) -> None:
    """Make a journal of single calls."""
    Journal(path).close()


def make_broken(path: Path) -> None:
    """Make a journal with a part that was overwritten."""
    begin(SqlitePlace(path)).close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_text, "is not a journal"),
        (Path.mkdir, "is a directory"),
        (make_database, "cannot be a journal: another program made it"),
        (make_journal, "cannot be a journal: another program made it"),
        (make_broken, "cannot be used: database disk image is malformed"),
    ],
)
def test_not_a_journal(path: Path, make: Callable[[Path], None], message: str) -> None:
    """Another file is refused, and left as it is."""
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    for use in (begin, read_journal):
        with pytest.raises(JournalError, match=message):
            use(SqlitePlace(path))
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_killed_while_it_is_made(path: Path) -> None:
    """A journal whose owner was killed while it made the file can be looked at: nothing has begun."""
    code = f"""
import os, sqlite3
database = sqlite3.connect({str(path)!r}, isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN IMMEDIATE")
database.execute("CREATE TABLE half (text TEXT)")
database.executemany("INSERT INTO half VALUES (?)", [("x" * 1000,)] * 100)
os.kill(os.getpid(), 9)
"""  # noqa: S608 - ours
    subprocess.run([sys.executable, "-c", code], check=False)
    assert Path(f"{path}-journal").exists()
    with SqlitePlace(path).read() as reader:
        assert reader is not None
        assert reader.begun() is None


def test_full_disk(sqlite: Place) -> None:
    """If the disk is full, nothing is claimed, then and later."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    items = begin(sqlite)
    put(items, 1, State.APPLIED)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(JournalError, match=r"cannot be used|disk is full"):
            items.write([], [claim(2, 2)]).result()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    with pytest.raises(JournalError, match=r"cannot be used|disk is full"):
        items.write([], [claim(2, 2)]).result()
    items.close()
    assert states(sqlite) == {1: State.APPLIED}


def test_claims_are_on_the_disk(path: Path, sqlite: Place) -> None:
    """A claim that was returned is in the file, even if nobody closes it."""
    items = begin(sqlite)
    one = Claim(1, str(UUID(int=7)), 1.5, None)
    assert items.write([], [one]).result() == {1}
    copy = path.with_name("copy")
    for end in ("", "-wal"):
        copy.with_name(f"copy{end}").write_bytes(path.with_name(f"{path.name}{end}").read_bytes())
    assert states(SqlitePlace(copy)) == {1: State.CLAIMED}
    items.close()
