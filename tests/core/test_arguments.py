"""Arguments that are rejected before anything is sent, and the messages."""

import enum
import math
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import pytest

from creduse_core import Call, CreduseProtocol, Done, Response, RetryPolicy
from tests.common import USER_ID

PROTOCOL = CreduseProtocol("key")
REPLAYING = CreduseProtocol("key", retry=RetryPolicy(server_replays=True))
METHODS = ["add", "subtract", "start_cycle", "stop_cycle", "get_balance"]
WITH_AMOUNT = ["add", "subtract", "start_cycle"]
WITH_DAYS = ["add", "start_cycle"]
WRITES = ["add", "subtract", "start_cycle", "stop_cycle"]

Wrong = tuple[type[Exception], str]


class Seven(enum.IntEnum):
    """An ``int`` of another class."""

    AMOUNT = 7


def make(method: str, user: Any = USER_ID, amount: Any = 7, *more: Any, **named: Any) -> Call[Any]:
    """Make a call of any method. Arguments that the method does not have are left out."""
    arguments = (user, amount, *more) if method in WITH_AMOUNT else (user,)
    protocol = named.pop("protocol", PROTOCOL)
    call: Call[Any] = getattr(protocol, method)(*arguments, **named)
    return call


@contextmanager
def rejected(wrong: Wrong) -> Generator[None]:
    """Assert that the block raises exactly this class of error, with exactly this message."""
    error_class, message = wrong
    with pytest.raises(error_class) as caught:
        yield
    assert type(caught.value) is error_class
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text",
    [
        USER_ID,
        "12345678123456781234567812345678",
        "ABCDEF01-2345-6789-ABCD-EF0123456789",
        "abcdef0123456789ABCDEF0123456789",
        "cbdc6aa6-e6c0-11f1-8001-000000000001",  # version 1
        str(uuid.uuid3(uuid.NAMESPACE_DNS, "creduse.com")),
        str(uuid.UUID("c56a4180-65aa-42ec-a945-5fd21dec0538")),
        str(uuid.uuid5(uuid.NAMESPACE_DNS, "creduse.com")),
        "01890a5d-ac96-774b-bcce-b302099a8057",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_end_user_id(method: str, text: str) -> None:
    """Any UUID is accepted, of any version and in any case, and is sent in the usual form."""
    travels = f'"end_user_id":"{uuid.UUID(text)}"'.encode()
    assert travels in make(method, text).request.body
    assert travels in make(method, uuid.UUID(text)).request.body


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        f" {USER_ID}",
        f"{USER_ID} ",
        f"{USER_ID}\n",
        f"{{{USER_ID}}}",
        f"urn:uuid:{USER_ID}",
        "0x345678123456781234567812345678",
        "1234_678123456781234567812345678",
        "1234567812345678123456781234567",
        "123456781234567812345678123456789",
        "1234-5678123456781234567812345678",
        "12345678-1234-5678-1234-56781234567g",
        "\u0661" * 32,
    ],
    ids=ascii,
)
@pytest.mark.parametrize("method", METHODS)
def test_text_that_is_not_a_uuid(method: str, text: str) -> None:
    """Text that is not a UUID is rejected, though ``uuid.UUID`` may accept some of it."""
    message = f"end_user_id must be a UUID such as {USER_ID}, not {text!r}"
    with rejected((ValueError, message)):
        make(method, text)


def test_long_id_is_shortened() -> None:
    """A message shows only part of a long id."""
    with pytest.raises(ValueError, match=f"not '{'x' * 100}'$"):
        make("subtract", "x" * 10_000)


@pytest.mark.parametrize("value", [None, 7, 1.5, USER_ID.encode(), [USER_ID], True], ids=repr)
@pytest.mark.parametrize("method", METHODS)
def test_end_user_id_of_another_type(method: str, value: object) -> None:
    """An id must be a UUID or text."""
    kind = type(value).__name__
    with rejected((TypeError, f"end_user_id must be a UUID or its text, not {kind}")):
        make(method, value)


@pytest.mark.parametrize(
    "value", [True, False, 7.0, math.nan, "7", b"7", [7], Fraction(7)], ids=repr
)
@pytest.mark.parametrize(
    ("method", "name"),
    [(method, "amount") for method in WITH_AMOUNT]
    + [(method, "validity_days") for method in WITH_DAYS],
)
def test_number_of_another_type(method: str, name: str, value: object) -> None:
    """Amounts and days must be integers; other numbers, booleans and text are rejected."""
    with rejected((TypeError, f"{name} must be int, not {type(value).__name__}")):
        make(method, **{name: value}) if name == "amount" else make(method, USER_ID, 7, value)


@pytest.mark.parametrize("method", WITH_AMOUNT)
def test_missing_amount(method: str) -> None:
    """An amount is required."""
    with rejected((TypeError, "amount must be int, not NoneType")):
        make(method, USER_ID, None)


@pytest.mark.parametrize("method", WITH_DAYS)
def test_number_that_cannot_be_written(method: str) -> None:
    """A number with more digits than Python prints is rejected, by the argument's name."""
    with rejected((ValueError, "amount must have at most 10000 bits")):
        make(method, USER_ID, 10**5000)
    with rejected((ValueError, "amount must be at least 0, not a number of 16610 bits")):
        make(method, USER_ID, -(10**5000))
    with rejected(
        (
            ValueError,
            "timeout must be above 0 and at most 1,000,000 seconds, not a number of 16610 bits",
        )
    ):
        make(method, USER_ID, 1, timeout=10**5000)


@pytest.mark.parametrize("value", [-1, -(10**30)])
@pytest.mark.parametrize("method", WITH_DAYS)
def test_negative_numbers(method: str, value: int) -> None:
    """Negative amounts and days are rejected."""
    with rejected((ValueError, f"amount must be at least 0, not {value}")):
        make(method, USER_ID, value)
    with rejected((ValueError, f"validity_days must be at least 0, not {value}")):
        make(method, USER_ID, 7, value)


def test_negative_amount_to_subtract() -> None:
    """A negative amount is rejected by ``subtract``."""
    with rejected((ValueError, "amount must be at least 0, not -7")):
        make("subtract", USER_ID, -7)


@pytest.mark.parametrize("value", [0, 1, 2**70, Seven.AMOUNT], ids=repr)
@pytest.mark.parametrize("method", WITH_DAYS)
def test_numbers(method: str, value: int) -> None:
    """Zero and every positive number are sent as integers."""
    body = make(method, USER_ID, value, value).request.body
    assert body.endswith(b'"amount":%d,"validity_days":%d}' % (value, value))


class OddUUID(uuid.UUID):
    """A UUID whose methods return something else."""

    def __str__(self) -> str:
        return '","amount":1,"x":"'

    __format__ = object.__format__


class ForeignUUID(uuid.UUID):
    """A UUID that keeps its number elsewhere, as a database driver's does."""

    def __init__(self) -> None:
        """Leave what the base class has for it empty."""

    int = uuid.UUID(USER_ID).int  # type: ignore[misc]  # pyright: ignore[reportAssignmentType] - that is what is tested


class OddText(str):
    """Text whose methods return something else."""

    __slots__ = ()

    def __str__(self) -> str:
        return "odd"

    def lower(self) -> str:
        return "odd"

    def __format__(self, spec: str) -> str:
        return "odd"


class OddInt(int):
    """A number whose methods return something else."""

    def __int__(self) -> int:
        return 9

    def __index__(self) -> int:
        return 9

    def __lt__(self, other: object) -> bool:
        return False

    def bit_length(self) -> int:
        return 1

    def __str__(self) -> str:
        return "odd"

    def __format__(self, spec: str) -> str:
        return "odd"


@pytest.mark.parametrize(
    "user",
    [OddUUID(USER_ID), ForeignUUID(), OddText(USER_ID.upper()), OddText(uuid.UUID(USER_ID).hex)],
)
def test_subclass_of_an_id(user: Any) -> None:
    """An id of a subclass is sent by its value, whatever its methods return, and comes back as a UUID."""
    call = make("subtract", user)
    assert call.request.body == b'{"end_user_id":"%b","amount":7}' % USER_ID.encode()
    call.start(0.0)
    done = call.receive_response(Response(200, (), call.request.body), 1.0)
    assert isinstance(done, Done)
    assert type(done.result.end_user_id) is uuid.UUID


def test_subclass_of_a_number() -> None:
    """A number of a subclass is sent by its value, whatever its methods return."""
    body = make("add", USER_ID, OddInt(7), OddInt(5)).request.body
    assert body.endswith(b'"amount":7,"validity_days":5}')
    with rejected((ValueError, "amount must be at least 0, not -7")):
        make("subtract", USER_ID, OddInt(-7))
    with rejected((ValueError, "amount must have at most 10000 bits")):
        make("subtract", USER_ID, OddInt(2**10_000))


def test_subclasses_of_text() -> None:
    """A key, a base URL and an idempotency key of a subclass are sent by their values."""
    protocol = CreduseProtocol(
        OddText("key"), OddText("https://example.com"), retry=RetryPolicy(server_replays=True)
    )
    request = protocol.subtract(USER_ID, 7, idempotency_key=OddText("once")).request
    assert request.url == "https://example.com/subtract"
    headers = dict(request.headers)
    assert headers["Authorization"] == "Bearer key"
    assert type(headers["Idempotency-Key"]) is str
    assert headers["Idempotency-Key"] == "once"


@pytest.mark.parametrize("value", [None, "", 0, 1, "1", [1]], ids=repr)
@pytest.mark.parametrize(
    ("name", "wanted"),
    [("retry", "RetryPolicy, such as RetryPolicy(max_attempts=3)"), ("allow_http", "bool")],
)
def test_options_of_another_type(name: str, wanted: str, value: object) -> None:
    """A policy must be a `RetryPolicy`, and a switch a ``bool``."""
    options: dict[str, Any] = {name: value}
    with rejected((TypeError, f"{name} must be {wanted}, not {type(value).__name__}")):
        CreduseProtocol("key", **options)


NOT_SECONDS = "must be a number of seconds, not {}"
OUT_OF_RANGE = "must be {{}} and at most 1,000,000 seconds, not {}"
INVALID_TIMES = pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ("3", (TypeError, NOT_SECONDS.format("str"))),
        (True, (TypeError, NOT_SECONDS.format("bool"))),
        ([3], (TypeError, NOT_SECONDS.format("list"))),
        (-1, (ValueError, OUT_OF_RANGE.format("-1"))),
        (math.nan, (ValueError, OUT_OF_RANGE.format("nan"))),
        (math.inf, (ValueError, OUT_OF_RANGE.format("inf"))),
        (1_000_000.5, (ValueError, OUT_OF_RANGE.format("1000000.5"))),
    ],
    ids=repr,
)


@INVALID_TIMES
@pytest.mark.parametrize("name", ["attempt_timeout", "initial_delay", "max_delay"])
def test_times_of_a_policy(name: str, value: Any, wrong: Wrong) -> None:
    """A policy's times must be finite numbers of seconds."""
    error_class, message = wrong
    bound = "above 0" if name == "attempt_timeout" else "at least 0"
    options: dict[str, Any] = {name: value}
    with rejected((error_class, f"{name} {message.format(bound)}")):
        RetryPolicy(**options)


@INVALID_TIMES
@pytest.mark.parametrize("method", [None, *METHODS])
def test_timeout(method: str | None, value: Any, wrong: Wrong) -> None:
    """A timeout must be a number of seconds, for the client and for one call."""
    error_class, message = wrong
    with rejected((error_class, f"timeout {message.format('above 0')}")):
        make(method, timeout=value) if method else CreduseProtocol("key", timeout=value)


def test_zero_times() -> None:
    """A delay may be 0; a timeout may not."""
    assert RetryPolicy(initial_delay=0, max_delay=0.0).delay(3, 1.0) == 0
    message = "must be above 0 and at most 1,000,000 seconds, not 0"
    with rejected((ValueError, f"attempt_timeout {message}")):
        RetryPolicy(attempt_timeout=0)
    with rejected((ValueError, f"timeout {message}")):
        CreduseProtocol("key", timeout=0)
    with rejected((ValueError, f"timeout {message}")):
        make("subtract", timeout=0)
    with rejected((TypeError, "timeout must be a number of seconds, not NoneType")):
        CreduseProtocol("key", timeout=None)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - that is what is tested


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        (0, (ValueError, "max_attempts must be at least 1, not 0")),
        (-3, (ValueError, "max_attempts must be at least 1, not -3")),
        (True, (TypeError, "max_attempts must be int, not bool")),
        (3.0, (TypeError, "max_attempts must be int, not float")),
        ("3", (TypeError, "max_attempts must be int, not str")),
        (None, (TypeError, "max_attempts must be int, not NoneType")),
        (math.inf, (TypeError, "max_attempts must be int, not float")),
    ],
    ids=repr,
)
def test_max_attempts(value: Any, wrong: Wrong) -> None:
    """``max_attempts`` must be integer of at least 1."""
    with rejected(wrong):
        RetryPolicy(max_attempts=value)


@pytest.mark.parametrize("value", [None, 0, 1, "yes"], ids=repr)
def test_server_replays(value: Any) -> None:
    """``server_replays`` must be a ``bool``; ``True`` lets writes be retried under a key."""
    with rejected((TypeError, f"server_replays must be bool, not {type(value).__name__}")):
        RetryPolicy(server_replays=value)


@pytest.mark.parametrize("method", WRITES)
def test_idempotency_key_without_replays(method: str) -> None:
    """A key is rejected unless the server is known to honour it."""
    with pytest.raises(ValueError, match=r"needs retry=RetryPolicy\(server_replays=True\): "):
        make(method, idempotency_key="k")


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "\x7f", "\u00e9", "k" * 256], ids=ascii)
@pytest.mark.parametrize("method", WRITES)
def test_idempotency_key(method: str, key: str) -> None:
    """A key must be usable in a header as it is."""
    message = "idempotency_key must be 1 to 255 visible ASCII characters, not "
    with rejected((ValueError, message + repr(key[:255]))):
        make(method, protocol=REPLAYING, idempotency_key=key)


@pytest.mark.parametrize("key", [7, b"k", uuid.UUID(USER_ID), True], ids=repr)
@pytest.mark.parametrize("method", WRITES)
def test_idempotency_key_of_another_type(method: str, key: object) -> None:
    """A key must be text, whether or not the server honours it."""
    for protocol in (PROTOCOL, REPLAYING):
        with rejected((TypeError, f"idempotency_key must be str, not {type(key).__name__}")):
            make(method, protocol=protocol, idempotency_key=key)
