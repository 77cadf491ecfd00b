"""No frame of an exception that leaves a call shows the API key."""

import copy
import dataclasses
import pickle
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Any

import h11
import pytest
import trio

from creduse_core import CreduseError, exception_chain
from creduse_sandbox import FAULTS
from creduse_trio import AsyncCreduseClient
from creduse_trio._exchange import RequestHead
from tests.common import KEY, ONCE, USER
from tests.trio.wires import Site, Steps


def held(error: BaseException) -> str:
    """Return what a tool prints that shows the variables of all frames of the whole chain."""
    texts: list[str] = []
    for link in exception_chain(error):
        texts += ["".join(traceback.format_exception_only(link)), repr(vars(link))]
        for frame, _ in traceback.walk_tb(link.__traceback__):
            if frame.f_code.co_filename == __file__:
                continue
            texts += [
                repr(value)
                for name, value in frame.f_locals.items()
                # Such tools leave out what has the name of a secret, and the half-made object.
                if name not in {"api_key", "self"}
            ]
    return "\n".join(texts)


def test_the_search_finds_a_key() -> None:
    """A key in a variable of any frame of any link is found."""

    @dataclasses.dataclass
    class Holder:
        things: list[tuple[str, bytes]]

    program = "def fail(thing): raise OSError"
    names: dict[str, Any] = {}
    exec(program, names)  # noqa: S102 - for a frame that is not this file's
    with pytest.raises(OSError) as caught:  # noqa: PT011 - which is the one above
        names["fail"](Holder([("x", KEY.encode())]))
    assert KEY in held(ExceptionGroup("several", [caught.value]))


@pytest.mark.parametrize("how", ["cancelled", "interrupted"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_ended_at_every_step(site: Site, how: str, when: str) -> None:
    """A cancellation or Ctrl-C at any step leaves unchanged and shows no key."""
    texts: list[str] = []
    kinds: set[type[BaseException]] = set()

    async def once(steps: int, warm: bool) -> bool:  # noqa: FBT001 - trio.run passes no names
        scope = trio.CancelScope()
        end = {"cancelled": scope.cancel, "interrupted": lambda: signal.raise_signal(signal.SIGINT)}
        async with site.client(retry=ONCE) as client:
            if warm:
                await client.add(USER, 5)
            try:
                with Steps(steps, when, end[how]), scope:
                    try:
                        await client.add(USER, 5)
                    except BaseException as error:
                        kinds.add(type(error))
                        texts.append(held(error))
                        raise
                await trio.lowlevel.checkpoint()  # where an interrupt comes at the latest
            except KeyboardInterrupt:
                return True
        return scope.cancel_called

    for warm in (False, True):
        steps = 1
        while trio.run(once, steps, warm):
            steps += 1
    assert kinds == {trio.Cancelled if how == "cancelled" else KeyboardInterrupt}
    assert not any(KEY in text for text in texts)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("listens", [False, True])
def test_no_connection(listens: bool, secure: bool) -> None:  # noqa: FBT001 - pytest's parameters
    """A connection that is refused or too slow shows no key."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            if not listens:
                listener.close()
            url = f"{'https' if secure else 'http'}://127.0.0.1:{port}"
            async with AsyncCreduseClient(KEY, base_url=url, retry=ONCE, timeout=0.2) as client:
                with pytest.raises(CreduseError) as caught:
                    await client.add(USER, 5)
        assert KEY not in held(caught.value)

    trio.run(main)


MET = ("request-then-close", "apply-then-reset", "request-then-hang", "not-http")


@pytest.mark.parametrize("name", MET)
def test_failures(site: Site, name: str) -> None:
    """A failure shows no key, on a new or a used connection."""

    async def main() -> None:
        async with site.client(retry=ONCE) as client:
            for _ in range(2):
                site.server.inject(FAULTS[name])
                with pytest.raises(CreduseError) as caught:
                    await client.add(USER, 5, timeout=0.3)
                assert KEY not in held(caught.value)
                site.server.reset()
                await client.add(USER, 5)

    trio.run(main)


@pytest.mark.parametrize("kind", [OSError, ValueError, RuntimeError])
def test_connect_that_raises(kind: type[Exception]) -> None:
    """An exception of the caller's ``connect`` shows no key."""

    async def connect(_: str, __: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise kind

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url="http://localhost", connect=connect) as client:
            with pytest.raises(CreduseError) as caught:
                await client.add(USER, 5)
        assert KEY not in held(caught.value)

    trio.run(main)


@pytest.mark.parametrize(
    "settings",
    [{"max_connections": 0}, {"idle_timeout": -1}, {"ssl_context": "a context"}, {"connect": 1}],
    ids=str,
)
def test_wrong_settings(settings: dict[str, Any]) -> None:
    """A wrong setting of the client shows no key."""
    with pytest.raises((TypeError, ValueError)) as caught:
        AsyncCreduseClient(KEY, **settings)
    assert KEY not in held(caught.value)


@pytest.mark.parametrize("store", [pickle.dumps, copy.copy, copy.deepcopy])
def test_request_heads_are_not_copied(store: Callable[[object], object]) -> None:
    """A cached head, which holds the key, can be neither pickled nor copied."""
    headers = [("Host", "a"), ("Authorization", f"Bearer {KEY}")]
    head = RequestHead(h11.Request(method="GET", target="/", headers=headers))
    with pytest.raises(TypeError, match="holds the API key"):
        store(head)
