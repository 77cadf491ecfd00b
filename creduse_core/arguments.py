"""Checks of the arguments that callers pass.

Each check raises ``TypeError`` or ``ValueError``. The message names the argument, what was wrong
with it and what would be right. A subclass of UUID, str or int can override any method, so only the
base class's value is sent. What the arguments are used for does not belong here.

A check imports the modules that it alone needs. At the top, these would double the time of the
core's import.
"""

import functools
import re
from collections.abc import Mapping
from typing import Final, TypeAlias
from uuid import UUID

from .secret import Secret

ExtraHeaders: TypeAlias = Mapping[str, str | Secret]
"""Further header fields of a request, by their names. No error shows a `Secret` that a server repeats."""

MAX_SECONDS: Final = 1_000_000
"""The longest time that a caller can pass, about eleven days. Sockets reject far longer ones."""

_MAX_IDEMPOTENCY_KEY: Final = 255
_MAX_BITS: Final = 10_000
"""Python does not print far longer numbers, and nobody has as many credits."""

_VISIBLE: Final = re.compile(r"[!-~]+")
# Without re.IGNORECASE, which takes twice as long.
_UUID: Final = re.compile(r"H{8}-H{4}-H{4}-H{4}-H{12}|H{32}".replace("H", "[0-9a-fA-F]"))
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_FIELD_VALUE: Final = re.compile(r"([!-~]([ \t!-~]*[!-~])?)?")  # RFC 9110, 5.5, without obs-text
_OWN_HEADERS: Final = frozenset(
    {
        *("authorization", "content-type", "accept", "accept-encoding", "user-agent"),
        *("idempotency-key", "proxy-authorization"),
        # Those that frame a message or belong to the connection (RFC 9110, 7.6.1).
        *("host", "content-length", "content-encoding", "transfer-encoding", "connection"),
        *("keep-alive", "te", "trailer", "upgrade", "expect", "proxy-connection"),
    }
)
"""Headers that a caller cannot set, in small letters: those of the protocol and of transports."""
_AUTHORITY: Final = re.compile(r"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?")


def check_type(name: str, value: object, wanted: type, example: str = "") -> None:
    """Accept instances of ``wanted`` alone. A bool is not an int here."""
    if not isinstance(value, wanted) or (type(value) is bool and wanted is not bool):
        such_as = f", such as {example}" if example else ""
        raise TypeError(f"{name} must be {wanted.__name__}{such_as}, not {type(value).__name__}")


def check_at_least_one(name: str, value: object) -> None:
    """Accept an int from 1 on."""
    check_type(name, value, int)
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{name} must be at least 1, not {_shown(value)}")


def check_seconds(name: str, value: object) -> None:
    """Accept a number of seconds from 0 on."""
    _check_seconds(name, value, allow_zero=True)


def check_timeout(name: str, value: object) -> None:
    """Accept a number of seconds above 0."""
    _check_seconds(name, value, allow_zero=False)


def _check_seconds(name: str, value: object, *, allow_zero: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not 0 <= value <= MAX_SECONDS or (value == 0 and not allow_zero):
        bound = "at least 0" if allow_zero else "above 0"
        raise ValueError(
            f"{name} must be {bound} and at most {MAX_SECONDS:,} seconds, not {_shown(value)}"
        )


def _shown(number: float) -> str:
    if isinstance(number, int) and number.bit_length() > _MAX_BITS:
        return f"a number of {number.bit_length()} bits"
    return repr(number)


def checked_user_id(value: object) -> tuple[UUID, str]:
    """Return an end user's id, and the text of it for the wire."""
    if isinstance(value, UUID):
        user = value if type(value) is UUID else UUID(int=value.int)
        return user, str(user)
    if not isinstance(value, str):
        raise TypeError(f"end_user_id must be a UUID or its text, not {type(value).__name__}")
    value = value if type(value) is str else str.__str__(value)
    # UUID() accepts text that is not a UUID, such as one with 0x or _ in it.
    if not _UUID.fullmatch(value):
        raise ValueError(
            "end_user_id must be a UUID such as 12345678-1234-5678-1234-567812345678, "
            f"not {value[:100]!r}"
        )
    user = UUID(value)
    # To format it anew takes as long as all the rest.
    return user, value.lower() if len(value) == 36 else str(user)


def checked_count(name: str, value: object) -> int:
    """Return a number of credits or days: an int from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be int, not {type(value).__name__}")
    value = value if type(value) is int else int.__int__(value)
    if value < 0:
        raise ValueError(f"{name} must be at least 0, not {_shown(value)}")
    if value.bit_length() > _MAX_BITS:
        raise ValueError(f"{name} must have at most {_MAX_BITS} bits")
    return value


def checked_idempotency_key(key: str, *, server_replays: bool) -> str:
    """Return an idempotency key. ``server_replays``: whether the retry policy says it is honoured."""
    check_type("idempotency_key", key, str)
    if not server_replays:
        raise ValueError(
            "idempotency_key needs retry=RetryPolicy(server_replays=True): "
            "Creduse is not known to honour Idempotency-Key"
        )
    if not _VISIBLE.fullmatch(key) or len(key) > _MAX_IDEMPOTENCY_KEY:
        raise ValueError(
            f"idempotency_key must be 1 to {_MAX_IDEMPOTENCY_KEY} visible ASCII "
            f"characters, not {key[:_MAX_IDEMPOTENCY_KEY]!r}"
        )
    return str.__str__(key)


def checked_extra_headers(headers: ExtraHeaders | None) -> tuple[tuple[str, Secret], ...]:
    """Return further header fields. Their values are hidden, since a gateway's token is a secret."""
    if headers is None:
        return ()
    if not isinstance(headers, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers are not all typed
        raise TypeError(
            "extra_headers must be a mapping of names to values, such as "
            f'{{"X-Tenant": "7"}}, not {type(headers).__name__}'
        )
    fields = [(_checked_name(name), _checked_value(name, value)) for name, value in headers.items()]
    names = [name.lower() for name, _ in fields]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"extra_headers has {name} twice: header names ignore case")
    return tuple(fields)


def secrets_among(headers: ExtraHeaders | None) -> tuple[Secret, ...]:
    """Return the values that the caller passed as secrets. Errors do not show these."""
    return tuple(value for value in (headers or {}).values() if isinstance(value, Secret))


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"extra_headers must have names that are str, not {type(name).__name__}")
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"extra_headers has {name[:100]!r}, which is not the name of a header")
    if name.lower() in _OWN_HEADERS:
        instead = {
            "authorization": ": use api_key",
            "idempotency-key": ": use idempotency_key",
            "proxy-authorization": ": use a user name and a password in proxy",
        }
        raise ValueError(
            f"extra_headers must not have {name}, which the client sets itself"
            f"{instead.get(name.lower(), '')}"
        )
    return str.__str__(name)


def _checked_value(name: object, value: object) -> Secret:
    if not isinstance(value, str | Secret):
        raise TypeError(f"extra_headers[{name!r}] must be str, not {type(value).__name__}")
    hidden = value if isinstance(value, Secret) else Secret(value)
    # No variable holds the text of a secret, since tools show the variables of a failure.
    if not _FIELD_VALUE.fullmatch(hidden.reveal()):
        raise ValueError(
            f"extra_headers[{name!r}] must be printable ASCII characters, "
            "without white space at an end"
        )
    return hidden


def checked_api_key(api_key: object) -> Secret:
    """Return an API key, hidden. The message of an error never repeats any part of it."""
    # Tools that show variables leave out one of this name, so no other variable holds the key.
    name = "api_key (or CREDUSE_API_KEY)"
    hidden = api_key if isinstance(api_key, Secret) else None
    api_key = api_key if hidden is None else hidden.reveal()
    if not isinstance(api_key, str):
        raise TypeError(f"{name} must be str, not {type(api_key).__name__}")
    if not api_key.strip():
        raise ValueError(f"{name} is blank")
    if api_key != api_key.strip():
        raise ValueError(f"{name} has white space at an end: remove it, such as with .strip()")
    if api_key[:7].lower() == "bearer ":
        raise ValueError(f'{name} must be the key alone, without "Bearer "')
    if not _VISIBLE.fullmatch(api_key):
        raise ValueError(
            f"{name} must be visible ASCII characters without white space or control characters"
        )
    return hidden or Secret(api_key)


def checked_base_url(url: str, *, allow_http: bool) -> tuple[str, bool]:
    """Return a base URL without a slash at its end, and whether its host is this machine."""
    from urllib.parse import urlsplit  # noqa: PLC0415 - see the module's docstring

    name = "base_url (or CREDUSE_BASE_URL)"
    check_type(name, url, str)
    url = str.__str__(url)

    def wrong(why: str) -> ValueError:
        shown = "" if "@" in url else f" {url[:200]!r}"  # it can hold a password
        return ValueError(f"{name}{shown} {why}")

    # Before urlsplit, which silently drops some of these characters.
    if not _VISIBLE.fullmatch(url):
        raise wrong("must be a URL such as https://api.creduse.com, in visible ASCII characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:  # its message can repeat a password
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

    ``localhost`` and names below it are loopback (RFC 6761, 6.3). A resolver can disagree: see
    ``CreduseProtocol.plain_loopback``.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return True
    import ipaddress  # noqa: PLC0415 - see the module's docstring

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def check_not_both(supplied: str, **settings: object) -> None:
    """Reject settings beside a supplied client, which has its own."""
    for name, value in settings.items():
        if value is not None:
            raise ValueError(f"pass {name} to the {supplied} that you supply, not beside it")


class _ShortTraceback:
    """Removes the frames from a ``TypeError`` or ``ValueError`` that we raise inside a ``with``.

    Its traceback then begins with the line that passed the argument. Exceptions that other code
    raises, such as a caller's mapping, keep their frames.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if not isinstance(error, TypeError | ValueError):
            return
        frames = error.__traceback__
        while frames is not None and frames.tb_next is not None:
            frames = frames.tb_next
        raised_in = "" if frames is None else str(frames.tb_frame.f_globals.get("__name__"))
        if raised_in.startswith("creduse_"):
            error.__traceback__ = None


SHORT_TRACEBACK: Final = _ShortTraceback()


def check_listener(name: str, value: object, takes: str) -> None:
    """Accept ``None`` or a plain callable, for the argument ``name``.

    Reject coroutine and generator functions, even inside a partial. To call one only makes a
    coroutine or a generator.
    """
    if value is None:
        return
    import inspect  # noqa: PLC0415 - see the module's docstring

    never_run = (
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    )
    function = value
    while isinstance(function, functools.partial):
        function = function.func
    method = getattr(function, "__call__", None)  # noqa: B004 - the method is checked, too
    if method is None or any(never(it) for never in never_run for it in (function, method)):
        raise TypeError(f"{name} must be a plain function that takes {takes}, or None")
