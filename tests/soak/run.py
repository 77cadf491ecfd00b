"""One run: its calls, the client's reports, and the machine's delays."""

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
"""Calls in the life of a client, at least; there are `GENERATIONS` of them, or as many as fit."""
GENERATIONS: Final = range(3, 11)
BLOCK: Final = 1000
"""Calls after which the number of calls at a time changes."""
MUSTERS: Final = 3
"""How often calls may try to have all connections of a client at the same time."""
STALLED: Final = 120.0
"""Seconds without the end of any call after which the run is given up."""
UNSENT: Final = frozenset({"not_sent", "unsendable"})
"""The events of attempts of which the client says that nothing was sent."""

_OUTCOMES: Final = tuple(Outcome)


def make_certificate(folder: Path) -> str:
    """Make a certificate, have clients of this process trust it, and return the server's file."""
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    trusted, own = folder / "ca.pem", folder / "server.pem"
    authority.cert_pem.write_to_path(str(trusted))
    leaf.private_key_and_cert_chain_pem.write_to_path(str(own))
    os.environ["SSL_CERT_FILE"] = str(trusted)
    return str(own)


class Server:
    """The server's process."""

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
        """Stop it."""
        self._process.communicate()


class Lag:
    """The delay with which this process wakes, from a ticker beside the calls."""

    TICK: Final = 0.02
    _LEAST: Final = 0.02

    def __init__(self) -> None:
        self._due = math.inf
        self._late = deque([(0.0, 0.0)], maxlen=100)
        """The worst delay within each second, and when that was."""

    def tick(self) -> float:
        """Note the time, and return the seconds until the next tick."""
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


class Note:
    """The result of one call, as its caller sees it."""

    __slots__ = ("begun", "cancelled", "error", "foreign", "plan", "result", "silent_from")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.begun = time.monotonic()
        self.result: Any = None
        self.error: CreduseError | None = None
        self.foreign: BaseException | None = None
        self.cancelled = math.inf
        """When the caller was told to be cancelled."""
        self.silent_from = math.inf
        """When the cancellation reached it, or ``close()`` had returned."""


class Block(NamedTuple):
    """Calls in a row, so many at a time."""

    at_once: int
    numbers: Iterator[int]


class Run:
    """One run."""

    def __init__(self, *, client: str, seed: int, calls: int, share: float, server: Server) -> None:
        self.seed, self.calls, self.share, self.server = seed, calls, share, server
        self._module, _, self._name = client.partition(":")
        self._dice = random.Random(seed)  # noqa: S311 - nothing is secret here
        self._next = 0
        self.generations = min(max(GENERATIONS.start, calls // GENERATION), GENERATIONS[-1])
        self._limit = 1 + calls + self.generations * (MUSTERS * plans.MAX_CONCURRENT + AT_ONCE[1])
        # Allocated now, so that they do not look like growth later.
        self._outcome = array("b", [-1]) * self._limit
        self._sent = array("b", [0]) * self._limit
        self._silent_from = array("d", [math.inf]) * self._limit
        self._lag = array("f", [0.0]) * self._limit
        self._ends: list[str] = []
        self._end = array("i", [-1]) * self._limit
        self._mustered = bytearray(self._limit)
        self.lag = Lag()
        self.flying: dict[int, Note] = {}
        self.faulty: dict[int, list[str]] = {}
        """What is wrong, by call."""
        self.wrong: list[str] = []
        """What is wrong with the run as a whole."""
        self.known: list[str] = []
        """What the event loop has complained of and is known to."""
        self.noise: Counter[str] = Counter()
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
        """Return a first call to a client, which creates what an event loop keeps."""
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

    def musters(self) -> Iterator[Block]:
        """Return calls that need all connections of a client at the same time.

        What an earlier call has done to a connection may still meet them: so there are three tries.
        """
        met = 0
        for _ in range(MUSTERS):
            numbers = range(self._next, self._next + plans.MAX_CONCURRENT)
            self._mustered[numbers.start : numbers.stop] = b"\1" * plans.MAX_CONCURRENT
            self.server.ask("calm")
            yield Block(plans.MAX_CONCURRENT, self._numbers(plans.MAX_CONCURRENT))
            self.server.ask("storm")
            met = sum(self._end[number] < 0 for number in numbers)
            if met == plans.MAX_CONCURRENT:
                return
        self.wrong.append(f"of {plans.MAX_CONCURRENT} calls at a time only {met} met on the server")

    def last(self) -> tuple[Block, float]:
        """Return calls during which the client is closed, after so many seconds."""
        at_once = self.at_once()
        return Block(at_once, self._numbers(at_once)), self._dice.uniform(0, 0.1)

    def plan(self, number: int) -> Plan:
        """Return the plan of a call."""
        if self._mustered[number]:
            return plans.muster(number)
        return plans.draw(self.seed, number, self.share)

    def begin(self, number: int, protocol: CreduseProtocol) -> tuple[Note, Call[Any]]:
        """Begin a call."""
        plan = self.plan(number)
        key = None if plan.shared_user is None else str(plan.script.encode())
        if plan.method == "get_balance":
            call: Call[Any] = protocol.get_balance(plan.user, timeout=plan.timeout)
        else:
            make = protocol.add if plan.method == "add" else protocol.subtract
            call = make(plan.user, plan.amount, timeout=plan.timeout, idempotency_key=key)
        note = self.flying[number] = Note(plan)
        return note, call

    def end(self, number: int, note: Note, call: Call[Any]) -> None:
        """Record how a call has ended."""
        now = self.ended_at = time.monotonic()
        self.ended += 1
        del self.flying[number]
        attempts = call.attempts
        self._outcome[number] = _OUTCOMES.index(call.outcome)
        self._sent[number] = sum(attempt.event not in UNSENT for attempt in attempts)
        self._silent_from[number] = note.silent_from
        self._lag[number] = self.lag.worst(note.begun)
        if note.result is None:
            raised = note.error or note.foreign
            what = "cancelled" if raised is None else type(raised).__name__
            events = ", ".join(attempt.event for attempt in attempts)
            self._write_end(number, f"{what} ({events})")
            if note.plan.healthy and note.silent_from == math.inf:
                self.healthy_failed += 1
                if not self.share:
                    self.blame(number, f"a healthy call failed: {note.error!r}")
        self._check(number, note, call, now)

    def _check(self, number: int, note: Note, call: Call[Any], now: float) -> None:
        if note.foreign is not None:
            self.blame(number, f"a foreign exception: {note.foreign!r}")
        if note.error is not None and note.error.outcome is not call.outcome:
            self.blame(number, f"the error says {note.error.outcome!r}, the call {call.outcome!r}")
        if note.result is not None:
            wanted = {"end_user_id": note.plan.user, "amount": note.plan.amount}
            if note.plan.read:
                wanted = {"end_user_id": note.plan.user, "active_balance": number}
            if any(getattr(note.result, name) != value for name, value in wanted.items()):
                self.blame(number, f"another call's result: {note.result!r}")
        seconds = now - note.begun
        for what, lasted, allowed in (
            ("its timeout", seconds, note.plan.timeout),
            ("its cancellation", now - note.cancelled, 0.0),
        ):
            if wrong := judge.overrun(what, lasted, allowed, self._lag[number]):
                self.blame(number, wrong)

    def _write_end(self, number: int, text: str) -> None:
        if text not in self._ends:
            self._ends.append(text)
        self._end[number] = self._ends.index(text)

    def blame(self, number: int, wrong: str) -> None:
        """Record what is wrong about a call."""
        self.faulty.setdefault(number, []).append(wrong)

    def closed(self) -> None:
        """Record that the client is closed."""
        now = time.monotonic()
        for note in self.flying.values():
            note.silent_from = min(note.silent_from, now)

    def end_of(self, number: int) -> str:
        """Return how a call ended."""
        if self._outcome[number] < 0:
            return "never ended"
        outcome = _OUTCOMES[self._outcome[number]].name
        end = self._end[number]
        return f"{outcome}, {'a result' if end < 0 else self._ends[end]}"

    # What is measured around them.

    def resources(self, tasks: int) -> judge.Resources:
        """Return the resources that the process holds now."""
        gc.collect()
        return judge.Resources(
            self.ended,
            len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - no more open descriptors than one
            tasks,
            threading.active_count(),
            self.server.ask("stats")["open"],
            sys.getallocatedblocks(),
            int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"),
        )

    def hear(self, text: str) -> None:
        """Count the complaints of Python and libraries, without their digits."""
        self.noise[re.sub(r"(0x)?[0-9a-f]*\d[0-9a-f]*", "#", text)[:300]] += 1

    def _hear_warning(self, message: Warning | str, *_: object, **__: object) -> None:
        self.hear(f"warning: {message}")

    def __enter__(self) -> Self:
        warnings.simplefilter("always")
        warnings.showwarning = self._hear_warning
        sys.unraisablehook = lambda it: self.hear(f"unraisable: {it.exc_value!r} in {it.object!r}")
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the hooks: the process ends with the run."""

    def _watch(self) -> None:
        begun = told = time.monotonic()
        while True:
            time.sleep(1)
            now = time.monotonic()
            if now - told > 10:
                told = now
                print(f"{now - begun:.0f} s, {self.ended} calls", file=sys.stderr, flush=True)
            if self.flying and now - self.ended_at > STALLED:
                for number, note in list(self.flying.items())[:10]:
                    print(f"call {number} does not end: {note.plan}, {now - note.begun:.0f} s")
                sys.stdout.flush()
                os._exit(3)

    # Afterwards.

    def judge(self, record: list[judge.Entry], complaints: str) -> Counter[str]:
        """Compare the reports with the record, and return how many calls ended in which way.

        ``complaints``: a pattern of what the event loop is known to complain of.
        """
        entries: dict[int, list[judge.Entry]] = {}
        for entry in record:
            entries.setdefault(entry.number, []).append(entry)
        ends: Counter[str] = Counter()
        for number in range(self._next):
            if self._outcome[number] < 0:
                self.blame(number, "never ended")
                continue
            said = judge.Said(
                number,
                self.plan(number).read,
                _OUTCOMES[self._outcome[number]].name,
                self._sent[number],
                self._silent_from[number],
                self._lag[number],
            )
            ends[said.outcome if self._end[number] >= 0 else "result"] += 1
            for wrong in judge.wrongs(said, entries.get(number, [])):
                self.blame(number, wrong)
        self.wrong += judge.growth(self.samples)
        for text, count in self.noise.items():
            (self.known if re.match(complaints, text) else self.wrong).append(f"{count} x {text}")
        return ends
