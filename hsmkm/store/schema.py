"""All tables, as the newest migration leaves them; `hsmkm/store/migrations` holds how they came about.

Times are whole seconds since 1970 UTC, except in the audit record, whose text is what is hashed. Rows that carry a MAC
have `revision` (from 1), `mac_key` (number of the integrity key) and `mac` (32 octets). Tables of one row for each
meter are clustered by their primary key (WITHOUT ROWID on SQLite), so that a batch in key order is written in order.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, Integer, LargeBinary, Table, Text, text

from hsmkm.store.columns import authenticated, column, key, metadata
from hsmkm.store.key_tables import (
    broadcast_groups,
    counters,
    group_keys,
    group_members,
    key_sets,
    key_states,
    meters,
    models,
    orders,
    receive_counters,
    transactions,
)
from hsmkm.store.party_tables import (
    approvals,
    certificates,
    certified_keys,
    holder_lists,
    holders,
    issuances,
    officers,
    packages,
    parties,
    permissions,
    revocation_lists,
)
from hsmkm.store.work_tables import (
    campaign_counts,
    campaign_meters,
    campaign_slices,
    campaigns,
    intents,
    leases,
    renewals,
    urgent_renewals,
)

__all__ = [
    "HEAD",
    "REFUSED_ROWS",
    "REVISIONS",
    "approvals",
    "audit",
    "broadcast_groups",
    "campaign_counts",
    "campaign_meters",
    "campaign_slices",
    "campaigns",
    "certificates",
    "certified_keys",
    "counters",
    "epoch",
    "group_keys",
    "group_members",
    "holder_lists",
    "holders",
    "intents",
    "issuances",
    "key_sets",
    "key_states",
    "leases",
    "metadata",
    "meters",
    "models",
    "officers",
    "orders",
    "packages",
    "parties",
    "permissions",
    "receive_counters",
    "renewals",
    "retirement",
    "revocation_lists",
    "store_state",
    "transactions",
    "urgent_renewals",
]

HEAD = "0012"
"""The migration that this program reads and writes."""

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010", "0011", "0012")
"""Every migration so far, oldest first."""

epoch = Table(
    "epoch",
    metadata,
    key("number", Integer),
    column("instance", LargeBinary),
    column("started", BigInteger),
)

store_state = Table(
    "store_state",
    metadata,
    key("number", Integer),
    column("schema", Text),
    column("epochs", LargeBinary),
    column("advance", BigInteger),
    column("audit_sequence", BigInteger),
    column("audit_hash", LargeBinary),
    column("counter_reach", BigInteger),
    column("counter_highest", BigInteger),
    column("counter_offset", BigInteger),
    column("sequence_floor", BigInteger),
    column("generation_floor", BigInteger),
    column("sums", Text),
    column("mac_key", Integer),
    column("mac", LargeBinary),
)

REFUSED_ROWS = text("action >= 'refused: ' AND action < 'refused:!'")
"""What meters answered suspiciously: few records, of which those of one meter are found without reading all others."""

audit = Table(
    "audit",
    metadata,
    key("sequence", BigInteger),
    column("epoch", Integer),
    column("time", Text),
    column("actor", Text),
    column("action", Text),
    column("subject", Text),
    column("detail", Text),
    column("effect", LargeBinary),
    column("previous", LargeBinary),
    column("hash", LargeBinary),
    Index("ix_audit_refused", "subject", sqlite_where=REFUSED_ROWS, postgresql_where=REFUSED_ROWS),
)

retirement = Table(
    "retirement",
    metadata,
    key("number", Integer),
    column("recipient", LargeBinary),
    column("since", BigInteger),
    *authenticated(),
    sqlite_with_rowid=False,
)
