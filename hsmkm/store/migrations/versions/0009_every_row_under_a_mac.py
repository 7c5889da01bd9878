"""MACs for orders, renewals, intents and numbers of revocation lists, and one for the holders of each package."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

SEALED = ("orders", "renewals", "intents", "revocation_lists")


def upgrade() -> None:
    for table in SEALED:
        op.add_column(table, sa.Column("revision", sa.Integer(), nullable=True))
        op.add_column(table, sa.Column("mac_key", sa.Integer(), nullable=True))
        op.add_column(table, sa.Column("mac", sa.LargeBinary(), nullable=True))
    op.create_table(
        "holder_lists",
        sa.Column("package_id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("meters", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("mac_key", sa.Integer(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("package_id", name=op.f("pk_holder_lists")),
    )
    op.drop_index(op.f("ix_holders_party"), table_name="holders")
    op.create_index(op.f("ix_holders_system_title"), "holders", ["system_title"])
