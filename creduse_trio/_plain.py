"""Reads a plain response without h11: a whole one that arrived at once and is like most others.

`read_plain` declines whatever is unusual or malformed, and h11 then reads that from its first byte.
So only what h11 reads in the same way may be accepted here. Connections and the meaning of a
response do not belong here.
"""

import re
from typing import Final, TypeAlias

Head: TypeAlias = tuple[int, list[tuple[bytes, bytes]]]
"""A response's status code, and its header fields as they were sent."""

# 204 and 304 have no body, whatever length they name.
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 (?!204|304)([2-5][0-9][0-9])(?: [^\x00\n\v\f\r]*)?")
# As in h11, a value can have most control characters. With `*+`, which never backtracks, the time is
# linear in a line of spaces.
_FIELD: Final = re.compile(
    rb"([-!#$%&'*+.^_`|~0-9a-zA-Z]+):[ \t]*+((?:[^\x00\s](?:[^\x00\n\v\f\r]*[^\x00\s])?)?)[ \t]*"
)
# Six digits are less than `creduse_core.MAX_BODY_SIZE`.
_LENGTH: Final = re.compile(rb"[0-9]{1,6}")
# These decide how long the body is, or whether the connection can be used again.
_NOT_PLAIN: Final = frozenset({b"connection", b"transfer-encoding"})


def read_plain(data: bytes) -> tuple[Head, bytes] | None:
    """Return the head and the body of a plain response, or ``None`` for anything else.

    A plain response is final, complete and of HTTP/1.1. It has no header twice, its length is exact,
    and nothing follows its body. The connection can be used again after it.
    """
    head, blank_line, body = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    headers = [(field[1], field[2]) for line in lines if (field := _FIELD.fullmatch(line))]
    values = {name.lower(): value for name, value in headers}
    length = values.get(b"content-length", b"")
    if (
        status is None
        or not blank_line
        or len(values) < len(lines)  # a header is malformed, or there twice
        or not values.keys().isdisjoint(_NOT_PLAIN)
        or not _LENGTH.fullmatch(length)
        or int(length) != len(body)
    ):
        return None
    return (int(status[1]), headers), body
