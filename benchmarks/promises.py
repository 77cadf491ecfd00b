"""What each promise costs: the time that a call spends in the functions that keep it.

Each function is on the path of every call. What happens only after a failure costs nothing here.
"""

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from time import perf_counter
from typing import Any, Final

_CORE: Final = {
    "arguments": (
        "creduse_core.protocol:checked_user_id",
        "creduse_core.protocol:checked_count",
    ),
    "result": ("creduse_core.call:read_response",),
    "attempts": (
        "creduse_core.call:Call._check_report",
        "creduse_core.call:Call._move",
        "creduse_core.call:Call._record",
    ),
}
_HTTPX: Final = {
    "connection": (
        "creduse_httpx._network:ConnectionState.may_have_ticket",
        "creduse_httpx._network:has_unread_data",
        "creduse_httpx._own:Connection.is_reusable",
        "creduse_httpx._own:AsyncConnection.is_reusable",
    ),
    "deadline": (
        "creduse_httpx._exchange:Exchange.time_left",
        "creduse_httpx._network:ConnectionState.read_timeout",
    ),
}
_AIOHTTP: Final = {
    "connection": (
        "creduse_aiohttp._client:_Exchange._check_before_write",
        "creduse_aiohttp._client:prepare_for_reuse",
    ),
    "deadline": (
        "creduse_aiohttp._deadlines:Deadlines.set",
        "creduse_aiohttp._deadlines:Deadlines.discard",
        "asyncio:Timeout.__init__",
        "asyncio:Timeout.__aenter__",
        "asyncio:Timeout.__aexit__",
    ),
}
_TRIO: Final = {
    "connection": ("creduse_trio._client:_close_unless_quiet",),
    "deadline": (
        "trio:CancelScope.__init__",
        "trio:CancelScope.__enter__",
        "trio:CancelScope.__exit__",
    ),
}
_FUNCTIONS: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {
    "core": _CORE,
    "httpx": _HTTPX,
    "aiohttp": _AIOHTTP,
    "trio": _TRIO,
}

OF_CORE: Final = tuple(_CORE)
OF_ADAPTERS: Final = tuple(_HTTPX)
"""What is promised. docs/benchmarks.md says what each word means."""


class Stopwatch:
    """Adds up the seconds in functions, of which none calls another, and counts their calls."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.count = 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is timed."""

        def call(*args: Any, **kwargs: Any) -> Any:
            begun = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += perf_counter() - begun
                self.count += 1

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            begun = perf_counter()
            try:
                return await function(*args, **kwargs)
            finally:
                self.seconds += perf_counter() - begun
                self.count += 1

        return call_async if inspect.iscoroutinefunction(function) else call


@contextmanager
def timing(subject: str, promise: str) -> Generator[Stopwatch]:
    """Time the functions that keep a promise."""
    stopwatch = Stopwatch()
    functions: list[tuple[Any, str, Any]] = []
    for path in _FUNCTIONS[subject.partition("-")[0]][promise]:
        module, _, names = path.partition(":")
        *owners, name = names.split(".")
        owner: Any = import_module(module)
        for it in owners:
            owner = getattr(owner, it)
        functions.append((owner, name, owner.__dict__[name]))
    for owner, name, function in functions:
        setattr(owner, name, stopwatch.timed(function))
    try:
        yield stopwatch
    finally:
        for owner, name, function in functions:
            setattr(owner, name, function)
