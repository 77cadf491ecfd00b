"""One run: its calls, the reports of the client, and the delays of the machine."""

import gc
import json
import math
import os
import random
import re
import subprocess
import sys
import threading
import time
import warnings
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import trustme

from creduse_core import Call, CreduseError, CreduseProtocol, Outcome, RetryPolicy
from tests.soak import judge, plans
from tests.soak.plans import Plan

ROOT: Final = Path(__file__).parents[2]
KEY: Final = "sk-soak"
RETRY: Final = RetryPolicy(
    initial_delay=0.01, max_delay=0.05, attempt_timeout=1.0, server_replays=True
)
AT_ONCE: Final = (50, 200)
GENERATION: Final = 5000
"""The least calls of a client. A run has `GENERATIONS` clients, one after the other."""
GENERATIONS: Final = range(3, 11)
BLOCK: Final = 1000
"""Calls after which the number of calls at a time changes."""
PATIENT_RETRY: Final = replace(RETRY, attempt_timeout=plans.MORE_PATIENT)
"""For calls that wait for each other, however slow the machine is."""
FULL_POOLS: Final = 20
"""How often calls may try to use all connections of a client at the same time."""
STALLED: Final = 120.0
"""Seconds in which no call ends, after which the run is aborted."""
UNSENT: Final = frozenset({"not_sent", "unsendable"})
"""The events of attempts that sent nothing, according to the client."""

_OUTCOMES: Final = tuple(Outcome)


def make_certificate(folder: Path) -> str:
    """Make a certificate that clients of this process trust, and return the server's file."""
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    trusted, own = folder / "ca.pem", folder / "server.pem"
    authority.cert_pem.write_to_path(str(trusted))
    leaf.private_key_and_cert_chain_pem.write_to_path(str(own))
    os.environ["SSL_CERT_FILE"] = str(trusted)
    return str(own)


class Server:
    """The process of the server."""

    def __init__(self, seed: int, share: float, certificate: str | None) -> None:
        extra = [] if certificate is None else [certificate]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.server", str(seed), str(share), *extra],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.pid = self._process.pid
        self.url = f"http{'s' * len(extra)}://127.0.0.1:{self._read()}"

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, command: str) -> Any:
        """Return the server's response to a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Stop the process."""
        self._process.communicate()


class Lag:
    """Measures how late this process wakes. A ticker runs beside the calls."""

    TICK: Final = 0.02
    _LEAST: Final = 0.02

    def __init__(self) -> None:
        self._due = math.inf
        self._late = deque([(0.0, 0.0)], maxlen=100)
        """Times and the worst delay in the second of each."""

    def tick(self) -> float:
        """Record the delay, and return the seconds until the next tick."""
        now = time.monotonic()
        late = now - self._due
        if late > self._LEAST:
            when, worst = self._late[-1]
            if int(when) == int(now):
                self._late[-1] = now, max(late, worst)
            else:
                self._late.append((now, late))
        self._due = now + self.TICK
        return self.TICK

    def worst(self, begun: float) -> float:
        """Return the worst delay since ``begun``, in seconds."""
        since = (late for when, late in self._late if when >= begun)
        return max(since, default=0.0) + max(0.0, time.monotonic() - self._due)


class CallRecord:
    """What the caller of one call sees."""

    __slots__ = ("begun", "cancelled", "error", "foreign", "plan", "result", "silent_from")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.begun = time.monotonic()
        self.result: Any = None
        self.error: CreduseError | None = None
        self.foreign: BaseException | None = None
        self.cancelled = math.inf
        """When the run cancelled the caller."""
        self.silent_from = math.inf
        """When the caller got the cancellation, or when ``close()`` returned."""


class Block(NamedTuple):
    """Some calls, and how many of them run at the same time."""

    at_once: int
    numbers: Iterator[int]


class Run:
    """One run."""

    def __init__(self, *, client: str, seed: int, calls: int, share: float, server: Server) -> None:
        self.seed, self.calls, self.share, self.server = seed, calls, share, server
        self._module, _, self._name = client.partition(":")
        self._patient = CreduseProtocol(KEY, server.url, retry=PATIENT_RETRY)
        self._dice = random.Random(seed)  # noqa: S311 - nothing is secret here
        self._next = 0
        self.generations = min(max(GENERATIONS.start, calls // GENERATION), GENERATIONS[-1])
        self._limit = (
            1 + calls + self.generations * (FULL_POOLS * plans.MAX_CONCURRENT + AT_ONCE[1])
        )
        # Allocated now, so that they are not counted as growth.
        self._outcome = array("b", [-1]) * self._limit
        self._sent = array("b", [0]) * self._limit
        self._silent_from = array("d", [math.inf]) * self._limit
        self._lag = array("f", [0.0]) * self._limit
        self._ends: list[str] = []
        self._end = array("i", [-1]) * self._limit
        self._is_full_pool = bytearray(self._limit)
        self.lag = Lag()
        self.in_flight: dict[int, CallRecord] = {}
        self.faulty: dict[int, list[str]] = {}
        """What is wrong, by number of the call."""
        self.wrong: list[str] = []
        """What is wrong with the run as a whole."""
        self.known: list[str] = []
        """Known issues of the event loop that occurred."""
        self.complaints: Counter[str] = Counter()
        self.samples: list[judge.Resources] = []
        self.ended_at = time.monotonic()
        self.ended = 0
        self.healthy_failed = 0

    # The calls.

    def open(self) -> Any:
        """Make a client."""
        make = getattr(import_module(self._module), self._name)
        return make(KEY, base_url=self.server.url, retry=RETRY, timeout=plans.PATIENT)

    def _numbers(self, count: int) -> Iterator[int]:
        begin = self._next
        self._next += count
        return iter(range(begin, self._next))

    def first(self) -> Block:
        """Return the first call, in which the event loop creates what it keeps."""
        return Block(1, self._numbers(1))

    def blocks(self) -> Iterator[Block]:
        """Return the blocks of one client."""
        left = self.calls // self.generations
        while left > 0:
            yield Block(self.at_once(), self._numbers(min(left, BLOCK)))
            left -= BLOCK

    def at_once(self) -> int:
        """Draw the number of concurrent calls."""
        return self._dice.randint(*AT_ONCE)

    def full_pools(self) -> Iterator[Block]:
        """Return calls that need all connections of a client at the same time.

        A connection that an earlier fault broke can fail one of them. So there are several tries.
        """
        before = self.server.ask("stats")["full_pools"]
        for _ in range(FULL_POOLS):
            numbers = range(self._next, self._next + plans.MAX_CONCURRENT)
            self._is_full_pool[numbers.start : numbers.stop] = b"\1" * plans.MAX_CONCURRENT
            self.server.ask("faults-off")
            yield Block(plans.MAX_CONCURRENT, self._numbers(plans.MAX_CONCURRENT))
            self.server.ask("faults-on")
            if self.server.ask("stats")["full_pools"] > before:
                return
        self.wrong.append(f"no {plans.MAX_CONCURRENT} calls reached the server at the same time")

    def last(self) -> tuple[Block, float]:
        """Return the last calls, and after how many seconds the client closes."""
        at_once = self.at_once()
        return Block(at_once, self._numbers(at_once)), self._dice.uniform(0, 0.1)

    def plan(self, number: int) -> Plan:
        """Return the plan of a call."""
        if self._is_full_pool[number]:
            return plans.full_pool(number)
        return plans.draw(self.seed, number, self.share)

    def begin(self, number: int, protocol: CreduseProtocol) -> tuple[CallRecord, Call[Any]]:
        """Begin a call."""
        plan = self.plan(number)
        if self._is_full_pool[number]:
            protocol = self._patient
        key = None if plan.shared_user is None else str(plan.script.encode())
        if plan.method == "get_balance":
            call: Call[Any] = protocol.get_balance(plan.user, timeout=plan.timeout)
        else:
            make = protocol.add if plan.method == "add" else protocol.subtract
            call = make(plan.user, plan.amount, timeout=plan.timeout, idempotency_key=key)
        record = self.in_flight[number] = CallRecord(plan)
        return record, call

    def end(self, number: int, record: CallRecord, call: Call[Any]) -> None:
        """Record how a call ended."""
        now = self.ended_at = time.monotonic()
        self.ended += 1
        del self.in_flight[number]
        attempts = call.attempts
        self._outcome[number] = _OUTCOMES.index(call.outcome)
        self._sent[number] = sum(attempt.event not in UNSENT for attempt in attempts)
        self._silent_from[number] = record.silent_from
        self._lag[number] = self.lag.worst(record.begun)
        if record.result is None:
            raised = record.error or record.foreign
            what = "cancelled" if raised is None else type(raised).__name__
            events = ", ".join(attempt.event for attempt in attempts)
            self._write_end(number, f"{what} ({events})")
            if record.plan.healthy and record.silent_from == math.inf:
                self.healthy_failed += 1
                if not self.share:
                    self.add_violation(number, f"a healthy call failed: {record.error!r}")
        self._check(number, record, call, now)

    def _check(self, number: int, record: CallRecord, call: Call[Any], now: float) -> None:
        if record.foreign is not None:
            self.add_violation(number, f"a foreign exception: {record.foreign!r}")
        if record.error is not None and record.error.outcome is not call.outcome:
            self.add_violation(
                number, f"the error says {record.error.outcome!r}, the call {call.outcome!r}"
            )
        if record.result is not None:
            wanted = {"end_user_id": record.plan.user, "amount": record.plan.amount}
            if record.plan.read:
                wanted = {"end_user_id": record.plan.user, "active_balance": number}
            if any(getattr(record.result, name) != value for name, value in wanted.items()):
                self.add_violation(number, f"another call's result: {record.result!r}")
        seconds = now - record.begun
        for what, lasted, allowed in (
            ("its timeout", seconds, record.plan.timeout),
            ("its cancellation", now - record.cancelled, 0.0),
        ):
            if wrong := judge.overrun(what, lasted, allowed, self._lag[number]):
                self.add_violation(number, wrong)

    def _write_end(self, number: int, text: str) -> None:
        if text not in self._ends:
            self._ends.append(text)
        self._end[number] = self._ends.index(text)

    def add_violation(self, number: int, wrong: str) -> None:
        """Record what is wrong about a call."""
        self.faulty.setdefault(number, []).append(wrong)

    def closed(self) -> None:
        """Record that the client is closed."""
        now = time.monotonic()
        for record in self.in_flight.values():
            record.silent_from = min(record.silent_from, now)

    def end_of(self, number: int) -> str:
        """Return how a call ended."""
        if self._outcome[number] < 0:
            return "never ended"
        outcome = _OUTCOMES[self._outcome[number]].name
        end = self._end[number]
        return f"{outcome}, {'a result' if end < 0 else self._ends[end]}"

    # Measurements.

    def resources(self, tasks: int) -> judge.Resources:
        """Return the resources that the process holds now."""
        gc.collect()
        return judge.Resources(
            self.ended,
            len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - it opens one descriptor only
            tasks,
            threading.active_count(),
            self.server.ask("stats")["open"],
            sys.getallocatedblocks(),
            int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"),
        )

    def count_complaint(self, text: str) -> None:
        """Count a warning or error of Python or a library, without its digits."""
        self.complaints[re.sub(r"(0x)?[0-9a-f]*\d[0-9a-f]*", "#", text)[:300]] += 1

    def _count_warning(self, message: Warning | str, *_: object, **__: object) -> None:
        self.count_complaint(f"warning: {message}")

    def __enter__(self) -> Self:
        warnings.simplefilter("always")
        warnings.showwarning = self._count_warning
        sys.unraisablehook = lambda it: self.count_complaint(
            f"unraisable: {it.exc_value!r} in {it.object!r}"
        )
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the hooks, since the process ends with the run."""

    def _watch(self) -> None:
        begun = reported = time.monotonic()
        while True:
            time.sleep(1)
            now = time.monotonic()
            if now - reported > 10:
                reported = now
                print(f"{now - begun:.0f} s, {self.ended} calls", file=sys.stderr, flush=True)
            if self.in_flight and now - self.ended_at > STALLED:
                for number, record in list(self.in_flight.items())[:10]:
                    print(f"call {number} does not end: {record.plan}, {now - record.begun:.0f} s")
                sys.stdout.flush()
                os._exit(3)

    # After the run.

    def judge(self, record: list[judge.Entry], complaints: str) -> Counter[str]:
        """Compare the reports with the record, and return how many calls ended in each way.

        ``complaints`` is a pattern of the known issues of the event loop.
        """
        entries: dict[int, list[judge.Entry]] = {}
        for entry in record:
            entries.setdefault(entry.number, []).append(entry)
        ends: Counter[str] = Counter()
        for number in range(self._next):
            if self._outcome[number] < 0:
                self.add_violation(number, "never ended")
                continue
            report = judge.Report(
                number,
                self.plan(number).read,
                _OUTCOMES[self._outcome[number]].name,
                self._sent[number],
                self._silent_from[number],
                self._lag[number],
            )
            ends[report.outcome if self._end[number] >= 0 else "result"] += 1
            for wrong in judge.violations(report, entries.get(number, [])):
                self.add_violation(number, wrong)
        self.wrong += judge.growth(self.samples)
        for text, count in self.complaints.items():
            (self.known if re.match(complaints, text) else self.wrong).append(f"{count} x {text}")
        return ends
