"""A PostgreSQL server for the tests. It needs the programs of PostgreSQL, but no driver.

As a program, it starts a server, prints its URL, and stops it when the standard input ends.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from tests.common import free_port

if TYPE_CHECKING:
    from typing import Self

URL_VARIABLE: Final = "CREDUSE_TEST_POSTGRES"
"""An environment variable with the URL of a server to use. It must keep what it has synced."""

# PostgreSQL refuses to run as root. Debian's package makes this user.
_USER: Final = "postgres" if hasattr(os, "getuid") and os.getuid() == 0 else None


def find_programs() -> Path | None:
    """Return the directory of ``pg_ctl``, the latest version's, or ``None``."""
    if found := shutil.which("pg_ctl"):
        return Path(found).resolve().parent
    debian = Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")
    return max((it.parent for it in debian), key=lambda it: int(it.parent.name), default=None)


class Cluster:
    """A server with a new data directory. Use it with ``with``."""

    def __init__(self, *settings: str) -> None:
        programs = find_programs()
        assert programs is not None
        self._pg_ctl = programs / "pg_ctl"
        self._directory = Path(tempfile.mkdtemp(prefix="creduse-postgres-"))
        if _USER is not None:
            shutil.chown(self._directory, _USER)
        self._data = self._directory / "data"
        self.port = free_port()
        try:
            self._run(
                programs / "initdb", "--no-sync", "--auth=trust", "--username=postgres", "-A",
                "trust", "-E", "UTF8", "--no-locale", "-D", self._data,
            )  # fmt: skip
            with (self._data / "postgresql.conf").open("a") as file:
                lines = (
                    f"port = {self.port}",
                    "listen_addresses = '127.0.0.1'",
                    "unix_socket_directories = ''",
                    "max_connections = 200",
                    "shared_buffers = 16MB",
                    *settings,
                )
                file.writelines(f"{line}\n" for line in lines)
            self.start()
        except BaseException:
            shutil.rmtree(self._directory)
            raise

    @property
    def url(self) -> str:
        """The URL of its database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        log = self._directory / "log"
        self._run(self._pg_ctl, "start", "--wait", "--silent", "-D", self._data, "-l", log)

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server. ``immediate`` is like a crash: what was not synced is lost."""
        self._run(self._pg_ctl, "stop", "--wait", "--silent", "-m", mode, "-D", self._data)

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._directory)

    def _run(self, *command: str | Path) -> None:
        subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            user=_USER,
            cwd=self._directory,
            env=os.environ | {"LC_ALL": "C"},
        )


def main() -> None:
    """Run a server until the standard input ends."""
    if find_programs() is None:
        sys.exit("PostgreSQL is not installed")
    with Cluster() as cluster:
        print(cluster.url, flush=True)  # noqa: T201 - for the process that started this one
        sys.stdin.read()


if __name__ == "__main__":
    main()
