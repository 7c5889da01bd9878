"""MACs for campaigns: what was asked for, which may have needed an approval, and where it stands."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("campaigns", sa.Column("revision", sa.Integer(), nullable=True))
    op.add_column("campaigns", sa.Column("mac_key", sa.Integer(), nullable=True))
    op.add_column("campaigns", sa.Column("mac", sa.LargeBinary(), nullable=True))
