"""The README's examples run as they stand."""

import re
import runpy
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from creduse import CreduseClient
from creduse_core import CoreClient
from creduse_sandbox import SandboxServer
from creduse_sandbox.conformance import SCENARIOS, TLS_SCENARIOS, check

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
EXAMPLES = EXAMPLE.findall(ROOT.joinpath("README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example(example: str, monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> None:
    """Each example runs, with a client and a user where it needs them."""
    if "def test_" in example:
        pytester.makeini("[pytest]")
        pytester.makepyfile(example)
        pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=1)
        return
    with SandboxServer() as server, CreduseClient("any", base_url=server.base_url) as client:
        monkeypatch.setenv("CREDUSE_BASE_URL", server.base_url)
        monkeypatch.setenv("CREDUSE_API_KEY", "any")
        client.add("12345678-1234-5678-1234-567812345678", 1)
        user = uuid4()
        client.add(user, 1)
        exec(compile(example, "README.md", "exec"), {"client": client, "end_user_id": user})  # noqa: S102 - it is ours


def test_guide_for_transports() -> None:
    """The guide for transport authors works for the example over urllib."""
    pytest.importorskip("trustme")
    guide = ROOT.joinpath("docs", "transports.md").read_text(encoding="utf-8")
    over_urllib = runpy.run_path(str(ROOT / "examples" / "urllib_transport.py"))
    names: dict[str, Any] = {"MyTransport": over_urllib["UrllibTransport"], "end_user_id": uuid4()}
    with SandboxServer() as server:
        here = guide.replace('("your-api-key")', f'("any", "{server.base_url}")')
        for example in EXAMPLE.findall(here):
            exec(compile(example, "transports.md", "exec"), names)  # noqa: S102 - it is ours
        assert len(server.applied) == 1
    names["test_my_transport"](SCENARIOS[0])
    for scenario in TLS_SCENARIOS[0], TLS_SCENARIOS[-1]:
        check(
            scenario,
            lambda protocol: CoreClient(protocol, names["MyTransport"](names["trust"])),
            certificates=names["certificates"],
        )


def test_links() -> None:
    """The README's links lead to files that exist."""
    readme = ROOT.joinpath("README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https:)([^)#]+)", readme)
    assert links
    assert [link for link in links if not ROOT.joinpath(link).is_file()] == []


def test_there_are_examples() -> None:
    """The README has examples."""
    assert len(EXAMPLES) >= 4
