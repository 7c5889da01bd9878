"""Tables of what is done to meters: intents, renewals, leases, and campaigns."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)

from hsmkm.store.columns import authenticated, column, key, metadata, number

intents = Table(
    "intents",
    metadata,
    number("id"),
    column("system_title", LargeBinary),
    column("action", Text),
    column("detail", Text),
    column("opened", BigInteger),
    column("outcome", Text, null=True),
    column("closed", BigInteger, null=True),
    *authenticated(null=True),
    Index(None, "system_title"),
)

renewals = Table(
    "renewals",
    metadata,
    number("id"),
    column("system_title", LargeBinary),
    column("security_setup", SmallInteger),
    column("client", SmallInteger),
    column("from_generation", Integer),
    column("to_generation", Integer),
    column("roles", Text),
    column("stage", Text),
    column("state", Text),
    column("attempts", Integer),
    column("tried", Text),
    column("campaign", Integer, null=True),
    column("created", BigInteger),
    column("updated", BigInteger),
    *authenticated(null=True),
    Index(None, "system_title"),
    Index(None, "state"),
)

urgent_renewals = Table(
    "urgent_renewals",
    metadata,
    key("group", Text),
    key("system_title", LargeBinary),
    key("security_setup", SmallInteger),
    key("client", SmallInteger),
    column("roles", Text),
    column("above", Integer),
    column("reason", Text),
    column("queued", BigInteger),
    column("settled", BigInteger, null=True),
    *authenticated(),
    sqlite_with_rowid=False,
)

leases = Table(
    "leases",
    metadata,
    key("system_title", LargeBinary),
    column("holder", Text, null=True),
    column("fence", BigInteger),
    column("expires", BigInteger),
    sqlite_with_rowid=False,
)

campaigns = Table(
    "campaigns",
    metadata,
    number("id"),
    column("name", Text),
    column("kind", Text),
    column("state", Text),
    column("settings", Text),
    column("reason", Text),
    column("paced", BigInteger),
    column("failed_before", Integer),
    column("done_before", Integer),
    column("created", BigInteger),
    column("updated", BigInteger),
    *authenticated(null=True),
    UniqueConstraint("name"),
)

campaign_counts = Table(
    "campaign_counts",
    metadata,
    key("campaign", Integer),
    key("state", Text),
    column("meters", Integer),
    ForeignKeyConstraint(["campaign"], ["campaigns.id"]),
    sqlite_with_rowid=False,
)

campaign_slices = Table(
    "campaign_slices",
    metadata,
    number("id"),
    column("campaign", Integer),
    column("holder", Text),
    column("fence", BigInteger),
    column("expires", BigInteger),
    column("state", Text),
    ForeignKeyConstraint(["campaign"], ["campaigns.id"]),
    Index(None, "campaign", "state", "expires"),
)

campaign_meters = Table(
    "campaign_meters",
    metadata,
    key("campaign", Integer),
    key("system_title", LargeBinary),
    column("state", Text),
    column("attempts", Integer),
    column("not_before", BigInteger),
    column("above", Integer),
    column("slice", Integer, null=True),
    column("outcome", Text, null=True),
    column("updated", BigInteger),
    ForeignKeyConstraint(["campaign"], ["campaigns.id"]),
    Index(None, "campaign", "state", "not_before"),
    Index(None, "slice"),
    sqlite_with_rowid=False,
)
