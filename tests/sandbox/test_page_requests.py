"""The page's requests, without a browser: who gets a response, and what the actions do."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import trustme

from creduse import CreduseClient
from creduse_sandbox import FAULTS, OUTCOMES, SandboxServer, StateFile
from creduse_sandbox.page import MOST_CYCLES, MOST_REQUESTS, MOST_USERS
from tests.common import KEY, USER, USER_ID
from tests.tls import client_context, server_context

PAGES = ("/", "/_page/page.css", "/_page/page.js", "/_page/icon.svg", "/_page/view")
ACTIONS = ("/_page/advance", "/_page/give", "/_page/inject", "/_page/clear")


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer() as server:
        yield server


def ask(
    server: SandboxServer, path: str, fields: object = None, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.base_url).netloc, timeout=20)
    with closing(connection):
        body = None if fields is None else json.dumps(fields)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def act(server: SandboxServer, action: str, fields: object) -> tuple[int, dict[str, Any]]:
    """Do what a button of the page does."""
    headers = {"Origin": server.base_url}
    status, _, body = ask(server, f"/_page/{action}", fields, "POST", **headers)
    return status, json.loads(body)


def view(server: SandboxServer) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(ask(server, "/_page/view")[2])
    return shown


@pytest.mark.parametrize("path", PAGES)
def test_files(server: SandboxServer, path: str) -> None:
    """The page and its files are served, and load nothing from another host."""
    status, headers, body = ask(server, path)
    assert status == 200
    assert body
    assert headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert headers["Cache-Control"] == "no-store"
    assert b"https:" not in body


def test_not_in_the_log(server: SandboxServer) -> None:
    """The page's requests are not in the log, and no fault meets them."""
    server.inject(FAULTS["503"])
    server.inject(FAULTS["head-then-close"])
    for path in (*PAGES, "/favicon.ico", "/.well-known/appspecific"):
        assert ask(server, path)[0] in {200, 404}
    assert act(server, "give", {"end_user_id": USER_ID, "amount": 5})[0] == 200
    assert [*server.log] == []
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "/elsewhere")
    assert ask(server, "/elsewhere")[0] == 503
    assert [it.path for it in server.log] == ["/elsewhere"] * 2
    assert [it["pending"] for it in view(server)["requests"]] == [False] * 2


def test_only_get_is_the_page(server: SandboxServer) -> None:
    """Any other method for the address itself is a request to the API."""
    status, _, body = ask(server, "/", {}, "POST")
    assert (status, json.loads(body)["error_code"]) == (404, "NOT_FOUND")
    assert len(server.log) == 1


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:8000", "10.1.2.3"]
)
def test_names_of_this_machine(server: SandboxServer, host: str) -> None:
    """The page responds under localhost and under any address."""
    assert ask(server, "/", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "[", "", "127.0.0.1.nip.io"]
)
@pytest.mark.parametrize("path", PAGES)
def test_names_of_others(server: SandboxServer, host: str, path: str) -> None:
    """No page under a name that another site could have. The API ignores the name."""
    status, _, body = ask(server, path, Host=host)
    assert status == 403
    assert server.base_url in json.loads(body)["message"]
    assert ask(server, "/add", {}, "POST", Host=host)[0] == 401


def test_name_that_it_listens_on() -> None:
    """The page responds under the name of ``host``."""
    with SandboxServer(host="localhost") as server:
        assert ask(server, "/", Host="localhost:1")[0] == 200


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "https://127.0.0.1", ""])
def test_actions_of_other_pages(server: SandboxServer, path: str, origin: str | None) -> None:
    """An action needs the page's own origin."""
    fields = {"end_user_id": USER_ID, "amount": 5, "hours": 24, "fault": "503"}
    headers = {} if origin is None else {"Origin": origin}
    status, _, body = ask(server, path, fields, "POST", **headers)
    assert (status, json.loads(body)) == (403, {"message": "Only the page itself can act."})
    shown = view(server)
    assert (shown["users"], shown["advanced"], shown["injected"]) == ([], 0, [])


def test_origin_over_tls() -> None:
    """Over TLS the page's origin begins with https."""
    authority = trustme.CA()
    with SandboxServer(ssl_context=server_context(authority)) as server:
        connection = http.client.HTTPSConnection(
            urlsplit(server.base_url).netloc, timeout=20, context=client_context(authority)
        )
        with closing(connection):
            connection.request("POST", "/_page/clear", "{}", {"Origin": server.base_url})
            assert connection.getresponse().status == 200


@pytest.mark.parametrize(("path", "method"), [("/_page/view", "POST"), ("/_page/clear", "GET")])
def test_methods(server: SandboxServer, path: str, method: str) -> None:
    """Each path has one method."""
    status, headers, _ = ask(server, path, {}, method, Origin=server.base_url)
    assert (status, headers["Allow"]) == (405, {"POST": "GET", "GET": "POST"}[method])


def test_unknown_path(server: SandboxServer) -> None:
    """An unknown path below the page's is not found."""
    assert ask(server, "/_page/../server.py")[0] == 404


@pytest.mark.parametrize(
    ("action", "fields", "said"),
    [
        ("advance", {"hours": -1}, "the clock cannot go back"),
        ("advance", {"hours": 1e9}, "date value out of range"),
        ("advance", {}, "'hours'"),
        ("advance", {"hours": "1"}, "hours component: str"),
        ("inject", {"fault": "flood"}, "'flood'"),
        ("inject", [], "list indices"),
        ("give", {"end_user_id": USER_ID, "amount": -1}, "must not be negative"),
        ("give", {"end_user_id": "x", "amount": 1}, "must be a UUID"),
        (
            "give",
            {"end_user_id": USER_ID, "amount": "1e3"},
            "amount must be a whole number in digits",
        ),
        ("give", {"end_user_id": USER_ID, "amount": "9" * 20}, "at most 64 bits"),
    ],
)
def test_wrong_actions(server: SandboxServer, action: str, fields: object, said: str) -> None:
    """An action that is not possible changes nothing, and says why."""
    status, body = act(server, action, fields)
    assert status in {400, 422}
    assert said in body["message"]
    shown = view(server)
    assert (shown["users"], shown["advanced"], shown["injected"]) == ([], 0, [])


def test_actions() -> None:
    """The actions give credits, move the clock, inject a fault and remove it."""
    with SandboxServer(api_key=KEY) as server:
        fields = {"end_user_id": USER_ID, "amount": 5, "validity_days": 1}
        assert act(server, "give", fields) == (200, fields)
        assert server.direct.get_balance(USER).active_balance == 5
        assert act(server, "inject", {"fault": "slow"}) == (200, {})
        assert view(server)["injected"] == [{"fault": "slow", "times": 1, "conditional": False}]
        assert act(server, "clear", {}) == (200, {})
        assert view(server)["injected"] == []
        assert act(server, "advance", {"hours": 48}) == (200, {})
        assert server.direct.get_balance(USER).active_balance == 0
        shown = view(server)
        assert shown["advanced"] == 48 * 3600
        assert shown["has_api_key"]
        assert shown["users"] == [{"id": USER_ID, "balance": "0", "cycles": [], "all_cycles": 0}]


def test_clock_is_kept(tmp_path: Any) -> None:
    """What the page's buttons did is in the state."""
    state = StateFile(tmp_path / "state")
    with closing(state), SandboxServer(state=state) as server:
        act(server, "give", {"end_user_id": USER_ID, "amount": 5})
        act(server, "advance", {"hours": 1})
    state = StateFile(tmp_path / "state")
    with closing(state), SandboxServer(state=state) as server:
        shown = view(server)
    assert shown["advanced"] == 3600
    assert [user["balance"] for user in shown["users"]] == ["5"]


def test_view(server: SandboxServer) -> None:
    """The view has cycles, requests with the newest first, and the faults that wait."""
    server.inject(FAULTS["503"], 2)
    server.inject(FAULTS["429"], when=lambda _: False)
    server.direct.start_cycle(USER, 10, validity_days=3)
    server.direct.subtract(USER, 4)
    server.direct.stop_cycle(USER)
    assert ask(server, "/subtract", {"end_user_id": USER_ID, "amount": 5}, "POST")[0] == 503
    ask(server, "/nowhere")
    shown = view(server)
    (user,) = shown["users"]
    (cycle,) = user["cycles"]
    assert (user["balance"], cycle["amount"], cycle["starting_amount"]) == ("6", "6", "10")
    assert (cycle["recurring"], cycle["canceled"]) == (True, True)
    assert cycle["start"] < shown["now"] < cycle["end"]
    first = {"call": "subtract 5", "user": USER_ID, "status": "503"}
    assert shown["requests"][1].items() >= (first | {"fault": "503"}).items()
    assert [request["call"] for request in shown["requests"]] == ["GET /nowhere", "subtract 5"]
    assert shown["injected"] == [{"fault": "429", "times": 1, "conditional": True}]


def test_fault_for_all_requests(server: SandboxServer) -> None:
    """A fault for all further requests has no number."""
    server.inject(FAULTS["503"], 2**62)
    assert view(server)["injected"][0]["times"] is None


def test_view_is_bounded(server: SandboxServer) -> None:
    """However much there is, the view has the newest requests and the users who changed last."""
    for number in range(MOST_USERS + 2):
        server.direct.add(UUID(int=number), 1)
    for _ in range(MOST_CYCLES + 3):
        server.direct.add(UUID(int=0), 1)
    with CreduseClient("any", base_url=server.base_url) as client:
        for _ in range(MOST_REQUESTS + 1):
            client.get_balance(UUID(int=1))
    shown = view(server)
    assert (len(shown["users"]), shown["all_users"]) == (MOST_USERS, MOST_USERS + 2)
    assert shown["users"][0]["id"] == str(UUID(int=0))
    assert len(shown["users"][0]["cycles"]) == MOST_CYCLES
    assert shown["users"][0]["all_cycles"] == MOST_CYCLES + 4
    assert len(shown["requests"]) == MOST_REQUESTS


def test_incomplete_request(server: SandboxServer) -> None:
    """A request that is still arriving is in the view."""
    parts = urlsplit(server.base_url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as stream:
        stream.sendall(b"POST /ad")
        server.settle()
        (request,) = view(server)["requests"]
    assert (request["call"], request["status"], request["pending"]) == ("(incomplete)", "", True)


def test_faults(server: SandboxServer) -> None:
    """The page lists each fault with what it does and its outcome, the first five first."""
    faults = json.loads(ask(server, "/_page/faults")[2])
    assert {fault["name"] for fault in faults} == {*FAULTS}
    assert len(faults) == len(FAULTS)
    assert [fault["first"] for fault in faults[:6]] == [True] * 5 + [False]
    outcomes = {fault["name"]: fault["outcome"] for fault in faults}
    assert outcomes == {
        name: str(it) if it is not None else "succeeds" for name, it in OUTCOMES.items()
    }
