"""The timer that the exchanges of a client share."""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from creduse import CreduseTimeoutError
from creduse_aiohttp import AsyncCreduseClient
from creduse_aiohttp._deadlines import Deadlines
from tests.aiohttp.clients import Run, until
from tests.common import KEY, USER
from tests.servers import Start, never_respond


class SignalError(Exception):
    """What a signal handler raises."""


def raising_once(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function that raises when a deadline is over for the first time."""
    raised: list[SignalError] = []

    def raise_once(timeout: Any, *when: float | None) -> None:
        if when != (None,) and not raised:
            raised.append(SignalError())
            raise raised[0]
        function(timeout, *when)

    return raise_once


def test_busy_client(run: Run, raw: Start) -> None:
    """A deadline ends its call although others begin in each turn of the event loop."""
    server = raw(never_respond)

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url) as client:
            call = asyncio.create_task(client.add(USER, 5, timeout=0.1))
            others: list[asyncio.Task[Any]] = []
            async with asyncio.timeout(20):
                while not call.done():
                    others.append(asyncio.create_task(client.add(USER, 5)))
                    await asyncio.sleep(0)
                    others[-1].cancel()
            with pytest.raises(CreduseTimeoutError):
                await call
            await asyncio.wait(others)

    run(main)


@pytest.mark.parametrize("supplied", [False, True], ids=["own", "supplied"])
def test_timer_of_a_closed_client(
    supplied: bool,  # noqa: FBT001 - a parameter of the test
    raw: Start,
) -> None:
    """Once a closed client's last call has ended, no timer is left."""
    server = raw(never_respond)

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        async with aiohttp.ClientSession() as session:
            given = session if supplied else None
            client = AsyncCreduseClient(KEY, given, base_url=server.base_url)
            call = asyncio.create_task(client.add(USER, 5, timeout=5))
            await until(lambda: server.received)
            await client.aclose()
            await asyncio.wait([call])
            timers = [it for it in loop._scheduled if not it.cancelled()]  # noqa: SLF001 - there is no public list
            assert not [it for it in timers if "Deadlines" in repr(it)]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("owner", "name"), [(asyncio.Timeout, "reschedule"), (Deadlines, "_check")]
)
def test_signal_while_deadlines_are_checked(
    owner: type, name: str, run: Run, raw: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls end in time even if a signal handler has raised in the timer's function.

    If it raises before the function begins, they end when the next call begins.
    """
    server = raw(never_respond)
    complaints: list[object] = []
    monkeypatch.setattr(owner, name, raising_once(getattr(owner, name)))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context["exception"]))
        async with AsyncCreduseClient(KEY, base_url=server.base_url) as client:
            calls = [asyncio.create_task(client.add(USER, 5, timeout=2)) for _ in range(2)]
            await until(lambda: complaints)
            other = asyncio.create_task(client.add(USER, 5))
            async with asyncio.timeout(20):
                ended = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(it) for it in ended] == [CreduseTimeoutError] * 2
            assert not other.done()
            other.cancel()
            await asyncio.wait([other])

    run(main)
    assert [type(it) for it in complaints] == [SignalError]
