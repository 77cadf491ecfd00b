"""The exceptions that a call can raise. How their messages are made does not belong here.

    CreduseError                     .outcome .attempts .call .request_id
    ├── APIError                     .status_code .error_code .message .timestamp .retry_after .response
    │   ├── CannotPayError
    │   │   ├── InsufficientFundsError   INSUFFICIENT_FUNDS
    │   │   ├── CreditExpiredError       CREDIT_EXPIRED
    │   │   └── UserDoesNotExistError    USER_DOES_NOT_EXIST
    │   ├── AmountNegativeError      AMOUNT_NEGATIVE
    │   ├── ActiveCycleExistsError   ACTIVE_CYCLE_EXISTS
    │   ├── NoActiveCycleError       NO_ACTIVE_CYCLE
    │   ├── AuthenticationError      401, 403
    │   ├── RateLimitError           429
    │   └── ServerError              5xx
    ├── InvalidResponseError         .response
    └── TransportError
        └── CreduseTimeoutError
    LocalProtocolError               a RuntimeError: wrong use of the core

Wrong arguments raise ``TypeError`` or ``ValueError`` before anything is sent. Every error can be
pickled and copied. None holds the API key. ``args`` has the message and the outcome: tools that keep
an exception as JSON, as Celery does, keep the type and ``args`` alone.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from .messages import Response
from .models import Attempt, CallRecord, Outcome
from .records import json_value

_IN_DICT: Final = (
    *("call", "attempts", "request_id"),
    *("status_code", "error_code", "retry_after", "timestamp"),
)


class CreduseError(Exception):
    """A call ended without a result. ``outcome`` says whether credits moved all the same.

    All arguments have defaults, so that tests can raise one.
    """

    outcome: Outcome
    """What is certain about the whole call, with all its attempts."""
    attempts: tuple[Attempt, ...]
    """The attempts, in order."""
    call: CallRecord | None
    """What the call was and when it began. ``client.check(error)`` finds out more about it. The
    clients always set it."""
    request_id: str | None
    """The name that the server, or one in front of it, gave the last request, in ``X-Request-Id`` or a
    header like that. Quote it when you ask its operators. ``None`` if there is none."""

    def __init__(
        self,
        message: str = "",
        outcome: Outcome | int = Outcome.UNKNOWN,
        *,
        attempts: tuple[Attempt, ...] = (),
        call: CallRecord | None = None,
        request_id: str | None = None,
    ) -> None:
        self.outcome = Outcome(outcome)
        super().__init__(message, self.outcome)
        self.attempts = attempts
        self.call = call
        self.request_id = request_id

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        # Not with the arguments of __init__, which a subclass can change.
        return _restored, (type(self), self.args), vars(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the error as a dictionary that ``json.dumps`` accepts.

        It has the ``outcome`` by its name, the name of the class as ``error``, the ``message``, and the
        other attributes but ``response``. Of an `APIError`, it also has the service's own
        ``error_message``.
        """
        attributes = {
            name: json_value(getattr(self, name)) for name in _IN_DICT if hasattr(self, name)
        }
        if isinstance(self, APIError):
            attributes["error_message"] = self.message
        said = {"error": type(self).__name__, "message": str(self)}
        return {"outcome": self.outcome.name} | said | attributes


def _restored(kind: type[CreduseError], args: tuple[object, ...]) -> CreduseError:
    return kind.__new__(kind, *args)


class APIError(CreduseError):
    """The service, or a proxy in front of it, responded with an error."""

    status_code: int | None
    error_code: str | None
    """The service's own code, such as ``INSUFFICIENT_FUNDS``, if it sent one."""
    message: str | None
    """The service's own message; or what a server in front of it says in another format, such as the
    title of HTML. It is printable, and cut to about 400 characters. ``None`` if there is none."""
    timestamp: datetime | None
    """The time that the service gives, if any. It is aware."""
    retry_after: float | None
    """Seconds that the response asks to wait before the next call (RFC 9110, 10.2.3)."""
    response: Response | None
    """The response. If it repeated the API key, the key is replaced by ``***``."""

    def __init__(  # noqa: PLR0913 - one for each field
        self,
        message: str = "",
        outcome: Outcome | int = Outcome.UNKNOWN,
        *,
        attempts: tuple[Attempt, ...] = (),
        call: CallRecord | None = None,
        request_id: str | None = None,
        response: Response | None = None,
        error_code: str | None = None,
        error_message: str | None = None,
        timestamp: datetime | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, outcome, attempts=attempts, call=call, request_id=request_id)
        self.status_code = None if response is None else response.status
        self.error_code = error_code
        self.message = error_message
        self.timestamp = timestamp
        self.retry_after = retry_after
        self.response = response


# The classes of known codes are raised only with the outcome NOT_APPLIED.


class AmountNegativeError(APIError):
    """The service rejects a negative amount. The client rejects it first, with a ``ValueError``."""


class CannotPayError(APIError):
    """The end user has too few credits, or has never had any. None were taken.

    Catch this class where an app asks its user to buy credits.
    """


class InsufficientFundsError(CannotPayError):
    """The end user has fewer credits than ``amount``. None were taken."""


class CreditExpiredError(CannotPayError):
    """The end user's credits have expired. None were taken."""


class UserDoesNotExistError(CannotPayError):
    """The service does not know the end user, who has never had credits."""


class ActiveCycleExistsError(APIError):
    """The end user already has a recurring cycle."""


class NoActiveCycleError(APIError):
    """The end user has no recurring cycle to stop."""


class AuthenticationError(APIError):
    """The service rejects the API key (401), or does not allow it this call (403)."""


class RateLimitError(APIError):
    """Too many requests (429). ``retry_after`` says how long to wait, if the service says so."""


class ServerError(APIError):
    """The service failed (5xx). A write may have been applied."""


class InvalidResponseError(CreduseError):
    """The response is outside the contract: cut off, a redirect, not JSON, about another user.

    ``APPLIED`` means: the response proves that the credits moved, but a field is missing or invalid.
    An ``error_code`` under 2xx proves nothing; it is in the message.
    """

    response: Response | None
    """The response, or the part of it that arrived. If it repeated the API key, the key is replaced by
    ``***``."""

    def __init__(
        self,
        message: str = "",
        outcome: Outcome | int = Outcome.UNKNOWN,
        *,
        attempts: tuple[Attempt, ...] = (),
        call: CallRecord | None = None,
        request_id: str | None = None,
        response: Response | None = None,
    ) -> None:
        super().__init__(message, outcome, attempts=attempts, call=call, request_id=request_id)
        self.response = response


class TransportError(CreduseError):
    """No whole response arrived. The HTTP library's own exception is the ``__cause__``."""


class CreduseTimeoutError(TransportError):
    """No whole response arrived within the time of the call, or of an attempt."""


class LocalProtocolError(RuntimeError):
    """Wrong use of the core: an input that the call's state does not allow. Nothing has changed."""


ERROR_CODES: Mapping[str, type[APIError]] = {
    "AMOUNT_NEGATIVE": AmountNegativeError,
    "INSUFFICIENT_FUNDS": InsufficientFundsError,
    "USER_DOES_NOT_EXIST": UserDoesNotExistError,
    "CREDIT_EXPIRED": CreditExpiredError,
    "ACTIVE_CYCLE_EXISTS": ActiveCycleExistsError,
    "NO_ACTIVE_CYCLE": NoActiveCycleError,
}
"""The service's known codes. Each says that no credits moved. The class is used where that is sure:
under a 4xx, and if no earlier attempt of the call can have been applied."""

ERROR_STATUSES: Mapping[int, type[APIError]] = {
    401: AuthenticationError,
    403: AuthenticationError,
    429: RateLimitError,
} | dict.fromkeys(range(500, 600), ServerError)
"""The classes of statuses, for responses without a known code. Any other 4xx is an `APIError`."""
