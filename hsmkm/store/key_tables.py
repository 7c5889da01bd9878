"""Tables of meters and their keys: orders, models, key sets and their states, counters, and groups."""

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

from hsmkm.store.columns import authenticated, column, key, key_set_columns, metadata, number

orders = Table(
    "orders",
    metadata,
    number("number"),
    column("id", Text),
    column("name", Text),
    column("rows", Integer),
    column("state", Text),
    column("created", BigInteger),
    *authenticated(null=True),
    UniqueConstraint("id"),
)

models = Table(
    "models",
    metadata,
    number("number"),
    column("name", Text),
    column("suite", SmallInteger, null=True),
    column("storage_key", Integer, null=True),
    column("keys", LargeBinary, null=True),
    *authenticated(null=True),
    UniqueConstraint("name"),
)

meters = Table(
    "meters",
    metadata,
    key("system_title", LargeBinary),
    column("serial", Text),
    column("model", Integer),
    column("suite", SmallInteger),
    column("order", Integer, null=True),
    column("address", Text, null=True),
    column("concentrator", Text, null=True),
    column("registered", BigInteger, null=True),
    column("state", Text, null=True),
    *authenticated(null=True),
    ForeignKeyConstraint(["model"], ["models.number"]),
    ForeignKeyConstraint(["order"], ["orders.number"]),
    Index(None, "serial"),
    sqlite_with_rowid=False,
)

key_sets = Table(
    "key_sets",
    metadata,
    *key_set_columns(),
    column("suite", SmallInteger),
    column("storage_key", Integer),
    column("state", SmallInteger),
    column("keys", LargeBinary),
    column("mac_key", Integer),
    column("mac", LargeBinary),
    column("batch", BigInteger),
    column("destroy_after", BigInteger, null=True),
    sqlite_with_rowid=False,
)

key_states = Table(
    "key_states",
    metadata,
    *key_set_columns(),
    column("state", SmallInteger),
    column("changed", BigInteger),
    *authenticated(),
    sqlite_with_rowid=False,
)

counters = Table(
    "counters",
    metadata,
    key("identity", LargeBinary),
    key("client_title", LargeBinary),
    column("next", BigInteger),
    column("trial_low", BigInteger, null=True),
    column("trial_next", BigInteger, null=True),
    *authenticated(),
    sqlite_with_rowid=False,
)

receive_counters = Table(
    "receive_counters",
    metadata,
    key("identity", LargeBinary),
    key("server_title", LargeBinary),
    column("lowest", BigInteger),
    *authenticated(),
    sqlite_with_rowid=False,
)

transactions = Table(
    "transactions",
    metadata,
    key("recipient", LargeBinary),
    column("next", BigInteger),
    *authenticated(),
    sqlite_with_rowid=False,
)

broadcast_groups = Table(
    "broadcast_groups",
    metadata,
    key("name", Text),
    column("suite", SmallInteger),
    column("client", SmallInteger),
    column("origin", Text),
    column("renewal", Text),
    *authenticated(),
    sqlite_with_rowid=False,
)

group_keys = Table(
    "group_keys",
    metadata,
    key("group", Text),
    key("generation", Integer),
    column("storage_key", Integer),
    column("keys", LargeBinary),
    column("state", Text),
    *authenticated(),
    ForeignKeyConstraint(["group"], ["broadcast_groups.name"]),
    sqlite_with_rowid=False,
)

group_members = Table(
    "group_members",
    metadata,
    key("group", Text),
    key("system_title", LargeBinary),
    key("security_setup", SmallInteger),
    key("client", SmallInteger),
    column("state", Text),
    *authenticated(),
    ForeignKeyConstraint(["group"], ["broadcast_groups.name"]),
    Index(None, "system_title"),
    sqlite_with_rowid=False,
)
