"""`dataclass`: makes the core's frozen data classes; and `Record`, with their form for JSON.

What they hold does not belong here.

It does what the standard library's decorator does with ``frozen=True, slots=True``, and type checkers
take it for that one. It has two advantages:

- Instances are made in half the time. Their fields are set through their slots, and not through
  ``object.__setattr__``, which looks up each one by its name. That counts in a balance with many
  cycles.
- The core is imported sooner. The standard library's ``dataclasses`` loads ``inspect``, and compiles
  seven functions for each class where this module compiles one.

What ``dataclasses.fields``, ``asdict`` and ``replace`` read is made when they first read it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 - exports it
else:

    def dataclass(*, frozen: bool, slots: bool, eq: bool = True) -> Callable[[type], type]:
        """Return the decorator. It keeps methods that the class defines itself."""
        assert frozen  # noqa: S101 - always so, but readers and type checkers need it
        assert slots  # noqa: S101 - the same
        return lambda cls: _made_from(cls, eq=eq)


def _made_from(cls: type, *, eq: bool) -> type:
    names: dict[str, Any] = cls.__annotations__
    given: dict[str, Any] = {"__slots__": tuple(names), "__match_args__": tuple(names)}
    given["__qualname__"] = cls.__qualname__
    given |= {name: _Late(name, cls, eq=eq) for name in _LATE}
    if not eq:
        given |= {"__eq__": object.__eq__, "__hash__": object.__hash__}
    own = {name: value for name, value in vars(cls).items() if name not in {*names, *_REMADE}}
    bases = tuple(base for base in cls.__bases__ if base is not object)
    made: type = type(cls)(cls.__name__, (*bases, _Methods), given | own)
    if "__init__" not in own:
        defaults = {name: getattr(cls, name) for name in names if name in vars(cls)}
        init = _init(made, defaults)
        init.__qualname__ = f"{made.__qualname__}.__init__"
        init.__module__ = made.__module__
        init.__annotations__ = {**names, "return": None}
        type.__setattr__(made, "__init__", init)
    return made


def field_setter(cls: type) -> Callable[..., None]:
    """Return a function for an ``__init__`` of the class's own. It does the same as a generated one.

    Its arguments are the object and all fields, in their order.
    """
    setter: Callable[..., None] = _init(cls, {})
    return setter


def _init(made: type, defaults: dict[str, Any]) -> Any:
    names: tuple[str, ...] = vars(made)["__match_args__"]
    arguments = [f"{name}=default_{name}" if name in defaults else name for name in names]
    lines = [f"set_{name}(self, {name})" for name in names]
    if hasattr(made, "__post_init__"):
        lines.append("self.__post_init__()")
    namespace: dict[str, Any] = {f"set_{name}": vars(made)[name].__set__ for name in names}
    namespace |= {f"default_{name}": value for name, value in defaults.items()}
    code = f"def __init__(self, {', '.join(arguments)}):\n " + "\n ".join(lines)
    exec(code, namespace)  # noqa: S102 - names of fields in our own source, as the standard library does
    return namespace["__init__"]


class _Methods:
    """The base class of the classes that `dataclass` makes."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{type(self).__qualname__}({fields})"

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Methods) and type(other) is type(self):
            return self._values() == other._values()
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._values()

    def __replace__(self, /, **changes: object) -> Any:
        make: Any = type(self)
        return make(**dict(zip(self.__match_args__, self._values(), strict=True)) | changes)

    def __setattr__(self, name: str, value: object) -> None:
        from dataclasses import FrozenInstanceError  # noqa: PLC0415 - see the module's docstring

        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        from dataclasses import FrozenInstanceError  # noqa: PLC0415 - see the module's docstring

        raise FrozenInstanceError(f"cannot delete field {name!r}")


class Record:
    """A base of data classes, for those that users log or store."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that ``json.dumps`` accepts.

        Ids and times become texts, times in ISO 8601. Outcomes become their names.
        """
        return {name: json_value(getattr(self, name)) for name in self.__match_args__}


def json_value(value: object) -> Any:
    """Return a value of a field as JSON has it."""
    if isinstance(value, Record):
        return value.as_dict()
    if isinstance(value, tuple):
        return [json_value(item) for item in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # of any type
    if type(value) is float:
        return value if value == value else None  # noqa: PLR0124 - JSON has no NaN
    if type(value) in _JSON_TYPES:
        return value
    isoformat: Callable[[], str] | None = getattr(value, "isoformat", None)
    return str(value) if isoformat is None else isoformat()


_JSON_TYPES: Final = (str, int, bool, type(None))
_REMADE: Final = ("__dict__", "__weakref__")
_LATE: Final = ("__dataclass_fields__", "__dataclass_params__")


class _Late:
    """An attribute that functions of ``dataclasses`` read. It is the standard library's own."""

    def __init__(self, name: str, cls: type, *, eq: bool) -> None:
        self._name, self._cls, self._eq = name, cls, eq

    def __get__(self, instance: object, owner: type) -> Any:
        import dataclasses  # noqa: PLC0415 - see the module's docstring

        if self._name not in vars(self._cls):
            dataclasses.dataclass(frozen=True, eq=self._eq)(self._cls)
        return vars(self._cls)[self._name]
