"""The apps of the page on frameworks, and the example over aiohttp, beyond the pages' own tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import blocks_of

ROOT = Path(__file__).parents[2]
USER = "12345678-1234-5678-1234-567812345678"
URL = f"/summaries/{USER}"

# The service's responses to `subtract` have no field that could be unreadable in a success, so the
# tests raise the error.
IMPORT = f"""
import os
assert "CREDUSE_API_KEY" not in os.environ
import MODULE
os.environ["CREDUSE_API_KEY"] = "any"
os.environ["CREDUSE_BASE_URL"] = "http://127.0.0.1:9"
from creduse_core import AsyncCoreClient, CoreClient, InvalidResponseError, Outcome
def raise_applied(*_, **__):
    raise InvalidResponseError("not readable", Outcome.APPLIED)
async def raise_applied_async(*_, **__):
    raise_applied()
CoreClient.subtract, AsyncCoreClient.subtract = raise_applied, raise_applied_async
URL = "{URL}"
"""
FASTAPI = """
from fastapi.testclient import TestClient
with TestClient(main.app) as browser:
    print(browser.post(URL).status_code)
"""
DJANGO = """
import django
from django.test import Client
django.setup()
print(Client().post(URL).status_code)
"""
FLASK = """
print(app.create_app().test_client().post(URL).status_code)
"""
FLASK_APP = FLASK.replace("create_app()", "app")
AIOHTTP = """
import asyncio
from aiohttp.test_utils import TestClient, TestServer
async def check():
    async with TestClient(TestServer(app.make_app())) as browser:
        headers = {"End-User": URL.rpartition("/")[2]}
        async with browser.post(PATH, headers=headers) as response:
            print(response.status)
asyncio.run(check())
"""


def run(module: str, program: str, folder: Path) -> str:
    """Import a module where no key is set, then run the program, and return what it prints."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("CREDUSE_")
    }
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.replace("MODULE", module) + program],
        cwd=folder,
        env=environment | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("page", "module", "needed", "program"),
    [
        ("frameworks", "main", "fastapi", FASTAPI),
        ("frameworks", "views", "django", DJANGO),
        ("frameworks", "app", "flask", FLASK),
        ("deployment", "main", "fastapi", FASTAPI),
        ("deployment", "app", "flask", FLASK_APP),
        ("aiohttp", "app", "aiohttp", AIOHTTP.replace("PATH", "URL")),
    ],
)
def test_applied(page: str, module: str, needed: str, program: str, tmp_path: Path) -> None:
    """An app can be imported without a key, and does its work after APPLIED."""
    pytest.importorskip(needed, reason=f"{needed} is in nox -s docs")
    for name, text in blocks_of(ROOT / "docs" / f"{page}.md").items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert run(module, program, tmp_path) == "200\n"


def test_metered_app() -> None:
    """The example can be imported without a key, and does its work after APPLIED."""
    folder = ROOT / "examples" / "metered_app"
    assert run("app", AIOHTTP.replace("PATH", '"/summaries"'), folder) == "200\n"
