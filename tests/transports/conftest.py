"""Fixtures of the tests that run over every client."""

import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import pytest
import trustme
from _pytest.mark import ParameterSet

from creduse_sandbox import SandboxServer
from tests.tls import server_context
from tests.transports.kinds import NARROW, OWN, SYNC, Async, Authority, Sync


def params(kinds: Sequence[Sync | Async]) -> list[ParameterSet]:
    return [pytest.param(kind, id=kind.name, marks=kind.marks) for kind in kinds]


@pytest.fixture(params=params(SYNC))
def sync_kind(request: pytest.FixtureRequest) -> Sync:
    kind: Sync = request.param
    return kind


@pytest.fixture(params=params([*OWN, *NARROW]))
def async_kind(request: pytest.FixtureRequest) -> Async:
    kind: Async = request.param
    return kind


@pytest.fixture(params=params(NARROW))
def narrow_kind(request: pytest.FixtureRequest) -> Async:
    """Return each asynchronous kind whose number of connections can be set."""
    kind: Async = request.param
    return kind


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    ours, others = trustme.CA(), trustme.CA()
    past = datetime(2001, 1, 1, tzinfo=UTC), datetime(2002, 1, 1, tzinfo=UTC)
    certificates = {
        "good": server_context(ours),
        "untrusted": server_context(others),
        "misnamed": server_context(ours, "other.invalid"),
        "expired": server_context(ours, not_before=past[0], not_after=past[1]),
    }
    file = tmp_path_factory.mktemp("authority") / "ca.pem"
    ours.cert_pem.write_to_path(str(file))
    return Authority(ssl.create_default_context(cafile=file), certificates, file)


@pytest.fixture(autouse=True)
def trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients that read the environment trust the authority."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer() as running:
        yield running
