"""Orders. A paid one gives credits."""
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# Django has no types.

from uuid import UUID

from django.db import connection, models, transaction  # type: ignore[import-untyped]  # it has no types


class Order(models.Model):  # type: ignore[misc]  # noqa: DJ008 - no types, and nobody prints it
    user = models.UUIDField()
    credits = models.IntegerField()
    is_paid = models.BooleanField(default=False)


def place(user: UUID, number_of_credits: int) -> int:
    """Save a new order, which is not paid. Return its number."""
    order = Order(user=user, credits=number_of_credits)
    order.save()
    return int(order.pk)


def pay(number: int) -> None:
    """Mark an order as paid, and give its credits: both or, after an error, neither.

    The second time, the entry's id is there, and the database refuses it: `IntegrityError`.
    """
    with transaction.atomic():
        order = Order.objects.get(pk=number)
        order.is_paid = True
        order.save()
        insert_entry(f"order-{number}", "add", order.user, order.credits)


def insert_entry(entry_id: str, method: str, user: UUID, amount: int | None = None) -> None:
    """Insert an entry for `creduse bulk follow`. Call it in the transaction that it belongs to."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO creduse_entries (id, method, end_user_id, amount) VALUES (%s, %s, %s, %s)",
            [entry_id, method, user, amount],
        )
