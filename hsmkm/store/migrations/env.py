"""Alembic's entry point: it runs on the connection that `hsmkm.store.migrate` hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

from hsmkm.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
