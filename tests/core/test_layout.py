"""How the core is built: its imports, its exports and its docstrings."""

import ast
import inspect
import subprocess
import sys
import types
from pathlib import Path

import pytest

import creduse_core

FOLDER = Path(inspect.getfile(creduse_core)).parent
FILES = sorted(FOLDER.glob("*.py"))
# What opens sockets, runs programs, throws dice or is slow to load.
HEAVY = [
    "asyncio",
    "email",
    "http",
    "logging",
    "multiprocessing",
    "queue",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "urllib.request",
]
# The only modules with anything impure in them, and where they may be used.
IMPURE = {
    "os": {"environment", "tls"},
    "random": {"client"},
    "urllib.request": {"environment"},
    "logging": {"client"},
    "ssl": {"tls"},
    "threading": {"pace"},
    "time": {"client"},
}
PURE = {
    "binascii",
    "bisect",
    "collections",
    "contextlib",
    "dataclasses",
    "datetime",
    "enum",
    "errno",
    "functools",
    "heapq",
    "html",
    "html.entities",
    "inspect",
    "ipaddress",
    "itertools",
    "json",
    "math",
    "operator",
    "re",
    "sys",
    "traceback",
    "types",
    "typing",
    "urllib.parse",
    "uuid",
}


def imports(path: Path) -> list[str]:
    """Return the modules that a file imports, those of its own package with a leading dot."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            whole = source == "."  # from . import module
            found += [f".{alias.name}" for alias in node.names] if whole else [source]
    return found


def test_importing_is_light() -> None:
    """Importing the core brings in nothing that opens a socket, and nothing heavy."""
    code = f"""
import sys
before = set(sys.modules)
sys.path.insert(0, {str(FOLDER.parent)!r})
import creduse_core
new = set(sys.modules) - before
print(*sorted(new & set({HEAVY!r})))
print(*sorted(new & {{"creduse_core", "json"}}))
"""
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == ["", "creduse_core json"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_standard_library_alone(path: Path) -> None:
    """A module imports the pure part of the standard library, and impure parts only where allowed."""
    for name in imports(path):
        if name.startswith("."):
            continue
        pure = name in PURE or name.partition(".")[0] in PURE - {"html.entities", "urllib.parse"}
        assert pure or path.stem in IMPURE.get(name, set()), name
        assert name.partition(".")[0] in sys.stdlib_module_names


def test_exports() -> None:
    """``__all__`` lists everything that the package's file imports, and nothing else."""
    gathered = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse((FOLDER / "__init__.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(creduse_core.__all__) == sorted(gathered)
    assert all(hasattr(creduse_core, name) for name in creduse_core.__all__)


def test_nothing_public_is_left_out() -> None:
    """Every public name of the package is a module or is exported."""
    public = {
        name
        for name, value in vars(creduse_core).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(creduse_core.__all__) - {"__version__"}


DOCUMENTED = {
    name: value
    for name in creduse_core.__all__
    if isinstance(value := getattr(creduse_core, name), type | types.FunctionType)
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented(name: str) -> None:
    """Every exported class and function, and every method, has a docstring."""
    value = DOCUMENTED[name]
    own = value.__doc__ or f"{name}("  # as a dataclass writes for itself
    undocumented = [name] if own.startswith(f"{name}(") else []
    undocumented += [
        member
        for member, what in vars(value).items()
        if not member.startswith("_")
        and isinstance(what, types.FunctionType | property)
        and not inspect.getdoc(what)
    ]
    assert undocumented == []
