"""Decodes the body of a response into a result, or says what is wrong with it.

Decoding is liberal where the service's own documents disagree. It is strict where a field proves that
the response belongs to the request. What a response means for the call does not belong here: see
`creduse_core.retry`.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, TypeAlias, TypeGuard, TypeVar
from uuid import UUID

from .messages import MAX_BODY_SIZE, Response
from .models import (
    ActiveBalance,
    CreditsAdded,
    CreditsSubtracted,
    Cycle,
    CycleBalance,
    CycleStatus,
    CycleType,
)
from .records import dataclass

T = TypeVar("T")
N = TypeVar("N", int, float)
Fields = dict[str, Any]


class MisreadError(ValueError):
    """A field of the response is missing, or has another type than in the contract."""


Expected: TypeAlias = tuple[UUID, str, int | None, Callable[[Fields, UUID], T]]
"""What a response must repeat to belong to its request, and how to decode it.

The end user's id, its text in the request, the amount or ``None`` if the response repeats none, and
the function that makes the result.
"""


@dataclass(frozen=True, slots=True)
class Envelope:
    """The fields of the service's error body. Each can be missing, and ``repr`` quotes none."""

    error_code: str | None = None
    message: str | None = None
    timestamp: datetime | None = None

    def __repr__(self) -> str:
        return "<Envelope>"


@dataclass(frozen=True, slots=True)
class InvalidResult:
    """Why a response is not a result."""

    problem: str
    """What is wrong. It continues the words "the response …"."""
    is_own: bool = False
    """Whether the response names the user and amount of its request, and no error."""
    envelope: Envelope = Envelope()


def read_response(response: Response, expected: Expected[T]) -> T | InvalidResult:
    """Return the result of a whole response of any status, or what is wrong. Never raises."""
    data = _read_object(response)
    if isinstance(data, str):
        return InvalidResult(data)
    if not 200 <= response.status < 300 or data.get("error_code"):
        return InvalidResult("carries an error", envelope=_read_envelope(data))
    user, user_text, amount, decode = expected
    found = data.get("end_user_id")
    if found != user_text and not _is_spelling_of(user, found):
        return InvalidResult("does not name the end user of the request")
    if amount is not None and _whole(data.get("amount")) != amount:
        return InvalidResult("does not name the amount of the request")
    try:
        return decode(data, user)
    except MisreadError as error:
        return InvalidResult(str(error), is_own=True)


def _read_object(response: Response) -> Fields | str:
    """Return the body's JSON object, or what is wrong with the body."""
    if len(response.body) > MAX_BODY_SIZE:
        return f"is larger than {MAX_BODY_SIZE} bytes"
    try:
        # Invalid UTF-8 is replaced: a field that proves something then differs, and others do not matter.
        data = _load(response.body.decode("utf-8", "replace").strip(" \t\n\r\ufeff"))
    except (ValueError, RecursionError):
        # A compressed body is never JSON, so the header matters only now.
        coding = response.header("Content-Encoding")
        if coding is None or coding.lower() == "identity":
            return "is not JSON"
        return "is compressed, which was not asked for"
    return data if _is_object(data) else "is JSON, but not an object"


def _load(text: str) -> object:
    """Do the same as ``json.loads`` in half the time, for text without white space around it."""
    # The time to read a number grows with the square of its digits.
    bounded = len(text) <= _MAX_DIGITS or 0 < sys.get_int_max_str_digits() <= _MAX_DIGITS
    data, end = (_DECODER if bounded else _BOUNDED_DECODER).raw_decode(text)
    if end != len(text):
        raise ValueError("text follows the JSON")
    return data


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError("too many digits")
    return int(digits)


_MAX_DIGITS: Final = sys.int_info.default_max_str_digits
"""Python rejects integers with more digits, unless a program has raised its limit."""
_DECODER: Final = json.JSONDecoder()
_BOUNDED_DECODER: Final = json.JSONDecoder(parse_int=_bounded_int)


def _is_object(data: object) -> TypeGuard[Fields]:
    return type(data) is dict


def _is_list(data: object) -> TypeGuard[list[Any]]:
    return type(data) is list


def _is_spelling_of(user: UUID, text: object) -> bool:
    try:
        return type(text) is str and UUID(text) == user
    except ValueError:
        return False


def _read_envelope(data: Fields) -> Envelope:
    code, message = data.get("error_code"), data.get("message")
    try:
        timestamp = _time(data, "timestamp")
    except MisreadError:
        timestamp = None
    return Envelope(
        error_code=code if type(code) is str and code else None,
        message=message if type(message) is str else None,
        timestamp=timestamp,
    )


# Fields. Each function takes the object and the field's name, and raises MisreadError.


def _misread(data: Fields, name: str, wanted: str) -> MisreadError:
    if name not in data:
        return MisreadError(f"lacks {name}")
    return MisreadError(f"has {name} of another type than {wanted}")


_EXACT: Final = 2**53
"""Larger floats are not exact."""


def _whole(value: object) -> int | None:
    if type(value) is int:  # a bool is an int for isinstance, but not in JSON
        return value
    if type(value) is float and -_EXACT <= value <= _EXACT and value.is_integer():
        return int(value)
    return None


def _integer(data: Fields, name: str) -> int:
    value = data.get(name)
    if type(value) is int:  # the common case
        return value
    whole = _whole(value)
    if whole is None:
        raise _misread(data, name, "integer")
    return whole


def _optional_integer(data: Fields, name: str) -> int | None:
    value = data.get(name)
    return value if value is None or type(value) is int else _integer(data, name)


def _time(data: Fields, name: str, time_of_day: time = time.min) -> datetime:
    """Return a time. A date alone means this time of that day, in UTC."""
    value = data.get(name)
    if type(value) is str:
        moment: datetime | None
        try:
            moment = _from_iso(value) if len(value) > _DATE else _at(value, time_of_day)
        except ValueError:
            moment = _unusual_moment(value)
        if moment is not None:
            return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    raise _misread(data, name, "ISO 8601 time")


_DATE: Final = len("2024-02-29")
_from_iso: Final = datetime.fromisoformat


def _at(day: str, moment: time) -> datetime:
    return datetime.combine(date.fromisoformat(day), moment, UTC)


def _unusual_moment(text: str) -> datetime | None:
    """Read what RFC 3339 and ISO 8601 have beyond Python: z, a leap second, the end of a day."""
    text = text.upper()
    try:
        if match := _LEAP_SECOND.fullmatch(text):
            return _from_iso(f"{match[1]}:59.999999{match[2]}")
        if match := _END_OF_DAY.fullmatch(text):
            return _from_iso(f"{match[1]}T00:00{match[2]}") + timedelta(days=1)
        return _from_iso(text) if len(text) > _DATE else None
    except (ValueError, OverflowError):
        return None


_LEAP_SECOND: Final = re.compile(r"(.{11}\d\d:\d\d):60(?:[.,]\d+)?(.*)", re.ASCII)
_END_OF_DAY: Final = re.compile(r"(.{10})[T ]24:00(?::00(?:[.,]0+)?)?(.*)", re.ASCII)


def _list(data: Fields, name: str) -> list[Any]:
    value = data.get(name)
    if _is_list(value):
        return value
    if value is None and name in data:
        return []
    raise _misread(data, name, "list")


_STATUSES: Mapping[str, CycleStatus] = {member.value: member for member in CycleStatus}
_TYPES: Mapping[str, CycleType] = {member.value: member for member in CycleType}
W = TypeVar("W", CycleStatus, CycleType)


def _optional_text(data: Fields, name: str, known: Mapping[str, W]) -> W | str | None:
    value = data.get(name)
    if type(value) is str:
        return known.get(value, value)
    if value is None:
        return None
    raise _misread(data, name, "text")


# Results. Each function takes an object that names the right user.


def credits_added(data: Fields, end_user_id: UUID) -> CreditsAdded:
    """Return the result of ``POST /add``."""
    return CreditsAdded(
        end_user_id, _integer(data, "amount"), _optional_integer(data, "validity_days")
    )


def credits_subtracted(data: Fields, end_user_id: UUID) -> CreditsSubtracted:
    """Return the result of ``POST /subtract``."""
    return CreditsSubtracted(end_user_id, _integer(data, "amount"))


def cycle(data: Fields, end_user_id: UUID) -> Cycle:
    """Return the result of ``POST /start-cycle`` or ``POST /stop-cycle``."""
    return Cycle(
        end_user_id,
        _integer(data, "amount"),
        _time(data, "created_at"),
        _time(data, "current_cycle_start"),
        _time(data, "current_cycle_end", time.max),
        _optional_text(data, "status", _STATUSES),
        _optional_text(data, "cycle_type", _TYPES),
    )


def active_balance(data: Fields, end_user_id: UUID) -> ActiveBalance:
    """Return the result of ``GET /get-active-balance``."""
    total = _integer(data, "active_balance")
    cycles: list[CycleBalance] = []
    for item in _list(data, "active_balance_by_cycle"):
        if not _is_object(item):
            raise MisreadError("has a cycle that is not an object")
        # Older documentation calls a cycle's amount active_balance.
        amount = "active_balance" if "amount" not in item and "active_balance" in item else "amount"
        cycles.append(
            CycleBalance(
                _time(item, "cycle_start"),
                _time(item, "cycle_end", time.max),
                _integer(item, amount),
                _optional_integer(item, "starting_amount"),
                _optional_text(item, "status", _STATUSES),
                _optional_text(item, "cycle_type", _TYPES),
            )
        )
    return ActiveBalance(end_user_id, total, tuple(cycles))
