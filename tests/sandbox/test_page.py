"""The sandbox's page in a real Chromium.

Each test checks the server's own state, and ends without an error on the console and without a request
to another host.
"""

import http.client
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from creduse import CreduseClient, CreduseError, Outcome
from creduse_sandbox import FAULTS, SandboxServer
from tests.chromium import find_chromium
from tests.common import ONCE, USER, USER_ID
from tests.sandbox.picture import OTHER, take

pytestmark = pytest.mark.slow

SCRIPT = "<img src=x onerror=alert(1)>"

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        # No name resolves, so no request could leave this machine.
        arguments = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer() as server:
        yield server


@pytest.fixture
def client(server: SandboxServer) -> Iterator[CreduseClient]:
    with CreduseClient("any", base_url=server.base_url, retry=ONCE) as client:
        yield client


@pytest.fixture
def open_page(browser: Browser, server: SandboxServer) -> Iterator[Open]:
    """Open the page with a context's settings. At the end, check that nothing was wrong."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []
    hosts: set[str] = set()

    def open_it(**settings: Any) -> Page:
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.goto(f"{server.base_url}/")
        expect(page.locator("#now")).not_to_be_empty()
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert hosts <= {urlsplit(server.base_url).netloc}
    # Chromium reports each response with an error, and an action that is rejected is one.
    assert [error for error in errors if "422" not in error] == []


@pytest.fixture
def page(open_page: Open) -> Page:
    return open_page()


def rows(page: Page) -> Locator:
    return page.locator("#requests tr")


def card(page: Page, user: UUID) -> Locator:
    return page.locator(".card", has_text=str(user))


def test_empty(page: Page, server: SandboxServer) -> None:
    """Without users, the page says how to connect a program and what to call first."""
    exports = f"export CREDUSE_BASE_URL={server.base_url}\nexport CREDUSE_API_KEY=any"
    expect(page.locator("#exports")).to_have_text(exports)
    expect(page.locator("#exports")).to_be_visible()
    expect(page.get_by_text("creduse add 12345678-1234-5678-1234-567812345678 100")).to_be_visible()
    expect(page.get_by_text("No users yet.")).to_be_visible()
    expect(page.get_by_text("No requests yet.")).to_be_visible()
    expect(page.get_by_text("No fault: each request")).to_be_visible()


def test_picture(browser: Browser, tmp_path: Path) -> None:
    """The picture for the docs can be taken."""
    take(browser, tmp_path / "sandbox.png")
    assert tmp_path.joinpath("sandbox.png").is_file()


def test_copy(open_page: Open, server: SandboxServer) -> None:
    """The lines to export can be copied."""
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == f"export CREDUSE_BASE_URL={server.base_url}\nexport CREDUSE_API_KEY=any"


def test_give_credits(page: Page, server: SandboxServer) -> None:
    """The form gives credits, and the picture shows the cycle. The example is the first user."""
    page.get_by_label("Credits", exact=True).fill("50")
    page.get_by_label("Days valid").fill("2")
    page.get_by_role("button", name="Give credits", exact=True).click()
    expect(page.get_by_role("status")).to_have_text(f"{USER_ID} got 50 credits.")
    assert server.direct.get_balance(USER).active_balance == 50
    expect(card(page, USER).locator(".balance")).to_have_text("50")
    expect(card(page, USER).locator(".cycle")).to_contain_text("50 of 50")
    expect(card(page, USER).locator(".cycle")).to_contain_text("one-time")
    expect(card(page, USER).locator(".soon")).to_contain_text("expires in 2 days")
    expect(page.locator("#exports")).to_be_hidden()  # a user exists, so a program is connected
    assert server.log == ()


def test_give_credits_to_others(page: Page, server: SandboxServer) -> None:
    """A new id is a UUID, and each user's own button fills in that user."""
    page.get_by_role("button", name="New id").click()
    user = page.get_by_label("User", exact=True).input_value()
    assert UUID(user).version == 4
    page.get_by_role("button", name="Give credits", exact=True).click()
    expect(card(page, UUID(user))).to_be_visible()
    server.direct.add(OTHER, 1)
    page.get_by_role("button", name=f"Give credits to {OTHER}").click()
    expect(page.get_by_label("User", exact=True)).to_have_value(str(OTHER))
    expect(page.get_by_label("Credits", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(card(page, OTHER).locator(".balance")).to_have_text("101")


def test_rejected_action(page: Page) -> None:
    """The page says why the server rejected an action."""
    page.get_by_label("User", exact=True).fill(SCRIPT)
    page.get_by_role("button", name="Give credits", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("end_user_id must be a UUID with hyphens.")
    expect(page.get_by_text("No users yet.")).to_be_visible()


def test_many_credits(page: Page, server: SandboxServer) -> None:
    """The page neither sends nor shows a number that JavaScript has rounded."""
    amount = 2**53 + 1
    page.get_by_label("Credits", exact=True).fill(f"{amount}")
    page.get_by_role("button", name="Give credits", exact=True).click()
    expect(page.get_by_role("status")).to_have_text(f"{USER_ID} got {amount:,} credits.")
    assert server.direct.get_balance(USER).active_balance == amount
    expect(card(page, USER).locator(".balance")).to_have_text(f"{amount:,}")
    expect(card(page, USER).locator(".cycle")).to_contain_text(f"{amount:,} of {amount:,}")
    for text in ("1e3", "1.0", "-1", "1_000"):
        page.get_by_label("Credits", exact=True).fill(text)
        page.get_by_role("button", name="Give credits", exact=True).click()
        expect(page.get_by_role("status")).to_contain_text("a whole number in digits alone")
        page.get_by_role("button", name="+1 hour").click()
        expect(page.get_by_role("status")).to_contain_text("The clock is 1 hour further ahead.")
    assert server.direct.get_balance(USER).active_balance == amount


def test_move_the_clock(page: Page, server: SandboxServer) -> None:
    """The buttons move the clock, so that credits expire and cycles renew."""
    server.direct.add(USER, 100, validity_days=30)
    server.direct.start_cycle(OTHER, 10, validity_days=30)
    server.direct.subtract(OTHER, 4)
    expect(card(page, USER).locator(".ends")).to_contain_text(re.compile("expires in (30|29) days"))
    expect(card(page, OTHER).locator(".ends")).to_contain_text(re.compile("renews in (30|29) days"))
    expect(card(page, OTHER).locator(".cycle")).to_contain_text("6 of 10")
    for name, ahead in (("+1 hour", "1 hour"), ("+1 day", "1 day"), ("+31 days", "32 days")):
        page.get_by_role("button", name=name).click()
        expect(page.locator("#ahead")).to_have_text(f"{ahead} ahead")
    expect(card(page, USER)).to_contain_text("No active cycle.")
    expect(card(page, USER).locator(".balance")).to_have_text("0")
    expect(card(page, OTHER).locator(".cycle")).to_contain_text("10 of 10")
    assert server.direct.get_balance(USER).active_balance == 0


def test_time_line(page: Page, server: SandboxServer) -> None:
    """A bar lasts from a cycle's start to its end, and is filled as far as credits are left."""
    server.direct.start_cycle(USER, 100, validity_days=10)
    server.direct.subtract(USER, 25)
    server.direct.stop_cycle(USER)
    server.direct.add(OTHER, 1, validity_days=50)
    server.advance(days=5)
    expect(card(page, USER).locator(".cycle")).to_contain_text("recurring, canceled")
    expect(card(page, OTHER).locator(".cycle")).to_contain_text("expires in 45 days")

    def box(user: UUID, name: str) -> dict[str, float]:
        found = card(page, user).locator(f".{name}").bounding_box()
        assert found is not None
        return {"x": found["x"], "width": found["width"], "height": found["height"]}

    short, long = box(USER, "bar"), box(OTHER, "bar")
    assert short["x"] == pytest.approx(long["x"], abs=2)
    assert 0.15 < short["width"] / long["width"] < 0.3
    now = box(USER, "track .now")
    assert short["x"] < now["x"] < short["x"] + short["width"]
    assert box(USER, "fill")["height"] / short["height"] == pytest.approx(0.75, abs=0.02)


def test_inject_a_fault(page: Page, server: SandboxServer, client: CreduseClient) -> None:
    """The next request meets the chosen fault. Its row says so, and that it was applied."""
    options = page.get_by_label("Fault", exact=True).locator("option")
    expect(options).to_have_count(len(FAULTS))
    page.get_by_label("Fault", exact=True).select_option("apply-then-reset")
    expect(page.locator("#fault-does")).to_contain_text("For an add, a client reports UNKNOWN.")
    page.get_by_role("button", name="Inject into the next request").click()
    expect(page.locator("#injected")).to_have_text("apply-then-reset: the next request")
    with pytest.raises(CreduseError) as raised:
        client.add(USER, 5)
    assert raised.value.outcome is Outcome.UNKNOWN
    assert [entry.fault for entry in server.applied] == [FAULTS["apply-then-reset"]]
    expect(rows(page)).to_have_count(1)
    row = rows(page).first
    for text in ("add 5", USER_ID, "no response", "applied", "apply-then-reset"):
        expect(row).to_contain_text(text)
    expect(row).not_to_contain_text("not applied")
    expect(page.get_by_text("No fault: each request")).to_be_visible()
    client.add(USER, 5)
    expect(rows(page)).to_have_count(2)


def test_remove_faults(page: Page, server: SandboxServer, client: CreduseClient) -> None:
    """The page shows what is injected, by whomever, and removes it."""
    server.inject(FAULTS["503"], 2**62)
    server.inject(FAULTS["429"], 3)
    expect(page.locator("#injected li")).to_have_text(
        ["503: all requests", "429: the next 3 requests"]
    )
    page.get_by_role("button", name="Remove all faults").click()
    expect(page.get_by_text("No fault: each request")).to_be_visible()
    client.add(USER, 5)


def test_live_requests(page: Page, server: SandboxServer, client: CreduseClient) -> None:
    """Requests appear as they come, the newest first, and are told to screen readers."""
    client.add(USER, 100)
    expect(rows(page)).to_have_count(1)
    client.subtract(USER, 30)
    expect(rows(page)).to_have_count(2)
    expect(rows(page).first).to_contain_text("subtract 30")
    expect(rows(page).last).to_contain_text("add 100")
    expect(page.locator("#newest")).to_have_text("subtract 30: 200, applied")
    with pytest.raises(CreduseError):
        client.subtract(USER, 1000)
    expect(rows(page).first).to_contain_text("402")
    expect(rows(page).first).to_contain_text("not applied")
    server.reset()
    expect(page.get_by_text("No requests yet.")).to_be_visible()
    expect(page.get_by_text("No users yet.")).to_be_visible()


def test_slow_request(page: Page, server: SandboxServer) -> None:
    """A request that waits for its response has a row, which then gets its status."""
    server.inject(delay=8)

    def call() -> None:
        with CreduseClient("any", base_url=server.base_url, retry=ONCE) as client:
            client.add(USER, 5)

    thread = threading.Thread(target=call)
    thread.start()
    expect(rows(page)).to_contain_text("waiting")
    expect(rows(page)).to_contain_text("slow after 8 s")
    expect(rows(page)).to_contain_text("200")
    thread.join()


def test_script_is_text(page: Page, server: SandboxServer) -> None:
    """Text of a client shows as text, whichever field it is in."""
    connection = http.client.HTTPConnection(urlsplit(server.base_url).netloc, timeout=20)
    body = json.dumps({"end_user_id": SCRIPT, "amount": SCRIPT})
    for path in ("/add", f"/{SCRIPT.replace(' ', '%20')}"):
        connection.request("POST", path, body, {"Authorization": f"Bearer {SCRIPT}"})
        connection.getresponse().read()
    connection.close()
    expect(rows(page).first).to_contain_text("/<img%20src=x")
    expect(rows(page).last.locator(".call")).to_have_text(f"add {SCRIPT}")
    expect(rows(page).last.locator(".user")).to_have_text(SCRIPT)
    assert page.locator("main img").count() == 0


def test_keyboard(page: Page, server: SandboxServer, client: CreduseClient) -> None:
    """Everything works with the keyboard alone, and the focus can be seen."""

    def tab_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            focused = page.locator(":focus")
            if focused.count() and name in {focused.text_content(), focused.get_attribute("id")}:
                break
        else:
            pytest.fail(f"no Tab leads to {name}")
        style = "e => { const s = getComputedStyle(e); return s.outlineStyle + s.outlineWidth }"
        assert page.locator(":focus").evaluate(style) == "solid3px"

    tab_to("+1 day")
    page.keyboard.press("Enter")
    expect(page.locator("#ahead")).to_have_text("1 day ahead")
    tab_to("give-amount")
    page.keyboard.press("Control+a")
    page.keyboard.type("42")
    page.keyboard.press("Enter")
    expect(card(page, USER).locator(".balance")).to_have_text("42")
    tab_to("fault")
    page.keyboard.press("ArrowDown")
    tab_to("Inject into the next request")
    page.keyboard.press("Space")
    expect(page.locator("#injected")).to_have_text("503: the next request")
    with pytest.raises(CreduseError):
        client.add(USER, 5)
    assert server.log[0].fault is FAULTS["503"]


def test_focus_stays(page: Page, server: SandboxServer, client: CreduseClient) -> None:
    """New users and requests do not move the focus or what someone types."""
    server.direct.add(USER, 1)
    button = page.get_by_role("button", name=f"Give credits to {USER}")
    button.focus()
    client.add(OTHER, 5)
    client.add(USER, 5)
    expect(card(page, OTHER)).to_be_visible()
    expect(card(page, USER).locator(".balance")).to_have_text("6")
    expect(button).to_be_focused()


def test_focus_of_what_leaves(page: Page, server: SandboxServer) -> None:
    """If the element with the focus leaves the page, its section's heading gets the focus."""
    server.direct.add(USER, 1)
    page.get_by_role("button", name=f"Give credits to {USER}").focus()
    server.reset()
    expect(card(page, USER)).to_have_count(0)
    expect(page.locator("#users-title")).to_be_focused()
    server.inject(FAULTS["503"])
    page.get_by_role("button", name="Remove all faults").focus()
    server.reset()
    expect(page.locator("#fault-title")).to_be_focused()


CONTRAST = """
() => {
  const channel = (it) => (it /= 255) <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4;
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const color = numbers(getComputedStyle(element).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((it) => it.nodeType === 3 && it.data.trim());
    if (!own || !element.checkVisibility() || element.tagName === "OPTION") continue;
    const pair = [light(numbers(getComputedStyle(element).color)), light(ground(element))].sort();
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) low.push(`${element.tagName} ${element.textContent}: ${ratio.toFixed(2)}`);
  }
  return low;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_color_schemes(open_page: Open, server: SandboxServer, scheme: str) -> None:
    """The page follows the system's color scheme, and all text has a contrast of at least 4.5."""
    server.direct.add(USER, 1, validity_days=1)
    server.direct.start_cycle(USER, 5)
    server.direct.stop_cycle(USER)
    server.direct.start_cycle(USER, 5)
    server.advance(days=0.1)
    server.inject(FAULTS["503"], 2)
    with CreduseClient("any", base_url=server.base_url, retry=ONCE) as client:
        for amount in (1, 2, 3):
            with suppress(CreduseError):
                client.add(USER, amount)
    server.inject(FAULTS["503"])
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    page.get_by_label("User", exact=True).fill("x")
    page.get_by_role("button", name="Give credits", exact=True).click()
    expect(page.get_by_role("status")).not_to_be_empty()
    expect(rows(page)).to_have_count(3)
    color = page.locator("body").evaluate("it => getComputedStyle(it).backgroundColor")
    red = int(re.findall(r"\d+", color)[0])
    assert red > 200 if scheme == "light" else red < 60
    assert page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("width", [320, 390, 768])
def test_narrow(open_page: Open, server: SandboxServer, client: CreduseClient, width: int) -> None:
    """On a narrow screen nothing sticks out at the side."""
    server.direct.start_cycle(USER, 5)
    server.inject(FAULTS["cut-body-then-reset"])
    with pytest.raises(CreduseError):
        client.add(USER, 5)
    page = open_page(viewport={"width": width, "height": 700})
    expect(rows(page)).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(rows(page).first).to_contain_text("cut-body-then-reset")


APART = """
() => {
  const boxes = [...document.querySelectorAll("#axis span")].map((it) => it.getBoundingClientRect());
  boxes.sort((one, other) => one.left - other.left);
  return boxes.length > 1 && boxes.every((it, index) => !index || boxes[index - 1].right <= it.left);
}
"""


@pytest.mark.parametrize("days", [0, 2, 6, 13, 48, 90, 3000])
def test_narrow_time_line(open_page: Open, server: SandboxServer, days: int) -> None:
    """On a narrow screen the labels of the time line do not overlap, and large amounts fit."""
    server.direct.add(USER, 10**18, validity_days=days)
    page = open_page(viewport={"width": 320, "height": 700})
    expect(card(page, USER).locator(".balance")).to_have_text(f"{10**18:,}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate(APART)


def test_lost_server(browser: Browser) -> None:
    """The page says that the server does not respond, and goes on once it does."""
    with SandboxServer() as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{server.base_url}/")
        expect(page.locator("#now")).not_to_be_empty()
        with server.refusing():
            expect(page.get_by_role("alert")).to_contain_text("does not respond")
        server.direct.add(USER, 5)
        expect(card(page, USER)).to_be_visible()
        expect(page.get_by_role("alert")).to_be_hidden()
        context.close()


def test_many_users(page: Page, server: SandboxServer) -> None:
    """With many users, the page shows those who changed last."""
    for number in range(60):
        server.direct.add(UUID(int=number), 1)
    expect(page.locator("#users-count")).to_have_text("60")
    expect(page.locator(".card")).to_have_count(50)
    expect(page.locator("#more-users")).to_have_text("10 more users changed before these.")


def test_far_ends(page: Page, server: SandboxServer) -> None:
    """A cycle of many years does not hide the others on the time line."""
    server.direct.add(USER, 1, validity_days=30_000)
    server.direct.add(USER, 1, validity_days=10)
    server.direct.add(USER, 0, validity_days=0)
    expect(card(page, USER).locator(".bar")).to_have_count(3)
    box = card(page, USER).locator(".bar").nth(1).bounding_box()
    assert box is not None
    assert box["width"] > 40
    expect(card(page, USER).locator(".cycle").first).to_contain_text("0 of 0")
