"""What runs need in PostgreSQL alone: shards in one journal, late owners, and operations that come twice."""

import csv
import gc
import itertools
import re
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from creduse_bulk import InputError, Progress, Shard, report, run, status
from creduse_bulk._items import Items, Place
from creduse_bulk._postgres import PostgresItems
from creduse_bulk._progress import place_of, read_begun, read_journal
from creduse_bulk._resolve import Decision, Resolution
from creduse_core import CreduseProtocol
from creduse_core.secret import Secret
from creduse_journal import (
    RULES,
    Change,
    InUseError,
    JournalError,
    LostError,
    State,
    UnavailableError,
)
from creduse_sandbox import SandboxServer
from tests.bulk.conftest import (
    IDENTITY,
    begin,
    begin_run,
    claim,
    ended,
    is_owned,
    put,
    rows,
    states,
    user,
)
from tests.common import KEY, wait_until
from tests.cuts import named, terminate
from tests.postgres import Cluster, find_programs

psycopg = pytest.importorskip("psycopg")

SHARDS = [Shard(number, 3) for number in (1, 2, 3)]
NUMBERS = [[it for it in range(1, 61) if shard.has(user(it))] for shard in SHARDS]
"""The lines of each shard."""


@pytest.fixture
def url(postgres_url: str) -> str:
    """Where journals are."""
    return postgres_url


@pytest.fixture
def place(url: str) -> Place:
    """A journal without shards, of a file that nobody needs."""
    return place_of(Path("grants.csv"), url, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of sixty users."""
    path = tmp_path / "grants.csv"
    path.write_text("end_user_id,amount\n" + "".join(f"{user(it)},{it}\n" for it in range(1, 61)))
    return path


def execute(url: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Return what SQL finds or returns."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query, values)
        return cursor.fetchall() if cursor.description else []


def resolve(path: Path, url: str, shard: Shard | None = None) -> Resolution:
    """Open the journal, to resolve what is unclear."""
    return Resolution(CreduseProtocol(KEY, IDENTITY.base_url), path, url, shard)


# Shards


def test_items_of_shards(path: Path, url: str) -> None:
    """Whichever shard begins, the journal knows how many items all of them have."""
    begin_run(path, shard=SHARDS[1], journal=url).close()
    for shard, numbers in zip(SHARDS, NUMBERS, strict=True):
        _, begun, _ = read_begun(path, url, shard)
        assert begun.items == len(numbers)
        assert begun.identity.shard == f"shard {shard}"
    _, begun, _ = read_begun(path, url, None)
    assert (begun.items, begun.identity.shard) == (60, "the whole file")


def test_large_amounts(path: Path, url: str) -> None:
    """Amounts can have 3000 digits, and a shard can be empty."""
    amount = 10**3000 - 1
    path.write_text("end_user_id,amount\n" + f"{user(1)},{amount}\n" * 20)
    for shard in SHARDS:
        begin_run(path, shard=shard, journal=url).close()
        _, begun, _ = read_begun(path, url, shard)
        count = 20 if shard.has(user(1)) else 0
        assert begun.items == count
        assert status(path, journal=url, shard=shard).exit_status == (75 if count else 0)
    assert read_begun(path, url, None)[1].items == 20


def test_status_of_shards(path: Path, url: str) -> None:
    """Each shard has its own counts, and the whole run has all. One that has not begun is waiting."""
    applied, dead = NUMBERS[0], NUMBERS[1]
    first = begin_run(path, shard=SHARDS[0], journal=url)
    first.write([], [claim(it, it) for it in applied]).result()
    first.write([ended(it, Change.APPLY) for it in applied], []).result()
    second = begin_run(path, shard=SHARDS[1], journal=url)
    put(second, dead[0], State.CLAIMED)
    put(second, dead[1], State.REFUSED)
    second.close()
    third = Progress(len(NUMBERS[2]), 0, 0, 0, stopped="it has not begun")
    assert (third.waiting, third.exit_status) == (len(NUMBERS[2]), 75)
    done = Progress(len(applied), len(applied), 0, 0)
    wanted = [
        replace(done, is_going_on=True),
        Progress(len(dead), 0, refused=1, unclear=1),
        third,
    ]
    assert [status(path, journal=url, shard=shard) for shard in SHARDS] == wanted
    why = "shard 3/3: it has not begun"
    whole = Progress(60, len(applied), refused=1, unclear=1, stopped=why, is_going_on=True)
    assert status(path, journal=url) == whole
    first.close()
    assert status(path, journal=url, shard=SHARDS[0]) == done
    assert done.exit_status == 0
    whole = replace(whole, is_going_on=False)
    assert status(path, journal=url) == whole
    assert whole.exit_status == 75
    begin_run(path, shard=SHARDS[2], journal=url).close()
    assert status(path, journal=url) == replace(whole, stopped=None)


def test_in_flight(path: Path, url: str) -> None:
    """While one shard's process lives and another's has died, each claim is counted right."""
    first, second = (begin_run(path, shard=shard, journal=url) for shard in SHARDS[:2])
    for items, numbers in zip((first, second), NUMBERS[:2], strict=True):
        items.write([], [claim(it, it) for it in numbers[:3]]).result()
    why = "shard 3/3: it has not begun"
    assert status(path, journal=url) == Progress(60, 0, 0, 0, 6, None, why, is_going_on=True)
    second.close()
    wanted = Progress(60, 0, 0, 3, 3, None, why, is_going_on=True)
    assert status(path, journal=url) == wanted
    assert [status(path, journal=url, shard=shard).unclear for shard in SHARDS] == [0, 3, 0]
    # The next owner of that shard leaves the other one alone.
    begin_run(path, shard=SHARDS[1], journal=url).close()
    assert status(path, journal=url) == wanted
    first.close()


def test_report_of_shards(path: Path, url: str) -> None:
    """A report of a shard has its lines, and one of the whole run has all, in order."""
    for shard, numbers in zip(SHARDS, NUMBERS, strict=True):
        items = begin_run(path, shard=shard, journal=url)
        put(items, numbers[1], State.APPLIED)
        items.close()
    whole = list(csv.DictReader(report(path, journal=url)))
    assert [int(line["amount"]) for line in whole] == list(range(1, 61))
    applied = sorted(numbers[1] for numbers in NUMBERS)
    assert [int(line["amount"]) for line in whole if line["state"] == "applied"] == applied
    for shard, numbers in zip(SHARDS, NUMBERS, strict=True):
        found = list(csv.DictReader(report(path, journal=url, shard=shard)))
        assert found == [line for line in whole if int(line["amount"]) in numbers]


def test_resolve_shards(path: Path, url: str) -> None:
    """A shard's unclear lines can be settled while others go on, or those of all when none does."""
    for shard, numbers in zip(SHARDS, NUMBERS, strict=True):
        items = begin_run(path, shard=shard, journal=url)
        put(items, numbers[0], State.UNCLEAR)
        put(items, numbers[1], State.UNCLEAR)
        items.close()
    owner = begin_run(path, shard=SHARDS[1], journal=url)
    decided = path.with_name("decided.csv")
    first = NUMBERS[0][0]
    with resolve(path, url, SHARDS[0]) as resolution:
        assert [it.item.number for it in resolution.unclear] == NUMBERS[0][:2]
        decided.write_text(f"line,decision\n{first + 1},applied\n")
        progress = resolution.settle(resolution.by_file(decided, "Ada"))
        assert progress == Progress(len(NUMBERS[0]), 1, 0, 1)
    with pytest.raises(InUseError, match=r"shard 2/3 of grants.csv in .* is in use"):
        resolve(path, url)
    owner.close()
    left = sorted(NUMBERS[0][1:2] + NUMBERS[1][:2] + NUMBERS[2][:2])
    with resolve(path, url) as resolution:
        assert [it.item.number for it in resolution.unclear] == left
        decided.write_text("line,decision\n" + "".join(f"{it + 1},not_applied\n" for it in left))
        assert resolution.settle(resolution.by_file(decided, "Ada")) == Progress(60, 1, 0, 0)


@pytest.mark.parametrize(
    ("begun", "message"),
    [
        (None, "it is that of the whole file, not of shard {0}"),
        (Shard(2, 3), "it is that of 3 shards, not of shard {0}"),
    ],
)
@pytest.mark.parametrize("other", [Shard(1, 2), Shard(2, 4)])
def test_another_count(
    path: Path, url: str, begun: Shard | None, message: str, other: Shard
) -> None:
    """A run that has begun is not divided otherwise: lines would be sent twice."""
    items = begin_run(path, shard=begun, journal=url)
    put(items, 1 if begun is None else NUMBERS[1][0], State.APPLIED)
    uses: list[Callable[[], object]] = [
        lambda: begin_run(path, shard=other, journal=url),
        lambda: status(path, journal=url, shard=other),
        lambda: list(report(path, journal=url, shard=other)),
        lambda: resolve(path, url, other),
    ]
    for use in uses:
        with pytest.raises(JournalError) as caught:
            use()
        assert str(caught.value) == f"grants.csv in {url}: {message.format(other)}"
    items.close()


def test_one_shard_of_one(path: Path, url: str) -> None:
    """The only shard and the whole file are the same."""
    begin_run(path, shard=Shard(1, 1), journal=url).close()
    items = begin_run(path, journal=url)
    assert status(path, journal=url, shard=Shard(1, 1)).is_going_on
    items.close()


def test_two_shards_at_once(path: Path, url: str) -> None:
    """Each shard has its owner, its claims, and its counts."""
    both = [begin_run(path, shard=shard, journal=url) for shard in SHARDS[:2]]
    for items, numbers in zip(both, NUMBERS[:2], strict=True):
        assert items.write([], [claim(it, it) for it in numbers]).result() == set(numbers)
    for items, numbers in zip(both, NUMBERS[:2], strict=True):
        assert items.counts().result()[State.CLAIMED] == len(numbers)
        # It reads the whole file, and asks for all of its lines.
        assert items.taken(1, 60).result() >= set(numbers)
        items.write([ended(it, Change.APPLY) for it in numbers], []).result()
    assert set(states(place_of(path, url, None)).values()) == {State.APPLIED}
    for items, shard, numbers in zip(both, SHARDS[:2], NUMBERS[:2], strict=True):
        items.close()
        assert sorted(states(place_of(path, url, shard))) == numbers


@contextmanager
def whole_run(path: Path, url: str) -> Generator[Items]:
    """Own all shards, until the context ends."""
    items = begin_run(path, journal=url)
    yield items
    items.close()


def test_whole_run(path: Path, url: str) -> None:
    """Whoever has no shard owns all of them. Each of its rows is in its user's shard."""
    begin_run(path, shard=SHARDS[0], journal=url).close()
    with whole_run(path, url) as items:
        claims = [claim(it, it) for it in range(1, 61)]
        assert items.write([], claims).result() == set(range(1, 61))
        for shard, numbers in zip(SHARDS, NUMBERS, strict=True):
            with pytest.raises(InUseError, match=rf"^shard {shard} of grants.csv in .* is in use"):
                begin_run(path, shard=shard, journal=url)
            assert status(path, journal=url, shard=shard).in_flight == len(numbers)
        items.set_stopped("SIGINT").result()
    for shard, numbers in zip(SHARDS, NUMBERS, strict=True):
        assert sorted(states(place_of(path, url, shard))) == numbers
        assert status(path, journal=url, shard=shard).stopped == "SIGINT"
    with whole_run(path, url) as items:
        assert items.counts().result()[State.UNCLEAR] == 60


def test_part_of_the_whole(path: Path, url: str) -> None:
    """While one shard is owned, nobody owns the whole run, and the other shards stay free."""
    second = begin_run(path, shard=SHARDS[1], journal=url)
    uses: list[Callable[[], object]] = [
        lambda: begin_run(path, journal=url),
        lambda: resolve(path, url),
    ]
    for use in uses:
        with pytest.raises(InUseError) as caught:
            use()
        assert str(caught.value) == (
            f"shard 2/3 of grants.csv in {url} is in use: another process sends it"
        )
        for shard in (SHARDS[0], SHARDS[2]):
            begin_run(path, shard=shard, journal=url).close()
    second.close()
    begin_run(path, journal=url).close()


def test_in_use(place: Place, url: str) -> None:
    """A run without shards is named by its file."""
    items = begin(place)
    with pytest.raises(InUseError) as caught:
        begin(place)
    assert str(caught.value) == f"grants.csv in {url} is in use: another process sends it"
    items.close()


def test_unclear_users(path: Path, url: str) -> None:
    """A shard's users who have an unclear item are its own."""
    items = begin_run(path, journal=url, shard=SHARDS[0])
    items.close()
    with whole_run(path, url) as items:
        for it in (1, 2, 3, 4):
            put(items, it, State.UNCLEAR)
    for shard in (None, *SHARDS):
        with place_of(path, url, shard).read() as reader:
            assert reader is not None
            wanted = {user(it) for it in (1, 2, 3, 4) if shard is None or shard.has(user(it))}
            assert reader.unclear_users() == wanted


def at_once(acts: list[Callable[[], Any]]) -> list[Any]:
    """Do all at the same time, and return the results or the errors of the journal."""
    barrier = threading.Barrier(len(acts))

    def do(act: Callable[[], Any]) -> Any:
        barrier.wait(60)
        try:
            return act()
        except JournalError as error:
            return error

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(do, acts))


def close(found: list[Any]) -> None:
    """Close the journals that were opened."""
    for it in found:
        if not isinstance(it, JournalError):
            it.close()


def test_many_begin_at_once(path: Path, url: str) -> None:
    """When all shards begin at the same time, the tables and the run are made once."""
    shards = [Shard(number, 12) for number in range(1, 13)]
    found = at_once([lambda it=it: begin_run(path, shard=it, journal=url) for it in shards])  # type: ignore[misc]
    assert status(path, journal=url) == Progress(60, 0, 0, 0, is_going_on=True)
    close(found)
    assert [it for it in found if isinstance(it, JournalError)] == []
    assert len(execute(url, "SELECT run FROM creduse_runs")) == 1
    assert len(execute(url, "SELECT shard FROM creduse_shards")) == 12


def test_one_of_many(path: Path, url: str) -> None:
    """When many want to own the same new run, one of them does."""
    found = at_once([lambda: begin_run(path, journal=url)] * 6)
    assert is_owned(place_of(path, url, None))
    close(found)
    assert [type(it) for it in found if isinstance(it, JournalError)] == [InUseError] * 5


def test_different_counts_at_once(path: Path, url: str) -> None:
    """When two want to divide a new run in different ways, one of them does."""
    found = at_once(
        [
            lambda: begin_run(path, shard=Shard(1, 2), journal=url),
            lambda: begin_run(path, shard=Shard(1, 3), journal=url),
        ]
    )
    close(found)
    (error,) = (str(it) for it in found if isinstance(it, JournalError))
    messages = "2 shards, not of shard 1/3", "3 shards, not of shard 1/2"
    assert error in {f"grants.csv in {url}: it is that of {it}" for it in messages}


# Late owners


def cut(url: str) -> None:
    """End the connections of all who have claimed something here."""
    query = """
        SELECT pg_terminate_backend(pid, 60000) FROM pg_locks
        WHERE locktype = 'advisory' AND objsubid = 1
        AND (classid::bigint << 32) | objid::bigint IN (SELECT owner FROM creduse_items)
    """
    assert execute(url, query) == [(True,)]


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch, place: Place) -> Iterator[Items]:
    """An owner that shows no life while it has nothing to do."""
    monkeypatch.setattr("creduse_journal.postgres._Session.idle_limit", None)
    items = begin(place)
    yield items
    items.close()


SENT_AGAIN = (Change.SETTLE_FREE, Change.CLAIM)
TAKEN_OVER: dict[str, tuple[tuple[Change, ...], State, bool]] = {
    "doubted": ((), State.UNCLEAR, True),
    "settled as free": ((Change.SETTLE_FREE,), State.FREE, True),
    "settled as applied": ((Change.SETTLE_APPLIED,), State.APPLIED, False),
    "claimed again": (SENT_AGAIN, State.CLAIMED, False),
    "applied again": ((*SENT_AGAIN, Change.APPLY), State.APPLIED, False),
    "refused again": ((*SENT_AGAIN, Change.REFUSE), State.REFUSED, False),
    "released again": ((*SENT_AGAIN, Change.RELEASE), State.FREE, False),
    "doubted again": ((*SENT_AGAIN, Change.DOUBT), State.UNCLEAR, False),
    "settled as free again": (
        (*SENT_AGAIN, Change.DOUBT, Change.SETTLE_FREE),
        State.FREE,
        False,
    ),
}
"""What a new owner does with an item, its state then, and whether a late end of the first call counts."""


def test_late_ends(place: Place, url: str, late: Items) -> None:
    """A late end counts if nobody has decided that it was applied, or claimed the item since."""
    cases = list(enumerate(itertools.product(TAKEN_OVER, RULES[State.CLAIMED]), 1))
    late.write([], [claim(number, number, before="balance") for number, _ in cases]).result()
    cut(url)
    new = begin(place)
    assert set(states(place).values()) == {State.UNCLEAR}
    for number, (how, _) in cases:
        for change in TAKEN_OVER[how][0]:
            if change is Change.CLAIM:
                assert new.write([], [claim(number, number)]).result() == {number}
            elif change in RULES[State.CLAIMED]:
                new.write([ended(number, change, "new")], []).result()
            else:
                new.settle([(number, change, "Ada")]).result()
    before = {row.number: row for row in rows(place)}
    ends = [ended(number, change, "late") for number, (_, change) in cases]
    assert late.write(ends, []).result() == set()
    for row in rows(place):
        how, change = dict(cases)[row.number]
        _, state, counts = TAKEN_OVER[how]
        assert before[row.number].state is state
        if not counts:
            assert row == before[row.number]
            continue
        assert row.state is RULES[State.CLAIMED][change]
        assert (row.event, row.status, row.error_code) == ("late", 299, "CODE")
        assert row.before == ("balance" if row.state is State.UNCLEAR else None)
        assert row.note == (None if how == "doubted" else "Ada")
    new.close()


def test_late_claims(place: Place, url: str, late: Items) -> None:
    """An owner that has lost its journal to another one claims nothing, but its ends are written."""
    put(late, 1, State.CLAIMED)
    cut(url)
    new = begin(place)
    for number in (2, 3):
        future = late.write([ended(1, Change.APPLY)], [claim(number, number)])
        with pytest.raises(LostError) as caught:
            future.result()
        assert str(caught.value) == f"another process has taken over grants.csv in {url}"
        assert states(place) == {1: State.APPLIED}
    assert new.write([], [claim(2, 2)]).result() == {2}
    new.close()
    # It does not come back when the other one has ended.
    with pytest.raises(LostError):
        late.write([], [claim(3, 3)]).result()
    assert not is_owned(place)


def test_connected_again(place: Place, url: str, late: Items) -> None:
    """An owner that lost its connection, and not its journal, goes on. Its claims are not doubted."""
    put(late, 1, State.CLAIMED)
    cut(url)
    assert not is_owned(place)
    assert read_journal(place)[1].unclear == 1  # type: ignore[index]
    assert late.write([], [claim(2, 2)]).result() == {2}
    assert is_owned(place)
    assert states(place) == dict.fromkeys((1, 2), State.CLAIMED)
    with pytest.raises(InUseError):
        begin(place)


def test_taken_over_for_a_moment(place: Place, url: str, late: Items) -> None:
    """An owner that comes back after another one has ended is late, too."""
    put(late, 1, State.CLAIMED)
    cut(url)
    begin(place).close()
    assert late.write([ended(1, Change.APPLY)], []).result() == set()
    with pytest.raises(LostError) as caught:
        late.write([], [claim(2, 2)]).result()
    assert str(caught.value) == f"another process has taken over grants.csv in {url}"
    assert states(place) == {1: State.APPLIED}
    assert not is_owned(place)


@pytest.mark.parametrize("has_ended", [False, True])
def test_late_decision(place: Place, url: str, late: Items, has_ended: bool) -> None:  # noqa: FBT001 - pytest passes it
    """An owner that has lost its journal decides nothing: it knows an older call of the item."""
    put(late, 1, State.UNCLEAR)
    cut(url)
    new = begin(place)
    new.settle([(1, Change.SETTLE_FREE, "Ada")]).result()
    put(new, 1, State.UNCLEAR)
    if has_ended:
        new.close()
    with pytest.raises(LostError):
        late.settle([(1, Change.SETTLE_FREE, "Bob")]).result()
    with pytest.raises(LostError):
        late.annotate(1, "evidence").result()
    (row,) = rows(place)
    assert (row.state, row.note) == (State.UNCLEAR, "Ada")
    new.close()


def test_late_shard(path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner of all shards that has lost one of them claims nothing in any."""
    monkeypatch.setattr("creduse_journal.postgres._Session.idle_limit", None)
    begin_run(path, shard=SHARDS[0], journal=url).close()
    with whole_run(path, url) as items:
        put(items, NUMBERS[0][0], State.CLAIMED)
        put(items, NUMBERS[1][0], State.CLAIMED)
        cut(url)
        begin_run(path, shard=SHARDS[1], journal=url).close()
        with pytest.raises(LostError, match="another process has taken over"):
            items.write([ended(NUMBERS[0][0], Change.APPLY)], [claim(60, 60)]).result()
    found = states(place_of(path, url, None))
    assert found == {NUMBERS[0][0]: State.APPLIED, NUMBERS[1][0]: State.UNCLEAR}


def test_late_stop(place: Place, url: str, late: Items) -> None:
    """An owner that has lost its journal does not say why the new one has stopped."""
    put(late, 1, State.CLAIMED)
    cut(url)
    new = begin(place)
    new.set_stopped("SIGINT").result()
    late.set_stopped("another process has taken over").result()
    new.close()
    found = read_journal(place)
    assert found is not None
    assert found[1].stopped == "SIGINT"


# Operations that come twice, since the connection was lost during COMMIT


OPERATIONS: dict[str, Callable[[Items], Any]] = {
    **{
        f"end: {change}": lambda items, change=change: items.write([ended(2, change)], [])  # type: ignore[misc]
        for change in RULES[State.CLAIMED]
    },
    "claim": lambda items: items.write([], [claim(11, 11, 7.5, "balance"), claim(12, 12, 7.5)]),
    "claim one of two": lambda items: items.write([], [claim(11, 5, 7.5), claim(1, 11, 7.5)]),
    "claim after the end": lambda items: items.write(
        [ended(2, Change.APPLY)], [claim(11, 2, 7.5), claim(12, 2, 7.5)]
    ),
    "claim again": lambda items: items.write([ended(2, Change.RELEASE)], [claim(2, 2, 7.5)]),
    "claim nothing": lambda items: items.write(
        [ended(2, Change.DOUBT)], [claim(2, 2, 7.5), claim(11, 2, 7.5)]
    ),
    "settle as free": lambda items: items.settle(
        [(5, Change.SETTLE_FREE, "Ada"), (4, Change.SETTLE_FREE, "Ada")]
    ),
    "settle as applied": lambda items: items.settle([(5, Change.SETTLE_APPLIED, "Ada")]),
    "settle nothing": lambda items: items.settle([]),
    "stop": lambda items: items.set_stopped("SIGINT"),
    "go on": lambda items: items.set_stopped(None),
    "annotate": lambda items: items.annotate(5, "evidence"),
    "counts": lambda items: items.counts(),
    "taken": lambda items: items.taken(1, 99),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_twice(monkeypatch: pytest.MonkeyPatch, place: Place, name: str) -> None:
    """An operation that is committed twice does what it does once, and returns the same."""
    items: Any = begin(place)
    for number, state in enumerate(State, 1):
        put(items, number, state)
    writer = items._database._session  # noqa: SLF001 - there is no other way to lose it just there
    transaction = writer._transaction  # noqa: SLF001
    after: list[tuple[object, list[object]]] = []

    def commit(batch: Any) -> Any:
        (end,) = transaction(batch)
        after.append((end.args, kept(place)))
        if len(after) == 1:
            writer._connection.close()  # noqa: SLF001
            raise psycopg.OperationalError("the connection was lost during COMMIT")
        return [end]

    monkeypatch.setattr(writer, "_transaction", commit)
    OPERATIONS[name](items).result()
    first, second = after
    assert first == second
    items.close()


def kept(place: Place) -> list[object]:
    """Return all that a journal keeps, but the times when its rows were changed."""
    with place.read() as reader:
        assert reader is not None
        return [reader.begun(), *(row._replace(changed_at=0) for row in reader.rows())]


# Keys, and other secrets


def test_keys_of_two_shards(path: Path, url: str) -> None:
    """While one shard is owned, another one does not begin with another key, even if nothing was sent."""
    first = begin_run(path, shard=SHARDS[0], journal=url)
    place, begun, _ = read_begun(path, url, SHARDS[1])
    with pytest.raises(InUseError) as caught:
        place.open(begun.identity, Secret("another-key"), None)
    message = f"grants.csv in {url} is in use: another process sends it, with another API key"
    assert str(caught.value) == message
    put(first, NUMBERS[0][0], State.APPLIED)
    first.close()
    begin_run(path, shard=SHARDS[0], journal=url).close()
    with pytest.raises(JournalError, match="the run began with another API key"):
        place.open(begun.identity, Secret("another-key"), None)


def test_no_key_in_the_tables(url: str) -> None:
    """The tables hold no API key. Each run has its own fingerprint of it."""
    secret = url.replace("postgres@", "postgres:hunter2@")
    for name in ("one.csv", "two.csv"):
        items = begin(place_of(Path(name), secret, None))
        put(items, 1, State.UNCLEAR)
        items.annotate(1, "note").result()
        items.set_stopped("SIGINT").result()
        items.close()
    names = ("creduse_runs", "creduse_shards", "creduse_items")
    texts = [str(row) for table in names for row in execute(url, f"SELECT * FROM {table}")]  # noqa: S608 - ours
    assert len(texts) == 6
    for word in (KEY, KEY[8:], "hunter2"):
        assert word not in "\n".join(texts)
    for column in ("key", "salt"):
        (one,), (two,) = execute(url, f"SELECT {column} FROM creduse_runs")  # noqa: S608 - ours
        assert one != two


def test_no_password_in_messages(path: Path, url: str) -> None:
    """No message and no repr has the password of the URL."""
    secret = url.replace("postgres@", "postgres:hunter2@")
    place = place_of(path, secret, None)
    texts = [str(place), repr(place)]

    def note(use: Callable[[], object]) -> None:
        with pytest.raises(JournalError) as caught:
            use()
        texts.extend([str(caught.value), repr(caught.value)])
        if caught.value.__cause__ is not None:
            texts.append(repr(caught.value.__cause__))

    note(lambda: status(path, journal=secret))
    items = begin_run(path, journal=secret)
    texts.append(repr(items))
    note(lambda: begin_run(path, journal=secret))
    note(lambda: begin_run(path, journal=secret, shard=Shard(1, 2)))
    note(lambda: begin_run(path, "subtract", journal=secret))
    put(items, 1, State.APPLIED)
    note(lambda: place.open(IDENTITY, Secret("another"), None))
    put(items, 2, State.UNCLEAR)
    note(lambda: items.settle([(2, Change.SETTLE_FREE, "a\0b")]).result())
    items.close()
    note(lambda: items.counts().result())
    execute(url, "DROP TABLE creduse_shards")
    note(lambda: status(path, journal=secret))
    note(lambda: status(path, journal="postgresql://me:hunter2@127.0.0.1:1/none"))
    note(lambda: status(path, journal="postgresql://me:hunter2@127.0.0.1:none/none"))
    assert len(texts) > 20
    assert not [text for text in texts if "hunter2" in text]
    assert texts[0] == f"grants.csv in {url.replace('postgres@', 'postgres:***@')}"


# Runs and tables


def test_two_runs(url: str) -> None:
    """Runs of other names are beside each other, with the same numbers and users."""
    one, two = (place_of(Path(name), url, None) for name in ("one.csv", "two.csv"))
    first, second = begin(one), begin(two, method="subtract", key="another-key")
    put(first, 1, State.UNCLEAR)
    put(second, 1, State.APPLIED)
    put(second, 2, State.CLAIMED, of=1)
    assert first.counts().result()[State.UNCLEAR] == 1
    assert first.taken(1, 9).result() == {1}
    first.annotate(1, "note").result()
    first.settle([(1, Change.SETTLE_FREE, "Ada")]).result()
    first.set_stopped("SIGINT").result()
    first.close()
    begin(one).close()
    assert (is_owned(one), is_owned(two)) == (False, True)
    assert states(one) == {1: State.FREE}
    assert states(two) == {1: State.APPLIED, 2: State.CLAIMED}
    assert [row.note for row in rows(two)] == [None, None]
    second.close()


def test_same_name(path: Path, url: str) -> None:
    """A file of the same name elsewhere is the same run, if it is the same file."""
    begin_run(path, journal=url).close()
    again = path.with_name("again")
    again.mkdir()
    other = again / path.name
    other.write_bytes(path.read_bytes())
    assert status(other, journal=url).items == 60
    other.write_text(f"end_user_id,amount\n{user(1)},5\n")
    with pytest.raises(JournalError, match="the file was changed since the run began"):
        begin_run(other, journal=url)


def test_deleted_run(path: Path, place: Place, url: str) -> None:
    """A run can be deleted when it has ended. If it has not, nothing more is claimed."""
    items = begin_run(path, journal=url)
    put(items, 1, State.CLAIMED)
    execute(url, "DELETE FROM creduse_runs")
    assert execute(url, "SELECT * FROM creduse_items") == []
    with pytest.raises(JournalError, match=r"cannot be used: insert .* violates foreign key"):
        items.write([ended(1, Change.APPLY)], [claim(2, 2)]).result()
    assert items.write([ended(1, Change.APPLY)], []).result() == set()
    items.close()
    with pytest.raises(JournalError) as caught:
        place.open(IDENTITY, Secret(KEY), None)
    assert str(caught.value) == f"{place}: somebody has deleted the run"
    with pytest.raises(JournalError, match=r"no run of .* has begun"):
        status(path, journal=url)
    items = begin_run(path, journal=url)
    put(items, 1, State.APPLIED)
    items.close()


@pytest.mark.parametrize("table", ["creduse_runs", "creduse_shards", "creduse_items"])
def test_missing_table(path: Path, url: str, table: str) -> None:
    """If somebody drops a table, nothing is claimed, and a message says what is missing."""
    items = begin_run(path, journal=url)
    execute(url, f"DROP TABLE {table} CASCADE")
    if table == "creduse_items":  # as if nothing had ever been there
        with pytest.raises(JournalError, match=r"no run of .* has begun"):
            status(path, journal=url)
    else:
        with pytest.raises(JournalError, match=f'cannot be used: relation "{table}" does not'):
            status(path, journal=url)
    if table == "creduse_items":
        with pytest.raises(JournalError, match=f'cannot be used: relation "{table}" does not'):
            items.write([], [claim(1, 1)]).result()
    items.close()


@pytest.fixture
def role(url: str) -> Iterator[tuple[str, str]]:
    """A role that may use the schema, and make nothing there, with its URL."""
    name = f"test_{uuid4().hex}"
    ((schema,),) = execute(url, "SELECT current_schema()")
    execute(url, f"CREATE ROLE {name} LOGIN PASSWORD 'hunter2'")
    execute(url, f"GRANT USAGE ON SCHEMA {schema} TO {name}")
    parts = urlsplit(url)
    yield name, parts._replace(netloc=f"{name}:hunter2@{parts.hostname}:{parts.port}").geturl()
    execute(url, f"DROP OWNED BY {name}")
    execute(url, f"DROP ROLE {name}")


def test_role_that_makes_no_tables(path: Path, url: str, role: tuple[str, str]) -> None:
    """A role without the right to make tables is refused, unless somebody has made them."""
    name, limited = role
    with pytest.raises(JournalError, match="cannot be used: permission denied for schema test_"):
        begin_run(path, journal=limited)
    with pytest.raises(JournalError, match=r"no run of .* has begun"):
        status(path, journal=limited)
    begin(place_of(Path("other.csv"), url, None)).close()
    names = "creduse_runs, creduse_shards, creduse_items"
    execute(url, f"GRANT SELECT ON {names} TO {name}")
    with pytest.raises(JournalError, match="permission denied for table creduse_runs"):
        begin_run(path, journal=limited)
    execute(url, f"GRANT INSERT, UPDATE ON {names} TO {name}")
    items = begin_run(path, journal=limited)
    for number, state in enumerate(State, 1):
        put(items, number, state)
    items.close()
    begin_run(path, journal=limited).close()
    assert status(path, journal=limited).unclear == 2


def test_role_that_reads(path: Path, url: str, role: tuple[str, str]) -> None:
    """Whoever may read the tables sees how far a run is, and can change nothing."""
    name, limited = role
    items = begin_run(path, journal=url)
    put(items, 1, State.CLAIMED)
    execute(url, f"GRANT SELECT ON creduse_runs, creduse_shards, creduse_items TO {name}")
    assert status(path, journal=limited) == Progress(60, 0, 0, 0, in_flight=1, is_going_on=True)
    assert len(list(report(path, journal=limited))) == 61
    with pytest.raises(JournalError, match="permission denied"):
        begin_run(path, journal=limited)
    items.close()


def test_name_that_is_not_text(tmp_path: Path, url: str) -> None:
    """A file whose name is not text cannot have a run in PostgreSQL."""
    path = tmp_path / "a\udcff.csv"
    with pytest.raises(InputError) as caught:
        status(path, journal=url)
    assert str(caught.value) == "'a\\udcff.csv': the name of the file must be valid Unicode"


def test_note_that_is_not_text(place: Place) -> None:
    """A note that PostgreSQL cannot keep is an error, and no reason to try again."""
    items = begin(place)
    put(items, 1, State.UNCLEAR)
    with pytest.raises(JournalError, match="cannot contain NUL") as caught:
        items.settle([(1, Change.SETTLE_FREE, "a\0b")]).result()
    assert not isinstance(caught.value, UnavailableError)
    assert states(place) == {1: State.UNCLEAR}
    items.close()


def test_forgotten(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """A journal that nobody closes is closed when nobody uses it."""
    monkeypatch.setattr("creduse_journal.postgres._Session.idle_limit", 0.1)
    items = begin(place)
    items.write([], [claim(1, 1)]).result()
    del items
    wait_until(lambda: not is_owned(place))
    gc.collect()


def test_read_only(place: Place) -> None:
    """Who reads cannot write."""
    begin(place).close()

    def write() -> None:
        with place.read() as found:
            reader: Any = found
            reader._connection.execute("DELETE FROM creduse_runs")  # noqa: SLF001 - what it must not do

    with pytest.raises(JournalError, match="cannot execute DELETE in a read-only transaction"):
        write()


def test_one_moment(place: Place) -> None:
    """All that somebody reads is of the same moment."""
    items = begin(place)
    put(items, 1, State.CLAIMED)
    with place.read() as reader:
        assert reader is not None
        items.write([ended(1, Change.DOUBT)], [claim(2, 2)]).result()
        assert reader.counts()[State.CLAIMED] == 1
        assert [row.state for row in reader.rows()] == [State.CLAIMED]
    assert states(place) == {1: State.UNCLEAR, 2: State.CLAIMED}
    items.close()


# Servers


def tables(url: str) -> list[tuple[str]]:
    """Return the tables that are there."""
    return execute(url, "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")


@pytest.mark.skipif(find_programs() is None, reason="PostgreSQL is not installed")
def test_without_fsync() -> None:
    """A server that would forget claims in a crash is refused."""
    with Cluster("fsync = off") as cluster:
        place = place_of(Path("grants.csv"), cluster.url, None)
        with pytest.raises(JournalError, match="cannot keep a journal: fsync is off there"):
            begin(place)
        assert tables(cluster.url) == []


def test_old_server(monkeypatch: pytest.MonkeyPatch, place: Place, url: str) -> None:
    """A server that is too old is refused."""
    monkeypatch.setattr("creduse_journal.postgres._OLDEST", 990000)
    with pytest.raises(JournalError) as caught:
        begin(place)
    message = re.escape(f"a journal needs PostgreSQL 14 or later; {url} has ") + r"\d+$"
    assert re.match(message, str(caught.value))
    assert tables(url) == []


def test_no_server(path: Path) -> None:
    """Without a server, the message says which one."""
    journal = "postgresql://me@127.0.0.1:1/none"
    place = place_of(path, journal, None)
    for use in (lambda: status(path, journal=journal), lambda: begin(place)):
        with pytest.raises(UnavailableError, match=re.escape(f"{journal} cannot be used: ")):
            use()


def test_ended_meanwhile(path: Path, url: str) -> None:
    """A decision about a line that has ended meanwhile is refused, and nothing is decided."""
    path.write_text(f"end_user_id,amount\n{user(1)},1\n{user(2)},2\n")
    name = f"late-{uuid4()}"
    late = begin_run(path, journal=named(url, name), base_url="http://127.0.0.1:1")
    late.write([], [claim(1, 1), claim(2, 2)]).result()
    terminate(url, name)
    protocol = CreduseProtocol(KEY, "http://127.0.0.1:1")
    with Resolution(protocol, path, url) as resolution:
        late.write([ended(1, Change.APPLY)], []).result()
        decisions = [Decision(number, Change.SETTLE_FREE, "Ada") for number in (2, 1)]
        with pytest.raises(
            JournalError, match=r"a line has ended meanwhile: cannot settle as free"
        ):
            resolution.settle(decisions)
        resolution.settle(decisions[:1])
    late.close()
    assert status(path, journal=url).applied == 1


def test_known_ends_are_kept(path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If an operation fails, what is known is written, and what was not sent is free."""
    path.write_text("end_user_id,amount\n" + "".join(f"{user(it)},{it}\n" for it in range(1, 101)))
    write = PostgresItems._write  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to disturb it
    left = [5]

    def fail_once(items: Any, connection: Any, ended: Any, claims: Any) -> set[int]:
        left[0] -= 1
        if left[0] == 0:
            connection.execute("SELECT 1 / 0")
        return write(items, connection, ended, claims)

    monkeypatch.setattr(PostgresItems, "_write", fail_once)
    with SandboxServer() as server:
        with pytest.raises(JournalError, match="division by zero"):
            run("add", path, journal=url, api_key=KEY, base_url=server.base_url)
        progress = status(path, journal=url)
        assert progress.unclear == 0
        assert progress.applied == len(server.applied) > 0
        assert run("add", path, journal=url, api_key=KEY, base_url=server.base_url).applied == 100
        assert len(server.applied) == 100


def test_why_shards_have_stopped(path: Path, url: str) -> None:
    """A reason of all shards is given once, and others with some of their shards."""
    shards = [Shard(number, 12) for number in range(1, 13)]
    for number, shard in enumerate(shards):
        items = begin_run(path, shard=shard, journal=url)
        items.set_stopped("SIGTERM" if number < 9 else None).result()
        items.close()
    assert status(path, journal=url).stopped == "shard 1/12, 2/12, 3/12, 4/12, 5/12, …: SIGTERM"
    assert status(path, journal=url, shard=shards[0]).stopped == "SIGTERM"
    with whole_run(path, url) as items:
        items.set_stopped("SIGINT").result()
    assert status(path, journal=url).stopped == "SIGINT"
