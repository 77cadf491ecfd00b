"""Probes of the sandbox, and of services that keep balances in other ways.

`Otherwise` is a transport: a sandbox whose responses are changed, by a clock of its own that the probe
shares. So these tests do not depend on the time of day.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Final, TypeAlias

import anyio
import pytest

import creduse_aiohttp
import creduse_trio
from creduse import AsyncCreduseClient
from creduse_bulk._probe import (
    READS,
    Findings,
    from_json,
    lists_empty_cycles,
    probe,
    to_json,
)
from creduse_core import (
    ActiveBalance,
    AsyncCoreClient,
    CreduseError,
    CreduseProtocol,
    CycleBalance,
    Outcome,
    Request,
    Response,
    Send,
)
from creduse_sandbox import FAULTS, CannedResponse, Sandbox, SandboxServer
from tests.common import KEY, ONCE, USER, USER_ID, keep_from_end_of_day

FACTS: Final = [name for name, kind in Findings.__annotations__.items() if kind == bool | None]

Cycles: TypeAlias = list[dict[str, Any]]
Edit: TypeAlias = Callable[[dict[str, Any]], object]
"""Changes the body of a balance."""


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    keep_from_end_of_day()
    with SandboxServer() as running:
        yield running


CLIENTS: Final[dict[str, tuple[str, Any]]] = {
    "aiohttp": ("asyncio", creduse_aiohttp.AsyncCreduseClient),
    "trio": ("trio", creduse_trio.AsyncCreduseClient),
    "httpx-asyncio": ("asyncio", AsyncCreduseClient),
    "httpx-trio": ("trio", AsyncCreduseClient),
}


def probe_server(server: SandboxServer, client: str = "aiohttp") -> Findings:
    backend, client_class = CLIENTS[client]

    async def main() -> Findings:
        async with client_class(KEY, base_url=server.base_url, retry=ONCE) as made:
            return await probe(made, USER)

    return anyio.run(main, backend=backend)


@pytest.mark.parametrize("client", CLIENTS)
def test_the_sandbox(server: SandboxServer, client: str) -> None:
    """The sandbox is as evidence assumes. The user ends without credits."""
    began = datetime.now(UTC)
    findings = probe_server(server, client)
    assert {name: getattr(findings, name) for name in FACTS} == dict.fromkeys(FACTS, True)
    assert findings.problems() == ()
    assert findings.clock_skew == 0
    assert (findings.base_url, findings.end_user_id) == (server.base_url, USER_ID)
    assert began <= datetime.fromisoformat(findings.probed_at) <= datetime.now(UTC)
    assert server.direct.get_balance(USER).active_balance == 0
    assert len(server.applied) == 7
    assert len(server.log) == 1 + 7 * (1 + READS) <= 30


def test_a_user_of_an_earlier_probe(server: SandboxServer) -> None:
    """A second probe of a user is rejected, since a stopped cycle is left, and writes nothing."""
    probe_server(server)
    with pytest.raises(ValueError, match=r"new one.*\(credits: 0, cycles: 4\).*earlier probe"):
        probe_server(server)
    assert len(server.applied) == 7


def test_a_real_user(server: SandboxServer) -> None:
    """A user with credits is not touched."""
    server.direct.add(USER, 5)
    with pytest.raises(ValueError, match=rf"not {USER} \(credits: 5, cycles: 1\)"):
        probe_server(server)
    assert [entry.method for entry in server.log] == ["GET"]


@pytest.mark.parametrize("path", ["/add", "/start-cycle", "/subtract", "/stop-cycle"])
@pytest.mark.parametrize("fault", ["apply-then-reset", "request-then-reset", "503"])
def test_a_lost_response(server: SandboxServer, fault: str, path: str) -> None:
    """A write whose outcome is UNKNOWN is not sent again, and nothing is sent after it."""
    server.inject(FAULTS[fault], when=lambda request: request.url.endswith(path))
    with pytest.raises(CreduseError) as caught:
        probe_server(server)
    assert caught.value.outcome is Outcome.UNKNOWN
    assert [entry.path for entry in server.log].count(path) == 1
    assert server.log[-1].path == path


def test_a_refused_write(server: SandboxServer) -> None:
    """A write that fails ends the probe, too."""
    server.inject(CannedResponse(401), when=lambda request: request.method == "POST")
    with pytest.raises(CreduseError) as caught:
        probe_server(server)
    assert caught.value.outcome is Outcome.NOT_APPLIED
    assert [entry.method for entry in server.log] == ["GET", "POST"]


# Services that are not as evidence assumes

MIDNIGHT: Final = datetime(2025, 6, 11, tzinfo=UTC)
PROTOCOL: Final = CreduseProtocol(KEY, "http://127.0.0.1", retry=ONCE)
NOON: Final = MIDNIGHT + timedelta(hours=12, seconds=30)
TICK: Final = timedelta(seconds=0.05)
REQUESTS: Final = 1 + 7 * (1 + READS)


def unchanged(_: dict[str, Any]) -> None:
    """Leave a balance as it is."""


class Otherwise:
    """A transport to a sandbox whose balances are changed. Its clock goes on with each request."""

    def __init__(
        self,
        edit: Edit = unchanged,
        *,
        now: datetime = NOON,
        ahead: timedelta = timedelta(),
        dated: bool = True,
        late: int = 0,
        days_less: int = 0,
        drops: bool = False,
    ) -> None:
        self.time = now
        self.sandbox = Sandbox(clock=lambda: self.time + ahead)
        self._edit = edit
        self._ahead = ahead
        self._dated = dated
        self._late = late
        self._days_less = days_less
        self._drops = drops
        self._states: list[Response] = []
        self._ask: Send | None = None

    async def send(self, send: Send) -> Response:
        self.time += TICK
        if send.request.method == "GET":
            self._ask = send
            late = min(self._late, len(self._states))
            return self._dress(self._states[-late] if late else self._read(send))
        assert self._ask is not None
        self._states.append(self._read(self._ask))
        body = json.loads(send.request.body)
        if "validity_days" in body:
            body["validity_days"] -= self._days_less
        it = send.request
        request = Request(it.method, it.url, it.headers, json.dumps(body).encode())
        response = self.sandbox.handle(request)
        if self._drops and it.url.endswith("/stop-cycle"):
            # At that time, the stopped cycle ends soonest, and has 4 credits left.
            self.sandbox.handle(PROTOCOL.subtract(USER, 4).request)
        return self._dress(response)

    def _read(self, send: Send) -> Response:
        response = self.sandbox.handle(send.request)
        body = json.loads(response.body)
        if "error_code" in body:
            return response
        self._edit(body)
        status = 404 if "error_code" in body else 200
        return Response(status, response.headers, json.dumps(body).encode())

    def _dress(self, response: Response) -> Response:
        date = format_datetime(self.time + self._ahead, usegmt=True)
        headers = (*response.headers, ("Date", date)) if self._dated else response.headers
        return Response(response.status, headers, response.body)

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)

    def now(self) -> float:
        return self.time.timestamp()

    async def aclose(self) -> None:
        pass


@pytest.fixture
def probe_it(monkeypatch: pytest.MonkeyPatch) -> Callable[[Otherwise], Findings]:
    """Probe a service, by its own clock."""

    def run(service: Otherwise) -> Findings:
        for where in ("creduse_core.client._now", "creduse_bulk._probe._now"):
            monkeypatch.setattr(where, lambda: service.time)
        return anyio.run(probe, AsyncCoreClient(PROTOCOL, service), USER)

    return run


Probe: TypeAlias = Callable[[Otherwise], Findings]


def true(findings: Findings) -> list[str]:
    return [name for name in FACTS if getattr(findings, name) is True]


def false(findings: Findings) -> list[str]:
    return [name for name in FACTS if getattr(findings, name) is False]


def unknown(findings: Findings) -> list[str]:
    return [name for name in FACTS if getattr(findings, name) is None]


def each(change: Callable[[dict[str, Any]], object]) -> Edit:
    """Change each cycle."""

    def edit(body: dict[str, Any]) -> None:
        for cycle in body["active_balance_by_cycle"]:
            change(cycle)

    return edit


def only(keep: Callable[[dict[str, Any]], object]) -> Edit:
    """List some of the cycles."""

    def edit(body: dict[str, Any]) -> None:
        body["active_balance_by_cycle"] = [
            cycle for cycle in body["active_balance_by_cycle"] if keep(cycle)
        ]

    return edit


def moved(name: str, **by: float) -> Callable[[dict[str, Any]], None]:
    """Move a cycle's start or end."""

    def change(cycle: dict[str, Any]) -> None:
        moment = datetime.fromisoformat(cycle[name]) + timedelta(**by)
        cycle[name] = moment.isoformat()

    return change


def cut(name: str, length: int) -> Callable[[dict[str, Any]], None]:
    """Cut a cycle's start or end, such as to whole minutes."""

    def change(cycle: dict[str, Any]) -> None:
        cycle[name] = cycle[name][:length]

    return change


def is_recurring(cycle: dict[str, Any]) -> bool:
    return bool(cycle["cycle_type"] == "recurring")


def is_stopped(cycle: dict[str, Any]) -> bool:
    return bool(cycle["status"] == "canceled")


def if_so(
    is_meant: Callable[[dict[str, Any]], bool], change: Callable[[dict[str, Any]], object]
) -> Edit:
    """Change some cycles."""
    return each(lambda cycle: change(cycle) if is_meant(cycle) else None)


def merged(*names: str) -> Edit:
    """Make one cycle of those that have the same fields."""

    def edit(body: dict[str, Any]) -> None:
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for cycle in body["active_balance_by_cycle"]:
            key = tuple(cycle[name] for name in names)
            if key in found:
                for name in ("amount", "starting_amount"):
                    found[key][name] += cycle[name]
            else:
                found[key] = cycle
        body["active_balance_by_cycle"] = list(found.values())

    return edit


def spends(order: Callable[[dict[str, Any]], Any], *, reverse: bool = False) -> Edit:
    """Take the credits that were spent from the cycles in another order."""

    def edit(body: dict[str, Any]) -> None:
        cycles: Cycles = body["active_balance_by_cycle"]
        spent = sum(cycle["starting_amount"] - cycle["amount"] for cycle in cycles)
        for cycle in sorted(cycles, key=order, reverse=reverse):
            taken = min(spent, cycle["starting_amount"])
            cycle["amount"] = cycle["starting_amount"] - taken
            spent -= taken

    return edit


def forget_users_without_credits(body: dict[str, Any]) -> None:
    if body["active_balance"] == 0:
        body["error_code"] = "USER_DOES_NOT_EXIST"


def end_after_whole_days(cycle: dict[str, Any]) -> None:
    start = datetime.fromisoformat(cycle["cycle_start"])
    days = (datetime.fromisoformat(cycle["cycle_end"]) - start) // timedelta(days=1)
    cycle["cycle_end"] = (start + timedelta(days=days)).isoformat()


def is_spent_from(cycle: dict[str, Any]) -> bool:
    return bool(cycle["amount"] < cycle["starting_amount"])


SERVICES: Final[dict[str, tuple[str, Edit]]] = {
    "is a write late": ("reads_own_writes", unchanged),  # see `make`
    "shows stops a write late": (
        "reads_own_writes",
        if_so(
            lambda it: is_stopped(it) and it["amount"] > 0, lambda it: it.update(status="active")
        ),
    ),
    "merges equal adds": ("cycles_of_their_own", merged("cycle_end", "cycle_type")),
    "has no starting_amount": ("keeps_starting_amount", each(lambda it: it.pop("starting_amount"))),
    "lowers starting_amount": (
        "keeps_starting_amount",
        each(lambda it: it.update(starting_amount=it["amount"])),
    ),
    "moves the start of a cycle that is spent from": (
        "keeps_start_and_end",
        if_so(is_spent_from, moved("cycle_start", seconds=1)),
    ),
    "ends a stopped cycle a day earlier": (
        "keeps_start_and_end",
        if_so(is_stopped, moved("cycle_end", days=-1)),
    ),
    "starts cycles a minute early": ("cycle_start_is_now", each(moved("cycle_start", minutes=-1))),
    "starts cycles a minute late": ("cycle_start_is_now", each(moved("cycle_start", minutes=1))),
    "gives starts to the minute": ("cycle_start_is_now", each(cut("cycle_start", 16))),
    "gives starts to the day": ("cycle_start_is_now", each(cut("cycle_start", 10))),
    "ends cycles after whole days": ("ends_with_the_day", each(end_after_whole_days)),
    "ends cycles two days late": ("ends_with_the_day", each(moved("cycle_end", days=2))),
    "ends started cycles in another zone": (
        "ends_with_the_day",
        if_so(is_recurring, moved("cycle_end", hours=-6)),
    ),
    "ends started cycles after whole days": (
        "ends_with_the_day",
        if_so(is_recurring, end_after_whole_days),
    ),
    "counts the first day": ("ends_with_the_day", unchanged),  # see `make`
    "spends the latest first": (
        "spends_soonest_first",
        spends(lambda it: it["cycle_end"], reverse=True),
    ),
    "spends the oldest first": ("spends_soonest_first", spends(lambda it: it["cycle_start"])),
    "spends the newest first": (
        "spends_soonest_first",
        spends(lambda it: it["cycle_start"], reverse=True),
    ),
    "spends added ones first": ("spends_soonest_first", spends(is_recurring)),
    "spends started ones first": ("spends_soonest_first", spends(is_recurring, reverse=True)),
    "has no types": ("says_cycle_types", each(lambda it: it.pop("cycle_type"))),
    "has one type": ("says_cycle_types", each(lambda it: it.update(cycle_type="one-time"))),
    "hides stopped cycles": ("shows_canceled", only(lambda it: not is_stopped(it))),
    "drops stopped cycles": ("shows_canceled", only(lambda it: not is_stopped(it))),  # see `make`
    "shows stopped cycles as active": (
        "shows_canceled",
        if_so(is_stopped, lambda it: it.update(status="active")),
    ),
    "lists no cycle as active": (
        "shows_canceled",
        if_so(lambda it: not is_stopped(it), lambda it: it.update(status=None)),
    ),
    "forgets users without credits": ("knows_emptied_users", forget_users_without_credits),
    "hides emptied cycles": ("lists_empty_cycles", only(lambda it: it["amount"])),
    "hides emptied cycles of starts": (
        "lists_empty_cycles",
        only(lambda it: it["amount"] or not is_recurring(it)),
    ),
}
"""What a service does otherwise: the fact that is then false, and how its balances differ."""


def make(name: str, now: datetime = NOON) -> Otherwise:
    """Return a service of this name."""
    return Otherwise(
        SERVICES[name][1],
        now=now,
        late=int(name == "is a write late"),
        days_less=int(name == "counts the first day"),
        drops=name == "drops stopped cycles",
    )


@pytest.mark.parametrize("name", SERVICES)
def test_another_service(probe_it: Probe, name: str) -> None:
    """One fact is false, and the problems name it."""
    fact, service = SERVICES[name][0], make(name)
    findings = probe_it(service)
    assert false(findings) == [fact]
    problems = findings.problems()
    if fact == "lists_empty_cycles":
        assert problems == ()
    else:
        assert problems[0].startswith(f"{fact} is false: ")
    if fact != "reads_own_writes":  # the balance after the last write is late, too
        assert unknown(findings) == []
        assert len(problems) == (fact != "lists_empty_cycles")
    assert findings.clock_skew == 0
    assert ledger_is_empty(service)


def ledger_is_empty(service: Otherwise) -> bool:
    """Return whether the user has lost all credits."""
    body = json.loads(service.sandbox.handle(PROTOCOL.get_balance(USER).request).body)
    return bool(body["active_balance"] == 0)


def test_late(probe_it: Probe) -> None:
    """If balances are a write late, only what the last one would show is not found out."""
    findings = probe_it(Otherwise(late=1))
    assert unknown(findings) == ["knows_emptied_users", "lists_empty_cycles"]
    assert [it.split()[0] for it in findings.problems()] == [
        "reads_own_writes",
        "knows_emptied_users",
    ]


@pytest.mark.parametrize("late", range(1, 9))
def test_any_lateness(probe_it: Probe, late: int) -> None:
    """However late balances are, nothing else is false. The user ends with few credits, or none."""
    service = Otherwise(late=late)
    assert false(probe_it(service)) == ["reads_own_writes"]
    assert ledger_is_empty(service) is (late not in {4, 5})  # they show less than is left


@pytest.mark.parametrize(
    ("edit", "late", "known"),
    [
        (unchanged, 7, {"reads_own_writes": False}),
        (
            only(lambda it: not is_recurring(it)),
            0,
            {"reads_own_writes": True, "lists_all_credits": False},
        ),
    ],
    ids=["shows no write", "hides started cycles"],
)
def test_no_balance_with_all(
    probe_it: Probe, edit: Edit, late: int, known: dict[str, bool | None]
) -> None:
    """Without a balance that has all cycles, the other facts are not found out."""
    service = Otherwise(edit, late=late)
    findings = probe_it(service)
    assert {name: getattr(findings, name) for name in FACTS} == dict.fromkeys(FACTS) | known
    assert len(findings.problems()) == len(FACTS) - list(known.values()).count(True) - 1
    assert "was not found out (probe another new user); if it is false, " in findings.problems()[-1]
    assert ledger_is_empty(service)


def test_one_cycle_for_all(probe_it: Probe) -> None:
    """If a user has one cycle, nothing is found out about a call's own."""
    findings = probe_it(Otherwise(merged(), dated=False))
    assert false(findings) == ["cycles_of_their_own", "shows_canceled"]
    assert {"ends_with_the_day", "says_cycle_types", "cycle_start_is_now"} < set(unknown(findings))
    assert findings.clock_skew is None
    assert findings.problems()[-1] == "clock_skew was not found out: no response has a time."


def test_all_end_together(probe_it: Probe) -> None:
    """If all cycles end together, nobody knows which are spent first."""
    findings = probe_it(Otherwise(each(lambda it: it.update(cycle_end="2025-06-14"))))
    assert unknown(findings) == ["spends_soonest_first"]
    assert false(findings) == ["ends_with_the_day"]


def test_times_without_seconds(probe_it: Probe) -> None:
    """In the first seconds of a minute, nobody knows whether starts are cut to minutes."""
    findings = probe_it(Otherwise(each(cut("cycle_start", 16)), now=NOON.replace(second=3)))
    assert unknown(findings) == ["cycle_start_is_now"]
    assert false(findings) == []


def test_times_in_whole_seconds(probe_it: Probe) -> None:
    """Starts can be cut to whole seconds."""
    findings = probe_it(Otherwise(each(cut("cycle_start", 19))))
    assert findings.problems() == ()


def test_no_times(probe_it: Probe) -> None:
    """A service that gives no start shows neither when nor for how long a cycle is."""
    findings = probe_it(Otherwise(each(lambda it: it.update(cycle_start="0001-01-01"))))
    assert false(findings) == ["cycle_start_is_now", "ends_with_the_day"]


@pytest.mark.parametrize("hours", [0.75, 1.75])
def test_a_day_that_began_not_long_ago(probe_it: Probe, hours: float) -> None:
    """One day less can be daylight saving time if the day has begun not long ago."""
    now = MIDNIGHT + timedelta(hours=hours)
    assert unknown(probe_it(make("counts the first day", now))) == ["ends_with_the_day"]
    assert probe_it(Otherwise(now=now)).problems() == ()


@pytest.mark.parametrize("seconds", [-3600, -60, 60, 3600])
def test_another_clock(probe_it: Probe, seconds: int) -> None:
    """By the service's clock, cycles start when they should. The skew is the problem."""
    findings = probe_it(Otherwise(ahead=timedelta(seconds=seconds)))
    assert true(findings) == FACTS
    assert findings.clock_skew == pytest.approx(abs(seconds), abs=1.5)
    (problem,) = findings.problems()
    assert problem.startswith("clock_skew is ")


def test_a_clock_that_is_close(probe_it: Probe) -> None:
    """A small skew is no problem, and is reported."""
    findings = probe_it(Otherwise(ahead=timedelta(seconds=5)))
    assert findings.problems() == ()
    assert findings.clock_skew == pytest.approx(5, abs=0.2)


def test_cycles_that_start_a_little_late(probe_it: Probe) -> None:
    """The skew is that of the starts, if it is larger than that of Date."""
    findings = probe_it(Otherwise(each(moved("cycle_start", seconds=8))))
    assert findings.problems() == ()
    assert findings.clock_skew == pytest.approx(8, abs=0.2)


def test_without_date(probe_it: Probe) -> None:
    """Without a Date, the starts of cycles show the skew, up to what evidence allows."""
    findings = probe_it(Otherwise(dated=False))
    assert (findings.problems(), findings.clock_skew) == ((), 0)
    findings = probe_it(Otherwise(ahead=timedelta(seconds=5), dated=False))
    assert findings.problems() == ()
    assert findings.clock_skew == pytest.approx(5, abs=0.2)
    findings = probe_it(Otherwise(ahead=timedelta(seconds=60), dated=False))
    assert [it.split()[0] for it in findings.problems()] == ["cycle_start_is_now", "clock_skew"]
    assert findings.cycle_start_is_now is None
    assert findings.clock_skew == pytest.approx(60, abs=0.2)


def test_a_probed_user_without_a_trace(probe_it: Probe) -> None:
    """A user of an earlier probe is accepted if the service lists no cycles of it."""
    service = Otherwise(only(lambda it: it["amount"]))
    assert probe_it(service).problems() == probe_it(service).problems() == ()


def test_credits_without_cycles(probe_it: Probe) -> None:
    """A user whose credits are in no cycle is not touched."""
    service = Otherwise(only(lambda _: False))
    service.sandbox.handle(PROTOCOL.add(USER, 5).request)
    with pytest.raises(ValueError, match=r"credits: 5, cycles: 0"):
        probe_it(service)


def test_no_cycle_is_emptied() -> None:
    """A balance that has lost credits, but has no empty cycle, does not show whether those are listed."""

    def balance(*amounts: int) -> ActiveBalance:
        cycles = tuple(CycleBalance(MIDNIGHT, NOON, amount) for amount in amounts)
        return ActiveBalance(USER, sum(amounts), cycles)

    assert lists_empty_cycles(balance(5, 5), balance(5, 3)) is None
    assert lists_empty_cycles(balance(5, 5), balance(5, 5)) is None
    assert lists_empty_cycles(balance(5, 5), balance(0, 3)) is True
    assert lists_empty_cycles(balance(5, 5), balance(3)) is False
    assert lists_empty_cycles(balance(5, 5), None) is None


# The end of a day

AROUND: Final = [
    *(-TICK * number for number in range(REQUESTS + 2)),
    *(timedelta(seconds=seconds) for seconds in (-12, -8, -4, 4, 8)),
]


@pytest.mark.parametrize("name", SERVICES)
def test_a_day_ends(probe_it: Probe, name: str) -> None:
    """If a day ends meanwhile, no fact is false that is true at noon, and none true that is false then."""
    fact = SERVICES[name][0]
    for began in AROUND:
        findings = probe_it(make(name, MIDNIGHT + began))
        assert set(false(findings)) <= {fact}
        assert fact not in true(findings)


@pytest.mark.parametrize("began", AROUND)
def test_a_day_of_the_sandbox_ends(probe_it: Probe, began: timedelta) -> None:
    """Whenever a day ends, all facts of the sandbox are true or not found out."""
    findings = probe_it(Otherwise(now=MIDNIGHT + began))
    assert unknown(findings) == [
        "cycles_of_their_own",
        "ends_with_the_day",
        "spends_soonest_first",
    ]
    assert false(findings) == []


@pytest.mark.parametrize("began", [-15, 12])
def test_a_day_ends_before_or_after(probe_it: Probe, began: int) -> None:
    """Some seconds before the end of a day, and after it, all is found out."""
    findings = probe_it(Otherwise(now=MIDNIGHT + timedelta(seconds=began)))
    assert true(findings) == FACTS


@pytest.mark.parametrize("minutes", [-120, -60, -30, 30, 60, 120])
def test_a_day_ends_in_another_season(probe_it: Probe, minutes: int) -> None:
    """From now to a cycle's end, daylight saving time can begin or end."""
    findings = probe_it(Otherwise(now=MIDNIGHT + timedelta(minutes=minutes)))
    assert findings.cycles_of_their_own is None


def test_the_season_changes(probe_it: Probe) -> None:
    """Between the ends of two cycles, too."""
    ends_in_summer = if_so(lambda it: it["cycle_end"] > "2025-06-13", moved("cycle_end", hours=-1))
    assert probe_it(Otherwise(ends_in_summer)).problems() == ()


def test_a_day_ends_by_another_clock(probe_it: Probe) -> None:
    """The service's clock says when its day ends."""
    ahead = timedelta(hours=5)
    findings = probe_it(Otherwise(now=MIDNIGHT - ahead, ahead=ahead))
    assert findings.cycles_of_their_own is None


# JSON


def example() -> Findings:
    return Findings(
        base_url="https://api.creduse.com",
        probed_at="2025-06-11T12:00:00+00:00",
        end_user_id=USER_ID,
        clock_skew=0.25,
        **dict.fromkeys(FACTS, True),
    )


@pytest.mark.parametrize("value", [True, False, None])
@pytest.mark.parametrize("skew", [None, 0, 0.5, 86400.0])
def test_json(value: bool | None, skew: float | None) -> None:  # noqa: FBT001 - a fact
    """Findings survive JSON."""
    findings = replace(example(), shows_canceled=value, clock_skew=skew)
    text = to_json(findings)
    assert from_json(f"{text}\n") == findings
    assert text.splitlines()[1] == '  "base_url": "https://api.creduse.com",'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "no base_url"),
    ],
    ids=["nothing", "half", "deep", "list", "null", "empty"],
)
def test_other_text(text: str, message: str) -> None:
    """Other text is rejected, and the message says what to pass."""
    with pytest.raises(ValueError, match=f"{message}.*; pass the output of creduse bulk probe"):
        from_json(text)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("base_url", 5, "base_url must be text, not 5"),
        ("probed_at", "today", "probed_at must be a time with an offset"),
        ("probed_at", "2025-06-11T12:00:00", "probed_at must be a time with an offset"),
        ("probed_at", 5, "probed_at must be a time with an offset"),
        ("end_user_id", "me", "end_user_id must be a UUID, not 'me'"),
        ("end_user_id", USER_ID.upper() + "0", "end_user_id must be a UUID"),
        ("end_user_id", None, "end_user_id must be a UUID, not None"),
        ("reads_own_writes", 1, "reads_own_writes must be true, false or null, not 1"),
        ("lists_empty_cycles", "yes", "lists_empty_cycles must be true, false or null"),
        ("clock_skew", True, "clock_skew must be a number of seconds, or null, not True"),
        ("clock_skew", -1, "clock_skew must be a number"),
        ("clock_skew", float("nan"), "clock_skew must be a number"),
        ("clock_skew", float("inf"), "clock_skew must be a number"),
        pytest.param("clock_skew", 10**400, "clock_skew must be a number", id="huge"),
        ("more", 1, "it has the unknown 'more'"),
    ],
)
def test_other_json(field: str, value: object, message: str) -> None:
    """A wrong field is named."""
    with pytest.raises(ValueError, match=message):
        from_json(json.dumps(asdict(example()) | {field: value}))


@pytest.mark.parametrize("field", asdict(example()))
def test_a_field_is_missing(field: str) -> None:
    """A missing field is named."""
    data = asdict(example())
    del data[field]
    with pytest.raises(ValueError, match=f"it has no {field}"):
        from_json(json.dumps(data))


def test_other_argument() -> None:
    """A user that is no UUID is rejected before anything is sent."""
    service = Otherwise()
    client = AsyncCoreClient(PROTOCOL, service)
    wrong: Any = "me"
    with pytest.raises(ValueError, match="end_user_id must be a UUID"):
        anyio.run(probe, client, wrong)
    assert service.time == NOON
