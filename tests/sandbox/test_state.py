"""The file that keeps a sandbox's state."""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from creduse import CreduseClient, ServerError, TransportError
from creduse_core import Request
from creduse_sandbox import Sandbox, SandboxServer, StateError, StateFile
from creduse_sandbox.sandbox import REPLAY_WINDOW
from tests.common import KEY, ONCE, USER

OTHER = UUID(int=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


@contextmanager
def served(path: Path) -> Generator[SandboxServer, None, None]:
    """Run a server whose state is in the file."""
    with closing(StateFile(path)) as state, SandboxServer(state=state) as server:
        yield server


def test_restart(path: Path) -> None:
    """A server begins with the users, the cycles and the clock of the one before."""
    with served(path) as server:
        server.direct.add(USER, 100, validity_days=3)
        server.direct.start_cycle(USER, 1000)
        server.advance(days=1.5)
        server.direct.subtract(USER, 30)
        server.direct.stop_cycle(USER)
        server.direct.add(OTHER, 7, validity_days=0)
        server.advance(days=2)
        before = server.direct.get_balance(USER)
    with served(path) as server:
        assert server.direct.get_balance(USER) == before
        ended = datetime.now(UTC) + timedelta(days=3)
        assert server.direct.start_cycle(USER, 1).created_at > ended  # the clock is ahead
        status = _ask(server, "/subtract", OTHER, 1)
        assert status == (402, b"CREDIT_EXPIRED")


def _ask(
    server: SandboxServer, url: str, user: UUID, amount: int, key: str = ""
) -> tuple[int, bytes]:
    headers = (("Authorization", f"Bearer {KEY}"), *((("Idempotency-Key", key),) if key else ()))
    body = b'{"end_user_id": "%s", "amount": %d}' % (str(user).encode(), amount)
    response = server.handle(Request("POST", url, headers, body))
    return response.status, response.body.split(b'"')[3] if response.status >= 400 else b""


def test_idempotency_keys(path: Path) -> None:
    """An idempotency key is remembered over a restart, until it is too old."""
    with served(path) as server:
        assert _ask(server, "/add", USER, 5, "one") == (200, b"")
        assert _ask(server, "/subtract", USER, 50, "two")[0] == 402
    with served(path) as server:
        assert _ask(server, "/add", USER, 5, "one") == (200, b"")
        assert _ask(server, "/add", USER, 6, "one") == (422, b"IDEMPOTENCY_KEY_REUSED")
        assert _ask(server, "/subtract", USER, 50, "two")[0] == 402
        assert server.direct.get_balance(USER).active_balance == 5
        server.advance(days=1)
        assert _ask(server, "/add", USER, 6, "one") == (200, b"")
    with served(path) as server:
        assert server.direct.get_balance(USER).active_balance == 11
    with closing(sqlite3.connect(path)) as file:
        kinds = "SELECT count(*) FROM kept WHERE kind = 'idempotency key'"
        assert file.execute(kinds).fetchone() == (1,)


def test_old_keys_without_a_state() -> None:
    """A sandbox without a file forgets old idempotency keys, too. A clock may run back."""
    now = [datetime(2025, 8, 12, tzinfo=UTC)]
    sandbox = Sandbox(clock=lambda: now[0])

    def add(key: str) -> None:
        headers = (("Authorization", "Bearer any"), ("Idempotency-Key", key))
        body = b'{"end_user_id": "%s", "amount": 1}' % str(USER).encode()
        assert sandbox.handle(Request("POST", "/add", headers, body)).status == 200

    add("new")
    now[0] -= REPLAY_WINDOW
    add("old")
    now[0] += REPLAY_WINDOW
    add("old")  # "new" came first and is not too old
    now[0] += REPLAY_WINDOW
    add("new")
    (cycles,) = sandbox.users().values()
    assert len(cycles) == 4


def test_no_key_in_the_file(path: Path) -> None:
    """Neither the API key nor an idempotency key is in the file."""
    with served(path) as server:
        _ask(server, "/add", USER, 5, "idempotency-0123")
        data = b"".join(it.read_bytes() for it in path.parent.iterdir())
    data += path.read_bytes()
    assert str(USER).encode() in data
    assert KEY.encode() not in data
    assert b"idempotency-0123" not in data


def test_reset(path: Path) -> None:
    """A reset empties the file."""
    with served(path) as server:
        server.direct.add(USER, 5)
        server.advance(days=1)
        server.reset()
        server.direct.add(OTHER, 1)
    with served(path) as server:
        assert server.direct.get_balance(OTHER).active_balance == 1
        assert server.direct.get_balance(OTHER).active_balance_by_cycle[
            0
        ].cycle_start < datetime.now(UTC)


def test_kill_loses_nothing(path: Path) -> None:
    """A kill loses nothing that the client got a response for."""
    program = [sys.executable, "-m", "creduse", "sandbox", "--port", "0", "--state", str(path)]
    for killed in range(1, 4):
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            with CreduseClient("any", base_url=url) as client:
                client.add(USER, 1)
                assert client.get_balance(USER).active_balance == killed
                process.send_signal(signal.SIGKILL)


def test_write_that_fails(path: Path) -> None:
    """A change that cannot be written gets a 500, is not applied, and is forgotten."""
    with served(path) as server:
        server.direct.add(USER, 5)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute(
            "CREATE TRIGGER full BEFORE INSERT ON kept WHEN new.kind != 'idempotency key' "
            "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    with served(path) as server:
        assert _ask(server, "/add", USER, 1, "one") == (500, b"STATE_NOT_WRITTEN")
        assert _ask(server, "/subtract", USER, 1) == (500, b"STATE_NOT_WRITTEN")
        assert server.direct.get_balance(USER).active_balance == 5
        with pytest.raises(StateError, match="cannot write the state's file: disk full"):
            server.advance(days=1)
        assert server.direct.get_balance(USER).active_balance == 5
        client = CreduseClient("any", base_url=server.base_url, retry=ONCE)
        with client, pytest.raises(ServerError, match="disk full"):
            client.add(USER, 1)
        assert server.applied == ()


def test_file_that_is_lost(path: Path) -> None:
    """If the file cannot even be read, the client gets no response, and the server says why."""
    state = StateFile(path)
    server = SandboxServer(state=state)
    server.start()
    with CreduseClient("any", base_url=server.base_url, retry=ONCE) as client:
        state.close()
        with pytest.raises(TransportError):
            client.add(USER, 1)
    with pytest.raises(ExceptionGroup) as raised:
        server.close()
    assert isinstance(raised.value.exceptions[0], StateError)


def move(path: Path) -> None:
    path.rename(path.with_name("moved"))


@pytest.mark.parametrize("change", [Path.unlink, move])
def test_file_that_is_removed(path: Path, change: Callable[[Path], object]) -> None:
    """A change that nobody would find is not applied: the file was removed, moved or replaced."""
    with served(path) as server:
        server.direct.add(USER, 5)
        change(path)
        assert _ask(server, "/add", USER, 1) == (500, b"STATE_NOT_WRITTEN")
        assert server.direct.get_balance(USER).active_balance == 5
        StateFile(path).close()
        client = CreduseClient("any", base_url=server.base_url, retry=ONCE)
        with client, pytest.raises(ServerError, match="removed, moved or replaced"):
            client.add(USER, 1)
        with pytest.raises(StateError, match="removed, moved or replaced"):
            server.reset()
        assert server.applied == ()


def other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE precious (value)")


def other_version(path: Path) -> None:
    StateFile(path).close()
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA user_version = 99")


def damaged_file(path: Path) -> None:
    StateFile(path).close()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 2000)


def damaged_page(path: Path) -> None:
    """Damage a page that only the values need."""
    with served(path) as server:
        for user in range(100):
            server.direct.add(UUID(int=user), 5)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)


def missing_table(path: Path) -> None:
    StateFile(path).close()
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DROP TABLE kept")


def text(path: Path) -> None:
    path.write_text("no database" * 100, encoding="utf-8")


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "text": (text, "not the state of a creduse sandbox"),
    "another database": (other_database, "not the state of a creduse sandbox"),
    "another version": (other_version, "another version of creduse"),
    "damaged": (damaged_file, "the file's content is damaged"),
    "a directory": (Path.mkdir, "cannot open the file: it is a directory"),
    "a pipe": (os.mkfifo, "cannot open the file: it is not a regular file"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_files(path: Path, kind: str) -> None:
    """A file that is no state is rejected, and stays as it is."""
    make, said = WRONG[kind]
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StateError, match=said) as raised:
        StateFile(path)
    assert str(path) not in str(raised.value)
    assert before is None or path.read_bytes() == before


NAMES = {
    "empty": ("", "it must be the name of a file"),
    "null character": ("a\0b", "its name is invalid"),
    "no directory": ("none/state", "cannot open the file: No such file or directory"),
    "long": ("/".join(["d" * 200] * 3), "cannot open the file: "),
}


@pytest.mark.parametrize(("name", "said"), NAMES.values(), ids=NAMES)
def test_invalid_names(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that no file can have is rejected, and leaves no file behind."""
    monkeypatch.chdir(tmp_path)
    if len(name) > 500:
        Path(name).parent.mkdir(parents=True)
    with pytest.raises(StateError, match=said):
        StateFile(name)
    assert not [it for it in tmp_path.rglob("*") if it.is_file()]


def test_long_name_of_an_existing_file(tmp_path: Path) -> None:
    """A file whose name is too long for SQLite stays as it is."""
    path = tmp_path / "/".join(["d" * 200] * 3)
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(StateError, match="cannot open the file: "):
        StateFile(path)
    assert path.is_file()


@pytest.mark.parametrize("name", [":memory:", "file:state", "file::memory:?cache=shared"])
def test_names_with_a_meaning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that SQLite would give another meaning is that of a file."""
    monkeypatch.chdir(tmp_path)
    with served(Path(name)) as server:
        server.direct.add(USER, 5)
    with served(Path(name)) as server:
        assert server.direct.get_balance(USER).active_balance == 5
    assert [*tmp_path.iterdir()] == [tmp_path / name]


@contextmanager
def without_rights() -> Generator[None, None, None]:
    """Be a user without root's rights, to whom every file is writable."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_missing_rights() -> None:
    """A file or a directory that cannot be written is named as such."""
    # Another user cannot reach pytest's own directories.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "state"
        StateFile(path).close()
        path.chmod(0o666)
        path.parent.chmod(0o555)
        with without_rights():
            with pytest.raises(StateError, match="the file's directory is not writable"):
                StateFile(path)
            with pytest.raises(StateError, match="cannot open the file: Permission denied"):
                StateFile(path.with_name("other"))
        path.chmod(0o444)
        with (
            without_rights(),
            pytest.raises(StateError, match="cannot open the file: Permission denied"),
        ):
            StateFile(path)
        path.parent.chmod(0o755)


@pytest.mark.parametrize("damage", [damaged_page, missing_table])
def test_damaged_content(path: Path, damage: Callable[[Path], None]) -> None:
    """Content that cannot be read is found when a sandbox begins with it."""
    damage(path)
    with closing(StateFile(path)) as state:
        with pytest.raises(StateError, match="the file's content is damaged"):
            Sandbox(state=state)
        with pytest.raises(StateError, match="the file's content is damaged"):
            state.clear()


def test_lock_of_another_sandbox(path: Path) -> None:
    """A second try in the same process does not free the file for other processes."""
    with served(path):
        with pytest.raises(StateError, match="another process uses the file"):
            StateFile(path)
        program = [sys.executable, "-m", "creduse", "sandbox", "--port", "0", "--state", str(path)]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("value", ["[]", "{}", '{"cycles": [{}], "expired": false}', "7"])
def test_damaged_values(path: Path, value: str) -> None:
    """A state with a value that makes no sense is rejected before the server listens."""
    with served(path) as server:
        server.direct.add(USER, 5)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE kept SET value = ?", (value,))
    with closing(StateFile(path)) as state, pytest.raises(StateError, match="damaged"):
        SandboxServer(state=state)


def test_in_use(path: Path) -> None:
    """Only one process at a time uses a file."""
    with served(path), pytest.raises(StateError, match="another process uses the file"):
        StateFile(path)
    with served(path) as server:
        server.direct.add(USER, 5)


def test_empty_file(path: Path) -> None:
    """An empty file becomes a state, as from ``mktemp``."""
    path.touch()
    with served(path) as server:
        server.direct.add(USER, 5)
    with served(path) as server:
        assert server.direct.get_balance(USER).active_balance == 5


def test_link(tmp_path: Path) -> None:
    """A link leads to the file, which is made if there is none."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "state.db")
    with closing(StateFile(link)):
        assert (tmp_path / "state.db").is_file()
