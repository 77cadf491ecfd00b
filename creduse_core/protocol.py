"""`CreduseProtocol`: makes a `Call` of each API method's arguments.

Request bodies and headers belong here. I/O and the environment do not.
"""

from typing import Final, TypeVar
from uuid import UUID

from . import decoding
from ._version import __version__
from .arguments import (
    ExtraHeaders,
    check_timeout,
    check_type,
    checked_api_key,
    checked_base_url,
    checked_count,
    checked_extra_headers,
    checked_idempotency_key,
    checked_user_id,
    secrets_among,
)
from .call import Call
from .decoding import Expected
from .messages import HiddenHeaders, Request, hide_credentials
from .models import ActiveBalance, CreditsAdded, CreditsSubtracted, Cycle
from .records import dataclass, field_setter
from .retry import Kind, RetryPolicy
from .secret import Secret, no_pickle

T = TypeVar("T")

BASE_URL: Final = "https://api.creduse.com"
"""The address of the service."""

TIMEOUT: Final = 30.0
"""Seconds that a call can take by default, its retries and waits included."""

DEFAULT_RETRY: Final = RetryPolicy()
"""The default policy of protocols and clients."""


@dataclass(frozen=True, slots=True, eq=False)
class CreduseProtocol:
    """Makes the calls of the Creduse API. It is immutable, so threads can share it.

    Each method checks its arguments and returns a `Call`. Drive it, or pass it to a client's
    ``run``. A wrong argument raises ``TypeError`` or ``ValueError``. Times are seconds.

    - ``api_key``: visible ASCII characters; or a `Secret`, such as another protocol's ``api_key``.
    - ``base_url``: an ``https`` URL. ``http`` shows the key to anyone on the way, so it is accepted
      for loopback hosts, or with ``allow_http=True``. A path is kept as a prefix.
    - ``retry``: when to retry a call.
    - ``timeout``: for a whole call, its retries and waits included.
    - ``extra_headers``: further header fields of each request. Those of a call replace them. They
      cannot replace the protocol's own. Reprs hide the values. Errors hide those that are a `Secret`,
      even if a server repeats them.
    """

    api_key: Secret
    """Reads as ``***``; ``api_key.reveal()`` returns the text."""
    base_url: str
    retry: RetryPolicy
    timeout: float
    loopback: bool
    """Whether the host of ``base_url`` is this machine, by its address or as ``localhost``."""
    plain_loopback: bool
    """Whether plain http is allowed only because the host is this machine. A transport must then
    connect to loopback addresses alone."""
    _headers: HiddenHeaders
    _secrets: tuple[Secret, ...]

    def __init__(
        self,
        api_key: str | Secret,
        base_url: str = BASE_URL,
        *,
        retry: RetryPolicy = DEFAULT_RETRY,
        timeout: float = TIMEOUT,
        allow_http: bool = False,
        extra_headers: ExtraHeaders | None = None,
    ) -> None:
        """Check the arguments."""
        api_key = checked_api_key(api_key)
        check_type("allow_http", allow_http, bool)
        base_url, loopback = checked_base_url(base_url, allow_http=allow_http)
        check_type("retry", retry, RetryPolicy, "RetryPolicy(max_attempts=3)")
        check_timeout("timeout", timeout)
        more = checked_extra_headers(extra_headers)
        _set_protocol(
            self,
            api_key,
            base_url,
            retry,
            timeout,
            loopback,
            loopback and not allow_http and base_url.startswith("http:"),
            hide_credentials(
                (
                    ("Authorization", Secret(f"Bearer {api_key.reveal()}")),
                    ("Content-Type", "application/json"),
                    ("Accept", "application/json"),
                    # A compressed response of a few bytes can have any size when it is unpacked.
                    ("Accept-Encoding", "identity"),
                    ("User-Agent", f"creduse/{__version__}"),
                    *more,
                )
            ),
            (api_key, *secrets_among(extra_headers)),
        )

    def __repr__(self) -> str:
        # Tools also show an object whose __init__ has raised.
        return f"<{type(self).__name__} {getattr(self, 'base_url', 'not initialized')}>"

    __reduce__ = no_pickle

    def with_retry(self, retry: RetryPolicy) -> "CreduseProtocol":
        """Return a protocol that differs only in its policy."""
        check_type("retry", retry, RetryPolicy, "RetryPolicy(max_attempts=1)")
        made = object.__new__(CreduseProtocol)
        values = {name: getattr(self, name) for name in self.__match_args__}
        _set_protocol(made, **values | {"retry": retry})
        return made

    def add(
        self,
        end_user_id: UUID | str,
        amount: int,
        validity_days: int | None = 31,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> Call[CreditsAdded]:
        """Return the call of ``POST /add``: give credits that are valid for ``validity_days``."""
        user, text = checked_user_id(end_user_id)
        amount = checked_count("amount", amount)
        days = "null" if validity_days is None else checked_count("validity_days", validity_days)
        return self._call(
            "POST",
            "/add",
            f'{{"end_user_id":"{text}","amount":{amount},"validity_days":{days}}}',
            (user, text, amount, decoding.credits_added),
            timeout,
            extra_headers,
            idempotency_key,
        )

    def subtract(
        self,
        end_user_id: UUID | str,
        amount: int,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> Call[CreditsSubtracted]:
        """Return the call of ``POST /subtract``: take all of ``amount``, or nothing."""
        user, text = checked_user_id(end_user_id)
        amount = checked_count("amount", amount)
        return self._call(
            "POST",
            "/subtract",
            f'{{"end_user_id":"{text}","amount":{amount}}}',
            (user, text, amount, decoding.credits_subtracted),
            timeout,
            extra_headers,
            idempotency_key,
        )

    def start_cycle(
        self,
        end_user_id: UUID | str,
        amount: int,
        validity_days: int | None = 31,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> Call[Cycle]:
        """Return the call of ``POST /start-cycle``: give ``amount`` credits every ``validity_days``."""
        user, text = checked_user_id(end_user_id)
        amount = checked_count("amount", amount)
        days = "null" if validity_days is None else checked_count("validity_days", validity_days)
        return self._call(
            "POST",
            "/start-cycle",
            f'{{"end_user_id":"{text}","amount":{amount},"validity_days":{days}}}',
            (user, text, None, decoding.cycle),
            timeout,
            extra_headers,
            idempotency_key,
        )

    def stop_cycle(
        self,
        end_user_id: UUID | str,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> Call[Cycle]:
        """Return the call of ``POST /stop-cycle``: do not renew the recurring cycle."""
        user, text = checked_user_id(end_user_id)
        return self._call(
            "POST",
            "/stop-cycle",
            f'{{"end_user_id":"{text}"}}',
            (user, text, None, decoding.cycle),
            timeout,
            extra_headers,
            idempotency_key,
        )

    def get_balance(
        self,
        end_user_id: UUID | str,
        *,
        timeout: float | None = None,
        extra_headers: ExtraHeaders | None = None,
    ) -> Call[ActiveBalance]:
        """Return the call of ``GET /get-active-balance``: what the user can spend now."""
        user, text = checked_user_id(end_user_id)
        return self._call(
            "GET",
            "/get-active-balance",
            f'{{"end_user_id":"{text}"}}',
            (user, text, None, decoding.active_balance),
            timeout,
            extra_headers,
        )

    def _call(
        self,
        method: str,
        path: str,
        body: str,
        expected: Expected[T],
        timeout: float | None,
        extra_headers: ExtraHeaders | None,
        idempotency_key: str | None = None,
    ) -> Call[T]:
        headers = self._headers
        kind = Kind.READ if method == "GET" else Kind.WRITE
        if idempotency_key is not None:
            key = checked_idempotency_key(idempotency_key, server_replays=self.retry.server_replays)
            headers = hide_credentials((*headers, ("Idempotency-Key", key)))
            kind = Kind.REPLAYABLE
        if timeout is None:
            timeout = self.timeout
        else:
            check_timeout("timeout", timeout)
        call = Call(
            Request(method, self.base_url + path, headers, body.encode("ascii")),
            expected,
            path=path,
            kind=kind,
            policy=self.retry,
            timeout=timeout,
            secrets=self._secrets,
        )
        if extra_headers is not None:
            call.add_headers(extra_headers)
        return call


_set_protocol = field_setter(CreduseProtocol)
