"""What the reader of plain responses accepts, h11 reads in the same way."""

import random
from collections import Counter
from collections.abc import Callable

import h11
import pytest
import trio

from creduse_sandbox import SandboxServer
from creduse_trio import AsyncCreduseClient
from creduse_trio._plain import Head, read_plain
from tests.common import KEY, USER

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


def read_with_h11(data: bytes) -> tuple[Head, bytes] | None:
    """Return what h11 reads of a response, if its connection can be used again, or ``None``."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="POST", target="/", headers=[("Host", "a")]))
    http.send(h11.EndOfMessage())
    http.receive_data(data)
    try:
        head = http.next_event()
        if not isinstance(head, h11.Response):
            return None
        body = b""
        while isinstance(event := http.next_event(), h11.Data):
            body += event.data
        if not isinstance(event, h11.EndOfMessage) or http.trailing_data != (b"", False):
            return None
        http.start_next_cycle()
    except h11.ProtocolError:
        return None
    return (head.status_code, head.headers.raw_items()), body


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        PLAIN.replace(b" OK", b""),
        PLAIN.replace(b"OK", b""),
        PLAIN.replace(b"200", b"599"),
        PLAIN.replace(b"Content-Length: ", b"content-length:\t "),
        PLAIN.replace(b"Content-Length: 2", b"Content-Length: 000002 "),
        PLAIN.replace(b"application/json", b""),
        PLAIN.replace(b"application/json", b"a \t b\x01\x7f\xff"),
        PLAIN.replace(b"Content-Type", b"!#$%&'*+-.^_`|~"),
        PLAIN.replace(b"2\r\n\r\n{}", b"0\r\n\r\n"),
        PLAIN.replace(b"2\r\n\r\n{}", b"4\r\n\r\n\r\n\r\n"),
    ],
)
def test_plain(data: bytes) -> None:
    """A plain response is read."""
    assert read_plain(data) == read_with_h11(data) is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PLAIN[:-1],
        PLAIN[:-4],
        PLAIN[:-6],
        PLAIN + b"\n",
        PLAIN + PLAIN,
        b"\r\n" + PLAIN,
        b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN,
        PLAIN.replace(b"\r\n", b"\n"),
        PLAIN.replace(b"\r\n{", b"\n{"),
        PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
        *(PLAIN.replace(b"200", status) for status in (b"101", b"199", b"204", b"304", b"600")),
        PLAIN.replace(b"OK", b"O\0K"),
        PLAIN.replace(b"OK", b"O\rK"),
        PLAIN.replace(b"Content-Length: 2\r\n", b""),
        *(
            PLAIN.replace(b"h: 2", b"h: " + length)
            for length in (b"", b"1", b"3", b"+2", b"2, 2", b"2 2", b"0x2", b"0000002", b"\xb2")
        ),
        *(
            PLAIN.replace(b"Content-Type: application/json", line)
            for line in (
                b"Content-Length: 2",
                b"content-length: 2",
                b"Transfer-Encoding: chunked",
                b"transfer-encoding:",
                b"Connection: close",
                b"connection: keep-alive",
                b"A: 1\r\na: 1",
                b"A : 1",
                b": 1",
                b"A",
                b"A: 1\r\n 2",
                b"A: 1\0",
                b"A: 1\r2",
                b"A: 1\v2",
                b"A: \f",
                b"\xc4: 1",
            )
        ),
    ],
)
def test_not_plain(data: bytes) -> None:
    """Whatever is unusual, malformed or not complete is declined."""
    assert read_plain(data) is None


def test_a_call_without_h11(server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call like the first does not use h11, since the response is plain."""

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url) as client:
            await client.add(USER, 1)
            # The server has its own h11 already, for this connection.
            monkeypatch.setattr(h11, "Connection", None)
            await client.add(USER, 1)

    trio.run(main)
    assert len({entry.connection for entry in server.log}) == 1


Dice = random.Random
NAMES = (
    *(b"Content-Type", b"Date", b"Server", b"Retry-After", b"Set-Cookie", b"Keep-Alive", b"X"),
    *(b"Trailer", b"Upgrade", b"Proxy-Connection", b"Content-Encoding", b"connection2"),
)
VALUES = (b"", b"1", b"application/json", b"Tue, 12 Aug 2025 14:35:55 GMT", b"a \t b", b"\xe4\x01")
STATUS_LINES = (
    *(b"HTTP/1.1 %d OK" % status for status in (100, 101, 199, 200, 204, 304, 404, 503, 599, 600)),
    *(
        b"HTTP/1.0 200 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/1.1 200",
        b"HTTP/1.1  200 OK",
        b"http/1.1 200",
    ),
    *(b"HTTP/1.1 2000 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 200 \xe4\t ok", b"HTTP/1.1 200OK", b""),
)
LINES = (
    *(
        b"Connection: close",
        b"connection:\tkeep-alive",
        b"CONNECTION:",
        b"Transfer-Encoding: chunked",
    ),
    *(
        b"transfer-encoding: identity",
        b"Content-Length: 2",
        b"content-length: 2, 2",
        b" folded",
        b"\t",
    ),
    *(
        b"Name : 1",
        b": 1",
        b"Name",
        b"N@me: 1",
        b"Name:1",
        b"Name: \t 1\t ",
        b"Name: \0",
        b"Name: a\rb",
    ),
    *(b"Content-Length: " + b"0" * zeros + b"2" for zeros in (4, 5, 6, 19, 20)),
)
ODD = b"\0\t\n\v\f\r\x1c\x1f :,;0129aZ\x7f\x80\x85\xa0\xff"


def pick(dice: Dice, data: bytes) -> int:
    return dice.randrange(len(data) + 1)


def change_line(dice: Dice, data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Change one line of the head or of what follows."""
    lines = data.split(b"\r\n")
    at = dice.randrange(len(lines))
    lines[at] = change(lines[at])
    return b"\r\n".join(lines)


def change_byte(dice: Dice, data: bytes) -> bytes:
    """Insert, replace or delete a byte."""
    at, piece = pick(dice, data), dice.choice((b"", b"%c" % dice.choice(ODD)))
    return data[:at] + piece + data[at + dice.randrange(2) :]


def change_length(dice: Dice, data: bytes) -> bytes:
    name, found, rest = data.partition(b"Content-Length: ")
    length, _, rest = rest.partition(b"\r\n")
    sign = dice.choice((b"-", b"+", b"1", b"0", b"00000", b"0" * 20, b" ", b"0x", b"\t"))
    other = dice.choice((sign + length, length + sign, length + b", " + length, length[:-1]))
    return name + found + other + b"\r\n" + rest


MUTATIONS: tuple[Callable[[Dice, bytes], bytes], ...] = (
    change_byte,
    change_byte,
    change_length,
    lambda dice, data: data[: pick(dice, data)],  # cut
    lambda dice, data: data + dice.choice((b"\n", b"\r\n", b"x", b"\0", PLAIN)),  # add
    lambda dice, data: dice.choice((b"\n", b"\r\n", b" ", b"HTTP/1.1 100 A\r\n\r\n")) + data,
    lambda dice, data: dice.choice(STATUS_LINES) + data[data.find(b"\r\n") :],
    lambda dice, data: change_line(dice, data, lambda line: line + b"\r\n" + line),  # repeat
    lambda dice, data: change_line(dice, data, lambda line: line + b"\r\n" + dice.choice(LINES)),
    lambda dice, data: change_line(dice, data, lambda line: line.swapcase()),
    lambda dice, data: change_line(
        dice, data, lambda line: line + dice.choice((b" ", b"\t", b"\r"))
    ),
    lambda dice, data: change_line(dice, data, lambda line: line.replace(b": ", b":", 1)),
    lambda dice, data: data.replace(b"\r\n", dice.choice((b"\n", b"\r", b"\n\r")), 1),
    lambda dice, data: data.replace(b"\r\n\r\n", dice.choice((b"\n\n", b"\r\n\n", b"\n\r\n")), 1),
)


def response(dice: Dice) -> bytes:
    """Return a plain response."""
    body = dice.choice((b"", b"{}", b'{"amount": 5}', b"a\r\n\r\nb", b"\r\n", b"\xff" * 100))
    names = dice.sample(NAMES, dice.randrange(4))
    lines = [b"%b: %b" % (name, dice.choice(VALUES)) for name in names]
    lines.insert(pick(dice, bytes(len(lines))), b"Content-Length: %d" % len(body))
    status = dice.choice((200, 201, 400, 404, 429, 503))
    return b"HTTP/1.1 %d OK\r\n%b\r\n\r\n%b" % (status, b"\r\n".join(lines), body)


@pytest.mark.parametrize(
    ("seed", "count"),
    [
        (0, 30_000),
        *(pytest.param(seed, 250_000, marks=pytest.mark.exhaustive) for seed in range(1, 5)),
    ],
)
def test_against_h11(seed: int, count: int) -> None:
    """h11 reads the same of each accepted response, and its connection can be used again."""
    dice = Dice(seed)
    shares: Counter[str] = Counter()
    for _ in range(count):
        data = whole = response(dice)
        for _ in range(dice.choice((0, 1, 1, 1, 2, 3))):
            data = dice.choice(MUTATIONS)(dice, data)
        plain, usual = read_plain(data), read_with_h11(data)
        if plain is not None:
            assert plain == usual, f"seed {seed}: {data!r}"
            shares["accepted" if data == whole else "accepted, mutated"] += 1
        else:
            assert data != whole, f"seed {seed}: {data!r}"
            shares["declined" if usual is None else "declined, though h11 reads it"] += 1
    print(f"seed {seed}:", dict(shares))  # noqa: T201 - pytest shows it on a failure, or with -s
    assert len(shares) == 4
    assert min(shares.values()) > count * 0.06
