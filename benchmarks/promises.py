"""What each promise costs: the parts of a call that keep it, and what does their work without it.

A call is timed with a part and without it, in turns, in one process. Each part is on the path of
every call. What happens only after a failure costs nothing here.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final
from uuid import UUID

from benchmarks.server import USER

Parts = Mapping[str, object]
"""Replacements by module and name, such as ``creduse_core.call:Call._record``."""

_USER: Final = UUID(USER)
_JSON: Final = json.JSONDecoder()


def _nothing(*_: object) -> None:
    """Do nothing."""


def _returning(value: object) -> Callable[..., Any]:
    return lambda *_, **__: value


async def _true(*_: object) -> bool:
    return True


def _set_state(call: Any, _: object, state: object) -> None:
    call._state = state  # noqa: SLF001 - in place of the core's own method


_CORE: Final[Mapping[str, Parts]] = {
    "arguments": {
        "creduse_core.protocol:checked_user_id": lambda value: (_USER, value),
        "creduse_core.protocol:checked_count": lambda _, value: value,
    },
    "result": {
        "creduse_core.call:read_response": lambda response, _: _JSON.raw_decode(response.body.decode())[0],
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
    },
}

_PARTS: Final = {"core": _CORE, "httpx": _HTTPX, "aiohttp": _AIOHTTP, "trio": _TRIO}

OF_CORE: Final = tuple(_CORE)
OF_ADAPTERS: Final = tuple(_HTTPX)
"""What is promised. docs/benchmarks.md says what each word means."""


def parts_of(subject: str, promise: str) -> Parts:
    """Return the parts that keep a promise."""
    return _PARTS[subject.partition("-")[0]][promise]


@contextmanager
def leaving_out(parts: Parts) -> Iterator[None]:
    """Run without these parts."""
    before: list[tuple[Any, str, object]] = []
    for path, replacement in parts.items():
        module, _, names = path.partition(":")
        *owners, name = names.split(".")
        owner: Any = import_module(module)
        for it in owners:
            owner = getattr(owner, it)
        before.append((owner, name, vars(owner)[name]))
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
