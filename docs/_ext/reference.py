"""Build the API reference from the docstrings of all names in ``__all__``.

This module also resolves names: those of our packages, those of other libraries, and code in pages.
"""

import builtins
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import EnumType
from importlib import import_module
from types import FunctionType
from typing import Final

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
    "creduse_journal",
    "creduse_bulk",
    "creduse_sandbox",
    "creduse_sandbox.conformance",
)
"""The modules with public names. A name in several of them is documented in the first."""

_PUBLIC: Final[dict[str, dict[str, object]]] = {
    module: {
        name: getattr(import_module(module), name)
        for name in import_module(module).__all__
        if name != "__version__"
    }
    for module in MODULES
}
# The names to link in pages, except those that are also plain words.
_IN_PAGES: Final = {
    word
    for module, names in _PUBLIC.items()
    for name in names
    for word in (name, f"{module}.{name}")
} - {"setup", "check", "serve"}

# Where other libraries document the names that our docstrings and annotations use. Inventories
# would need a download for each build, and httpx has none.
_PYTHON: Final = "https://docs.python.org/3/library"
_AIOHTTP: Final = "https://docs.aiohttp.org/en/stable"
_TRIO: Final = "https://trio.readthedocs.io/en/stable/reference-io.html"
_HTTPX: Final = "https://www.python-httpx.org/api"
_LINKS: Final = {
    **{
        f"{module}.{name}": f"{_PYTHON}/{module}.html#{module}.{name}"
        for module in ("collections.abc", "contextlib", "datetime", "ssl", "types", "uuid")
        for name in dir(import_module(module))
    },
    **{
        name: f"{_PYTHON}/exceptions.html#{name}"
        for name, value in vars(builtins).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    },
    "asyncio.AbstractEventLoop": f"{_PYTHON}/asyncio-eventloop.html#asyncio.AbstractEventLoop",
    "asyncio.Runner": f"{_PYTHON}/asyncio-runner.html#asyncio.Runner",
    "aiohttp.ClientSession": f"{_AIOHTTP}/client_reference.html#aiohttp.ClientSession",
    "aiohttp.web.AppKey": f"{_AIOHTTP}/web_reference.html#aiohttp.web.AppKey",
    "aiohttp.web.Application": f"{_AIOHTTP}/web_reference.html#aiohttp.web.Application",
    "httpx.AsyncClient": f"{_HTTPX}/#asyncclient",
    "httpx.Client": f"{_HTTPX}/#client",
    "os.PathLike": f"{_PYTHON}/os.html#os.PathLike",
    "trio.abc.Stream": f"{_TRIO}#trio.abc.Stream",
    "trio.open_tcp_stream": f"{_TRIO}#trio.open_tcp_stream",
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

# The sections of a page, each with the directive for its names and the options.
_SECTIONS: Final = {
    "Clients": ("autoclass", "members", "inherited-members"),
    "Classes": ("autoclass", "members"),
    "Functions": ("autofunction",),
    "Data": ("autoclass", "members", "undoc-members"),
    "Choices": ("autoclass", "members", "undoc-members"),
    "Errors": ("autoexception", "members", "show-inheritance"),
    "Constants and types": ("py:data",),
}


def _section(name: str, value: object) -> str:
    if isinstance(value, FunctionType):
        return "Functions"
    if not isinstance(value, type):
        return "Constants and types"
    if is_dataclass(value):
        return "Data"
    if issubclass(value, Exception):
        return "Errors"
    if isinstance(value, EnumType):
        return "Choices"
    return "Clients" if name.endswith("Client") else "Classes"


class Api(SphinxDirective):
    """``.. api:: module`` documents all public names of the module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write the directives of autodoc."""
        (module,) = self.arguments
        return self.parse_text_to_nodes("\n".join(_lines(module)), allow_section_headings=True)


def _lines(module: str) -> Iterator[str]:
    yield from (f".. automodule:: {module}", "   :no-members:", "")
    ours = dict(_PUBLIC[module])
    for other in MODULES[: MODULES.index(module)]:
        there = [name for name in ours if _PUBLIC[other].get(name) is ours[name]]
        if there:
            names = ", ".join(f"`{other}.{name}`" for name in there)
            yield from (f"The same objects as in `{other}`: {names}.", "")
        for name in there:
            del ours[name]
    for title, (directive, *options) in _SECTIONS.items():
        part = [name for name, value in ours.items() if _section(name, value) == title]
        if part:
            yield from (title, "-" * len(title), "")
        for name in part:
            yield f".. {directive}:: {name}"
            yield from (f"   :{option}:" for option in options)
            yield ""
            if directive == "py:data":  # `autodata` misses a docstring in another module
                yield from (f"   {line}" for line in _doc(module, name))


def _doc(module: str, name: str) -> list[str]:
    """Return the docstring below a constant, from whichever module of the package has it."""
    for place in sorted(sys.modules):
        if f"{place}.".startswith(f"{module}."):
            docs = ModuleAnalyzer.for_module(place).find_attr_docs()
            if ("", name) in docs:
                return docs["", name]
    return []


def _no_signature(
    _app: Sphinx, _what: str, _name: str, value: object, _options: object, *_: str | None
) -> tuple[str, str] | None:
    """Show no signature for an enum or a protocol, because users do not call them."""
    is_not_called = isinstance(value, EnumType) or getattr(value, "_is_protocol", False)
    return ("", "") if is_not_called else None


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
        if name in _IN_PAGES and not isinstance(literal.parent, nodes.reference | nodes.title):
            link = pending_xref(
                "", refdomain="py", reftype="obj", reftarget=name, refdoc=docname, refexplicit=False
            )
            literal.replace_self(link)
            link += literal


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive and the handlers with Sphinx."""
    app.add_directive("api", Api)
    app.connect("autodoc-process-signature", _no_signature)
    app.connect("missing-reference", _look_up)
    app.connect("doctree-read", _link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
