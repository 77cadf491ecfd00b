"""The README's examples run as they stand."""

import re
from pathlib import Path
from uuid import uuid4

import pytest

from creduse import CreduseClient
from creduse_sandbox import SandboxServer

README = Path(__file__).parent.parent.joinpath("README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example runs, where a client and a user are at hand for those that speak of one."""
    with SandboxServer() as server, CreduseClient("any", base_url=server.base_url) as client:
        monkeypatch.setenv("CREDUSE_BASE_URL", server.base_url)
        monkeypatch.setenv("CREDUSE_API_KEY", "any")
        client.add("12345678-1234-5678-1234-567812345678", 1)
        user = uuid4()
        client.add(user, 1)
        exec(compile(example, "README.md", "exec"), {"client": client, "end_user_id": user})  # noqa: S102 - it is ours


def test_there_are_examples() -> None:
    """The README has examples at all."""
    assert len(EXAMPLES) >= 4
