"""A client for Creduse, which keeps credits of an app's end users. Errors say whether credits moved.

Example::

    from creduse import CreduseClient

    with CreduseClient() as client:          # the key from CREDUSE_API_KEY
        client.add(end_user_id, 100)
        client.subtract(end_user_id, 50)
        print(client.get_balance(end_user_id).active_balance)

Every call returns a result, or raises a `CreduseError`. Its ``outcome`` says whether the credits
moved: ``NOT_APPLIED``, ``UNKNOWN`` or ``APPLIED``. The client never applies a call twice.

`AsyncCreduseClient` has the same methods for asyncio and trio. ``creduse_sandbox`` is a local
Creduse server for tests.
"""

from creduse_core import (
    ActiveBalance,
    ActiveCycleExistsError,
    AmountNegativeError,
    APIError,
    Attempt,
    AuthenticationError,
    BalanceReading,
    CallRecord,
    CannotPayError,
    CreditExpiredError,
    CreditsAdded,
    CreditsSubtracted,
    CreduseError,
    CreduseTimeoutError,
    Cycle,
    CycleBalance,
    CycleStatus,
    CycleType,
    Evidence,
    FinishedCall,
    InsufficientFundsError,
    InvalidResponseError,
    LocalProtocolError,
    NoActiveCycleError,
    Outcome,
    Pace,
    RateLimitError,
    RetryPolicy,
    Secret,
    ServerError,
    TransportError,
    UserDoesNotExistError,
    Verdict,
    __version__,
)
from creduse_httpx import AsyncCreduseClient, CreduseClient

__all__ = [
    "APIError",
    "ActiveBalance",
    "ActiveCycleExistsError",
    "AmountNegativeError",
    "AsyncCreduseClient",
    "Attempt",
    "AuthenticationError",
    "BalanceReading",
    "CallRecord",
    "CannotPayError",
    "CreditExpiredError",
    "CreditsAdded",
    "CreditsSubtracted",
    "CreduseClient",
    "CreduseError",
    "CreduseTimeoutError",
    "Cycle",
    "CycleBalance",
    "CycleStatus",
    "CycleType",
    "Evidence",
    "FinishedCall",
    "InsufficientFundsError",
    "InvalidResponseError",
    "LocalProtocolError",
    "NoActiveCycleError",
    "Outcome",
    "Pace",
    "RateLimitError",
    "RetryPolicy",
    "Secret",
    "ServerError",
    "TransportError",
    "UserDoesNotExistError",
    "Verdict",
    "__version__",
]
