"""The words of errors: what went wrong in an attempt, and the exception that a call ends in.

Whatever quotes a server or a library is redacted and bounded here. What an event proves, and whether
the client retries, does not belong here.
"""

import errno
import re
from typing import Final, NamedTuple, TypedDict

from .decoding import Envelope, InvalidResult
from .errors import (
    ERROR_CODES,
    ERROR_STATUSES,
    APIError,
    CreduseError,
    CreduseTimeoutError,
    InvalidResponseError,
    TransportError,
)
from .foreign import exception_chain
from .messages import Delivery, Failure, RefusalError, Request, Response
from .models import Attempt, CallRecord, Outcome
from .records import dataclass
from .retry import EVENTS, Event, Kind, event_of_failure, event_of_response, retry_after
from .secret import Secret, redact
from .tables import printable
from .words import request_id_of, words_of

_MAX_QUOTED: Final = 400
"""Characters of a server's or library's text in an error."""
_MAX_READ: Final = 4096
"""Characters of such a text that are searched for the API key."""

_TIMED_OUT: Final = "timed out"
_SAY_NOTHING: Final = (_TIMED_OUT, "Cancelled via cancel scope")
"""The beginnings of libraries' texts that say of a timeout only that it was one."""

_ALL_FAILED: Final = ("All connection attempts failed", "all attempts to connect to")
"""The beginnings of anyio's and trio's texts of connections that failed. The reason is in a cause, or,
where httpcore has dropped the cause, in a context."""

_PHRASES: Final = {
    Outcome.NOT_APPLIED: "not applied",
    Outcome.UNKNOWN: "may have been applied",
    Outcome.APPLIED: "applied",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an attempt has no result. Its ``repr`` quotes nothing."""

    event: Event
    text: str
    """Not redacted yet: most attempts that fail are retried, and nobody reads this."""
    response: Response | None
    envelope: Envelope
    words: str | None
    """What the sender of the response says, in the service's format or another. Not redacted yet."""
    failure: Failure | None = None

    def __repr__(self) -> str:
        return f"<Problem {self.event.name}>"

    def retry_after(self) -> float | None:
        """Return the seconds that the server asks to wait, if it does."""
        return None if self.response is None else retry_after(self.response)


class Context(NamedTuple):
    """What an error says about its call."""

    request: Request
    path: str
    kind: Kind
    record: CallRecord
    attempts: tuple[Attempt, ...]
    secrets: tuple[Secret, ...]
    proxy: str | None
    """The URL of the proxy, without user name and password."""

    @property
    def outcome(self) -> Outcome:
        """The outcome of the whole call."""
        return self.record.outcome


def problem_of_response(response: Response, reading: InvalidResult) -> Problem:
    """Return why a whole response is not a result."""
    event = event_of_response(response, reading)
    words = _words(response, reading.envelope)
    text = _describe_response(response, reading, words)
    return Problem(event, text[:_MAX_READ], response, reading.envelope, words)


def problem_of_failure(failure: Failure) -> Problem:
    """Return why there is no whole response."""
    # A response to a request that was not sent is another request's.
    head = None if failure.delivery is Delivery.NOT_SENT else failure.response
    words = None if head is None else _words(head, Envelope())
    text = _describe_failure(failure, head, words)
    return Problem(event_of_failure(failure), text[:_MAX_READ], head, Envelope(), words, failure)


def _words(response: Response, envelope: Envelope) -> str | None:
    words = envelope.message or words_of(response)
    return words and words[:_MAX_READ]


def error_of(problem: Problem, context: Context) -> CreduseError:
    """Return the exception for a call that ends with this problem."""
    failure, response = problem.failure, problem.response
    if failure is None:
        if response is not None and 400 <= response.status < 600:
            return _api_error(problem, response, context)
        return _invalid_response(problem, response, context)
    error: CreduseError
    if response is None or failure.timed_out:
        error_class = CreduseTimeoutError if failure.timed_out else TransportError
        error = error_class(_message(problem, context), **_shared(context, response))
    else:
        error = _invalid_response(problem, response, context)
    # Even None keeps the exception that is being handled now out of the traceback.
    error.__cause__ = None if _contains_secret(failure.cause, context.secrets) else failure.cause
    return error


def held_too_long(timeout: float, context: Context) -> CreduseTimeoutError:
    """Return the exception for a call whose first request is held for longer than its time."""
    text = f"not sent: the pace would hold the request beyond the call's timeout of {timeout:g} s"
    return CreduseTimeoutError(_framed(text, context), **_shared(context, None))


class _Shared(TypedDict):
    outcome: Outcome
    attempts: tuple[Attempt, ...]
    call: CallRecord
    request_id: str | None


def _shared(context: Context, response: Response | None) -> _Shared:
    """Return the arguments that all exceptions share."""
    return {
        "outcome": context.outcome,
        "attempts": context.attempts,
        "call": context.record,
        "request_id": _request_id(response, context.secrets),
    }


def _request_id(response: Response | None, secrets: tuple[Secret, ...]) -> str | None:
    found = None if response is None else request_id_of(response)
    return found and quote(found, secrets)


def quote(text: str, secrets: tuple[Secret, ...]) -> str:
    """Return somebody else's text for an error: redacted, on one line, printable, bounded."""
    # Bounded before redaction, for the time it takes, and after it. Redaction finds a cut key, too,
    # and one that is broken into lines, so lines are joined after it.
    text = printable(" ".join(redact(text[:_MAX_READ], secrets).split()))
    return text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "…"


def _api_error(problem: Problem, response: Response, context: Context) -> APIError:
    envelope, secrets = problem.envelope, context.secrets
    error_class = ERROR_STATUSES.get(response.status, APIError)
    # The class of a known code says that no credits moved. An earlier attempt can have moved them.
    if problem.event is EVENTS["refused"] and context.outcome is Outcome.NOT_APPLIED:
        error_class = ERROR_CODES[envelope.error_code or ""]
    return error_class(
        _message(problem, context),
        **_shared(context, response),
        response=redacted(response, secrets),
        error_code=envelope.error_code and quote(envelope.error_code, secrets),
        error_message=(problem.words and quote(problem.words, secrets)) or None,
        timestamp=envelope.timestamp,
        retry_after=problem.retry_after(),
    )


def _invalid_response(
    problem: Problem, response: Response | None, context: Context
) -> InvalidResponseError:
    return InvalidResponseError(
        _message(problem, context),
        **_shared(context, response),
        response=None if response is None else redacted(response, context.secrets),
    )


def _message(problem: Problem, context: Context) -> str:
    """Return the message of an error: the call, what happened and where, and what that means."""
    text, failure = quote(problem.text, context.secrets), problem.failure
    if failure is not None and failure.timed_out:
        *others, last = context.attempts
        which = "the last attempt " if others else ""
        seconds = last.ended - last.started
        rounded = round(seconds, 1 if seconds >= 1 else 4)
        text = f"{which}{_TIMED_OUT} after {rounded:g} s{text.removeprefix(_TIMED_OUT)}"
    # A whole response over TLS came through the proxy's tunnel, and is not the proxy's.
    is_the_services = failure is None and context.request.url.startswith("https:")
    proxy = None if is_the_services else context.proxy
    where = quote(_endpoint(context.request.url, proxy), context.secrets)
    return _framed(f"{text} ({where})", context, problem.response)


def _framed(text: str, context: Context, response: Response | None = None) -> str:
    """Return a message: the call, the text, and in brackets what is certain."""
    count = len(context.attempts)
    notes = ["1 attempt" if count == 1 else f"{count} attempts"]
    if context.kind is not Kind.READ:
        notes.insert(0, _PHRASES[context.outcome])
    if (request_id := _request_id(response, context.secrets)) is not None:
        notes.append(f"request ID {request_id}")
    return f"{context.record}: {text} [{'; '.join(notes)}]"


def redacted(response: Response, secrets: tuple[Secret, ...]) -> Response:
    """Return the response without these secrets, which a server can repeat in a refusal."""
    return Response(
        response.status,
        [(redact(name, secrets), redact(value, secrets)) for name, value in response.headers],
        # Latin-1 maps each byte to one character, and back.
        redact(response.body.decode("latin-1"), secrets).encode("latin-1"),
    )


def _contains_secret(error: BaseException, secrets: tuple[Secret, ...]) -> bool:
    """Return whether an exception, or one that it came of, prints the API key."""
    texts = [
        text
        for link in exception_chain(error)
        for text in (_text_of(link), *map(str, (link.args, *getattr(link, "__notes__", ()))))
    ]
    return any(redact(text, secrets) != text for text in texts)


def _describe_response(response: Response, reading: InvalidResult, words: str | None) -> str:
    said = ": ".join(part for part in (reading.envelope.error_code, words) if part)
    if 400 <= response.status < 600:
        return _after_status(response.status, said)
    if 200 <= response.status < 300:
        text = f"{response.status}, but the response {reading.problem}"
    else:
        text = f"{response.status} as the final response"
    return f"{text}: {said}" if said else text


def _after_status(status: int, said: str) -> str:
    """Return the status code and what was said, which can begin with it, as nginx's titles do."""
    said = said.strip()
    return said if re.match(rf"{status}\b", said) else f"{status} {said}".strip()


def _describe_failure(failure: Failure, head: Response | None, words: str | None) -> str:
    # The library's exception can be empty, and only the one that it came of has a text.
    said = next((text for text in map(_text_of, exception_chain(failure.cause)) if text), "")
    if failure.timed_out and said.startswith(_SAY_NOTHING):
        said = ""
    name = "" if isinstance(failure.cause, RefusalError) else f"{type(failure.cause).__name__}: "
    why = f"{name}{said}".removesuffix(": ")
    number = _errno_of(failure.cause, contexts=said.startswith(_ALL_FAILED))
    if number in errno.errorcode and f"[Errno {number}]" not in said:
        why += f": {errno.errorcode[number]}"
    if head is not None:
        why = f"{_after_status(head.status, words or '')}, but the response was cut off ({why})"
    return f"{_TIMED_OUT}: {why}" if failure.timed_out else why


def _errno_of(error: BaseException, *, contexts: bool) -> int:
    """Return the operating system's error number, or 0."""
    numbers = (
        link.errno  # of any type: it is what the exception was made with
        for link in exception_chain(error, contexts=contexts)
        # The numbers of classes in ssl and socket mean something else.
        if isinstance(link, OSError) and type(link).__module__ == "builtins"
    )
    return next((number for number in numbers if type(number) is int), 0)


def _endpoint(url: str, proxy: str | None) -> str:
    """Return the host and port of a request, and its proxy."""
    from urllib.parse import urlsplit  # noqa: PLC0415 - only failed calls need it

    parts = urlsplit(url)
    port = "" if parts.port else ":443" if parts.scheme == "https" else ":80"
    return f"{parts.netloc}{port}" + (f" through proxy {proxy}" if proxy else "")


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - whatever it is, it must not hide the outcome
        return ""
