"""The sans-IO core of the Creduse client. It makes requests and reads responses, and sends nothing.

It needs the standard library alone. To use it over your own HTTP library, write a `Transport` and
pass it to `CoreClient`; or drive a `Call` by hand::

    call = CreduseProtocol(api_key).subtract(end_user_id, 50)
    send = call.start(now)                      # send.request is what to send
    call.receive_response(Response(…), now)     # Done(result), Wait(seconds), or raises

Modules, each importing only those before it: records, tables, secret, foreign, messages, words,
models, errors, arguments, decoding, retry, evidence, pace, reports, call, protocol, environment,
pool, tls, error_texts, client.
"""

from ._version import __version__
from .arguments import is_loopback
from .call import TRANSITIONS, Call, Done, Input, Send, State, Wait
from .client import AsyncCoreClient, AsyncTransport, CoreClient, Transport
from .environment import protocol_from_environment, proxy_for, proxy_from_environment
from .errors import (
    ActiveCycleExistsError,
    AmountNegativeError,
    APIError,
    AuthenticationError,
    CannotPayError,
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
from .evidence import Evidence, Verdict, weigh
from .foreign import ForeignError, exception_chain, forget_frames, is_foreign
from .messages import MAX_BODY_SIZE, Delivery, Failure, HeaderPairs, Proxy, Request, Response
from .models import (
    ActiveBalance,
    Attempt,
    BalanceReading,
    CallRecord,
    CreditsAdded,
    CreditsSubtracted,
    Cycle,
    CycleBalance,
    CycleStatus,
    CycleType,
    FinishedCall,
    Outcome,
)
from .pace import Pace
from .protocol import BASE_URL, DEFAULT_RETRY, TIMEOUT, CreduseProtocol
from .retry import EVENTS, Event, Kind, RetryPolicy, may_ask_proxy_again
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
    "BalanceReading",
    "Call",
    "CallRecord",
    "CannotPayError",
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
    "Evidence",
    "Failure",
    "FinishedCall",
    "ForeignError",
    "HeaderPairs",
    "Input",
    "InsufficientFundsError",
    "InvalidResponseError",
    "Kind",
    "LocalProtocolError",
    "NoActiveCycleError",
    "Outcome",
    "Pace",
    "Proxy",
    "RateLimitError",
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
    "Verdict",
    "Wait",
    "__version__",
    "exception_chain",
    "forget_frames",
    "is_foreign",
    "is_loopback",
    "may_ask_proxy_again",
    "protocol_from_environment",
    "proxy_for",
    "proxy_from_environment",
    "weigh",
]
