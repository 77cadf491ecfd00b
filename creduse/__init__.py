"""Creduse: credits for an app's end users, and always a word on whether they moved.

    from creduse import CreduseClient

    with CreduseClient() as client:          # the key from CREDUSE_API_KEY
        client.add(end_user_id, 100)
        client.subtract(end_user_id, 50)
        print(client.get_balance(end_user_id).active_balance)

Every call ends in a result, or in a `CreduseError` whose ``outcome`` says whether the credits
moved: ``NOT_APPLIED``, ``UNKNOWN`` or ``APPLIED``. Nothing is ever applied twice.

For asyncio and trio there is `AsyncCreduseClient`, with the same methods. ``creduse_sandbox`` is a
Creduse of your own to test against.
"""

from creduse_core import (
    ActiveBalance,
    ActiveCycleExistsError,
    AmountNegativeError,
    APIError,
    Attempt,
    AuthenticationError,
    CreditExpiredError,
    CreditsAdded,
    CreditsSubtracted,
    CreduseError,
    CreduseTimeoutError,
    Cycle,
    CycleBalance,
    CycleStatus,
    CycleType,
    InsufficientFundsError,
    InvalidResponseError,
    LocalProtocolError,
    NoActiveCycleError,
    Outcome,
    RateLimitError,
    RetryPolicy,
    ServerError,
    TransportError,
    UserDoesNotExistError,
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
    "InsufficientFundsError",
    "InvalidResponseError",
    "LocalProtocolError",
    "NoActiveCycleError",
    "Outcome",
    "RateLimitError",
    "RetryPolicy",
    "ServerError",
    "TransportError",
    "UserDoesNotExistError",
    "__version__",
]
