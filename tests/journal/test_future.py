"""Futures of the journal's thread, and signal handlers that raise while one is awaited."""

import queue
import random
import signal
import threading
from contextlib import suppress
from typing import Any

import pytest

from creduse_journal.future import Future


class TimeLimitError(Exception):
    """What a task runner's signal handler raises."""


def limit(number: int, frame: object) -> None:
    raise TimeLimitError(number, frame)


def test_several_wait() -> None:
    """All who wait for a result get it."""
    future: Future[int] = Future()
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(future.result())) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert not future.done()
    future.set_result(7)
    for thread in threads:
        thread.join()
    assert results == [7] * 3
    assert future.done()
    assert future.exception() is None


def test_exception_and_callbacks() -> None:
    """An exception is raised for each who asks. Callbacks are called once, before the end or after."""
    future: Future[int] = Future()
    called: list[Any] = []
    future.add_done_callback(called.append)
    future.set_exception(LookupError("odd"))
    future.add_done_callback(called.append)
    assert called == [future] * 2
    for _ in range(2):
        with pytest.raises(LookupError, match="odd"):
            future.result()
    assert isinstance(future.exception(), LookupError)


# A signal may also come while Python frees objects. What its handler raises there is only reported.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_signals() -> None:
    """However often a signal handler raises while a result is awaited, the thread is never stopped."""
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    print(f"seed {seed}")  # noqa: T201 - to run it again
    dice = random.Random(seed)  # noqa: S311 - no secret
    asked: queue.SimpleQueue[Future[int] | None] = queue.SimpleQueue()

    def work() -> None:
        while (future := asked.get()) is not None:
            future.set_result(7)

    thread = threading.Thread(target=work)
    thread.start()
    before = signal.signal(signal.SIGALRM, limit)
    interrupted = 0
    try:
        while interrupted < 500:
            with suppress(TimeLimitError):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + dice.random() * 1e-4)
                    for _ in range(20):
                        future: Future[int] = Future()
                        asked.put(future)
                        assert future.result() == 7
                except TimeLimitError:
                    interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        asked.put(None)
        thread.join()
