"""Settings and the proxy that clients read from the environment, and whether tests block them.

In the core, only this module and `creduse_core.tls` read it. I/O does not belong here.
"""

import os
import re
from typing import Final

from .arguments import ExtraHeaders, check_timeout, check_type
from .messages import Proxy
from .protocol import BASE_URL, TIMEOUT, CreduseProtocol
from .retry import RetryPolicy
from .secret import Secret

blocked: str | None = os.environ.get("_CREDUSE_BLOCKED")
"""Why no client may send a request to another machine, or ``None``. `creduse_pytest` sets it."""

_MAX_SHOWN: Final = 20
"""Characters of a wrong value in an error."""

_VISIBLE: Final = re.compile(r"\S+")
_DECIMAL: Final = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")


def protocol_from_environment(
    api_key: str | Secret | None,
    *,
    base_url: str | None,
    retry: RetryPolicy,
    timeout: float | None,
    allow_http: bool | None,
    extra_headers: ExtraHeaders | None = None,
) -> CreduseProtocol:
    """Return a protocol. Arguments that are ``None`` are read from the environment.

    The variables are ``CREDUSE_API_KEY``, ``CREDUSE_BASE_URL``, ``CREDUSE_TIMEOUT`` (seconds) and
    ``CREDUSE_ALLOW_HTTP`` (``1`` or ``0``). An empty key or URL, or another value, raises
    ``ValueError``.
    """
    if api_key is None:
        api_key = os.environ.get("CREDUSE_API_KEY")
    if api_key is None:
        raise ValueError("no API key: pass api_key=… or set CREDUSE_API_KEY in the environment")
    if base_url is None:
        base_url = os.environ.get("CREDUSE_BASE_URL", BASE_URL)
    if allow_http is None:
        value = os.environ.get("CREDUSE_ALLOW_HTTP", "")
        if value not in {"", "0", "1"}:
            raise ValueError(f"CREDUSE_ALLOW_HTTP must be 1, 0 or empty, not {_shown(value)}")
        allow_http = value == "1"
    return CreduseProtocol(
        api_key,
        base_url,
        retry=retry,
        timeout=_timeout_from_environment() if timeout is None else timeout,
        allow_http=allow_http,
        extra_headers=extra_headers,
    )


def _timeout_from_environment() -> float:
    text = os.environ.get("CREDUSE_TIMEOUT", "")
    if not text:
        return TIMEOUT
    if not _DECIMAL.fullmatch(text):
        raise ValueError(
            "CREDUSE_TIMEOUT must be a number of seconds in plain digits, such as 2.5, "
            f"not {_shown(text)}"
        )
    check_timeout("CREDUSE_TIMEOUT", float(text))
    return float(text)


def _shown(text: str) -> str:
    return repr(text) if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]!r}…"


def is_secure(proxy: Proxy | None) -> bool:
    """Return whether the client speaks TLS to the proxy."""
    return proxy is not None and proxy.shown.startswith("https:")


_NOT_SHOWN: Final = (
    "it is not shown here, since it can hold a password, in which %23 stands for #, "
    "%2F for /, %3F for ? and %40 for @"
)


def proxy_for(protocol: CreduseProtocol, proxy: str | None) -> Proxy | None:
    """Return the proxy for a client's requests: ``proxy``, or else the environment's, if any.

    Calls to this machine do not use the environment's proxy. Over plain http, it could read the API
    key.

    Raises:
        TypeError: ``proxy`` is not text.
        ValueError: ``proxy`` is not the URL of a proxy, or the environment's is not.
    """
    if proxy is None:
        return None if protocol.loopback else proxy_from_environment(protocol.base_url)
    check_type("proxy", proxy, str, '"http://proxy.example:3128"')
    return checked_proxy("proxy", Secret(proxy))


def proxy_from_environment(base_url: str) -> Proxy | None:
    """Return the proxy that the environment sets for ``base_url``, if any.

    ``urllib.request`` reads ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY``, ``NO_PROXY`` and the
    system's settings.

    Raises:
        ValueError: The value is not the URL of a proxy.
    """
    # Imported here, since it loads sockets and TLS, which only a client needs.
    from urllib.parse import urlsplit  # noqa: PLC0415
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415, TID251

    parts = urlsplit(base_url)
    # A secret at once, since tools show the variables of a failure.
    url = Secret(getproxies().get(parts.scheme) or getproxies().get("all") or "")
    if not url.reveal() or proxy_bypass(parts.netloc):
        return None
    return checked_proxy("HTTPS_PROXY, HTTP_PROXY or ALL_PROXY", url)


def checked_proxy(name: str, url: Secret) -> Proxy:
    """Return a proxy by its URL. A URL without a scheme is read as http."""
    proxy = _proxy(url)
    if proxy is not None:
        return proxy
    # Not where the URL is parsed, since the frames of that show it.
    raise ValueError(f"{name} must be a URL such as http://proxy.example:3128; {_NOT_SHOWN}")


def _proxy(given: Secret) -> Proxy | None:
    from urllib.parse import urlsplit  # noqa: PLC0415 - loaded anyway by now

    url = given.reveal()
    if not _VISIBLE.fullmatch(url):  # libraries differ in whether they drop white space at an end
        return None
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or parts.query or parts.fragment or parts.path not in {"", "/"}:
        return None
    shown = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}"
    return Proxy(shown if port is None else f"{shown}:{port}", Secret(url))
