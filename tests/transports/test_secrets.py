"""However a call ends, nothing that a tool prints of it shows the API key."""

import asyncio
import signal
import traceback
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import trio

from creduse import CreduseClient, CreduseError
from creduse_core import AsyncCoreClient, CreduseProtocol
from creduse_sandbox import FAULTS, CannedResponse, SandboxServer, Shaped
from tests.common import ONCE, USER
from tests.transports.kinds import Async, Authority, Sync

KEY = "sk-secret+0123456789/abcdef"
TESTS = str(Path(__file__).parents[1])

# What error trackers leave out by its name: Sentry's default list, as far as it concerns us.
SCRUBBED = {
    *("password", "passwd", "secret", "api_key", "apikey", "auth", "credentials", "token"),
    *("authorization", "x_api_key", "privatekey", "private_key", "cookie"),
}


def chained(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, its causes and contexts, and the members of groups."""
    seen: list[BaseException] = []
    found = [error]
    while found:
        link = found.pop()
        if link is not None and not any(link is other for other in seen):
            seen.append(link)
            yield link
            found += [link.__cause__, link.__context__, *getattr(link, "exceptions", ())]


def frames(tb: TracebackType | None) -> Iterator[Any]:
    while tb is not None:
        yield tb.tb_frame
        tb = tb.tb_next


def shown(error: BaseException) -> Iterator[str]:
    """Yield what is printed of an error: its text, its chain, and the variables of all frames."""
    yield "".join(traceback.format_exception(error))
    for link in chained(error):
        yield f"{link!r} {link.args!r} {getattr(link, '__dict__', None)!r}"
        for frame in frames(link.__traceback__):
            if not frame.f_code.co_filename.startswith(TESTS):
                for name, value in frame.f_locals.items():
                    if name.lower() not in SCRUBBED:
                        yield f"{frame.f_code.co_filename}:{frame.f_lineno} {name} = {value!r}"


def check(error: BaseException) -> None:
    assert [text for text in shown(error) if "0123456789" in text] == []


def garbage(head: bytes, body: bytes) -> tuple[bytes, ...]:
    return (b"HTTP/1.1 " + KEY.encode() + b"\r\n" + head + body,)


def bad_chunk(_head: bytes, _body: bytes) -> tuple[bytes, ...]:
    return (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + KEY.encode() + b"\r\n",)


ECHO = f'{{"error_code": "{KEY}", "message": "bad key Bearer {KEY}"}}'.encode()
ECHOED = f'{{"end_user_id": "{KEY}", "amount": 5, "x": ["{KEY}"]}}'.encode()
MET: dict[str, Any] = {
    **{name: FAULTS[name] for name in ("apply-then-reset", "request-then-close", "not-http")},
    **{name: FAULTS[name] for name in ("request-then-hang", "cut-body-then-hang", "503", "302")},
    "a refusal that repeats the key": CannedResponse(401, (("X-Key", KEY),), ECHO),
    "a failure that repeats the key": CannedResponse(503, (("X-Key", KEY),), ECHO),
    "a result that repeats the key": CannedResponse(200, (("X-Key", KEY),), ECHOED),
    "a head that repeats the key": Shaped(garbage),
    "a chunk that repeats the key": Shaped(bad_chunk),
}


def make(server: SandboxServer, timeout: float = 0.5) -> CreduseProtocol:
    return CreduseProtocol(KEY, server.base_url, retry=ONCE, timeout=timeout)


@pytest.mark.parametrize("name", MET)
def test_failures(sync_kind: Sync, name: str, authority: Authority, server: SandboxServer) -> None:
    """A failed call shows no key."""
    server.inject(MET[name])
    with sync_kind.open(make(server), authority.trust) as client:
        with pytest.raises(CreduseError) as caught:
            client.add(USER, 5)
        check(caught.value)


@pytest.mark.parametrize("name", MET)
def test_async_failures(
    async_kind: Async, name: str, authority: Authority, server: SandboxServer
) -> None:
    """A failed call on an event loop shows no key."""

    async def main() -> None:
        async with async_kind.connect(authority.trust)(make(server)) as client:
            with pytest.raises(CreduseError) as caught:
                await client.add(USER, 5)
            check(caught.value)

    server.inject(MET[name])
    async_kind.run(main)


@pytest.mark.parametrize("name", ["connect-then-hang", "request-then-hang", "cut-body-then-hang"])
def test_cancellation(
    async_kind: Async, name: str, authority: Authority, server: SandboxServer
) -> None:
    """The caller's timeout or cancellation shows no key."""
    caught: list[BaseException] = []

    async def call(client: AsyncCoreClient) -> None:
        try:
            await client.add(USER, 5)
        except BaseException as error:
            caught.append(error)
            raise

    async def main() -> None:
        async with async_kind.connect(authority.trust)(make(server, 20.0)) as client:
            with pytest.raises((trio.TooSlowError, TimeoutError)) as slow:
                await limited(async_kind.loop, call(client))
            check(slow.value)
            for error in caught:
                check(error)

    server.inject(FAULTS[name])
    async_kind.run(main)
    assert caught


async def limited(loop: str, call: Coroutine[Any, Any, None]) -> None:
    """Run a call with a short timeout of the caller's."""
    if loop == "trio":
        with trio.fail_after(0.2):
            await call
    async with asyncio.timeout(0.2):
        await call


WRONG: dict[str, Callable[[CreduseClient], object]] = {
    "user": lambda client: client.add("nobody", 5),
    "amount": lambda client: client.subtract(USER, 5.5),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the wrong type
    "days": lambda client: client.add(USER, 5, -1),
    "timeout": lambda client: client.get_balance(USER, timeout=-1),
    "idempotency key": lambda client: client.stop_cycle(USER, idempotency_key="key"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_argument(name: str) -> None:
    """A wrong argument shows no key. The other clients' methods are those of the core."""
    with CreduseClient(KEY) as client, pytest.raises((TypeError, ValueError)) as caught:
        WRONG[name](client)
    check(caught.value)


def test_interrupted(sync_kind: Sync, authority: Authority, server: SandboxServer) -> None:
    """Ctrl-C during a call shows no key."""
    if not sync_kind.name.startswith("httpx"):
        pytest.skip("an example leaves its library's frames on what interrupts it")
    with sync_kind.open(make(server), authority.trust) as client:
        for seconds in (0.05, 0.1):
            server.inject(FAULTS["request-then-hang"])
            with pytest.raises(KeyboardInterrupt) as caught, interrupting(seconds):
                client.add(USER, 5, timeout=20.0)
            check(caught.value)


class interrupting:  # noqa: N801 - a context manager
    """Raise KeyboardInterrupt in the main thread after some seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        self._before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)
