"""Make the tables. In an app that has some, `RunSQL` is the only operation of a new migration."""
# pyright: basic, reportArgumentType=false
# Django has no types.

from typing import ClassVar

from django.db import migrations, models  # type: ignore[import-untyped]  # it has no types

from creduse_journal import POSTGRES_SCHEMA


class Migration(migrations.Migration):  # type: ignore[misc]  # no types
    initial = True
    operations: ClassVar[list[object]] = [
        migrations.CreateModel(
            "Order",
            [
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("user", models.UUIDField()),
                ("credits", models.IntegerField()),
                ("is_paid", models.BooleanField(default=False)),
            ],
        ),
        # Its reverse forgets what was sent, and what waits.
        migrations.RunSQL(POSTGRES_SCHEMA, "DROP TABLE creduse_entries"),
    ]
