"""Campaigns with slices and counts; the tables that the first schema laid out for them were never used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_table("campaign_meters")
    op.drop_table("campaigns")
    op.create_table(
        "campaigns",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("paced", sa.BigInteger(), nullable=False),
        sa.Column("failed_before", sa.Integer(), nullable=False),
        sa.Column("done_before", sa.Integer(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_campaigns")),
        sa.UniqueConstraint("name", name=op.f("uq_campaigns_name")),
    )
    op.create_table(
        "campaign_counts",
        sa.Column("campaign", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("meters", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["campaign"], ["campaigns.id"], name=op.f("fk_campaign_counts_campaign")),
        sa.PrimaryKeyConstraint("campaign", "state", name=op.f("pk_campaign_counts")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "campaign_slices",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("campaign", sa.Integer(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["campaign"], ["campaigns.id"], name=op.f("fk_campaign_slices_campaign")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_campaign_slices")),
    )
    op.create_index(
        op.f("ix_campaign_slices_campaign_state_expires"),
        "campaign_slices",
        ["campaign", "state", "expires"],
        unique=False,
    )
    op.create_table(
        "campaign_meters",
        sa.Column("campaign", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("system_title", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("above", sa.Integer(), nullable=False),
        sa.Column("slice", sa.Integer(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["campaign"], ["campaigns.id"], name=op.f("fk_campaign_meters_campaign")),
        sa.PrimaryKeyConstraint("campaign", "system_title", name=op.f("pk_campaign_meters")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        op.f("ix_campaign_meters_campaign_state_not_before"),
        "campaign_meters",
        ["campaign", "state", "not_before"],
        unique=False,
    )
    op.create_index(op.f("ix_campaign_meters_slice"), "campaign_meters", ["slice"], unique=False)
