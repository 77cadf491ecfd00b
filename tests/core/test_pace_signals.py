"""A signal handler that makes a call of its own, at every line of `Pace`.

A lock that the same thread can take again lets such a call in anywhere. What a `Pace` decides is in
test_pace.py.
"""

import itertools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import pytest

from creduse_core import Pace, pace

BEGIN = 100.0
MOMENTS = {
    "in the pause": 100.5,
    "at the least rate": 101.5,
    "at a growing rate": 130.0,
    "before the limit is forgotten": 146.0,
    "when it is forgotten": 150.0,
}
INPUTS: dict[str, Callable[[Pace, str, float], object]] = {
    "hold": lambda it, caller, now: it.hold(caller, now),
    "accepted": lambda it, caller, now: it.ended(caller, 200, None, now),
    "refused": lambda it, caller, now: it.ended(caller, 429, 1.0, now),
    "leave": lambda it, caller, _: it.leave(caller),
}


class AtLine:
    """Calls a function once, before the line of that number which the module runs."""

    def __init__(self, number: int, function: Callable[[], object]) -> None:
        self._lines = itertools.count()
        self._number = number
        self._function = function
        self.has_called = False

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _enter(self, frame: FrameType, *_: object) -> Any:
        return self._step if frame.f_code.co_filename == pace.__file__ else None

    def _step(self, _: FrameType, event: str, __: object) -> Any:
        if event == "line" and next(self._lines) == self._number:
            sys.settrace(None)
            self.has_called = True
            self._function()
        return self._step


def refused(*, before: bool) -> Pace:
    """Return a pace with three callers. Unless ``before``, it holds two of them."""
    it = Pace()
    for _ in range(50):
        it.ended(object(), 200, None, BEGIN)
    it.hold("first", BEGIN)
    if not before:
        it.ended("first", 429, 1.0, BEGIN)
    it.hold("interrupted", BEGIN)
    it.hold("other", BEGIN)
    return it


@pytest.mark.parametrize("takes", [0.0, 5.0, 100.0], ids="takes {:g} s".format)
@pytest.mark.parametrize("before", [True, False], ids=["no limit", "limited"])
@pytest.mark.parametrize("now", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("handler_does", INPUTS)
@pytest.mark.parametrize("interrupted", INPUTS)
def test_handler_that_calls(
    interrupted: str, handler_does: str, now: float, takes: float, *, before: bool
) -> None:
    """Both calls go on, and none keeps a place."""
    for number in itertools.count():
        it = refused(before=before)

        def handle(it: Pace = it) -> None:
            it.hold("handler", now + takes)
            INPUTS[handler_does](it, "handler", now + takes)

        with AtLine(number, handle) as line:
            INPUTS[interrupted](it, "interrupted", now)
        if not line.has_called:
            assert number > 3
            break
        for caller in ("interrupted", "other", "handler"):
            it.leave(caller)
        assert repr(it).endswith(", 0 waiting>")
        assert it.hold("later", now + 200) == 0.0
