"""What each promise costs: the parts of a call that keep it, and what does their work without it.

A call is timed with a part and without it, in turns, in one process. Each part is on the path of
every call. What happens only after a failure costs nothing here.
"""

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, Self
from uuid import UUID

from benchmarks.server import USER

Parts = Mapping[str, Callable[..., Any]]
"""Replacements by module and name, such as ``creduse_core.call:Call._record``."""

NO_PARTS: Final[Parts] = {}
_USER: Final = UUID(USER)
_JSON: Final = json.JSONDecoder()


def _nothing(*_: object) -> None:
    """Do nothing."""


def _returning(value: object) -> Callable[..., Any]:
    return lambda *_, **__: value


async def _true(*_: object) -> bool:
    return True


def _user(text: object) -> object:
    return _USER, text


def _second(_: object, value: object) -> object:
    return value


def _json(response: Any, _: object) -> object:
    return _JSON.raw_decode(response.body.decode())[0]


class _NoDeadline:
    """A cancel scope of trio that never ends anything."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let exceptions pass."""


def _set_state(call: Any, _: object, state: object) -> None:
    call._state = state  # noqa: SLF001 - in place of the core's own method


_CORE: Final[Mapping[str, Parts]] = {
    "arguments": {
        "creduse_core.protocol:checked_user_id": _user,
        "creduse_core.protocol:checked_count": _second,
    },
    "result": {
        "creduse_core.call:read_response": _json,
    },
    "attempts": {
        "creduse_core.call:Call._check_report": _nothing,
        "creduse_core.call:Call._move": _set_state,
        "creduse_core.call:Call._record": _nothing,
    },
}

_HTTPX: Final[Mapping[str, Parts]] = {
    "connection": {
        "creduse_httpx._network:has_unread_data": _returning(value=False),
        "creduse_httpx._network:ConnectionState.may_have_ticket": _returning(value=False),
        "creduse_httpx._network:ConnectionState.has_empty_buffers": _returning(value=True),
        "creduse_httpx._own:is_drained": _returning(value=True),
    },
    "deadline": {
        "creduse_httpx._network:ConnectionState.read_timeout": _returning(10.0),
    },
}

_AIOHTTP: Final[Mapping[str, Parts]] = {
    "connection": {
        "creduse_aiohttp._client:is_usable": _returning(value=True),
        "creduse_aiohttp._client:is_readable": _returning(value=False),
        "creduse_aiohttp._client:prepare_for_reuse": _returning(value=True),
    },
    "deadline": {
        "creduse_aiohttp._client:_Exchange._set_timer": _nothing,
    },
}

_TRIO: Final[Mapping[str, Parts]] = {
    "connection": {
        "creduse_trio._client:_close_unless_quiet": _true,
    },
    "deadline": {
        "creduse_trio._client:trio.CancelScope": _NoDeadline,
    },
}

_PARTS: Final[Mapping[str, Mapping[str, Parts]]] = {
    "core": _CORE,
    "httpx": _HTTPX,
    "aiohttp": _AIOHTTP,
    "trio": _TRIO,
}

OF_CORE: Final = tuple(_CORE)
OF_ADAPTERS: Final = tuple(_HTTPX)
"""What is promised. docs/benchmarks.md says what each word means."""


def parts_of(subject: str, promise: str) -> Parts:
    """Return the parts that keep a promise."""
    return _PARTS[subject.partition("-")[0]][promise]


@contextmanager
def leaving_out(parts: Parts) -> Generator[None]:
    """Run without these parts."""
    before: list[tuple[Any, str, Any]] = []
    for path, replacement in parts.items():
        module, _, names = path.partition(":")
        *owners, name = names.split(".")
        owner: Any = import_module(module)
        for it in owners:
            owner = getattr(owner, it)
        before.append((owner, name, owner.__dict__[name]))
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
