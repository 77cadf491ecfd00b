"""Whether an exception belongs to a transport's library or to other code."""

import types
from collections.abc import Callable
from typing import Any

import pytest

from creduse_core import is_foreign
from creduse_core.foreign import members, single_of_group

LIBRARIES = {"library", "helper"}


def module(name: str, source: str) -> Any:
    """Make a module of this name, which need not be imported."""
    made = types.ModuleType(name)
    exec(source, vars(made))  # noqa: S102 - a module that is made for this test
    return made


OURS = module(
    "library.deep",
    """
class LibraryError(OSError): pass
def run(work): work()
def fail(): raise LibraryError("odd")
def fail_plainly(): raise TimeoutError("odd")
def read(): json.loads("{")
def throw(error): raise error
import json
""",
)
FOREIGN = module(
    "handlers",
    """
import json
class LimitError(Exception): pass
def interrupt(): raise TimeoutError("the time is over")
def read(): json.loads("{")
""",
)
NAMELESS = module(
    "nameless", "def interrupt(): raise TimeoutError('the time is over')\n__name__ = 7"
)
WORK: dict[str, tuple[Callable[[], object], bool]] = {
    "its own class": (OURS.fail, False),
    "its own frame": (OURS.fail_plainly, False),
    "another's frame": (FOREIGN.interrupt, True),
    "a frame of an odd name": (NAMELESS.interrupt, True),
    "the standard library for it": (OURS.read, False),
    "the standard library for another": (FOREIGN.read, True),
    "another one that calls it": (lambda: OURS.run(FOREIGN.interrupt), True),
    "it, called by another": (lambda: OURS.run(OURS.fail_plainly), False),
}


@pytest.mark.parametrize(("work", "foreign"), WORK.values(), ids=WORK)
def test_exception_of_a_library(work: Callable[[], object], foreign: bool) -> None:  # noqa: FBT001 - a column
    """An exception belongs to a library by its class or by the frame that raised it."""
    with pytest.raises(Exception, match=r".") as caught:
        OURS.run(work)
    assert is_foreign(caught.value, LIBRARIES) is foreign


def test_class_of_a_library_raised_by_another() -> None:
    """A library's own exception belongs to it, wherever it was raised."""
    with pytest.raises(OURS.LibraryError) as caught:
        raise OURS.LibraryError("odd")
    assert not is_foreign(caught.value, LIBRARIES)


def test_class_of_another_raised_in_a_library() -> None:
    """An exception of an unknown class is foreign, even if raised in a library's frame."""
    with pytest.raises(FOREIGN.LimitError) as caught:
        OURS.throw(FOREIGN.LimitError("over"))
    assert is_foreign(caught.value, LIBRARIES)


def test_never_raised() -> None:
    """An exception that was never raised interrupts nothing."""
    assert not is_foreign(TimeoutError(), LIBRARIES)


class Cancelled(BaseException):
    """A cancellation, as a library has its own."""


LEAVES: dict[str, BaseException] = {
    "error": OSError("odd"),
    "cancelled": Cancelled(),
    "interrupted": KeyboardInterrupt(),
}


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["cancelled"], "cancelled"),
        (["error", "cancelled"], "cancelled"),
        (["cancelled", "error", "interrupted"], "interrupted"),
        (["interrupted", "cancelled"], "interrupted"),
    ],
    ids=str,
)
@pytest.mark.parametrize("nested", [False, True])
def test_group_that_ends_something(
    names: list[str],
    wanted: str,
    nested: bool,  # noqa: FBT001 - a column
) -> None:
    """What ends the program replaces its group, then a cancellation, and errors are left out."""
    leaves = [LEAVES[name] for name in names]
    inner = BaseExceptionGroup("inner", leaves)
    group = BaseExceptionGroup("outer", [inner, OSError("even")]) if nested else inner
    assert single_of_group(group, Cancelled) is LEAVES[wanted]


def test_group_of_errors() -> None:
    """A group of errors only stays as it is."""
    group = ExceptionGroup("outer", [OSError("odd"), ExceptionGroup("inner", [OSError("even")])])
    assert single_of_group(group, Cancelled) is group


def test_members() -> None:
    """The members of a group are those of its subgroups; any other exception is its own one."""
    odd, even = OSError("odd"), OSError("even")
    assert members(ExceptionGroup("outer", [odd, ExceptionGroup("inner", [even])])) == [odd, even]
    assert members(odd) == [odd]
