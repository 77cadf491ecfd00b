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
from pathlib import Path
from typing import TypeAlias
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from creduse_bulk import status
from creduse_bulk._items import (
    Begun,
    Claim,
    Ended,
    Items,
    begun,
    check_identity,
    counts,
    open_to_read,
    rows,
    unclear_users,
)
from creduse_bulk._progress import read_journal
from creduse_core import LocalProtocolError
from creduse_journal import RULES, Change, InUseError, Journal, JournalError, State
from creduse_journal.database import is_in_use
from tests.bulk.conftest import IDENTITY, begin, claim, contents, ended, put, states, user
from tests.common import KEY

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal is."""
    return tmp_path / "grants.csv.journal"


# States and changes


@pytest.mark.parametrize("state", [None, *State])
def test_claim(path: Path, state: State | None) -> None:
    """An item is claimed if it has no row, or is free. Only then it is returned."""
    items = begin(path)
    if state is not None:
        put(items, 1, state)
    numbers = items.write([], [claim(1, 1)]).result()
    after = RULES[state or State.FREE].get(Change.CLAIM)
    assert numbers == (set() if after is None else {1})
    assert states(path)[1] is (after or state)
    items.close()


@pytest.mark.parametrize(("state", "change"), [*itertools.product([None, *State], Change)])
def test_end(path: Path, state: State | None, change: Change) -> None:
    """The end of a call changes an item that is claimed, as the rules say, and no other."""
    items = begin(path)
    if state is not None:
        put(items, 1, state)
    future = items.write([ended(1, change, "the end")], [])
    after = RULES[State.CLAIMED].get(change)
    if after is None:
        with pytest.raises(KeyError):
            future.result()
    else:
        assert future.result() == set()
    if state is State.CLAIMED and after is not None:
        assert states(path) == {1: after}
        with open_to_read(path) as database:
            (row,) = rows(database)
        assert (row.event, row.status, row.error_code) == ("the end", 299, "CODE")
    else:
        assert states(path) == ({} if state is None else {1: state})
    items.close()


@pytest.mark.parametrize(("state", "change"), [*itertools.product([None, *State], Change)])
def test_settle(path: Path, state: State | None, change: Change) -> None:
    """A decision changes an item as the rules say, or is rejected."""
    items = begin(path)
    if state is not None:
        put(items, 1, state)
    future = items.settle([(1, change, "Ada")])
    after = RULES[state or State.FREE].get(change)
    if after is None:
        name = state or State.FREE
        with pytest.raises(LocalProtocolError, match=f"cannot {change} an entry that is {name}"):
            future.result()
        assert states(path) == ({} if state is None else {1: state})
    elif state is not None:
        future.result()
        with open_to_read(path) as database:
            (row,) = rows(database)
        assert (row.state, row.note) == (after, "Ada")
    items.close()


def test_settle_many(path: Path) -> None:
    """Decisions are all written, or none of them."""
    items = begin(path)
    for number, state in enumerate(State):
        put(items, number, state)
    before = states(path)
    good = [(4, Change.SETTLE_APPLIED, "Ada"), (3, Change.SETTLE_FREE, "Ada")]
    for bad in [(2, Change.SETTLE_FREE, "Ada"), (9, Change.SETTLE_APPLIED, "Ada")]:
        with pytest.raises(LocalProtocolError):
            items.settle([*good, bad]).result()
        assert states(path) == before
    items.settle(good).result()
    assert states(path) == before | {4: State.APPLIED, 3: State.FREE}
    items.settle([]).result()
    items.close()


@pytest.mark.parametrize("state", [None, *State])
@pytest.mark.parametrize("number", [1, 3])
def test_other_items_of_the_user(path: Path, state: State | None, number: int) -> None:
    """An item is not claimed while another one of its user is claimed or unclear, and only then."""
    items = begin(path)
    put(items, 5, State.UNCLEAR)  # another user's
    if state is not None:
        put(items, 2, state, of=1)
    numbers = items.write([], [claim(number, 1)]).result()
    if state in {State.CLAIMED, State.UNCLEAR}:
        assert numbers == set()
        assert states(path) == {2: state, 5: State.UNCLEAR}
    else:
        assert numbers == {number}
        assert states(path)[number] is State.CLAIMED
    items.close()


def test_two_of_a_user_at_once(path: Path) -> None:
    """Of two claims of a user in one batch, the first one succeeds."""
    items = begin(path)
    batch = [claim(3, 1), claim(4, 2), claim(1, 1), claim(2, 2)]
    assert items.write([], batch).result() == {3, 4}
    assert states(path) == {3: State.CLAIMED, 4: State.CLAIMED}
    items.close()


def test_ended_before_claims(path: Path) -> None:
    """Within a batch, what has ended makes room for its user's next item, and for itself."""
    items = begin(path)
    for number in (1, 2, 3):
        put(items, number, State.CLAIMED)
    ends = [ended(1, Change.APPLY), ended(2, Change.RELEASE), ended(3, Change.DOUBT)]
    claims = [claim(11, 1), claim(2, 2), claim(13, 3)]
    assert items.write(ends, claims).result() == {11, 2}
    assert states(path) == {
        1: State.APPLIED,
        2: State.CLAIMED,
        3: State.UNCLEAR,
        11: State.CLAIMED,
    }
    items.close()


def test_nothing(path: Path) -> None:
    """A batch can be empty."""
    items = begin(path)
    assert items.write([], []).result() == set()
    assert states(path) == {}
    items.close()


def test_large_batch(path: Path) -> None:
    """A batch can be much larger than the largest window."""
    items = begin(path)
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


Shared: TypeAlias = tuple[Items, Path, "itertools.count[int]"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A journal for many histories, each with items and users of its own."""
    path = tmp_path_factory.mktemp("shared") / "journal"
    items = begin(path)
    yield items, path, itertools.count(1000, 1000)
    items.close()


class Model(dict[int, State]):
    """What the rows must be. Users are numbers from 0 to 3."""

    def write(self, ends: list[tuple[int, Change]], claims: list[int]) -> set[int]:
        """End and claim items, and return those that are claimed."""
        for it, change in ends:
            if self.get(it) is State.CLAIMED:
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


@settings(deadline=None)  # the machine may be busy
@given(batches=BATCHES)
def test_histories(
    shared: Shared,
    batches: list[tuple[list[tuple[int, Change]], list[int], list[tuple[int, Change]]]],
) -> None:
    """Whatever comes in batches, SQL does what the rules say, and returns what it has claimed."""
    items, path, starts = shared
    base = next(starts)
    model = Model()
    for ends, claims, decisions in batches:
        numbers = items.write(
            [ended(base + it, change) for it, change in ends],
            [claim(base + it, base + it % 4) for it in claims],
        ).result()
        assert {number - base for number in numbers} == model.write(ends, claims)
        for it, change in decisions:
            future = items.settle([(base + it, change, "note")])
            if model.settle(it, change):
                future.result()
            else:
                with pytest.raises(LocalProtocolError):
                    future.result()
        found = {number - base: state for number, state in states(path).items() if number >= base}
        assert found == model
        taken = {number - base for number in items.taken(base, base + 9).result()}
        assert taken == {it for it, state in model.items() if state is not State.FREE}


def test_taken(path: Path) -> None:
    """Items that are not free must not be sent."""
    items = begin(path)
    for number, state in enumerate(State, 10):
        put(items, number, state)
    assert items.taken(1, 99).result() == {11, 12, 13, 14}
    assert items.taken(11, 12).result() == {11, 12}
    assert items.taken(15, 99).result() == set()
    items.close()


def test_rows(path: Path) -> None:
    """A row says what was sent and how it ended, in the order of the file."""
    items = begin(path)
    items.write([], [claim(2, 2, 1000.5, "balance"), claim(1, 1, 2000.5, "balance")]).result()
    before = time.time()
    ends = [
        Ended(1, Change.DOUBT, "no_response", None, None),
        Ended(2, Change.REFUSE, "refused", 402, "CODE"),
    ]
    items.write(ends, []).result()
    items.annotate(1, "evidence").result()
    with open_to_read(path) as database:
        first, second = rows(database)
        assert unclear_users(database) == {user(1)}
    assert first[:4] == (1, State.UNCLEAR, user(1), 2000.5)
    assert first[5:] == ("balance", "no_response", None, None, "evidence")
    assert second[:4] == (2, State.REFUSED, user(2), 1000.5)
    assert second[5:] == (None, "refused", 402, "CODE", None)
    assert before <= first.changed_at == second.changed_at <= time.time()
    items.close()


def test_claimed_again(path: Path) -> None:
    """A claim forgets how the call ended before, and keeps what somebody has decided."""
    items = begin(path)
    put(items, 1, State.UNCLEAR)
    items.settle([(1, Change.SETTLE_FREE, "Ada")]).result()
    items.write([], [claim(1, 1, 7.5, "balance")]).result()
    items.close()
    begin(path).close()
    with open_to_read(path) as database:
        (row,) = rows(database)
    assert row[:4] == (1, State.UNCLEAR, user(1), 7.5)
    assert row[5:] == ("balance", None, None, None, "Ada")


def test_counts(path: Path) -> None:
    """Rows are counted in each state."""
    items = begin(path)
    for number, state in enumerate([*State, State.APPLIED], 1):
        put(items, number, state)
    wanted = dict.fromkeys(State, 1) | {State.APPLIED: 2}
    with open_to_read(path) as database:
        assert items.counts().result() == counts(database) == wanted
    items.close()


# Opening


def test_opened_again(path: Path) -> None:
    """What another process has left claimed is unclear. All other states stay."""
    items = begin(path)
    for number, state in enumerate(State):
        put(items, number, state)
    items.close()
    before, now = states(path), time.time()
    for _ in range(2):
        items = begin(path)
        items.close()
        assert states(path) == before | {1: State.UNCLEAR}
    with open_to_read(path) as database:
        assert [row.number for row in rows(database) if row.changed_at >= now] == [1]


DIFFERENT: dict[str, tuple[dict[str, str], str]] = {
    "method": ({"method": "subtract"}, "it is that of add, not of subtract"),
    "digest": (
        {"digest": "1" * 64},
        (
            "the file was changed since the run began. Restore it to go on. To send another file, "
            "give it another name"
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
def test_another_run(path: Path, what: str) -> None:
    """A journal of something else is refused, and nothing in it changes."""
    items = begin(path)
    for number, state in enumerate(State):
        put(items, number, state)
    items.close()

    def found() -> list[object]:
        with open_to_read(path) as database:
            return [begun(database), *rows(database)]

    before = found()
    changes, message = DIFFERENT[what]
    with pytest.raises(JournalError) as caught:
        begin(path, **changes)
    assert str(caught.value) == f"{path}: {message}"
    assert found() == before
    assert not is_in_use(path)
    begin(path).close()


def test_key_that_was_rejected(path: Path) -> None:
    """As long as nothing was sent, another key takes the place of the first one."""
    items = begin(path, key="rejected-key")
    put(items, 1, State.FREE)
    items.close()
    items = begin(path)
    put(items, 2, State.APPLIED)
    items.close()
    begin(path).close()
    with pytest.raises(JournalError, match="another API key"):
        begin(path, key="rejected-key")


def test_same_identity(path: Path) -> None:
    """What a journal belongs to is kept, with what was in the file."""
    begin(path).close()
    with open_to_read(path) as database:
        assert begun(database) == Begun(IDENTITY, 9, 45, None)
    check_identity(path, IDENTITY, IDENTITY)


def test_no_key_in_the_files(path: Path) -> None:
    """The files hold no API key, and are their owner's alone. Each journal has its own fingerprint."""
    other = path.with_name("other")
    journals = [begin(path), begin(other)]
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
    with open_to_read(path) as one, open_to_read(other) as two:
        for name in ("key", "salt"):
            found = [
                it.execute("SELECT value FROM run WHERE name = ?", (name,)).fetchone()[0]
                for it in (one, two)
            ]
            assert len(set(found)) == 2


def test_two_owners(path: Path) -> None:
    """A journal has one owner. Others can read meanwhile, and cannot write."""
    assert not is_in_use(path)
    items = begin(path)
    put(items, 1, State.CLAIMED)
    assert is_in_use(path)
    with pytest.raises(InUseError, match="is in use: another process, or another Journal"):
        begin(path)
    with open_to_read(path) as database:
        assert begun(database) == Begun(IDENTITY, 9, 45, None)
        assert [row.state for row in rows(database)] == [State.CLAIMED]
        put(items, 2, State.APPLIED)
        assert [row.state for row in rows(database)] == [State.CLAIMED, State.APPLIED]
    with pytest.raises(JournalError, match="readonly"), open_to_read(path) as database:
        database.execute("DELETE FROM items")
    items.close()
    assert not is_in_use(path)
    begin(path).close()


OWNER = """
import sys
from pathlib import Path
from creduse_journal import State
from tests.bulk.conftest import begin, put
items = begin(Path(sys.argv[1]))
put(items, 1, State.APPLIED)
put(items, 2, State.CLAIMED)
print("open", flush=True)
sys.stdin.read()
"""


def start(path: Path, code: str) -> "subprocess.Popen[bytes]":
    """Start a program with the journal's path."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_killed_owner(path: Path) -> None:
    """A journal is in use while its owner lives. When it was killed, its claims are unclear."""
    with start(path, OWNER) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        assert is_in_use(path)
        with pytest.raises(InUseError):
            begin(path)
        assert states(path) == {1: State.APPLIED, 2: State.CLAIMED}
        found = read_journal(path)
        assert found is not None
        assert (found[1].in_flight, found[1].unclear, found[1].waiting) == (1, 0, 7)
        process.kill()
        process.wait()
    assert not is_in_use(path)
    found = read_journal(path)
    assert found is not None
    assert (found[1].in_flight, found[1].unclear, found[1].waiting) == (0, 1, 7)
    assert states(path) == {1: State.APPLIED, 2: State.CLAIMED}
    begin(path).close()
    assert states(path) == {1: State.APPLIED, 2: State.UNCLEAR}


DIES = """
import os
import signal
import sys
from pathlib import Path
import creduse_bulk._items as items
from tests.bulk.conftest import begin

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

items.WHERE = die
begin(Path(sys.argv[1]))
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
    with start(path, DIES.replace("WHERE", "_begin")) as process:
        assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("make", [make_empty, make_header, kill_while_it_begins])
def test_not_begun(path: Path, make: Callable[[Path], None]) -> None:
    """A journal whose owner was killed before its first transaction has not begun."""
    make(path)
    assert path.exists()
    with open_to_read(path) as database:
        assert begun(database) is None
    assert read_journal(path) is None
    with pytest.raises(JournalError, match="no run of file has begun"):
        status("file", journal=path)
    begin(path).close()
    assert read_journal(path) is not None


def test_old_sqlite(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """An SQLite that is too old is refused before a file is made."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 32, 3))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.32.3")
    with pytest.raises(JournalError, match=r"need SQLite 3.33 or later; this Python has 3.32.3"):
        begin(path)
    assert list(path.parent.iterdir()) == []
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 33, 0))
    begin(path).close()


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
    begin(path).close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_text, "is not a journal"),
        (Path.mkdir, "cannot be used: unable to open database file"),
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
            use(path)
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_full_disk(path: Path) -> None:
    """If the disk is full, nothing is claimed, then and later."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    items = begin(path)
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
    assert states(path) == {1: State.APPLIED}


def test_claims_are_on_the_disk(path: Path) -> None:
    """A claim that was returned is in the file, even if nobody closes it."""
    items = begin(path)
    one = Claim(1, str(UUID(int=7)), 1.5, None)
    assert items.write([], [one]).result() == {1}
    copy = path.with_name("copy")
    for end in ("", "-wal"):
        copy.with_name(f"copy{end}").write_bytes(path.with_name(f"{path.name}{end}").read_bytes())
    assert states(copy) == {1: State.CLAIMED}
    items.close()
