"""The page on notebooks: its cells in a real kernel."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from creduse_sandbox import FAULTS, SandboxServer
from tests.common import wait_until

pytestmark = [
    pytest.mark.slow,
    # Of the kernel's own sockets.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]

manager = pytest.importorskip("jupyter_client.manager", reason="ipykernel is in nox -s docs")
pytest.importorskip("ipykernel", reason="ipykernel is in nox -s docs")

PAGE = Path(__file__).parents[1] / "docs" / "notebooks.md"
CELLS = re.findall(
    r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
KEY = 'getpass("API key: ")'


class Kernel:
    """A kernel, and the service."""

    def __init__(self, server: SandboxServer) -> None:
        self.server = server
        environment = os.environ | {
            "CREDUSE_BASE_URL": server.base_url,
            "IPYTHONDIR": os.environ.get("TMPDIR", "/tmp"),  # noqa: S108 - it keeps nothing there
        }
        self.manager: Any
        self.client: Any
        self.manager, self.client = manager.start_new_kernel(kernel_name="python3", env=environment)

    def start(self, cell: str) -> str:
        """Begin to run a cell, and return its id."""
        return str(self.client.execute(cell.replace(KEY, '"any"')))

    def run(self, cell: str) -> dict[str, Any]:
        """Run a cell, and return what it shows."""
        return self.shown(self.start(cell))

    def shown(self, of: str) -> dict[str, Any]:
        """Wait until a cell has ended, and return what it shows: by MIME type, or as an error."""
        shown: dict[str, Any] = {}
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != of:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "execute_result":
                shown |= content["data"]
            elif kind == "error":
                shown["error"] = content["ename"]
            elif kind == "stream":
                shown["printed"] = shown.get("printed", "") + content["text"]
            elif kind == "status" and content["execution_state"] == "idle":
                return shown

    def close(self) -> None:
        """End the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with SandboxServer() as server:
        running = Kernel(server)
        try:
            yield running
        finally:
            running.close()


def test_cells(kernel: Kernel) -> None:
    """The page's cells run, and a balance is a table."""
    first, balance, asynchronous, call, after = CELLS
    assert kernel.run(first)["text/plain"].startswith("CreditsAdded(")
    assert "<table>" in kernel.run(balance)["text/html"]
    assert "90 credits" in kernel.run(asynchronous)["text/html"]
    assert kernel.run(call)["text/plain"].startswith("CreditsSubtracted(")
    assert kernel.run(after)["printed"] == "APPLIED\n"


def test_running_loop(kernel: Kernel) -> None:
    """``asyncio.run`` raises, and nothing is sent."""
    kernel.run(CELLS[0])
    kernel.run(CELLS[2])
    sent = len(kernel.server.log)
    assert kernel.run("asyncio.run(async_client.add(user, 5))")["error"] == "RuntimeError"
    assert len(kernel.server.log) == sent


@pytest.mark.parametrize("cell", ["client.run(call)", "await async_client.run(call)"])
def test_interrupted(kernel: Kernel, cell: str) -> None:
    """A call whose cell is interrupted is UNKNOWN, and the client can be used on."""
    kernel.run(CELLS[0])
    kernel.run(CELLS[2])
    kernel.server.inject(FAULTS["apply-then-hang"])
    applied = len(kernel.server.applied)
    running = kernel.start(CELLS[3].replace("client.run(call)", cell))
    wait_until(lambda: len(kernel.server.applied) > applied)
    kernel.manager.interrupt_kernel()
    assert kernel.shown(running)["error"] in {"KeyboardInterrupt", "CancelledError"}
    assert kernel.run(CELLS[4])["printed"] == "UNKNOWN\n"
    assert "40 credits" in kernel.run(CELLS[1])["text/html"]
