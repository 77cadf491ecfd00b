"""Where the items of a run come from. How they are sent (`_driver`) does not belong here."""

from typing import Protocol

from creduse_journal.committer import wait_for

from ._input import Input, Item, Shard
from ._items import Items


class Source(Protocol):
    """Items to send. A user's items come in the order in which they shall be sent."""

    interval: float
    """Seconds after which to ask again if few items came."""

    async def more(self) -> list[Item] | None:
        """Return items that did not come before, or ``None`` if there will be no more.

        Raises:
            InputError: They cannot be read any more.
            JournalError: The journal cannot be used.
        """
        ...


class FileSource:
    """The items of a file, or of a shard of it, that must be sent."""

    interval = 0.0

    def __init__(self, source: Input, items: Items, shard: Shard | None) -> None:
        self._source = source
        self._chunks = source.chunks()
        self._items = items
        self._shard = shard

    async def more(self) -> list[Item] | None:
        """Return the items of some records, or ``None`` at the end of the file."""
        chunk = next(self._chunks, None)
        if chunk is None:
            return None
        taken = await wait_for(self._items.taken(chunk[0].number, chunk[-1].number))
        if len(taken) == len(chunk):  # after a restart, most are
            return []
        found = [self._source.item(record) for record in chunk if record.number not in taken]
        return [item for item in found if self._shard is None or self._shard.has(item.user)]
