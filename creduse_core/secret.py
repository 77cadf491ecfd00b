"""The API key: an object that shows it nowhere, and takes it out of other people's text.

The key is text in one place only, `Secret.reveal`. What an error says, and in which words, must
not come in here.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from typing import Final, NoReturn

_STARS: Final = "***"

_SHORT: Final = 8
"""Characters. A shorter key, such as a test's "k", is taken out only where it stands as a word;
of a longer one, as many characters are enough to be taken out."""

_SHORT_AT_END: Final = 4
"""Characters of a key that are taken out where a text ends with them: somebody has cut it there."""


_GAP: Final = (
    r"(?:(?:\0|\\{1,8}(?:u0000|x00)){1,3}"
    r"|=?(?:[\r\n]|\\{1,8}(?:[rn]|u000[aAdD])){1,4}(?:[ \t]|\\{1,8}t){0,80})?"
)
"""What may stand between two characters, escaped or not: the zeros of UTF-16 and UTF-32, or the
end of a line, as in MIME, and what the next one is indented by."""


def no_pickle(self: object) -> NoReturn:
    """Stand in as ``__reduce__`` for whatever holds the API key, since a pickle would store it."""
    raise TypeError(f"a {type(self).__name__} holds the API key, so it cannot be pickled or copied")


class Secret:
    """Holds text that must not be shown: ``repr``, ``str`` and formatting hide it.

    Two secrets are equal only if they are the same object. A secret can be neither pickled nor
    copied.
    """

    __slots__ = ("_spellings", "_text")

    def __init__(self, api_key: str) -> None:
        """Hide ``api_key``. It bears the name that tools leave out when they show variables."""
        self._text = str.__str__(api_key)  # whatever a subclass says of itself
        self._spellings: tuple[_Spelling, ...] | None = None

    def __repr__(self) -> str:
        return f"<Secret {_STARS}>"

    __reduce__ = no_pickle

    def reveal(self) -> str:
        """Return the text. Read it where bytes for the wire are made, and keep it nowhere."""
        return self._text

    def redact(self, text: str) -> str:
        """Return ``text`` without the secret, in whatever spelling it stands there.

        The spellings of a character are its own, and those of JSON, URLs, HTML, quoted-printable
        and source code, escaped again or not. The secret is also found in hexadecimal, in Base64,
        in UTF-16 that was read as something else, and broken into lines. At least its first 8
        characters, or 4 where the text ends, are taken for all of it.
        """
        if self._spellings is None:  # few calls fail, so few keys are ever looked for
            self._spellings = tuple(_spellings(self._text))
        for spelling in self._spellings:
            text = spelling.redact(text)
        return text


class _Spelling:
    """Finds a secret in one of its spellings: its beginning, and as much of the rest as follows."""

    __slots__ = ("_beginning", "_rest")

    def __init__(self, beginning: str, rest: Sequence[str] = ()) -> None:
        """Take patterns, those of the rest one for each part."""
        self._beginning = re.compile(beginning)
        self._rest = rest

    def redact(self, text: str) -> str:
        kept: list[str] = []
        position = 0
        while match := self._beginning.search(text, position):
            kept += text[position : match.start()], _STARS
            position = match.end()
            for part in self._rest:
                following = re.compile(part).match(text, position)
                if following is None:
                    break
                position = following.end()
        return "".join((*kept, text[position:])) if kept else text

    __reduce__ = no_pickle


def _spellings(api_key: str) -> Iterable[_Spelling]:
    parts = _escaped(api_key)
    if len(parts) < _SHORT:
        yield _Spelling(rf"(?<!\w){''.join(parts)}(?!\w)")
        return
    yield _in_parts(parts, _SHORT, _SHORT_AT_END)
    data = api_key.encode("utf-8", "surrogatepass")
    yield _in_parts([_hexadecimal(byte, 2) for byte in data], _SHORT, _SHORT_AT_END)
    least, least_at_end = _SHORT * 8 // 6, _SHORT_AT_END * 8 // 6
    odd = {"+": f"(?:-|{_escaped('+')[0]})", "/": f"(?:_|{_escaped('/')[0]})"}
    for offset in range(3):
        # A character of Base64 is six bits. What stands before and behind decides some bits of the
        # first and the last one.
        encoded = base64.b64encode(bytes(offset) + data).decode("ascii").rstrip("=")
        inner = encoded[-(-offset * 8 // 6) : (offset + len(data)) * 8 // 6]
        yield _in_parts([odd.get(letter, letter) for letter in inner], least, least_at_end)


def _in_parts(parts: Sequence[str], least: int, least_at_end: int) -> _Spelling:
    """Take at least so many parts for the secret, and fewer where a text ends with them."""
    parts = [parts[0], *(_GAP + part for part in parts[1:])]
    beginning = rf"(?:\Z|(?={parts[least - 1]}))"
    for part in reversed(parts[least_at_end : least - 1]):
        beginning = rf"(?:\Z|{part}{beginning})"
    return _Spelling("".join(parts[:least_at_end]) + beginning, parts[least - 1 :])


def _hexadecimal(number: int, width: int) -> str:
    digits = f"{number:0{width}x}"
    return "".join(digit if digit.isdecimal() else f"[{digit}{digit.upper()}]" for digit in digits)


def _escaped(api_key: str) -> list[str]:
    """Return patterns of the ways in which the characters may be written, one after the other.

    Each alternative begins with a plain character, so that ``re`` skips at once whatever none of
    them begins with.
    """
    # Not at the top: few calls fail, and it is a table of 2,000 names.
    from html.entities import html5  # noqa: PLC0415

    names: dict[str, str] = dict.fromkeys(api_key, "")
    for name, character in html5.items():
        if character in names and name.endswith(";"):
            names[character] += rf"|{name[:-1]}"

    def spell(characters: str) -> str:
        character, code = characters[0], ord(characters[0])
        two, four = _hexadecimal(code, 2), _hexadecimal(code, 4)
        itself = re.escape(character)
        # What is escaped may be escaped again: then \ is \\, % is %25, & is &amp;. So many times,
        # since without a bound the time would grow with the square of a text of backslashes.
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

    # Backslashes that stand together are one part: nobody can tell whose escapes theirs are.
    found = re.findall(r"\\+|[^\\]", api_key)
    parts = [*map(spell, found)]
    for position, characters in enumerate(found[:-1]):
        if characters[0] in "&%=\\":
            # It may be read in several ways: & or &amp;. The one that the next part agrees with is it.
            part, following = parts[position : position + 2]
            parts[position] = f"(?:{part}(?={following})|{part})"
    return parts
