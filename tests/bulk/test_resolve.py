"""Unclear lines: what balances prove about them, and decisions. The server knows what is true."""

import csv
import json
import resource
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

import creduse_aiohttp
import creduse_bulk
import creduse_trio
from creduse_bulk import InputError, Progress, Shard
from creduse_bulk._progress import place_of
from creduse_bulk._resolve import Decision, Resolution
from creduse_core import CreduseProtocol, Evidence, Request, Verdict
from creduse_journal import Change, InUseError, JournalError, State
from creduse_sandbox import FAULTS, CannedResponse, SandboxServer
from tests.bulk.conftest import begin_run, claim, ended, is_owned, put, states, user
from tests.common import KEY, keep_from_end_of_day

LOST_RESPONSE, LOST_REQUEST = FAULTS["apply-then-reset"], FAULTS["request-then-reset"]
CLIENTS: dict[str, Any] = {
    "asyncio": creduse_aiohttp.AsyncCreduseClient,
    "trio": creduse_trio.AsyncCreduseClient,
}


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    """A sandbox whose users have credits, and an emptied cycle."""
    with SandboxServer() as server:
        for number in range(1, 10):
            server.direct.add(user(number), 5, 300)
            server.direct.subtract(user(number), 5)
            server.direct.add(user(number), 1000, 7)
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The input file."""
    return tmp_path / "grants.csv"


def write(path: Path, *lines: tuple[int, int], method: str = "add") -> None:
    """Write a file of users and amounts."""
    if method == "stop_cycle":
        text = "end_user_id\n" + "".join(f"{user(of)}\n" for of, _ in lines)
    else:
        text = "end_user_id,amount\n" + "".join(f"{user(of)},{amount}\n" for of, amount in lines)
    path.write_text(text)


def run(server: SandboxServer, path: Path, method: str = "add", **options: Any) -> Progress:
    """Send the file."""
    return creduse_bulk.run(method, path, api_key=KEY, base_url=server.base_url, **options)


def nth(of: int, number: int) -> Callable[[Request], bool]:
    """Return a condition for the write of a user with this number, from 1 on."""
    seen = 0

    def is_it(request: Request) -> bool:
        nonlocal seen
        if request.method != "POST" or str(user(of)).encode() not in request.body:
            return False
        seen += 1
        return seen == number

    return is_it


def resolve(
    server: SandboxServer, path: Path, journal: str | None = None, shard: Shard | None = None
) -> Resolution:
    """Open the journal, to resolve what is unclear."""
    return Resolution(CreduseProtocol(KEY, server.base_url), path, journal, shard)


def weigh(server: SandboxServer, resolution: Resolution, backend: str, **options: Any) -> Any:
    """Weigh all unclear lines."""

    async def main() -> list[Evidence]:
        async with CLIENTS[backend](KEY, base_url=server.base_url) as client:
            return await resolution.weigh(client, **options)

    return anyio.run(main, backend=backend)


def writes(server: SandboxServer) -> Counter[str]:
    """Return how many writes of each user the server has applied, of those in its record."""
    return Counter(json.loads(entry.body or b"")["end_user_id"] for entry in server.applied)


# What balances prove

METHODS = ["add", "subtract", "start_cycle", "stop_cycle"]


@pytest.mark.parametrize("backend", CLIENTS)
@pytest.mark.parametrize("method", METHODS)
def test_weigh(
    server: SandboxServer, path: Path, journal: str | None, method: str, backend: str
) -> None:
    """With balances from before, each verdict is what the server's record says."""
    keep_from_end_of_day()
    if method == "stop_cycle":
        for number in range(1, 7):
            server.direct.start_cycle(user(number), 50)
        lines = [(number, 0) for number in range(1, 7)]
    elif method == "start_cycle":
        lines = [(number, 7) for number in range(1, 7)]
    else:  # the same amount just before
        lines = [(number, 7) for number in range(1, 7)] * 2
    write(path, *lines, method=method)
    last = len(lines) // 6
    for number in (1, 2):
        server.inject(LOST_RESPONSE, when=nth(number, last))
    for number in (3, 4):
        server.inject(LOST_REQUEST, when=nth(number, last))
    assert run(server, path, method, journal=journal, balance_first=True).unclear == 4
    applied = writes(server)
    sent = len(server.log)
    with resolve(server, path, journal) as resolution:
        assert [it.line for it in resolution.unclear] == [
            it + 6 * (last - 1) + 1 for it in range(1, 5)
        ]
        evidence = weigh(server, resolution, backend)
        assert all(entry.method == "GET" for entry in server.log[sent:])
        assert len(server.log) == sent + 4
    for it, proved in zip(resolution.unclear, evidence, strict=True):
        was_applied = applied[str(it.item.user)] == last
        assert proved.verdict is (Verdict.APPLIED if was_applied else Verdict.NOT_YET), proved
    assert [proved.verdict for proved in evidence].count(Verdict.APPLIED) == 2
    shown = [
        line["evidence"]
        for line in csv.DictReader(creduse_bulk.report(path, journal=journal, only="unclear"))
    ]
    assert shown == [str(proved) for proved in evidence]


def test_weigh_without_balances(server: SandboxServer, path: Path, journal: str | None) -> None:
    """Without a balance from before, no verdict is wrong."""
    keep_from_end_of_day()
    write(path, *[(number, 7) for number in range(1, 5)], (1, 8), (2, 8), (3, 7), (4, 7))
    for number, fault in enumerate([LOST_RESPONSE, LOST_REQUEST] * 2, 1):
        server.inject(fault, when=nth(number, 2))
    assert run(server, path, journal=journal).unclear == 4
    with resolve(server, path, journal) as resolution:
        verdicts = [it.verdict for it in weigh(server, resolution, "asyncio")]
        assert verdicts == [Verdict.APPLIED, Verdict.NOT_YET, Verdict.APPLIED, Verdict.OPEN]
        assert {it.item.user for it in resolution.unclear} == {user(it) for it in range(1, 5)}
        assert all(len(it.others) == 1 for it in resolution.unclear)


def test_hidden_cycles(server: SandboxServer, path: Path, journal: str | None) -> None:
    """Whether the service lists cycles without credits is passed on."""
    keep_from_end_of_day()
    one = user(77)
    server.direct.add(one, 10, 300)
    path.write_text(f"end_user_id,amount\n{one},7\n")
    server.inject(LOST_REQUEST)
    assert run(server, path, journal=journal).unclear == 1
    with resolve(server, path, journal) as resolution:
        (unsure,) = weigh(server, resolution, "asyncio")
        assert unsure.verdict is Verdict.OPEN
        (sure,) = weigh(server, resolution, "asyncio", lists_empty_cycles=True)
        assert sure.verdict is Verdict.NOT_YET


def set_ended(path: Path, journal: str | None, ended_at: float) -> None:
    """Change when the call of the first item has ended."""
    if journal is None:
        with closing(sqlite3.connect(f"{path}.journal")) as database:
            database.execute("UPDATE items SET changed_at = ? WHERE number = 1", (ended_at,))
            database.commit()
    else:
        from creduse_journal.postgres import connect  # noqa: PLC0415 - it may not be installed

        with connect(journal) as database:
            database.execute(
                "UPDATE creduse_items SET changed_at = %s WHERE number = 1", (ended_at,)
            )


@pytest.mark.parametrize(
    ("ended_ago", "verdict"), [(0, Verdict.OPEN), (21, Verdict.OPEN), (23, Verdict.APPLIED)]
)
def test_slow_call(
    server: SandboxServer, path: Path, journal: str | None, ended_ago: float, verdict: Verdict
) -> None:
    """A call that began long before, and ended not long before, may have opened the cycle."""
    keep_from_end_of_day()
    write(path, (1, 7), (1, 7))
    items = begin_run(path, journal=journal, base_url=server.base_url)
    now = time.time()
    items.write([], [claim(1, 1, now - 100)]).result()
    server.direct.add(user(1), 7)
    items.write([ended(1, Change.APPLY)], [claim(2, 1, now)]).result()
    items.write([ended(2, Change.DOUBT)], []).result()
    items.close()
    set_ended(path, journal, now - ended_ago)
    with resolve(server, path, journal) as resolution:
        (it,) = resolution.unclear
        assert [other.amount for other, _ in it.others] == [7]
        (evidence,) = weigh(server, resolution, "asyncio")
        assert evidence.verdict is verdict


def test_unreadable(server: SandboxServer, path: Path, journal: str | None) -> None:
    """If a balance cannot be read, the verdict is open, and that is kept. Others go on."""
    keep_from_end_of_day()
    write(path, (1, 7), (2, 7))
    for number in (1, 2):
        server.inject(LOST_RESPONSE, when=nth(number, 1))
    run(server, path, journal=journal)
    server.inject(CannedResponse(401), when=lambda it: str(user(1)).encode() in it.body)
    with resolve(server, path, journal) as resolution:
        first, second = weigh(server, resolution, "trio")
    assert (first.verdict, second.verdict) == (Verdict.OPEN, Verdict.APPLIED)
    assert first.reason.startswith("the balance could not be read: ")
    kept = [line["evidence"] for line in csv.DictReader(creduse_bulk.report(path, journal=journal))]
    assert kept == [str(first), str(second)]


def test_many_at_once(server: SandboxServer, path: Path, journal: str | None) -> None:
    """Many lines are weighed, some at a time, and evidence comes in the order of the file."""
    keep_from_end_of_day()
    lines = [(100 + number, 7) for number in range(60)]
    write(path, *lines)
    items = begin_run(path, journal=journal, base_url=server.base_url)
    items.write([], [claim(number, of) for number, (of, _) in enumerate(lines, 1)]).result()
    items.close()
    for number in range(0, 60, 3):
        server.direct.add(user(100 + number), 7)
    with resolve(server, path, journal) as resolution:
        verdicts = [it.verdict for it in weigh(server, resolution, "asyncio")]
    wanted = [Verdict.NOT_YET if number % 3 else Verdict.APPLIED for number in range(60)]
    assert verdicts == wanted
    assert len({entry.connection for entry in server.log}) <= 8


def test_full_disk(server: SandboxServer, path: Path) -> None:
    """If evidence cannot be kept, that is an error of the journal."""
    write(path, (1, 7))
    items = begin_run(path, base_url=server.base_url)
    put(items, 1, State.UNCLEAR)
    items.close()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with resolve(server, path) as resolution:
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
        try:
            with pytest.raises(JournalError, match=r"cannot be used|disk is full"):
                weigh(server, resolution, "asyncio")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)


# Decisions by evidence

APPLIED, NOT_YET, OPEN = (Evidence(verdict, "reason") for verdict in Verdict)


@pytest.mark.parametrize(
    ("age", "settled_after", "settled"),
    [
        (0, None, False),
        (10**6, None, False),
        (0, 0.0, True),
        (50, 100.0, False),
        (150, 100.0, True),
        (-50, 0.0, False),
    ],
)
def test_by_evidence(
    server: SandboxServer,
    path: Path,
    journal: str | None,
    age: float,
    settled_after: float | None,
    settled: bool,  # noqa: FBT001 - pytest passes it
) -> None:
    """APPLIED is settled. NOT_YET frees what began long enough ago, if somebody says how long."""
    write(path, *[(number, 7) for number in range(1, 5)])
    items = begin_run(path, journal=journal, base_url=server.base_url)
    began = time.time() - age
    items.write([], [claim(number, number, began) for number in range(1, 5)]).result()
    items.write([ended(3, Change.APPLY)], []).result()
    items.close()
    with resolve(server, path, journal) as resolution:
        assert [it.item.number for it in resolution.unclear] == [1, 2, 4]
        decisions = resolution.by_evidence([NOT_YET, APPLIED, OPEN], settled_after)
        wanted = [Decision(2, Change.SETTLE_APPLIED, "APPLIED: reason")]
        if settled:
            wanted.insert(0, Decision(1, Change.SETTLE_FREE, "NOT_YET: reason"))
        assert decisions == wanted
        progress = resolution.settle(decisions)
        assert progress == Progress(4, 2, 0, 1 if settled else 2)
    found = {1: State.FREE if settled else State.UNCLEAR, 2: State.APPLIED}
    assert states(place_of(path, journal, None)) == found | {3: State.APPLIED, 4: State.UNCLEAR}


def test_evidence_for_each(server: SandboxServer, path: Path) -> None:
    """There is evidence for each unclear line, or it is an error."""
    write(path, (1, 7))
    items = begin_run(path, base_url=server.base_url)
    put(items, 1, State.CLAIMED)
    items.close()
    with resolve(server, path) as resolution, pytest.raises(ValueError, match="shorter"):
        resolution.by_evidence([], 0)


# Decisions by a file


@pytest.fixture
def decided(path: Path) -> Path:
    """A file of decisions."""
    return path.with_name("decisions.csv")


LINES = {
    3: State.UNCLEAR,
    4: State.REFUSED,
    5: State.APPLIED,
    6: State.FREE,
    7: None,
    8: State.UNCLEAR,
    9: State.CLAIMED,
}
"""The lines of the file, whose header is in the second one, with their states."""


@pytest.fixture
def resolution(server: SandboxServer, path: Path) -> Iterator[Resolution]:
    """A run with lines in each state, whose process has died."""
    lines = [f"{user(line)},{line},line {line}\n" for line in LINES]
    path.write_text("\nend_user_id,amount,id\n" + "".join(lines))
    items = begin_run(path, base_url=server.base_url)
    for number, (line, state) in enumerate(LINES.items(), 1):
        if state is not None:
            put(items, number, state, of=line)
    items.close()
    with resolve(server, path) as resolution:
        yield resolution


FREE, DONE = Change.SETTLE_FREE, Change.SETTLE_APPLIED


@pytest.mark.parametrize(
    ("content", "note", "decisions"),
    [
        ("line,decision\n3,applied\n4,not_applied\n", "Ada", [(1, DONE, "Ada"), (2, FREE, "Ada")]),
        ("line,decision,note\n9,not_applied,seen\n", None, [(7, FREE, "seen")]),
        ("line,decision,note\n9,not_applied,seen\n", "", [(7, FREE, "seen")]),
        ("line,decision,note\n9,not_applied,seen\n", "Ada", [(7, FREE, "Ada")]),
        ("decision;id\nnot_applied;line 3\n\n;line 4\n;\n", "Ada", [(1, FREE, "Ada")]),
        (
            "id,line,decision\nline 4,3,applied\nline 8,,applied\n",
            "A",
            [(1, DONE, "A"), (6, DONE, "A")],
        ),
        ("line,decision\n8,applied\n3,applied\n", "A", [(1, DONE, "A"), (6, DONE, "A")]),
        ("line,decision\n3,\n99,\n", "Ada", []),
        ("line,decision\n", "Ada", []),
        ('{"line": 3, "decision": "applied", "note": "seen"}\n', None, [(1, DONE, "seen")]),
        (
            (
                '{"line": "3", "decision": "applied"}\n{"line": 8, "decision": null}\n{"line": 9}\n'
                '{"id": "line 8", "line": null, "decision": "not_applied"}'
            ),
            "Ada",
            [(1, DONE, "Ada"), (6, FREE, "Ada")],
        ),
        (
            f"end_user_id,line,decision\n{user(3)},3,applied\n,8,applied",
            "A",
            [(1, DONE, "A"), (6, DONE, "A")],
        ),
    ],
)
def test_by_file(
    resolution: Resolution,
    decided: Path,
    content: str,
    note: str | None,
    decisions: list[tuple[int, Change, str]],
) -> None:
    """Lines of a file decide by line or id, with a note. Those without a decision are skipped."""
    decided.write_text(content)
    assert resolution.by_file(decided, note) == [Decision(*it) for it in decisions]


NO_NOTE = "a note must say who decides, and why: pass --note, or add the column note"
WHICH = "line or id must say which item it is"
WANTED = "decision must be applied or not_applied, not"


@pytest.mark.parametrize(
    ("content", "note", "problems"),
    [
        ("line,decision\n3,yes\n", "A", [f"line 2: {WANTED} 'yes'"]),
        (
            "line,decision\n3,Applied\n8, \n",
            "A",
            [f"line 2: {WANTED} 'Applied'", f"line 3: {WANTED} ' '"],
        ),
        (f"line,decision\n3,{'x' * 500}\n", "A", [f"line 2: {WANTED} '{'x' * 99}…"]),
        ("line,decision\n3,applied\n", None, [f"line 2: {NO_NOTE}"]),
        ("line,decision\n3,applied\n", "  ", [f"line 2: {NO_NOTE}"]),
        ("line,decision,note\n3,applied, \n", None, [f"line 2: {NO_NOTE}"]),
        ("line,decision\n2,applied\n", "A", ["line 2: no line has the line '2'"]),
        ("line,decision\n03,applied\n", "A", ["line 2: no line has the line '03'"]),
        ("line,decision\n99,applied\n", "A", ["line 2: no line has the line '99'"]),
        ("id,decision\nline 99,applied\n", "A", ["line 2: no line has the id 'line 99'"]),
        ("id,decision\nNone,applied\n", "A", ["line 2: no line has the id 'None'"]),
        (f"id,decision\n{'x' * 500},applied\n", "A", [f"line 2: no line has the id '{'x' * 99}…"]),
        ("line,decision\n,applied\n", "A", [f"line 2: {WHICH}"]),
        ("decision\napplied\n", "A", [f"line 2: {WHICH}"]),
        (
            "line,decision\n4,applied\n",
            "A",
            ["line 2: it is refused, so it cannot be settled as applied"],
        ),
        (
            "line,decision\n5,not_applied\n",
            "A",
            ["line 2: it is applied, so it cannot be settled as not_applied"],
        ),
        (
            "line,decision\n7,applied\n",
            "A",
            ["line 2: it is waiting, so it cannot be settled as applied"],
        ),
        (
            "line,decision\n3,applied\n3,not_applied\n",
            "A",
            ["line 3: line 2 decides about the same one"],
        ),
        (
            "line,id,decision\n,line 3,applied\n3,,applied\n",
            "A",
            ["line 2: line 3 decides about the same one"],
        ),
        ("line,decision\n3\n", "A", ["line 2: 1 values, but 2 columns"]),
        (
            f"end_user_id,line,decision\n{user(4)},3,applied\n",
            "A",
            [
                f"line 2: the line is for '{user(3)}', not for '{user(4)}': this may be the report of another file"
            ],
        ),
        ('{"line": 3, "decision": ["applied"]}', "A", [f"line 1: {WANTED} list"]),
        ('{"line": 3, "decision": {}}', "A", [f"line 1: {WANTED} dict"]),
        ('{"line": 3, "decision": true}', "A", [f"line 1: {WANTED} True"]),
        ('{"line": 3, "decision": false}', "A", [f"line 1: {WANTED} False"]),
        ('{"line": 3, "decision": 0}', "A", [f"line 1: {WANTED} 0"]),
        ('{"line": 3, "decision": "applied", "note": 5}', None, [f"line 1: {NO_NOTE}"]),
        ('{"line": 3, "decision": "applied", "note": ["A"]}', None, [f"line 1: {NO_NOTE}"]),
        ('{"line": 3.0, "decision": "applied"}', "A", ["line 1: no line has the line '3.0'"]),
        ('{"line": [3], "decision": "applied"}', "A", ["line 1: no line has the line '[3]'"]),
        ('{"decision": "applied"}', "A", [f"line 1: {WHICH}"]),
        ('{"line": 3, "decision": "applied"}\n[]', "A", ["line 2: not a JSON object"]),
        (
            "{5",
            "A",
            ["line 1: not JSON: Expecting property name enclosed in double quotes at column 2"],
        ),
        (
            "line,decision\n9,maybe\n2,applied\n3,applied\n4,applied\n,applied\n",
            "A",
            [
                f"line 2: {WANTED} 'maybe'",
                "line 3: no line has the line '2'",
                "line 5: it is refused, so it cannot be settled as applied",
                f"line 6: {WHICH}",
            ],
        ),
    ],
)
def test_wrong_file(
    resolution: Resolution, decided: Path, content: str, note: str | None, problems: list[str]
) -> None:
    """All that is wrong is named with its line, and nothing is decided, not even what is right."""
    decided.write_text(content)
    with pytest.raises(InputError) as caught:
        resolution.by_file(decided, note)
    assert str(caught.value).splitlines() == [f"{decided}:", *problems]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("line,Decision\n3,applied\n", "decisions.csv: there is no column decision"),
        ("", "decisions.csv: there is no column decision"),
        ('{"line": 3}\n', "decisions.csv: there is no column decision"),
        ("line,decision\n3,\xe9\n", "decisions.csv, line 2: not UTF-8: save it as UTF-8"),
        ('line,decision\n3,"applied\n', "decisions.csv, line 2: unexpected end of data"),
    ],
)
def test_no_decisions(resolution: Resolution, decided: Path, content: str, message: str) -> None:
    """A file that cannot have decisions is refused."""
    decided.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        resolution.by_file(decided, "Ada")
    assert str(caught.value).endswith(message)


def test_missing_file(resolution: Resolution, decided: Path) -> None:
    """A file of decisions that does not exist is refused."""
    with pytest.raises(InputError, match=r"decisions.csv cannot be read: No such file"):
        resolution.by_file(decided, "Ada")


def test_many_problems(resolution: Resolution, decided: Path) -> None:
    """Ten problems are shown, and the rest is counted."""
    decided.write_text("line,decision\n" + "4,applied\n" * 30)
    with pytest.raises(InputError) as caught:
        resolution.by_file(decided, "Ada")
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "and 20 more"


def test_without_ids(server: SandboxServer, path: Path, decided: Path) -> None:
    """Where the lines have no ids, no id is one of theirs."""
    write(path, (1, 7))
    items = begin_run(path, base_url=server.base_url)
    put(items, 1, State.UNCLEAR)
    items.close()
    with resolve(server, path) as resolution:
        for item_id in ("None", "2"):
            decided.write_text(f"id,decision\n{item_id},applied\n")
            with pytest.raises(InputError, match=f"no line has the id '{item_id}'"):
                resolution.by_file(decided, "Ada")


def test_json_lines(server: SandboxServer, path: Path, decided: Path) -> None:
    """The report of a JSON file can be decided, too, with numbers as ids."""
    lines = [{"id": it, "end_user_id": str(user(it)), "amount": 7} for it in range(1, 4)]
    path.write_text("\n".join(map(json.dumps, lines)))
    items = begin_run(path, base_url=server.base_url)
    for number in (1, 2, 3):
        put(items, number, State.UNCLEAR)
    items.close()
    with resolve(server, path) as resolution:
        report = [json.loads(line) for line in creduse_bulk.report(path)]
        report[0]["decision"], report[1]["decision"] = "applied", "not_applied"
        decided.write_text("\n".join(map(json.dumps, report)))
        wanted = [Decision(1, DONE, "Ada"), Decision(2, FREE, "Ada")]
        assert resolution.by_file(decided, "Ada") == wanted
        decided.write_text('{"id": 3, "decision": "applied"}')
        assert resolution.by_file(decided, "Ada") == [Decision(3, DONE, "Ada")]


# From the beginning to the end


@pytest.mark.parametrize("how", ["by evidence", "by file"])
def test_sent_again(
    server: SandboxServer, path: Path, journal: str | None, decided: Path, how: str
) -> None:
    """After what is unclear was settled, a new run sends what was freed, and what waited for it."""
    keep_from_end_of_day()
    write(path, *[(number, 7) for number in range(1, 7)], *[(number, 8) for number in range(1, 7)])
    for number in (1, 2):
        server.inject(LOST_RESPONSE, when=nth(number, 1))
    for number in (3, 4):
        server.inject(LOST_REQUEST, when=nth(number, 1))
    assert run(server, path, journal=journal) == Progress(12, 4, 0, 4)
    with resolve(server, path, journal) as resolution:
        if how == "by evidence":
            evidence = weigh(server, resolution, "asyncio")
            decisions = resolution.by_evidence(evidence, 0)
        else:
            applied = writes(server)
            lines = list(csv.DictReader(creduse_bulk.report(path, journal=journal, only="unclear")))
            for line in lines:
                line["decision"] = "applied" if applied[line["end_user_id"]] else "not_applied"
                line["note"] = "the server's record"
            with decided.open("w", newline="") as file:
                writer = csv.DictWriter(file, lines[0])
                writer.writeheader()
                writer.writerows(lines)
            decisions = resolution.by_file(decided, None)
        assert resolution.settle(decisions) == Progress(12, 6, 0, 0)
    sent = len(server.log)
    assert run(server, path, journal=journal) == Progress(12, 12, 0, 0)
    bodies = [json.loads(entry.body or b"") for entry in server.log[sent:]]
    assert sorted((body["amount"], body["end_user_id"]) for body in bodies) == sorted(
        [(7, str(user(it))) for it in (3, 4)] + [(8, str(user(it))) for it in (1, 2, 3, 4)]
    )
    assert writes(server) == {str(user(it)): 2 for it in range(1, 7)}
    notes = [
        line["evidence"] for line in csv.DictReader(creduse_bulk.report(path, journal=journal))
    ]
    assert [bool(note) for note in notes] == [True] * 4 + [False] * 8
    with resolve(server, path, journal) as resolution:
        assert resolution.unclear == ()
        assert weigh(server, resolution, "asyncio") == []


def test_decided_before(
    server: SandboxServer, path: Path, journal: str | None, decided: Path
) -> None:
    """The same decisions can be made again. What was decided before stays as it is."""
    write(path, (1, 7), (2, 7))
    items = begin_run(path, journal=journal, base_url=server.base_url)
    put(items, 1, State.UNCLEAR)
    put(items, 2, State.UNCLEAR)
    items.close()
    decided.write_text("line,decision\n2,applied\n3,not_applied\n")
    for wanted in (2, 0):
        with resolve(server, path, journal) as resolution:
            decisions = resolution.by_file(decided, "Ada")
            assert len(decisions) == wanted
            resolution.settle(decisions)
    found = states(place_of(path, journal, None))
    assert list(found.values()) == [State.APPLIED, State.FREE]


def test_refused_again(
    server: SandboxServer, path: Path, journal: str | None, decided: Path
) -> None:
    """What was refused can be sent again, if somebody decides so."""
    write(path, (1, 5000), (2, 7))
    assert run(server, path, "subtract", journal=journal).refused == 1
    server.direct.add(user(1), 5000)
    with resolve(server, path, journal) as resolution:
        decided.write_text("line,decision\n2,not_applied\n")
        decisions = resolution.by_file(decided, "paid in, says Ada")
        assert resolution.settle(decisions) == Progress(2, 1, 0, 0)
    assert run(server, path, "subtract", journal=journal) == Progress(2, 2, 0, 0)
    assert len(server.log) == 3


# Opening


def test_who_may_resolve(server: SandboxServer, path: Path, journal: str | None) -> None:
    """The run must have stopped, and be that of the same file, service, key and shard."""
    write(path, (1, 7))
    with pytest.raises(JournalError, match="no run of"):
        resolve(server, path, journal)
    items = begin_run(path, journal=journal, base_url=server.base_url)
    put(items, 1, State.CLAIMED)
    with pytest.raises(InUseError, match="is in use"):
        resolve(server, path, journal)
    items.close()
    for protocol, message in (
        (CreduseProtocol(KEY, "http://127.0.0.1:1"), "the run began at"),
        (CreduseProtocol("another", server.base_url), "another API key"),
    ):
        with pytest.raises(JournalError, match=message):
            Resolution(protocol, path, journal)
    with pytest.raises(JournalError, match="it is that of the whole file, not of shard 1/2"):
        resolve(server, path, journal or f"{path}.journal", Shard(1, 2))
    place = place_of(path, journal, None)
    assert states(place) == {1: State.CLAIMED}
    before = path.read_bytes()
    path.write_bytes(before + b"\n")
    with pytest.raises(JournalError, match="the file was changed"):
        resolve(server, path, journal)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        resolve(server, path, journal)
    path.write_bytes(before)
    with resolve(server, path, journal) as resolution:
        assert is_owned(place)
        assert [it.line for it in resolution.unclear] == [2]
    assert not is_owned(place)
    assert states(place) == {1: State.UNCLEAR}
    assert server.log == ()


def test_shard(server: SandboxServer, path: Path, journal: str | None) -> None:
    """Each shard has its own unclear lines."""
    write(path, *[(number, 7) for number in range(1, 31)])
    found: list[int] = []
    for number in (1, 2):
        shard = Shard(number, 2)
        items = begin_run(path, journal=journal, shard=shard, base_url=server.base_url)
        of = [it for it in range(1, 31) if shard.has(user(it))]
        items.write([], [claim(it, it) for it in of]).result()
        items.close()
        with resolve(server, path, journal, shard) as resolution:
            assert [it.item.number for it in resolution.unclear] == of
            found += of
    assert sorted(found) == list(range(1, 31))


def test_other_calls_of_the_user(server: SandboxServer, path: Path, journal: str | None) -> None:
    """What was or may have been applied counts. What was refused, or is free, does not."""
    write(path, *[(1, amount) for amount in range(1, 7)], (2, 7))
    items = begin_run(path, journal=journal, base_url=server.base_url)
    for number, state in enumerate(
        [State.APPLIED, State.REFUSED, State.FREE, State.APPLIED, State.UNCLEAR], 1
    ):
        put(items, number, state, of=1)
    put(items, 7, State.APPLIED, of=2)
    items.close()
    with resolve(server, path, journal) as resolution:
        (it,) = resolution.unclear
        assert (it.line, it.call.amount, it.call.validity_days) == (6, 5, 31)
        assert [call.amount for call, _ in it.others] == [1, 4]
