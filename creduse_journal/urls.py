"""The URLs of journals in PostgreSQL. It needs no driver. Connections (`postgres`) do not belong here."""

import re
from typing import Final, TypeGuard

_PASSWORD: Final = re.compile(r"(://[^/?#]*?:)[^/?#]*(?=@)|((?:^|[?&\s])password\s*=)[^&\s]*")


def is_url(journal: object) -> TypeGuard[str]:
    """Return whether a journal is in PostgreSQL. All others are files."""
    return isinstance(journal, str) and journal.startswith(("postgresql://", "postgres://"))


def without_password(url: str) -> str:
    """Return a URL for messages."""
    return _PASSWORD.sub(r"\1\2***", url)
