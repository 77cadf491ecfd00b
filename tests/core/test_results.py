"""Every response that the service or its documentation is known to give."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from creduse_core import (
    ActiveBalance,
    Call,
    CreditsAdded,
    CreditsSubtracted,
    CreduseProtocol,
    Cycle,
    CycleBalance,
    CycleStatus,
    CycleType,
    Done,
    InvalidResponseError,
    Outcome,
    Response,
)
from tests.common import USER

PROTOCOL = CreduseProtocol("key")

# The two responses that the documentation shows, as they stand there.
DOCUMENTED_BALANCE = """
{"end_user_id": "12345678-1234-5678-1234-567812345678", "active_balance_by_cycle": [
  {"cycle_start": "2025-08-12T14:35:55.423145Z", "cycle_end": "2025-08-14T23:59:59.999999Z",
   "amount": 43, "starting_amount": 50, "status": "active", "cycle_type": "recurring"},
  {"cycle_start": "2025-08-12T14:35:55.423145Z", "cycle_end": "2025-08-14T23:59:59.999999Z",
   "amount": 10, "starting_amount": 15, "status": null, "cycle_type": "one-time"}],
 "active_balance": 53}
"""
DOCUMENTED_CYCLE = """
{"end_user_id": "12345678-1234-5678-1234-567812345678", "amount": 23,
 "created_at": "2024-01-01T18:50:22", "current_cycle_start": "2024-01-31T23:59:59",
 "current_cycle_end": "2024-02-29T23:59:59", "status": "canceled"}
"""
CYCLE: dict[str, object] = json.loads(DOCUMENTED_CYCLE)
BALANCE: dict[str, Any] = json.loads(DOCUMENTED_BALANCE)
PART: dict[str, object] = BALANCE["active_balance_by_cycle"][0]

ARGUMENTS = {
    "add": (USER, 7),
    "subtract": (USER, 7),
    "start_cycle": (USER, 7),
    "stop_cycle": (USER,),
    "get_balance": (USER,),
}
CREATED = datetime(2024, 1, 1, 18, 50, 22, tzinfo=UTC)
START = datetime(2024, 1, 31, 23, 59, 59, tzinfo=UTC)
END = datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)


def make(method: str) -> Call[Any]:
    call: Call[Any] = getattr(PROTOCOL, method)(*ARGUMENTS[method])
    return call


def read(method: str, body: object, status: int = 200) -> Any:
    """Return the result of a call whose response has ``body``: text, or an object for JSON."""
    text = body if isinstance(body, str) else json.dumps(body)
    call = make(method)
    call.start(0.0)
    done = call.receive_response(Response(status, (), text.encode()), 1.0)
    assert isinstance(done, Done)
    assert call.outcome is (Outcome.NOT_APPLIED if method == "get_balance" else Outcome.APPLIED)
    return done.result


def part(**fields: object) -> CycleBalance:
    """Read a balance of one cycle, with some of its fields replaced."""
    balance: ActiveBalance = read(
        "get_balance", BALANCE | {"active_balance_by_cycle": [PART | fields]}
    )
    return balance.active_balance_by_cycle[0]


def test_documented_balance() -> None:
    """The balance in the documentation is read, with its cycles in order."""
    start = datetime(2025, 8, 12, 14, 35, 55, 423145, tzinfo=UTC)
    end = datetime(2025, 8, 14, 23, 59, 59, 999999, tzinfo=UTC)
    assert read("get_balance", DOCUMENTED_BALANCE) == ActiveBalance(
        USER,
        53,
        (
            CycleBalance(start, end, 43, 50, CycleStatus.ACTIVE, CycleType.RECURRING),
            CycleBalance(start, end, 10, 15, None, CycleType.ONE_TIME),
        ),
    )


@pytest.mark.parametrize("method", ["start_cycle", "stop_cycle"])
def test_documented_cycle(method: str) -> None:
    """The cycle in the documentation is read, though it has no type."""
    cycle = read(method, DOCUMENTED_CYCLE)
    assert cycle == Cycle(USER, 23, CREATED, START, END, CycleStatus.CANCELED, None)


def test_whole_cycle() -> None:
    """A cycle's type is read."""
    cycle: Cycle = read("start_cycle", CYCLE | {"status": "active", "cycle_type": "recurring"})
    assert (cycle.status, cycle.cycle_type) == (CycleStatus.ACTIVE, CycleType.RECURRING)
    assert type(cycle.cycle_type) is CycleType


@pytest.mark.parametrize(
    ("said", "days"),
    [({}, None), ({"validity_days": None}, None), ({"validity_days": 31}, 31)],
    ids=["absent", "null", "31"],
)
def test_credits_added(said: dict[str, object], days: int | None) -> None:
    """The response to ``add`` is read with and without days."""
    added = read("add", {"end_user_id": str(USER), "amount": 7} | said)
    assert added == CreditsAdded(USER, 7, days)


def test_credits_subtracted() -> None:
    """The response to ``subtract`` has user and amount."""
    taken = read("subtract", {"end_user_id": str(USER), "amount": 7})
    assert taken == CreditsSubtracted(USER, 7)


def test_older_balance() -> None:
    """Cycles of the older documentation are read."""
    older: dict[str, object] = {key: PART[key] for key in ("cycle_start", "cycle_end", "status")}
    older["active_balance"] = 43
    balance = read("get_balance", BALANCE | {"active_balance_by_cycle": [older]})
    (cycle,) = balance.active_balance_by_cycle
    assert (cycle.amount, cycle.starting_amount, cycle.cycle_type) == (43, None, None)


def test_both_names_of_the_amount() -> None:
    """If a cycle has its amount under both names, the current name counts."""
    assert part(amount=43, active_balance=1).amount == 43


def test_no_cycles() -> None:
    """A user without cycles has an empty balance."""
    nothing: tuple[list[object] | None, ...] = ([], None)
    for none in nothing:
        empty: dict[str, object] = {"active_balance": 0, "active_balance_by_cycle": none}
        assert read("get_balance", BALANCE | empty) == ActiveBalance(USER, 0, ())


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("active", CycleStatus.ACTIVE),
        ("canceled", CycleStatus.CANCELED),
        ("paused", "paused"),
        ("Active", "Active"),
        ("", ""),
        (None, None),
    ],
)
def test_statuses(said: str | None, status: CycleStatus | str | None) -> None:
    """A known status is a member, another is its own text, and null is ``None``."""
    for found in (part(status=said).status, read("stop_cycle", CYCLE | {"status": said}).status):
        assert found == status
        assert type(found) is type(status)


@pytest.mark.parametrize(
    ("said", "cycle_type"),
    [
        ("one-time", CycleType.ONE_TIME),
        ("recurring", CycleType.RECURRING),
        ("weekly", "weekly"),
        (None, None),
    ],
)
def test_types(said: str | None, cycle_type: CycleType | str | None) -> None:
    """A known type is a member, another is its own text, and null is ``None``."""
    cycle: Cycle = read("stop_cycle", CYCLE | {"cycle_type": said})
    for found in (part(cycle_type=said).cycle_type, cycle.cycle_type):
        assert found == cycle_type
        assert type(found) is type(cycle_type)


def test_absent_status() -> None:
    """An absent status is ``None``."""
    without = {key: value for key, value in CYCLE.items() if key != "status"}
    assert read("stop_cycle", without).status is None


def test_null_starting_amount() -> None:
    """A starting amount of null is ``None``."""
    assert part(starting_amount=None).starting_amount is None


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-01-01T18:50:22Z", CREATED),
        ("2024-01-01T18:50:22", CREATED),
        ("2024-01-01T18:50:22+00:00", CREATED),
        ("2024-01-01T20:20:22+01:30", CREATED),
        ("2024-01-01T13:50:22-05:00", CREATED),
        ("2024-01-01T18:50:22.000007Z", CREATED + timedelta(microseconds=7)),
        ("2024-01-01T18:50:22.5", CREATED + timedelta(microseconds=500_000)),
        ("2024-01-01T18:50:22.123+00:00", CREATED + timedelta(microseconds=123_000)),
    ],
)
def test_times(text: str, moment: datetime) -> None:
    """Times are read with Z, an offset or neither, with and without fractions, and are aware."""
    cycle: Cycle = read("stop_cycle", CYCLE | {"created_at": text})
    assert cycle.created_at == moment
    assert cycle.created_at.tzinfo is not None


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-02-29t23:59:59z", END),
        ("2024-02-29T23:59:59z", END),
        ("2024-02-29 23:59:59.000Z", END),
        ("2024-02-29T23:59:59,000+00:00", END),
        ("2024-02-29T23:59:59.999999999999Z", END.replace(microsecond=999999)),
        ("2024-02-29T23:59:60Z", END.replace(microsecond=999999)),
        ("2024-02-29t23:59:60.123z", END.replace(microsecond=999999)),
        ("2024-03-01T00:59:60+01:00", END.replace(microsecond=999999)),
        ("2024-02-29T23:59:60", END.replace(microsecond=999999)),
        ("2024-02-28T24:00:00Z", datetime(2024, 2, 29, tzinfo=UTC)),
        ("2024-02-28T24:00:00.000", datetime(2024, 2, 29, tzinfo=UTC)),
        ("2024-02-28t24:00z", datetime(2024, 2, 29, tzinfo=UTC)),
        ("2024-02-28 24:00:00+01:00", datetime(2024, 2, 28, 23, tzinfo=UTC)),
    ],
)
def test_times_of_rfc_3339(text: str, moment: datetime) -> None:
    """Times of RFC 3339 and ISO 8601 are read that Python alone does not read."""
    assert read("stop_cycle", CYCLE | {"current_cycle_end": text}).current_cycle_end == moment
    assert part(cycle_end=text).cycle_end == moment


@pytest.mark.parametrize(
    "text",
    [
        "2024-02-29T23:59:61Z",
        "2024-02-29T23:60:60Z",
        "2024-02-29T24:01:00Z",
        "2024-02-30T24:00:00Z",
        "9999-12-31T24:00:00Z",
        "2024-02-29T23:59:60Y",
        "2024-02-30",
        "24:00:00",
        "",
        "z",
    ],
)
def test_not_a_time(text: str) -> None:
    """Text that is not a time is not read as one."""
    call = make("stop_cycle")
    call.start(0.0)
    body = json.dumps(CYCLE | {"current_cycle_end": text}).encode()
    with pytest.raises(
        InvalidResponseError, match="has current_cycle_end of another type"
    ) as caught:
        call.receive_response(Response(200, (), body), 1.0)
    assert caught.value.outcome is Outcome.APPLIED


@pytest.mark.parametrize("text", ["2024-02-29", "20240229", "2024-W09-4"])
def test_dates(text: str) -> None:
    """A date alone is that day's first moment for a start, and its last for an end."""
    first = datetime(2024, 2, 29, tzinfo=UTC)
    last = first + timedelta(days=1, microseconds=-1)
    day = dict.fromkeys(("created_at", "current_cycle_start", "current_cycle_end"), text)
    cycle: Cycle = read("stop_cycle", CYCLE | day)
    assert (cycle.created_at, cycle.current_cycle_start) == (first, first)
    assert cycle.current_cycle_end == last
    found = part(cycle_start=text, cycle_end=text)
    assert (found.cycle_start, found.cycle_end) == (first, last)


@pytest.mark.parametrize("number", ["7.0", "7e0", "0.7e1", "70E-1"])
def test_whole_floats(number: str) -> None:
    """A float that is a whole number is accepted as an integer."""
    body = f'{{"end_user_id": "{USER}", "amount": {number}, "validity_days": {number}}}'
    added: CreditsAdded = read("add", body)
    assert (added.amount, added.validity_days) == (7, 7)
    assert (type(added.amount), type(added.validity_days)) == (int, int)
    balance = BALANCE | {"active_balance": 53.0}
    assert read("get_balance", balance).active_balance == 53


@pytest.mark.parametrize("method", ARGUMENTS)
@pytest.mark.parametrize(
    "odd",
    [b'"x": "\xff\xfe"', b'"x": NaN, "y": [-Infinity, Infinity]', b'"x": 1e999', b'"\xe9": 1'],
    ids=["no UTF-8", "NaN", "too large", "Latin-1"],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n "], ids=len)
def test_ignored_fields_may_hold_anything(method: str, odd: bytes, mark: bytes) -> None:
    """A byte order mark and any value of an ignored field are accepted."""
    body = json.dumps(CYCLE | BALANCE | {"amount": 7}).encode()
    call = make(method)
    call.start(0.0)
    done = call.receive_response(Response(200, (), mark + body[:-1] + b", " + odd + b"}"), 1.0)
    assert isinstance(done, Done)
    assert done.result.end_user_id == USER


def test_offset_is_kept() -> None:
    """A time keeps its offset."""
    cycle: Cycle = read("stop_cycle", CYCLE | {"created_at": "2024-01-01T20:20:22+01:30"})
    assert cycle.created_at.tzinfo == timezone(timedelta(minutes=90))


@pytest.mark.parametrize(
    "text",
    [
        "ABCDEF01-2345-6789-ABCD-EF0123456789",
        "abcdef0123456789abcdef0123456789",
        "ABCDEF0123456789ABCDEF0123456789",
        "urn:uuid:abcdef01-2345-6789-abcd-ef0123456789",
        "{abcdef01-2345-6789-abcd-ef0123456789}",
    ],
)
def test_our_user_in_other_forms(text: str) -> None:
    """The response's id is compared as a UUID, in any form, and returned as a UUID."""
    user = UUID("abcdef01-2345-6789-abcd-ef0123456789")
    call = PROTOCOL.subtract(user, 7)
    call.start(0.0)
    body = json.dumps({"end_user_id": text, "amount": 7}).encode()
    assert call.receive_response(Response(200, (), body), 1.0) == Done(CreditsSubtracted(user, 7))


@pytest.mark.parametrize("amount", [0, 1, -5, 2**70])
def test_amount_of_a_cycle(amount: int) -> None:
    """A cycle's amount is the one in the response."""
    assert read("start_cycle", CYCLE | {"amount": amount}).amount == amount


@pytest.mark.parametrize("status", [200, 201, 202, 299])
def test_any_2xx(status: int) -> None:
    """A response that names our user and amount is a result under any 2xx."""
    assert read("subtract", {"end_user_id": str(USER), "amount": 7}, status).amount == 7


@pytest.mark.parametrize("method", ARGUMENTS)
def test_unknown_fields(method: str) -> None:
    """Unknown fields are ignored, and so is an empty error code."""
    more: dict[str, object] = {"amount": 7, "new": [{}], "message": "hi", "error_code": None}
    body = CYCLE | {**BALANCE, "active_balance_by_cycle": [PART | more]} | more
    result = read(method, body)
    assert result.end_user_id == USER
    assert not hasattr(result, "new")


@pytest.mark.parametrize("method", ARGUMENTS)
def test_results_are_frozen(method: str) -> None:
    """A result is immutable."""
    result = read(method, CYCLE | BALANCE | {"amount": 7})
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.end_user_id = USER
    assert not hasattr(result, "__dict__")
    assert hash(result) == hash(read(method, CYCLE | BALANCE | {"amount": 7}))


def test_words_are_text() -> None:
    """Types and statuses are strings, and compare and print as such."""
    assert [str(word) for word in (*CycleType, *CycleStatus)] == [
        "one-time",
        "recurring",
        "active",
        "canceled",
    ]


def test_outcomes() -> None:
    """Outcomes are ordered by what they prove, and print as their names."""
    assert Outcome.NOT_APPLIED < Outcome.UNKNOWN < Outcome.APPLIED
    assert [str(outcome) for outcome in Outcome] == ["NOT_APPLIED", "UNKNOWN", "APPLIED"]
    assert [f"{outcome}" for outcome in Outcome] == ["NOT_APPLIED", "UNKNOWN", "APPLIED"]
    assert f"{Outcome.UNKNOWN:>9}|{Outcome.APPLIED:<9}|" == "  UNKNOWN|APPLIED  |"
