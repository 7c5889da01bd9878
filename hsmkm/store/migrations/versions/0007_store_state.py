"""One row that says how far the store is and what its tables hold."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "store_state",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("schema", sa.Text(), nullable=False),
        sa.Column("epochs", sa.LargeBinary(), nullable=False),
        sa.Column("advance", sa.BigInteger(), nullable=False),
        sa.Column("audit_sequence", sa.BigInteger(), nullable=False),
        sa.Column("audit_hash", sa.LargeBinary(), nullable=False),
        sa.Column("counter_reach", sa.BigInteger(), nullable=False),
        sa.Column("counter_highest", sa.BigInteger(), nullable=False),
        sa.Column("counter_offset", sa.BigInteger(), nullable=False),
        sa.Column("sequence_floor", sa.BigInteger(), nullable=False),
        sa.Column("generation_floor", sa.BigInteger(), nullable=False),
        sa.Column("sums", sa.Text(), nullable=False),
        sa.Column("mac_key", sa.Integer(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_store_state")),
    )
