"""The examples of the outbox. The server's record says what was applied."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from creduse import CreduseClient
from creduse_bulk._driver import AHEAD
from creduse_bulk._sending import CONCURRENCY
from creduse_core import Request, Verdict
from creduse_journal import Journal
from creduse_sandbox import FAULTS, SandboxServer
from tests.common import KEY, keep_from_end_of_day, wait_until

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
ORDERS = 300
BETWEEN = 0.003
"""Seconds between two requests at least, so that not all are sent before somebody looks."""
FIRST_USER = 2**78


@dataclass(frozen=True, slots=True)
class Framework:
    """How the tests use an example."""

    prepare: tuple[str, ...]
    """What Python runs once, to make the tables."""
    names: str
    """Imports, and a transaction that saves an order and inserts an entry."""
    orders: str
    """The table of orders."""


FRAMEWORKS = {
    "django": Framework(
        ("manage.py", "migrate"),
        """
import django, manage
django.setup()
from django.db import IntegrityError, transaction
from shop.models import Order, insert_entry, pay, place

def write(*entry):
    with transaction.atomic():
        Order(user=entry[2], credits=1, is_paid=True).save()
        insert_entry(*entry)
        1 / (entry[0] != "broken")
""",
        "shop_order",
    ),
    "sqlalchemy": Framework(
        ("-c", "import app; app.make_tables()"),
        """
from app import Order, Session, engine, insert_entry, pay, place
from sqlalchemy.exc import IntegrityError

def write(*entry):
    with Session(engine) as session, session.begin():
        session.add(Order(user=entry[2], credits=1, is_paid=True))
        insert_entry(session, *entry)
        1 / (entry[0] != "broken")
""",
        "orders",
    ),
}
TOOLS = f"""
import json, uuid

def user(number):
    return uuid.UUID(int={FIRST_USER} + number)

def attempt(act, *arguments):
    try:
        act(*arguments)
    except (IntegrityError, ZeroDivisionError) as error:
        return str(error)

"""


class Shop:
    """An example with its database, processes that follow, and the service."""

    def __init__(self, name: str, url: str, folder: Path, server: SandboxServer) -> None:
        self.url, self.server, self.framework = url, server, FRAMEWORKS[name]
        self._example = EXAMPLES / f"outbox_{name}"
        self._log = folder / "follow.log"
        self._started: list[subprocess.Popen[bytes]] = []
        self._environment = os.environ | {
            "DATABASE_URL": url,
            "CREDUSE_API_KEY": KEY,
            "CREDUSE_BASE_URL": server.base_url,
        }
        self.run_python(*self.framework.prepare)

    def run_python(self, *arguments: str) -> str:
        """Run Python where the example is, and return its output."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self._example,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    def run(self, expression: str) -> Any:
        """Return the value of an expression in the app."""
        names = self.framework.names + TOOLS
        return json.loads(self.run_python("-c", f"{names}print(json.dumps({expression}))"))

    def pay(self, count: int) -> None:
        """Place orders and pay them, each for another user and another number of credits."""
        self.run(f"[pay(place(user(it), it)) for it in range(1, {count + 1})]")

    def follow(self) -> "subprocess.Popen[bytes]":
        """Start a process that follows."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "creduse", "bulk", "follow", "--journal", self.url],
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        self._started.append(process)
        return process

    def query(self, statement: str) -> list[Any]:
        """Return the rows of a statement."""
        import psycopg  # noqa: PLC0415 - only where it is installed

        with psycopg.connect(self.url) as connection:
            return connection.execute(statement.encode()).fetchall()

    def states(self) -> dict[str, str]:
        """Return the state of each entry."""
        return dict(self.query("SELECT id, state FROM creduse_entries"))

    def paid(self) -> int:
        """Return how many orders are paid."""
        return len(self.query(f"SELECT FROM {self.framework.orders} WHERE is_paid"))

    def wait(self) -> None:
        """Wait until nothing waits and nothing is being sent."""
        wait_until(lambda: not {"free", "claimed"} & set(self.states().values()))

    def applied(self) -> Counter[int]:
        """Return the amounts that were applied, each once."""
        self.server.settle()
        counts = Counter(json.loads(it.body or b"")["amount"] for it in self.server.applied)
        assert max(counts.values(), default=0) <= 1
        return counts

    def close(self) -> None:
        """Stop the processes, and show what they said."""
        for process in self._started:
            process.terminate()
        for process in self._started:
            process.wait()
        if self._log.exists():
            print(self._log.read_text())  # noqa: T201 - pytest shows it if a test fails


@pytest.fixture(params=FRAMEWORKS)
def shop(request: pytest.FixtureRequest, postgres_url: str, tmp_path: Path) -> Iterator[Shop]:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    with SandboxServer() as server:
        made = Shop(request.param, postgres_url, tmp_path, server)
        try:
            yield made
        finally:
            made.close()


def test_paid(shop: Shop) -> None:
    """The credits of each paid order are given once. SIGTERM stops the process that gives them."""
    process = shop.follow()
    shop.pay(20)
    shop.run("place(user(0), 5)")
    shop.wait()
    assert sorted(shop.applied()) == list(range(1, 21))
    assert set(shop.states().values()) == {"applied"}
    process.terminate()
    assert process.wait() == 0


def test_rolled_back(shop: Shop) -> None:
    """If a transaction rolls back, its entry is not sent."""
    shop.follow()
    assert shop.run('attempt(write, "broken", "add", user(1), 7)') == "division by zero"
    shop.run('write("order-1", "add", user(1), 8)')
    shop.wait()
    assert list(shop.applied()) == [8]
    assert (list(shop.states()), shop.paid()) == (["order-1"], 1)


def test_twice(shop: Shop) -> None:
    """The database refuses an order that is paid again, before and after its credits were given."""
    number = shop.run("place(user(1), 5)")
    shop.run(f"pay({number})")
    first = shop.run(f"attempt(pay, {number})")
    shop.follow()
    shop.wait()
    second = shop.run(f"attempt(pay, {number})")
    for said in (first, second):
        assert f"Key (id)=(order-{number}) already exists" in said
    shop.run('write("last", "add", user(1), 6)')
    shop.wait()
    assert list(shop.applied()) == [5, 6]


WRONG = (
    ("add", -5, "creduse_entries_amount_check"),
    ("add", None, "creduse_entries_amount_except_for_stop_cycle"),
    ("sbtract", 5, "creduse_entries_method_check"),
    ("stop_cycle", 5, "creduse_entries_amount_except_for_stop_cycle"),
)


def test_wrong(shop: Shop) -> None:
    """The database refuses wrong values, and the order with them."""
    for method, amount, constraint in WRONG:
        said = shop.run(f'attempt(write, "order-1", {method!r}, user(1), {amount})')
        assert f'violates check constraint "{constraint}"' in said
    assert (shop.states(), shop.paid()) == ({}, 0)


def test_killed(shop: Shop) -> None:
    """If the process is killed, another one goes on. What was in flight is unclear, and can be settled."""
    keep_from_end_of_day()

    def wait(_: Request) -> bool:
        time.sleep(BETWEEN)
        return False

    shop.server.inject(FAULTS["503"], when=wait)
    # Its response does not come, so an entry is unclear.
    shop.server.inject(FAULTS["apply-then-hang"])
    shop.pay(ORDERS)
    process = shop.follow()
    wait_until(lambda: len(shop.server.applied) >= ORDERS / 5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(shop.applied()) < ORDERS
    shop.follow()
    shop.wait()
    counts, states = shop.applied(), shop.states()
    assert len(states) == ORDERS
    with (
        CreduseClient(KEY, base_url=shop.server.base_url) as client,
        Journal(shop.url) as journal,
    ):
        unclear = {it.id: it.call.amount or 0 for it in journal.unclear()}
        assert 1 <= len(unclear) <= AHEAD * CONCURRENCY
        assert Counter(states.values()) == {
            "applied": ORDERS - len(unclear),
            "unclear": len(unclear),
        }
        assert len(counts.keys() - unclear.values()) == ORDERS - len(unclear)
        for entry_id, amount in unclear.items():
            is_applied = journal.check(client, entry_id).verdict is Verdict.APPLIED
            assert is_applied == (counts[amount] == 1)
            journal.settle(entry_id, applied=is_applied, note="Ada: by its balance")
    shop.wait()
    assert sorted(shop.applied()) == list(range(1, ORDERS + 1))


def test_migration(postgres_url: str, tmp_path: Path) -> None:
    """The Django app's migration can run after the first process that follows, and can be reversed."""
    pytest.importorskip("django", reason="django is not installed")
    Journal(postgres_url).close()  # it makes the table, as a process that follows does
    with SandboxServer() as server:
        shop = Shop("django", postgres_url, tmp_path, server)
        shop.run_python("manage.py", "makemigrations", "--check", "--dry-run")
        shop.run_python("manage.py", "migrate", "shop", "zero")
        assert shop.query("SELECT to_regclass('creduse_entries')") == [(None,)]
