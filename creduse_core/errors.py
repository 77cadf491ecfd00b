"""The exceptions that a call can raise. How their messages are made does not belong here.

    CreduseError                     .outcome .attempts .call
    ├── APIError                     .status_code .error_code .message .timestamp .retry_after .response
    │   ├── AmountNegativeError      AMOUNT_NEGATIVE
    │   ├── InsufficientFundsError   INSUFFICIENT_FUNDS
    │   ├── UserDoesNotExistError    USER_DOES_NOT_EXIST
    │   ├── CreditExpiredError       CREDIT_EXPIRED
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
pickled and copied. None holds the API key.
"""

from collections.abc import Mapping
from datetime import datetime

from .messages import Response
from .models import Attempt, CallRecord, Outcome


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

    def __init__(
        self,
        message: str = "",
        *,
        outcome: Outcome = Outcome.UNKNOWN,
        attempts: tuple[Attempt, ...] = (),
        call: CallRecord | None = None,
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.attempts = attempts
        self.call = call


class APIError(CreduseError):
    """The service, or a proxy in front of it, responded with an error."""

    status_code: int | None
    error_code: str | None
    """The service's own code, such as ``INSUFFICIENT_FUNDS``, if it sent one."""
    message: str | None
    """The service's own message, if it sent one. It is printable, and cut to about 400 characters."""
    timestamp: datetime | None
    """The time that the service gives, if any. It is aware."""
    retry_after: float | None
    """Seconds that the response asks to wait before the next call (RFC 9110, 10.2.3)."""
    response: Response | None
    """The response. If it repeated the API key, the key is replaced by ``***``."""

    def __init__(  # noqa: PLR0913 - one for each field
        self,
        message: str = "",
        *,
        outcome: Outcome = Outcome.UNKNOWN,
        attempts: tuple[Attempt, ...] = (),
        call: CallRecord | None = None,
        response: Response | None = None,
        error_code: str | None = None,
        error_message: str | None = None,
        timestamp: datetime | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, outcome=outcome, attempts=attempts, call=call)
        self.status_code = None if response is None else response.status
        self.error_code = error_code
        self.message = error_message
        self.timestamp = timestamp
        self.retry_after = retry_after
        self.response = response


# The classes of known codes are raised only with the outcome NOT_APPLIED.


class AmountNegativeError(APIError):
    """The service rejects a negative amount. The client rejects it first, with a ``ValueError``."""


class InsufficientFundsError(APIError):
    """The end user has fewer credits than ``amount``. None were taken."""


class UserDoesNotExistError(APIError):
    """The service does not know the end user."""


class CreditExpiredError(APIError):
    """The end user's credits have expired."""


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
        *,
        outcome: Outcome = Outcome.UNKNOWN,
        attempts: tuple[Attempt, ...] = (),
        call: CallRecord | None = None,
        response: Response | None = None,
    ) -> None:
        super().__init__(message, outcome=outcome, attempts=attempts, call=call)
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
