"""How many items may be in flight: each state with each end of a call."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from creduse_bulk._window import FAILURES, FIRST, ROUNDS, End, Window

GOOD, NEUTRAL, FAILED = End


def close(window: Window) -> None:
    """Let so many calls fail in a row that the window closes."""
    for _ in range(FAILURES):
        assert not window.is_closed
        window.ended(FAILED)
    assert window.is_closed


@pytest.mark.parametrize("largest", [1, 2, 3, 4, 5, 300])
def test_growth(largest: int) -> None:
    """It starts small, and each success makes room for one more, up to the largest size."""
    window = Window(largest)
    assert window.size == min(FIRST, largest)
    for number in range(1, largest + 2):
        window.ended(GOOD)
        assert window.size == min(FIRST + number, largest)
    assert not window.is_closed


@pytest.mark.parametrize(
    ("end", "before", "after"),
    [(GOOD, 8, 9), (GOOD, 20, 20), (NEUTRAL, 8, 8), (FAILED, 8, 4), (FAILED, 9, 4), (FAILED, 1, 1)],
)
def test_size(end: End, before: int, after: int) -> None:
    """A failure halves the size, and what says nothing leaves it."""
    window = Window(20)
    window.size = before
    window.ended(end)
    assert window.size == after


def test_closes() -> None:
    """Ten failures in a row close it, whatever says nothing in between. A success begins anew."""
    window = Window(8)
    for _ in range(3):
        for _ in range(FAILURES - 1):
            window.ended(FAILED)
            window.ended(NEUTRAL)
        assert not window.is_closed
        window.ended(GOOD)
    close(window)
    window.ended(GOOD)  # one that was in flight
    assert window.is_closed


def test_reopens() -> None:
    """After it was closed, one item is sent, and another failure closes it at once."""
    window = Window(8)
    for end in (NEUTRAL, GOOD):
        close(window)
        window.reopen()
        assert (window.size, window.is_closed) == (1, False)
        window.ended(NEUTRAL)
        assert (window.size, window.is_closed) == (1, False)
        window.ended(FAILED)
        assert window.is_closed
        window.reopen()
        window.ended(GOOD)
        assert (window.size, window.is_closed) == (2, False)
        window.ended(end)


def test_hopeless() -> None:
    """A service that fails each time that it seems to be back is hopeless. A success is hope."""
    window = Window(8)
    close(window)
    for _ in range(2):
        for number in range(1, ROUNDS):
            assert (window.is_closed, window.is_hopeless) == (True, False), number
            window.ended(FAILED)  # one more that was in flight is no round
            window.reopen()
            window.ended(FAILED)
        assert (window.is_closed, window.is_hopeless) == (True, True)
        window.ended(GOOD)
        assert (window.is_closed, window.is_hopeless) == (True, False)
        window.reopen()
        window.ended(FAILED)


EVENTS = [*End, None]
"""The ends, and ``None``: it is opened again."""


def run(largest: int, events: tuple[End | None, ...]) -> None:
    """Check a window against a model that keeps all events."""
    window = Window(largest)
    failures = rounds = 0
    is_closed = False
    for event in events:
        size = window.size
        if event is None:
            if not is_closed:
                continue
            window.reopen()
            is_closed, failures = False, FAILURES - 1
            assert window.size == 1
        else:
            window.ended(event)
            if event is GOOD:
                failures = rounds = 0
                assert window.size == min(size + 1, largest)
            if event is NEUTRAL:
                assert window.size == size
            if event is FAILED:
                failures += 1
                assert window.size == max(size // 2, 1)
                if failures >= FAILURES and not is_closed:
                    is_closed, rounds = True, rounds + 1
        assert 1 <= window.size <= largest
        assert window.is_closed == is_closed
        assert window.is_hopeless == (rounds >= ROUNDS)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 12), st.lists(st.sampled_from([*EVENTS, FAILED, FAILED])))
def test_any_events(largest: int, events: list[End | None]) -> None:
    """Whatever happens, the size stays between 1 and the largest one, and the counts are right."""
    run(largest, tuple(events))


@pytest.mark.parametrize("largest", [1, 2, 9])
def test_every_short_history(largest: int) -> None:
    """So it is for each short history after nine failures."""
    for events in itertools.product(EVENTS, repeat=6):
        run(largest, ((FAILED,) * (FAILURES - 1)) + events)
