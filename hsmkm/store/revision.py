"""Which schema a database has, and whether it is a store at all."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, inspect

from hsmkm.errors import RefusedError
from hsmkm.store import engine as engines
from hsmkm.store import schema


def require_newest(engine: Engine) -> None:
    """Raise RefusedError unless the database is a store of this program's schema."""
    found = known(engine)
    if found is None:
        raise RefusedError("the database is not a store of hsmkm", hint="make one with hsmkm init")
    if found != schema.HEAD:
        raise RefusedError(f"the store has the older schema {found}", hint="upgrade it with hsmkm store upgrade")


def refuse_other(connection: Connection) -> None:
    """Raise RefusedError where a store was brought to another schema since it was opened."""
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if found != schema.HEAD:
        text = f"the store has the schema {found} now, and this program works with {schema.HEAD}"
        raise RefusedError(text, hint="bring what is older of both to the other's version: hsmkm store upgrade")


def refuse_strangers(engine: Engine) -> None:
    """Raise RefusedError where the database has tables that neither hsmkm nor its queue of tasks made."""
    strange = [name for name in inspect(engine).get_table_names() if not name.startswith("procrastinate_")]
    if strange:
        text = f"the database is another program's: it has the table {strange[0]}"
        raise RefusedError(text, hint="give hsmkm a database of its own")


def known(engine: Engine) -> str | None:
    """Give the migration that a store is at, or nothing where there is none; RefusedError for what is not ours."""
    with engine.connect() as plain:
        connection = plain.execution_options(**{engines.READ_ONLY: True})
        with connection.begin():
            if not connection.dialect.has_table(connection, "alembic_version"):
                return None
            if not connection.dialect.has_table(connection, schema.epoch.name):
                text = "the database is another program's: it has migrations, and no epoch of a store"
                raise RefusedError(text, hint="give hsmkm a database of its own")
            found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if found is not None and found not in schema.REVISIONS:
        raise RefusedError(f"the store's schema {found} is newer than this program", hint="use the newer hsmkm")
    return found
