"""Build the API reference from the docstrings of all names in ``__all__``.

This module also resolves names: those of our packages, those of other libraries, and code in pages.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from enum import Enum
from types import FunctionType
from typing import Final, TypeAlias

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

MODULES: Final = (
    "creduse",
    "creduse_core",
    "creduse_httpx",
    "creduse_aiohttp",
    "creduse_trio",
    "creduse_sandbox",
    "creduse_sandbox.conformance",
)
"""The modules with public names. A name in several of them is documented in the first."""

# Where other libraries document the names that our docstrings and annotations use. Inventories
# would need a download for each build, and httpx has none.
_PYTHON: Final = "https://docs.python.org/3/library"
_AIOHTTP: Final = "https://docs.aiohttp.org/en/stable"
_TRIO: Final = "https://trio.readthedocs.io/en/stable/reference-io.html"
_HTTPX: Final = "https://www.python-httpx.org/api"
_PAGES: Final = {
    f"{_PYTHON}/collections.abc.html#collections.abc.": (
        "collections.abc",
        "Awaitable Callable Container Iterable Mapping Sequence Generator",
    ),
    f"{_PYTHON}/asyncio-runner.html#asyncio.": ("asyncio", "Runner"),
    f"{_PYTHON}/asyncio-eventloop.html#asyncio.": ("asyncio", "AbstractEventLoop"),
    f"{_PYTHON}/contextlib.html#contextlib.": (
        "contextlib",
        "AbstractContextManager AbstractAsyncContextManager",
    ),
    f"{_PYTHON}/datetime.html#datetime.": ("datetime", "datetime"),
    f"{_PYTHON}/ssl.html#ssl.": ("ssl", "SSLContext"),
    f"{_PYTHON}/types.html#types.": ("types", "TracebackType"),
    f"{_PYTHON}/uuid.html#uuid.": ("uuid", "UUID"),
    f"{_PYTHON}/exceptions.html#": ("", "ExceptionGroup OSError RuntimeError ValueError"),
    f"{_AIOHTTP}/client_reference.html#aiohttp.": ("aiohttp", "ClientSession"),
    f"{_AIOHTTP}/web_reference.html#aiohttp.web.": ("aiohttp.web", "AppKey Application"),
    f"{_TRIO}#trio.": ("trio", "open_tcp_stream"),
    f"{_TRIO}#trio.abc.": ("trio.abc", "Stream"),
}
_LINKS: Final = {
    f"{module}.{name}".strip("."): f"{page}{name}"
    for page, (module, names) in _PAGES.items()
    for name in names.split()
} | {
    "httpx.Client": f"{_HTTPX}/#client",
    "httpx.AsyncClient": f"{_HTTPX}/#asyncclient",
}
_ALSO: Final = {  # other names of the same objects
    "aiohttp.client.ClientSession": "aiohttp.ClientSession",
    "aiohttp.helpers.AppKey": "aiohttp.web.AppKey",
    "aiohttp.web_app.Application": "aiohttp.web.Application",
    "asyncio.events.AbstractEventLoop": "asyncio.AbstractEventLoop",
    "creduse_httpx._clients.AsyncHTTPXClient": "httpx.AsyncClient",
    "creduse_httpx._clients.HTTPXClient": "httpx.Client",
    "datetime": "datetime.datetime",
    "web.AppKey": "aiohttp.web.AppKey",
}


def _is_client(value: object) -> bool:
    return isinstance(value, type) and value.__name__.endswith("Client")


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def _is_enum(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Enum)


def _is_data(value: object) -> bool:
    return isinstance(value, type) and is_dataclass(value)


def _is_plain(value: object) -> bool:
    return isinstance(value, type) and not any(
        told(value) for told in (_is_client, _is_error, _is_enum, _is_data)
    )


def _is_function(value: object) -> bool:
    return isinstance(value, FunctionType)


def _is_other(value: object) -> bool:
    return not isinstance(value, type | FunctionType)


_Part: TypeAlias = tuple[str, Callable[[object], bool], str, tuple[str, ...]]

# The sections of a page: a title, which names belong there, the directive and its options.
_PARTS: Final[tuple[_Part, ...]] = (
    ("Clients", _is_client, "autoclass", ("members", "inherited-members")),
    ("Classes", _is_plain, "autoclass", ("members",)),
    ("Functions", _is_function, "autofunction", ()),
    ("Data", _is_data, "autoclass", ("members", "undoc-members")),
    ("Choices", _is_enum, "autoclass", ("members", "undoc-members")),
    ("Errors", _is_error, "autoexception", ("members", "show-inheritance")),
    ("Constants and types", _is_other, "py:data", ()),
)


def _told_of(module: str) -> dict[str, str]:
    """Return the public names of a module, each with the module whose page documents it."""
    places: dict[str, str] = {}
    for name in importlib.import_module(module).__all__:
        if name == "__version__":
            continue
        value = getattr(importlib.import_module(module), name)
        places[name] = next(
            first
            for first in MODULES
            if getattr(importlib.import_module(first), name, None) is value
        )
    return places


class Api(SphinxDirective):
    """``.. api:: module`` documents all public names of the module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write the directives of autodoc."""
        (module,) = self.arguments
        return self.parse_text_to_nodes("\n".join(self._lines(module)), allow_section_headings=True)

    def _lines(self, module: str) -> Iterator[str]:
        places = _told_of(module)
        yield from (f".. automodule:: {module}", "   :no-members:", "")
        for other in MODULES:
            there = [name for name, place in places.items() if place == other != module]
            if there:
                names = ", ".join(f"`{other}.{name}`" for name in there)
                yield from (f"The same objects as in `{other}`: {names}.", "")
        ours = {
            name: getattr(importlib.import_module(module), name)
            for name, place in places.items()
            if place == module
        }
        for title, belongs, directive, options in _PARTS:
            part = [name for name, value in ours.items() if belongs(value)]
            if part:
                yield from (title, "-" * len(title), "")
            for name in part:
                yield f".. {directive}:: {name}"
                yield from (f"   :{option}:" for option in options)
                yield ""
                if directive == "py:data":  # autodoc would show the whole table
                    yield from (f"   {line}" for line in _doc(module, name))


def _doc(module: str, name: str) -> list[str]:
    """Return the docstring below a constant, from whichever module of the package has it."""
    for name_of_module in sorted(sys.modules):
        if not f"{name_of_module}.".startswith(f"{module}."):
            continue
        docs = ModuleAnalyzer.for_module(name_of_module).find_attr_docs()
        if ("", name) in docs:
            return docs["", name]
    return []


def _mark(
    _app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Mark indented examples in docstrings as code."""
    marked: list[str] = []
    in_code = False
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith(" ") and not before and not in_code:
            in_code = True
            marked += ["::", ""]
        elif line and not line.startswith(" "):
            in_code = False
        marked.append(line)
    lines[:] = marked


def _no_signature(
    _app: Sphinx, _what: str, _name: str, value: object, _options: object, *_: str | None
) -> tuple[str, str] | None:
    """Show no signature for an enum or a protocol, because users do not call them."""
    return ("", "") if _is_enum(value) or getattr(value, "_is_protocol", False) else None


def _look_up(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Resolve a name of ours that is in another package, or a name of another library."""
    target = node.get("reftarget", "")
    if url := _LINKS.get(_ALSO.get(target, target)):
        return nodes.reference("", "", content, internal=False, refuri=url)
    if node.get("refdomain") != "py":
        return None
    # The defining module is private: creduse_core.models.Attempt is creduse.Attempt.
    defined_in = max((it for it in sys.modules if target.startswith(f"{it}.")), key=len, default="")
    wanted = target.removeprefix(f"{defined_in}.")
    objects = env.domains.python_domain.objects
    for module in MODULES:
        name = f"{module}.{wanted}"
        if name in objects:
            found = objects[name]
            return make_refnode(
                app.builder, node["refdoc"], found.docname, found.node_id, content, name
            )
    return None


def _link_names(app: Sphinx, doctree: nodes.document) -> None:
    """Link code in a page to the reference if it is a public name of ours."""
    docname = app.env.docname
    if docname.startswith("api/"):
        return
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removesuffix("()")
        if name in _names() and not isinstance(literal.parent, nodes.reference | nodes.title):
            link = pending_xref(
                "", refdomain="py", reftype="obj", reftarget=name, refdoc=docname, refexplicit=False
            )
            literal.replace_self(link)
            link += literal


def _names() -> frozenset[str]:
    plain = {"setup", "check", "serve"}  # also plain words
    return frozenset(
        word
        for module in MODULES
        for name in importlib.import_module(module).__all__
        for word in ({f"{module}.{name}", name} - plain)
        if name != "__version__"
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive and the handlers with Sphinx."""
    app.add_directive("api", Api)
    app.connect("autodoc-process-docstring", _mark)
    app.connect("autodoc-process-signature", _no_signature)
    app.connect("missing-reference", _look_up)
    app.connect("doctree-read", _link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
