"""The code in docs/testing.md runs as it stands.

Most need a plugin or a mock that gets in the way of others. ``nox -s plugins`` has them.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow

pytest_plugins = ["pytester"]

PAGE = Path(__file__).parent.parent.joinpath("docs", "testing.md")
FENCE = re.compile(r"(?:`(\w+)\.py`:\n\n)?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
FENCES = FENCE.findall(PAGE.read_text(encoding="utf-8"))
EXAMPLES = [text for file, text in FENCES if not file]
FILES = {file: text for file, text in FENCES if file}


class Need(NamedTuple):
    """The nox session of an example, the module that it needs, and settings."""

    session: str
    module: str
    settings: tuple[str, ...] = ()


# By a word that stands in those examples alone.
NEEDS = {
    "aiohttp_client": Need(
        "aiohttp",
        "pytest_aiohttp",
        ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"),
    ),
    "mark.trio": Need("trio", "pytest_trio"),
    "respx.mock": Need("mocks", "respx"),
    "vcr.VCR": Need("mocks", "vcr"),
    "httpx_mock": Need("mocks", "pytest_httpx"),
    "aioresponses": Need("mocks", "aioresponses"),
}


def need(example: str) -> Need:
    return next((need for word, need in NEEDS.items() if word in example), Need("tests", "pytest"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: need(example).session)
def test_example(example: str, pytester: pytest.Pytester) -> None:
    """Each example passes without warnings."""
    session, module, settings = need(example)
    pytest.importorskip(module, reason=f"{module} is in nox -s 'plugins(plugin={session})'")
    pytester.makeini("[pytest]")
    path = pytester.makepyfile(example)
    if "def test_" in example:
        result = pytester.runpytest_subprocess("-W", "error", *settings)
        result.assert_outcomes(passed=example.count("def test_"))
    else:
        subprocess.run([sys.executable, "-W", "error", path], check=True)


def test_files(pytester: pytest.Pytester) -> None:
    """The files work together, and their tests pass."""
    pytester.makeini("[pytest]")
    pytester.makepyfile(**FILES)
    result = pytester.runpytest_subprocess("-W", "error")
    result.assert_outcomes(passed=sum(text.count("def test_") for text in FILES.values()))


def test_there_are_examples() -> None:
    """Each session has examples."""
    sessions = {need(example).session for example in EXAMPLES}
    assert sessions == {"tests", *(need.session for need in NEEDS.values())}
    assert set(FILES) == {"views", "test_views"}
