"""What each event proves, whether it may be tried again, and how long to wait before.

The table `EVENTS` and the functions that find a row of it are the whole of the judgement.
All of it is pure: no clock, no randomness, no state.
"""

import enum
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from .decoding import Bad
from .errors import ERROR_CODES
from .messages import Delivery, Failure, Response
from .models import Outcome


class Kind(enum.StrEnum):
    """What sending a call twice could do."""

    READ = "read"
    """Changes nothing, so it may always be sent again, and its outcome is NOT_APPLIED."""
    WRITE = "write"
    """Moves credits: not to be sent again unless it is certain that it was not applied."""
    REPLAYABLE = "replayable"
    """A write with an idempotency key that the server is known to honour."""


@dataclass(frozen=True, slots=True)
class Event:
    """A row of the table: what happened, what that proves, and whether a retry may help."""

    name: str
    evidence: Outcome
    """What it proves of a write: that one request, sent once."""
    evidence_with_key: Outcome
    """What it proves of a write with an idempotency key. An earlier request with this key may still
    run, so that a later one was not carried out proves nothing about the piece of work."""
    transient: bool
    description: str

    def proves(self, kind: Kind) -> Outcome:
        """Return what it proves of a call of this kind."""
        if kind is Kind.WRITE:
            return self.evidence
        return self.evidence_with_key if kind is Kind.REPLAYABLE else Outcome.NOT_APPLIED


_N, _U, _A = Outcome.NOT_APPLIED, Outcome.UNKNOWN, Outcome.APPLIED

EVENTS: dict[str, Event] = {
    name: Event(name, evidence, with_key, transient, description)
    for name, evidence, with_key, transient, description in (
        ("done", _A, _A, False, "a 2xx response to this request, complete and valid"),
        (
            "not_sent",
            _N,
            _N,
            True,
            "nothing was sent: name look-up, connection refused, connect or pool timeout",
        ),
        (
            "unsendable",
            _N,
            _N,
            False,
            "nothing was sent, and a retry cannot help: certificate, closed client",
        ),
        ("no_response", _U, _U, True, "may have been sent, and no response arrived"),
        (
            "broken",
            _U,
            _U,
            False,
            "may have been sent, and the transport says that a retry cannot help",
        ),
        ("abandoned", _U, _U, False, "the caller cancelled the call in flight"),
        (
            "misread",
            _A,
            _A,
            False,
            "a 2xx response to this request, with a missing or invalid field",
        ),
        ("cut", _U, _U, True, "a 2xx response that was cut off or timed out"),
        (
            "mismatched",
            _U,
            _U,
            False,
            "a 2xx response that names another user or amount, or is not valid JSON",
        ),
        ("refused", _N, _N, False, "4xx with an error code that says that no credits moved"),
        ("rejected", _N, _U, False, "any other 4xx that means: the request was not carried out"),
        ("conflict", _U, _U, True, "any other 409"),
        ("rate_limited", _N, _U, True, "any other 429"),
        ("request_timeout", _U, _U, True, "any other 408"),
        ("server_error", _U, _U, True, "5xx, save 501 and 505"),
        ("unproven", _U, _U, False, "any other status: 1xx, 3xx, 501, …"),
    )
}
"""NOT_APPLIED and APPLIED need proof; everything else is UNKNOWN."""

_STATUS_EVENTS: dict[int, Event] = (
    dict.fromkeys(range(500, 600), EVENTS["server_error"])
    | dict.fromkeys((501, 505), EVENTS["unproven"])
    # Statuses that RFC 9110 and its companions define as: the request was not carried out.
    | dict.fromkeys((*range(400, 408), *range(410, 418)), EVENTS["rejected"])
    | dict.fromkeys((*range(421, 427), 428, 431, 451), EVENTS["rejected"])
    | {
        408: EVENTS["request_timeout"],
        409: EVENTS["conflict"],
        429: EVENTS["rate_limited"],
    }
)


def event_of_status(status: int, code: str | None) -> Event:
    """Find the row for a response that is no 2xx; ``code``: the ``error_code`` of its body."""
    if 400 <= status < 500 and code in ERROR_CODES:
        return EVENTS["refused"]
    event = _STATUS_EVENTS.get(status, EVENTS["unproven"])
    if 400 <= status < 500 and code is not None and event is EVENTS["unproven"]:
        # The service itself says no, under a status that alone would not prove it.
        return EVENTS["rejected"]
    return event


def event_of_response(response: Response, reading: Bad) -> Event:
    """Find the row for a whole response that has no result."""
    if 200 <= response.status < 300:
        return EVENTS["misread" if reading.ours else "mismatched"]
    return event_of_status(response.status, reading.envelope.error_code)


def event_of_failure(failure: Failure) -> Event:
    """Find the row for a failure to get a whole response."""
    if failure.delivery is Delivery.NOT_SENT:
        return EVENTS["not_sent" if failure.transient else "unsendable"]
    if failure.response is None:
        return EVENTS["no_response" if failure.transient else "broken"]
    if 200 <= failure.response.status < 300:
        return EVENTS["cut" if failure.transient else "mismatched"]
    return event_of_status(failure.response.status, None)


def may_retry(event: Event, kind: Kind, evidence: Outcome) -> bool:
    """Return whether to send the request again after ``event``.

    ``evidence`` is the greatest among the call's attempts, this one included.
    """
    return event.transient and (kind is not Kind.WRITE or evidence is Outcome.NOT_APPLIED)


def _check_type(name: str, value: object, wanted: type) -> None:
    if type(value) is not wanted:  # a bool is an int to isinstance
        raise TypeError(f"{name} must be {wanted.__name__}, not {type(value).__name__}")


def _check_number(name: str, value: object, *, low: float, above: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not low <= value <= MAX_SECONDS or (above and value == low):
        bound = f"above {low:g}" if above else f"at least {low:g}"
        raise ValueError(
            f"{name} must be {bound} and at most {MAX_SECONDS:,} seconds, not {value!r}"
        )


MAX_SECONDS = 1_000_000
"""The longest time that may be asked for, some eleven days: sockets refuse far longer ones."""


def check_timeout(name: str, value: object) -> None:
    """Refuse what is no time to wait: raise ``TypeError`` or ``ValueError`` that names it."""
    _check_number(name, value, low=0, above=True)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When and how often a call is tried again. Times are seconds.

    A call is tried again only where that cannot apply it twice, whatever this says.
    """

    max_attempts: int = 3
    """1 tries once."""
    initial_delay: float = 0.5
    """The wait after the first attempt; it doubles with each, times a random number from 0 to 1.
    Where ``Retry-After`` asks for more, the client waits that long."""
    max_delay: float = 8.0
    """The delay doubles no further than this."""
    attempt_timeout: float = 10.0
    """Bounds connecting, always, and the answer of calls that may be sent again. A write that
    has been sent waits for its answer as long as the call may last."""
    server_replays: bool = False
    """The server is known to honour ``Idempotency-Key``: it answers a repeated key without
    applying the request again. Creduse is not known to."""

    def __post_init__(self) -> None:
        """Refuse values that make no policy."""
        _check_type("max_attempts", self.max_attempts, int)
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {self.max_attempts}")
        _check_number("initial_delay", self.initial_delay, low=0)
        _check_number("max_delay", self.max_delay, low=0)
        check_timeout("attempt_timeout", self.attempt_timeout)
        _check_type("server_replays", self.server_replays, bool)

    def delay(self, attempt: int, jitter: float) -> float:
        """Seconds to wait after attempt number ``attempt``, ``jitter`` being from 0 to 1."""
        # The exponent is bounded since a float is: 2.0**1024 raises OverflowError.
        return min(self.max_delay, self.initial_delay * 2.0 ** min(attempt - 1, 64)) * jitter


_LONGEST_ASKED = 1e9
"""Seconds, some thirty years. What is read as a longer wait is taken for this one."""
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")


def retry_after(response: Response) -> float | None:
    """Read ``Retry-After`` (RFC 9110, 10.2.3) as seconds from now, or ``None`` if it says nothing.

    Fractions of a second, which some servers send, count too. A date is measured against the
    response's own ``Date``, since clocks differ; without one it says nothing.
    """
    value = response.header("Retry-After")
    if value is None:
        return None
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return min(float(value), _LONGEST_ASKED)
    then, now = _http_date(value), _http_date(response.header("Date") or "")
    if then is None or now is None:
        return None
    return min(max(0.0, (then - now).total_seconds()), _LONGEST_ASKED)


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# The three forms of RFC 9110, 5.6.7, which a recipient must all accept.
_DATES = tuple(
    re.compile(pattern, re.ASCII)
    for pattern in (
        r"\w{3}, (?P<day>\d\d) (?P<month>\w{3}) (?P<year>\d{4}) (?P<time>\d\d:\d\d:\d\d) GMT",
        r"\w+, (?P<day>\d\d)-(?P<month>\w{3})-(?P<year>\d\d) (?P<time>\d\d:\d\d:\d\d) GMT",
        r"\w{3} (?P<month>\w{3}) (?P<day>[\d ]\d) (?P<time>\d\d:\d\d:\d\d) (?P<year>\d{4})",
    )
)


def _http_date(text: str) -> datetime | None:
    for pattern in _DATES:
        if match := pattern.fullmatch(text.strip()):
            year = int(match["year"])
            # A year of two digits: nobody asks to wait until the last century.
            year += 2000 if year < 100 else 0
            hour, minute, second = map(int, match["time"].split(":"))
            try:
                return datetime(
                    year,
                    _MONTHS.index(match["month"]) + 1,
                    int(match["day"]),
                    hour,
                    minute,
                    min(second, 59),  # a leap second
                    tzinfo=UTC,
                )
            except ValueError:
                return None
    return None
