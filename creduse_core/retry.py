"""What each event proves, when to retry, and how long to wait before a retry.

The table `EVENTS` and the functions that find its rows decide everything. They are pure: clocks,
random numbers and state do not belong here.
"""

import enum
import re
from datetime import UTC, datetime

from .arguments import check_at_least_one, check_seconds, check_timeout, check_type
from .decoding import InvalidResult
from .errors import ERROR_CODES
from .messages import Delivery, Failure, Response
from .models import Outcome
from .records import dataclass


class Kind(enum.StrEnum):
    """Whether a call can be sent twice."""

    READ = "read"
    """It moves no credits, so it can always be sent again. Its outcome is always NOT_APPLIED."""
    WRITE = "write"
    """It moves credits. It can be sent again only after proof that no earlier request was
    applied."""
    REPLAYABLE = "replayable"
    """It has an idempotency key that the server honours, so it can always be sent again."""


@dataclass(frozen=True, slots=True)
class Event:
    """What can happen to an attempt, what it proves, and whether a retry can help."""

    name: str
    evidence: Outcome
    """What the event proves of a write without an idempotency key."""
    evidence_with_key: Outcome
    """What the event proves of a write with an idempotency key. A 401 or 429 proves less here,
    because an earlier request with the same key can still be running. The service's own codes
    (``refused``) prove the same."""
    transient: bool
    """Whether a retry can help."""
    description: str

    def proves(self, kind: Kind) -> Outcome:
        """Return what the event proves of a call of this kind."""
        if kind is Kind.WRITE:
            return self.evidence
        return self.evidence_with_key if kind is Kind.REPLAYABLE else Outcome.NOT_APPLIED


_N, _U, _A = Outcome.NOT_APPLIED, Outcome.UNKNOWN, Outcome.APPLIED

_DESCRIPTIONS: dict[str, str] = {
    "done": "a 2xx response to this request, complete and valid",
    "not_sent": "nothing was sent: name lookup, connection refused, connect or pool timeout",
    "unsendable": "nothing was sent, and a retry cannot help: certificate, closed client",
    "no_response": "may have been sent, and no whole response arrived",
    "broken": "may have been sent, and the transport says that a retry cannot help",
    "abandoned": "the caller cancelled the call in flight",
    "misread": "a 2xx response to this request, in which a field is missing or invalid",
    "cut": "a 2xx response that was cut off or timed out",
    "mismatched": "any other 2xx response: of another user or amount, an error, or not valid JSON",
    "refused": "4xx with an error code that says that no credits moved",
    "rejected": "any other 4xx that says that the request was not carried out",
    "conflict": "any other 409",
    "rate_limited": "any other 429",
    "request_timeout": "any other 408",
    "server_error": "5xx, except 501 and 505",
    "unproven": "any other status: 1xx, 3xx, 501, …",
}

EVENTS: dict[str, Event] = {
    name: Event(name, evidence, with_key, transient, _DESCRIPTIONS[name])
    for name, evidence, with_key, transient in (
        ("done", _A, _A, False),
        ("not_sent", _N, _N, True),
        ("unsendable", _N, _N, False),
        ("no_response", _U, _U, True),
        ("broken", _U, _U, False),
        ("abandoned", _U, _U, False),
        ("misread", _A, _A, False),
        ("cut", _U, _U, True),
        ("mismatched", _U, _U, False),
        ("refused", _N, _N, False),
        ("rejected", _N, _U, False),
        ("conflict", _U, _U, True),
        ("rate_limited", _N, _U, True),
        ("request_timeout", _U, _U, True),
        ("server_error", _U, _U, True),
        ("unproven", _U, _U, False),
    )
}
"""Every event by its name. NOT_APPLIED and APPLIED need proof. Everything else is UNKNOWN."""

_STATUS_EVENTS: dict[int, Event] = (
    dict.fromkeys(range(500, 600), EVENTS["server_error"])
    | dict.fromkeys((501, 505), EVENTS["unproven"])
    # By RFC 9110 and the RFCs that extend it, these mean: the request was not carried out.
    | dict.fromkeys((*range(400, 408), *range(410, 418)), EVENTS["rejected"])
    | dict.fromkeys((*range(421, 427), 428, 431, 451), EVENTS["rejected"])
    | {
        408: EVENTS["request_timeout"],
        409: EVENTS["conflict"],
        429: EVENTS["rate_limited"],
    }
)


def event_of_status(status: int, code: str | None) -> Event:
    """Return the event of a response that is not 2xx. ``code`` is the ``error_code`` of its body."""
    if not 400 <= status < 500:
        return _STATUS_EVENTS.get(status, EVENTS["unproven"])
    if code in ERROR_CODES:
        return EVENTS["refused"]
    # With a code, the service itself rejects the request, even if the status alone proves nothing.
    return _STATUS_EVENTS.get(status) or EVENTS["unproven" if code is None else "rejected"]


def event_of_response(response: Response, reading: InvalidResult) -> Event:
    """Return the event of a whole response that is not a result."""
    if 200 <= response.status < 300:
        return EVENTS["misread" if reading.is_own else "mismatched"]
    return event_of_status(response.status, reading.envelope.error_code)


def event_of_failure(failure: Failure) -> Event:
    """Return the event of a failure to get a whole response."""
    if failure.delivery is Delivery.NOT_SENT:
        return EVENTS["not_sent" if failure.transient else "unsendable"]
    if failure.response is None:
        return EVENTS["no_response" if failure.transient else "broken"]
    if 200 <= failure.response.status < 300:
        return EVENTS["cut" if failure.transient else "mismatched"]
    return event_of_status(failure.response.status, None)


def may_ask_proxy_again(status: int) -> bool:
    """Return whether a retry can help after a proxy has refused a tunnel with this status.

    What a status says of a retry, it says from a proxy, too. Nothing was sent to the service.
    """
    return event_of_status(status, None).transient


def may_retry(event: Event, kind: Kind, evidence: Outcome) -> bool:
    """Return whether a retry after ``event`` can help and cannot apply the call twice.

    ``evidence`` is the greatest of the call's attempts, this one included.
    """
    return event.transient and (kind is not Kind.WRITE or evidence is Outcome.NOT_APPLIED)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When and how often the client retries a call. Times are seconds.

    Whatever the policy says, the client retries only where a retry cannot apply the call twice.
    """

    max_attempts: int = 3
    """With 1, the client does not retry."""
    initial_delay: float = 0.5
    """The delay after the first attempt. It doubles after each further attempt. The client waits for
    a random part of the delay, or for as long as ``Retry-After`` asks if that is longer."""
    max_delay: float = 8.0
    """The longest delay."""
    attempt_timeout: float = 10.0
    """The time to connect, and for calls that can be sent twice, the time for the response. A write
    that has been sent waits for its response until the call's own deadline."""
    server_replays: bool = False
    """Whether the server honours ``Idempotency-Key``: it responds to a repeated key, and does not
    apply the request again. Creduse is not known to."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_at_least_one("max_attempts", self.max_attempts)
        check_seconds("initial_delay", self.initial_delay)
        check_seconds("max_delay", self.max_delay)
        check_timeout("attempt_timeout", self.attempt_timeout)
        check_type("server_replays", self.server_replays, bool)

    def delay(self, attempt: int, jitter: float) -> float:
        """Return the seconds to wait after this attempt. ``jitter`` is from 0 to 1."""
        # The exponent is bounded, since 2.0**1024 raises OverflowError.
        return min(self.max_delay, self.initial_delay * 2.0 ** min(attempt - 1, 64)) * jitter


_MAX_RETRY_AFTER = 1e9
"""Seconds, about thirty years. Longer values are read as this one."""
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")


def retry_after(response: Response) -> float | None:
    """Return ``Retry-After`` (RFC 9110, 10.2.3) in seconds from now, or ``None``.

    Fractions of a second, which some servers send, are read. A date is compared with the response's
    own ``Date``, since clocks differ. Without ``Date`` it is ignored.
    """
    value = response.header("Retry-After")
    if value is None:
        return None
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return min(float(value), _MAX_RETRY_AFTER)
    now = response_date(response)
    then = _http_date(value, now)
    if then is None or now is None:
        return None
    return min(max(0.0, (then - now).total_seconds()), _MAX_RETRY_AFTER)


def response_date(response: Response) -> datetime | None:
    """Return ``Date`` (RFC 9110, 6.6.1), or ``None``."""
    return _http_date(response.header("Date") or "", None)


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# A recipient must accept all three forms (RFC 9110, 5.6.7).
_DATES = tuple(
    re.compile(pattern, re.ASCII)
    for pattern in (
        r"\w{3}, (?P<day>\d\d) (?P<month>\w{3}) (?P<year>\d{4}) (?P<time>\d\d:\d\d:\d\d) GMT",
        r"\w+, (?P<day>\d\d)-(?P<month>\w{3})-(?P<year>\d\d) (?P<time>\d\d:\d\d:\d\d) GMT",
        r"\w{3} (?P<month>\w{3}) (?P<day>[\d ]\d) (?P<time>\d\d:\d\d:\d\d) (?P<year>\d{4})",
    )
)


def _http_date(text: str, now: datetime | None) -> datetime | None:
    for pattern in _DATES:
        if match := pattern.fullmatch(text.strip()):
            year = int(match["year"])
            if len(match["year"]) == 2:
                year += 2000
                # One that seems more than 50 years ahead has passed (RFC 9110, 5.6.7).
                year -= 100 if now and year > now.year + 50 else 0
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
