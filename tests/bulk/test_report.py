"""What became of each line: reports in the format of the file, and how far a run is."""

import csv
import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import creduse_bulk
from creduse_bulk import InputError, Progress, Shard, report, status
from creduse_bulk._input import Input
from creduse_bulk._progress import check_alone, place_of, read_begun
from creduse_bulk._records import Records
from creduse_bulk._report import ADDED
from creduse_journal import Change, JournalError, State
from creduse_sandbox import SandboxServer
from tests.bulk.conftest import begin_run, claim, ended, put, user
from tests.common import KEY, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The input file."""
    return tmp_path / "grants.csv"


STATES: list[State | None] = [None, *State]
"""The states of the lines. The first one has no row."""
NAMES = ["waiting", "waiting", "unclear", "applied", "refused", "unclear"]
"""What a report calls them."""
OUTCOMES = {
    "applied": "APPLIED",
    "refused": "NOT_APPLIED",
    "unclear": "UNKNOWN",
    "waiting": "NOT_APPLIED",
}


def put_all(path: Path, count: int = 6, journal: str | None = None) -> None:
    """Make a journal with lines in each state, whose owner has ended."""
    items = begin_run(path, journal=journal)
    for number in range(1, count + 1):
        state = STATES[(number - 1) % 6]
        if state is not None:
            put(items, number, state)
    items.close()


def write(path: Path, count: int = 6) -> None:
    """Write a file of some users."""
    lines = [f"{user(number)},{number}\n" for number in range(1, count + 1)]
    path.write_text("end_user_id,amount\n" + "".join(lines))


def test_csv(path: Path, journal: str | None) -> None:
    """A report has the columns of the file, and what became of each line."""
    write(path)
    put_all(path, journal=journal)
    event = "event,299,CODE,"
    assert list(report(path, journal=journal)) == [
        "end_user_id,amount,line,state,outcome,event,status,error_code,evidence",
        f"{user(1)},1,2,waiting,NOT_APPLIED,,,,",
        f"{user(2)},2,3,waiting,NOT_APPLIED,{event}",
        f"{user(3)},3,4,unclear,UNKNOWN,,,,",
        f"{user(4)},4,5,applied,APPLIED,{event}",
        f"{user(5)},5,6,refused,NOT_APPLIED,{event}",
        f"{user(6)},6,7,unclear,UNKNOWN,{event}",
    ]


def test_json(path: Path, journal: str | None) -> None:
    """A report about JSON Lines is JSON Lines, with all values of the file."""
    values = [
        {"end_user_id": str(user(number)), "amount": number, "é": [1.5, None, {"a": "\u2028"}]}
        for number in range(1, 7)
    ]
    path.write_text("\n\n".join(map(json.dumps, values)))
    put_all(path, journal=journal)
    found = [json.loads(line) for line in report(path, journal=journal)]
    assert [{name: line[name] for name in values[0]} for line in found] == values
    assert [line["line"] for line in found] == [1, 3, 5, 7, 9, 11]
    assert [line["state"] for line in found] == NAMES
    assert [line["outcome"] for line in found] == [OUTCOMES[name] for name in NAMES]
    none = dict.fromkeys(("event", "status", "error_code", "evidence"))
    assert found[0] == values[0] | none | {"line": 1, "state": "waiting", "outcome": "NOT_APPLIED"}
    assert (found[3]["event"], found[3]["status"], found[3]["error_code"]) == ("event", 299, "CODE")


@pytest.mark.parametrize("is_json", [False, True])
@pytest.mark.parametrize("only", OUTCOMES)
def test_only(path: Path, journal: str | None, only: str, is_json: bool) -> None:  # noqa: FBT001 - pytest passes it
    """A report can show only the lines in one state, in the order of the file."""
    write(path, 24)
    if is_json:
        lines = list(csv.DictReader(path.read_text().splitlines()))
        path.write_text("\n".join(map(json.dumps, lines)))
    put_all(path, 24, journal=journal)
    everything, found = (
        list(report(path, journal=journal)),
        list(report(path, journal=journal, only=only)),
    )
    head = 0 if is_json else 1
    assert found[:head] == everything[:head]
    numbers = [number for number in range(24) if NAMES[number % 6] == only]
    assert found[head:] == [everything[number + head] for number in numbers]
    assert numbers


def test_in_several_threads(path: Path, journal: str | None) -> None:
    """Each line of a report can be read in another thread, as web frameworks do when they stream it."""
    write(path)
    put_all(path, journal=journal)
    whole = list(report(path, journal=journal))
    lines = report(path, journal=journal)
    found: list[str] = []
    for _ in whole:
        thread = Thread(target=lambda: found.append(next(lines)))
        thread.start()
        thread.join()
    assert found == whole
    assert next(lines, None) is None


def test_only_something_else(path: Path) -> None:
    """There are four states that a report can show."""
    with pytest.raises(
        ValueError, match="only must be one of waiting, unclear, applied, refused, not 'claimed'"
    ):
        report(path, only="claimed")  # before the first line is asked for


def test_evidence(path: Path, journal: str | None) -> None:
    """A report shows who has settled a line, and what is known of one that is unclear."""
    write(path)
    put_all(path, journal=journal)
    items = begin_run(path, journal=journal)
    items.settle([(3, Change.SETTLE_APPLIED, "Ada, by the record")]).result()
    items.annotate(6, 'OPEN: "perhaps"').result()
    items.close()
    found = list(csv.DictReader(report(path, journal=journal)))
    assert (found[2]["state"], found[2]["evidence"]) == ("applied", "Ada, by the record")
    assert (found[5]["state"], found[5]["evidence"]) == ("unclear", 'OPEN: "perhaps"')


@pytest.mark.parametrize("is_json", [False, True])
def test_own_columns(path: Path, is_json: bool) -> None:  # noqa: FBT001 - pytest passes it
    """Added columns replace the file's own of the same name, such as those of an older report."""
    names = ["state", "end_user_id", "line", "evidence", "amount", "note"]
    own = ["applied", str(user(1)), "77", "mine", "5", "stays"]
    if is_json:
        path.write_text(json.dumps(dict(zip(names, own, strict=True))))
    else:
        path.write_text(f"{','.join(names)}\n{','.join(own)}\n")
    begin_run(path).close()
    lines = list(report(path))
    if is_json:
        found = json.loads(lines[0])
    else:
        assert lines[0] == ",".join(["end_user_id", "amount", "note", *ADDED])
        (found,) = csv.DictReader(lines)
    assert found["state"] == "waiting"
    assert str(found["line"]) == ("1" if is_json else "2")
    assert not found["evidence"]
    assert (found["end_user_id"], found["amount"], found["note"]) == (str(user(1)), "5", "stays")


def test_any_cells(path: Path) -> None:
    """Cells with delimiters, quotes and line breaks are read from a report as they were written."""
    names = ["a;b", "end_user_id", "amount", 'c"', "d\r\nd"]
    rows = [
        ["1,2", str(user(1)), " 5 ", 'say "no"', "one\ntwo"],
        ["", str(user(2)), "6", "\r", "\r\n"],
        [";", str(user(3)), "7", "=1+1", " é "],
    ]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(names)
        writer.writerows(rows)
    begin_run(path).close()
    shown = path.with_name("report.csv")
    shown.write_text("\n".join(report(path)) + "\n", newline="")
    with Records(shown) as records:
        found = [records.values(record) for chunk in records.chunks() for record in chunk]
        assert records.columns == [*names, *ADDED]
    assert [[line[name] for name in names] for line in found] == rows
    assert [line["line"] for line in found] == ["3", "5", "8"]


def test_report_of_a_report(path: Path) -> None:
    """A report can be sent as a file itself, if none of its lines may have been applied."""
    write(path)
    put_all(path)
    again = path.with_name("again.csv")
    again.write_text("\n".join(report(path, only="refused")))
    begin_run(again).close()
    (found,) = csv.DictReader(report(again))
    assert (found["end_user_id"], found["amount"], found["state"]) == (str(user(5)), "5", "waiting")
    again.write_text("\n".join(report(path)))
    with (
        Input(again, "add") as source,
        pytest.raises(InputError, match="the file is a report") as caught,
    ):
        source.examine()
    assert "this line's state is 'applied'" in str(caught.value)
    assert "this line's state is 'unclear'" in str(caught.value)


def test_changed(path: Path, journal: str | None) -> None:
    """If the file was changed since the run began, there is no report."""
    write(path)
    put_all(path, journal=journal)
    path.write_text(path.read_text() + f"{user(7)},7\n")
    with pytest.raises(JournalError, match="the file was changed since the run began"):
        report(path, journal=journal)
    assert status(path, journal=journal).items == 6
    path.unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        list(report(path, journal=journal))


def test_no_run(path: Path, journal: str | None) -> None:
    """Without a journal, no run of the file has begun, and no file is made."""
    write(path)
    before = set(path.parent.iterdir())
    for shard in (None, Shard(1, 2)):
        message = re.escape(f"{place_of(path, journal, shard)}: no run of {path} has begun")
        with pytest.raises(JournalError, match=message):
            status(path, journal=journal, shard=shard)
        with pytest.raises(JournalError, match=message):
            list(report(path, journal=journal, shard=shard))
    assert set(path.parent.iterdir()) == before


def test_shards(path: Path, journal: str | None) -> None:
    """A report of a shard has the lines of its users."""
    write(path, 60)
    found: list[str] = []
    for number in (1, 2, 3):
        shard = Shard(number, 3)
        items = begin_run(path, shard=shard, journal=journal)
        of = [it for it in range(1, 61) if shard.has(user(it))]
        for it in of[::2]:
            put(items, it, State.APPLIED)
        items.close()
        lines = list(csv.DictReader(report(path, journal=journal, shard=shard)))
        assert [int(line["amount"]) for line in lines] == of
        assert [line["state"] for line in lines[:3]] == ["applied", "waiting", "applied"]
        progress = Progress(len(of), len(of[::2]), 0, 0)
        assert status(path, journal=journal, shard=shard) == progress
        found += [line["amount"] for line in lines]
    assert sorted(map(int, found)) == list(range(1, 61))


def test_journal_of_another_shard(path: Path) -> None:
    """The file of another shard's journal is refused."""
    write(path, 60)
    begin_run(path, shard=Shard(2, 3)).close()
    journal = path.with_name("grants.csv.2-of-3.journal")
    others: dict[str, Shard | None] = {
        "the whole file": None,
        "shard 1/3": Shard(1, 3),
        "shard 2/4": Shard(2, 4),
    }
    for name, other in others.items():
        with pytest.raises(JournalError, match=f"it is that of shard 2/3, not of {name}"):
            list(report(path, journal=journal, shard=other))


def test_names_of_journals(path: Path) -> None:
    """A journal is beside its file, that of a shard by a name of its own, or where you say."""
    assert str(place_of(path, None, None)) == f"{path}.journal"
    assert str(place_of(path, None, Shard(2, 4))) == f"{path}.2-of-4.journal"
    assert str(place_of(path, "x/y", Shard(2, 4))) == "x/y"
    write(path)
    put_all(path)
    elsewhere = path.with_name("elsewhere")
    path.with_name("grants.csv.journal").rename(elsewhere)
    assert status(str(path), journal=str(elsewhere)).items == 6
    assert len(list(report(str(path), journal=str(elsewhere)))) == 7
    assert read_begun(path, elsewhere, None)[1].items == 6


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_no_name(path: Path, name: str) -> None:
    """What has no name of a file cannot have a journal, or be one."""
    for file, journal in ((Path(name), None), (path, name)):
        with pytest.raises(InputError, match=r"^[./]+ must be a file$"):
            status(file, journal=journal)


WHOLE, FIRST, SECOND, THIRD = None, Shard(1, 2), Shard(2, 2), Shard(1, 3)


@pytest.mark.parametrize(
    ("begun", "wanted", "message"),
    [
        ([], WHOLE, None),
        ([], FIRST, None),
        ([FIRST], SECOND, None),
        ([FIRST, SECOND], FIRST, None),
        ([WHOLE], WHOLE, None),
        ([WHOLE], FIRST, "a run of the whole file has begun, so shard 1/2 cannot be sent"),
        ([FIRST], WHOLE, "a run of shard 1/2 has begun, so the whole file cannot be sent"),
        ([SECOND], THIRD, "a run of shard 2/2 has begun, so shard 1/3 cannot be sent"),
    ],
)
@pytest.mark.parametrize("name", ["grants.csv", "grants[1]*?.csv"])
def test_alone(
    path: Path, name: str, begun: list[Shard | None], wanted: Shard | None, message: str | None
) -> None:
    """What would be sent twice is found by the journals beside the file, not by those of others."""
    path = path.with_name(name)
    for file, shards in (
        (f"{name}.old", [Shard(1, 4)]),
        (f"x{name}", [Shard(1, 4)]),
        (name, begun),
    ):
        write(path.with_name(file))
        for shard in shards:
            begin_run(path.with_name(file), shard=shard).close()
    path.with_name(f"{name}.4-of-4.journal").touch()  # killed before it began
    if message is None:
        check_alone(path, wanted)
    else:
        with pytest.raises(JournalError, match=f"{message}: lines would be sent twice"):
            check_alone(path, wanted)


def test_status(path: Path, journal: str | None) -> None:
    """Each line is counted once. What a dead process has sent is unclear."""
    write(path, 60)
    put_all(path, 60, journal=journal)
    assert status(path, journal=journal) == Progress(items=60, applied=10, refused=10, unclear=20)
    assert status(path, journal=journal).waiting == 20


def test_in_flight(path: Path, journal: str | None) -> None:
    """While a run owns the journal, what it sends is in flight. Its report says unclear."""
    write(path)
    items = begin_run(path, journal=journal)
    items.write([], [claim(1, 1), claim(2, 2)]).result()
    items.write([ended(1, Change.APPLY)], [claim(3, 3)]).result()
    progress = status(path, journal=journal)
    assert progress == Progress(6, applied=1, refused=0, unclear=0, in_flight=2, is_going_on=True)
    assert progress.waiting == 3
    states = [line["state"] for line in csv.DictReader(report(path, journal=journal))]
    assert states == ["applied", "unclear", "unclear", *["waiting"] * 3]
    # A report that has begun shows the same moment to its end.
    lines = report(path, journal=journal)
    assert [next(lines).split(",")[3] for _ in range(2)] == ["state", "applied"]
    items.write([ended(2, Change.APPLY), ended(3, Change.REFUSE)], [claim(4, 4)]).result()
    assert [line.split(",")[3] for line in lines] == states[1:]
    items.close()
    assert status(path, journal=journal) == Progress(6, applied=2, refused=1, unclear=1)


OWNER = """
import sys
from pathlib import Path
from tests.bulk.conftest import begin_run, claim
items = begin_run(Path(sys.argv[1]), journal=sys.argv[2] or None)
items.write([], [claim(1, 1)]).result()
print("open", flush=True)
sys.stdin.read()
"""


def test_killed(path: Path, journal: str | None) -> None:
    """What a run has sent is unclear as soon as its process is dead."""
    write(path)
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(path), journal or ""],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        assert status(path, journal=journal) == Progress(6, 0, 0, 0, in_flight=1, is_going_on=True)
        process.kill()
        process.wait()
    wait_until(lambda: not status(path, journal=journal).is_going_on)
    assert status(path, journal=journal) == Progress(6, 0, 0, unclear=1)
    assert len(list(report(path, journal=journal, only="unclear"))) == 2


@pytest.mark.parametrize(
    ("progress", "exit_status"),
    [
        (Progress(9, 9, 0, 0), 0),
        (Progress(0, 0, 0, 0), 0),
        (Progress(9, 0, 9, 0), 1),
        (Progress(9, 8, 1, 0), 1),
        (Progress(9, 7, 1, 1), 3),
        (Progress(9, 7, 0, 1), 3),
        (Progress(9, 7, 1, 1, stopped="SIGINT"), 3),
        (Progress(9, 8, 0, 0), 75),
        (Progress(9, 7, 0, 1, stopped="SIGINT"), 75),
        (Progress(9, 9, 0, 0, stopped="SIGINT"), 0),
        (Progress(9, 7, 0, 0, in_flight=1), 75),
    ],
)
def test_exit_status(progress: Progress, exit_status: int) -> None:
    """The exit status says whether a person or another run has something to do."""
    assert progress.exit_status == exit_status


def test_after_a_run(path: Path, journal: str | None) -> None:
    """A report shows what the service has responded."""
    write(path, 4)
    path.write_text(path.read_text() + f"{user(3)},9\n")
    with SandboxServer() as server:
        for number in (1, 3):
            server.direct.add(user(number), 10)
        progress = creduse_bulk.run(
            "subtract", path, api_key=KEY, base_url=server.base_url, journal=journal
        )
        assert progress == status(path, journal=journal) == Progress(5, 2, 3, 0)
        missing = ["refused", "NOT_APPLIED", "refused", "404", "USER_DOES_NOT_EXIST", ""]
        assert [
            list(line.values())[3:] for line in csv.DictReader(report(path, journal=journal))
        ] == [
            ["applied", "APPLIED", "done", "200", "", ""],
            missing,
            ["applied", "APPLIED", "done", "200", "", ""],
            missing,
            ["refused", "NOT_APPLIED", "refused", "402", "INSUFFICIENT_FUNDS", ""],
        ]


def test_memory(path: Path, journal: str | None) -> None:
    """Memory does not grow with the report."""

    def peak(lines: int) -> int:
        file = path.with_name(f"{lines}.csv")
        write(file, lines)
        items = begin_run(file, journal=journal)
        for first in range(1, lines, 1000):
            numbers = range(first, min(first + 1000, lines + 1))
            items.write([], [claim(number, number) for number in numbers]).result()
            items.write([ended(number, Change.APPLY) for number in numbers], []).result()
        items.close()
        tracemalloc.start()
        try:
            assert sum(1 for _ in report(file, journal=journal)) == lines + 1
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)  # imports, and what is made once
    assert peak(20_000) < 3 * peak(1500)  # to keep the rows would take more


def test_progress_is_a_value() -> None:
    """How far a run is can be compared and shown."""
    one: Any = Progress(9, 1, 2, 3, 1, "pause", "why")
    assert one == Progress(9, 1, 2, 3, 1, "pause", "why")
    assert one.waiting == 2
