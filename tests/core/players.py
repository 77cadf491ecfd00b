"""Both clients of the core over a script. A test supplies the script's events.

The transport that plays them is all memory, and its clock advances by itself: a second for each request,
and the length of each sleep.
"""

import types
from collections.abc import Coroutine, Generator
from typing import Any, Protocol, TypeVar

from creduse_core import (
    AsyncCoreClient,
    Call,
    CoreClient,
    CreduseProtocol,
    Failure,
    Response,
    RetryPolicy,
    Send,
)

T = TypeVar("T")
PROTOCOL = CreduseProtocol("sk-live-0123456789", retry=RetryPolicy(server_replays=True))


class Script:
    """The events of a transport, and a record of what it was asked to do."""

    def __init__(self, events: tuple[object, ...], oversleep: float, asleep: object) -> None:
        self.events = list(events)
        self.oversleep = oversleep
        self.asleep = asleep
        self.clock = 100.0
        self.sent: list[Send] = []
        self.slept: list[float] = []
        self.closed = 0

    def next_event(self, send: Send) -> Any:
        """Return the next event, or raise it."""
        self.sent.append(send)
        self.clock += 1.0
        event = self.events.pop(0)
        if isinstance(event, BaseException):
            raise event
        return event() if isinstance(event, types.FunctionType) else event

    def rest(self, seconds: float) -> None:
        """Wait, or be woken by an exception."""
        self.slept.append(seconds)
        self.clock += seconds + self.oversleep
        if isinstance(self.asleep, BaseException):
            raise self.asleep


class SyncTransport:
    """A transport that plays a script."""

    libraries: list[str]
    """Missing, unless a test sets it."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def send(self, send: Send) -> Response | Failure:
        """Play an event."""
        next_event: Response | Failure = self.script.next_event(send)
        return next_event

    def sleep(self, seconds: float) -> None:
        """Let the script's clock go on."""
        self.script.rest(seconds)

    def now(self) -> float:
        """Return the script's time."""
        return self.script.clock

    def close(self) -> None:
        """Count."""
        self.script.closed += 1


@types.coroutine
def pause() -> Generator[None, None, None]:
    """Wait as an event loop's own primitives do, once."""
    yield


class AsyncTransport:
    """A transport that plays a script, and lets others run at every step."""

    libraries: list[str]
    """Missing, unless a test sets it."""

    def __init__(self, script: Script) -> None:
        self.script = script

    async def send(self, send: Send) -> Response | Failure:
        """Play an event."""
        await pause()
        next_event: Response | Failure = self.script.next_event(send)
        return next_event

    async def sleep(self, seconds: float) -> None:
        """Let the script's clock go on."""
        await pause()
        self.script.rest(seconds)

    def now(self) -> float:
        """Return the script's time."""
        return self.script.clock

    async def aclose(self) -> None:
        """Count."""
        await pause()
        self.script.closed += 1


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine without an event loop."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            result: T = stop.value
            return result


class Player:
    """A client that plays a script."""

    def __init__(
        self, transport: SyncTransport | AsyncTransport, client: CoreClient | AsyncCoreClient
    ) -> None:
        self.script = transport.script
        self.transport = transport
        self.client = client
        self.protocol = PROTOCOL

    def do(self, method: str, *arguments: object, **named: object) -> Any:
        """Call a method of the client, and wait for its result if the client is asynchronous."""
        if isinstance(self.client, CoreClient):
            return getattr(self.client, method)(*arguments, **named)
        method = "aclose" if method == "close" else method
        return drive(getattr(self.client, method)(*arguments, **named))

    def within(self, call: Call[T]) -> T:
        """Run a call inside of ``with`` or ``async with``."""
        if isinstance(self.client, AsyncCoreClient):
            return drive(self._within(self.client, call))
        with self.client as client:
            return client.run(call)

    async def _within(self, asynchronous: AsyncCoreClient, call: Call[T]) -> T:
        async with asynchronous as client:
            return await client.run(call)


class Play(Protocol):
    """Makes a client that plays a script, as the fixture ``play`` says."""

    def __call__(
        self, *events: object, oversleep: float = 0.0, asleep: object = None, **options: Any
    ) -> Player: ...
