"""What clients take from the environment: settings that are not given, and a proxy.

The only module of the core that looks at the machine it runs on. Nothing here sends.
"""

import os
from urllib.parse import urlsplit

from .protocol import BASE_URL, CreduseProtocol
from .retry import RetryPolicy
from .secret import Secret


def protocol_from_environment(
    api_key: str | Secret | None,
    *,
    base_url: str | None,
    retry: RetryPolicy,
    timeout: float,
    allow_http: bool | None,
) -> CreduseProtocol:
    """Return a protocol, with what is ``None`` taken from the environment.

    Reads ``CREDUSE_API_KEY``, ``CREDUSE_BASE_URL`` and ``CREDUSE_ALLOW_HTTP`` (``1``). A key or
    URL that is set but empty is an error, not a default: it was meant to say something.
    """
    if api_key is None:
        api_key = os.environ.get("CREDUSE_API_KEY")
    if api_key is None:
        raise ValueError("no API key: pass api_key=… or set CREDUSE_API_KEY in the environment")
    if base_url is None:
        base_url = os.environ.get("CREDUSE_BASE_URL", BASE_URL)
    if allow_http is None:
        allow_http = os.environ.get("CREDUSE_ALLOW_HTTP") == "1"
    return CreduseProtocol(api_key, base_url, retry=retry, timeout=timeout, allow_http=allow_http)


def proxy_from_environment(base_url: str) -> str | None:
    """Return the URL of the proxy that the environment names for ``base_url``, if any.

    From ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` or the system's settings,
    as `urllib.request` reads them. It may hold a password.
    """
    # Not at the top: it loads sockets, TLS and much else, which only a client wants.
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415, TID251

    proxies, parts = getproxies(), urlsplit(base_url)
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
