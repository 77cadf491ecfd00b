"""``check`` and ``balance_first`` of both clients, and a call's record."""

import json
import pickle
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from creduse_core import (
    Call,
    CallRecord,
    CreduseError,
    CreduseProtocol,
    Delivery,
    Failure,
    LocalProtocolError,
    Outcome,
    Response,
    TransportError,
    UserDoesNotExistError,
    Verdict,
)
from tests.common import USER, USER_ID
from tests.core.players import PROTOCOL, Play, Player

LOST = Failure(Delivery.MAYBE_SENT, OSError("reset"), transient=False)
REFUSED = Response(404, (), b'{"error_code": "USER_DOES_NOT_EXIST"}')
SECOND = timedelta(seconds=1)
NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=3)
# At another time of day than now: a balance proves less while a day of the service ends.
CYCLE_END = (NOW + timedelta(days=36500, hours=12)).replace(
    minute=59, second=59, microsecond=999999
)


def balance(left: int, *, of: int = 100, started: datetime = LONG_AGO, date: str = "") -> Response:
    """Return a balance with one cycle, and with one that is emptied."""
    cycles = [
        {
            "cycle_start": start.isoformat(),
            "cycle_end": CYCLE_END.isoformat(),
            "amount": amount,
            "starting_amount": most,
            "cycle_type": "one-time",
        }
        for start, amount, most in ((started, left, of), (LONG_AGO, 0, 5))
    ]
    body = {"end_user_id": USER_ID, "active_balance": left, "active_balance_by_cycle": cycles}
    return Response(200, [("Date", date)] if date else (), json.dumps(body).encode())


def test_call_that_still_runs(play: Play) -> None:
    """A call that waits for its next attempt can still be applied, though no attempt was."""
    call = PROTOCOL.add(USER_ID, 5)
    call.start(0.0, began_at=datetime.now(UTC).timestamp())
    call.receive_response(Response(429, (), b""), 1.0)
    assert call.outcome is Outcome.NOT_APPLIED
    evidence = play(balance(100)).do("check", call)
    assert evidence.verdict is Verdict.NOT_YET
    assert "cannot arrive later" not in str(evidence)
    with pytest.raises(ValueError, match="the record has no began_at"):
        play(balance(100)).do("check", PROTOCOL.add(USER_ID, 5))


@pytest.mark.parametrize("how", ["balance_first", "check", "reading"])
def test_headers_of_a_balance(play: Play, how: str) -> None:
    """The balance that belongs to a call has its further header fields."""
    player = play(balance(100), LOST if how == "balance_first" else balance(100))
    headers = {"x-tenant": "7"}
    call = PROTOCOL.add(USER_ID, 5, extra_headers={"X-Tenant": "7"})
    if how == "balance_first":
        run_unknown(player, call, balance_first=True)
    elif how == "reading":
        player.do("reading", USER_ID, extra_headers=headers)
    else:
        call.start(0.0, began_at=datetime.now(UTC).timestamp())
        player.do("check", call, extra_headers=headers)
    assert call.extra_headers == headers  # not secrets, so errors can show them
    for send in player.script.sent:
        assert (
            dict(send.request.headers).items()
            >= {"x-tenant" if send.request.method == "GET" else "X-Tenant": "7"}.items()
        )


def run_unknown(player: Player, call: Call[Any], **options: Any) -> CreduseError:
    """Run a call that ends as UNKNOWN, and return its error."""
    with pytest.raises(TransportError) as caught:
        player.do("run", call, **options)
    assert caught.value.outcome is Outcome.UNKNOWN
    return caught.value


def test_subtract(play: Play) -> None:
    """With a balance from before, ``check`` compares the two."""
    player = play(balance(100), LOST, balance(60), balance(100))
    call = PROTOCOL.subtract(USER, 40)
    error = run_unknown(player, call, balance_first=True)
    assert player.do("check", call).verdict is Verdict.APPLIED
    assert error.call is not None
    assert player.do("check", error.call).verdict is Verdict.NOT_YET
    assert [send.request.method for send in player.script.sent] == ["GET", "POST", "GET", "GET"]


def test_known(play: Play) -> None:
    """Our other calls are taken out, as calls or as records. The call itself is none of them."""
    player = play(balance(100), LOST, LOST, balance(60), balance(60), balance(20))
    call, other = PROTOCOL.subtract(USER, 40), PROTOCOL.subtract(USER, 40)
    run_unknown(player, call, balance_first=True)
    run_unknown(player, other)
    assert player.do("check", call, known=[call, other]).verdict is Verdict.OPEN
    assert player.do("check", call, known=[call]).verdict is Verdict.APPLIED
    assert player.do("check", call, known=[other.record]).verdict is Verdict.APPLIED


def test_known_and_not_ended(play: Play) -> None:
    """A call of ours that has not ended yet can be applied before the balance is read."""
    player = play(balance(100), LOST, balance(60), balance(60))
    call, other = PROTOCOL.subtract(USER, 40), PROTOCOL.subtract(USER, 40)
    run_unknown(player, call, balance_first=True)
    other.start(0.0)
    other.receive_response(Response(429, (), b""), 1.0)
    assert other.outcome is Outcome.NOT_APPLIED
    assert player.do("check", call, known=[other]).verdict is Verdict.OPEN
    other.abandon(2.0)
    assert player.do("check", call, known=[other]).verdict is Verdict.APPLIED


def test_add(play: Play) -> None:
    """An ``add`` needs no balance from before. Its error is enough."""
    player = play(LOST, balance(40, of=40, started=datetime.now(UTC) + SECOND), balance(100))
    with pytest.raises(TransportError) as caught:
        player.do("add", USER, 40, None)
    assert player.do("check", caught.value).verdict is Verdict.APPLIED
    assert player.do("check", caught.value, clock_skew=0).verdict is Verdict.NOT_YET


def test_clock_skew(play: Play) -> None:
    """The response's ``Date`` is compared with this machine's clock."""
    later = format_datetime(datetime.now(UTC) + timedelta(minutes=2), usegmt=True)
    player = play(LOST, *[balance(100, date=later)] * 2)
    call = PROTOCOL.add(USER, 40)
    run_unknown(player, call)
    evidence = player.do("check", call)
    assert evidence.verdict is Verdict.OPEN
    assert evidence.reason.startswith("the service's clock and this machine's differ by 1")
    assert "differ" not in player.do("check", call, clock_skew=300).reason


def test_unreadable_balance(play: Play) -> None:
    """If the balance cannot be read, the evidence is open, and no error is raised."""
    unauthorized = Response(401, (), b"")
    player = play(LOST, unauthorized)
    call = PROTOCOL.add(USER, 40)
    run_unknown(player, call)
    assert str(player.do("check", call)) == (
        f"OPEN: the balance could not be read: get_balance({USER_ID}): 401 (api.creduse.com:443) "
        "[1 attempt]"
    )


def test_unknown_user(play: Play) -> None:
    """A user that the service does not know has got nothing."""
    player = play(REFUSED, LOST, REFUSED)
    call = PROTOCOL.add(USER, 40)
    run_unknown(player, call, balance_first=True)
    assert player.do("check", call).verdict is Verdict.NOT_YET


def test_balance_first_fails(play: Play) -> None:
    """If the first balance cannot be read, the call is not sent, and can be run again."""
    player = play(Response(401, (), b""), balance(100), LOST)
    call = PROTOCOL.subtract(USER, 40)
    with pytest.raises(CreduseError) as caught:
        player.do("run", call, balance_first=True)
    assert caught.value.outcome is Outcome.NOT_APPLIED
    assert len(player.script.sent) == 1
    run_unknown(player, call, balance_first=True)


def test_balance_first_of_a_wrong_call(play: Play) -> None:
    """A call for another service, or one that has already run, reads no balance."""
    player = play()
    with pytest.raises(ValueError, match="but the client for"):
        player.do(
            "run", CreduseProtocol("key", "https://else.example").add(USER, 1), balance_first=True
        )
    ended = PROTOCOL.add(USER, 1)
    ended.abandon(0.0)
    with pytest.raises(LocalProtocolError, match="a call runs only once"):
        player.do("run", ended, balance_first=True)
    assert player.script.sent == []


def test_timeouts(play: Play) -> None:
    """The first balance can take as long as the call, and the later one as long as is asked for."""
    player = play(balance(100), LOST, balance(100), balance(100))
    call = PROTOCOL.subtract(USER, 40, timeout=7)
    run_unknown(player, call, balance_first=True)
    player.do("check", call, timeout=3)
    player.do("check", call)
    assert [send.deadline - 100 for send in player.script.sent] == [7, 8, 5, 13]


def test_wrong_arguments(play: Play) -> None:
    """What cannot be checked is an error, and no balance is read."""
    player = play(LOST)
    lost = PROTOCOL.add(USER, 40)
    run_unknown(player, lost)
    wrong: list[tuple[Any, type[Exception], str]] = [
        (replace(lost.record, began_at=None), ValueError, "the record has no began_at"),
        (CreduseError(), TypeError, "that a client has raised, not CreduseError"),
        (CreduseProtocol("key", "https://else.example").add(USER, 1), ValueError, "the client for"),
        (
            None,
            TypeError,
            "call must be a Call, a CallRecord, or a CreduseError that a client has raised, not",
        ),
    ]
    for it, kind, message in wrong:
        with pytest.raises(kind, match=message):
            player.do("check", it)
    with pytest.raises(ValueError, match="clock_skew must be at least 0"):
        player.do("check", lost, clock_skew=-1)
    with pytest.raises(TypeError, match="known must be a Call, a CallRecord, or a"):
        player.do("check", lost, known=["add"])
    for known in (lost, lost.record, CreduseError(), None):
        with pytest.raises(TypeError, match="known must be a list of Calls"):
            player.do("check", lost, known=known)
    with pytest.raises(TypeError, match="lists_empty_cycles must be bool"):
        player.do("check", lost, lists_empty_cycles="no")
    with pytest.raises(TypeError, match="balance_first must be bool"):
        player.do("run", PROTOCOL.add(USER, 1), balance_first="no")
    assert len(player.script.sent) == 1


def test_certain_outcomes(play: Play) -> None:
    """If the outcome is certain, the evidence says so, and no balance is read."""
    applied = Response(200, (), b'{"end_user_id": "%b", "amount": 40}' % USER_ID.encode())
    player = play(REFUSED, applied)
    done, refused = PROTOCOL.subtract(USER, 40), PROTOCOL.subtract(USER, 40)
    with pytest.raises(UserDoesNotExistError) as caught:
        player.do("run", refused)
    player.do("run", done)
    for call in (refused, caught.value):
        evidence = player.do("check", call)
        assert (evidence.verdict, evidence.assumption) == (Verdict.NOT_YET, None)
        assert "cannot arrive later" in evidence.reason
    assert player.do("check", done).verdict is Verdict.APPLIED
    assert len(player.script.sent) == 2


@pytest.mark.parametrize(
    ("call", "method", "amount", "days"),
    [
        (PROTOCOL.add(USER, 40), "add", 40, 31),
        (PROTOCOL.add(USER, 40, None), "add", 40, None),
        (PROTOCOL.subtract(USER, 40), "subtract", 40, None),
        (PROTOCOL.start_cycle(USER, 40, 7), "start_cycle", 40, 7),
        (PROTOCOL.stop_cycle(USER), "stop_cycle", None, None),
        (PROTOCOL.get_balance(USER), "get_balance", None, None),
    ],
)
def test_record(call: Call[Any], method: str, amount: int | None, days: int | None) -> None:
    """A record says what the call is. It can be pickled, and does not hold the API key."""
    record = CallRecord(method, USER, amount, days, Outcome.NOT_APPLIED, None)
    assert call.record == record
    assert pickle.loads(pickle.dumps(record)) == record  # noqa: S301 - its own


def test_record_of_a_run(play: Play) -> None:
    """A record says when the call began, by the clock of this machine."""
    player = play(LOST)
    call = PROTOCOL.add(USER, 40)
    earliest = datetime.now(UTC)
    error = run_unknown(player, call)
    record = error.call
    assert record == call.record
    assert record is not None
    assert record.outcome is Outcome.UNKNOWN
    assert record.began_at is not None
    assert earliest <= record.began_at <= datetime.now(UTC)
    assert pickle.loads(pickle.dumps(error)).call == record  # noqa: S301 - its own
    with pytest.raises(LocalProtocolError):
        player.do("run", call)
    assert call.record == record


def test_record_of_a_cancelled_call(play: Play) -> None:
    """A call whose caller was cancelled can be checked, too."""
    player = play(KeyboardInterrupt(), balance(100))
    call = PROTOCOL.add(USER, 40)
    with pytest.raises(KeyboardInterrupt):
        player.do("run", call)
    assert player.do("check", call).verdict is Verdict.NOT_YET
    assert call.record == replace(call.record, outcome=Outcome.UNKNOWN)
