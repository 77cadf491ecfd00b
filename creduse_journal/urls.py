"""The URLs of journals in PostgreSQL. It needs no driver. Connections (`postgres`) do not belong here."""

import re
from typing import Final, TypeGuard

# To the last @: a password with special characters can be anything.
_PASSWORD: Final = re.compile(r"(://[^/?#@]*?:).*(?=@)|((?:^|[?&\s])password\s*=)[^&\s]*")


def is_url(journal: object) -> TypeGuard[str]:
    """Return whether a journal is in PostgreSQL. All others are files.

    A URL of something else raises ``ValueError``.
    """
    if not isinstance(journal, str) or "://" not in journal:
        return False
    if not journal.startswith(("postgresql://", "postgres://")):
        raise ValueError(
            "journal must be a path, or a URL such as postgresql://user@host/database, not one that "
            f"begins with {journal.partition('://')[0]}://"
        )
    return True


def without_password(url: str) -> str:
    """Return a URL for messages."""
    return _PASSWORD.sub(r"\1\2***", url)
