"""Asynchronous transports that break a promise. The kit must report each."""

import asyncio
import inspect
from contextlib import suppress
from typing import Any, Final

import h11
import trio

from creduse_core import AsyncCoreClient, CreduseProtocol, Delivery, Response, Send
from creduse_sandbox import Sandbox
from creduse_sandbox.conformance import AsyncConnect
from creduse_sandbox.conformance.scenarios import API_KEY
from tests.sandbox.conformance_kit.broken import alter_failure, failure
from tests.sandbox.conformance_kit.transports import AsyncGood, AsyncLink, Progress, Result


def async_over(transport: type[AsyncGood]) -> AsyncConnect:
    """Return a function that makes a client over this transport."""

    def connect(protocol: CreduseProtocol) -> AsyncCoreClient:
        return AsyncCoreClient(protocol, transport(protocol))

    return connect


class AsyncIgnoresSurplus(AsyncGood):
    """Reuses a connection on which a surplus has arrived."""

    def is_clean(self, link: AsyncLink) -> bool:
        return link.http.our_state is link.http.their_state is h11.DONE


class AsyncReportsNotSent(AsyncGood):
    """Reports each failure as not sent."""

    async def send(self, send: Send) -> Result:
        return alter_failure(await super().send(send), delivery=Delivery.NOT_SENT)


async def give_way(number: int) -> None:
    """Let other tasks run so many times."""
    for _ in range(number):
        if trio.lowlevel.in_trio_task():
            await trio.lowlevel.checkpoint()
        else:
            await asyncio.sleep(0)


class SendsLate(AsyncGood):
    """Sends a little later, in a task that a cancellation does not reach."""

    async def send(self, send: Send) -> Result:
        responses: list[Result] = []
        ready = trio.Event() if trio.lowlevel.in_trio_task() else asyncio.Event()

        async def late() -> None:
            await give_way(5)
            responses.append(await super(SendsLate, self).send(send))
            ready.set()
            self.count -= 1

        self.count += 1
        if trio.lowlevel.in_trio_task():
            trio.lowlevel.spawn_system_task(late)
        else:
            self.task = asyncio.create_task(
                late()
            )  # a task that nothing refers to may be collected
        await ready.wait()
        return responses[0]

    async def aclose(self) -> None:
        """Wait for the tasks."""
        while self.count:
            await give_way(1)
        await super().aclose()


class AsyncLosesItsPlace(AsyncGood):
    """Has one place in its pool, and loses it when it is cancelled or interrupted."""

    async def send(self, send: Send) -> Result:
        if self.count:
            return failure(Delivery.NOT_SENT)
        self.count = 1
        response = await super().send(send)
        self.count = 0
        return response


class SwallowsCancellation(AsyncGood):
    """Reports a cancellation as a failure."""

    async def send(self, send: Send) -> Result:
        try:
            return await super().send(send)
        except (asyncio.CancelledError, trio.Cancelled):
            return failure(Delivery.MAYBE_SENT)


class AsyncFabricatesEveryThird(AsyncGood):
    """Returns every third response without sending anything."""

    async def send(self, send: Send) -> Result:
        self.count = self.count + 1 if b'"amount":1,' in send.request.body else 0
        if self.count < 3:
            return await super().send(send)
        return Sandbox(api_key=API_KEY).handle(send.request)


class AsyncCannotSleep(AsyncGood):
    """Raises instead of waiting."""

    async def sleep(self, seconds: float) -> None:
        raise ZeroDivisionError(seconds)


class InspectsItsTask(AsyncGood):
    """Inspects the coroutine of its task, as anyio does. It breaks no promise."""

    async def send(self, send: Send) -> Result:
        task = asyncio.current_task()
        assert task is not None
        coroutine: Any = task.get_coro()
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_RUNNING
        return await super().send(send)


class AsyncOneAtATime(AsyncGood):
    """Fails while another call is in flight."""

    async def send(self, send: Send) -> Result:
        if self.active:
            return failure(Delivery.NOT_SENT)
        return await super().send(send)


class AsyncLetsCallsGoOn(AsyncGood):
    """Sends after it was closed, and does not wait for calls in flight."""

    def check(self) -> None:
        pass

    async def aclose(self) -> None:
        await self.close_idle()


class AsyncChecksOnce(AsyncGood):
    """Checks before connecting whether it is closed, and not again."""

    async def exchange(self, link: AsyncLink, send: Send, progress: Progress) -> Response:
        closed, self.closed = self.closed, False
        try:
            return await super().exchange(link, send, progress)
        finally:
            self.closed = closed

    async def aclose(self) -> None:
        self.closed = True
        await self.close_idle()


ASYNC_LEFT_OPEN: Final[list[AsyncGood]] = []


class AsyncLeavesConnectionsOpen(AsyncGood):
    """Leaves its connections open when it is closed. The test closes them."""

    async def aclose(self) -> None:
        self.closed = True
        ASYNC_LEFT_OPEN.append(self)


class CrashesTrio(AsyncGood):
    """Crashes a system task of trio when it is interrupted."""

    async def send(self, send: Send) -> Result:
        try:
            return await super().send(send)
        except KeyboardInterrupt:
            trio.lowlevel.spawn_system_task(self.fail)
            raise

    async def fail(self) -> None:
        raise ZeroDivisionError


class HangsWhenInterrupted(AsyncGood):
    """Hangs when it is interrupted."""

    async def send(self, send: Send) -> Result:
        try:
            return await super().send(send)
        except KeyboardInterrupt:
            await trio.sleep_forever()
            raise


class AsyncSkipsTime(AsyncGood):
    """Puts its clock forward instead of waiting."""

    skipped = 0.0

    async def sleep(self, seconds: float) -> None:
        self.skipped += seconds
        await give_way(1)

    def now(self) -> float:
        return super().now() + self.skipped


class SwallowsCancellationAsleep(AsyncGood):
    """Wakes up when it is cancelled while it sleeps, and goes on."""

    async def sleep(self, seconds: float) -> None:
        with suppress(asyncio.CancelledError):
            await super().sleep(seconds)


class AsyncFabricates(AsyncGood):
    """Once it is closed, returns responses without sending anything."""

    async def send(self, send: Send) -> Result:
        if not self.closed:
            return await super().send(send)
        return Sandbox(api_key=API_KEY).handle(send.request)
