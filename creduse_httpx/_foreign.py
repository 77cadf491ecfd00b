"""Exceptions that are neither httpx's nor ours: a signal handler may raise in whatever runs.

Where such an exception may come up, one of these context managers lets it go on as a
`creduse_core.ForeignError`, which no library catches. What it means for a call is the core's.
"""

from typing import Final

from creduse_core import ForeignError, exception_chain, is_foreign

LIBRARIES: Final = frozenset(
    {
        *("httpx", "httpcore", "httpx2", "httpcore2", "h11", "h2", "socksio", "idna"),
        "creduse_httpx",
        *("anyio", "asyncio", "trio", "outcome", "uvloop", "selectors", "socket", "ssl"),
        *("concurrent", "contextlib", "encodings", "threading"),
        # What stands in for Python's sockets and TLS.
        *("gevent", "eventlet", "socks", "truststore"),
        # What stands in for httpx's transports, or in front of them.
        *("respx", "pytest_httpx", "vcr", "opentelemetry", "wrapt"),
    }
)
"""Whose exceptions are a transport's. Any other is a signal handler's, say, and goes on as it is."""


def foreign_cause(error: Exception) -> Exception | None:
    """Return the exception that is not the libraries', be it ``error`` or what it came of."""
    for link in exception_chain(error):
        if isinstance(link, Exception) and is_foreign(link, LIBRARIES):
            return link
    return None


class _Network:
    """For a step of httpcore's on the network: it takes an alarm's `TimeoutError` for a socket's."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, Exception) and is_foreign(cause, LIBRARIES):
                raise ForeignError(cause)


class _Closing:
    """For closing something: suppresses what a library raises then, and that alone."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, Exception):
            return False
        if is_foreign(error, LIBRARIES):
            raise ForeignError(error) from None
        return True


NETWORK: Final = _Network()
CLOSING: Final = _Closing()
