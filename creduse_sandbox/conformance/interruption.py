"""Check calls that Ctrl-C or a raising signal handler interrupts, at every place in their code.

Python runs signal handlers where a function begins, where a C function has returned, and in C
functions that wait. Each call raises a real signal at the first such place that no call before had,
until a call finds no new place.

How a single call may end (`scenarios`), and what all checks share (`checks`), do not belong here.
"""

import asyncio
import gc
import logging
import opcode
import signal
import ssl
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from creduse_core import AsyncCoreClient, Call, CoreClient, CreduseError, CreduseProtocol
from creduse_sandbox.conformance.checks import (
    AsyncConnect,
    Connect,
    false_claims_when_abandoned,
    left_open,
    make_protocol,
    report,
    waits_until_closed,
)
from creduse_sandbox.conformance.scenarios import (
    AMOUNT,
    API_KEY,
    LONG_TIMEOUT,
    MAX_SECONDS,
    SHORT_TIMEOUT,
    USER,
    Limit,
    describe,
)
from creduse_sandbox.faults import FAULTS, Fault
from creduse_sandbox.server import SandboxServer

if TYPE_CHECKING:
    from creduse_sandbox.connection import LogEntry


@dataclass(frozen=True, slots=True)
class Interruption:
    """What the server does to the calls that are interrupted, and what interrupts them."""

    name: str
    fault: Fault | None = None
    new_connection: bool = False
    """Each call opens a new connection."""
    alarm: bool = False
    """A signal handler that raises `TimeoutError` interrupts them, not Ctrl-C."""

    def __str__(self) -> str:
        return self.name


def _interruptions(name: str, *, alarm: bool) -> Iterator[Interruption]:
    yield Interruption(f"{name}-meeting-with-nothing", alarm=alarm)
    yield Interruption(f"{name}-on-a-new-connection", new_connection=True, alarm=alarm)
    for fault in ("cut-body-then-close", "429"):
        yield Interruption(f"{name}-meeting-with-{fault}", FAULTS[fault], alarm=alarm)


INTERRUPTIONS: Final = (
    *_interruptions("ctrl-c", alarm=False),
    *_interruptions("alarm", alarm=True),
)
"""Those with ``alarm`` are for synchronous clients only."""


def check_interruption(
    interruption: Interruption,
    connect: Connect,
    *,
    ssl_context: ssl.SSLContext | None = None,
    limits: Sequence[Limit] = (),
) -> None:
    """Interrupt calls of a synchronous client. Run this in the main thread, which gets signals.

    The call must raise the exception of the signal handler unchanged, and have a true outcome. The
    client must send no request after that. A call after each interruption must succeed, and a
    hundred at the end. With ``ssl_context``, a server's context, the server speaks TLS.

    Raises:
        AssertionError: The client broke a promise. The message says which, what the server did
            and what it received.
        ValueError: This is not the main thread.
    """
    with _run_of(interruption, ssl_context, limits) as run:
        if run.limited:
            _interrupt_many_clients(run, connect)
        else:
            _interrupt_one_client(run, connect)
            run.verify_end()


def _interrupt_one_client(run: "_InterruptionRun", connect: Connect) -> None:
    with run.closing(connect(run.protocol)) as client:
        for call in run.calls():
            with run.recording():
                _interrupt(run, client, call)
            later_call = run.make_later_call()
            with run.recording_later_call():
                client.run(later_call)
            run.verify()
        for call in run.hundred_calls():
            client.run(call)


def _interrupt_many_clients(run: "_InterruptionRun", connect: Connect) -> None:
    """Interrupt each call on a client of its own. By `Limit.SIGNAL` the client may then fail."""
    for call in run.calls():
        with run.closing(connect(run.protocol)) as client:
            with run.recording():
                _interrupt(run, client, call)
            run.make_later_call()
            run.verify()


def _interrupt(run: "_InterruptionRun", client: CoreClient, call: Call[Any]) -> None:
    sys.setprofile(run.step)
    try:
        client.run(call)
    finally:
        sys.setprofile(None)


def check_interruption_on_asyncio(
    interruption: Interruption,
    connect: AsyncConnect,
    *,
    ssl_context: ssl.SSLContext | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Interrupt calls under `asyncio.Runner`, which turns Ctrl-C into a cancellation.

    See `check_interruption`. This function runs the event loop itself, so do not await it.
    """
    with _run_of(interruption, ssl_context) as run:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            manager = connect(run.protocol)
            client = runner.run(_coroutine(manager.__aenter__))
            try:
                _interrupt_on_asyncio(run, runner, client)
            finally:
                runner.run(_coroutine(manager.__aexit__, None, None, None))
            del manager, client
        run.verify_end()


def _interrupt_on_asyncio(
    run: "_InterruptionRun", runner: asyncio.Runner, client: AsyncCoreClient
) -> None:
    async def interrupt(call: Call[Any]) -> None:
        task = asyncio.current_task()
        # During the task's own step, asyncio delivers the cancellation only at its next step, and
        # there may be none.
        run.is_delivered = lambda: asyncio.current_task() is not task
        sys.setprofile(run.step)
        try:
            await client.run(call)
        finally:
            sys.setprofile(None)

    run.is_deferred = True
    for call in run.calls():
        with run.recording():
            runner.run(interrupt(call))
        later_call = run.make_later_call()
        with run.recording_later_call():
            runner.run(client.run(later_call))
        run.verify()
    for call in run.hundred_calls():
        runner.run(client.run(call))


async def _coroutine(function: Callable[..., Any], *arguments: Any) -> Any:
    return await function(*arguments)


def check_interruption_on_trio(
    interruption: Interruption,
    connect: AsyncConnect,
    *,
    ssl_context: ssl.SSLContext | None = None,
) -> None:
    """Interrupt calls in trio's main task. See `check_interruption`.

    This function runs the event loop itself, so do not await it.
    """
    import trio  # noqa: PLC0415 - only where it is needed

    async def main() -> None:
        async with connect(run.protocol) as client:

            async def interrupt(call: Call[Any]) -> None:
                sys.setprofile(run.step)
                try:
                    await client.run(call)
                finally:
                    sys.setprofile(None)

            for call in run.calls():
                with run.recording():
                    await interrupt(call)
                # trio raises a deferred KeyboardInterrupt at the next checkpoint, which may come
                # after the call.
                try:
                    await trio.lowlevel.checkpoint()
                except KeyboardInterrupt:
                    run.came_after_call = True
                later_call = run.make_later_call()
                with run.recording_later_call():
                    await client.run(later_call)
                run.verify()
            for call in run.hundred_calls():
                await client.run(call)

    with _run_of(interruption, ssl_context) as run:
        try:
            trio.run(main)
        except (trio.TrioInternalError, _Hung) as error:
            run.fail(f"the interruption ended trio's event loop: {error!r}")
        run.verify_end()


class _Hung(BaseException):
    """Raised in a call that does not end."""

    def __repr__(self) -> str:
        return "this check's timeout, as it did not return in time"


# Not SIGALRM: test runners use it for their timeouts.
_ALARM: Final = signal.SIGUSR1
_HUNG: Final = signal.SIGUSR2

_WAITING: Final = frozenset(
    {"acquire", "connect", "do_handshake", "poll", "read", "recv", "recv_into", "select"}
    | {"send", "sendall", "sleep", "write"}
)
"""The names of C functions that a signal can interrupt."""


def _is_place(
    frame: FrameType, event: str, function: Any
) -> bool:  # pragma: no cover - see `_InterruptionRun.step`
    """Return whether Python would run a signal handler here."""
    match event:
        case "c_return":
            # Python 3.14 runs handlers between a lock's __enter__ and the block of `with`. One that
            # raises there leaves any lock held, whatever a client does: python/cpython issue 148874.
            return bool(function.__name__ != "__enter__")
        case "c_call":
            return function.__name__ in _WAITING
        case "call":
            operation, argument = frame.f_code.co_code[frame.f_lasti : frame.f_lasti + 2]
            return operation != _RESUME or argument & 3 < 2  # not after ``await``
        case _:
            return False


_RESUME: Final = opcode.opmap["RESUME"]


def _place(
    frame: FrameType, event: str
) -> object:  # pragma: no cover - see `_InterruptionRun.step`
    """Return a place's identity: the instruction, and the calling function."""
    caller = frame.f_back
    return frame.f_code, frame.f_lasti, event, caller and caller.f_code


def _describe_place(
    frame: FrameType | None, event: str
) -> str:  # pragma: no cover - see `_InterruptionRun.step`
    """Return a place for the report."""
    callers: list[str] = []
    while frame is not None and len(callers) < 4:
        callers.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        frame = frame.f_back
    return f"{' < '.join(callers)} ({event})"


_GUARDED: Final = frozenset({"_draw", "_report", "_complain"})
"""The core's functions that log exceptions of the user's code and go on with the call."""


def _is_guarded(frame: FrameType | None) -> bool:  # pragma: no cover - see `_InterruptionRun.step`
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if frame.f_code.co_name in _GUARDED and name == "creduse_core.client":
            return True
        frame = frame.f_back
    return False


def _is_dropped(frame: FrameType | None) -> bool:  # pragma: no cover - see `_InterruptionRun.step`
    """Return whether Python would ignore an exception here, as in finalizers."""
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if frame.f_code.co_name == "__del__" or name in {"weakref", "_weakrefset"}:
            return True
        frame = frame.f_back
    return False


@contextmanager
def _run_of(
    interruption: Interruption,
    ssl_context: ssl.SSLContext | None,
    limits: Sequence[Limit] = (),
) -> Generator["_InterruptionRun", None, None]:
    with (
        warnings.catch_warnings(),
        SandboxServer(api_key=API_KEY, ssl_context=ssl_context) as server,
    ):
        # No client can close a socket that is interrupted before the client has stored it.
        warnings.simplefilter("ignore", ResourceWarning)
        run = _InterruptionRun(interruption, server, limited=Limit.SIGNAL in limits)
        with (
            # Shells start background processes with SIGINT ignored.
            _handler(signal.SIGINT, signal.default_int_handler),
            _handler(_ALARM, run.handle_alarm),
            _handler(_HUNG, run.handle_hung),
        ):
            yield run
        gc.collect()


@contextmanager
def _handler(number: signal.Signals, handle: Callable[..., object]) -> Generator[None, None, None]:
    usual = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, usual)


class _InterruptionRun:
    """One run: the calls that are interrupted, and the problems found."""

    def __init__(self, interruption: Interruption, server: SandboxServer, *, limited: bool) -> None:
        self.protocol: CreduseProtocol = make_protocol(server, LONG_TIMEOUT)
        self.limited = limited
        """Whether `Limit.SIGNAL` excuses problems."""
        self._patience = 2 * SHORT_TIMEOUT if limited else MAX_SECONDS
        self._armed = False
        self.came_after_call = False
        """Whether the event loop raised the interruption after the call."""
        self.is_delivered: Callable[[], bool] = lambda: True
        """Returns whether an interruption at this moment must end the call."""
        self.is_deferred = False
        """Whether the event loop defers interruptions. Then one place in each function is enough."""
        self._interruption = interruption
        self._server = server
        self._places: set[object] = set()
        self._where: str | None = None
        self._delivered = self._warm = False
        self._call: Call[Any]
        self._later_call: Call[Any]
        self._expected: BaseException = KeyboardInterrupt()
        self._caught: BaseException | None = None
        self._problems: list[str] = []
        self._excusable: list[str] = []
        self._before: tuple[LogEntry, ...] = ()

    def handle_alarm(self, *_: object) -> None:  # pragma: no cover - see `step`
        """Raise `TimeoutError`."""
        self._expected = TimeoutError("raised by a signal handler")
        raise self._expected

    @contextmanager
    def limiting_time(self) -> Generator[None, None, None]:
        """Raise `_Hung` in a ``with`` block that does not end in time."""
        thread = threading.get_ident()
        timer = threading.Timer(self._patience, signal.pthread_kill, (thread, _HUNG))
        timer.start()
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
            timer.cancel()
            timer.join()  # after this, the timer sends no signal

    def handle_hung(self, *_: object) -> None:
        """Raise `_Hung`, unless the ``with`` block has just ended."""
        if self._armed:
            raise _Hung

    @contextmanager
    def closing(
        self, manager: AbstractContextManager[CoreClient]
    ) -> Generator[CoreClient, None, None]:
        """Open a client, and close it after the ``with`` block, in limited time."""
        client = manager.__enter__()
        try:
            yield client
        except BaseException:
            with suppress(Exception, _Hung), self.limiting_time():
                manager.__exit__(None, None, None)
            raise
        try:
            with self.limiting_time():
                manager.__exit__(None, None, None)
        except _Hung as error:
            self._excusable.append(f"close() raised {error!r}")

    def calls(self) -> Iterator[Call[Any]]:
        """Yield calls to interrupt, until one finds no new place.

        The first call is not interrupted, so that its imports and caches do not count as places.
        """
        interruption, server = self._interruption, self._server
        self._warm = False
        while True:
            if interruption.new_connection:
                with server.refusing():
                    pass
            server.reset()
            if interruption.fault is not None:
                server.inject(interruption.fault)
            self._where, self._caught, self.came_after_call = None, None, False
            self._problems, self._excusable = [], []
            self._call = self.protocol.add(USER, AMOUNT, timeout=MAX_SECONDS)
            yield self._call
            if self._warm and self._where is None:
                return
            self._warm = True

    def step(self, frame: FrameType, event: str, function: Any) -> None:  # pragma: no cover - below
        """Raise the signal at the first new place, as the function of `sys.setprofile`.

        Python does not trace such a function, so coverage cannot be measured.
        """
        if not self._warm or not _is_place(frame, event, function):
            return
        place = frame.f_code if self.is_deferred else _place(frame, event)
        if place in self._places or _is_dropped(frame):
            return
        self._places.add(place)
        self._where = _describe_place(frame, event)
        guarded = self._interruption.alarm and _is_guarded(frame)
        self._delivered = self.is_delivered() and not guarded
        sys.setprofile(None)
        signal.raise_signal(_ALARM if self._interruption.alarm else signal.SIGINT)

    @contextmanager
    def recording(self) -> Generator[None, None, None]:
        """Record what an interrupted call raises."""
        collecting, disabled = gc.isenabled(), logging.root.manager.disable
        gc.disable()  # finalizers are not the call's code
        logging.disable()  # a record would keep the call's frames, with sockets that it has lost
        try:
            with self.limiting_time():
                yield
        # A group is wrong, too: ``except KeyboardInterrupt`` does not catch it.
        except (Exception, KeyboardInterrupt, BaseExceptionGroup, _Hung) as error:  # noqa: BLE001 - it is reported
            self._caught = error
        finally:
            logging.disable(disabled)
            if collecting:
                gc.enable()

    def make_later_call(self) -> Call[Any]:
        """Record the problems of the interrupted call, and return a call without a fault."""
        self._record_wrong_exception()
        self._caught = None
        self._server.settle()
        self._before = self._server.log
        self._problems += false_claims_when_abandoned(self._call, self._before)
        self._server.reset()
        self._later_call = self.protocol.add(USER, 1)
        return self._later_call

    def _record_wrong_exception(self) -> None:
        caught, expected = self._caught, self._expected
        is_ordinary = caught is None or isinstance(caught, CreduseError)
        if self._where is None:
            if caught is not None and not is_ordinary:
                raise caught
            return
        if caught is expected or (type(caught) is type(expected) is KeyboardInterrupt):
            return
        if is_ordinary and (self.came_after_call or not self._delivered):
            return
        end = "returned a result" if caught is None else f"raised {caught!r}"
        problem = f"{self._call} {end}, but must raise the {type(expected).__name__} of the signal"
        excusable = isinstance(caught, _Hung) or (is_ordinary and self._interruption.alarm)
        (self._excusable if excusable else self._problems).append(problem)

    @contextmanager
    def recording_later_call(self) -> Generator[None, None, None]:
        """Record how a later call fails."""
        try:
            with self.limiting_time():
                yield
        except (CreduseError, _Hung) as error:
            self._excusable.append(f"a later call, {self._later_call}, raised {error!r}")

    def verify(self) -> None:
        """Raise `AssertionError` with all problems of one interruption."""
        self._server.settle()
        known = {entry.number for entry in self._before}
        problems = [
            *self._problems,
            *(
                f"the client sent request {entry.number} after the call was interrupted"
                for entry in self._server.log
                if entry.number not in known and entry.body != self._later_call.request.body
            ),
        ]
        if self._excusable and not self.limited:
            if not problems:
                problems = [f"This is allowed with limits=[Limit.SIGNAL]: {Limit.SIGNAL.value}."]
            problems = [*self._excusable, *problems]
        if problems:
            self.fail(*problems)

    def hundred_calls(self) -> Iterator[Call[Any]]:
        """Yield a hundred calls, all of which must succeed."""
        self._server.reset()
        self._before = ()
        for _ in range(100):
            yield self.protocol.add(USER, 1)

    def verify_end(self) -> None:
        """Raise `AssertionError` with all problems after the client is closed."""
        # The tracebacks hold `step`, whose variables lead back to them. Only the garbage collector frees
        # such a cycle, and a connection in it stays open until then.
        gc.collect()
        for _ in waits_until_closed(self._server):
            self._server.settle()
        problems = [*self._excusable]
        if len(self._server.applied) != 100:
            applied = len(self._server.applied)
            problems.append(f"the server applied {applied} of a hundred later calls")
        problems += left_open(self._server)
        if problems:
            self.fail(*problems)

    def fail(self, *problems: str) -> None:
        """Raise `AssertionError` with these problems."""
        title, behavior = str(self._interruption), describe(self._interruption.fault)
        if self._where is not None:
            title += f", interrupted in {self._where}"
        raise AssertionError(report(title, behavior, problems, (*self._before, *self._server.log)))
