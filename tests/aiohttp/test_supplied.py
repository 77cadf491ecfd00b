"""A supplied session of aiohttp: its settings, its connectors, and who closes it."""

import asyncio
import gc
import ssl
import warnings
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from creduse import InsufficientFundsError, InvalidResponseError, Outcome, TransportError
from creduse_aiohttp import AsyncCreduseClient
from creduse_sandbox import FAULTS, CannedResponse, SandboxServer
from tests.aiohttp.clients import Run
from tests.common import KEY, ONCE, RESPONSE, USER

COUNT = '{"end_user_id": "12345678-1234-5678-1234-567812345678", "amount": 10}'


def test_settings_of_the_session_are_ignored(run: Run, server: SandboxServer) -> None:
    """The settings of a supplied session change neither requests nor responses."""
    seen: list[object] = []

    async def middleware(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        seen.append(request)
        request.headers["X-Theirs"] = "1"
        await handler(request)
        return await handler(request)

    async def trace(*args: Any) -> None:
        seen.append(args)
        raise RuntimeError

    async def raise_for_status(response: aiohttp.ClientResponse) -> None:
        seen.append(response)
        response.raise_for_status()

    async def main() -> None:
        config = aiohttp.TraceConfig()
        config.on_request_start.append(trace)
        config.on_request_headers_sent.append(trace)
        config.on_request_end.append(trace)
        jar = aiohttp.CookieJar(unsafe=True)
        async with (
            aiohttp.ClientSession(
                "http://127.0.0.1:1/elsewhere/",
                headers={"Authorization": "Basic eA==", "X-Theirs": "1", "Accept": "text/html"},
                cookies={"theirs": "1"},
                cookie_jar=jar,
                skip_auto_headers=["User-Agent", "Content-Type", "Host"],
                json_serialize=lambda _: "theirs",
                version=aiohttp.HttpVersion10,
                raise_for_status=raise_for_status,
                auto_decompress=True,
                requote_redirect_url=False,
                timeout=aiohttp.ClientTimeout(total=1e-6),
                read_bufsize=1,
                max_line_size=1,
                max_field_size=1,
                trace_configs=[config],
                middlewares=[middleware],
            ) as session,
            AsyncCreduseClient(KEY, session, base_url=server.base_url) as client,
        ):
            server.inject(CannedResponse(429, (("Retry-After", "0"), ("Set-Cookie", "ours=1"))))
            await client.add(USER, 10)
            with pytest.raises(InsufficientFundsError):
                await client.subtract(USER, 11)
            server.inject(FAULTS["308"])
            with pytest.raises(InvalidResponseError):
                await client.add(USER, 10)
            server.inject(FAULTS["gzip"])
            with pytest.raises(InvalidResponseError, match="compressed"):
                await client.add(USER, 10)
            assert [cookie.key for cookie in jar] == ["theirs"]

    run(main)
    assert seen == []
    assert [entry.status for entry in server.log] == [429, 200, 402, 308, 200]
    for entry in server.log:
        names = [name for name, _ in entry.headers]
        assert sorted(names) == [
            "Accept",
            "Accept-Encoding",
            "Content-Length",
            "Content-Type",
            "Host",
            "User-Agent",
        ]
        assert ("Accept", "application/json") in entry.headers


def test_stays_open(run: Run, server: SandboxServer) -> None:
    """Closing our client leaves a supplied session open."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            for _ in range(2):
                async with AsyncCreduseClient(KEY, session, base_url=server.base_url) as client:
                    await client.add(USER, 10)
            assert not session.closed
            async with session.post(
                server.base_url + "/add", data=COUNT, headers={"Authorization": "Bearer x"}
            ) as response:
                assert response.status == 200

    run(main)
    assert [entry.connection for entry in server.log] == [1, 1, 1]


def test_closed_by_its_owner(run: Run, server: SandboxServer) -> None:
    """After the owner has closed the session, nothing is sent, and the error says why."""

    async def main() -> None:
        for uses in (0, 1):
            async with aiohttp.ClientSession() as session:
                client = AsyncCreduseClient(KEY, session, base_url=server.base_url)
                for _ in range(uses):
                    await client.add(USER, 10)
            with pytest.raises(TransportError, match="the session is closed") as caught:
                await client.add(USER, 10)
            assert caught.value.outcome is Outcome.NOT_APPLIED
            assert len(caught.value.attempts) == 1
            await client.aclose()

    run(main)
    assert len(server.log) == 1


def test_unclosed_client(run: Run, server: SandboxServer) -> None:
    """An unclosed client on a supplied session does not warn."""

    async def main() -> None:
        said: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        async with aiohttp.ClientSession() as session:
            client = AsyncCreduseClient(KEY, session, base_url=server.base_url)
            await client.add(USER, 10)
            with warnings.catch_warnings(action="error"):
                del client
                gc.collect()
            assert not session.closed
        assert said == []

    run(main)


def test_session_of_another_loop(server: SandboxServer) -> None:
    """A session of another event loop sends nothing, and the error says so."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:

            def in_a_thread() -> None:
                async def elsewhere() -> None:
                    client = AsyncCreduseClient(KEY, session, base_url=server.base_url)
                    with pytest.raises(
                        TransportError, match="session belongs to another"
                    ) as caught:
                        await client.add(USER, 1)
                    assert caught.value.outcome is Outcome.NOT_APPLIED
                    assert len(caught.value.attempts) == 1

                asyncio.run(elsewhere())

            await asyncio.to_thread(in_a_thread)

    asyncio.run(main())
    assert server.log == ()


def test_error_without_a_request(run: Run) -> None:
    """A mock's ``ClientResponseError`` can have no ``request_info``."""

    class Failing(aiohttp.TCPConnector):
        async def connect(self, *_: Any, **__: Any) -> Any:
            raise aiohttp.ClientResponseError(None, ())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # what is tested

    async def main() -> None:
        async with aiohttp.ClientSession(connector=Failing()) as session:
            client = AsyncCreduseClient(KEY, session, base_url="http://127.0.0.1:1", retry=ONCE)
            with pytest.raises(TransportError, match="ClientResponseError") as caught:
                await client.add(USER, 1)
            assert caught.value.outcome is Outcome.NOT_APPLIED

    run(main)


def test_not_a_session() -> None:
    """An object that is not a session is a TypeError that names the right class."""
    with pytest.raises(TypeError, match=r"must be an aiohttp\.ClientSession, not str"):
        AsyncCreduseClient(KEY, "https://api.creduse.com")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # what is tested


def test_auth_is_rejected(run: Run) -> None:
    """A session with ``auth=`` is rejected when the client is made."""

    async def main() -> None:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            session = aiohttp.ClientSession(auth=aiohttp.BasicAuth("somebody", "else"))
        async with session:
            with pytest.raises(ValueError, match="the session has auth="):
                AsyncCreduseClient(KEY, session)

    run(main)


def test_netrc_is_not_read(
    run: Run, server: SandboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login in netrc is not sent."""
    tmp_path.joinpath("netrc").write_text("default login somebody password else-0123456789\n")
    tmp_path.joinpath("netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    async def main() -> None:
        async with aiohttp.ClientSession(trust_env=True) as session:
            for given in (session, None):
                async with AsyncCreduseClient(KEY, given, base_url=server.base_url) as client:
                    await client.add(USER, 10)

    run(main)
    assert len(server.applied) == 2


def test_connector_of_another_kind(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session may have any connector, such as a Unix socket's."""
    monkeypatch.chdir(
        tmp_path
    )  # a Unix socket's path may be 107 bytes long, and pytest's are longer
    path = "socket"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(RESPONSE)
        await reader.read()
        writer.close()

    async def main() -> None:
        async with await asyncio.start_unix_server(serve, path):
            async with (
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session,
                AsyncCreduseClient(KEY, session, base_url="http://localhost") as client,
            ):
                assert (await client.add(USER, 5)).amount == 5
            await asyncio.sleep(0.05)

    run(main)


def test_tls_settings(run: Run, secure_server: SandboxServer, trust: ssl.SSLContext) -> None:
    """The TLS settings are those of the session's connector."""

    async def main() -> None:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session,
            AsyncCreduseClient(KEY, session, base_url=secure_server.base_url) as client,
        ):
            await client.add(USER, 5)

    run(main)
    assert len(secure_server.applied) == 1
