"""vcrpy records and replays our client's calls."""

from pathlib import Path

import pytest

from creduse import InsufficientFundsError, Outcome
from creduse_sandbox import SandboxServer
from tests.aiohttp.clients import Connect, Run

vcr = pytest.importorskip("vcr")

USER = "12345678-1234-5678-1234-567812345678"


def test_vcrpy(run: Run, connect: Connect, server: SandboxServer, tmp_path: Path) -> None:
    """The second run comes from the cassette, which has no key if the header is filtered."""
    cassette = tmp_path / "cassette.yaml"

    async def main() -> None:
        with vcr.use_cassette(
            str(cassette), filter_headers=["authorization"], match_on=["method", "uri", "body"]
        ) as playing:
            async with connect(server.base_url) as client:
                assert (await client.add(USER, 5)).amount == 5
                with pytest.raises(InsufficientFundsError) as caught:
                    await client.subtract(USER, 8)
                assert caught.value.outcome is Outcome.NOT_APPLIED
                assert (await client.get_balance(USER)).active_balance == 5
            played.append(playing.play_count)

    played: list[int] = []
    run(main)
    run(main)
    assert played == [0, 3]
    assert len(server.log) == 3
    assert "sk-test" not in cassette.read_text()
