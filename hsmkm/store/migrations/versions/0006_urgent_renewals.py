"""Renewals that must come about before all others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "urgent_renewals",
        sa.Column("group", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("system_title", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("security_setup", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("client", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("above", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("queued", sa.BigInteger(), nullable=False),
        sa.Column("settled", sa.BigInteger(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("mac_key", sa.Integer(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("group", "system_title", "security_setup", "client", name=op.f("pk_urgent_renewals")),
        sqlite_with_rowid=False,
    )
