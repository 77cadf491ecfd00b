"""The core's data classes do what those of the standard library do, made from the same source."""

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import pytest

import creduse_core
from creduse_core import CreditsAdded, CycleBalance, RetryPolicy, Secret
from creduse_core import records as ours

T = TypeVar("T")
# Type checkers take both for the same.
OURS: Any = ours.dataclass
STOCK: Any = dataclasses.dataclass
BOTH = pytest.mark.parametrize("dataclass", [OURS, STOCK], ids=["ours", "the standard library's"])

NOW = datetime(2025, 8, 12, tzinfo=UTC)
USER = UUID("12345678-1234-4678-9234-567812345678")


def point(dataclass: Any) -> Any:
    """Return a class with a default and a method."""

    @dataclass(frozen=True, slots=True)
    class Point(Generic[T]):
        """A point."""

        x: T
        y: int = 7

        def total(self) -> Any:
            return self.x, self.y

    return Point


Made = Callable[[Any], object]
"""What to do with a class."""


def raised(what: Callable[[], object]) -> tuple[type[Exception], str]:
    """Return the exception that this raises."""
    with pytest.raises(Exception, match=r".") as caught:
        what()
    return caught.type, str(caught.value)


SAME: dict[str, Made] = {
    "repr": lambda cls: repr(cls("a", 2)),
    "defaults": lambda cls: (cls(1).x, cls(1).y),
    "keywords": lambda cls: repr(cls(y=1, x=2)),
    "methods": lambda cls: cls(1).total(),
    "signature": inspect.signature,
    "documentation": lambda cls: cls.__doc__,
    "name": lambda cls: (cls.__qualname__, cls.__module__),
    "equal": lambda cls: (cls(1) == cls(1), cls(1) == cls(2), cls(1) == (1, 7), cls(1) != cls(1)),
    "equal hashes": lambda cls: hash(cls(1)) == hash(cls(1)),
    "unhashable field": lambda cls: raised(lambda: hash(cls([]))),
    "subclass": lambda cls: type("Other", (cls,), {})(1) == cls(1),
    "slots": lambda cls: (cls.__slots__, hasattr(cls(1), "__dict__")),
    "pattern": lambda cls: cls.__match_args__,
    "generic": lambda cls: str(cls[int])[-10:],
    "assign": lambda cls: raised(lambda: setattr(cls(1), "x", 2)),
    "delete": lambda cls: raised(lambda: delattr(cls(1), "x")),
    "too few": lambda cls: raised(cls)[0],
    "too many": lambda cls: raised(lambda: cls(1, 2, 3))[0],
    "unknown": lambda cls: raised(lambda: cls(1, z=1))[0],
    "fields": lambda cls: [(f.name, f.type, f.default) for f in dataclasses.fields(cls)],
    "fields again": lambda cls: [*map(len, (dataclasses.fields(cls), dataclasses.fields(cls(1))))],
    "asdict": lambda cls: dataclasses.asdict(cls([cls(1)])),
    "astuple": lambda cls: dataclasses.astuple(cls([cls(1)])),
    "replace": lambda cls: repr(dataclasses.replace(cls(1), y=2)),
    "is_dataclass": lambda cls: (dataclasses.is_dataclass(cls), dataclasses.is_dataclass(cls(1))),
    "parameters": lambda cls: (cls.__dataclass_params__.frozen, cls.__dataclass_params__.eq),
    "deep copy": lambda cls: copy.deepcopy(cls([cls(1)])) == cls([cls(1)]),
    "stock subclass": lambda cls: repr(
        dataclasses.make_dataclass("More", [("z", int, 9)], bases=(cls,), frozen=True)(1)
    ),
}


@pytest.mark.parametrize("use", SAME.values(), ids=SAME)
def test_same(use: Made) -> None:
    """Whatever is done with a class, it does the same as the standard library's."""
    assert use(point(OURS)) == use(point(STOCK))


@BOTH
def test_identity(dataclass: Any) -> None:
    """With ``eq=False``, instances are equal only to themselves."""

    @dataclass(frozen=True, slots=True, eq=False)
    class Point:
        x: int

    it: Any = Point(1)  # pyright: ignore[reportCallIssue] - made by an ``Any``
    assert it == copy.copy([it])[0]
    assert it != Point(1)  # pyright: ignore[reportCallIssue] - the same
    assert len({it, it}) == 1
    assert [field.name for field in dataclasses.fields(Point)] == ["x"]  # pyright: ignore[reportArgumentType] - the same


@BOTH
def test_own_methods(dataclass: Any) -> None:
    """Methods that a class defines itself are kept."""

    @dataclass(frozen=True, slots=True)
    class Text:
        text: str

        def __init__(self, text: object) -> None:
            object.__setattr__(self, "text", str(text))

        def __repr__(self) -> str:
            return "hidden"

    assert Text(5) == Text("5")
    assert f"{Text(5)}" == "hidden"


@BOTH
def test_checks(dataclass: Any) -> None:
    """``__post_init__`` runs after the fields are set."""

    @dataclass(frozen=True, slots=True)
    class Count:
        number: int

        def __post_init__(self) -> None:
            if self.number < 0:
                raise ValueError(self.number)

    assert Count(1).number == 1  # pyright: ignore[reportCallIssue] - made by an ``Any``
    with pytest.raises(ValueError, match="-1"):
        Count(-1)  # pyright: ignore[reportCallIssue] - the same


PART = CycleBalance(NOW, NOW, 5)


@pytest.mark.parametrize(
    "result", [PART, CreditsAdded(USER, 5), RetryPolicy(max_attempts=2)], ids=repr
)
def test_stored(result: object) -> None:
    """A result can be pickled, with every protocol, and copied."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(result, protocol)) == result  # noqa: S301 - our own
    assert copy.copy(result) == copy.deepcopy(result) == result


def test_changed_copy() -> None:
    """``copy.replace`` (Python 3.13) makes a changed copy."""
    part: Any = PART  # type checkers know the method from Python 3.13 on
    changed = part.__replace__(amount=6)
    assert (changed.amount, changed.cycle_start, PART.amount) == (6, NOW, 5)


def test_patterns() -> None:
    """A result can be matched by its fields, in their order."""
    match CreditsAdded(USER, 5):
        case CreditsAdded(user, amount, None):
            assert (user, amount) == (USER, 5)
        case _:
            pytest.fail("no match")


def test_secrets_are_not_stored() -> None:
    """A record with a secret cannot be pickled."""
    with pytest.raises(TypeError, match="Secret holds the API key"):
        pickle.dumps(creduse_core.Proxy("http://proxy", Secret("http://me:password@proxy")))
