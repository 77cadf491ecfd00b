"""The API key: an object that shows it nowhere, and takes it out of other people's text.

The key is text in one place only, `Secret.reveal`. What an error says, and in which words, must
not come in here.
"""

import base64
import re
from typing import Final, NoReturn

_STARS: Final = "***"

_SHORT: Final = 8
"""Characters. A shorter key, such as a test's "k", is taken out only where it stands as a word;
of a longer one, as many characters are enough to be taken out."""

_SHORTEST_END: Final = 4
"""Characters of a key that are taken out where a text ends with them: somebody has cut it there."""


def no_pickle(self: object) -> NoReturn:
    """Stand in as ``__reduce__`` for whatever holds the API key, since a pickle would store it."""
    raise TypeError(f"a {type(self).__name__} holds the API key, so it cannot be pickled or copied")


class Secret:
    """Holds text that must not be shown: ``repr``, ``str`` and formatting hide it.

    Two secrets are equal only if they are the same object. A secret can be neither pickled nor
    copied.
    """

    __slots__ = ("_patterns", "_text")

    def __init__(self, api_key: str) -> None:
        """Hide ``api_key``. It bears the name that tools leave out when they show variables."""
        self._text = api_key
        self._patterns: _Patterns | None = None

    def __repr__(self) -> str:
        return f"<Secret {_STARS}>"

    __reduce__ = no_pickle

    def reveal(self) -> str:
        """Return the text. Read it where bytes for the wire are made, and keep it nowhere."""
        return self._text

    def redact(self, text: str) -> str:
        """Return ``text`` without the secret, in whatever spelling it stands there.

        The spellings of a character are its own, and those of JSON, URLs, HTML, quoted-printable
        and source code, escaped again or not. The whole is also found in hexadecimal and in Base64. At least
        its first 8 characters, or 4 where the text ends, are taken for all of it.
        """
        if self._patterns is None:
            self._patterns = _Patterns(self._text)
        return self._patterns.redact(text)


class _Patterns:
    """The patterns that find one secret."""

    def __init__(self, api_key: str) -> None:
        spelled = [_spellings(character) for character in api_key]
        if len(api_key) < _SHORT:
            self._beginning = re.compile(rf"(?<!\w){''.join(spelled)}(?!\w)")
            self._rest = []
            self._others = None
            return
        ends = "|".join(
            "".join(spelled[:length]) + r"\Z" for length in range(_SHORT - 1, _SHORTEST_END - 1, -1)
        )
        self._beginning = re.compile(f"{''.join(spelled[:_SHORT])}|{ends}")
        self._rest = [re.compile(spelling) for spelling in spelled[_SHORT:]]
        self._others = re.compile("|".join(_as_a_whole(api_key)))

    def redact(self, text: str) -> str:
        kept: list[str] = []
        position = 0
        while match := self._beginning.search(text, position):
            kept += text[position : match.start()], _STARS
            position = match.end()
            for character in self._rest:
                following = character.match(text, position)
                if following is None:
                    break
                position = following.end()
        redacted = "".join((*kept, text[position:])) if kept else text
        return redacted if self._others is None else self._others.sub(_STARS, redacted)

    __reduce__ = no_pickle


def _spellings(character: str) -> str:
    """Return a pattern of the ways in which a character may be written."""
    # Not at the top: few calls fail, and it is a table of 2,000 names.
    from html.entities import html5  # noqa: PLC0415

    code = ord(character)
    digits = "".join(f"[{digit}{digit.upper()}]" for digit in f"{code:02x}")
    names = "".join(
        f"|{re.escape(name.rstrip(';'))};?" for name, value in html5.items() if value == character
    )
    # What is escaped may be escaped again: then \ is \\, % is %25, & is &amp;. So many times, since
    # without a bound the time would grow with the square of a text of backslashes.
    itself = re.escape(character)
    if character == "\\":
        itself = r"\\{1,9}"
    elif not character.isalnum():
        itself = rf"\\{{0,9}}{itself}"
    return (
        rf"(?:{itself}"
        rf"|\\{{1,9}}(?:(?:u00|x|u\{{0{{0,9}}){digits}\}}?|0?{code:o})"
        rf"|%(?:25){{0,9}}{digits}|={digits}"
        rf"|&(?:amp;){{0,9}}(?:#0{{0,9}}{code};?|#[xX]0{{0,9}}{digits};?{names}))"
    )


def _as_a_whole(api_key: str) -> list[str]:
    """Return patterns of encodings that do not go character by character."""
    data = api_key.encode("utf-8", "surrogatepass")
    patterns = ["".join(f"(?i:{byte:02x})" for byte in data)]
    for offset in range(3):
        # What stands before and behind decides some of the first and the last characters.
        encoded = base64.b64encode(bytes(offset) + data).decode("ascii").rstrip("=")
        inner = encoded[-(-offset * 8 // 6) : (offset + len(data)) * 8 // 6]
        patterns.append("".join({"+": "[+-]", "/": "[/_]"}.get(letter, letter) for letter in inner))
    return patterns
