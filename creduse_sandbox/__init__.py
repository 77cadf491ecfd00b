"""A Creduse of one's own, for tests: nothing leaves the machine.

    with SandboxServer() as server:
        server.inject(Answer(503))  # the first request meets with this, all others with the sandbox
        with CreduseClient("any-key", base_url=server.base_url) as client:
            client.add(user, 100)
        assert [entry.path for entry in server.applied] == ["/add"]

In pytest, the fixture ``creduse_sandbox`` is such a server. `FAULTS` are those that are ready-made,
by name. `Sandbox` is the same without a socket, `Ledger` its bookkeeping alone. Where the behaviour
of the service is not known, that of the sandbox is our reading, and the documentation of each part
says so. Only the public names stand in this module.
"""

from creduse_sandbox.faults import (
    DESCRIPTIONS,
    FAULTS,
    Action,
    Answer,
    Drop,
    Fault,
    Shaped,
    Stage,
)
from creduse_sandbox.ledger import Cycle, Ledger, Refused
from creduse_sandbox.sandbox import Sandbox
from creduse_sandbox.server import LogEntry, SandboxServer, serve

__all__ = [
    "DESCRIPTIONS",
    "FAULTS",
    "Action",
    "Answer",
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
    "serve",
]
