"""The thread that carries out operations."""

from creduse_journal.committer import Batch, Committer


class Nothing:
    """A database that keeps nothing."""

    idle_limit: float | None = None
    is_closed = False

    def commit(self, batch: Batch[None]) -> None:
        for act, future in batch:
            future.set_result(act(None))

    def keep_alive(self) -> None: ...

    def close(self) -> None:
        self.is_closed = True


def test_closed_in_its_own_thread() -> None:
    """A finalizer can close a journal in the journal's thread, which must not wait for itself."""
    database = Nothing()
    committer: Committer[None] = Committer("a journal", database)
    committer.submit(lambda _: committer.close()).result()
    committer.close()
    assert database.is_closed
