"""Brings a database to the newest schema with the migrations that lie beside this module."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, insert, select

from hsmkm.store import engine as engines
from hsmkm.store import schema
from hsmkm.store.times import to_seconds

EPOCH_OCTETS = 16


def upgrade(engine: Engine) -> None:
    """Run what is missing, in one transaction, and begin the first epoch of a new database."""
    with engine.begin() as connection:
        make_tables(connection)
        if connection.execute(select(schema.epoch.c.number)).first() is None:
            first = {"number": 1, "instance": secrets.token_bytes(EPOCH_OCTETS), "started": to_seconds(_now())}
            connection.execute(insert(schema.epoch).values(first))


def make_tables(connection: Connection) -> None:
    """Run what is missing, and begin no epoch."""
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    engines.settle(connection, list(schema.metadata.tables))


def configuration() -> Config:
    """Configure alembic without a file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def _now() -> datetime:
    return datetime.now(UTC)
