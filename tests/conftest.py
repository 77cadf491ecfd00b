"""Fixtures of all tests."""

import gc
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import quote
from uuid import uuid4

import pytest

from tests.postgres import URL_VARIABLE, Cluster, find_programs


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """Enable SIGINT here and in subprocesses: a shell disables it for background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def usual_subprocesses() -> None:
    """Start subprocesses outside Python's development mode, in which asyncio prints what is slow."""
    os.environ.pop("PYTHONDEVMODE", None)


@pytest.fixture
def leaks() -> Iterator[None]:
    """Ignore sockets that the test leaks, and collect them before the next test begins."""
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        yield
        gc.collect()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server. Others may use it, too."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with ExitStack() as stack:
        url = os.environ.get(URL_VARIABLE)
        if not url:
            if find_programs() is None:
                pytest.skip("PostgreSQL is not installed")
            url = stack.enter_context(Cluster()).url
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of a new and empty schema of PostgreSQL."""
    import psycopg  # noqa: PLC0415 - only where it is installed

    schema = f"test_{uuid4().hex}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
    yield f"{postgres_server}?options={quote(f'-csearch_path={schema}')}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())
