"""The URLs of journals in PostgreSQL. It needs no driver. Connections (`postgres`) do not belong here."""

import re
from typing import Final, TypeGuard

# A single letter is a drive of Windows.
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/{0,2}")
# To the last @: a password with special characters can be anything.
_PASSWORD: Final = re.compile(r"(://[^/?#@]*?:).*(?=@)|((?:^|[?&\s])(?:ssl)?password\s*=)[^&\s]*")


def is_url(journal: object) -> TypeGuard[str]:
    """Return whether a journal is in PostgreSQL. All others are files.

    What looks like another URL, or a misspelled one, raises ``ValueError``: a new file would forget what
    was sent.
    """
    begins = _SCHEME.match(journal) if isinstance(journal, str) else None
    if begins is None:
        return False
    if begins[0] not in {"postgresql://", "postgres://"}:
        raise ValueError(
            "journal must be a path, or a URL such as postgresql://user@host/database, not one that "
            f"begins with {begins[0]}; a file of that name is ./{begins[0]}…"
        )
    return True


def without_password(url: str) -> str:
    """Return a URL for messages."""
    return _PASSWORD.sub(r"\1\2***", url)
