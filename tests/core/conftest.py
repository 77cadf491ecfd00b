"""The fixture ``play``: a test that uses it runs with the synchronous and the asynchronous client."""

from typing import Any

import pytest

from creduse_core import AsyncCoreClient, CoreClient
from tests.core.players import PROTOCOL, AsyncTransport, Play, Player, Script, SyncTransport


@pytest.fixture(params=["sync", "async"])
def play(request: pytest.FixtureRequest) -> Play:
    """Make a client that plays a script.

    ``oversleep`` is how many seconds each sleep lasts too long, and ``asleep`` the exception that it
    raises, if any. The other options are the client's. By default, the client waits for whole delays.
    """

    def make(
        *events: object, oversleep: float = 0.0, asleep: object = None, **options: Any
    ) -> Player:
        options = {"jitter": lambda: 1.0} | options
        script = Script(events, oversleep, asleep)
        if request.param == "sync":
            transport = SyncTransport(script)
            return Player(transport, CoreClient(PROTOCOL, transport, **options))
        on_a_loop = AsyncTransport(script)
        return Player(on_a_loop, AsyncCoreClient(PROTOCOL, on_a_loop, **options))

    return make
