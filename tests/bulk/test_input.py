"""Input files: which items they have, what is wrong in them, and which shard a user is in."""

import json
import resource
import signal
import tracemalloc
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from creduse_bulk import InputError, Shard
from creduse_bulk._input import COLUMNS, Input, Item, Overview
from tests.common import USER, USER_ID


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The input file."""
    return tmp_path / "grants.csv"


def examine(path: Path, method: str = "add", shard: Shard | None = None) -> Overview:
    """Check a file."""
    with Input(path, method) as source:
        return source.examine(shard)


def items(path: Path, method: str = "add") -> list[Item]:
    """Return the items of a file."""
    with Input(path, method) as source:
        return [source.item(record) for chunk in source.chunks() for record in chunk]


def problems(path: Path, method: str = "add") -> list[str]:
    """Return what an error says of a file, without its name."""
    with pytest.raises(InputError) as caught:
        examine(path, method)
    first, *lines = str(caught.value).splitlines()
    assert str(path) in first
    return lines or [first.removeprefix(f"{path}: ")]


@pytest.mark.parametrize(
    ("method", "content", "item"),
    [
        ("add", f"end_user_id,amount\n{USER_ID},5\n", (1, USER, 5, 31)),
        ("add", f"end_user_id,amount,validity_days\n{USER_ID},5,\n", (1, USER, 5, 31)),
        ("add", f"end_user_id,amount,validity_days\n{USER_ID},5,  \n", (1, USER, 5, 31)),
        ("add", f"end_user_id,amount,validity_days\n{USER_ID},5,0\n", (1, USER, 5, 0)),
        ("add", f"validity_days;amount;end_user_id\n 7 ; 005 ; {USER_ID} \n", (1, USER, 5, 7)),
        ("add", f"end_user_id,amount\n{USER.hex.upper()},0\n", (1, USER, 0, 31)),
        ("subtract", f"end_user_id,amount\n{USER_ID},5\n", (1, USER, 5, None)),
        (
            "start_cycle",
            f"end_user_id,amount,validity_days\n{USER_ID},5,7\n",
            (1, USER, 5, 7),
        ),
        ("stop_cycle", f"end_user_id\n{USER_ID}\n", (1, USER, None, None)),
        (
            "add",
            f"end_user_id,amount\n{USER_ID},1{'0' * 2999}\n",
            (1, USER, 10**2999, 31),
        ),
        ("add", f'{{"end_user_id": "{USER_ID}", "amount": 5}}', (1, USER, 5, 31)),
        (
            "add",
            f'{{"end_user_id": "{USER_ID}", "amount": " 5", "validity_days": null}}',
            (1, USER, 5, 31),
        ),
        (
            "add",
            f'{{"end_user_id": "{USER_ID}", "amount": "5", "validity_days": ""}}',
            (1, USER, 5, 31),
        ),
        (
            "add",
            f'{{"end_user_id": "{USER_ID}", "amount": 5, "validity_days": "7"}}',
            (1, USER, 5, 7),
        ),
        ("stop_cycle", f'{{"end_user_id": "{USER_ID}", "note": [1]}}', (1, USER, None, None)),
    ],
)
def test_items(path: Path, method: str, content: str, item: tuple[Any, ...]) -> None:
    """Each method has its columns, and days are 31 where none are given."""
    path.write_text(content)
    assert items(path, method) == [Item(item[0], method, *item[1:])]
    assert astuple(examine(path, method))[:3] == (1, item[2] or 0, 1)


NEEDED = "the first line must name the columns, among them"


@pytest.mark.parametrize(
    ("method", "header", "message"),
    [
        ("add", f"{USER_ID},5", f"{NEEDED} end_user_id; it has '{USER_ID}, 5'"),
        ("add", "end_user_id", f"{NEEDED} amount; it has 'end_user_id'"),
        ("add", "sep=;", f"{NEEDED} end_user_id; it has 'sep=, '"),
        ("add", "x" * 300, f"{NEEDED} end_user_id; it has '{'x' * 99}…"),
        ("add", "end_user_id,Amount", "the column 'Amount' must be called 'amount'"),
        ("add", "end user id,amount", "the column 'end user id' must be called 'end_user_id'"),
        (
            "add",
            "end_user_id,amount,validity-days",
            "the column 'validity-days' must be called 'validity_days'",
        ),
        (
            "add",
            "end_user_id,amount,Validity Day",
            "the column 'Validity Day' must be called 'validity_days'",
        ),
        ("add", "end_user_id,amounts", "the column 'amounts' must be called 'amount'"),
        ("add", "ID,end_user_id,amount", "the column 'ID' must be called 'id'"),
        (
            "stop_cycle",
            "end_user_id,amount",
            "stop-cycle has no amount: remove it, or use another method",
        ),
        (
            "subtract",
            "end_user_id,amount,validity_days",
            "subtract has no validity_days: remove it, or use another method",
        ),
        ("stop_cycle", "end_user_id,Amount", "the column 'Amount' must be called 'amount'"),
    ],
)
def test_wrong_columns(path: Path, method: str, header: str, message: str) -> None:
    """A column that is missing, misspelled or another method's is named, also in a file of 0 lines."""
    for rest in ("", "\n", "\n1,2,3\n"):
        path.write_text(header + rest)
        assert problems(path, method) == [message]


@pytest.mark.parametrize("content", ["", "\n", "\ufeff", "\r\n\n"])
def test_empty_file(path: Path, content: str) -> None:
    """A file with nothing in it is refused."""
    path.write_text(content)
    assert problems(path) == [f"{NEEDED} end_user_id; it has ''"]


@pytest.mark.parametrize(
    ("method", "name", "message"),
    [
        ("add", "Amount", "the column 'Amount' must be called 'amount'"),
        (
            "stop_cycle",
            "amount",
            "stop-cycle has no amount: remove it, or use another method",
        ),
        (
            "add",
            f"amount{' ' * 200}",
            f"the column 'amount{' ' * 93}… must be called 'amount'",
        ),
    ],
)
def test_wrong_columns_of_json(path: Path, method: str, name: str, message: str) -> None:
    """In JSON, the names of each line are checked."""
    values: dict[str, object] = {"end_user_id": USER_ID}
    if method == "add":
        values["amount"] = 5
    lines = [values, values | {name: 5}]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert problems(path, method) == [f"line 2: {message}"]


USER_WANTED = "end_user_id must be a UUID such as 12345678-1234-5678-1234-567812345678"
WHOLE = "must be a whole number such as 100, not"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("", "5", "7"), f"{USER_WANTED}, not ''"),
        (("abc", "5", "7"), f"{USER_WANTED}, not 'abc'"),
        (("{" + USER_ID + "}", "5", "7"), f"{USER_WANTED}, not '{{{USER_ID}}}'"),
        (("x" * 5000, "5", "7"), f"{USER_WANTED}, not '{'x' * 100}'"),
        ((USER_ID + "\0", "5", "7"), f"{USER_WANTED}, not '{USER_ID}\\x00'"),
        *(
            ((USER_ID, amount, "7"), f"amount {WHOLE} {amount!r}")
            for amount in (
                "",
                " ",
                "x",
                "-1",
                "+1",
                "1.0",
                "1e3",
                "1,000",
                "1 000",
                "1_000",
                "0x10",
                "٣",
                "\uff15",
                "²",
                "NaN",
                "inf",
                "true",
                "5\0",
                "10 USD",
                "=5",
            )
        ),
        ((USER_ID, "9" * 3001, "7"), f"amount {WHOLE} '{'9' * 99}…"),
        ((USER_ID, "9" * 5000, "7"), f"amount {WHOLE} '{'9' * 99}…"),
        ((USER_ID, "5", "-7"), f"validity_days {WHOLE} '-7'"),
        ((USER_ID, "5", "7.0"), f"validity_days {WHOLE} '7.0'"),
        ((USER_ID, "5", "one week"), f"validity_days {WHOLE} 'one week'"),
    ],
)
def test_wrong_values(path: Path, values: tuple[str, str, str], message: str) -> None:
    """A wrong value is named with its line, in CSV and in JSON. No message repeats a long one."""
    wrong = dict(zip(COLUMNS["add"], values, strict=True))
    path.write_text(
        f"end_user_id,amount,validity_days\n{USER_ID},1,1\n" + '"{}","{}","{}"\n'.format(*values)
    )
    assert problems(path) == [f"line 3: {message}"]
    path.write_text(f'\n{{"end_user_id": "{USER_ID}", "amount": 1}}\n' + json.dumps(wrong))
    assert problems(path) == [f"line 3: {message}"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{}", "end_user_id must be a UUID or its text, not NoneType"),
        (
            '{"end_user_id": null, "amount": 5}',
            "end_user_id must be a UUID or its text, not NoneType",
        ),
        ('{"end_user_id": 5, "amount": 5}', "end_user_id must be a UUID or its text, not int"),
        (
            '{"end_user_id": ["USER"], "amount": 5}',
            "end_user_id must be a UUID or its text, not list",
        ),
        ('{"end_user_id": "USER"}', f"amount {WHOLE} None"),
        ('{"end_user_id": "USER", "amount": null}', f"amount {WHOLE} None"),
        ('{"end_user_id": "USER", "amount": true}', f"amount {WHOLE} True"),
        ('{"end_user_id": "USER", "amount": 5.0}', f"amount {WHOLE} 5.0"),
        ('{"end_user_id": "USER", "amount": 1e3}', f"amount {WHOLE} 1000.0"),
        ('{"end_user_id": "USER", "amount": NaN}', f"amount {WHOLE} nan"),
        ('{"end_user_id": "USER", "amount": Infinity}', f"amount {WHOLE} inf"),
        ('{"end_user_id": "USER", "amount": -5}', f"amount {WHOLE} -5"),
        ('{"end_user_id": "USER", "amount": [5]}', f"amount {WHOLE} list"),
        ('{"end_user_id": "USER", "amount": -%s}' % ("9" * 4000), f"amount {WHOLE} -{'9' * 99}…"),
        ('{"end_user_id": "USER", "amount": %s}' % ("9" * 4000), f"amount {WHOLE} {'9' * 100}…"),
        (
            '{"end_user_id": "USER", "amount": 5, "validity_days": []}',
            f"validity_days {WHOLE} list",
        ),
        (
            '{"end_user_id": "USER", "amount": 5, "validity_days": {}}',
            f"validity_days {WHOLE} dict",
        ),
        (
            '{"end_user_id": "USER", "amount": 5, "validity_days": false}',
            f"validity_days {WHOLE} False",
        ),
        ('{"end_user_id": "USER", "amount": 5, "amount": 50}', "the name 'amount' is there twice"),
        *(
            (
                f'{{"end_user_id": "USER", "amount": 5, "id": {item_id}}}',
                "id must be text that no other line has",
            )
            for item_id in ('""', '" "', "null", "true", "1.5", "[1]")
        ),
    ],
)
def test_wrong_json(path: Path, values: str, message: str) -> None:
    """In JSON, numbers are whole numbers or their text, and nothing is taken for something else."""
    path.write_text(values.replace("USER", USER_ID))
    assert problems(path) == [f"line 1: {message}"]
    with Input(path, "add") as source:
        (chunk,) = source.chunks()
        if "id must" not in message:
            with pytest.raises(ValueError, match=r"must be|twice"):
                source.item(chunk[0])


def test_all_problems(path: Path) -> None:
    """All problems of a file are named with their lines. Ten are shown, and the rest is counted."""
    lines = [f"{USER_ID},{number if number % 3 else 'x'}\n" for number in range(30)]
    path.write_text("end_user_id,amount\n" + "".join(lines))
    named = [f"line {number + 2}: amount {WHOLE} 'x'" for number in range(0, 30, 3)]
    assert problems(path) == named
    path.write_text(path.read_text() + "\n\n1,2,3\nz,1\n")
    assert problems(path) == [*named, "and 2 more"]
    path.write_text("end_user_id,amount\n" + f"{USER_ID},x\n" * 5000)
    assert problems(path)[10:] == ["and at least 990 more"]


@pytest.mark.parametrize("is_json", [False, True])
def test_ids(path: Path, is_json: bool) -> None:  # noqa: FBT001 - pytest passes it
    """Ids are there once. Both lines of one that is not are named, and no long one is repeated."""
    ids: list[Any] = ["a", "b", "A", "5", "a", " b", "x" * 500, 5 if is_json else "5", "x" * 500]
    if is_json:
        lines = [json.dumps({"end_user_id": USER_ID, "amount": 1, "id": it}) for it in ids]
    else:
        lines = ["id,end_user_id,amount", *(f"{it},{USER_ID},1" for it in ids)]
    path.write_text("\n".join(lines))
    first = 1 if is_json else 2
    assert problems(path) == [
        f"line {first + 4}: the id 'a' is that of line {first}, too",
        f"line {first + 7}: the id '5' is that of line {first + 3}, too",
        f"line {first + 8}: the id '{'x' * 99}… is that of line {first + 6}, too",
    ]
    path.write_text("\n".join([*lines[:3], "", *lines[3:4]]))
    assert examine(path).items == (4 if is_json else 3)


def test_empty_id(path: Path) -> None:
    """Where there is a column of ids, each line has one."""
    path.write_text(f"id,end_user_id,amount\na,{USER_ID},1\n,{USER_ID},1\n")
    assert problems(path) == ["line 3: id must be text that no other line has"]


def test_many_ids_twice(path: Path) -> None:
    """Where all ids are there twice, the first ones are named."""
    path.write_text(
        "id,end_user_id,amount\n" + "".join(f"{it % 1500},{USER_ID},1\n" for it in range(3000))
    )
    found = problems(path)
    assert found[0] == "line 1502: the id '0' is that of line 2, too"
    assert found[10:] == ["and at least 990 more"]


def users(count: int) -> Iterable[UUID]:
    """Return some users."""
    return (UUID(int=USER.int + 7 * number) for number in range(count))


def write(path: Path, lines: int, *, is_json: bool = False) -> None:
    """Write a file with an id, and columns that are not used."""
    with path.open("w") as file:
        if not is_json:
            file.write("id,end_user_id,name,amount,Country\n")
        for number, user in enumerate(users(lines)):
            values = {
                "id": f"invoice-{number}",
                "end_user_id": str(user),
                "name": "Ada",
                "amount": str(number + 1),
                "Country": "AT",
            }
            file.write((json.dumps(values) if is_json else ",".join(values.values())) + "\n")


@pytest.mark.parametrize("is_json", [False, True])
def test_overview(path: Path, is_json: bool) -> None:  # noqa: FBT001 - pytest passes it
    """The whole file is counted, and so is each shard."""
    write(path, 2300, is_json=is_json)
    ignored = ("name", "Country")
    whole = 2300, 2300 * 2301 // 2
    assert examine(path) == Overview(*whole, 2300, ignored, {1: whole})
    parts = [examine(path, shard=Shard(number, 3)) for number in (1, 2, 3)]
    assert all(part.ignored == ignored and part.users == part.items > 0 for part in parts)
    assert sum(part.items for part in parts) == 2300
    assert sum(part.total for part in parts) == 2300 * 2301 // 2
    # Each knows the others' parts, too.
    of = {number: (part.items, part.total) for number, part in enumerate(parts, 1)}
    assert all(part.parts == of for part in parts)


def test_overview_of_few_users(path: Path) -> None:
    """A user is counted once, whatever the amounts."""
    path.write_text("end_user_id\n" + f"{USER_ID}\n{USER.hex}\n" * 5 + f"{UUID(int=7)}\n")
    assert examine(path, "stop_cycle") == Overview(11, 0, 2, parts={1: (11, 0)})


@pytest.mark.parametrize("content", ["end_user_id,amount", "end_user_id,amount\r\n\r\n"])
def test_no_lines(path: Path, content: str) -> None:
    """A file with a header alone has no items."""
    path.write_text(content)
    assert examine(path) == Overview()
    assert items(path) == []


def test_wrong_lines_of_others(path: Path) -> None:
    """A shard is refused, too, if there is something wrong anywhere in the file."""
    write(path, 10)
    path.write_text(path.read_text() + "again,x,,1,\n")
    for number in (1, 2):
        with pytest.raises(InputError, match="line 12: end_user_id must be"):
            examine(path, shard=Shard(number, 2))


@pytest.mark.parametrize("is_json", [False, True])
def test_memory(path: Path, is_json: bool) -> None:  # noqa: FBT001 - pytest passes it
    """Memory does not grow with the file."""

    def peak(lines: int) -> int:
        write(path, lines, is_json=is_json)
        tracemalloc.start()
        try:
            assert examine(path).items == lines
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)  # imports, and what is made once
    assert peak(30_000) < 3 * peak(1500)  # to keep the lines would take more


def test_full_disk(path: Path) -> None:
    """If the disk for temporary files is full, a large file is refused."""
    write(path, 60_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot be checked: a temporary file: .*disk"):
            examine(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@settings(deadline=None)  # the machine may be busy
@given(st.uuids(), st.integers(1, 7))
def test_shards(user: UUID, count: int) -> None:
    """Each user is in one of the shards, always in the same one."""
    found = [number for number in range(1, count + 1) if Shard(number, count).has(user)]
    assert len(found) == 1
    assert Shard(found[0], count).has(UUID(user.hex))


def test_shards_are_alike() -> None:
    """Users are spread evenly, and in a way that later versions must keep."""
    for count in range(1, 8):
        sizes = [sum(map(Shard(it, count).has, users(7000))) for it in range(1, count + 1)]
        assert sum(sizes) == 7000
        assert min(sizes) > 0.9 * 7000 / count
    assert [str(Shard(it, 4)) for it in range(1, 5) if Shard(it, 4).has(USER)] == ["2/4"]


@pytest.mark.parametrize(("number", "count"), [(0, 4), (5, 4), (-1, 4), (1, 0), (0, 0)])
def test_no_such_shard(number: int, count: int) -> None:
    """A shard is one of those that there are."""
    with pytest.raises(ValueError, match=f"shard must be from 1/{count} to {count}/{count}"):
        Shard(number, count)
