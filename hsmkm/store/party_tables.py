"""Tables of whom we deal with: parties, officers, certificates, and what was given to whom in which package."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, Integer, LargeBinary, Table, Text, UniqueConstraint

from hsmkm.store.columns import authenticated, column, key, key_set_columns, metadata

parties = Table(
    "parties",
    metadata,
    key("name", Text),
    column("role", Text),
    column("system_title", LargeBinary, null=True),
    column("flags", Text),
    column("kind", Text),
    column("address", Text, null=True),
    column("certificates", Text),
    *authenticated(),
    Index(None, "system_title", unique=True),
)

officers = Table(
    "officers",
    metadata,
    key("name", Text),
    column("powers", Text),
    column("fingerprint", LargeBinary),
    column("state", Text),
    *authenticated(),
)

approvals = Table(
    "approvals",
    metadata,
    key("id", Text),
    column("action", Text),
    column("subject", Text),
    column("digest", LargeBinary),
    column("requested_by", Text),
    column("decisions", Text),
    column("state", Text),
    column("created", BigInteger),
    column("expires", BigInteger),
    *authenticated(),
)

permissions = Table(
    "permissions",
    metadata,
    key("party", Text),
    key("system_title", LargeBinary),
    column("state", Text),
    *authenticated(),
    sqlite_with_rowid=False,
)

certificates = Table(
    "certificates",
    metadata,
    key("fingerprint", LargeBinary),
    column("der", LargeBinary),
    column("profile", Text),
    column("subject", Text),
    column("issuer", Text),
    column("serial", LargeBinary),
    column("not_before", BigInteger),
    column("not_after", BigInteger),
    column("owner", Text),
    column("state", Text),
    column("source", Text),
    *authenticated(),
    Index(None, "owner", "profile"),
    Index(None, "not_after"),
)

issuances = Table(
    "issuances",
    metadata,
    key("issuer", Text),
    key("serial", LargeBinary),
    column("profile", Text),
    column("subject", Text),
    column("tbs_digest", LargeBinary),
    column("not_before", BigInteger),
    column("not_after", BigInteger),
    column("state", Text),
    column("fingerprint", LargeBinary, null=True),
    column("revoked", BigInteger, null=True),
    column("reason", Text, null=True),
    *authenticated(),
    sqlite_with_rowid=False,
)

certified_keys = Table(
    "certified_keys",
    metadata,
    key("digest", LargeBinary),
    column("profile", Text),
    column("subject", Text),
    *authenticated(),
    sqlite_with_rowid=False,
)

revocation_lists = Table(
    "revocation_lists",
    metadata,
    key("issuer", Text),
    key("number", BigInteger),
    column("this_update", BigInteger),
    column("next_update", BigInteger),
    column("digest", LargeBinary),
    *authenticated(null=True),
)

packages = Table(
    "packages",
    metadata,
    key("id", Text),
    column("direction", Text),
    column("purpose", Text),
    column("sequence", BigInteger),
    column("peer", Text),
    column("created", BigInteger),
    column("expires", BigInteger),
    column("sha256", LargeBinary),
    column("state", Text),
    column("meters", Integer),
    column("receipt", LargeBinary, null=True),
    *authenticated(),
    UniqueConstraint("direction", "peer", "purpose", "sequence"),
)

holders = Table(
    "holders",
    metadata,
    key("identity", LargeBinary),
    *key_set_columns(),
    key("party", Text),
    key("package_id", Text),
    column("given", BigInteger),
    Index(None, "system_title"),
    sqlite_with_rowid=False,
)

holder_lists = Table(
    "holder_lists",
    metadata,
    key("package_id", Text),
    column("meters", LargeBinary),
    column("digest", LargeBinary),
    *authenticated(),
)
