"""What tests of the documentation's programs share: the files on a page, and waiting for a process."""

import re
from pathlib import Path


def blocks_of(page: Path) -> dict[str, str]:
    """Return the files of a page, by name."""
    files = re.findall(
        r"`([\w.]+\.py)`:\n\n```python\n(.*?)^```",
        page.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    return dict(files)
