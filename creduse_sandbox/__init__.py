"""A local Creduse server for tests and development.

Example::

    with SandboxServer() as server:
        server.inject(FAULTS["503"])  # the first request gets a 503
        with CreduseClient("any-key", base_url=server.base_url) as client:
            client.add(user, 100)
        assert [entry.path for entry in server.applied] == ["/add"]

In a browser, the server's address shows its users and requests. In pytest, the fixture
``creduse_sandbox`` is such a server. `FAULTS` holds ready-made faults by name. `Sandbox` is the API
without a socket. `Ledger` is its bookkeeping alone.

Creduse's documentation leaves some behaviour open. Where the sandbox had to choose, the docstring
says "our reading".
"""

from creduse_sandbox.connection import LogEntry
from creduse_sandbox.faults import (
    DESCRIPTIONS,
    FAULTS,
    OUTCOMES,
    Action,
    CannedResponse,
    Drop,
    Fault,
    Shaped,
    Stage,
)
from creduse_sandbox.ledger import Cycle, Ledger, Refused
from creduse_sandbox.sandbox import Sandbox
from creduse_sandbox.server import SandboxServer, serve
from creduse_sandbox.state import StateError, StateFile

__all__ = [
    "DESCRIPTIONS",
    "FAULTS",
    "OUTCOMES",
    "Action",
    "CannedResponse",
    "Cycle",
    "Drop",
    "Fault",
    "Ledger",
    "LogEntry",
    "Refused",
    "Sandbox",
    "SandboxServer",
    "Shaped",
    "Stage",
    "StateError",
    "StateFile",
    "serve",
]
