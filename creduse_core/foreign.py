"""Tell a transport's own exceptions from those of other code, such as a signal handler's.

Walk and clean chains and groups of exceptions. What an exception means for a call does not belong
here.
"""

import sys
from collections.abc import Container
from itertools import pairwise
from types import FrameType
from typing import Final


class ForeignError(BaseException):
    """Carries an exception that is not the transport's out of the transport's ``send``.

    A signal handler, such as a task runner's time limit, can raise at any line. The client then
    abandons the call and raises ``error`` itself. This class is not an `Exception`, so that no
    library catches it.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def is_foreign(error: BaseException, libraries: Container[str]) -> bool:
    """Return whether ``error`` comes from code other than ``libraries``.

    ``libraries`` are the top-level names of modules, such as ``"httpx"``. The module of the
    exception's class decides. For Python's own classes, the innermost frame outside the standard
    library decides, since libraries raise these classes, too.
    """
    defined_in = type(error).__module__.partition(".")[0]
    if defined_in in libraries:
        return False
    if defined_in not in sys.stdlib_module_names:
        return True
    raised_in = None  # an exception without a traceback was made to report something, not raised
    traceback = error.__traceback__
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__")).partition(".")[0]
        if module not in sys.stdlib_module_names:
            raised_in = module
        traceback = traceback.tb_next
    return raised_in is not None and raised_in not in libraries


def is_from_signal_handler(error: BaseException) -> bool:
    """Return whether a signal handler raised ``error``, in whatever code the signal arrived.

    Python calls a handler with the signal's number and the frame that it interrupts. Nothing else gets
    such arguments.
    """
    traceback = error.__traceback__
    while traceback is not None:
        given = _arguments_of(traceback.tb_frame)
        if any(isinstance(one, int) and isinstance(two, FrameType) for one, two in pairwise(given)):
            return True
        traceback = traceback.tb_next
    return False


def _arguments_of(frame: FrameType) -> list[object]:
    """Return the positional arguments of a function that has raised."""
    code, values = frame.f_code, frame.f_locals
    names = code.co_varnames
    given: list[object] = [values.get(name) for name in names[: code.co_argcount]]
    if code.co_flags & _TAKES_MORE:
        given += values.get(names[code.co_argcount + code.co_kwonlyargcount], ())
    return given


_TAKES_MORE: Final = 0x04  # inspect.CO_VARARGS, without the import of a large module


def exception_chain(error: BaseException, *, contexts: bool = True) -> list[BaseException]:
    """Return an exception, its causes and contexts, and the members of groups among them.

    Without ``contexts``, return only causes. Exceptions that a caller is handling now are left out:
    Python makes them contexts, but they have nothing to do with the error.
    """
    running = _running_frames() if contexts else set[object]()
    links: list[BaseException] = []
    found: list[BaseException | None] = [error]
    for link in found:
        if link is not None and not any(link is other for other in links):
            links.append(link)
            found += [link.__cause__, *getattr(link, "exceptions", ())]
            context = link.__context__ if contexts else None
            if context is not None and _caught_in(context) not in running:
                found.append(context)
    return links


def _caught_in(error: BaseException) -> object:
    return None if error.__traceback__ is None else error.__traceback__.tb_frame


def _running_frames() -> set[object]:
    """Return the frames of all callers. A caller is handling what it has caught."""
    # Imported here, since it loads many modules that only a failure needs.
    from inspect import currentframe  # noqa: PLC0415

    frames: set[object] = set()
    frame = currentframe()
    while frame is not None:
        frames.add(frame)
        frame = frame.f_back
    return frames


def forget_frames(error: BaseException) -> None:
    """Remove the tracebacks of an exception and its causes.

    A library's frames hold the request, and some tools print the variables of frames.
    """
    for link in exception_chain(error):
        link.with_traceback(None)  # not by assignment, which an exception's class can forbid


def forget_handled(error: BaseException) -> None:
    """Remove from the contexts of an exception what its callers are handling now."""
    links = exception_chain(error)
    for link in links:
        if not any(link.__context__ is other for other in links):
            object.__setattr__(link, "__context__", None)  # not by assignment, as above


def members(error: BaseException) -> list[BaseException]:
    """Return the exceptions in a group and its subgroups, or else the exception itself."""
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return [leaf for member in inner for leaf in members(member)] or [error]


def single_of_group(error: BaseException, cancelled: type[BaseException]) -> BaseException:
    """Return the exception to raise in place of one that can be a group. Callers expect no groups.

    A nursery, such as that of ``trio.open_tcp_stream``, can put a cancellation into a group. Return
    first what ends the program, then an instance of ``cancelled``. A group of errors only stays a
    group.
    """
    ends = [leaf for leaf in members(error) if not isinstance(leaf, Exception)]
    return min(ends, key=lambda leaf: isinstance(leaf, cancelled), default=error)
