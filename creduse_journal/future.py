"""The result of an operation that a thread carries out.

A `concurrent.futures.Future` has a condition. A signal handler that raises while the main thread enters
it, such as a task runner's time limit, leaves it locked. The thread then waits for ever to set the next
result. So this class has no lock. What a thread carries out, and when (`committer`), does not belong here.
"""

import queue
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Future(Generic[T]):
    """The result of an operation, or its exception. It is set once."""

    __slots__ = ("_callbacks", "_ends")

    def __init__(self) -> None:
        self._ends: list[tuple[T, None] | tuple[None, BaseException]] = []
        self._callbacks: list[Callable[[Future[T]], object]] = []

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
            try:
                raise error
            finally:
                del self, error  # its traceback has this frame
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
        self._call_back()

    def _call_back(self) -> None:
        # Two threads can be here at once. Each callback is taken by one of them.
        while True:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:
                return
            callback(self)

    def _wait(self) -> "tuple[T, None] | tuple[None, BaseException]":
        if not self._ends:
            woken: queue.SimpleQueue[object] = queue.SimpleQueue()
            self.add_done_callback(woken.put)
            woken.get()
        return self._ends[0]
