"""Orders whose credits are given once: SQLAlchemy saves an order and its entry in one transaction.

    pip install 'creduse[bulk,postgres]>=0.2' 'sqlalchemy>=2'
    export CREDUSE_API_KEY=your-api-key DATABASE_URL=postgresql://user@host/database
    python -c 'import app; app.make_tables()'
    creduse bulk follow --journal "$DATABASE_URL"  # in another terminal, until Ctrl-C
    python -c '
    import app, uuid
    app.pay(app.place(uuid.UUID("12345678-1234-5678-1234-567812345678"), 100))'

To try it without an account, run `creduse sandbox --port 8000`, and set
CREDUSE_BASE_URL=http://127.0.0.1:8000.
"""

import os
from uuid import UUID

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from creduse_journal import POSTGRES_SCHEMA

# For `creduse bulk follow`, the URL has no "+psycopg".
engine = create_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"))

INSERT = text(
    "INSERT INTO creduse_entries (id, method, end_user_id, amount) "
    "VALUES (:id, :method, :end_user_id, :amount)"
)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    user: Mapped[UUID]
    credits: Mapped[int]
    is_paid: Mapped[bool] = mapped_column(default=False)


def make_tables() -> None:
    """Make the tables. With Alembic, a migration does it: `op.execute(POSTGRES_SCHEMA)`."""
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
        connection.execute(text(POSTGRES_SCHEMA))


def place(user: UUID, number_of_credits: int) -> int:
    """Save a new order, which is not paid. Return its number."""
    with Session(engine) as session, session.begin():
        order = Order(user=user, credits=number_of_credits)
        session.add(order)
        session.flush()
        return order.id


def pay(number: int) -> None:
    """Mark an order as paid, and give its credits: both or, after an error, neither.

    The second time, the entry's id is there, and the database refuses it: `IntegrityError`.
    """
    with Session(engine) as session, session.begin():
        order = session.get_one(Order, number)
        order.is_paid = True
        insert_entry(session, f"order-{number}", "add", order.user, order.credits)


def insert_entry(
    session: Session, entry_id: str, method: str, user: UUID, amount: int | None = None
) -> None:
    """Insert an entry for `creduse bulk follow`, in the session's transaction."""
    values = {"id": entry_id, "method": method, "end_user_id": user, "amount": amount}
    session.execute(INSERT, values)
