"""Every error that a call can end in.

    CreduseError                     .outcome .attempts
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
    LocalProtocolError               a RuntimeError: the core was driven wrongly

Wrong arguments are no `CreduseError`: they raise ``TypeError`` and ``ValueError`` before anything
is sent. Each error pickles and copies; none holds the API key.
"""

from collections.abc import Mapping
from datetime import datetime

from .messages import Response
from .models import Attempt, Outcome


class CreduseError(Exception):
    """A call that ended without a result. ``outcome`` says whether it moved credits all the same.

    The arguments beyond the message have defaults so that tests can raise one by hand.
    """

    outcome: Outcome
    """What is certain about the whole call, all its attempts included."""
    attempts: tuple[Attempt, ...]
    """What was tried, in order."""

    def __init__(
        self,
        message: str = "",
        *,
        outcome: Outcome = Outcome.UNKNOWN,
        attempts: tuple[Attempt, ...] = (),
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.attempts = attempts


class APIError(CreduseError):
    """The service, or something in front of it, answered with an error."""

    status_code: int | None
    error_code: str | None
    """The service's own code, such as ``INSUFFICIENT_FUNDS``, if it sent one."""
    message: str | None
    """The service's own words, if it sent any: printable, and at most some 400 characters."""
    timestamp: datetime | None
    """When the service says it happened; aware."""
    retry_after: float | None
    """Seconds that the answer asks to wait before calling again (RFC 9110, 10.2.3)."""
    response: Response | None
    """The answer, with the API key taken out should it have been repeated there."""

    def __init__(  # noqa: PLR0913 - what an answer can say, each by its name
        self,
        message: str = "",
        *,
        outcome: Outcome = Outcome.UNKNOWN,
        attempts: tuple[Attempt, ...] = (),
        response: Response | None = None,
        error_code: str | None = None,
        error_message: str | None = None,
        timestamp: datetime | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, outcome=outcome, attempts=attempts)
        self.status_code = None if response is None else response.status
        self.error_code = error_code
        self.message = error_message
        self.timestamp = timestamp
        self.retry_after = retry_after
        self.response = response


# A class that bears the meaning of a known code is raised only with the outcome NOT_APPLIED.


class AmountNegativeError(APIError):
    """The service refuses a negative amount. The client refuses it first, as a ``ValueError``."""


class InsufficientFundsError(APIError):
    """The end user has fewer credits than were to be subtracted. None were taken."""


class UserDoesNotExistError(APIError):
    """The service does not know the end user."""


class CreditExpiredError(APIError):
    """The end user's credits have expired."""


class ActiveCycleExistsError(APIError):
    """The end user already has a recurring cycle."""


class NoActiveCycleError(APIError):
    """The end user has no recurring cycle to stop."""


class AuthenticationError(APIError):
    """The API key was not accepted (401), or not for this (403)."""


class RateLimitError(APIError):
    """Too many requests (429); ``retry_after`` says how long to wait, if the service did."""


class ServerError(APIError):
    """The service failed (5xx). That proves nothing: a write may have been applied."""


class InvalidResponseError(CreduseError):
    """An answer came that is outside the contract: cut, a redirect, not JSON, not about our user.

    Where ``outcome`` is ``APPLIED``, the answer proves that the credits moved, and only the rest
    of it could not be read. An ``error_code`` under 2xx, which proves nothing, is in the message.
    """

    response: Response | None
    """The answer, as far as it came, with the API key taken out should it be repeated there."""

    def __init__(
        self,
        message: str = "",
        *,
        outcome: Outcome = Outcome.UNKNOWN,
        attempts: tuple[Attempt, ...] = (),
        response: Response | None = None,
    ) -> None:
        super().__init__(message, outcome=outcome, attempts=attempts)
        self.response = response


class TransportError(CreduseError):
    """No answer came. The HTTP library's own exception is the ``__cause__``."""


class CreduseTimeoutError(TransportError):
    """No whole answer came within the time of the call, or of an attempt."""


class LocalProtocolError(RuntimeError):
    """The core was driven wrongly: an input that its state does not allow. Nothing has changed."""


ERROR_CODES: Mapping[str, type[APIError]] = {
    "AMOUNT_NEGATIVE": AmountNegativeError,
    "INSUFFICIENT_FUNDS": InsufficientFundsError,
    "USER_DOES_NOT_EXIST": UserDoesNotExistError,
    "CREDIT_EXPIRED": CreditExpiredError,
    "ACTIVE_CYCLE_EXISTS": ActiveCycleExistsError,
    "NO_ACTIVE_CYCLE": NoActiveCycleError,
}
"""Known codes of the service: each says that no credits moved. One picks the class where that is
sure: under a 4xx, and if no earlier attempt of the call may have been applied."""

ERROR_STATUSES: Mapping[int, type[APIError]] = {
    401: AuthenticationError,
    403: AuthenticationError,
    429: RateLimitError,
} | dict.fromkeys(range(500, 600), ServerError)
"""The class for a status where no code picks one; any other 4xx is `APIError`."""
