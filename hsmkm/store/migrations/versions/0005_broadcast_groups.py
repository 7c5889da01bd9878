"""Broadcast groups, their keys by generation, and their members."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "broadcast_groups",
        sa.Column("name", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("suite", sa.SmallInteger(), nullable=False),
        sa.Column("client", sa.SmallInteger(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("renewal", sa.Text(), nullable=False),
        *_authenticated(),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_broadcast_groups")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "group_keys",
        sa.Column("group", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("storage_key", sa.Integer(), nullable=False),
        sa.Column("keys", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        *_authenticated(),
        sa.ForeignKeyConstraint(["group"], ["broadcast_groups.name"], name=op.f("fk_group_keys_group")),
        sa.PrimaryKeyConstraint("group", "generation", name=op.f("pk_group_keys")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "group_members",
        sa.Column("group", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("system_title", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("security_setup", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("client", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        *_authenticated(),
        sa.ForeignKeyConstraint(["group"], ["broadcast_groups.name"], name=op.f("fk_group_members_group")),
        sa.PrimaryKeyConstraint("group", "system_title", "security_setup", "client", name=op.f("pk_group_members")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_group_members_system_title"), "group_members", ["system_title"])


def _authenticated() -> tuple[sa.Column[object], ...]:
    return (
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("mac_key", sa.Integer(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
    )
