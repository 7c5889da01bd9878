"""An index of what meters answered suspiciously, by meter: it holds these few records alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    refused = sa.text("action >= 'refused: ' AND action < 'refused:!'")
    op.create_index("ix_audit_refused", "audit", ["subject"], sqlite_where=refused, postgresql_where=refused)
