"""Ctrl-C, and signal handlers that raise, at every place of the code that a call goes through.

Python runs a signal's handler where a function begins, where one of C's has returned, and within
those that wait. There a real signal is raised, in one call after the other, until a call meets
with no new place.
"""

import asyncio
import gc
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
    make_protocol,
    report,
    still_open,
    untrue_when_left,
)
from creduse_sandbox.conformance.scenarios import (
    AMOUNT,
    API_KEY,
    PLENTY,
    SOON,
    USER,
    WITHIN,
    Limit,
    in_words,
)
from creduse_sandbox.faults import FAULTS, Fault
from creduse_sandbox.server import SandboxServer

if TYPE_CHECKING:
    from creduse_sandbox.connection import LogEntry


@dataclass(frozen=True, slots=True)
class Interruption:
    """What a call meets with that is interrupted at each place of its code."""

    name: str
    fault: Fault | None = None
    new: bool = False
    """Each time on a connection that is yet to be made."""
    alarm: bool = False
    """Not by Ctrl-C, but by a signal's handler that raises a `TimeoutError`."""

    def __str__(self) -> str:
        return self.name


def _interruptions(name: str, *, alarm: bool) -> Iterator[Interruption]:
    yield Interruption(f"{name}-meeting-with-nothing", alarm=alarm)
    yield Interruption(f"{name}-on-a-new-connection", new=True, alarm=alarm)
    for fault in ("cut-body-then-close", "429"):
        yield Interruption(f"{name}-meeting-with-{fault}", FAULTS[fault], alarm=alarm)


INTERRUPTIONS: Final = (
    *_interruptions("ctrl-c", alarm=False),
    *_interruptions("alarm", alarm=True),
)
"""Those with ``alarm`` are for synchronous clients."""


def check_interruption(
    interruption: Interruption,
    connect: Connect,
    *,
    certificate: ssl.SSLContext | None = None,
    limits: Sequence[Limit] = (),
) -> None:
    """Interrupt calls of a synchronous client, from the main thread.

    What is raised must come out as it is. What the call says must be true; nothing may be first
    sent afterwards; each call after it succeeds, and so do a hundred at the end. With
    ``certificate``, a server's context, it is over TLS.

    Raises:
        AssertionError: A promise was not kept. It says which, and what the server saw.
        ValueError: This is not the main thread.
    """
    with _interrupting(interruption, certificate, limits) as interrupting:
        if interrupting.limited:
            _interrupt_clients(interrupting, connect)
        else:
            _interrupt_client(interrupting, connect)
            interrupting.judge_the_end()


def _interrupt_client(interrupting: "_Interrupting", connect: Connect) -> None:
    with interrupting.closing(connect(interrupting.protocol)) as client:
        for call in interrupting.calls():
            with interrupting.watching():
                _run(interrupting, client, call)
            after = interrupting.after()
            with interrupting.watching_after():
                client.run(after)
            interrupting.judge()
        for call in interrupting.hundred():
            client.run(call)


def _interrupt_clients(interrupting: "_Interrupting", connect: Connect) -> None:
    """Interrupt each call on a client of its own, which may be good for nothing afterwards."""
    for call in interrupting.calls():
        with interrupting.closing(connect(interrupting.protocol)) as client:
            with interrupting.watching():
                _run(interrupting, client, call)
            interrupting.after()
            interrupting.judge()


def _run(interrupting: "_Interrupting", client: CoreClient, call: Call[Any]) -> None:
    sys.setprofile(interrupting.step)
    try:
        client.run(call)
    finally:
        sys.setprofile(None)


def check_interruption_on_asyncio(
    interruption: Interruption,
    connect: AsyncConnect,
    *,
    certificate: ssl.SSLContext | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Interrupt calls under `asyncio.Runner`, which makes cancellations of Ctrl-C.

    As `check_interruption`. It is no coroutine function, as it runs the loop itself.
    """
    with _interrupting(interruption, certificate) as interrupting:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            manager = connect(interrupting.protocol)
            client = runner.run(_coroutine(manager.__aenter__))
            try:
                _interrupt_on_asyncio(interrupting, runner, client)
            finally:
                runner.run(_coroutine(manager.__aexit__, None, None, None))
            del manager, client
        interrupting.judge_the_end()


def _interrupt_on_asyncio(
    interrupting: "_Interrupting", runner: asyncio.Runner, client: AsyncCoreClient
) -> None:
    async def run(call: Call[Any]) -> None:
        task = asyncio.current_task()
        # In a step of its own, which may be its last, it is not told before the next one.
        interrupting.is_told = lambda: asyncio.current_task() is not task
        sys.setprofile(interrupting.step)
        try:
            await client.run(call)
        finally:
            sys.setprofile(None)

    interrupting.is_put_off = True
    for call in interrupting.calls():
        with interrupting.watching():
            runner.run(run(call))
        after = interrupting.after()
        with interrupting.watching_after():
            runner.run(client.run(after))
        interrupting.judge()
    for call in interrupting.hundred():
        runner.run(client.run(call))


async def _coroutine(function: Callable[..., Any], *arguments: Any) -> Any:
    return await function(*arguments)


def check_interruption_on_trio(
    interruption: Interruption,
    connect: AsyncConnect,
    *,
    certificate: ssl.SSLContext | None = None,
) -> None:
    """Interrupt calls in trio's main task, as `check_interruption`.

    It is no coroutine function, as it runs the loop itself.
    """
    import trio  # noqa: PLC0415 - only where it is asked for

    async def main() -> None:
        async with connect(interrupting.protocol) as client:

            async def run(call: Call[Any]) -> None:
                sys.setprofile(interrupting.step)
                try:
                    await client.run(call)
                finally:
                    sys.setprofile(None)

            for call in interrupting.calls():
                with interrupting.watching():
                    await run(call)
                # What trio has put off comes at the next checkpoint, which is not the call's then.
                try:
                    await trio.lowlevel.checkpoint()
                except KeyboardInterrupt:
                    interrupting.is_over = True
                after = interrupting.after()
                with interrupting.watching_after():
                    await client.run(after)
                interrupting.judge()
            for call in interrupting.hundred():
                await client.run(call)

    with _interrupting(interruption, certificate) as interrupting:
        try:
            trio.run(main)
        except (trio.TrioInternalError, _Hung) as error:
            interrupting.fail(f"it ended all of trio: {error!r}")
        interrupting.judge_the_end()


class _Hung(BaseException):
    """Raised in a call that does not end."""

    def __repr__(self) -> str:
        return "nothing in time"


# Not SIGALRM, by which test runners bound their tests.
_ALARM: Final = signal.SIGUSR1
_HUNG: Final = signal.SIGUSR2

_WAITING: Final = frozenset(
    {"acquire", "connect", "do_handshake", "poll", "read", "recv", "recv_into", "select"}
    | {"send", "sendall", "sleep", "write"}
)
"""Functions of C's that a signal can interrupt, by name."""


def _is_place(
    frame: FrameType, event: str, function: Any
) -> bool:  # pragma: no cover - see `_Interrupting.step`
    """Say whether Python would run a signal's handler here."""
    match event:
        case "c_return":
            return True
        case "c_call":
            return function.__name__ in _WAITING
        case "call":
            operation, argument = frame.f_code.co_code[frame.f_lasti : frame.f_lasti + 2]
            return operation != _RESUME or argument & 3 < 2  # after ``await`` it does not
        case _:
            return False


_RESUME: Final = opcode.opmap["RESUME"]


def _place(frame: FrameType, event: str) -> object:  # pragma: no cover - see `_Interrupting.step`
    """Return where this is: which instruction, and whose callee."""
    caller = frame.f_back
    return frame.f_code, frame.f_lasti, event, caller and caller.f_code


def _words(
    frame: FrameType | None, event: str
) -> str:  # pragma: no cover - see `_Interrupting.step`
    """Return where this is, in words."""
    callers: list[str] = []
    while frame is not None and len(callers) < 4:
        callers.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        frame = frame.f_back
    return f"{' < '.join(callers)} ({event})"


_GUARDED: Final = frozenset({"_draw", "_report", "_complain"})
"""Where the core runs foreign code, which must not change what becomes of a call, whatever it raises."""


def _is_guarded(frame: FrameType | None) -> bool:  # pragma: no cover - see `_Interrupting.step`
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if frame.f_code.co_name in _GUARDED and name == "creduse_core.client":
            return True
        frame = frame.f_back
    return False


def _is_deaf(frame: FrameType | None) -> bool:  # pragma: no cover - see `_Interrupting.step`
    """Say whether Python would drop what is raised here: in what it calls as an object goes."""
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if frame.f_code.co_name == "__del__" or name in {"weakref", "_weakrefset"}:
            return True
        frame = frame.f_back
    return False


@contextmanager
def _interrupting(
    interruption: Interruption,
    certificate: ssl.SSLContext | None,
    limits: Sequence[Limit] = (),
) -> Generator["_Interrupting", None, None]:
    with (
        warnings.catch_warnings(),
        SandboxServer(api_key=API_KEY, ssl_context=certificate) as server,
    ):
        # Between its making and its keeping, nobody can keep a socket from the collector.
        warnings.simplefilter("ignore", ResourceWarning)
        interrupting = _Interrupting(interruption, server, limited=Limit.SIGNAL in limits)
        with (
            # A shell has it ignored in what it runs in the background.
            _handler(signal.SIGINT, signal.default_int_handler),
            _handler(_ALARM, interrupting.handle_alarm),
            _handler(_HUNG, interrupting.handle_hung),
        ):
            yield interrupting
        gc.collect()


@contextmanager
def _handler(number: signal.Signals, handle: Callable[..., object]) -> Generator[None, None, None]:
    usual = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, usual)


class _Interrupting:
    """Calls that are interrupted, and what is to be said of them."""

    def __init__(self, interruption: Interruption, server: SandboxServer, *, limited: bool) -> None:
        self.protocol: CreduseProtocol = make_protocol(server, PLENTY)
        self.limited = limited
        """`Limit.SIGNAL` is stated."""
        self._seconds = 2 * SOON if limited else WITHIN
        self._armed = False
        self.is_over = False
        """What was raised has come out."""
        self.is_told: Callable[[], bool] = lambda: True
        """Whether the call is to hear of an interruption that comes now."""
        self.is_put_off = False
        """Nothing is raised where the signal comes, so one place of each function will do."""
        self._interruption = interruption
        self._server = server
        self._places: set[object] = set()
        self._where: str | None = None
        self._told = self._warm = False
        self._call: Call[Any]
        self._after: Call[Any]
        self._raised: BaseException = KeyboardInterrupt()
        self._came: BaseException | None = None
        self._problems: list[str] = []
        self._excusable: list[str] = []
        self._before: tuple[LogEntry, ...] = ()

    def handle_alarm(self, *_: object) -> None:  # pragma: no cover - see `step`
        """Handle the alarm."""
        self._raised = TimeoutError("raised by a signal's handler")
        raise self._raised

    @contextmanager
    def patience(self) -> Generator[None, None, None]:
        """End what is done here where it does not end by itself."""
        thread = threading.get_ident()
        timer = threading.Timer(self._seconds, signal.pthread_kill, (thread, _HUNG))
        timer.start()
        self._armed = True
        try:
            yield
        finally:
            self._armed = False
            timer.cancel()
            timer.join()  # no signal comes later

    def handle_hung(self, *_: object) -> None:
        """Raise what ends a call that does not end by itself."""
        if self._armed:
            raise _Hung

    @contextmanager
    def closing(
        self, manager: AbstractContextManager[CoreClient]
    ) -> Generator[CoreClient, None, None]:
        """Open a client and close it, and do not wait for that without end."""
        client = manager.__enter__()
        try:
            yield client
        except BaseException:
            with suppress(Exception, _Hung), self.patience():
                manager.__exit__(None, None, None)
            raise
        try:
            with self.patience():
                manager.__exit__(None, None, None)
        except _Hung as error:
            self._excusable.append(f"to close the client: {error!r}")

    def calls(self) -> Iterator[Call[Any]]:
        """Return calls to be interrupted, until one has met with no new place.

        Not the first: what it loads and compiles is then there.
        """
        interruption, server = self._interruption, self._server
        self._warm = False
        while True:
            if interruption.new:
                with server.refusing():
                    pass
            server.reset()
            if interruption.fault is not None:
                server.inject(interruption.fault)
            self._where, self._came, self.is_over = None, None, False
            self._problems, self._excusable = [], []
            self._call = self.protocol.add(USER, AMOUNT, timeout=WITHIN)
            yield self._call
            if self._warm and self._where is None:
                return
            self._warm = True

    def step(self, frame: FrameType, event: str, function: Any) -> None:  # pragma: no cover - below
        """Raise the signal at the first place that is new, as `sys.setprofile`'s function.

        Python traces nothing that such a function does, so nothing measures its coverage.
        """
        if not self._warm or not _is_place(frame, event, function):
            return
        place = frame.f_code if self.is_put_off else _place(frame, event)
        if place in self._places or _is_deaf(frame):
            return
        self._places.add(place)
        self._where = _words(frame, event)
        self._told = self.is_told() and not (self._interruption.alarm and _is_guarded(frame))
        sys.setprofile(None)
        signal.raise_signal(_ALARM if self._interruption.alarm else signal.SIGINT)

    @contextmanager
    def watching(self) -> Generator[None, None, None]:
        """Judge what comes out of a call that is interrupted."""
        collecting = gc.isenabled()
        gc.disable()  # nothing of it is the call's
        try:
            with self.patience():
                yield
        # A group is no KeyboardInterrupt to who waits for one.
        except (Exception, KeyboardInterrupt, BaseExceptionGroup, _Hung) as error:  # noqa: BLE001 - it is judged
            self._came = error
        finally:
            if collecting:
                gc.enable()

    def after(self) -> Call[Any]:
        """Say what is wrong with the call, and return one that nothing stands in the way of."""
        self._judge_what_came()
        self._came = None
        self._server.settle()
        self._before = self._server.log
        self._problems += untrue_when_left(self._call, self._before)
        self._server.reset()
        self._after = self.protocol.add(USER, 1)
        return self._after

    def _judge_what_came(self) -> None:
        came, wanted = self._came, self._raised
        own = came is None or isinstance(came, CreduseError)
        if self._where is None:
            if came is not None and not own:
                raise came
            return
        if came is wanted or (type(came) is type(wanted) is KeyboardInterrupt):
            return
        if own and (self.is_over or not self._told):
            return
        what = "a result" if came is None else repr(came)
        problem = (
            f"{self._call} ended in {what}, not in the {type(wanted).__name__} that was raised"
        )
        excusable = isinstance(came, _Hung) or (own and self._interruption.alarm)
        (self._excusable if excusable else self._problems).append(problem)

    @contextmanager
    def watching_after(self) -> Generator[None, None, None]:
        """Judge what comes out of a call that nothing stands in the way of."""
        try:
            with self.patience():
                yield
        except (CreduseError, _Hung) as error:
            self._excusable.append(f"{self._after}, a call afterwards, raised {error!r}")

    def judge(self) -> None:
        """Say all that is wrong with one interruption."""
        self._server.settle()
        known = {entry.number for entry in self._before}
        problems = [
            *self._problems,
            *(
                f"request {entry.number} was first sent after its caller was interrupted"
                for entry in self._server.log
                if entry.number not in known and entry.body != self._after.request.body
            ),
        ]
        if self._excusable and not self.limited:
            if not problems:
                problems = [f"This is allowed with limits=[Limit.SIGNAL]: {Limit.SIGNAL.value}."]
            problems = [*self._excusable, *problems]
        if problems:
            self.fail(*problems)

    def hundred(self) -> Iterator[Call[Any]]:
        """Return a hundred calls, all of which must succeed."""
        self._server.reset()
        self._before = ()
        for _ in range(100):
            yield self.protocol.add(USER, 1)

    def judge_the_end(self) -> None:
        """Say what is wrong when the client is closed."""
        for _ in still_open(self._server):
            self._server.settle()
        problems = [*self._excusable]
        if len(self._server.applied) != 100:
            applied = len(self._server.applied)
            problems.append(f"of a hundred calls afterwards, {applied} were applied")
        if self._server.connections:
            problems.append(f"{self._server.connections} connections are left open")
        if problems:
            self.fail(*problems)

    def fail(self, *problems: str) -> None:
        """Raise that this is wrong."""
        title, words = str(self._interruption), in_words(self._interruption.fault)
        if self._where is not None:
            title += f", interrupted in {self._where}"
        raise AssertionError(report(title, words, problems, (*self._before, *self._server.log)))
