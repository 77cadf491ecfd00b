"""nginx in front of the sandbox: TLS, and idle connections that it closes as a call begins."""

import random
import shutil
import ssl
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from creduse_core import Call, CreduseError, Outcome
from creduse_sandbox import SandboxServer
from creduse_trio import AsyncCreduseClient
from tests.common import KEY, USER, free_port, listens, wait_until
from tests.tls import client_context

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
TASKS, CALLS = 100, 10
KEEPALIVE = 2.0
"""Seconds that nginx keeps an idle connection. Ours are kept for far less or more: a machine that
runs tests can be so busy that a response is read a second after nginx has sent it."""

CONFIGURATION = """
daemon off; master_process off; worker_processes 1;
pid {folder}/pid; error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
    keepalive_timeout {keepalive}ms;
    location / {{ proxy_pass {upstream}; }}
  }}
}}
"""


@contextmanager
def nginx(upstream: SandboxServer, tmp_path: Path) -> Generator[tuple[str, ssl.SSLContext]]:
    """Run nginx in front of a sandbox, and return its URL and a context that trusts it."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    port = free_port()
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(
            folder=tmp_path,
            port=port,
            keepalive=int(KEEPALIVE * 1000),
            upstream=upstream.base_url,
        )
    )
    process = subprocess.Popen(
        [NGINX, "-p", str(tmp_path), "-e", str(tmp_path / "error.log"), "-c", str(configuration)]
    )
    try:
        wait_until(lambda: process.poll() is not None or listens(port))
        yield f"https://127.0.0.1:{port}", client_context(authority)
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)  # a thousand handshakes, on a machine that has other things to do
@pytest.mark.parametrize("idle_timeout", [KEEPALIVE / 8, 3 * KEEPALIVE], ids=["less", "more"])
def test_thousand_calls(idle_timeout: float, tmp_path: Path) -> None:
    """Calls with pauses about as long as nginx's keep-alive: none is applied twice or has a wrong outcome.

    If ``idle_timeout`` is less than nginx's, no call fails.
    """
    dice = random.Random(1)  # noqa: S311 - nothing is secret here
    calls: list[Call[Any]] = []
    failures: list[CreduseError] = []

    async def use(client: AsyncCreduseClient, first: int) -> None:
        for number in range(first, first + CALLS):
            call = client.protocol.add(USER, 1000 + number)
            calls.append(call)
            try:
                await client.run(call)
            except CreduseError as error:
                failures.append(error)
            await trio.sleep(dice.uniform(0.8, 1.2) * KEEPALIVE)

    async def main() -> None:
        async with (
            AsyncCreduseClient(KEY, trust, base_url=url, idle_timeout=idle_timeout) as client,
            trio.open_nursery() as nursery,
        ):
            for task in range(TASKS):
                nursery.start_soon(use, client, task * CALLS)

    with SandboxServer() as upstream:
        with nginx(upstream, tmp_path) as (url, trust):
            trio.run(main)
        upstream.settle()
    assert len(calls) == TASKS * CALLS
    for call in calls:
        entries = [entry for entry in upstream.log if entry.body == call.request.body]
        applied = sum(entry.applied for entry in entries)
        assert applied <= 1
        assert call.outcome is not Outcome.APPLIED or applied == 1
        assert call.outcome is not Outcome.NOT_APPLIED or entries == []
    if idle_timeout < KEEPALIVE:
        assert failures == []
