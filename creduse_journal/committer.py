"""A thread that writes to a database, and commits what has gathered in the meantime.

So claims that come at the same time share a sync. Operations are carried out in their order.
`creduse_bulk` uses it, too. Which database it is (`database`, `postgres`) does not belong here.
"""

import contextlib
import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from ._entries import JournalError
from .future import Future

T = TypeVar("T")
C = TypeVar("C")
"""A connection."""

_MAX_BATCH: Final = 1000
"""Operations in a transaction."""

Batch: TypeAlias = list[tuple[Callable[[C], Any], Future[Any]]]
"""Operations, each with the future of its result."""
_Queue: TypeAlias = queue.SimpleQueue[tuple[Callable[[C], Any], Future[Any]] | None]


class Backend(Protocol[C]):
    """What carries out operations, in the thread."""

    idle_limit: float | None
    """Seconds without an operation, after which ``keep_alive`` is called; ``None`` for never."""

    def commit(self, batch: Batch[C]) -> None:
        """Carry out operations in a transaction, and end their futures."""
        ...

    def keep_alive(self) -> None:
        """Show a server that this process lives."""
        ...

    def close(self) -> None:
        """Close the database. There are no more operations."""
        ...


class Committer(Generic[C]):
    """Carries out operations in a thread of its own, in the order in which they are submitted."""

    def __init__(self, name: str, backend: Backend[C]) -> None:
        """Start the thread. ``name`` is that of the journal, for messages."""
        self._name = name
        self._process = os.getpid()
        self._queue: _Queue[C] = queue.SimpleQueue()
        # Nothing may be queued behind the end. Reentrant, since a signal handler can make a call.
        self._lock = threading.RLock()
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(
            target=_write,
            args=(backend, self._queue, self._ended),
            name="creduse_journal",
            daemon=True,
        )
        self._thread.start()
        # At the end of the program, too.
        self._finalize = weakref.finalize(self, _stop, self._queue, self._thread)

    def close(self) -> None:
        """Write what has gathered, and close the database."""
        ended = self.close_soon()
        if threading.current_thread() is not self._thread:  # a finalizer of a user's can run there
            ended.result()

    def close_soon(self) -> "Future[None]":
        """Do the same without waiting. The future ends when it is done."""
        if os.getpid() != self._process:  # a forked child has no such thread
            nothing: Future[None] = Future()
            nothing.set_result(None)
            return nothing
        with self._lock:
            self._finalize.detach()
            # Each time: a signal handler can have raised before the first one. The thread reads one.
            self._queue.put(None)
        return self._ended

    def submit(self, act: Callable[[C], T]) -> "Future[T]":
        """Carry out an operation in the next transaction. Its future ends after the commit."""
        if os.getpid() != self._process:
            raise JournalError(
                f"{self._name} was opened in another process: open it after the fork"
            )
        future: Future[T] = Future()
        with self._lock:
            if not self._finalize.alive:
                raise JournalError(f"{self._name} is closed")
            self._queue.put((act, future))
        return future


def _stop(waiting: _Queue[Any], thread: threading.Thread) -> None:
    waiting.put(None)
    if thread is not threading.current_thread():  # the last reference can end there
        thread.join()  # at once in a forked child, which has no such thread


def _write(backend: Backend[C], waiting: _Queue[C], ended: "Future[None]") -> None:
    """Carry out operations until ``None`` comes."""
    with contextlib.ExitStack() as stack:
        stack.callback(ended.set_result, None)
        stack.enter_context(contextlib.closing(backend))
        stopped = False
        while not stopped:
            batch, stopped = _next_batch(waiting, backend.idle_limit)
            try:
                if batch:
                    backend.commit(batch)
                elif not stopped:
                    backend.keep_alive()
            except Exception as error:  # noqa: BLE001 - all calls wait for this thread
                fail(batch, JournalError(f"a fault of creduse: {error!r}"))
            # It holds the objects of its operations, which could not be collected otherwise.
            del batch


def _next_batch(waiting: _Queue[C], idle_limit: float | None) -> tuple[Batch[C], bool]:
    """Return what has gathered, and whether it was the last.

    Nothing, if nothing comes for ``idle_limit`` seconds.
    """
    batch: Batch[C] = []
    try:
        operation = waiting.get(timeout=idle_limit)
        while operation is not None:
            batch.append(operation)
            if len(batch) == _MAX_BATCH:
                return batch, False
            operation = waiting.get_nowait()
    except queue.Empty:
        return batch, False
    return batch, True


def carry_out(
    connection: C, batch: Batch[C], errors: type[Exception]
) -> list[Callable[[], object]]:
    """Carry out operations, and return what ends their futures after the commit.

    An error of the database, one of ``errors``, is raised. Others belong to their operation.
    """
    ends: list[Callable[[], object]] = []
    for act, future in batch:
        try:
            result = act(connection)
        except errors:
            raise
        except Exception as error:  # noqa: BLE001 - it is the caller's
            ends.append(partial(future.set_exception, error))
        else:
            ends.append(partial(future.set_result, result))
    return ends


def fail(batch: Batch[C], error: JournalError) -> None:
    """End operations with an error, a new one for each: its traceback holds the caller's frames."""
    for _, future in batch:
        if not future.done():
            future.set_exception(type(error)(*error.args))


async def wait_for(future: Future[T]) -> T:
    """Wait for a future of the thread, on asyncio or trio."""
    wake: Callable[[], object]
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        done: Any = trio.Event()
        wake = partial(trio.lowlevel.current_trio_token().run_sync_soon, done.set)
    else:
        import asyncio  # noqa: PLC0415 - only where it is running

        done = asyncio.Event()
        wake = partial(asyncio.get_running_loop().call_soon_threadsafe, done.set)

    def tell(_: object) -> None:
        # A `RuntimeError`: the caller was cancelled, and its event loop has ended.
        with contextlib.suppress(RuntimeError):
            wake()

    # If the caller is cancelled, the operation goes on.
    future.add_done_callback(tell)
    await done.wait()
    return future.result()
