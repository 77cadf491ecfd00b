"""What the sender of an error response says in its own words, for people to read.

The service has its own format, which `creduse_core.decoding` reads. A gateway, a proxy or a login page
in front of it has others. No decision depends on these words. Redaction does not belong here: see
`creduse_core.reports`.
"""

import json
import re
from collections.abc import Mapping
from typing import Final

from .messages import Response

_MAX_READ: Final = 16 * 1024
"""Bytes of a body that are read."""

# The fields in which JSON has words, in any case, the best ones first: the service's own, RFC 9457's,
# OAuth's and those of web frameworks and gateways. A value can be an object or a list with such fields.
_FIELDS: Final = (
    *("message", "detail", "title", "error_description", "description"),
    *("msg", "reason", "error", "errors"),
)
_MAX_DEPTH: Final = 4

_ELEMENT: Final = r"<(%s)\b[^>]{0,200}>([^<]{1,1000})</\1\s*>"
_TITLE: Final = re.compile(_ELEMENT % "title|h1", re.IGNORECASE)
_TITLE_OR_MESSAGE: Final = re.compile(_ELEMENT % "title|h1|message", re.IGNORECASE)
"""The second is for errors alone, such as those of S3 in XML."""

_CHARSET: Final = re.compile(
    r"charset\s*=\s*[\"']?((?:utf|iso|us-|latin|windows|cp|koi8|euc|shift|gb|big5)[\w.:-]{1,30})",
    re.IGNORECASE,
)
"""The beginnings leave out what Python knows besides charsets, such as ``unicode_escape``."""

_NOT_TEXT: Final = re.compile(r"[<\[{]|.*\ufffd", re.DOTALL)
"""Markup and JSON by their first character, and what is not text in its charset."""

_REQUEST_IDS: Final = (
    *("x-request-id", "request-id", "x-correlation-id", "x-amzn-requestid", "x-amz-request-id"),
    *("x-ms-request-id", "x-amzn-trace-id", "x-cloud-trace-context", "x-trace-id", "cf-ray"),
)
"""The headers in which servers and gateways name a request, in small letters. None is standard."""


def words_of(response: Response) -> str | None:
    """Return what a response that is not a result says, or ``None``.

    A redirect says where it leads, without a query, which can hold secrets. Otherwise the body is read
    as JSON, as the title of an HTML page or the message of XML, or as plain text, whatever its type is
    said to be. Of a 2xx response only a title is read, since its body can hold an end user's data.
    """
    if 300 <= response.status < 400 and (location := response.header("Location")):
        return f"redirects to {_without_query(location)}"
    media_type = response.header("Content-Type") or ""
    text = _decoded(response.body[:_MAX_READ], media_type).strip(" \t\n\r\ufeff")
    is_error = not 200 <= response.status < 300
    words = _words_in_json(text) if is_error and len(response.body) <= _MAX_READ else None
    if words is None and (found := (_TITLE_OR_MESSAGE if is_error else _TITLE).search(text)):
        from html import unescape  # noqa: PLC0415 - it has a table of 2,000 names

        words = unescape(found[2])
    if words is None and is_error and _is_plain(text, media_type):
        words = text
    return words if words and words.strip() else None


def request_id_of(response: Response) -> str | None:
    """Return the name that the sender gave the request, to quote in a report to it, or ``None``."""
    found: dict[str, str] = {}
    for name, value in response.headers:
        found.setdefault(name.lower(), value)
    return next((found[name] for name in _REQUEST_IDS if found.get(name)), None)


def _without_query(location: str) -> str:
    place = location.partition("#")[0].partition("?")[0]
    scheme, separator, rest = place.partition("//")
    if not separator:
        return place
    host, slash, path = rest.partition("/")
    # A URL can hold a user name and a password.
    return f"{scheme}//{host.rpartition('@')[2]}{slash}{path}"


def _decoded(body: bytes, media_type: str) -> str:
    charset = _CHARSET.search(media_type)
    try:
        return body.decode(charset[1] if charset else "utf-8", "replace")
    except LookupError:  # Python does not know it
        return body.decode("utf-8", "replace")


def _is_plain(text: str, media_type: str) -> bool:
    if media_type:
        return media_type.lower().startswith("text/plain")
    return not _NOT_TEXT.match(text) and all(map(str.isprintable, text.split()))


def _words_in_json(text: str) -> str | None:
    try:
        data: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _words_in(data, _MAX_DEPTH)


def _words_in(data: object, depth: int) -> str | None:
    if isinstance(data, str):
        return data
    if isinstance(data, list) and data and depth:
        return _words_in(data[0], depth - 1)  # pyright: ignore[reportUnknownArgumentType]  # any JSON
    if isinstance(data, Mapping) and depth:
        fields = {name.lower(): value for name, value in data.items()}  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # any JSON
        values = (_words_in(fields.get(name), depth - 1) for name in _FIELDS)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  # any JSON
        return next((words for words in values if words), None)
    return None
