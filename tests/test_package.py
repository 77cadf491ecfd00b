"""The public names of the packages."""

import importlib
import importlib.metadata
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import creduse
import creduse_core
import creduse_core.errors
import creduse_core.models
from creduse import CreduseClient

PACKAGES = (
    "creduse",
    "creduse_aiohttp",
    "creduse_bulk",
    "creduse_core",
    "creduse_entry",
    "creduse_httpx",
    "creduse_pytest",
    "creduse_sandbox",
    "creduse_journal",
    "creduse_trio",
)


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names(name: str) -> None:
    """Each name in ``__all__`` exists, once, and the package is typed."""
    module = importlib.import_module(name)
    public = module.__all__
    assert len(public) == len(set(public))
    assert all(hasattr(module, word) for word in public)
    assert module.__file__ is not None
    assert Path(module.__file__).with_name("py.typed").is_file()


def test_errors_and_models_are_exported() -> None:
    """``creduse`` exports every result and every error of the core."""
    for module in (creduse_core.models, creduse_core.errors):
        for word, thing in vars(module).items():
            is_own = isinstance(thing, type) and thing.__module__ == module.__name__
            if is_own and not word.startswith("_"):
                assert getattr(creduse, word) is thing


def test_secret_is_exported() -> None:
    """A token in ``extra_headers`` needs ``Secret``, so a user need not know of the core."""
    assert creduse.Secret is creduse_core.Secret


def test_import_brings_in_no_sandbox() -> None:
    """Importing ``creduse`` does not import the sandbox or an event loop."""
    program = "import sys, creduse; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert not {"creduse_sandbox", "asyncio", "trio", "aiohttp"} & set(done.stdout.decode().split())


def test_entry_imports_little() -> None:
    """The command handles Ctrl-C before anything else of ours, or httpx, is imported."""
    program = "import sys, creduse_entry; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    modules = set(done.stdout.decode().split())
    assert not {"creduse", "creduse_core", "httpx", "argparse"} & modules


def test_version() -> None:
    """The version in the code is that of the installed distribution."""
    assert creduse.__version__ == importlib.metadata.version("creduse")


def test_a_client_shows_no_key() -> None:
    """A client's repr shows its URL and no key, and a client does not pickle."""
    client = CreduseClient("sk-secret-0123", base_url="https://api.creduse.com")
    assert repr(client) == "<CreduseClient https://api.creduse.com>"
    with pytest.raises(TypeError, match="holds the API key"):
        pickle.dumps(client)
