"""The state machine of one call, all its attempts included.

Nothing here does I/O, reads a clock or throws dice: times and jitter come in as arguments.
"""

import enum
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import starmap
from typing import Final, Generic, TypeAlias, TypeVar
from urllib.parse import urlsplit

from .decoding import Bad, Expected, read_answer
from .errors import (
    ERROR_CODES,
    ERROR_STATUSES,
    APIError,
    CreduseError,
    CreduseTimeoutError,
    InvalidResponseError,
    LocalProtocolError,
    TransportError,
)
from .messages import Delivery, Failure, Request, Response, chain
from .models import Attempt, Outcome
from .retry import (
    EVENTS,
    Event,
    Kind,
    RetryPolicy,
    event_of_failure,
    event_of_response,
    may_retry,
    retry_after,
)
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
        return self in {State.READY, State.IN_FLIGHT, State.WAITING}


class Input(enum.StrEnum):
    """What a call can be told: each is a method of `Call`."""

    START = "start"
    RECEIVE_RESPONSE = "receive_response"
    RECEIVE_FAILURE = "receive_failure"
    WAKE = "wake"
    ABANDON = "abandon"


class Reply(enum.StrEnum):
    """What a call may answer."""

    SEND = "send"
    WAIT = "wait"
    DONE = "done"
    RAISE = "raise"
    NOTHING = "nothing"


# The whole machine: nothing moves outside this table.
TRANSITIONS: Final[dict[tuple[State, Input, Reply], State]] = {
    (State.READY, Input.START, Reply.SEND): State.IN_FLIGHT,
    (State.READY, Input.ABANDON, Reply.NOTHING): State.ABANDONED,
    (State.IN_FLIGHT, Input.RECEIVE_RESPONSE, Reply.DONE): State.SUCCEEDED,
    (State.IN_FLIGHT, Input.RECEIVE_RESPONSE, Reply.WAIT): State.WAITING,
    (State.IN_FLIGHT, Input.RECEIVE_RESPONSE, Reply.RAISE): State.FAILED,
    (State.IN_FLIGHT, Input.RECEIVE_FAILURE, Reply.WAIT): State.WAITING,
    (State.IN_FLIGHT, Input.RECEIVE_FAILURE, Reply.RAISE): State.FAILED,
    (State.IN_FLIGHT, Input.ABANDON, Reply.NOTHING): State.ABANDONED,
    (State.WAITING, Input.WAKE, Reply.SEND): State.IN_FLIGHT,
    (State.WAITING, Input.WAKE, Reply.RAISE): State.FAILED,
    (State.WAITING, Input.ABANDON, Reply.NOTHING): State.ABANDONED,
}
"""From a state, by an input and what the call answers to it, to the next state.

An input that has no row in the present state is refused. The state is set in one place, by looking
it up here."""

_LEGAL: Final[set[tuple[State, Input]]] = {(state, given) for state, given, _ in TRANSITIONS}


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``request`` now, and tell the call what came of it."""

    request: Request
    connect_timeout: float
    """Seconds from now until a connection must stand, waiting for one in a pool included."""
    timeout: float
    """Seconds from now until the answer must be there, connecting included."""
    belongs: Callable[[Response], bool] = field(repr=False, compare=False)
    """Return whether the connection may be used again after this response; pure.

    Not where the response is another request's, where its framing is in doubt, or after 408 and
    5xx, which should be rare: a stray one would shift all further responses. Other error statuses
    name no user, so they count as this request's own."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for ``seconds``, then `Call.wake`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The call has succeeded."""

    result: T


_PHRASES: Final = {
    Outcome.NOT_APPLIED: "not applied",
    Outcome.UNKNOWN: "may have been applied",
    Outcome.APPLIED: "applied",
}


_NO_ERROR: Final = CreduseError()

# The fields of an `Attempt`, which is made when it is asked for: of most calls nobody asks.
_Record: TypeAlias = tuple[int, str, str, int | None, str, Outcome, str | None, float, float]

# What happened, the error if the call ends there, and the seconds that the server asks to wait.
_Judgement: TypeAlias = tuple[Event, CreduseError, float | None]


class Call(Generic[T]):
    """One call: give it the time and what happened, and do what it answers.

    ``start`` answers `Send`. What came of sending goes to ``receive_response`` or
    ``receive_failure``, which answer `Wait` (then comes ``wake``), `Done`, or raise the final
    `CreduseError`. A caller that gives up says ``abandon``. ``now`` is in seconds on any clock
    that does not go back. An input that the state does not allow raises `LocalProtocolError`
    and changes nothing. A call serves once, and one thread or task at a time.
    """

    __slots__ = (
        "_deadline",
        "_evidence",
        "_expected",
        "_kind",
        "_last_error",
        "_path",
        "_policy",
        "_read",
        "_records",
        "_request",
        "_response",
        "_secret",
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
        secret: Secret,
    ) -> None:
        """Take what `CreduseProtocol` has put together; ``secret`` never shows in an error."""
        self._request = request
        self._expected = expected
        self._path = path
        self._kind = kind
        self._policy = policy
        self._timeout = timeout
        self._secret = secret
        self._state = State.READY
        self._records: list[_Record] = []
        self._evidence = Outcome.NOT_APPLIED
        self._response: Response | None = None
        self._read: tuple[Response, T | Bad] | None = None
        self._last_error = _NO_ERROR
        self._deadline = self._started = 0.0

    def __repr__(self) -> str:
        return f"<Call {self._request.method} {self._path}, {self._state}>"

    __reduce__ = no_pickle

    # What can be read at any time.

    @property
    def state(self) -> State:
        """Where the call stands."""
        return self._state

    @property
    def request(self) -> Request:
        """What is sent, the same on every attempt. It holds the API key."""
        return self._request

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """What was tried so far, in order. It holds no secret."""
        return tuple(starmap(Attempt, self._records))

    @property
    def response(self) -> Response | None:
        """The last answer as it came, or as much of it as came."""
        return self._response

    @property
    def outcome(self) -> Outcome:
        """What is certain now, for a caller that was cancelled, too."""
        if self._state is State.IN_FLIGHT and self._kind is not Kind.READ:
            return max(self._evidence, Outcome.UNKNOWN)
        return self._evidence

    # The inputs.

    def start(self, now: float) -> Send:
        """Begin: the call's time runs from ``now``."""
        self._check(Input.START)
        self._deadline = now + self._timeout
        return self._send(Input.START, now)

    def receive_response(
        self, response: Response, now: float, jitter: float = 1.0
    ) -> Done[T] | Wait:
        """Take the whole answer. ``jitter``, from 0 to 1, shortens a wait at random."""
        self._check(Input.RECEIVE_RESPONSE, response, Response, jitter)
        reading = self._reading(response)
        self._response = response
        if not isinstance(reading, Bad):
            self._record(EVENTS["done"], response.status, None, now)
            self._move(Input.RECEIVE_RESPONSE, Reply.DONE)
            return Done(reading)
        event, error, asked = self._judge_response(response, reading, now)
        del reading  # it quotes the response, and tools show the variables of a failure
        return self._wait_or_raise(Input.RECEIVE_RESPONSE, event, error, now, asked, jitter)

    def receive_failure(self, failure: Failure, now: float, jitter: float = 1.0) -> Wait:
        """Take that no whole answer came. ``jitter``, from 0 to 1, shortens a wait at random."""
        self._check(Input.RECEIVE_FAILURE, failure, Failure, jitter)
        event, error, asked = self._judge_failure(failure, now)
        return self._wait_or_raise(Input.RECEIVE_FAILURE, event, error, now, asked, jitter)

    def wake(self, now: float) -> Send:
        """Go on after a `Wait`; raise the last error if the call's time has passed meanwhile."""
        self._check(Input.WAKE)
        if now >= self._deadline:
            self._move(Input.WAKE, Reply.RAISE)
            # Not kept: its traceback leads back here.
            error, self._last_error = self._last_error, _NO_ERROR
            raise error
        return self._send(Input.WAKE, now)

    def abandon(self, now: float) -> None:
        """Give up, the caller having been cancelled. In flight it counts as maybe sent."""
        self._check(Input.ABANDON)
        if self._state is State.IN_FLIGHT:
            self._record(EVENTS["abandoned"], None, "abandoned by the caller", now)
        self._move(Input.ABANDON, Reply.NOTHING)

    # Between them.

    def _check(
        self,
        given: Input,
        message: object = None,
        wanted: type = object,
        jitter: float = 1.0,
    ) -> None:
        if (self._state, given) not in _LEGAL:
            raise LocalProtocolError(f"{given} is not for a call that is {self._state}")
        if not isinstance(message, wanted):
            raise LocalProtocolError(
                f"{given} takes a {wanted.__name__}, not a {type(message).__name__}"
            )
        if not 0.0 <= jitter <= 1.0:
            raise LocalProtocolError(f"jitter is a number from 0 to 1, not {jitter!r}")

    def _move(self, given: Input, reply: Reply) -> None:
        self._state = TRANSITIONS[self._state, given, reply]

    def _send(self, given: Input, now: float) -> Send:
        self._move(given, Reply.SEND)
        self._started = now
        left = self._deadline - now
        bounded = min(left, self._policy.attempt_timeout)
        return Send(
            self._request,
            connect_timeout=bounded,
            timeout=left if self._kind is Kind.WRITE else bounded,
            belongs=self._belongs,
        )

    def _wait_or_raise(
        self,
        given: Input,
        event: Event,
        error: CreduseError,
        now: float,
        asked: float | None,
        jitter: float,
    ) -> Wait:
        """Answer `Wait` if the call may be tried again in time, else raise ``error``."""
        attempt = len(self._records)
        # What a server asks for may be 0 or a date that is past: then at least our own delay.
        delay = max(self._policy.delay(attempt, jitter), asked or 0.0)
        if (
            may_retry(event, self._kind, self._evidence)
            and attempt < self._policy.max_attempts
            and now + delay < self._deadline
        ):
            self._last_error = error
            self._move(given, Reply.WAIT)
            return Wait(delay)
        self._move(given, Reply.RAISE)
        raise error

    def _reading(self, response: Response) -> T | Bad:
        """Decode an answer once, however often it is asked for."""
        if self._read is None or self._read[0] is not response:
            self._read = (response, read_answer(response, self._expected))
        return self._read[1]

    def _belongs(self, response: Response) -> bool:
        status = response.status
        if 400 <= status < 500:
            return status != 408 and _is_framed_once(response)
        reading = self._reading(response)
        return (not isinstance(reading, Bad) or reading.ours) and _is_framed_once(response)

    def _record(self, event: Event, status: int | None, error: str | None, now: float) -> None:
        proved = event.proves(self._kind)
        self._evidence = max(self._evidence, proved)
        self._records.append(
            (
                len(self._records) + 1,
                self._request.method,
                self._path,
                status,
                event.name,
                proved,
                error,
                self._started,
                now,
            )
        )

    # The errors. What quotes a response or an exception stays in frames that have returned when
    # an error is raised.

    def _judge_response(self, response: Response, reading: Bad, now: float) -> _Judgement:
        """Record a response without a result, and make the error that it may end the call in."""
        envelope = reading.envelope
        event = event_of_response(response, reading)
        text = self._fit(_describe_answer(response, reading))
        self._record(event, response.status, text, now)
        asked = retry_after(response)
        if not 400 <= response.status < 600:
            return event, self._invalid(text, response), asked
        error_class = ERROR_STATUSES.get(response.status, APIError)
        # The classes of known codes say that no credits moved. An earlier attempt may have.
        if event is EVENTS["refused"] and self._evidence is Outcome.NOT_APPLIED:
            error_class = ERROR_CODES[envelope.error_code or ""]
        error = error_class(
            self._say(text),
            outcome=self._evidence,
            attempts=self.attempts,
            response=self._clean_response(response),
            error_code=envelope.error_code and self._fit(envelope.error_code),
            error_message=envelope.message and self._fit(envelope.message),
            timestamp=envelope.timestamp,
            retry_after=asked,
        )
        return event, error, asked

    def _judge_failure(self, failure: Failure, now: float) -> _Judgement:
        """Record a failure, and make the error that it may end the call in."""
        # An answer to what was not sent is not ours.
        head = None if failure.delivery is Delivery.NOT_SENT else failure.response
        self._response = head or self._response
        event = event_of_failure(failure)
        text = self._fit(_describe_failure(failure, head))
        self._record(event, None if head is None else head.status, text, now)
        error: CreduseError
        if head is None or failure.timed_out:
            error_class = CreduseTimeoutError if failure.timed_out else TransportError
            if head is None:
                text += f" ({self._fit(_where(self._request.url, failure.via))})"
            error = error_class(self._say(text), outcome=self._evidence, attempts=self.attempts)
        else:
            error = self._invalid(text, head)
        # Even as None this keeps what is being handled just now out of the traceback.
        error.__cause__ = None if self._shows(failure.cause) else failure.cause
        return event, error, None if head is None else retry_after(head)

    def _invalid(self, text: str, response: Response) -> InvalidResponseError:
        return InvalidResponseError(
            self._say(text),
            outcome=self._evidence,
            attempts=self.attempts,
            response=self._clean_response(response),
        )

    def _fit(self, text: str) -> str:
        """Make somebody else's words fit for an error: no API key, one line, printable, bounded."""
        # Cut before, for the time that it takes, and after: what is cut short is still found.
        text = self._secret.redact(text[:_LONGEST_READ])
        if not text.isprintable():
            text = "".join(map(_printable, text))
        return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"

    def _clean_response(self, response: Response) -> Response:
        """Return the response without the API key, which a server may well repeat in a refusal."""
        clean = self._secret.redact
        return Response(
            response.status,
            [(clean(name), clean(value)) for name, value in response.headers],
            # Latin-1 takes any bytes there and back.
            clean(response.body.decode("latin-1")).encode("latin-1"),
        )

    def _say(self, text: str) -> str:
        """Return the whole message of an error: what was asked, what came, what that means."""
        count = len(self._records)
        tried = "1 attempt" if count == 1 else f"{count} attempts"
        if self._kind is not Kind.READ:
            tried = f"{_PHRASES[self._evidence]}; {tried}"
        return f"{self._request.method} {self._path}: {text} [{tried}]"

    def _shows(self, error: BaseException) -> bool:
        """Say whether an exception, or one that it came of, would print the API key."""
        texts = [
            text
            for link in chain(error)
            for text in (_words(link), *map(str, (link.args, *getattr(link, "__notes__", ()))))
        ]
        return any(self._secret.redact(text) != text for text in texts)


def _is_framed_once(response: Response) -> bool:
    # Where two headers frame a body, a peer may have read the other one (RFC 9112, 6.3).
    return response.header("Transfer-Encoding") is None or response.header("Content-Length") is None


def _describe_answer(response: Response, reading: Bad) -> str:
    text = str(response.status)
    if 200 <= response.status < 300:
        text += f", but the answer {reading.problem}"
    elif not 400 <= response.status < 600:
        text += " as the final answer"
    said = (reading.envelope.error_code, reading.envelope.message)
    return " ".join([text, ": ".join(part for part in said if part)]).strip()


def _describe_failure(failure: Failure, head: Response | None) -> str:
    # The library's exception may say nothing, and leave it to the one that it came of.
    said = next((words for words in map(_words, chain(failure.cause)) if words), "")
    why = f"{type(failure.cause).__name__}: {said}".removesuffix(": ")
    number = _system_error(failure.cause)
    if number in errno.errorcode and f"[Errno {number}]" not in said:
        why += f": {errno.errorcode[number]}"
    if head is not None:
        why = f"{head.status}, but the answer was cut ({why})"
    return f"timed out: {why}" if failure.timed_out else why


def _system_error(error: BaseException) -> int:
    """Give the system's own number for what went wrong, or 0."""
    numbers: Iterator[object] = (
        link.errno  # whatever it was made with
        for link in chain(error, contexts=False)
        # Those of ssl and socket have numbers that mean something else.
        if isinstance(link, OSError) and type(link).__module__ == "builtins"
    )
    return next((number for number in numbers if isinstance(number, int)), 0)


def _where(url: str, via: str | None) -> str:
    """Return the host and port that a request was for, and the proxy that it was to go through."""
    parts = urlsplit(url)
    port = "" if parts.port else ":443" if parts.scheme == "https" else ":80"
    if via is None:
        return f"{parts.netloc}{port}"
    scheme, _, rest = via.rpartition("://")
    return f"{parts.netloc}{port} through proxy {scheme}://{rest.rpartition('@')[2]}"


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


_LONGEST: Final = 400
"""Characters of somebody else's words in an error."""
_LONGEST_READ: Final = 4096
"""Characters of them that are looked at."""


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - it must not hide what became of the credits
        return ""
