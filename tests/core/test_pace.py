"""`Pace`, and the clients that keep to one.

A simulated service that limits requests shows what it is good for.
"""

import math
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from creduse_core import (
    CreduseTimeoutError,
    Delivery,
    Failure,
    Outcome,
    Pace,
    RateLimitError,
    Response,
)
from creduse_core.pace import MAX_PAUSE, PAUSE
from tests.common import USER, credits_body
from tests.core.limited import Brake, Bucket, SharedPause, Simulation, Window
from tests.core.players import PROTOCOL, Play

BUSY = Response(429, [("Retry-After", "5")], b"")
GOOD = Response(200, (), credits_body(7))


def refused_at(rate: int, *, retry_after: float | None = 5.0) -> Pace:
    """Return a pace that was refused at second 1, after so many requests in the second before."""
    pace = Pace()
    for number in range(rate):
        assert pace.hold(number, number / rate) == 0
        pace.ended(number, 200, None, number / rate)
    assert pace.hold("refused", 1.0) == 0
    pace.ended("refused", 429, retry_after, 1.0)
    return pace


def sent_between(pace: Pace, start: float, end: float) -> list[float]:
    """Let callers send one after the other, and return the times at which they did."""
    times: list[float] = []
    now = start
    for caller in range(100_000):
        while (wait := pace.hold(caller, now)) > 0:
            now += wait
        if now >= end:
            pace.leave(caller)
            return times
        times.append(now)
        pace.ended(caller, 200, None, now)
    raise AssertionError


def test_no_limit_at_first() -> None:
    """Until the service refuses a request, none is held."""
    pace = Pace()
    assert [pace.hold(number, 0.0) for number in range(1000)] == [0.0] * 1000
    assert repr(pace) == "<Pace no limit, 0 waiting>"


@pytest.mark.parametrize(
    ("asked", "pause"), [(5.0, 5.0), (None, PAUSE), (0.0, PAUSE), (1e9, MAX_PAUSE)]
)
def test_pause(asked: float | None, pause: float) -> None:
    """After a refusal, nothing is sent for as long as the service asks for, within bounds."""
    pace = refused_at(100, retry_after=asked)
    first = pace.hold("first", 1.0)
    assert first == pytest.approx(pause)
    assert pace.hold("first", 1.0 + pause / 2) == pytest.approx(pause / 2)
    assert pace.hold("first", 1.0 + pause) == 0


def test_rate() -> None:
    """Then requests leave at 0.7 of the refused rate, soon at 0.9, and slowly faster."""
    pace = refused_at(100)
    pace.hold("again", 6.5)
    pace.ended("again", 429, 1.0, 6.5)
    assert repr(pace) == "<Pace refused at 70.0 requests a second, 0 waiting>"
    times = sent_between(pace, 7.5, 40.0)

    def rate(second: float) -> int:
        return sum(second <= it < second + 1 for it in times)

    assert times[0] == pytest.approx(7.5, abs=0.03)
    rates = {
        7.5: 49,
        8.5: 63,
        12.5: 63,
        13.5: 66.5,
        17.5: 66.5,
        18.5: 70,
        22.5: 70,
        23.5: 80.5,
        27.5: 141,
    }
    assert [rate(second) for second in rates] == pytest.approx([*rates.values()], abs=1.5)
    assert times == sorted(times)


def test_rate_after_the_first_refusal() -> None:
    """The first refusal tells little, so the rate grows until there is another."""
    times = sent_between(refused_at(100), 6.0, 20.0)
    found = [sum(second <= it < second + 1 for it in times) for second in (6, 7, 8, 12)]
    assert found == pytest.approx([70, 115, 132, 231], abs=1.5)


def test_clock_set_back() -> None:
    """If the clock is set back, the pace begins anew, and does not wait for that time again."""
    pace = refused_at(100)
    assert pace.hold("next", 6.0) == 0
    pace.ended("next", 200, None, 6.0)
    assert pace.hold("back", -3600.0) == 0
    pace.ended("back", 429, 1.0, -3600.0)
    assert repr(pace) == "<Pace refused at 10.0 requests a second, 0 waiting>"


def test_unavailable() -> None:
    """A 503 that asks to wait pauses all, and does not cut a rate that is known."""
    pace = refused_at(100)
    pace.hold("unavailable", 6.5)
    pace.ended("unavailable", 503, 3.0, 6.5)
    assert repr(pace) == "<Pace refused at 100.0 requests a second, 0 waiting>"
    assert pace.hold("next", 6.5) == pytest.approx(3.0, abs=0.02)


def test_places_are_kept() -> None:
    """Callers send in the order in which they came, one by one, however they wake."""
    pace = refused_at(10)
    waits = [pace.hold(number, 1.0) for number in range(50)]
    assert waits == sorted(waits)
    assert repr(pace) == "<Pace refused at 10.0 requests a second, 50 waiting>"
    now, order = 6.0, list[int]()
    while len(order) < 50:
        waiting = [number for number in range(50) if number not in order]
        holds = {number: pace.hold(number, now) for number in reversed(waiting)}
        order += sorted(number for number, hold in holds.items() if not hold)
        now += 0.01
    assert order == sorted(order)
    assert now == pytest.approx(6.0 + 4, abs=0.3)  # at 7 a second, and then ever faster


def test_a_place_given_up() -> None:
    """A place that is given up goes to the next caller, so a crowd that gives up costs nothing."""
    pace = refused_at(10)
    for number in range(1000):
        pace.hold(number, 1.0)
    last = pace.hold("last", 1.0)
    for number in range(1000):
        pace.leave(number)
    assert pace.hold("new", 1.0) == pytest.approx(5.0, abs=0.01)
    pace.leave("last")
    pace.leave("nobody")
    assert pace.hold("second", 1.0) == pytest.approx(5.0 + 1 / 9, abs=0.05)
    assert last == pytest.approx(5 + 20, abs=3)  # as the rate grows, unless it is refused again


def test_places_given_up_in_vain() -> None:
    """A place whose time has passed is not given again."""
    pace = refused_at(10)
    pace.hold("first", 1.0)
    pace.hold("second", 1.0)
    pace.leave("first")
    assert pace.hold("second", 7.0) == 0
    assert pace.hold("third", 8.0) == 0
    assert 0 < pace.hold("fourth", 8.0) < 0.2


def test_idle_time_saves_up_nothing() -> None:
    """After a time without requests, they do not leave all at once."""
    pace = refused_at(10)
    assert pace.hold("first", 12.0) == 0
    assert 0 < pace.hold("second", 12.0) < 0.2


def test_refused_in_flight() -> None:
    """Requests that left before a refusal are refused, too. This cuts the rate only once."""
    pace = Pace()
    for number in range(20):
        pace.hold(number, 0.0)
    for number in range(10):
        pace.ended(number, 200, None, 0.1)
    for number in range(10, 20):
        pace.ended(number, 429, 5.0, 0.1 + number / 10)
    assert repr(pace) == "<Pace refused at 10.0 requests a second, 0 waiting>"
    assert pace.hold("next", 3.0) == pytest.approx(0.1 + 1.9 + 5.0 - 3.0)


def test_a_refusal_that_overtakes() -> None:
    """Responses that arrive after a refusal count, if their requests left before it."""
    pace = Pace()
    for number in range(20):
        pace.hold(number, 0.0)
    pace.ended(0, 429, 5.0, 0.1)
    assert repr(pace) == "<Pace refused at 10.0 requests a second, 0 waiting>"
    for number in range(1, 20):
        pace.ended(number, 200, None, 0.1)
    assert repr(pace) == "<Pace refused at 19.0 requests a second, 0 waiting>"


def test_refused_again() -> None:
    """A refusal at the new rate cuts it again. What was not used up does not count as its rate."""
    pace = refused_at(100)
    assert pace.hold("early", 6.5) == 0
    pace.ended("early", 429, 1.0, 6.5)
    assert repr(pace) == "<Pace refused at 70.0 requests a second, 0 waiting>"
    for number in range(40):
        assert pace.hold(number, 20.0 + number / 20) == 0
        pace.ended(number, 200, None, 20.0 + number / 20)
    assert pace.hold("late", 22.0) == 0
    pace.ended("late", 429, 1.0, 22.0)
    assert repr(pace) == "<Pace refused at 20.0 requests a second, 0 waiting>"


def test_forgotten() -> None:
    """After a while without refusals, there is no limit any more."""
    pace = refused_at(10)
    assert pace.hold("later", 3600.0) == 0
    assert repr(pace) == "<Pace no limit, 0 waiting>"


def test_forgotten_while_waiting() -> None:
    """A caller that comes back from a wait after the limit was forgotten sends at once."""
    pace = refused_at(1)
    for number in range(100):
        pace.hold(number, 1.0)
    assert pace.hold(99, 3600.0) == 0
    assert [pace.hold(number, 3600.0) for number in range(99)] == [0] * 99
    assert repr(pace) == "<Pace no limit, 0 waiting>"


def test_refused_after_forgotten() -> None:
    """Places that were taken before the limit was forgotten hold nobody back."""
    pace, now = refused_at(100), 6.0
    while now < 60.0:
        wait = pace.hold("worker", now)
        if not wait:
            pace.ended("worker", 200, None, now)
        now += wait or 0.001
    assert repr(pace) == "<Pace no limit, 0 waiting>"
    pace.hold("refused", now)
    pace.ended("refused", 429, 1.0, now)
    assert pace.hold("next", now) == pytest.approx(1.0)


def test_nothing_accepted() -> None:
    """If the service refuses the very first requests, the others do not wait for minutes."""
    pace = Pace()
    pace.hold("refused", 0.0)
    pace.ended("refused", 429, 1.0, 0.0)
    assert max(pace.hold(number, 0.0) for number in range(100)) < 10


@pytest.mark.parametrize(
    ("status", "retry_after", "brakes"),
    [
        (429, None, True),
        (503, 1.0, True),
        (503, None, False),
        (500, None, False),
        (200, None, False),
        (402, None, False),
        (None, None, False),
    ],
)
def test_what_brakes(status: int | None, retry_after: float | None, brakes: bool) -> None:  # noqa: FBT001 - a row of the table
    """A 429 brakes, and a 503 that asks to wait."""
    pace = Pace()
    pace.hold("caller", 0.0)
    pace.ended("caller", status, retry_after, 0.1)
    assert (pace.hold("next", 0.1) > 0) is brakes


def test_no_response() -> None:
    """A request without a response is not counted as accepted."""
    pace = Pace()
    for number in range(30):
        pace.hold(number, 0.0)
    for number in range(10):
        pace.ended(number, 200, None, 0.1)
        pace.ended(10 + number, None, None, 0.1)
        pace.leave(20 + number)
    pace.hold("refused", 0.2)
    pace.ended("refused", 429, 1.0, 0.2)
    assert repr(pace) == "<Pace refused at 10.0 requests a second, 0 waiting>"


def test_threads() -> None:
    """Threads can share a pace: none loses its place, and no place stays taken."""
    pace = refused_at(1000)

    def work(worker: int) -> int:
        dice, now, sent = random.Random(worker), 6.0, 0  # noqa: S311 - nothing is secret here
        for number in range(2000):
            caller = (worker, number)
            if dice.random() < 0.2:
                pace.hold(caller, now)
                pace.leave(caller)
                continue
            while (wait := pace.hold(caller, now)) > 0:
                now += wait
            pace.ended(caller, 200, None, now)
            sent += 1
        return sent

    with ThreadPoolExecutor(8) as pool:
        sent = sum(pool.map(work, range(8)))
    assert sent > 8 * 2000 * 0.7
    assert repr(pace).endswith(" 0 waiting>")


BRAKES: dict[str, Callable[[], Brake]] = {
    "each call alone": lambda: SharedPause(pauses=False),
    "a shared pause alone": SharedPause,
    "pace": Pace,
}
LIMITS: dict[str, Callable[[], Bucket | Window]] = {
    "200 in each second": lambda: Window(200),
    "200 a second, 200 at once": lambda: Bucket(200, 200),
    "200 a second, 20 at once": lambda: Bucket(200, 20),
    "20 in each second": lambda: Window(20),
}


@pytest.mark.parametrize("latency", [0.02, 0.1])
@pytest.mark.parametrize("limit", LIMITS)
def test_limited_service(limit: str, latency: float) -> None:
    """With 100 workers, hardly any request is refused, and most of the limit is used."""
    rate = float(limit.split(maxsplit=1)[0])
    found = {
        name: Simulation(LIMITS[limit](), brake(), calls=int(100 * rate), latency=latency).run(
            workers=100
        )
        for name, brake in BRAKES.items()
    }
    for name, run in found.items():
        print(f"{limit}, {latency} s, {name}: {run}")  # noqa: T201 - the docs have these figures
    pace = found["pace"]
    assert (pace.applied, pace.failed) == (100 * rate, 0)
    # All workers send before the first refusal.
    assert pace.refused < 100 + 0.01 * pace.sent
    assert pace.applied / pace.seconds > 0.8 * rate
    if rate == 200:
        assert pace.refused < 0.01 * pace.sent
    for name in ("each call alone", "a shared pause alone"):
        assert found[name].refused > 10 * pace.refused


# The clients.


def test_client(play: Play) -> None:
    """A client holds its next call, and tells the pace what became of it."""
    pace = Pace()
    player = play(BUSY, GOOD, GOOD, pace=pace)
    player.do("add", USER, 7)
    assert player.script.slept == [5.0, pytest.approx(0.0, abs=0.2)][: len(player.script.slept)]
    assert repr(pace) == "<Pace refused at 10.0 requests a second, 0 waiting>"
    player.do("add", USER, 7)


def test_held_too_long(play: Play) -> None:
    """A call that would be held for longer than its time is not sent, and does not wait."""
    pace = Pace()
    player = play(BUSY, GOOD, pace=pace)
    call = PROTOCOL.add(USER, 7, timeout=3)
    with pytest.raises(RateLimitError):
        player.do("run", call)
    for _ in range(100):
        with pytest.raises(CreduseTimeoutError, match="the pace would hold the request") as caught:
            player.do("add", USER, 7, timeout=3)
        assert caught.value.outcome is Outcome.NOT_APPLIED
    assert player.script.slept == []
    assert repr(pace) == "<Pace refused at 10.0 requests a second, 0 waiting>"
    player.do("add", USER, 7)  # none of them kept a place
    assert len(player.script.sent) == 2


def test_cancelled_while_held(play: Play) -> None:
    """A held call that is cancelled sends nothing and gives up its place."""
    pace = Pace()
    player = play(
        Response(429, [("Retry-After", "40")], b""), pace=pace, asleep=KeyboardInterrupt()
    )
    with pytest.raises(RateLimitError):
        player.do("add", USER, 7)
    call = PROTOCOL.add(USER, 7, timeout=100)
    with pytest.raises(KeyboardInterrupt):
        player.do("run", call)
    assert call.outcome is Outcome.NOT_APPLIED
    assert repr(pace) == "<Pace refused at 10.0 requests a second, 0 waiting>"


def test_run_again(play: Play) -> None:
    """A call that cannot run again takes no place."""
    pace = Pace()
    player = play(GOOD, pace=pace)
    call = PROTOCOL.add(USER, 7)
    player.do("run", call)
    with pytest.raises(RuntimeError, match="a call runs only once"):
        player.do("run", call)
    assert repr(pace) == "<Pace no limit, 0 waiting>"


LOST_HEAD = Failure(
    Delivery.MAYBE_SENT, OSError("reset"), transient=True, response=Response(429, BUSY.headers, b"")
)
UNSENT_HEAD = Failure(
    Delivery.NOT_SENT, OSError("unsent"), transient=False, response=Response(429, BUSY.headers, b"")
)
ODD: Any = Response(429, (), None)  # type: ignore[arg-type]  # a transport's mistake
UNAVAILABLE = Response(503, BUSY.headers, b"")


@pytest.mark.parametrize(
    ("event", "brakes"),
    [
        (LOST_HEAD, True),
        (UNSENT_HEAD, False),
        (ODD, False),
        (UNAVAILABLE, True),
        (OSError(), False),
    ],
)
def test_what_the_client_reports(play: Play, event: object, brakes: bool) -> None:  # noqa: FBT001 - a row of the table
    """The head of a response that was cut off counts. What is no response to the request does not."""
    pace = Pace()
    player = play(event, GOOD, pace=pace)
    with pytest.raises(Exception, match="add\\("):
        player.do("run", PROTOCOL.add(USER, 7, timeout=4))
    assert ("no limit" in repr(pace)) is not brakes


def test_clock_that_is_not_there_yet(play: Play) -> None:
    """A transport for trio returns 0 outside of its run. This time counts for nothing later."""
    pace = Pace()
    player = play(GOOD, BUSY, GOOD, pace=pace)
    player.script.clock = 0.0
    player.do("add", USER, 7)
    player.script.clock = 1e6
    player.do("add", USER, 7)
    assert player.script.slept[0] == 5.0
    assert player.script.clock < 1e6 + 10


def test_wrong_pace(play: Play) -> None:
    """Only a `Pace` is accepted."""
    with pytest.raises(TypeError, match=r"pace must be Pace, such as Pace\(\), not float"):
        play(pace=200.0)


def test_numbers() -> None:
    """Times can be any, and the rate stays a number."""
    pace = refused_at(10)
    assert pace.hold("far", 1e12) == 0
    pace.ended("far", 429, 1.0, 1e12)
    assert math.isfinite(pace.hold("farther", 1e12))
