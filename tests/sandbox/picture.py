"""The picture of the sandbox's page in the docs: ``python -m tests.sandbox.picture`` takes it again."""

from contextlib import suppress
from pathlib import Path
from uuid import UUID

from playwright.sync_api import Browser, expect, sync_playwright

from creduse import CreduseClient, CreduseError
from creduse_sandbox import FAULTS, SandboxServer
from tests.chromium import find_chromium
from tests.common import ONCE, USER

OTHER = UUID("9f8e7d6c-5b4a-4321-8fed-cba987654321")


def take(browser: Browser, path: Path) -> None:
    """Write a picture of a sandbox with two users, and with an UNKNOWN among its requests."""
    with (
        SandboxServer() as server,
        CreduseClient("any", base_url=server.base_url, retry=ONCE) as client,
    ):
        client.start_cycle(USER, 1000)
        client.add(USER, 100, 7)
        client.subtract(USER, 40)
        client.add(OTHER, 250, 2)
        server.inject(FAULTS["apply-then-reset"])
        for amount in (60, 500):
            with suppress(CreduseError):
                client.subtract(OTHER, amount)
        client.get_balance(USER)
        page = browser.new_page(viewport={"width": 1100, "height": 800}, color_scheme="light")
        page.goto(f"{server.base_url}/")
        expect(page.locator("#requests tr")).to_have_count(7)
        page.screenshot(path=path, full_page=True)
        page.close()


if __name__ == "__main__":
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium())
        take(chromium, Path(__file__).parents[2] / "docs" / "sandbox.png")
        chromium.close()
