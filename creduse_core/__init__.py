"""The sans-IO core of the Creduse client: requests out, results in, nothing sent by itself.

Standard library only. To use it over an HTTP library of your own, write a `Transport` and hand it
to `CoreClient`; or drive a `Call` by hand:

    call = CreduseProtocol(api_key).subtract(end_user_id, 50)
    send = call.start(now)                      # send.request is what to send
    call.receive_response(Response(…), now)     # Done(result), Wait(seconds), or raises

Rooms, each importing only those before it: secret, messages, models, errors, decoding, retry, call,
protocol, environment, pool, tls, client.
"""

from ._version import __version__
from .call import TRANSITIONS, Call, Done, Input, Reply, Send, State, Wait
from .client import AsyncCoreClient, AsyncTransport, CoreClient, Transport
from .environment import Proxy, protocol_from_environment, proxy_from_environment
from .errors import (
    ActiveCycleExistsError,
    AmountNegativeError,
    APIError,
    AuthenticationError,
    CreditExpiredError,
    CreduseError,
    CreduseTimeoutError,
    InsufficientFundsError,
    InvalidResponseError,
    LocalProtocolError,
    NoActiveCycleError,
    RateLimitError,
    ServerError,
    TransportError,
    UserDoesNotExistError,
)
from .messages import (
    MAX_BODY_SIZE,
    Delivery,
    Failure,
    ForeignError,
    Request,
    Response,
    forget_frames,
    is_foreign,
)
from .models import (
    ActiveBalance,
    Attempt,
    CreditsAdded,
    CreditsSubtracted,
    Cycle,
    CycleBalance,
    CycleStatus,
    CycleType,
    Outcome,
)
from .protocol import BASE_URL, DEFAULT_RETRY, TIMEOUT, CreduseProtocol, is_loopback
from .retry import EVENTS, Event, Kind, RetryPolicy
from .secret import Secret

__all__ = [
    "BASE_URL",
    "DEFAULT_RETRY",
    "EVENTS",
    "MAX_BODY_SIZE",
    "TIMEOUT",
    "TRANSITIONS",
    "APIError",
    "ActiveBalance",
    "ActiveCycleExistsError",
    "AmountNegativeError",
    "AsyncCoreClient",
    "AsyncTransport",
    "Attempt",
    "AuthenticationError",
    "Call",
    "CoreClient",
    "CreditExpiredError",
    "CreditsAdded",
    "CreditsSubtracted",
    "CreduseError",
    "CreduseProtocol",
    "CreduseTimeoutError",
    "Cycle",
    "CycleBalance",
    "CycleStatus",
    "CycleType",
    "Delivery",
    "Done",
    "Event",
    "Failure",
    "ForeignError",
    "Input",
    "InsufficientFundsError",
    "InvalidResponseError",
    "Kind",
    "LocalProtocolError",
    "NoActiveCycleError",
    "Outcome",
    "Proxy",
    "RateLimitError",
    "Reply",
    "Request",
    "Response",
    "RetryPolicy",
    "Secret",
    "Send",
    "ServerError",
    "State",
    "Transport",
    "TransportError",
    "UserDoesNotExistError",
    "Wait",
    "__version__",
    "forget_frames",
    "is_foreign",
    "is_loopback",
    "protocol_from_environment",
    "proxy_from_environment",
]
