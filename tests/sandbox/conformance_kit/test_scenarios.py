"""The kit reports a transport that breaks a promise in a scenario."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from creduse_core import (
    Call,
    CoreClient,
    CreduseProtocol,
    Outcome,
    Response,
    TransportError,
)
from creduse_core.decoding import Expected, read_response
from creduse_core.retry import Event
from creduse_sandbox.conformance import SCENARIOS, Limit, check, check_async
from creduse_sandbox.conformance.scenarios import USER
from tests.sandbox.conformance_kit.broken import (
    Behavior,
    DropsSurplus,
    IgnoresSurplus,
    LeavesConnectionsOpen,
    MakeTransport,
    NeverReuses,
    RestartsTimeout,
    ReusesEveryConnection,
    WithoutClock,
    altered,
    begin_on_another_connection,
    drop_headers,
    drop_partial_response,
    fabricate,
    follow_redirects,
    over,
    plus,
    raise_failures,
    replace_user,
    report_maybe_sent,
    report_not_sent,
    report_permanent,
    report_reads_not_sent,
    retry_failures,
    reuse_every_connection,
    send_cookies,
    send_twice,
    sending,
    shorten_deadline,
    stop_after_failure,
    without,
)
from tests.sandbox.conformance_kit.broken_async import (
    AsyncIgnoresSurplus,
    AsyncLeavesConnectionsOpen,
    AsyncReportsNotSent,
    async_over,
)
from tests.sandbox.conformance_kit.loops import Run
from tests.sandbox.conformance_kit.transports import AsyncGood, Good

# What the messages say.
TWICE = r"applied .* 2 times"
EARLIER = "took an earlier response for its own"
REUSED = "reused a connection that the client must not reuse"
UNTRUE = "applied .*, but its outcome is NOT_APPLIED"
NOT_SENT = "received attempt 1 of .*, but its event is not_sent"
FAILED = "the call raised TransportError"

NAMED = {scenario.name: scenario for scenario in SCENARIOS}


def check_scenario(scenario: str, transport: MakeTransport, *limits: Limit) -> None:
    """Check a transport in one scenario."""
    check(NAMED[scenario], over(transport), limits=limits)


@pytest.mark.parametrize(
    ("behavior", "scenario", "found"),
    [
        (report_not_sent, "add-meets-apply-then-close", TWICE),
        (
            report_not_sent,
            "add-meets-request-then-close",
            NOT_SENT,
        ),
        (
            report_reads_not_sent,
            "get_balance-meets-request-then-close",
            NOT_SENT,
        ),
        (report_maybe_sent, "add-is-refused-a-connection", FAILED),
        (retry_failures, "add-meets-apply-then-close", TWICE),
        (
            retry_failures,
            "get_balance-meets-request-then-close",
            "received 2 requests of .*, but call.attempts has 1",
        ),
        (
            retry_failures,
            "add-meets-request-then-close-on-a-used-connection",
            "but call.attempts has 1",
        ),
        (send_twice, "add", TWICE),
        (begin_on_another_connection, "add", "received 2 requests of .*, but call.attempts has 1"),
        (follow_redirects, "add-meets-307", "request 2 was POST /moved, not <Request POST"),
        (follow_redirects, "add-meets-302", "the server received 2 requests and applied"),
        (
            send_cookies,
            "add-is-given-a-cookie",
            r"request 2 had headers of the library's own: \['cookie'\]",
        ),
        (
            altered(headers=without("Accept-Encoding")),
            "add",
            r"had the header Accept-Encoding: \[\], not",
        ),
        (altered(headers=without("Authorization")), "get_balance", "raised AuthenticationError"),
        (
            altered(headers=without("Idempotency-Key")),
            "add-with-key-is-lost-twice",
            "requests and applied 3",
        ),
        (
            altered(headers=plus("User-Agent", "x")),
            "add",
            "had the header User-Agent: .*'x'.*, not",
        ),
        (
            altered(headers=plus("Expect", "100-continue")),
            "add",
            r"the library's own: \['expect'\]",
        ),
        (altered(headers=plus("Authorization", "x")), "add", "had 2 Authorization headers"),
        (altered(url=lambda url: url + "?x=1"), "add", "had a query"),
        (altered(body=lambda body: body + b" "), "add", "request 1 had the body .*, not"),
        (altered(url=lambda url: url + "/"), "get_balance", "request 1 was GET /get-active-bal"),
        (altered(method=lambda _: "PUT"), "add", "request 1 was PUT /add"),
        (
            reuse_every_connection,
            "add-meets-wrong-user",
            REUSED,
        ),
        (replace_user, "add-meets-wrong-user", "the call returned a result"),
        (fabricate, "add", "did not apply .*, but its outcome is APPLIED"),
        (fabricate, "get_balance", "the server received 0 requests"),
        (
            stop_after_failure,
            "add-meets-apply-then-close",
            "another call, .*, raised TransportError",
        ),
        (drop_partial_response, "add-meets-cut-body-then-close", FAILED),
        (report_permanent, "get_balance-meets-head-then-close", FAILED),
        (drop_headers, "add", "lacks the Date header that the server sent"),
        (raise_failures, "add-is-refused-a-connection", FAILED),
        (shorten_deadline, "add-waits-for-its-response", "the call raised CreduseTimeoutError"),
        (
            reuse_every_connection,
            "add-meets-408",
            REUSED,
        ),
    ],
)
def test_broken_promise(behavior: Behavior, scenario: str, found: str) -> None:
    """The check of a broken promise fails, and the message names the promise."""
    with pytest.raises(AssertionError, match=found) as caught:
        check_scenario(scenario, sending(behavior))
    assert str(caught.value).startswith(f"{scenario}:\n")
    assert "What the server received:" in str(caught.value)


def test_good_transport() -> None:
    """A transport that keeps every promise passes."""
    for name in (
        "add",
        "add-meets-apply-then-close",
        "add-with-key-is-lost-twice",
        "add-meets-307",
    ):
        check_scenario(name, Good)


@pytest.mark.parametrize(
    ("transport", "scenario", "limit", "found"),
    [
        (IgnoresSurplus, "add-meets-surplus-whole", None, EARLIER),
        (
            IgnoresSurplus,
            "add-meets-surplus-whole-later",
            None,
            EARLIER,
        ),
        (IgnoresSurplus, "add-meets-surplus", None, UNTRUE),
        (
            IgnoresSurplus,
            "add-meets-surplus-later",
            None,
            UNTRUE,
        ),
        (
            IgnoresSurplus,
            "add-meets-surplus-half",
            None,
            "another call, .*, raised InvalidResponseErr",
        ),
        (
            IgnoresSurplus,
            "get_balance-meets-surplus-whole",
            None,
            EARLIER,
        ),
        (
            IgnoresSurplus,
            "add-with-key-meets-surplus-whole",
            None,
            EARLIER,
        ),
        (
            ReusesEveryConnection,
            "add-meets-stray-503",
            None,
            EARLIER,
        ),
        (
            ReusesEveryConnection,
            "get_balance-meets-stray-503",
            None,
            REUSED,
        ),
        (
            DropsSurplus,
            "add-meets-surplus-whole",
            Limit.SURPLUS,
            REUSED,
        ),
        (
            DropsSurplus,
            "add-meets-surplus-half",
            Limit.SURPLUS,
            REUSED,
        ),
        (
            NeverReuses,
            "add-on-a-used-connection",
            Limit.REUSE,
            "did not reuse the connection of the call before",
        ),
        (
            RestartsTimeout,
            "add-meets-a-head-that-drips-too-long",
            Limit.TIME,
            "the call returned a result",
        ),
        (
            RestartsTimeout,
            "add-meets-a-100-that-drips-too-long",
            Limit.TIME,
            "the call took .* from 2 to 7 s",
        ),
        (RestartsTimeout, "add-meets-a-body-that-trickles", None, "the call took"),
    ],
)
def test_broken_promise_at_a_limit(
    transport: MakeTransport, scenario: str, limit: Limit | None, found: str
) -> None:
    """The message names the limit that allows the behavior. No limit allows a wrong outcome."""
    with pytest.raises(AssertionError, match=found) as caught:
        check_scenario(scenario, transport)
    named = re.findall(r"This is allowed with limits=\[Limit\.(\w+)\]", str(caught.value))
    assert named == ([] if limit is None else [limit.name])
    if limit is not None:
        check_scenario(scenario, transport, limit)


def test_limit_that_is_not_needed() -> None:
    """A transport passes if it is better than its limit says."""
    check_scenario("add-meets-103-first", Good, Limit.INTERIM)


def test_limit_allows_nothing_else() -> None:
    """A limit does not change other checks."""
    with pytest.raises(AssertionError, match=TWICE):
        check_scenario("add-meets-surplus", sending(send_twice), *Limit)


def test_message_describes_the_server() -> None:
    """The message of a failed check describes what the server does."""
    for scenario, words in {
        "add": "What the server does: no fault.",
        "add-is-refused-a-connection": "What the server does: It refuses connections.",
        "get_balance-meets-421": "For the call's requests: send 421 Misdirected Request.",
        "add-is-limited-then-lost": "send 429 Too Many Requests; then apply the request and ",
        "add-right-after-close-after": "The client may have an idle connection of another call. For that call: send a k",
        "add-meets-a-chunk-that-drips-too-long": "send a chunk's size digit by digit, for more than 9 s",
    }.items():
        with pytest.raises(AssertionError, match=re.escape(words)):
            check(replace(NAMED[scenario], endings=()), over(Good))


def test_retried_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that retries a write that may have been applied is found out."""

    def whenever_transient(event: Event, *_: object) -> bool:
        return event.transient

    monkeypatch.setattr("creduse_core.call.may_retry", whenever_transient)
    with pytest.raises(AssertionError, match=TWICE):
        check_scenario("add-meets-apply-then-close", Good)


def test_outcome_of_the_last_attempt_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core whose outcome depends only on the last attempt is found out."""

    def last_of(_: Outcome, last: Outcome) -> Outcome:
        return last

    monkeypatch.setattr("creduse_core.call.max", last_of, raising=False)
    with pytest.raises(AssertionError, match=UNTRUE):
        check_scenario("add-with-key-is-lost-then-refused", Good)


def test_response_for_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that accepts a response for another user is found out."""

    def believe(response: Response, expected: Expected[Any]) -> Any:
        fields = json.loads(response.body) | {"end_user_id": str(USER)}
        return read_response(replace(response, body=json.dumps(fields).encode()), expected)

    monkeypatch.setattr("creduse_core.call.read_response", believe)
    with pytest.raises(AssertionError, match="the call returned a result, with outcome APPLIED"):
        check_scenario("add-meets-wrong-user", Good)


def test_wrong_outcome_of_an_error() -> None:
    """An error whose outcome is not that of its call is found out."""

    class Client(CoreClient):
        def run(self, call: Call[Any], *, balance_first: bool = False) -> Any:
            try:
                return super().run(call, balance_first=balance_first)
            except TransportError:
                raise TransportError("other", outcome=Outcome.NOT_APPLIED) from None

    with pytest.raises(
        AssertionError, match="the error's outcome is NOT_APPLIED, but the call's is UNKNOWN"
    ):
        check(
            NAMED["add-meets-apply-then-close"], lambda protocol: Client(protocol, Good(protocol))
        )


def test_slow_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that takes too long is found out."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.MAX_SECONDS", 0.0)
    with pytest.raises(
        AssertionError, match=r"<Call POST /add, succeeded> took \d+\.\d s, more than 0 s"
    ):
        check_scenario("add", Good)


def test_time_of_a_scenario() -> None:
    """A call that takes another time than the scenario says is found out."""
    hurried = replace(NAMED["add"], at_most=0.0)
    with pytest.raises(
        AssertionError, match=r"the call took \d+\.\d\d s, but must take from 0 to 0 s"
    ):
        check(hurried, over(Good))


def test_body_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that reads a body without a limit is found out."""
    monkeypatch.setattr(Good, "longest", 10**9)

    def briefly(protocol: CreduseProtocol) -> Call[Any]:
        return protocol.add(USER, 7, timeout=1)

    scenario = replace(NAMED["add-meets-a-body-without-end"], make=briefly)
    with pytest.raises(AssertionError, match="the call raised CreduseTimeoutError"):
        check(scenario, over(Good))


def test_open_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed client that leaves a connection open is found out."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.MAX_SECONDS", 0.3)
    with pytest.raises(AssertionError, match="did not close all connections: 1 are open"):
        check_scenario("add", LeavesConnectionsOpen)


def test_exception_of_the_clock() -> None:
    """An exception of a transport's clock passes through the check."""
    with pytest.raises(ZeroDivisionError):
        check_scenario("add", WithoutClock)


@pytest.mark.parametrize(
    ("transport", "scenario", "found"),
    [
        (AsyncReportsNotSent, "add-meets-apply-then-close", TWICE),
        (AsyncIgnoresSurplus, "add-meets-surplus-whole", EARLIER),
    ],
)
def test_async_broken_promise(
    run: Run, transport: type[AsyncGood], scenario: str, found: str
) -> None:
    """The check of an asynchronous transport finds the same."""

    async def main() -> None:
        await check_async(NAMED[scenario], async_over(transport))

    with pytest.raises(AssertionError, match=found):
        run(main)


def test_async_open_connection(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed asynchronous client that leaves a connection open is found out."""
    monkeypatch.setattr("creduse_sandbox.conformance.checks.MAX_SECONDS", 0.3)

    async def main() -> None:
        await check_async(NAMED["add"], async_over(AsyncLeavesConnectionsOpen))

    with pytest.raises(AssertionError, match="did not close all connections: 1 are open"):
        run(main)
