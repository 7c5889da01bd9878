"""The tables, as the newest migration leaves them; `hsmkm/store/migrations` holds how they came about.

Times are whole seconds since 1970 UTC, except in the audit record, whose text is what is hashed. Rows that carry a MAC
have `revision` (from 1), `mac_key` (number of the integrity key) and `mac` (32 octets). Tables of one row for each
meter are clustered by their primary key (WITHOUT ROWID on SQLite), so that a batch in key order is written in order.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeEngine

HEAD = "0010"
"""The migration that this program reads and writes."""

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010")
"""Every migration so far, oldest first."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _column(name: str, kind: type[TypeEngine[Any]], *, null: bool = False) -> Column[Any]:
    return Column(name, kind, nullable=null)


def _key(name: str, kind: type[TypeEngine[Any]]) -> Column[Any]:
    return Column(name, kind, primary_key=True, autoincrement=False)


def _number(name: str) -> Column[int]:
    """Count up from 1: a number that the database gives."""
    return Column(name, Integer, primary_key=True, autoincrement=True)


def _authenticated(*, null: bool = False) -> tuple[Column[Any], ...]:
    return (
        Column("revision", Integer, nullable=null),
        Column("mac_key", Integer, nullable=null),
        Column("mac", LargeBinary, nullable=null),
    )


def _key_set_columns() -> tuple[Column[Any], ...]:
    return (
        _key("system_title", LargeBinary),
        _key("security_setup", SmallInteger),
        _key("client", SmallInteger),
        _key("generation", Integer),
    )


epoch = Table(
    "epoch",
    metadata,
    _key("number", Integer),
    _column("instance", LargeBinary),
    _column("started", BigInteger),
)

store_state = Table(
    "store_state",
    metadata,
    _key("number", Integer),
    _column("schema", Text),
    _column("epochs", LargeBinary),
    _column("advance", BigInteger),
    _column("audit_sequence", BigInteger),
    _column("audit_hash", LargeBinary),
    _column("counter_reach", BigInteger),
    _column("counter_highest", BigInteger),
    _column("counter_offset", BigInteger),
    _column("sequence_floor", BigInteger),
    _column("generation_floor", BigInteger),
    _column("sums", Text),
    _column("mac_key", Integer),
    _column("mac", LargeBinary),
)

audit = Table(
    "audit",
    metadata,
    _key("sequence", BigInteger),
    _column("epoch", Integer),
    _column("time", Text),
    _column("actor", Text),
    _column("action", Text),
    _column("subject", Text),
    _column("detail", Text),
    _column("effect", LargeBinary),
    _column("previous", LargeBinary),
    _column("hash", LargeBinary),
)

parties = Table(
    "parties",
    metadata,
    _key("name", Text),
    _column("role", Text),
    _column("system_title", LargeBinary, null=True),
    _column("flags", Text),
    _column("kind", Text),
    _column("address", Text, null=True),
    _column("certificates", Text),
    *_authenticated(),
    Index(None, "system_title", unique=True),
)

officers = Table(
    "officers",
    metadata,
    _key("name", Text),
    _column("powers", Text),
    _column("fingerprint", LargeBinary),
    _column("state", Text),
    *_authenticated(),
)

certificates = Table(
    "certificates",
    metadata,
    _key("fingerprint", LargeBinary),
    _column("der", LargeBinary),
    _column("profile", Text),
    _column("subject", Text),
    _column("issuer", Text),
    _column("serial", LargeBinary),
    _column("not_before", BigInteger),
    _column("not_after", BigInteger),
    _column("owner", Text),
    _column("state", Text),
    _column("source", Text),
    *_authenticated(),
    Index(None, "owner", "profile"),
    Index(None, "not_after"),
)

issuances = Table(
    "issuances",
    metadata,
    _key("issuer", Text),
    _key("serial", LargeBinary),
    _column("profile", Text),
    _column("subject", Text),
    _column("tbs_digest", LargeBinary),
    _column("not_before", BigInteger),
    _column("not_after", BigInteger),
    _column("state", Text),
    _column("fingerprint", LargeBinary, null=True),
    _column("revoked", BigInteger, null=True),
    _column("reason", Text, null=True),
    *_authenticated(),
    sqlite_with_rowid=False,
)

certified_keys = Table(
    "certified_keys",
    metadata,
    _key("digest", LargeBinary),
    _column("profile", Text),
    _column("subject", Text),
    *_authenticated(),
    sqlite_with_rowid=False,
)

revocation_lists = Table(
    "revocation_lists",
    metadata,
    _key("issuer", Text),
    _key("number", BigInteger),
    _column("this_update", BigInteger),
    _column("next_update", BigInteger),
    _column("digest", LargeBinary),
    *_authenticated(null=True),
)

orders = Table(
    "orders",
    metadata,
    _number("number"),
    _column("id", Text),
    _column("name", Text),
    _column("rows", Integer),
    _column("state", Text),
    _column("created", BigInteger),
    *_authenticated(null=True),
    UniqueConstraint("id"),
)

models = Table(
    "models",
    metadata,
    _number("number"),
    _column("name", Text),
    _column("suite", SmallInteger, null=True),
    _column("storage_key", Integer, null=True),
    _column("keys", LargeBinary, null=True),
    *_authenticated(null=True),
    UniqueConstraint("name"),
)

meters = Table(
    "meters",
    metadata,
    _key("system_title", LargeBinary),
    _column("serial", Text),
    _column("model", Integer),
    _column("suite", SmallInteger),
    _column("order", Integer, null=True),
    _column("address", Text, null=True),
    _column("concentrator", Text, null=True),
    _column("registered", BigInteger, null=True),
    _column("state", Text, null=True),
    *_authenticated(null=True),
    ForeignKeyConstraint(["model"], ["models.number"]),
    ForeignKeyConstraint(["order"], ["orders.number"]),
    Index(None, "serial"),
    sqlite_with_rowid=False,
)

key_sets = Table(
    "key_sets",
    metadata,
    *_key_set_columns(),
    _column("suite", SmallInteger),
    _column("storage_key", Integer),
    _column("state", SmallInteger),
    _column("keys", LargeBinary),
    _column("mac_key", Integer),
    _column("mac", LargeBinary),
    _column("batch", BigInteger),
    _column("destroy_after", BigInteger, null=True),
    sqlite_with_rowid=False,
)

key_states = Table(
    "key_states",
    metadata,
    *_key_set_columns(),
    _column("state", SmallInteger),
    _column("changed", BigInteger),
    *_authenticated(),
    sqlite_with_rowid=False,
)

counters = Table(
    "counters",
    metadata,
    _key("identity", LargeBinary),
    _key("client_title", LargeBinary),
    _column("next", BigInteger),
    _column("trial_low", BigInteger, null=True),
    _column("trial_next", BigInteger, null=True),
    *_authenticated(),
    sqlite_with_rowid=False,
)

receive_counters = Table(
    "receive_counters",
    metadata,
    _key("identity", LargeBinary),
    _key("server_title", LargeBinary),
    _column("lowest", BigInteger),
    *_authenticated(),
    sqlite_with_rowid=False,
)

transactions = Table(
    "transactions",
    metadata,
    _key("recipient", LargeBinary),
    _column("next", BigInteger),
    *_authenticated(),
    sqlite_with_rowid=False,
)

permissions = Table(
    "permissions",
    metadata,
    _key("party", Text),
    _key("system_title", LargeBinary),
    _column("state", Text),
    *_authenticated(),
    sqlite_with_rowid=False,
)

packages = Table(
    "packages",
    metadata,
    _key("id", Text),
    _column("direction", Text),
    _column("purpose", Text),
    _column("sequence", BigInteger),
    _column("peer", Text),
    _column("created", BigInteger),
    _column("expires", BigInteger),
    _column("sha256", LargeBinary),
    _column("state", Text),
    _column("meters", Integer),
    _column("receipt", LargeBinary, null=True),
    *_authenticated(),
    UniqueConstraint("direction", "peer", "purpose", "sequence"),
)

holders = Table(
    "holders",
    metadata,
    _key("identity", LargeBinary),
    *_key_set_columns(),
    _key("party", Text),
    _key("package_id", Text),
    _column("given", BigInteger),
    Index(None, "system_title"),
    sqlite_with_rowid=False,
)

holder_lists = Table(
    "holder_lists",
    metadata,
    _key("package_id", Text),
    _column("meters", LargeBinary),
    _column("digest", LargeBinary),
    *_authenticated(),
)

intents = Table(
    "intents",
    metadata,
    _number("id"),
    _column("system_title", LargeBinary),
    _column("action", Text),
    _column("detail", Text),
    _column("opened", BigInteger),
    _column("outcome", Text, null=True),
    _column("closed", BigInteger, null=True),
    *_authenticated(null=True),
    Index(None, "system_title"),
)

renewals = Table(
    "renewals",
    metadata,
    _number("id"),
    _column("system_title", LargeBinary),
    _column("security_setup", SmallInteger),
    _column("client", SmallInteger),
    _column("from_generation", Integer),
    _column("to_generation", Integer),
    _column("roles", Text),
    _column("stage", Text),
    _column("state", Text),
    _column("attempts", Integer),
    _column("tried", Text),
    _column("campaign", Integer, null=True),
    _column("created", BigInteger),
    _column("updated", BigInteger),
    *_authenticated(null=True),
    Index(None, "system_title"),
    Index(None, "state"),
)

leases = Table(
    "leases",
    metadata,
    _key("system_title", LargeBinary),
    _column("holder", Text, null=True),
    _column("fence", BigInteger),
    _column("expires", BigInteger),
    sqlite_with_rowid=False,
)

campaigns = Table(
    "campaigns",
    metadata,
    _number("id"),
    _column("name", Text),
    _column("kind", Text),
    _column("state", Text),
    _column("settings", Text),
    _column("reason", Text),
    _column("paced", BigInteger),
    _column("failed_before", Integer),
    _column("done_before", Integer),
    _column("created", BigInteger),
    _column("updated", BigInteger),
    UniqueConstraint("name"),
)

campaign_counts = Table(
    "campaign_counts",
    metadata,
    _key("campaign", Integer),
    _key("state", Text),
    _column("meters", Integer),
    ForeignKeyConstraint(["campaign"], ["campaigns.id"]),
    sqlite_with_rowid=False,
)

campaign_slices = Table(
    "campaign_slices",
    metadata,
    _number("id"),
    _column("campaign", Integer),
    _column("holder", Text),
    _column("fence", BigInteger),
    _column("expires", BigInteger),
    _column("state", Text),
    ForeignKeyConstraint(["campaign"], ["campaigns.id"]),
    Index(None, "campaign", "state", "expires"),
)

campaign_meters = Table(
    "campaign_meters",
    metadata,
    _key("campaign", Integer),
    _key("system_title", LargeBinary),
    _column("state", Text),
    _column("attempts", Integer),
    _column("not_before", BigInteger),
    _column("above", Integer),
    _column("slice", Integer, null=True),
    _column("outcome", Text, null=True),
    _column("updated", BigInteger),
    ForeignKeyConstraint(["campaign"], ["campaigns.id"]),
    Index(None, "campaign", "state", "not_before"),
    Index(None, "slice"),
    sqlite_with_rowid=False,
)

approvals = Table(
    "approvals",
    metadata,
    _key("id", Text),
    _column("action", Text),
    _column("subject", Text),
    _column("digest", LargeBinary),
    _column("requested_by", Text),
    _column("decisions", Text),
    _column("state", Text),
    _column("created", BigInteger),
    _column("expires", BigInteger),
    *_authenticated(),
)

broadcast_groups = Table(
    "broadcast_groups",
    metadata,
    _key("name", Text),
    _column("suite", SmallInteger),
    _column("client", SmallInteger),
    _column("origin", Text),
    _column("renewal", Text),
    *_authenticated(),
    sqlite_with_rowid=False,
)

group_keys = Table(
    "group_keys",
    metadata,
    _key("group", Text),
    _key("generation", Integer),
    _column("storage_key", Integer),
    _column("keys", LargeBinary),
    _column("state", Text),
    *_authenticated(),
    ForeignKeyConstraint(["group"], ["broadcast_groups.name"]),
    sqlite_with_rowid=False,
)

group_members = Table(
    "group_members",
    metadata,
    _key("group", Text),
    _key("system_title", LargeBinary),
    _key("security_setup", SmallInteger),
    _key("client", SmallInteger),
    _column("state", Text),
    *_authenticated(),
    ForeignKeyConstraint(["group"], ["broadcast_groups.name"]),
    Index(None, "system_title"),
    sqlite_with_rowid=False,
)

urgent_renewals = Table(
    "urgent_renewals",
    metadata,
    _key("group", Text),
    _key("system_title", LargeBinary),
    _key("security_setup", SmallInteger),
    _key("client", SmallInteger),
    _column("roles", Text),
    _column("above", Integer),
    _column("reason", Text),
    _column("queued", BigInteger),
    _column("settled", BigInteger, null=True),
    *_authenticated(),
    sqlite_with_rowid=False,
)

retirement = Table(
    "retirement",
    metadata,
    _key("number", Integer),
    _column("recipient", LargeBinary),
    _column("since", BigInteger),
    *_authenticated(),
    sqlite_with_rowid=False,
)
