"""Orders whose credits are given once: Django saves an order and its entry in one transaction.

    pip install 'creduse[bulk,postgres]>=0.2' django
    export CREDUSE_API_KEY=your-api-key DATABASE_URL=postgresql://user@host/database
    python manage.py migrate
    creduse bulk follow --journal "$DATABASE_URL"  # in another terminal, until Ctrl-C
    python manage.py shell -c '
    import uuid
    from shop.models import pay, place
    pay(place(uuid.UUID("12345678-1234-5678-1234-567812345678"), 100))'

`shop/models.py` inserts the entry, `shop/migrations` makes the table, and `creduse bulk follow` makes
the call. A real project has its settings elsewhere. To try it without an account, run
`creduse sandbox --port 8000`, and set CREDUSE_BASE_URL=http://127.0.0.1:8000.
"""
# pyright: basic
# Django has no types.

import os
import sys

from django.conf import settings  # type: ignore[import-untyped]  # it has no types
from django.core.management import (  # type: ignore[import-untyped]  # it has no types
    execute_from_command_line,
)
from psycopg.conninfo import conninfo_to_dict

DATABASE = conninfo_to_dict(os.environ["DATABASE_URL"])

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": DATABASE.pop("dbname", os.environ.get("PGDATABASE")),
            "OPTIONS": DATABASE,
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["shop"],
)

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
