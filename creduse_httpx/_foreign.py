"""Exceptions that come neither from httpx nor from this adapter, such as a signal handler's.

A signal handler can raise at any line. The context managers here turn such an exception into a
`creduse_core.ForeignError`, which no library catches. What it means for a call does not belong
here.
"""

from typing import Final

from creduse_core import ForeignError, exception_chain, is_foreign

LIBRARIES: Final = frozenset(
    {
        *("httpx", "httpcore", "httpx2", "httpcore2", "h11", "h2", "socksio", "idna"),
        "creduse_httpx",
        *("anyio", "asyncio", "trio", "outcome", "uvloop", "selectors", "socket", "ssl"),
        *("concurrent", "contextlib", "encodings", "threading"),
        # Replacements for Python's sockets and TLS.
        *("gevent", "eventlet", "socks", "truststore"),
        # Mocks and wrappers of httpx's transports.
        *("respx", "pytest_httpx", "vcr", "opentelemetry", "wrapt"),
    }
)
"""Top-level modules whose exceptions are the transport's own. All other exceptions are foreign."""


def foreign_cause(error: Exception) -> Exception | None:
    """Return the first foreign exception among ``error`` and its causes, or ``None``."""
    for link in exception_chain(error):
        if isinstance(link, Exception) and is_foreign(link, LIBRARIES):
            return link
    return None


class _RaiseForeign:
    """Raises a foreign exception as a `ForeignError`. For one network operation of httpcore.

    httpcore would take a signal handler's `TimeoutError` for a socket's. This is a class with one
    instance, not a ``@contextmanager``: it wraps every read and write, and allocates nothing.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, Exception) and is_foreign(cause, LIBRARIES):
                raise ForeignError(cause)


class _IgnoreLibraryErrors:
    """Ignores the libraries' exceptions while something is closed, and raises foreign ones.

    It has one instance, for the same reason.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, Exception):
            return False
        if is_foreign(error, LIBRARIES):
            raise ForeignError(error) from None
        return True


RAISE_FOREIGN: Final = _RaiseForeign()
IGNORE_LIBRARY_ERRORS: Final = _IgnoreLibraryErrors()
