"""The API key: an object that never shows it, and removes it from other texts.

Only `Secret.reveal` returns the key as text. The words of errors do not belong here.
"""

import re
from binascii import b2a_base64
from collections.abc import Iterable, Sequence
from typing import Final, NoReturn

_REDACTED: Final = "***"

_MIN_LENGTH: Final = 8
"""Redaction removes at least this many leading characters of a key. A shorter key, such as a test's
"k", is removed only as a whole word."""

_MIN_LENGTH_AT_END: Final = 4
"""Characters of a key that redaction removes at the end of a text, where the text can have been
cut."""


_GAP: Final = (
    r"(?:(?:\0|\\{1,8}(?:u0000|x00)){1,3}"
    r"|=?(?:[\r\n]|\\{1,8}(?:[rn]|u000[aAdD])){1,4}(?:[ \t]|\\{1,8}t){0,80})?"
)
"""What can stand between two characters, escaped or not: the zeros of UTF-16 and UTF-32, or the end
of a line, as in MIME, with the next line's indentation."""


def no_pickle(self: object) -> NoReturn:
    """Raise ``TypeError``. An object that holds the API key uses this as ``__reduce__``.

    A pickle would store the key.
    """
    raise TypeError(f"a {type(self).__name__} holds the API key, so it cannot be pickled or copied")


class Secret:
    """Text that must not be shown. ``repr``, ``str`` and formatting hide it.

    Two secrets are equal only if they are the same object. A secret cannot be pickled or copied.
    """

    __slots__ = ("_patterns", "_text")

    def __init__(self, api_key: str) -> None:
        """Hide ``api_key``. Tools that show variables leave out this name."""
        self._text = str.__str__(api_key)  # a subclass can change ``str()``
        self._patterns: tuple[_Pattern, ...] | None = None

    def __repr__(self) -> str:
        return f"<Secret {_REDACTED}>"

    __reduce__ = no_pickle

    def reveal(self) -> str:
        """Return the text. Read it only where you make the bytes to send, and do not keep it."""
        return self._text

    def redact(self, text: str) -> str:
        """Return ``text`` without the secret, in whatever form it appears.

        Each character can appear as itself or escaped once or twice, for JSON, URLs, HTML,
        quoted-printable or source code. The secret is also found in hexadecimal, in Base64, in
        misread UTF-16 and across line breaks. Its first 8 characters, or 4 at the end of the text,
        count as the secret. An empty secret is in no text.
        """
        if self._patterns is None:  # made late, since few calls fail
            self._patterns = tuple(_patterns_of(self._text))
        for pattern in self._patterns:
            text = pattern.redact(text)
        return text


def redact(text: str, secrets: Iterable[Secret]) -> str:
    """Return ``text`` without these secrets. See `Secret.redact`."""
    for secret in secrets:
        text = secret.redact(text)
    return text


class _Pattern:
    """Finds the secret in one of its forms: its beginning, and as much of the rest as follows."""

    __slots__ = ("_beginning", "_rest")

    def __init__(self, beginning: str, rest: Sequence[str] = ()) -> None:
        """Use these regular expressions. ``rest`` has one for each part."""
        self._beginning = re.compile(beginning)
        self._rest = rest

    def redact(self, text: str) -> str:
        kept: list[str] = []
        position = 0
        while match := self._beginning.search(text, position):
            kept += text[position : match.start()], _REDACTED
            position = match.end()
            for part in self._rest:
                following = re.compile(part).match(text, position)
                if following is None:
                    break
                position = following.end()
        return "".join((*kept, text[position:])) if kept else text


def _patterns_of(api_key: str) -> Iterable[_Pattern]:
    parts = _escaped_forms(api_key)
    if not parts:
        return
    if len(parts) < _MIN_LENGTH:
        yield _Pattern(rf"(?<!\w){''.join(parts)}(?!\w)")
        return
    yield _pattern_of_parts(parts, _MIN_LENGTH, _MIN_LENGTH_AT_END)
    data = api_key.encode("utf-8", "surrogatepass")
    yield _pattern_of_parts(
        [_hexadecimal(byte, 2) for byte in data], _MIN_LENGTH, _MIN_LENGTH_AT_END
    )
    least, least_at_end = _MIN_LENGTH * 8 // 6, _MIN_LENGTH_AT_END * 8 // 6
    odd = {"+": f"(?:-|{_escaped_forms('+')[0]})", "/": f"(?:_|{_escaped_forms('/')[0]})"}
    for offset in range(3):
        # A character of Base64 is six bits. The bytes before and after the key decide some bits of
        # the first and the last character.
        encoded = b2a_base64(bytes(offset) + data, newline=False).decode("ascii").rstrip("=")
        inner = encoded[-(-offset * 8 // 6) : (offset + len(data)) * 8 // 6]
        yield _pattern_of_parts([odd.get(letter, letter) for letter in inner], least, least_at_end)


def _pattern_of_parts(parts: Sequence[str], least: int, least_at_end: int) -> _Pattern:
    """Return a pattern for at least ``least`` parts, or ``least_at_end`` where a text ends."""
    parts = [parts[0], *(_GAP + part for part in parts[1:])]
    beginning = rf"(?:\Z|(?={parts[least - 1]}))"
    for part in reversed(parts[least_at_end : least - 1]):
        beginning = rf"(?:\Z|{part}{beginning})"
    return _Pattern("".join(parts[:least_at_end]) + beginning, parts[least - 1 :])


def _hexadecimal(number: int, width: int) -> str:
    digits = f"{number:0{width}x}"
    return "".join(digit if digit.isdecimal() else f"[{digit}{digit.upper()}]" for digit in digits)


def _escaped_forms(api_key: str) -> list[str]:
    """Return a regular expression for each character of the key, with all its escaped forms.

    Each alternative begins with a plain character, so that ``re`` quickly skips text that no form
    begins with.
    """
    # Imported here, since it is a table of 2,000 names, and few calls fail.
    from html.entities import html5  # noqa: PLC0415

    names: dict[str, str] = dict.fromkeys(api_key, "")
    for name, character in html5.items():
        if character in names and name.endswith(";"):
            names[character] += rf"|{name[:-1]}"

    def spell(characters: str) -> str:
        character, code = characters[0], ord(characters[0])
        two, four = _hexadecimal(code, 2), _hexadecimal(code, 4)
        itself = re.escape(character)
        # Escaped text can be escaped again: \ as \\, % as %25, & as &amp;. The counts are bounded,
        # or the time would grow with the square of a text of backslashes.
        html = (
            rf"(?:amp;){{0,9}}(?:(?:#|%23)(?:0{{0,9}}{code}|[xX]0{{0,9}}{two}){names[character]})"
            r"(?:;|%3[bB])?"
        )
        source = rf"u0026{html}|x{two}|u{four}|u\{{0{{0,9}}{two}\}}|U0000{four}|0?{code:o}"
        if not character.isalnum():
            source += f"|&{html}|{itself}"
        escaped = (
            rf"&{html}|={two}|%(?:25){{0,9}}(?:26{html}|5[cC](?:{source})|{two})"
            rf"|\\\\{{0,8}}(?:{source})"
        )
        if character != "\\":
            return f"(?:{escaped}|{itself})"
        count = len(characters)
        return rf"(?:(?:{escaped}){{{count}}}|\\{{{count},{9 * count}}})"

    # Adjacent backslashes are one part, since their escapes cannot be told apart.
    found = re.findall(r"\\+|[^\\]", api_key)
    parts = [*map(spell, found)]
    for position, characters in enumerate(found[:-1]):
        if characters[0] in "&%=\\":
            # It can have several readings: & or &amp;. The one that the next part follows is right.
            part, following = parts[position : position + 2]
            parts[position] = f"(?:{part}(?={following})|{part})"
    return parts
