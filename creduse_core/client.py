"""The clients: the five methods, and the one loop that drives a call over a transport.

A transport is the only thing that knows how to send and how to wait. The two clients are written
side by side, and one script of events in the tests drives both.
"""

import functools
import inspect
import math
from collections.abc import Callable, Container
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from uuid import UUID

from .call import Call, Done, Send, State, Wait
from .errors import CreduseError, LocalProtocolError
from .messages import (
    Delivery,
    Failure,
    ForeignError,
    Response,
    forget_frames,
    is_foreign,
)
from .models import ActiveBalance, Attempt, CreditsAdded, CreditsSubtracted, Cycle
from .protocol import CreduseProtocol

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")


class Transport(Protocol):
    """What a synchronous HTTP library must be made to do; see `CoreClient`."""

    def send(self, send: Send) -> Response | Failure:
        """Send ``send.request`` once, and say what came of it.

        Report `Delivery.NOT_SENT` only if not one byte of the request can have left. Follow no
        redirect, add no credentials or cookies, never send by yourself a second time. Stop
        reading a body that grows larger than ``MAX_BODY_SIZE`` and give what there is. Do not use
        a connection again if ``send.belongs(response)`` is false. Raise nothing but what
        cancels the caller, and `ForeignError`: any other exception, and any other value, counts as
        maybe sent and not transient. But where a transport has an attribute ``libraries``, the
        top-level names of modules, what `is_foreign` to those goes on as it is.
        """
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    def now(self) -> float:
        """Give the time in seconds on a clock that does not go back."""
        ...

    def close(self) -> None:
        """Close what the transport has opened, and nothing that it was given."""
        ...


class AsyncTransport(Protocol):
    """What an asynchronous HTTP library must be made to do; as `Transport`.

    Once cancellation has reached the caller of ``send``, no byte of the request may be first sent.
    """

    async def send(self, send: Send) -> Response | Failure:
        """Send ``send.request`` once, and say what came of it; see `Transport.send`."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    def now(self) -> float:
        """Give the time in seconds on a clock that does not go back."""
        ...

    async def aclose(self) -> None:
        """Close what the transport has opened, and nothing that it was given."""
        ...


_NEVER_RUN: Final = (
    inspect.iscoroutinefunction,
    inspect.isgeneratorfunction,
    inspect.isasyncgenfunction,
)
"""Functions of which a call runs not one line."""


def _check_listener(value: object) -> None:
    function = value
    while isinstance(function, functools.partial):
        function = function.func
    called = getattr(function, "__call__", None)  # noqa: B004 - it is looked at, too
    if value is not None and (
        called is None or any(never(it) for never in _NEVER_RUN for it in (function, called))
    ):
        raise TypeError("on_attempt must be a plain function that takes an Attempt, or None")


_RECEIVED: Final = (Response, Failure)
_READERS: Final = frozenset({"creduse_core", "enum", "json", "re", "urllib", "uuid"})
"""Whose code reads a response."""

_DEBUG: Final = 10  # logging.DEBUG, which is not there yet


def _no_jitter() -> float:
    return 1.0


class _Base:
    """What both clients share: everything but the sending and the waiting."""

    def __init__(
        self,
        protocol: CreduseProtocol,
        *,
        on_attempt: Callable[[Attempt], object] | None = None,
        jitter: Callable[[], float] = _no_jitter,
    ) -> None:
        _check_listener(on_attempt)
        # Here rather than above, so that importing the core stays cheap.
        import logging  # noqa: PLC0415

        self._protocol = protocol
        self._prefix = f"{protocol.base_url}/"
        self._on_attempt = on_attempt
        self._jitter = jitter
        self._logger = logging.getLogger("creduse")

    def __repr__(self) -> str:
        protocol: CreduseProtocol | None = getattr(self, "_protocol", None)
        # Tools show the variables of an __init__ that raised, too.
        where = "half made" if protocol is None else protocol.base_url
        return f"<{type(self).__name__} {where}>"

    @property
    def protocol(self) -> CreduseProtocol:
        """Makes the calls for ``run``."""
        return self._protocol

    def _start(self, call: Call[Any], now: float) -> Send:
        # The transport was made for one host: what it trusts and which proxy it takes, too.
        if not call.request.url.startswith(self._prefix):
            raise ValueError(
                f"the call is for {call.request.url}, but the client for {self._protocol.base_url}"
            )
        return call.start(now)

    def _receive(self, call: Call[T], received: Response | Failure, now: float) -> Done[T] | Wait:
        """Tell a call what a transport has returned, and then everybody else."""
        try:
            if isinstance(received, Failure):
                return call.receive_failure(received, now, self._draw())
            try:
                # A whole 2xx response is never followed by a wait.
                jitter = 1.0 if 200 <= received.status < 300 else self._draw()
                return call.receive_response(received, now, jitter)
            except (CreduseError, LocalProtocolError):
                raise
            except Exception as error:
                # Its parts are not of their types; or a signal handler has raised.
                if call.state is not State.IN_FLIGHT or is_foreign(error, _READERS):
                    raise
                failure = _escaped(error)
            return call.receive_failure(failure, now, self._draw())
        finally:
            if call.state is not State.IN_FLIGHT:
                self._report(call)

    def _abandon(self, call: Call[Any], now: Callable[[], float]) -> None:
        """End a call that the caller left, unless it has ended by itself."""
        if call.state.live:
            sent = call.state is State.IN_FLIGHT
            try:
                moment = now()
            except Exception:  # noqa: BLE001 - the clock itself may be what raised
                moment = math.nan
            call.abandon(moment)
            if sent:
                self._report(call)

    # Foreign code, which must not change what becomes of a call: the credits have moved or not.

    def _draw(self) -> float:
        try:
            jitter = self._jitter()
            if 0.0 <= jitter <= 1.0:
                return float(jitter)
            raise ValueError(f"jitter returned {jitter!r}, not a number from 0 to 1")  # noqa: TRY301 - told of below
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told of
            self._complain("jitter failed; the wait is not shortened", error)
            return 1.0

    def _report(self, call: Call[Any]) -> None:
        """Tell the log and the listener of the last attempt."""
        try:
            if self._logger.isEnabledFor(_DEBUG):
                self._log(call.attempts[-1])
        except Exception as error:  # noqa: BLE001 - a filter or a handler, which is told of
            self._complain("logging raised; the call goes on", error)
        if self._on_attempt is None:
            return
        try:
            returned = self._on_attempt(call.attempts[-1])
            if inspect.iscoroutine(returned):
                returned.close()
                raise TypeError("on_attempt returned a coroutine, which nobody awaits")  # noqa: TRY301 - told of below
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told of
            self._complain("on_attempt raised; the call goes on", error)

    def _log(self, attempt: Attempt) -> None:
        self._logger.log(
            _DEBUG,
            "%s %s attempt %d: %s, %s",
            attempt.method,
            attempt.path,
            attempt.number,
            attempt.event if attempt.status is None else attempt.status,
            attempt.outcome,
            extra={"attempt": attempt},
        )

    def _complain(self, what: str, error: Exception) -> None:
        """Log an exception, if logging can."""
        with suppress(Exception):
            self._logger.error(what, exc_info=error)


def _checked(returned: object) -> Response | Failure:
    """Return what a transport has returned, or a failure if that is neither of the two."""
    if isinstance(returned, _RECEIVED):
        return returned
    kind = "None" if returned is None else f"a {type(returned).__name__}"
    return _escaped(TypeError(f"the transport returned {kind}, not a Response or a Failure"))


def _escaped(error: Exception, transport: object = None) -> Failure:
    """Report what a transport should not have raised: all that is sure is that nothing is.

    A transport of ours has ``libraries``, and makes a `Failure` of what those raise itself. So any
    other exception is a signal handler's, say, and goes on.
    """
    libraries: Container[str] | None = getattr(transport, "libraries", None)
    if libraries is not None and is_foreign(error, libraries):
        raise ForeignError(error)
    # Not at the top: it reads source, which only who mends a transport wants.
    from traceback import format_tb  # noqa: PLC0415

    if error.__traceback__ is not None:
        # As text, since the transport's frames may hold the API key.
        with suppress(Exception):  # of its own making, which may refuse a note
            error.add_note("".join(format_tb(error.__traceback__)))
    forget_frames(error)
    return Failure(Delivery.MAYBE_SENT, error, transient=False)


class CoreClient(_Base):
    """A synchronous client over a transport of your own.

    - ``protocol``: makes the calls.
    - ``transport``: four methods, see `Transport`.
    - ``on_attempt``: called with an `Attempt` after each. If it raises, that is logged.
    - ``jitter``: returns a number from 0 to 1 that shortens a wait; pass ``random.Random().random``,
      so that many clients do not come back all at once. If it raises, that is logged.

    Each method raises ``TypeError`` or ``ValueError`` for a wrong argument, before anything is
    sent, and else a `CreduseError`, whose ``outcome`` says whether credits moved.
    Use it with ``with``, or ``close()`` it.
    """

    def __init__(
        self,
        protocol: CreduseProtocol,
        transport: Transport,
        *,
        on_attempt: Callable[[Attempt], object] | None = None,
        jitter: Callable[[], float] = _no_jitter,
    ) -> None:
        super().__init__(protocol, on_attempt=on_attempt, jitter=jitter)
        self._transport = transport

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that the client has opened, but no client that it was given."""
        self._transport.close()

    def run(self, call: Call[T]) -> T:
        """Drive a call to its end: give its result, or raise its error.

        For ``call = client.protocol.subtract(…)``, to read ``call.response`` and
        ``call.attempts`` afterwards. A call for another ``base_url`` is a ``ValueError``.
        """
        transport = self._transport
        action: Send | Wait | Done[T] = self._start(call, transport.now())
        try:
            while not isinstance(action, Done):
                if isinstance(action, Wait):
                    transport.sleep(action.seconds)
                    action = call.wake(transport.now())
                else:
                    try:
                        received = _checked(transport.send(action))
                    except Exception as error:  # noqa: BLE001 - a fault in somebody's transport
                        received = _escaped(error, transport)
                    action = self._receive(call, received, transport.now())
        except ForeignError as foreign:
            self._abandon(call, transport.now)
            forget_frames(foreign.error)
            raise foreign.error from foreign.error.__cause__
        except BaseException:
            self._abandon(call, transport.now)
            raise
        return action.result

    def add(
        self,
        end_user_id: UUID | str,
        amount: int,
        validity_days: int | None = 31,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> CreditsAdded:
        """Give an end user credits, once.

        They can be spent until the end of the day ``validity_days`` from now (``None``: the
        service's own 31). ``timeout``: seconds for the whole call, else the client's.
        ``idempotency_key``: needs ``RetryPolicy(server_replays=True)``.
        """
        return self.run(
            self._protocol.add(
                end_user_id,
                amount,
                validity_days,
                timeout=timeout,
                idempotency_key=idempotency_key,
            )
        )

    def subtract(
        self,
        end_user_id: UUID | str,
        amount: int,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> CreditsSubtracted:
        """Take credits from an end user: all of ``amount``, or none.

        Raises `InsufficientFundsError` if there are fewer. ``timeout``: seconds for the whole
        call, else the client's. ``idempotency_key``: needs ``RetryPolicy(server_replays=True)``.
        """
        return self.run(
            self._protocol.subtract(
                end_user_id, amount, timeout=timeout, idempotency_key=idempotency_key
            )
        )

    def start_cycle(
        self,
        end_user_id: UUID | str,
        amount: int,
        validity_days: int | None = 31,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Cycle:
        """Give an end user ``amount`` credits now and anew every ``validity_days``.

        What is left at the end of a span is lost. Raises `ActiveCycleExistsError` if a cycle is
        running. ``timeout``: seconds for the whole call, else the client's.
        ``idempotency_key``: needs ``RetryPolicy(server_replays=True)``.
        """
        return self.run(
            self._protocol.start_cycle(
                end_user_id,
                amount,
                validity_days,
                timeout=timeout,
                idempotency_key=idempotency_key,
            )
        )

    def stop_cycle(
        self,
        end_user_id: UUID | str,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Cycle:
        """Do not renew an end user's cycle; its credits can be spent until its end.

        Raises `NoActiveCycleError` if there is none. ``timeout``: seconds for the whole call,
        else the client's. ``idempotency_key``: needs ``RetryPolicy(server_replays=True)``.
        """
        return self.run(
            self._protocol.stop_cycle(end_user_id, timeout=timeout, idempotency_key=idempotency_key)
        )

    def get_balance(
        self, end_user_id: UUID | str, *, timeout: float | None = None
    ) -> ActiveBalance:
        """Read what an end user can spend now, in all and cycle by cycle.

        Raises `UserDoesNotExistError` for a user the service does not know. ``timeout``: seconds
        for the whole call, else the client's.
        """
        return self.run(self._protocol.get_balance(end_user_id, timeout=timeout))

    def get_active_balance(
        self, end_user_id: UUID | str, *, timeout: float | None = None
    ) -> ActiveBalance:
        """Do the same as ``get_balance``: the API's documentation has both names."""
        return self.get_balance(end_user_id, timeout=timeout)


class AsyncCoreClient(_Base):
    """An asynchronous client over a transport of your own.

    - ``protocol``: makes the calls.
    - ``transport``: four methods, see `AsyncTransport`.
    - ``on_attempt``: called with an `Attempt` after each. If it raises, that is logged.
    - ``jitter``: returns a number from 0 to 1 that shortens a wait; pass ``random.Random().random``,
      so that many clients do not come back all at once. If it raises, that is logged.

    Each method raises ``TypeError`` or ``ValueError`` for a wrong argument, before anything is
    sent, and else a `CreduseError`, whose ``outcome`` says whether credits moved.
    Use it with ``async with``, or ``await aclose()`` it.
    """

    def __init__(
        self,
        protocol: CreduseProtocol,
        transport: AsyncTransport,
        *,
        on_attempt: Callable[[Attempt], object] | None = None,
        jitter: Callable[[], float] = _no_jitter,
    ) -> None:
        super().__init__(protocol, on_attempt=on_attempt, jitter=jitter)
        self._transport = transport

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections that the client has opened, but no client that it was given."""
        await self._transport.aclose()

    async def run(self, call: Call[T]) -> T:
        """Drive a call to its end: give its result, or raise its error.

        For ``call = client.protocol.subtract(…)``, to read ``call.response`` and
        ``call.attempts`` afterwards. A call for another ``base_url`` is a ``ValueError``.
        """
        transport = self._transport
        action: Send | Wait | Done[T] = self._start(call, transport.now())
        try:
            while not isinstance(action, Done):
                if isinstance(action, Wait):
                    await transport.sleep(action.seconds)
                    action = call.wake(transport.now())
                else:
                    try:
                        received = _checked(await transport.send(action))
                    except Exception as error:  # noqa: BLE001 - a fault in somebody's transport
                        received = _escaped(error, transport)
                    action = self._receive(call, received, transport.now())
        except ForeignError as foreign:
            self._abandon(call, transport.now)
            forget_frames(foreign.error)
            raise foreign.error from foreign.error.__cause__
        except BaseException:
            self._abandon(call, transport.now)
            raise
        return action.result

    async def add(
        self,
        end_user_id: UUID | str,
        amount: int,
        validity_days: int | None = 31,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> CreditsAdded:
        """Give an end user credits, once.

        They can be spent until the end of the day ``validity_days`` from now (``None``: the
        service's own 31). ``timeout``: seconds for the whole call, else the client's.
        ``idempotency_key``: needs ``RetryPolicy(server_replays=True)``.
        """
        return await self.run(
            self._protocol.add(
                end_user_id,
                amount,
                validity_days,
                timeout=timeout,
                idempotency_key=idempotency_key,
            )
        )

    async def subtract(
        self,
        end_user_id: UUID | str,
        amount: int,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> CreditsSubtracted:
        """Take credits from an end user: all of ``amount``, or none.

        Raises `InsufficientFundsError` if there are fewer. ``timeout``: seconds for the whole
        call, else the client's. ``idempotency_key``: needs ``RetryPolicy(server_replays=True)``.
        """
        return await self.run(
            self._protocol.subtract(
                end_user_id, amount, timeout=timeout, idempotency_key=idempotency_key
            )
        )

    async def start_cycle(
        self,
        end_user_id: UUID | str,
        amount: int,
        validity_days: int | None = 31,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Cycle:
        """Give an end user ``amount`` credits now and anew every ``validity_days``.

        What is left at the end of a span is lost. Raises `ActiveCycleExistsError` if a cycle is
        running. ``timeout``: seconds for the whole call, else the client's.
        ``idempotency_key``: needs ``RetryPolicy(server_replays=True)``.
        """
        return await self.run(
            self._protocol.start_cycle(
                end_user_id,
                amount,
                validity_days,
                timeout=timeout,
                idempotency_key=idempotency_key,
            )
        )

    async def stop_cycle(
        self,
        end_user_id: UUID | str,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Cycle:
        """Do not renew an end user's cycle; its credits can be spent until its end.

        Raises `NoActiveCycleError` if there is none. ``timeout``: seconds for the whole call,
        else the client's. ``idempotency_key``: needs ``RetryPolicy(server_replays=True)``.
        """
        return await self.run(
            self._protocol.stop_cycle(end_user_id, timeout=timeout, idempotency_key=idempotency_key)
        )

    async def get_balance(
        self, end_user_id: UUID | str, *, timeout: float | None = None
    ) -> ActiveBalance:
        """Read what an end user can spend now, in all and cycle by cycle.

        Raises `UserDoesNotExistError` for a user the service does not know. ``timeout``: seconds
        for the whole call, else the client's.
        """
        return await self.run(self._protocol.get_balance(end_user_id, timeout=timeout))

    async def get_active_balance(
        self, end_user_id: UUID | str, *, timeout: float | None = None
    ) -> ActiveBalance:
        """Do the same as ``get_balance``: the API's documentation has both names."""
        return await self.get_balance(end_user_id, timeout=timeout)
