"""Constants and small helpers that many tests share.

`tests/core` runs where no other package is installed, so this module imports only the standard
library and `creduse_core`.
"""

import re
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from uuid import UUID

from creduse_core import RetryPolicy

USER: Final = UUID("12345678-1234-5678-1234-567812345678")
USER_ID: Final = str(USER)
KEY: Final = "sk-test-0123456789abcdef"

ONCE: Final = RetryPolicy(max_attempts=1)
NO_WAIT: Final = RetryPolicy(initial_delay=0)


def credits_body(amount: int) -> bytes:
    """Return the body of a successful response to ``add`` or ``subtract``."""
    return b'{"end_user_id":"%b","amount":%d,"validity_days":31}' % (USER_ID.encode(), amount)


def response(body: bytes, status: int = 200, headers: bytes = b"") -> bytes:
    """Return a response, from its status line to the end of its body.

    ``headers`` come before Content-Length, each with its line break.
    """
    head = b"HTTP/1.1 %d OK\r\n%bContent-Length: %d\r\n\r\n" % (status, headers, len(body))
    return head + body


GOOD: Final = credits_body(5)
RESPONSE: Final = response(GOOD)
LAST_RESPONSE: Final = response(GOOD, headers=b"Connection: close\r\n")

PROGRESS: Final = re.compile(
    r"^[\d,]+ (line|call)s?: .*; [\d,]+ a second(; about \d+ \w+ left)?\n", re.MULTILINE
)
"""A line that ``creduse bulk`` prints every 10 s, so on a slow machine anywhere."""


def free_port() -> int:
    """Return a port of this machine on which nothing listens.

    Systems choose the ports of other tests' servers from 32768 on, so none of these takes it.
    """
    while True:
        port = 10_000 + secrets.randbelow(22_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def listens(port: int) -> bool:
    """Return whether something listens on a port of this machine."""
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until something is true. Only the limit of the whole test bounds it."""
    while not condition():
        time.sleep(0.01)


def keep_from_end_of_day() -> None:
    """Wait if a day ends about now, even an hour or two off. A balance proves less then."""
    while any(abs((time.time() + hours * 3600 + 60) % 86400 - 60) < 40 for hours in _SHIFTS):
        time.sleep(1)


_SHIFTS: Final = (-2, -1, -0.5, 0, 0.5, 1, 2)
