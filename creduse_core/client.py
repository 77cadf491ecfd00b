"""The clients: the five methods, and the loop that drives a call over a transport.

They also report each call, and drain. How to send and how to wait does not belong here: only a
transport knows it.
"""

import math
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic, time  # noqa: TID251 - when a call began, and the clock of `Pace`
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from uuid import UUID

from . import environment
from .arguments import SHORT_TRACEBACK, ExtraHeaders, check_listener, check_seconds, check_type
from .call import Call, Done, Send, State, Wait
from .error_texts import DRAINED
from .errors import CreduseError, LocalProtocolError, UserDoesNotExistError
from .evidence import CLOCK_SKEW, Evidence, check_can_be_weighed, settled, unreadable, weigh
from .foreign import ForeignError, forget_frames, forget_handled, is_foreign, is_from_signal_handler
from .messages import Delivery, Failure, Proxy, RefusalError, Response
from .models import (
    ActiveBalance,
    Attempt,
    BalanceReading,
    CallRecord,
    CreditsAdded,
    CreditsSubtracted,
    Cycle,
    FinishedCall,
    Outcome,
)
from .pace import Pace
from .protocol import CreduseProtocol
from .retry import response_date, retry_after
from .secret import no_pickle

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")


class Transport(Protocol):
    """Sends requests over a synchronous HTTP library. Pass one to `CoreClient`."""

    def send(self, send: Send) -> Response | Failure:
        """Send ``send.request`` once, and return the response or the failure.

        - Return `Delivery.NOT_SENT` only if not one byte of the request can have left.
        - Do not follow redirects, add credentials or cookies, or send the request a second time.
        - Stop reading a body that is larger than ``MAX_BODY_SIZE``, and return what you have read.
        - Do not use the connection again if ``send.allows_reuse(response)`` is false.
        - Raise only exceptions that cancel the caller, and `ForeignError`. The client takes any
          other exception, and any other value, for a failure that is maybe sent and not transient.
          If the transport has an attribute ``libraries``, the top-level names of modules, then
          exceptions that are `is_foreign` to them propagate instead.

        If it has an attribute ``proxy``, a `Proxy`, then errors name that, and hide its password.
        """
        ...

    def sleep(self, seconds: float) -> None:
        """Wait for this time."""
        ...

    def now(self) -> float:
        """Return the time in seconds, on a clock that does not go back."""
        ...

    def close(self) -> None:
        """Close the connections that the transport has opened, and nothing that was supplied."""
        ...


class AsyncTransport(Protocol):
    """Sends requests over an asynchronous HTTP library. Pass one to `AsyncCoreClient`.

    The same rules as for `Transport` hold. Once a cancellation has reached the caller of ``send``,
    the transport must not begin to send the request.
    """

    async def send(self, send: Send) -> Response | Failure:
        """Send ``send.request`` once, and return the response or the failure. See `Transport.send`."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for this time."""
        ...

    def now(self) -> float:
        """Return the time in seconds, on a clock that does not go back."""
        ...

    async def aclose(self) -> None:
        """Close the connections that the transport has opened, and nothing that was supplied."""
        ...


_RECEIVED: Final = (Response, Failure)
_DECODING_MODULES: Final = frozenset({"creduse_core", "enum", "json", "re", "urllib", "uuid"})
"""The modules that decode a response."""

_DEBUG: Final = 10  # logging.DEBUG; logging is imported later


_POLL: Final = 0.01
"""Seconds between two looks at the running calls, while a client drains."""


def _random() -> float:
    from random import SystemRandom  # noqa: PLC0415, TID251 - only a retry needs it

    # Unlike random.random, it ignores an app's seed, and differs after a fork.
    return SystemRandom().random()


class _ClientBase:
    """What both clients share: everything but sending and waiting."""

    def __init__(
        self,
        protocol: CreduseProtocol,
        *,
        on_attempt: Callable[[Attempt], object] | None = None,
        on_call: Callable[[FinishedCall], object] | None = None,
        jitter: Callable[[], float] = _random,
        pace: Pace | None = None,
    ) -> None:
        check_type("protocol", protocol, CreduseProtocol, 'CreduseProtocol("your-api-key")')
        check_listener("on_attempt", on_attempt, "an Attempt")
        check_listener("on_call", on_call, "a FinishedCall")
        if pace is not None:
            check_type("pace", pace, Pace, "Pace()")
        # Imported here to keep the import of the core fast.
        import logging  # noqa: PLC0415

        self._protocol = protocol
        self._prefix = f"{protocol.base_url}/"
        self._on_attempt = on_attempt
        self._on_call = on_call
        self._jitter = jitter
        self._running: dict[int, Call[Any]] = {}
        self._draining: dict[int, Call[Any]] | None = None
        """The calls that ran when a drain began. They may send until it is over, and no others."""
        self._is_drained = False
        self._pace = pace
        self._pace_offset: float | None = None
        self._proxy: Proxy | None = None
        self._logger = logging.getLogger("creduse")

    def __repr__(self) -> str:
        protocol: CreduseProtocol | None = getattr(self, "_protocol", None)
        # Tools also show an object whose __init__ has raised.
        where = "not initialized" if protocol is None else protocol.base_url
        return f"<{type(self).__name__} {where}>"

    __reduce__ = no_pickle

    @property
    def protocol(self) -> CreduseProtocol:
        """The protocol, which makes the calls for ``run``."""
        return self._protocol

    def _check_call(self, call: Call[Any]) -> None:
        check_type("call", call, Call, "client.protocol.add(…)")
        self._check_service(call)
        if call.state is not State.READY:
            call.start(0.0)  # raises

    def _check_service(self, call: Call[Any]) -> None:
        # The transport was made for one host, with its TLS settings and its proxy.
        if not call.request.url.startswith(self._prefix):
            raise ValueError(
                f"the call is for {call.request.url}, but the client for {self._protocol.base_url}"
            )

    def _start(
        self, call: Call[Any], now: Callable[[], float], before: BalanceReading | None
    ) -> tuple[Send | Wait, float]:
        """Start a call. Return what to do, and when it began on the transport's clock."""
        pace, began = self._pace, now()
        try:
            hold = 0.0 if pace is None else pace.hold(call, self._pace_time(began))
            action = call.start(began, hold, began_at=time(), before=before, proxy=self._proxy)
            self._running[id(call)] = call
        except LocalProtocolError:  # it runs already, and goes on
            if pace is not None:
                pace.leave(call)
            raise
        except BaseException as error:
            self._end(call, began, now, error)
            raise
        return action, began

    def _wake(self, call: Call[Any], now: float, woken_at: float) -> Send | Wait:
        """Go on with a call after a wait, which should end at ``woken_at``."""
        if self._pace is None:
            return call.wake(now)
        # The clock of a test's transport can stand still.
        return call.wake(now, self._pace.hold(call, self._pace_time(max(now, woken_at))))

    def _pace_time(self, now: float) -> float:
        """Return a transport's time on the clock that all clients of a pace share.

        Each run of trio has its own clock.
        """
        offset = self._pace_offset
        if offset is None:
            offset = monotonic() - now
            if now:  # outside of trio's run, it is 0
                self._pace_offset = offset
        return now + offset

    def _receive(self, call: Call[T], received: Response | Failure, now: float) -> Done[T] | Wait:
        """Report to the call what a transport has returned, then to the log and the listener."""
        try:
            if isinstance(received, Failure):
                return call.receive_failure(received, now, self._draw())
            try:
                # The client never waits after a whole 2xx response.
                jitter = 1.0 if 200 <= received.status < 300 else self._draw()
                return call.receive_response(received, now, jitter)
            except (CreduseError, LocalProtocolError):
                raise
            except Exception as error:
                # A part of the response has a wrong type, or a signal handler has raised.
                if call.state is not State.IN_FLIGHT or is_foreign(error, _DECODING_MODULES):
                    raise
                received = _escaped(error)
            return call.receive_failure(received, now, self._draw())
        finally:
            if call.state is not State.IN_FLIGHT:
                if self._pace is not None:
                    self._pace.ended(call, *_limit_of(received), self._pace_time(now))
                self._report(call)

    def _end(
        self, call: Call[Any], began: float, now: Callable[[], float], error: BaseException
    ) -> None:
        """End a call that raises. If it has not ended, its caller was cancelled."""
        try:
            if self._pace is not None:
                self._pace.leave(call)
            if call.state.live:
                sent = call.state is State.IN_FLIGHT
                call.abandon(_moment(now))
                if sent:
                    self._report(call)
        finally:
            self._running.pop(id(call), None)
            self._report_call(call, began, now, error)

    def _report_call(
        self, call: Call[Any], began: float, now: Callable[[], float], error: BaseException | None
    ) -> None:
        """Report a call that has ended to its listener."""
        if self._on_call is not None:
            seconds = _moment(now) - began
            self._notify("on_call", self._on_call, _finished(call, seconds, error))

    def _refusal(self, call: Call[Any]) -> Failure | None:
        """Return why a call may not send: the client drains, or tests block other machines."""
        if self._draining is None and environment.blocked is None:
            return None
        calls = self._draining
        if calls is not None and (self._is_drained or id(call) not in calls):
            why = RefusalError(DRAINED)
        elif environment.blocked is not None and not self._protocol.loopback:
            why = RefusalError(environment.blocked)
            # The app under test can catch the call's error. pytest shows the log of a test that fails.
            self._complain("a call was blocked", why)
        else:
            return None
        return Failure(Delivery.NOT_SENT, why, transient=False)

    # Draining.

    def _begin_drain(self, timeout: float) -> dict[int, Call[Any]]:
        """Refuse new calls, and return the running ones, which are to be copied before each use.

        A thread's call is either among these, or refused, since it is registered before it asks. A
        second drain waits for the same calls.
        """
        check_seconds("timeout", timeout)
        running = self._running  # read first: two threads can begin a drain at once
        if self._draining is None:
            # Calls that end from now on stay in the old dictionary.
            self._draining = running
            self._running = {}
        return self._draining

    # Evidence.

    def _records(
        self,
        call: Call[Any] | CallRecord | CreduseError,
        known: Iterable[Call[Any] | CallRecord | CreduseError],
        clock_skew: float,
        lists_empty_cycles: object,
    ) -> tuple[CallRecord, tuple[CallRecord, ...]]:
        """Return the records of a call to check and of other calls, or raise."""
        record = _record_of("call", call)
        if isinstance(call, Call):
            self._check_service(call)
        if record.outcome is Outcome.UNKNOWN:
            check_can_be_weighed(record)
        check_seconds("clock_skew", clock_skew)
        check_type("lists_empty_cycles", lists_empty_cycles, bool)
        try:
            others = list(known)
        except TypeError:
            raise TypeError(
                "known must be a list of Calls, or of errors that a client has raised, such as "
                f"[other], not {type(known).__name__}"
            ) from None
        return record, tuple(_record_of("known", other) for other in others if other is not call)

    # Other people's code. It must not change the result of a call, whose credits may have moved.

    def _draw(self) -> float:
        try:
            jitter = self._jitter()
            if 0.0 <= jitter <= 1.0:
                return float(jitter)
            raise ValueError(f"jitter returned {jitter!r}, not a number from 0 to 1")  # noqa: TRY301 - logged below
        except Exception as error:  # noqa: BLE001 - it is logged
            self._complain("jitter failed; the client waits for the whole delay", error)
            return 1.0

    def _report(self, call: Call[Any]) -> None:
        """Report the last attempt to the log and the listener."""
        try:
            if self._logger.isEnabledFor(_DEBUG):
                self._log(call.attempts[-1])
        except Exception as error:  # noqa: BLE001 - of a filter or a handler
            self._complain("logging raised; the call goes on", error)
        if self._on_attempt is not None:
            self._notify("on_attempt", self._on_attempt, call.attempts[-1])

    def _notify(self, name: str, listener: Callable[[T], object], news: T) -> None:
        try:
            returned = listener(news)
            if isinstance(returned, CoroutineType):
                returned.close()
                raise TypeError(f"{name} returned a coroutine, which the client does not await")  # noqa: TRY301 - logged below
        except Exception as error:  # noqa: BLE001 - it is logged
            self._complain(f"{name} raised; the call goes on", error)

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
        """Log an exception of other people's code, unless logging raises.

        If a signal handler raised it, which the code has nothing to do with, raise it instead.
        """
        if is_from_signal_handler(error):
            raise error
        try:
            forget_handled(error)  # such as the call's own error, which names the user
            self._logger.error(what, exc_info=error)
        except Exception as other:
            if is_from_signal_handler(other):
                raise


def _limit_of(received: Response | Failure) -> tuple[int | None, float | None]:
    """Return the status code of a response to the request, and its ``Retry-After`` if it limits."""
    response: Response | None
    if isinstance(received, Response):
        response = received
    else:
        response = received.response if received.delivery is Delivery.MAYBE_SENT else None
    if response is None:
        return None, None
    return response.status, retry_after(response) if response.status in {429, 503} else None


def _record_of(name: str, call: object) -> CallRecord:
    if isinstance(call, CallRecord):
        return call
    if isinstance(call, CreduseError) and call.call is not None:
        return call.call
    if not isinstance(call, Call):
        raise TypeError(
            f"{name} must be a Call, a CallRecord, or a CreduseError that a client has raised, "
            f"not {type(call).__name__}"
        )
    it = call.record
    if not call.state.live:
        return it
    # It can be applied before or after the balance is read.
    what = it.method, it.end_user_id, it.amount, it.validity_days
    return CallRecord(*what, Outcome.UNKNOWN, it.began_at, it.before)


def _proxy_of(transport: object) -> Proxy | None:
    proxy = getattr(transport, "proxy", None)
    if proxy is not None:
        check_type("transport.proxy", proxy, Proxy, "that of proxy_for")
    return proxy


def _now() -> datetime:
    return datetime.now(UTC)


def _reading_of(
    call: Call[ActiveBalance], asked_at: datetime, balance: ActiveBalance | None
) -> BalanceReading:
    """Return the reading that has just ended. ``balance``: ``None`` if the user is not known."""
    response = call.response
    return BalanceReading(
        balance, asked_at, _now(), None if response is None else response_date(response)
    )


def _moment(now: Callable[[], float]) -> float:
    try:
        return now()
    except Exception:  # noqa: BLE001 - perhaps the clock is why the call ends
        return math.nan


def _finished(call: Call[Any], seconds: float, error: BaseException | None) -> FinishedCall:
    it = call.record
    name = None if error is None else type(error).__name__
    return FinishedCall(
        it.method, it.end_user_id, it.amount, it.outcome, name, seconds, call.attempts
    )


def _is_any_live(calls: dict[int, Call[Any]]) -> bool:
    return any(call.state.live for call in calls.copy().values())


def _unclear(calls: dict[int, Call[Any]]) -> tuple[CallRecord, ...]:
    return tuple(it.record for it in calls.copy().values() if it.outcome is Outcome.UNKNOWN)


def _checked(returned: object) -> Response | Failure:
    """Return the response or failure of a transport, or a failure for anything else."""
    if isinstance(returned, _RECEIVED):
        return returned
    kind = "None" if returned is None else f"a {type(returned).__name__}"
    return _escaped(TypeError(f"the transport returned {kind}, not a Response or a Failure"))


def _escaped(error: Exception, transport: object = None) -> Failure:
    """Return a failure for an exception of a transport, which should have returned one itself.

    A transport with ``libraries`` returns failures for all exceptions of those libraries. So any
    other exception is not the transport's, and propagates.
    """
    libraries: Container[str] | None = getattr(transport, "libraries", None)
    if libraries is not None and is_foreign(error, libraries):
        raise ForeignError(error)
    # Imported here, since only the author of a transport needs it.
    from traceback import format_tb  # noqa: PLC0415

    if error.__traceback__ is not None:
        # As text, since the transport's frames can hold the API key.
        with suppress(Exception):  # an exception class can reject notes
            error.add_note("".join(format_tb(error.__traceback__)))
    forget_frames(error)
    return Failure(Delivery.MAYBE_SENT, error, transient=False)


class CoreClient(_ClientBase):
    """A synchronous client over your own transport. Use it with ``with``, or call ``close()``.

    - ``protocol``: makes the calls.
    - ``transport``: has four methods; see `Transport`.
    - ``on_attempt``: is called with an `Attempt` after each attempt. If it raises, the client logs
      the exception.
    - ``on_call``: is called with a `FinishedCall` after each call, in the same way.
    - ``jitter``: returns a number from 0 to 1, the part of a delay to wait. Default: a random number,
      so that clients do not all retry at the same time. If it raises, the client logs the exception.
    - ``pace``: a `Pace` that keeps calls below the service's limit of requests. Clients can share one.

    A wrong argument raises ``TypeError`` or ``ValueError`` before anything is sent. A call that
    fails raises a `CreduseError`, whose ``outcome`` says whether credits moved.
    """

    def __init__(
        self,
        protocol: CreduseProtocol,
        transport: Transport,
        *,
        on_attempt: Callable[[Attempt], object] | None = None,
        on_call: Callable[[FinishedCall], object] | None = None,
        jitter: Callable[[], float] = _random,
        pace: Pace | None = None,
    ) -> None:
        super().__init__(protocol, on_attempt=on_attempt, on_call=on_call, jitter=jitter, pace=pace)
        self._transport = transport
        self._proxy = _proxy_of(transport)

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
        """Close the connections that the client has opened. A supplied client stays open."""
        self._transport.close()

    def drain(self, timeout: float) -> tuple[CallRecord, ...]:
        """Send no new calls, wait for the running ones, and return those that are unclear.

        Use it before a process ends, so that it kills no call. It waits at most ``timeout`` seconds.
        From its beginning, a new call raises a `TransportError` with NOT_APPLIED. After it, calls
        that still run begin no further attempt. One that waits for a connection by then, or still
        connects, can send its request later. It closes nothing. The records are those of writes that
        have ended as UNKNOWN since the drain began, or that have an attempt in flight, connecting or
        not. Store them, and ``check`` them with another client, after this process has ended. Within
        a call of its own, as in ``on_attempt`` or a signal handler, it would wait for that call in
        vain.
        """
        with SHORT_TRACEBACK:
            calls = self._begin_drain(timeout)
        ends = self._transport.now() + timeout
        try:
            while _is_any_live(calls) and self._transport.now() < ends:
                self._transport.sleep(_POLL)
        finally:
            self._is_drained = True
        return _unclear(calls)

    def run(self, call: Call[T], *, balance_first: bool = False) -> T:
        """Run a call and return its result, or raise its error.

        With ``call = client.protocol.subtract(…)`` you can read ``call.response`` and
        ``call.attempts`` afterwards. A call for another ``base_url`` raises ``ValueError``.

        ``balance_first``: read the user's balance before, so that ``check`` can compare. If that
        fails, its error is raised, and the call is not sent. Its request has the call's own
        ``extra_headers``, and its timeout, so both together can take twice as long.
        """
        transport = self._transport
        self._check_call(call)
        before = None
        if balance_first:
            check_type("balance_first", balance_first, bool)
            before = self.reading(
                call.record.end_user_id, timeout=call.timeout, extra_headers=call.extra_headers
            )
        action: Send | Wait | Done[T]
        action, began = self._start(call, transport.now, before)
        try:
            while not isinstance(action, Done):
                if isinstance(action, Wait):
                    woken_at = transport.now() + action.seconds
                    transport.sleep(action.seconds)
                    action = self._wake(call, transport.now(), woken_at)
                else:
                    try:
                        received = self._refusal(call) or _checked(transport.send(action))
                    except Exception as error:  # noqa: BLE001 - a fault in a transport
                        received = _escaped(error, transport)
                    action = self._receive(call, received, transport.now())
        except ForeignError as foreign:
            self._end(call, began, transport.now, foreign.error)
            forget_frames(foreign.error)
            raise foreign.error from foreign.error.__cause__
        except BaseException as error:
            self._end(call, began, transport.now, error)
            raise
        self._running.pop(id(call), None)
        self._report_call(call, began, transport.now, None)
        return action.result

    def check(
        self,
        call: Call[Any] | CallRecord | CreduseError,
        *,
        known: Iterable[Call[Any] | CallRecord | CreduseError] = (),
        clock_skew: float = CLOCK_SKEW,
        lists_empty_cycles: bool = False,
        timeout: float | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> Evidence:
        """Read the balance, and return what it proves about a call.

        Example::

            except CreduseError as error:
                if error.outcome is Outcome.UNKNOWN:
                    print(client.check(error))

        It raises no `CreduseError`: if the balance cannot be read, the verdict is OPEN. If the outcome
        is not UNKNOWN, it reads no balance. For ``subtract``, the verdict is OPEN unless the call was
        run with ``balance_first=True``.

        - ``call``: an error; or a call, such as one that was cancelled; or an error's ``call``.
        - ``known``: your other writes for this user that ran at the same time, or between
          ``balance_first`` and now; without it, since 20 seconds before the call, and older ones that
          ended as UNKNOWN.
        - ``clock_skew``: seconds by which the service's clock and this machine's can differ.
        - ``lists_empty_cycles``: whether the service is known to list cycles without credits.
        - ``timeout``: seconds for reading the balance, by default the client's.
        - ``extra_headers``: further header fields of that request.
        """
        with SHORT_TRACEBACK:
            record, others = self._records(call, known, clock_skew, lists_empty_cycles)
        if (evidence := settled(record)) is not None:
            return evidence
        try:
            after = self.reading(record.end_user_id, timeout=timeout, extra_headers=extra_headers)
        except CreduseError as error:
            return unreadable(error)
        return weigh(
            record,
            after,
            known=others,
            clock_skew=clock_skew,
            lists_empty_cycles=lists_empty_cycles,
        )

    def reading(
        self,
        end_user_id: UUID | str,
        *,
        timeout: float | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> BalanceReading:
        """Return an end user's balance, and when it was read. `creduse_core.weigh` needs it.

        ``timeout``: seconds for the whole call, by default the client's. ``extra_headers``: further
        header fields of the request.
        """
        with SHORT_TRACEBACK:
            call = self._protocol.get_balance(
                end_user_id, timeout=timeout, extra_headers=extra_headers
            )
        asked_at = _now()
        try:
            balance = self.run(call)
        except UserDoesNotExistError:
            balance = None
        return _reading_of(call, asked_at, balance)

    def add(
        self,
        end_user_id: UUID | str,
        amount: int,
        validity_days: int | None = 31,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> CreditsAdded:
        """Give an end user credits, once.

        The user can spend them until the end of the day ``validity_days`` from now. ``None`` means
        the service's own 31. ``timeout``: seconds for the whole call, by default the client's.
        ``idempotency_key``: needs ``RetryPolicy(server_replays=True)``.
        ``extra_headers``: further header fields of the request.
        """
        with SHORT_TRACEBACK:
            call = self._protocol.add(
                end_user_id,
                amount,
                validity_days,
                timeout=timeout,
                idempotency_key=idempotency_key,
                extra_headers=extra_headers,
            )
        return self.run(call)

    def subtract(
        self,
        end_user_id: UUID | str,
        amount: int,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> CreditsSubtracted:
        """Take credits from an end user: all of ``amount``, or none.

        Raises `InsufficientFundsError` if the user has fewer. ``timeout``: seconds for the whole
        call, by default the client's. ``idempotency_key``: needs
        ``RetryPolicy(server_replays=True)``. ``extra_headers``: further header fields of the
        request.
        """
        with SHORT_TRACEBACK:
            call = self._protocol.subtract(
                end_user_id,
                amount,
                timeout=timeout,
                idempotency_key=idempotency_key,
                extra_headers=extra_headers,
            )
        return self.run(call)

    def start_cycle(
        self,
        end_user_id: UUID | str,
        amount: int,
        validity_days: int | None = 31,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> Cycle:
        """Give an end user ``amount`` credits now, and again every ``validity_days``.

        Credits that are left at the end of a cycle are lost. Raises `ActiveCycleExistsError` if the
        user has a cycle. ``timeout``: seconds for the whole call, by default the client's.
        ``idempotency_key``: needs ``RetryPolicy(server_replays=True)``.
        ``extra_headers``: further header fields of the request.
        """
        with SHORT_TRACEBACK:
            call = self._protocol.start_cycle(
                end_user_id,
                amount,
                validity_days,
                timeout=timeout,
                idempotency_key=idempotency_key,
                extra_headers=extra_headers,
            )
        return self.run(call)

    def stop_cycle(
        self,
        end_user_id: UUID | str,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> Cycle:
        """Stop an end user's cycle. The user can spend its credits until its end.

        Raises `NoActiveCycleError` if there is none. ``timeout``: seconds for the whole call, by
        default the client's. ``idempotency_key``: needs ``RetryPolicy(server_replays=True)``.
        ``extra_headers``: further header fields of the request.
        """
        with SHORT_TRACEBACK:
            call = self._protocol.stop_cycle(
                end_user_id,
                timeout=timeout,
                idempotency_key=idempotency_key,
                extra_headers=extra_headers,
            )
        return self.run(call)

    def get_balance(
        self,
        end_user_id: UUID | str,
        *,
        timeout: float | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> ActiveBalance:
        """Return the credits that an end user can spend now, in all and for each cycle.

        Raises `UserDoesNotExistError` for a user that the service does not know. ``timeout``:
        seconds for the whole call, by default the client's. ``extra_headers``: further header fields
        of the request.
        """
        with SHORT_TRACEBACK:
            call = self._protocol.get_balance(
                end_user_id, timeout=timeout, extra_headers=extra_headers
            )
        return self.run(call)

    get_active_balance = get_balance
    """The same method. The API's documentation has both names."""


class AsyncCoreClient(_ClientBase):
    """An asynchronous client over your own transport. Use ``async with``, or await ``aclose()``.

    - ``protocol``: makes the calls.
    - ``transport``: has four methods; see `AsyncTransport`.
    - ``on_attempt``: is called with an `Attempt` after each attempt. If it raises, the client logs
      the exception.
    - ``on_call``: is called with a `FinishedCall` after each call, in the same way.
    - ``jitter``: returns a number from 0 to 1, the part of a delay to wait. Default: a random number,
      so that clients do not all retry at the same time. If it raises, the client logs the exception.
    - ``pace``: a `Pace` that keeps calls below the service's limit of requests. Clients can share one.

    A wrong argument raises ``TypeError`` or ``ValueError`` before anything is sent. A call that
    fails raises a `CreduseError`, whose ``outcome`` says whether credits moved.
    """

    def __init__(
        self,
        protocol: CreduseProtocol,
        transport: AsyncTransport,
        *,
        on_attempt: Callable[[Attempt], object] | None = None,
        on_call: Callable[[FinishedCall], object] | None = None,
        jitter: Callable[[], float] = _random,
        pace: Pace | None = None,
    ) -> None:
        super().__init__(protocol, on_attempt=on_attempt, on_call=on_call, jitter=jitter, pace=pace)
        self._transport = transport
        self._proxy = _proxy_of(transport)

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
        """Close the connections that the client has opened. A supplied client stays open."""
        await self._transport.aclose()

    async def drain(self, timeout: float) -> tuple[CallRecord, ...]:
        """Send no new calls, wait for the running ones, and return those that are unclear.

        Use it before a process ends, so that it kills no call. It waits at most ``timeout`` seconds.
        From its beginning, a new call raises a `TransportError` with NOT_APPLIED. After it, calls
        that still run begin no further attempt. One that waits for a connection by then, or still
        connects, can send its request later. It closes nothing. The records are those of writes that
        have ended as UNKNOWN since the drain began, or that have an attempt in flight, connecting or
        not. Store them, and ``check`` them with another client, after this process has ended. Within
        a call of its own, as in ``on_attempt`` or a signal handler, it would wait for that call in
        vain.
        """
        with SHORT_TRACEBACK:
            calls = self._begin_drain(timeout)
        ends = self._transport.now() + timeout
        try:
            while _is_any_live(calls) and self._transport.now() < ends:
                await self._transport.sleep(_POLL)
        finally:
            self._is_drained = True
        return _unclear(calls)

    async def run(self, call: Call[T], *, balance_first: bool = False) -> T:
        """Run a call and return its result, or raise its error.

        With ``call = client.protocol.subtract(…)`` you can read ``call.response`` and
        ``call.attempts`` afterwards. A call for another ``base_url`` raises ``ValueError``.

        ``balance_first``: read the user's balance before, so that ``check`` can compare. If that
        fails, its error is raised, and the call is not sent. Its request has the call's own
        ``extra_headers``, and its timeout, so both together can take twice as long.
        """
        transport = self._transport
        self._check_call(call)
        before = None
        if balance_first:
            check_type("balance_first", balance_first, bool)
            before = await self.reading(
                call.record.end_user_id, timeout=call.timeout, extra_headers=call.extra_headers
            )
        action: Send | Wait | Done[T]
        action, began = self._start(call, transport.now, before)
        try:
            while not isinstance(action, Done):
                if isinstance(action, Wait):
                    woken_at = transport.now() + action.seconds
                    await transport.sleep(action.seconds)
                    action = self._wake(call, transport.now(), woken_at)
                else:
                    try:
                        received = self._refusal(call) or _checked(await transport.send(action))
                    except Exception as error:  # noqa: BLE001 - a fault in a transport
                        received = _escaped(error, transport)
                    action = self._receive(call, received, transport.now())
        except ForeignError as foreign:
            self._end(call, began, transport.now, foreign.error)
            forget_frames(foreign.error)
            raise foreign.error from foreign.error.__cause__
        except BaseException as error:
            self._end(call, began, transport.now, error)
            raise
        self._running.pop(id(call), None)
        self._report_call(call, began, transport.now, None)
        return action.result

    async def check(
        self,
        call: Call[Any] | CallRecord | CreduseError,
        *,
        known: Iterable[Call[Any] | CallRecord | CreduseError] = (),
        clock_skew: float = CLOCK_SKEW,
        lists_empty_cycles: bool = False,
        timeout: float | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> Evidence:
        """Read the balance, and return what it proves about a call.

        Example::

            except CreduseError as error:
                if error.outcome is Outcome.UNKNOWN:
                    print(await client.check(error))

        It raises no `CreduseError`: if the balance cannot be read, the verdict is OPEN. If the outcome
        is not UNKNOWN, it reads no balance. For ``subtract``, the verdict is OPEN unless the call was
        run with ``balance_first=True``.

        - ``call``: an error; or a call, such as one that was cancelled; or an error's ``call``.
        - ``known``: your other writes for this user that ran at the same time, or between
          ``balance_first`` and now; without it, since 20 seconds before the call, and older ones that
          ended as UNKNOWN.
        - ``clock_skew``: seconds by which the service's clock and this machine's can differ.
        - ``lists_empty_cycles``: whether the service is known to list cycles without credits.
        - ``timeout``: seconds for reading the balance, by default the client's.
        - ``extra_headers``: further header fields of that request.
        """
        with SHORT_TRACEBACK:
            record, others = self._records(call, known, clock_skew, lists_empty_cycles)
        if (evidence := settled(record)) is not None:
            return evidence
        try:
            after = await self.reading(
                record.end_user_id, timeout=timeout, extra_headers=extra_headers
            )
        except CreduseError as error:
            return unreadable(error)
        return weigh(
            record,
            after,
            known=others,
            clock_skew=clock_skew,
            lists_empty_cycles=lists_empty_cycles,
        )

    async def reading(
        self,
        end_user_id: UUID | str,
        *,
        timeout: float | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> BalanceReading:
        """Return an end user's balance, and when it was read. `creduse_core.weigh` needs it.

        ``timeout``: seconds for the whole call, by default the client's. ``extra_headers``: further
        header fields of the request.
        """
        with SHORT_TRACEBACK:
            call = self._protocol.get_balance(
                end_user_id, timeout=timeout, extra_headers=extra_headers
            )
        asked_at = _now()
        try:
            balance = await self.run(call)
        except UserDoesNotExistError:
            balance = None
        return _reading_of(call, asked_at, balance)

    async def add(
        self,
        end_user_id: UUID | str,
        amount: int,
        validity_days: int | None = 31,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> CreditsAdded:
        """Give an end user credits, once.

        The user can spend them until the end of the day ``validity_days`` from now. ``None`` means
        the service's own 31. ``timeout``: seconds for the whole call, by default the client's.
        ``idempotency_key``: needs ``RetryPolicy(server_replays=True)``.
        ``extra_headers``: further header fields of the request.
        """
        with SHORT_TRACEBACK:
            call = self._protocol.add(
                end_user_id,
                amount,
                validity_days,
                timeout=timeout,
                idempotency_key=idempotency_key,
                extra_headers=extra_headers,
            )
        return await self.run(call)

    async def subtract(
        self,
        end_user_id: UUID | str,
        amount: int,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> CreditsSubtracted:
        """Take credits from an end user: all of ``amount``, or none.

        Raises `InsufficientFundsError` if the user has fewer. ``timeout``: seconds for the whole
        call, by default the client's. ``idempotency_key``: needs
        ``RetryPolicy(server_replays=True)``. ``extra_headers``: further header fields of the
        request.
        """
        with SHORT_TRACEBACK:
            call = self._protocol.subtract(
                end_user_id,
                amount,
                timeout=timeout,
                idempotency_key=idempotency_key,
                extra_headers=extra_headers,
            )
        return await self.run(call)

    async def start_cycle(
        self,
        end_user_id: UUID | str,
        amount: int,
        validity_days: int | None = 31,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> Cycle:
        """Give an end user ``amount`` credits now, and again every ``validity_days``.

        Credits that are left at the end of a cycle are lost. Raises `ActiveCycleExistsError` if the
        user has a cycle. ``timeout``: seconds for the whole call, by default the client's.
        ``idempotency_key``: needs ``RetryPolicy(server_replays=True)``.
        ``extra_headers``: further header fields of the request.
        """
        with SHORT_TRACEBACK:
            call = self._protocol.start_cycle(
                end_user_id,
                amount,
                validity_days,
                timeout=timeout,
                idempotency_key=idempotency_key,
                extra_headers=extra_headers,
            )
        return await self.run(call)

    async def stop_cycle(
        self,
        end_user_id: UUID | str,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> Cycle:
        """Stop an end user's cycle. The user can spend its credits until its end.

        Raises `NoActiveCycleError` if there is none. ``timeout``: seconds for the whole call, by
        default the client's. ``idempotency_key``: needs ``RetryPolicy(server_replays=True)``.
        ``extra_headers``: further header fields of the request.
        """
        with SHORT_TRACEBACK:
            call = self._protocol.stop_cycle(
                end_user_id,
                timeout=timeout,
                idempotency_key=idempotency_key,
                extra_headers=extra_headers,
            )
        return await self.run(call)

    async def get_balance(
        self,
        end_user_id: UUID | str,
        *,
        timeout: float | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> ActiveBalance:
        """Return the credits that an end user can spend now, in all and for each cycle.

        Raises `UserDoesNotExistError` for a user that the service does not know. ``timeout``:
        seconds for the whole call, by default the client's. ``extra_headers``: further header fields
        of the request.
        """
        with SHORT_TRACEBACK:
            call = self._protocol.get_balance(
                end_user_id, timeout=timeout, extra_headers=extra_headers
            )
        return await self.run(call)

    get_active_balance = get_balance
    """The same method. The API's documentation has both names."""
