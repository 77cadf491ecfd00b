"""What is public, and that the floors of the house stand in their order."""

import ast
import importlib
import importlib.metadata
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import creduse
import creduse_core.errors
import creduse_core.models
from creduse import CreduseClient

PACKAGES = (
    "creduse",
    "creduse_aiohttp",
    "creduse_core",
    "creduse_httpx",
    "creduse_pytest",
    "creduse_sandbox",
    "creduse_trio",
)

# What each package may import of ours: arrows point one way.
FLOORS = {
    "creduse_aiohttp": {"creduse_aiohttp", "creduse_core"},
    "creduse_core": {"creduse_core"},
    "creduse_httpx": {"creduse_core", "creduse_httpx"},
    "creduse_pytest": {"creduse_sandbox"},
    "creduse_sandbox": {"creduse_core", "creduse_sandbox"},
    "creduse_trio": {"creduse_core", "creduse_trio"},
    "creduse": {"creduse", "creduse_core", "creduse_httpx", "creduse_sandbox"},
}


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names(name: str) -> None:
    """``__all__`` is sorted, each of its names exists, and the package is typed."""
    module = importlib.import_module(name)
    public = module.__all__
    assert len(public) == len(set(public))
    # As ruff sorts: constants, then classes, then the rest.
    rank = {word: (0 if word.isupper() else 1 if word[0].isupper() else 2, word) for word in public}
    assert public == sorted(public, key=rank.__getitem__)
    assert all(hasattr(module, word) for word in public)
    assert module.__file__ is not None
    assert Path(module.__file__).with_name("py.typed").is_file()


@pytest.mark.parametrize("name", PACKAGES)
def test_floors(name: str) -> None:
    """No package imports one that stands above it or beside it."""
    module = importlib.import_module(name)
    assert module.__file__ is not None
    for path in Path(module.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import():
                    imported = [alias.name for alias in node.names]
                case ast.ImportFrom(module=str(wanted), level=0):
                    imported = [wanted]
                case _:
                    continue
            ours = {word.split(".")[0] for word in imported if word.startswith("creduse")}
            assert ours <= FLOORS[name], path


def test_every_error_and_model_is_at_hand() -> None:
    """``creduse`` has every result and every error of the core."""
    for module in (creduse_core.models, creduse_core.errors):
        for word, thing in vars(module).items():
            if isinstance(thing, type) and thing.__module__ == module.__name__:
                assert getattr(creduse, word) is thing


def test_import_brings_in_no_sandbox() -> None:
    """Who imports ``creduse`` does not pay for the sandbox, or for an event loop not in use."""
    program = "import sys, creduse; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert not {"creduse_sandbox", "asyncio", "trio", "aiohttp"} & set(done.stdout.decode().split())


def test_version_is_the_distribution_s() -> None:
    """The version in the code is that of the installed distribution."""
    assert creduse.__version__ == importlib.metadata.version("creduse")


def test_a_client_shows_no_key() -> None:
    """A client's repr shows its URL and not its key, and a client does not pickle."""
    client = CreduseClient("sk-secret-0123", base_url="https://api.creduse.com")
    assert repr(client) == "<CreduseClient https://api.creduse.com>"
    with pytest.raises(TypeError, match="holds the API key"):
        pickle.dumps(client)
