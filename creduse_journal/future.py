"""The result of an operation that a thread carries out.

A `concurrent.futures.Future` has a condition. A signal handler that raises while the main thread enters
it, such as a task runner's time limit, leaves it locked. The thread then waits for ever to set the next
result. So this class has no lock.
"""

import queue
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_LOOK_EVERY: Final = 1.0
"""Seconds. Of several threads that wait, one is woken at once, and the others look again."""


class Future(Generic[T]):
    """The result of an operation, or its exception. It is set once."""

    __slots__ = ("_callbacks", "_ends", "_woken")

    def __init__(self) -> None:
        self._ends: list[tuple[T, None] | tuple[None, BaseException]] = []
        self._callbacks: list[Callable[[Future[T]], object]] = []
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()

    def done(self) -> bool:
        """Return whether the operation has ended."""
        return bool(self._ends)

    def exception(self) -> BaseException | None:
        """Wait for the end of the operation, and return its exception."""
        return self._wait()[1]

    def result(self) -> T:
        """Wait for the end of the operation. Return its result, or raise its exception."""
        result, error = self._wait()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  # there is no exception

    def set_result(self, result: T) -> None:
        """End the operation."""
        self._end((result, None))

    def set_exception(self, error: BaseException) -> None:
        """End the operation with an exception."""
        self._end((None, error))

    def add_done_callback(self, callback: Callable[["Future[T]"], object]) -> None:
        """Call a function when the operation ends, in its thread; or now, if it has ended."""
        self._callbacks.append(callback)
        if self._ends:
            self._call_back()

    def _end(self, end: "tuple[T, None] | tuple[None, BaseException]") -> None:
        self._ends.append(end)
        self._woken.put(None)
        self._call_back()

    def _call_back(self) -> None:
        # Two threads can be here at once. Each callback is taken by one of them.
        with suppress(IndexError):
            while True:
                callback = self._callbacks.pop(0)
                callback(self)

    def _wait(self) -> "tuple[T, None] | tuple[None, BaseException]":
        while not self._ends:
            with suppress(queue.Empty):
                self._woken.get(timeout=_LOOK_EVERY)
        return self._ends[0]
