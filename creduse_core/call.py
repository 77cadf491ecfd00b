"""The state machine of one call, with all its attempts.

A call begins in READY. ``start`` returns a `Send`: the caller sends that request, and the call is
IN_FLIGHT. From here the call does not know where the request is, so its outcome is UNKNOWN until
something is proved. The caller then reports what happened, in one of three ways:

- ``receive_response``, with a whole response. A good one ends the call in SUCCEEDED.
- ``receive_failure``, with the reason why there is no whole response.
- ``abandon``, because the caller was cancelled. The call ends in ABANDONED.

After a response or failure that is not a success, the call either ends in FAILED and raises its
error, or it is WAITING: it returns a `Wait`, and after that time the caller calls ``wake``. The call
then returns the next `Send`, or raises the error if its time is over. A caller that limits its
requests gives ``start`` and ``wake`` the seconds to hold the next one (see `creduse_core.pace`). Then
the call is WAITING before that request, too. The table `EVENTS` in
`creduse_core.retry` decides which. A write goes to WAITING only while it is proved that no credits have
moved. A write with an idempotency key can go there after any event that a retry can help, since the
server applies each key once. So no path through this machine applies a call twice.

`TRANSITIONS` has every transition. An input that the state does not allow raises
`LocalProtocolError`, and the call stays as it was.

I/O, clocks and random numbers do not belong here: the time and the jitter are arguments. The words
of errors are in `creduse_core.reports`.
"""

import enum
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, Generic, TypeAlias, TypeVar, overload

from .arguments import ExtraHeaders, checked_extra_headers, secrets_among
from .decoding import Expected, InvalidResult, read_response
from .errors import CreduseError, LocalProtocolError
from .messages import Failure, Proxy, Request, Response, with_headers
from .models import Attempt, BalanceReading, CallRecord, Outcome
from .records import dataclass
from .reports import (
    Context,
    Problem,
    error_of,
    held_too_long,
    problem_of_failure,
    problem_of_response,
    quote,
    redacted,
)
from .retry import EVENTS, Event, Kind, RetryPolicy, may_retry
from .secret import Secret, no_pickle

T = TypeVar("T")


class State(enum.StrEnum):
    """Where a call stands."""

    READY = "ready"
    IN_FLIGHT = "in flight"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABANDONED = "abandoned"

    @property
    def live(self) -> bool:
        """Whether the call has not ended yet."""
        return bool(TRANSITIONS[self])


class Input(enum.StrEnum):
    """An input to a call. Each is the name of a method of `Call`."""

    START = "start"
    RECEIVE_RESPONSE = "receive_response"
    RECEIVE_FAILURE = "receive_failure"
    WAKE = "wake"
    ABANDON = "abandon"


TRANSITIONS: Final[Mapping[State, Mapping[Input, tuple[State, ...]]]] = {
    State.READY: {
        Input.START: (State.IN_FLIGHT, State.WAITING, State.FAILED),
        Input.ABANDON: (State.ABANDONED,),
    },
    State.IN_FLIGHT: {
        Input.RECEIVE_RESPONSE: (State.SUCCEEDED, State.WAITING, State.FAILED),
        Input.RECEIVE_FAILURE: (State.WAITING, State.FAILED),
        Input.ABANDON: (State.ABANDONED,),
    },
    State.WAITING: {
        Input.WAKE: (State.IN_FLIGHT, State.WAITING, State.FAILED),
        Input.ABANDON: (State.ABANDONED,),
    },
    State.SUCCEEDED: {},
    State.FAILED: {},
    State.ABANDONED: {},
}
"""The states that can follow a state and an input. An input without a row is an error."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``request`` now, and report to the call what happened."""

    request: Request
    connect_by: float
    """When the request must have a connection, on the clock of the ``now`` that the call was given.
    To wait for a connection in a pool is part of connecting."""
    deadline: float
    """When the whole response must have arrived, on the same clock."""
    allows_reuse: Callable[[Response], bool]
    """Return whether the connection can carry another request after this response. It is a pure
    function.

    True after a 2xx response that names the request's user and amount, and after any 4xx but 408.
    False if the response has both Content-Length and Transfer-Encoding, as its end is then in doubt.
    All other responses may be those of an earlier request, and would shift all further ones."""

    def __repr__(self) -> str:
        return f"<Send {self.request!r}, connect by {self.connect_by}, deadline {self.deadline}>"


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for ``seconds``, then call `Call.wake`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The call has succeeded."""

    result: T


# What an `Attempt` is made of: its status, event, error, start and end. Most calls are never asked for
# their attempts, so these are made late.
_Record: TypeAlias = tuple[int | None, Event, str | None, float, float]


class Call(Generic[T]):
    """One call of the API, to be driven by hand or by a client's ``run``.

    ``start`` returns `Send`, or `Wait` if the request is held. Pass what happened to
    ``receive_response`` or ``receive_failure``.
    These return `Done`, return `Wait` (then call ``wake``), or raise the final `CreduseError`. A
    caller that is cancelled calls ``abandon``. ``now`` is in seconds, on any clock that does not go
    back. An input that the state does not allow raises `LocalProtocolError` and changes nothing.
    A call can be driven once, by one thread or task at a time.
    """

    __slots__ = (
        "_before",
        "_began_at",
        "_deadline",
        "_evidence",
        "_expected",
        "_extra_headers",
        "_kind",
        "_path",
        "_policy",
        "_problem",
        "_proxy",
        "_read",
        "_records",
        "_request",
        "_response",
        "_secrets",
        "_sent",
        "_started",
        "_state",
        "_timeout",
    )

    def __init__(
        self,
        request: Request,
        expected: Expected[T],
        *,
        path: str,
        kind: Kind,
        policy: RetryPolicy,
        timeout: float,
        secrets: tuple[Secret, ...],
    ) -> None:
        """Use `CreduseProtocol` to make one. Errors do not show ``secrets``."""
        self._request = request
        self._expected = expected
        self._path = path
        self._kind = kind
        self._policy = policy
        self._timeout = timeout
        self._secrets = secrets
        self._state = State.READY
        self._records: list[_Record] = []
        self._sent = 0
        self._evidence = Outcome.NOT_APPLIED
        self._response: Response | None = None
        self._read: tuple[Response, T | InvalidResult] | None = None
        self._problem: Problem | None = None
        self._deadline = self._started = 0.0
        self._began_at: float | None = None
        self._before: BalanceReading | None = None
        self._extra_headers: ExtraHeaders = {}

    def __repr__(self) -> str:
        return f"<Call {self._request.method} {self._path}, {self._state}>"

    __reduce__ = no_pickle

    # Properties that can be read at any time.

    @property
    def state(self) -> State:
        """Where the call stands."""
        return self._state

    @property
    def request(self) -> Request:
        """The request that every attempt sends. It holds the API key."""
        return self._request

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The attempts so far, in order. They do not hold the API key."""
        return tuple(
            Attempt(
                number,
                self._request.method,
                self._path,
                status,
                event.name,
                event.proves(self._kind),
                None if error is None else quote(error, self._secrets),
                started,
                ended,
            )
            for number, (status, event, error, started, ended) in enumerate(self._records, start=1)
        )

    @property
    def response(self) -> Response | None:
        """The last response, or the part of it that arrived. It is not redacted."""
        return self._response

    @property
    def redacted_response(self) -> Response | None:
        """`response` without the API key and the caller's other secrets, for logs and databases."""
        return None if self._response is None else redacted(self._response, self._secrets)

    @property
    def outcome(self) -> Outcome:
        """What is certain now about the credits, even if the caller was cancelled."""
        if self._state is State.IN_FLIGHT and self._kind is not Kind.READ:
            return max(self._evidence, Outcome.UNKNOWN)
        return self._evidence

    @property
    def timeout(self) -> float:
        """Seconds that the call can take."""
        return self._timeout

    @property
    def record(self) -> CallRecord:
        """What the call is, when it began, and its outcome so far."""
        # Read from the request, since few calls are ever asked for it.
        body = json.loads(self._request.body)
        began_at = self._began_at
        return CallRecord(
            "get_balance" if self._kind is Kind.READ else self._path[1:].replace("-", "_"),
            self._expected[0],
            body.get("amount"),
            body.get("validity_days"),
            self.outcome,
            None if began_at is None else datetime.fromtimestamp(began_at, UTC),
            self._before,
        )

    @property
    def extra_headers(self) -> ExtraHeaders:
        """The header fields that this call has beside those of all its protocol's calls."""
        return self._extra_headers

    def add_headers(self, extra_headers: ExtraHeaders) -> None:
        """Add header fields to the request, before the call starts. See `CreduseProtocol`."""
        if self._state is not State.READY:
            raise LocalProtocolError(
                f"add_headers() is not allowed while the call is {self._state}"
            )
        it, more = self._request, checked_extra_headers(extra_headers)
        self._request = Request(it.method, it.url, with_headers(it.hidden_headers, more), it.body)
        lower = {name.lower(): value for name, value in extra_headers.items()}
        self._extra_headers = {**self._extra_headers, **lower}
        self._secrets += secrets_among(extra_headers)

    # The inputs.

    @overload
    def start(
        self,
        now: float,
        *,
        began_at: float | None = None,
        before: BalanceReading | None = None,
        proxy: Proxy | None = None,
    ) -> Send: ...

    @overload
    def start(
        self,
        now: float,
        hold: float,
        *,
        began_at: float | None = None,
        before: BalanceReading | None = None,
        proxy: Proxy | None = None,
    ) -> Send | Wait: ...

    def start(
        self,
        now: float,
        hold: float = 0.0,
        *,
        began_at: float | None = None,
        before: BalanceReading | None = None,
        proxy: Proxy | None = None,
    ) -> Send | Wait:
        """Begin the call. Its time runs from ``now``.

        - ``hold``: seconds to wait before the first request. If the call's time is over by then, it
          raises `CreduseTimeoutError` at once.
        - ``began_at``: the same moment as ``now`` in seconds since 1970. ``record`` has it.
        - ``before``: a balance that was read before. ``record`` has it, too.
        - ``proxy``: the one that requests go through. Errors name it, and hide its password.
        """
        state = _state_after_hold(hold, self._timeout)
        self._move(Input.START, state)
        self._deadline = now + self._timeout
        self._began_at, self._before = began_at, before
        self._proxy = proxy
        if proxy is not None:
            self._secrets += proxy.secrets
        return self._send(state, now, hold)

    def receive_response(
        self, response: Response, now: float, jitter: float = 1.0
    ) -> Done[T] | Wait:
        """Report a whole response. ``jitter``, from 0 to 1, is the part of a delay to wait."""
        self._check_report(Input.RECEIVE_RESPONSE, response, Response, jitter)
        reading = self._reading(response)
        self._response = response
        if isinstance(reading, InvalidResult):
            problem = problem_of_response(response, reading)
            return self._retry_or_fail(Input.RECEIVE_RESPONSE, problem, now, jitter)
        self._problem = None  # an earlier attempt's, with its response
        self._record(EVENTS["done"], response.status, None, now)
        self._move(Input.RECEIVE_RESPONSE, State.SUCCEEDED)
        return Done(reading)

    def receive_failure(self, failure: Failure, now: float, jitter: float = 1.0) -> Wait:
        """Report why there is no whole response. ``jitter``: as in ``receive_response``."""
        self._check_report(Input.RECEIVE_FAILURE, failure, Failure, jitter)
        problem = problem_of_failure(failure)
        self._response = problem.response or self._response
        return self._retry_or_fail(Input.RECEIVE_FAILURE, problem, now, jitter)

    @overload
    def wake(self, now: float) -> Send: ...

    @overload
    def wake(self, now: float, hold: float) -> Send | Wait: ...

    def wake(self, now: float, hold: float = 0.0) -> Send | Wait:
        """Go on after a `Wait`, or raise the last error if the call's time is over.

        ``hold``: seconds to wait before the next request, as in ``start``.
        """
        state = _state_after_hold(hold, self._deadline - now)
        self._move(Input.WAKE, state)
        return self._send(state, now, hold)

    def abandon(self, now: float) -> None:
        """End the call because its caller was cancelled. A request in flight counts as sent."""
        self._states_after(Input.ABANDON)
        # Recorded first: while the call is IN_FLIGHT, a second exception leaves it UNKNOWN. And not by
        # the state, since a signal handler can raise between the record of an attempt and the next state.
        if len(self._records) < self._sent:
            self._record(EVENTS["abandoned"], None, "abandoned by the caller", now)
        self._move(Input.ABANDON, State.ABANDONED)

    # How they work.

    def _states_after(self, given: Input) -> tuple[State, ...]:
        """Return the states that can follow, or raise if the input is not allowed now."""
        states = TRANSITIONS[self._state].get(given)
        if states is None:
            if given is Input.START:
                raise LocalProtocolError(
                    f"a call runs only once, and this one is already {self._state}: make a new call"
                )
            raise LocalProtocolError(f"{given}() is not allowed while the call is {self._state}")
        return states

    def _check_report(self, given: Input, message: object, wanted: type, jitter: float) -> None:
        self._states_after(given)
        if not isinstance(message, wanted):
            kind = "None" if message is None else f"a {type(message).__name__}"
            raise LocalProtocolError(f"{given}() needs a {wanted.__name__}, not {kind}")
        if not 0.0 <= jitter <= 1.0:
            raise LocalProtocolError(f"jitter must be a number from 0 to 1, not {jitter!r}")

    def _move(self, given: Input, state: State) -> None:
        """Go to the next state. Nothing else sets it."""
        if state not in self._states_after(given):
            raise AssertionError(f"{given} does not lead from {self._state} to {state}")
        self._state = state

    def _send(self, state: State, now: float, hold: float) -> Send | Wait:
        """Return `Send` or `Wait`, or raise if the call's time is over."""
        if state is State.FAILED:
            raise self._last_error()
        if state is State.WAITING:
            return Wait(hold)
        self._started = now
        self._sent += 1
        bounded = min(self._deadline, now + self._policy.attempt_timeout)
        deadline = self._deadline if self._kind is Kind.WRITE else bounded
        return Send(self._request, bounded, deadline, self._allows_reuse)

    def _retry_or_fail(self, given: Input, problem: Problem, now: float, jitter: float) -> Wait:
        """Return `Wait` if the call can be retried in time, else raise its error."""
        response, event = problem.response, problem.event
        self._record(event, None if response is None else response.status, problem.text, now)
        self._problem = problem
        attempt = len(self._records)
        # A server can ask for 0 seconds, or for a time in the past: then our own delay counts.
        delay = max(self._policy.delay(attempt, jitter), problem.retry_after() or 0.0)
        if (
            may_retry(event, self._kind, self._evidence)
            and attempt < self._policy.max_attempts
            and now + delay < self._deadline
        ):
            self._move(given, State.WAITING)
            return Wait(delay)
        self._move(given, State.FAILED)
        raise self._last_error()

    def _last_error(self) -> CreduseError:
        # Not kept: the exception's traceback leads back to this call.
        problem, self._problem = self._problem, None
        context = Context(
            self._request,
            self._path,
            self._kind,
            self.record,
            self.attempts,
            self._secrets,
            None if self._proxy is None else self._proxy.shown,
        )
        return (
            held_too_long(self._timeout, context) if problem is None else error_of(problem, context)
        )

    def _reading(self, response: Response) -> T | InvalidResult:
        """Decode a response, once."""
        if self._read is None or self._read[0] is not response:
            self._read = (response, read_response(response, self._expected))
        return self._read[1]

    def _allows_reuse(self, response: Response) -> bool:
        status = response.status
        if 400 <= status < 500:
            return status != 408 and _is_framed_once(response)
        reading = self._reading(response)
        is_own = not isinstance(reading, InvalidResult) or reading.is_own
        return is_own and _is_framed_once(response)

    def _record(self, event: Event, status: int | None, error: str | None, now: float) -> None:
        self._evidence = max(self._evidence, event.proves(self._kind))
        self._records.append((status, event, error, self._started, now))


def _state_after_hold(hold: float, time_left: float) -> State:
    """Return the state that follows a request that is held for so long."""
    if not hold >= 0.0:
        raise LocalProtocolError(f"hold must be a number of seconds, at least 0, not {hold!r}")
    if hold >= time_left:
        return State.FAILED
    return State.WAITING if hold else State.IN_FLIGHT


def _is_framed_once(response: Response) -> bool:
    # If two headers frame a body, a proxy can have used the other one (RFC 9112, 6.3).
    return response.header("Transfer-Encoding") is None or response.header("Content-Length") is None
