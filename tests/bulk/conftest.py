"""What the tests of journals share: journals with rows in each state, without a run."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from creduse_bulk import Shard
from creduse_bulk._input import Input
from creduse_bulk._items import Claim, Ended, Identity, Items, open_to_read, rows
from creduse_bulk._progress import journal_of, name_of
from creduse_core.secret import Secret
from creduse_journal import Change, State
from tests.common import KEY

IDENTITY = Identity("add", "0" * 64, "http://127.0.0.1:1", "the whole file")
FOUND: dict[str, object] = {"items": 9, "total": "45"}

HOW: dict[State, tuple[Change, ...]] = {
    State.FREE: (Change.RELEASE,),
    State.CLAIMED: (),
    State.APPLIED: (Change.APPLY,),
    State.REFUSED: (Change.REFUSE,),
    State.UNCLEAR: (Change.DOUBT,),
}
"""How a claimed item gets into each state."""


def user(number: int) -> UUID:
    """Return a user of the tests."""
    return UUID(int=0x4000_8000_0000_0000_0000 + number)


def begin(path: Path, key: str = KEY, **changes: str) -> Items:
    """Open a journal."""
    return Items(path, replace(IDENTITY, **changes), Secret(key), FOUND)


def begin_run(file: Path, method: str = "add", shard: Shard | None = None, **changes: str) -> Items:
    """Open the journal of a file, as a run does."""
    with Input(file, method) as source:
        overview = source.examine(shard)
        identity = replace(
            IDENTITY, method=method, digest=source.digest, shard=name_of(shard), **changes
        )
    found: dict[str, object] = {"items": overview.items, "total": str(overview.total)}
    return Items(journal_of(file, None, shard), identity, Secret(KEY), found)


def claim(number: int, of: int, began_at: float | None = None, before: str | None = None) -> Claim:
    """Return the claim of an item of a user."""
    return Claim(number, str(user(of)), time.time() if began_at is None else began_at, before)


def ended(number: int, change: Change, event: str | None = "event") -> Ended:
    """Return the end of an item's call."""
    return Ended(number, change, event, 299, "CODE")


def put(items: Items, number: int, state: State, of: int | None = None) -> None:
    """Bring an item into a state. It has a user of its own by default."""
    one = claim(number, number if of is None else of)
    assert items.write([], [one]).result() == {number}
    items.write([ended(number, change) for change in HOW[state]], []).result()


def states(path: Path) -> dict[int, State]:
    """Return the state of each row."""
    with open_to_read(path) as database:
        return {row.number: row.state for row in rows(database)}


def contents(paths: Iterable[Path]) -> bytes:
    """Return all bytes of some files."""
    return b"".join(path.read_bytes() for path in paths)
