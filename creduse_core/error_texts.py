"""Texts of errors that several adapters raise, so that they read the same with each adapter.

Texts of one adapter alone, and those of calls, do not belong here.
"""

from typing import Final

CLOSED: Final = "the client is closed: was it used after its 'with' block?"

DRAINED: Final = "the client drains: it sends nothing more, since drain() was called"

OTHER_EVENT_LOOP: Final = "the client belongs to another event loop: make one client for each"


def not_loopback_message(host: str, address: str) -> str:
    """Return why a request over plain http, allowed only to this machine, is not sent to ``host``."""
    return (
        f"{host} is at {address}, which is not this machine: over plain http, anyone on the way can "
        "read the API key; use https, or pass allow_http=True"
    )
