"""From a method call to a `Call`: the arguments checked, the request made, the answer's reader set.

Nothing here sends, and nothing is sent when an argument is wrong. No environment is read.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

from . import decoding
from ._version import __version__
from .call import Call
from .decoding import Expected
from .messages import Request
from .models import ActiveBalance, CreditsAdded, CreditsSubtracted, Cycle
from .retry import Kind, RetryPolicy, check_timeout
from .secret import Secret, no_pickle

T = TypeVar("T")

BASE_URL: Final = "https://api.creduse.com"
"""Where the service is."""

TIMEOUT: Final = 30.0
"""Seconds that a call may last, its retries and waits included, unless told otherwise."""

DEFAULT_RETRY: Final = RetryPolicy()
"""The policy of a protocol or client that is given none."""


@dataclass(frozen=True, init=False, slots=True, eq=False, repr=False)
class CreduseProtocol:
    """Makes the calls of the Creduse API. Immutable, so it can be shared between threads.

    Each method checks its arguments (``TypeError``, ``ValueError``) and returns a `Call` to drive,
    or to pass to a client's ``run``. Times are seconds.

    - ``api_key``: visible ASCII characters; or a `Secret`, such as another protocol's ``api_key``.
    - ``base_url``: ``https``; ``http`` to a loopback host, or to any with ``allow_http=True``,
      since the key travels in the clear there. A path in it is kept as a prefix.
    - ``retry``: when a call is retried.
    - ``timeout``: for a whole call, its retries and waits included.
    """

    api_key: Secret
    """Reads as ``***``; ``api_key.reveal()`` returns the text."""
    base_url: str
    retry: RetryPolicy
    timeout: float
    allow_http: bool
    loopback: bool
    """Whether the host of ``base_url`` is this machine, by its address or as ``localhost``."""
    plain_loopback: bool
    """Whether the key may travel in the clear only since it does not leave this machine. A
    transport must then connect to loopback addresses alone."""
    _headers: tuple[tuple[str, str | Secret], ...]

    def __init__(
        self,
        api_key: str | Secret,
        base_url: str = BASE_URL,
        *,
        retry: RetryPolicy = DEFAULT_RETRY,
        timeout: float = TIMEOUT,
        allow_http: bool = False,
    ) -> None:
        """Reject what could only fail later."""
        api_key = _hidden(api_key)
        _check_type("allow_http", allow_http, bool)
        base_url, loopback = _checked_base_url(base_url, allow_http)
        _check_type("retry", retry, RetryPolicy)
        check_timeout("timeout", timeout)
        given: dict[str, object] = {
            "api_key": api_key,
            "base_url": base_url,
            "retry": retry,
            "timeout": timeout,
            "allow_http": allow_http,
            "loopback": loopback,
            "plain_loopback": loopback and not allow_http and base_url.startswith("http:"),
            "_headers": (
                ("Authorization", Secret(f"Bearer {api_key.reveal()}")),
                ("Content-Type", "application/json"),
                ("Accept", "application/json"),
                # A response of a few bytes can be unpacked to any size; plain ones are small enough.
                ("Accept-Encoding", "identity"),
                ("User-Agent", f"creduse/{__version__}"),
            ),
        }
        for name, value in given.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        # Tools show the variables of an __init__ that raised, too.
        return f"<{type(self).__name__} {getattr(self, 'base_url', 'half made')}>"

    __reduce__ = no_pickle

    def add(
        self,
        end_user_id: UUID | str,
        amount: int,
        validity_days: int | None = 31,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Call[CreditsAdded]:
        """``POST /add``: give credits that can be spent for ``validity_days``."""
        user, text = _uuid(end_user_id)
        amount = _count("amount", amount)
        days = "null" if validity_days is None else _count("validity_days", validity_days)
        return self._call(
            "POST",
            "/add",
            f'{{"end_user_id":"{text}","amount":{amount},"validity_days":{days}}}',
            Expected(user, text, amount, decoding.credits_added),
            timeout,
            idempotency_key,
        )

    def subtract(
        self,
        end_user_id: UUID | str,
        amount: int,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Call[CreditsSubtracted]:
        """``POST /subtract``: take credits, all of ``amount`` or none."""
        user, text = _uuid(end_user_id)
        amount = _count("amount", amount)
        return self._call(
            "POST",
            "/subtract",
            f'{{"end_user_id":"{text}","amount":{amount}}}',
            Expected(user, text, amount, decoding.credits_subtracted),
            timeout,
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
    ) -> Call[Cycle]:
        """``POST /start-cycle``: give ``amount`` credits anew every ``validity_days``."""
        user, text = _uuid(end_user_id)
        amount = _count("amount", amount)
        days = "null" if validity_days is None else _count("validity_days", validity_days)
        return self._call(
            "POST",
            "/start-cycle",
            f'{{"end_user_id":"{text}","amount":{amount},"validity_days":{days}}}',
            Expected(user, text, None, decoding.cycle),
            timeout,
            idempotency_key,
        )

    def stop_cycle(
        self,
        end_user_id: UUID | str,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Call[Cycle]:
        """``POST /stop-cycle``: do not renew the recurring cycle at its end."""
        user, text = _uuid(end_user_id)
        return self._call(
            "POST",
            "/stop-cycle",
            f'{{"end_user_id":"{text}"}}',
            Expected(user, text, None, decoding.cycle),
            timeout,
            idempotency_key,
        )

    def get_balance(
        self, end_user_id: UUID | str, *, timeout: float | None = None
    ) -> Call[ActiveBalance]:
        """``GET /get-active-balance``: what can be spent now, and what of it expires when."""
        user, text = _uuid(end_user_id)
        return self._call(
            "GET",
            "/get-active-balance",
            f'{{"end_user_id":"{text}"}}',
            Expected(user, text, None, decoding.active_balance),
            timeout,
        )

    def _call(
        self,
        method: str,
        path: str,
        body: str,
        expected: Expected[T],
        timeout: float | None,
        idempotency_key: str | None = None,
    ) -> Call[T]:
        headers, kind = self._headers, Kind.READ if method == "GET" else Kind.WRITE
        if idempotency_key is not None:
            header = "Idempotency-Key", self._checked_idempotency_key(idempotency_key)
            headers, kind = (*headers, header), Kind.REPLAYABLE
        if timeout is None:
            timeout = self.timeout
        else:
            check_timeout("timeout", timeout)
        return Call(
            Request(method, self.base_url + path, headers, body.encode("ascii")),
            expected,
            path=path,
            kind=kind,
            policy=self.retry,
            timeout=timeout,
            secret=self.api_key,
        )

    def _checked_idempotency_key(self, key: str) -> str:
        _check_type("idempotency_key", key, str)
        if not self.retry.server_replays:
            raise ValueError(
                "idempotency_key would protect nothing: the service is not known to honour it. "
                "Where yours does, say so with retry=RetryPolicy(server_replays=True)"
            )
        if not _VISIBLE.fullmatch(key) or len(key) > _LONGEST_IDEMPOTENCY_KEY:
            raise ValueError(
                f"idempotency_key must be 1 to {_LONGEST_IDEMPOTENCY_KEY} visible ASCII "
                f"characters, not {key[:_LONGEST_IDEMPOTENCY_KEY]!r}"
            )
        return str.__str__(key)


_LONGEST_IDEMPOTENCY_KEY: Final = 255
_LONGEST_COUNT: Final = 10_000
"""Bits. Python does not print far longer numbers, and nobody has as many credits."""

# The arguments. Each check raises TypeError or ValueError that names the argument, what was wrong
# with it and what would be right. Of a subclass, the value that it inherits counts: what it says of
# itself may be anything.

_VISIBLE: Final = re.compile(r"[!-~]+")
# Without re.IGNORECASE, which takes twice as long.
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}")
_AUTHORITY: Final = re.compile(r"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?")


def _check_type(name: str, value: object, wanted: type) -> None:
    if not isinstance(value, wanted):
        raise TypeError(f"{name} must be {wanted.__name__}, not {type(value).__name__}")


def _uuid(value: object) -> tuple[UUID, str]:
    """Give an id, and the text of it that travels."""
    if isinstance(value, UUID):
        user = value if type(value) is UUID else UUID(int=value.int)
        return user, str(user)
    if not isinstance(value, str):
        raise TypeError(f"end_user_id must be a UUID or its text, not {type(value).__name__}")
    value = value if type(value) is str else str.__str__(value)
    # UUID() itself takes text that is none, such as one with 0x or _ in it.
    if not _UUID.fullmatch(value):
        raise ValueError(
            "end_user_id must be a UUID such as 12345678-1234-5678-1234-567812345678, "
            f"not {value[:100]!r}"
        )
    user = UUID(value)
    # To write it anew takes as long as all the rest.
    return user, value.lower() if len(value) == 36 else str(user)


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    value = value if type(value) is int else int.__int__(value)
    if value < 0:
        raise ValueError(f"{name} must not be negative, but is {value}")
    if value.bit_length() > _LONGEST_COUNT:
        raise ValueError(f"{name} must have at most {_LONGEST_COUNT} bits")
    return value


def _hidden(api_key: object) -> Secret:
    # The message never repeats the key, not even a part of it; nor does a variable of another name
    # hold it, since tools that show the variables of a failure leave this one out.
    name = "api_key (or CREDUSE_API_KEY)"
    hidden = api_key if isinstance(api_key, Secret) else None
    api_key = api_key if hidden is None else hidden.reveal()
    if not isinstance(api_key, str):
        raise TypeError(f"{name} must be str, not {type(api_key).__name__}")
    if not api_key.strip():
        raise ValueError(f"{name} is blank")
    if not _VISIBLE.fullmatch(api_key):
        raise ValueError(
            f"{name} must be visible ASCII characters without white space or control characters"
        )
    return hidden or Secret(api_key)


def _checked_base_url(url: str, allow_http: bool) -> tuple[str, bool]:  # noqa: FBT001 - private, one caller
    name = "base_url (or CREDUSE_BASE_URL)"
    _check_type(name, url, str)
    url = str.__str__(url)

    def wrong(why: str) -> ValueError:
        shown = "" if "@" in url else f" {url[:200]!r}"  # it may hold a password
        return ValueError(f"{name}{shown} {why}")

    # Before parsing, which would silently drop some of these.
    if not _VISIBLE.fullmatch(url):
        raise wrong("must be a URL such as https://api.creduse.com, in visible ASCII characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:  # its words may repeat a password
        raise wrong("cannot be read" if "@" in url else f"cannot be read: {error}") from None
    if parts.scheme not in {"http", "https"}:
        raise wrong("must begin with https:// (or http:// for a loopback host)")
    if "@" in parts.netloc:
        raise wrong("must hold no user name and no password")
    if "?" in url or "#" in url:
        raise wrong("must have no query and no fragment")
    if port == 0 or not _AUTHORITY.fullmatch(parts.netloc):
        raise wrong(
            "must name a host, as in https://api.creduse.com, and a port other than 0 if any"
        )
    loopback = is_loopback(parts.hostname or "")
    if parts.scheme == "http" and not allow_http and not loopback:
        raise wrong(
            "must be https, since over http anyone on the way can read the API key; "
            "to send it all the same, pass allow_http=True or set CREDUSE_ALLOW_HTTP=1"
        )
    return parts.scheme + url[len(parts.scheme) :].rstrip("/"), loopback


def is_loopback(host: str) -> bool:
    """Return whether a host, by its name or IP address, is this machine.

    ``localhost`` and names below it are (RFC 6761, 6.3), though a resolver may think otherwise:
    see ``CreduseProtocol.plain_loopback``.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
