"""The database of one deployment, its transactions, and the MACs that bind its rows to the token.

A change is `with store.begin(action, subject, detail) as tx: ...`: one database transaction, which ends with one audit
record holding a digest of everything the functions of this package did in it. If the block raises, nothing stays.
Functions that change something take `tx` and never commit; so what belongs together is what stands in one block.

    with Store.open("sqlite:home/store.db", vault, "operator") as store:
        with store.begin("meter register", "5554490000000001", {"concentrator": "dc-1"}) as tx:
            meters.update(tx, replace(meters.get(tx, title), concentrator="dc-1"))
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from sqlalchemy import Connection, Engine, Select, Table

from hsmkm.errors import IntegrityError, PolicyError
from hsmkm.store import engine as engines
from hsmkm.store import revision, schema, state, statements, sums
from hsmkm.store.anchor import Anchor
from hsmkm.store.canonical import MECHANISM, Value, canonical_json, encode
from hsmkm.store.cells import altered
from hsmkm.store.failures import database_errors
from hsmkm.store.group_commit import GroupCommit
from hsmkm.store.guard import Guard, Opening
from hsmkm.store.known_macs import KnownMacs
from hsmkm.store.shared_change import SharedChange
from hsmkm.store.snapshot import copy_store
from hsmkm.store.state import StoreState
from hsmkm.token.types import Mac

StoredRow: TypeAlias = dict[str, Any]
"""A row as it is stored, by the names of its columns."""


class Authenticator(Protocol):
    """Whoever can use the integrity keys: the token's vault, or a worker that has one."""

    @property
    def integrity_key(self) -> int:
        """The number of the newest integrity key, which `mac` uses."""

    def mac(self, data: bytes) -> Mac:
        """Make a MAC of 32 octets with the newest integrity key."""

    def verify(self, data: bytes, mac: Mac) -> None:
        """Raise IntegrityError unless `mac` was made over `data` by the integrity key that it names."""

    def still_there(self) -> None:
        """Raise TokenUnreachableError if the keys for new work were retired by another process."""


class Transaction:
    """One transaction: reads see one moment, writes become durable together or not at all."""

    def __init__(
        self,
        connection: Connection,
        authenticator: Authenticator | None,
        now: datetime,
        known: KnownMacs | None = None,
        *,
        writes: bool = False,
    ) -> None:
        self.connection = connection
        self._known = known or KnownMacs()
        self.authenticator = authenticator
        self.now = now
        self._writes = writes
        self.sequence = 0
        """The number of the audit record that this transaction will end with; 0 where it has none."""
        self._effect = hashlib.sha256()
        self.before: StoreState | None = None
        """The verified state of the store that a change began from."""
        self.changes = sums.Changes()
        self.counters: dict[object, tuple[int, int]] = {}
        """By counter, how far this transaction moved it, and to where."""
        self.verified: dict[str, bytes] = {}
        """The lists of packages that were verified in this transaction, which never change, by package."""
        self.appended: tuple[int, bytes] | None = None
        """Sequence and hash of the audit record that was appended."""

    def state(self) -> StoreState | None:
        """Give the verified state of the store as this transaction found it; nothing while a new one has none."""
        return self.before or state.fetch(self)

    def counter_moved(self, counter: object, increase: int, reached: int) -> None:
        """Note how far a counter was moved, and to where: recovery must know how far any can have gone."""
        moved, highest = self.counters.get(counter, (0, 0))
        self.counters[counter] = moved + max(increase, 0), max(highest, reached)

    def effect(self, data: bytes) -> None:
        """Tell the audit record what was changed; raises PolicyError in a transaction that only reads."""
        if not self._writes:
            raise PolicyError("this transaction only reads", hint="open the store with the token, and begin a change")
        self._effect.update(len(data).to_bytes(4, "big"))
        self._effect.update(data)

    def effect_digest(self) -> bytes:
        """Digest all effects so far (32 octets)."""
        return self._effect.digest()

    def insert(self, table: Table, values: Mapping[str, Value]) -> int:
        """Insert one row; the number the database gave it is returned, or 0 if it gives none."""
        self.effect(_change("insert", table, values))
        if table.name in sums.TABLES:
            self.changes.add(table.name, values.get("mac"))
        result = self.connection.execute(statements.insertion(table), dict(values))
        key = result.inserted_primary_key
        return key[0] if key and isinstance(key[0], int) else 0

    def insert_rows(self, table: Table, columns: Sequence[str], rows: Iterable[engines.Row]) -> int:
        """Insert many rows given as tuples in the order of `columns`; the caller tells their effect."""
        given = list(rows)
        if table.name in sums.TABLES:
            place = columns.index("mac") if "mac" in columns else None
            for row in given:
                self.changes.add(table.name, None if place is None else row[place])
        return engines.insert_rows(self.connection, table, columns, given)

    def update(self, table: Table, key: Mapping[str, Value], changes: Mapping[str, Value]) -> int:
        """Change the rows that `key` matches and return how many they were."""
        before = self._macs(table, key) if table.name in sums.TABLES and "mac" in changes else []
        return self._update(table, key, changes, before)

    def replace(self, table: Table, row: StoredRow, key: Sequence[str], changes: Mapping[str, Value]) -> int:
        """Change the one row that was read in this transaction, whose `key` names its revision too; 0 if it is gone."""
        wanted: dict[str, Value] = {name: row[name] for name in key}
        return self._update(table, wanted, changes, [row["mac"]])

    def _update(
        self, table: Table, key: Mapping[str, Value], changes: Mapping[str, Value], before: Sequence[object]
    ) -> int:
        self.effect(_change("update", table, key, changes))
        statement = statements.change_at(table, statements.shape(key))
        changed = self.connection.execute(statement, dict(changes) | statements.bound(key)).rowcount
        for mac in before[:changed]:
            self.changes.remove(table.name, mac)
            self.changes.add(table.name, changes["mac"])
        return changed

    def update_macs(self, table: Table, key: Sequence[str], rows: Sequence[tuple[bytes, StoredRow]]) -> None:
        """Change many rows, each given with the MAC that it had; the cells of `key` say which, the others are new.

        The new MACs cover the rows, and so tell the audit record what was done.
        """
        self.effect(encode(f"update {table.name}", *(row["mac"] for _, row in rows)))
        for before, row in rows:
            self.changes.remove(table.name, before)
            self.changes.add(table.name, row["mac"])
        statement = statements.change_at(table, tuple((name, False) for name in key))
        named = [{f"at_{name}" if name in key else name: value for name, value in row.items()} for _, row in rows]
        self.connection.execute(statement, named)

    def delete(self, table: Table, key: Mapping[str, Value]) -> int:
        """Delete the rows that `key` matches and return how many they were."""
        self.effect(_change("delete", table, key))
        if table.name in sums.TABLES:
            for mac in self._macs(table, key):
                self.changes.remove(table.name, mac)
        statement = statements.deletion_at(table, statements.shape(key))
        return self.connection.execute(statement, statements.bound(key)).rowcount

    def _macs(self, table: Table, key: Mapping[str, Value]) -> list[object]:
        """Read the MACs of the rows that `key` matches."""
        return self.column(table, "mac", key)

    def at(self, table: Table, key: Mapping[str, Value]) -> StoredRow | None:
        """Read the first row that `key` matches."""
        statement = statements.rows_at(table, statements.shape(key))
        row = self.connection.execute(statement, statements.bound(key)).first()
        return None if row is None else row._asdict()

    def column(self, table: Table, name: str, key: Mapping[str, Value]) -> list[Any]:
        """Read one column of the rows that `key` matches."""
        statement = statements.column_at(table, name, statements.shape(key))
        return list(self.connection.scalars(statement, statements.bound(key)))

    def highest(self, table: Table, name: str, key: Mapping[str, Value]) -> int:
        """Give the highest number in a column of the rows that `key` matches; 0 where there is none."""
        statement = statements.highest_at(table, name, statements.shape(key))
        return self.connection.scalar(statement, statements.bound(key)) or 0

    def one(self, statement: Select[Any], values: Mapping[str, Value] | None = None) -> StoredRow | None:
        """Read the first row; `values` are those of the statement's parameters."""
        row = self.connection.execute(statement, dict(values or {})).first()
        return None if row is None else row._asdict()

    def all(self, statement: Select[Any]) -> list[StoredRow]:
        """Read all rows."""
        return [row._asdict() for row in self.connection.execute(statement)]

    def stream(self, statement: Select[Any]) -> Iterator[StoredRow]:
        """Read rows without holding them all."""
        with self.connection.execute(statement, execution_options={"yield_per": 1000}) as result:
            for row in result:
                yield row._asdict()

    def mac(self, label: str, *values: Value) -> Mac:
        """Make the MAC of a row; the mechanism and the integrity key's number are part of what it covers."""
        if self.authenticator is None:
            raise PolicyError("a change needs the token", hint="open the store with the token's vault")
        number = self.authenticator.integrity_key
        data = encode(label, MECHANISM, number, *values)
        mac = self.authenticator.mac(data)
        if mac.key_number != number:
            raise IntegrityError("the integrity key changed while a row was being authenticated")
        self._known.add(data, mac)
        return mac

    def verify(self, row: str, mac: Mac, label: str, *values: Value) -> None:
        """Raise IntegrityError, naming the row, unless its MAC fits; a listing without a token checks nothing."""
        if self.authenticator is None:
            return
        try:
            data = encode(label, MECHANISM, mac.key_number, *values)
            if self._known.holds(data, mac):
                return
            self.authenticator.verify(data, mac)
        except IntegrityError as error:
            raise altered(row) from error
        self._known.add(data, mac)


Permit: TypeAlias = Callable[[Transaction, str, str], None]
"""Raises PolicyError where an actor may not do an action (empty for counters and leases) in this transaction."""


class Store:
    """One database, opened by one actor."""

    def __init__(
        self,
        engine: Engine,
        authenticator: Authenticator | None,
        actor: str,
        clock: Callable[[], datetime],
        anchor: Anchor | None = None,
    ) -> None:
        self._engine = engine
        self._authenticator = authenticator
        self.guard = Guard(authenticator, anchor, self.read, self._alone_at_anchor) if authenticator else None
        self._actor = actor
        self._clock = clock
        self.permit: Permit | None = None
        """Asked before each change, whether the actor may make it."""
        self._open = threading.local()
        self._known = KnownMacs()
        self._group = GroupCommit(self._begin)

    @classmethod
    def create(cls, url: str) -> None:
        """Make a store, or bring an older one to the newest schema; one that is there already is left as it is.

        Raises RefusedError for a store of a newer program.
        """
        from hsmkm.store.migrate import upgrade  # noqa: PLC0415 - alembic takes 0.1 s to load and only this needs it

        engine = engines.open_engine(url, create=True)
        try:
            with database_errors():
                if revision.known(engine) is None:
                    revision.refuse_strangers(engine)
                upgrade(engine)
        finally:
            engine.dispose()

    @classmethod
    def exists(cls, url: str) -> bool:
        """Tell whether there is a store, of whatever schema; raises RefusedError for what is another program's."""
        if not engines.exists(url):
            return False
        engine = engines.open_engine(url)
        try:
            with database_errors():
                return revision.known(engine) is not None
        finally:
            engine.dispose()

    @classmethod
    def open(
        cls,
        url: str,
        authenticator: Authenticator | None,
        actor: str,
        clock: Callable[[], datetime] | None = None,
        anchor: Anchor | None = None,
        opening: Opening = Opening.USE,
    ) -> Store:
        """Open a store; without an authenticator it only lists, and the rows it lists are not verified.

        Without an anchor outside the database nothing shows that it was restored. Raises RefusedError if there is none
        or its schema is not this program's, IntegrityError if the anchor contradicts it or rows are missing.
        """
        engine = engines.open_engine(url)
        try:
            with database_errors():
                revision.require_newest(engine)
            opened = cls(engine, authenticator, actor, clock or _utc_now, anchor)
            if opened.guard is not None:
                opened.guard.opened(opening)
        except BaseException:
            engine.dispose()
            raise
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def begin(
        self, action: str, subject: str, detail: Mapping[str, object], *, although_retired: bool = False
    ) -> Iterator[Transaction]:
        """Change the store: what the block does becomes durable at its end, together with its audit record.

        Blocks of several threads may become durable together: see `hsmkm.store.group_commit`.
        Raises PolicyError without an authenticator or in a home that was retired, RefusedError for a row that is there
        already, and StoreUnavailableError if the database cannot be written.
        """
        text = canonical_json(detail)
        with self._change(action, although_retired=although_retired) as (tx, shared):
            sequence, previous = shared.newest_record()
            tx.sequence = sequence + 1
            yield tx
            _append(tx, previous, (self._actor, action, subject, text))

    @contextmanager
    def count(self) -> Iterator[Transaction]:
        """Change counters and leases only: durable at its end, without an audit record.

        They change with every association and say nothing that someone did; a counter's row carries a MAC and a
        revision, a lease its fence. Raises as `begin`.
        """
        with self._change("") as (tx, _):
            yield tx

    @contextmanager
    def _change(self, action: str, *, although_retired: bool = False) -> Iterator[tuple[Transaction, SharedChange]]:
        if self.guard is None:
            raise PolicyError("the store is open for listing only", hint="a change needs the token")
        with self._once(), database_errors(), self._group.block() as shared:
            tx = Transaction(shared.connection, self._authenticator, self._clock(), self._known, writes=True)
            tx.before = shared.state
            if not although_retired:
                _refuse_retired(shared.connection)
            if self.permit is not None:
                self.permit(tx, self._actor, action)
            yield tx, shared
            if tx.appended or tx.changes.tables:
                shared.changed_to(tx.before.after(tx.changes, tx.appended, tx.counters))

    def _begin(self) -> SharedChange:
        if self.guard is None:
            raise RuntimeError("a change was begun without a token")
        with ExitStack() as stack:
            connection = stack.enter_context(self._engine.connect())
            connection.begin()
            tx = Transaction(connection, self._authenticator, self._clock(), self._known, writes=True)
            found = self.guard.enter(tx)
            if found.mac.key_number > self.guard.authenticator.integrity_key:
                self.guard.authenticator.still_there()
            stack.pop_all()
            return SharedChange(tx, self.guard, found)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Read the store as it is at one moment."""
        reading: Transaction | None = getattr(self._open, "reading", None)
        if reading is not None:
            yield reading
            return
        with database_errors(), self._engine.connect() as plain:
            connection = plain.execution_options(**{engines.READ_ONLY: True})
            with connection.begin():
                yield Transaction(connection, self._authenticator, self._clock(), self._known)

    @contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """Let all that this thread reads within be read at one moment, in one transaction; it changes nothing there."""
        with self.read() as tx:
            self._open.reading = tx
            try:
                yield
            finally:
                self._open.reading = None

    def copy_to(self, path: Path) -> None:
        """Copy the database as it is at one moment into a new SQLite file."""
        with database_errors():
            copy_store(self._engine, path)

    def sweep(self) -> bool:
        """Leave nothing that was deleted in the database's files; False where that is not sure."""
        return engines.sweep(self._engine)

    @contextmanager
    def _alone_at_anchor(self) -> Iterator[None]:
        with database_errors(), engines.alone_at_anchor(self._engine):
            yield

    @contextmanager
    def _once(self) -> Iterator[None]:
        """Refuse a change inside a change: it would wait for itself."""
        if getattr(self._open, "change", False):
            raise RuntimeError("a change of the store is already open in this thread")
        self._open.change = True
        try:
            yield
        finally:
            self._open.change = False


def record_hash(record: Mapping[str, Any]) -> bytes:
    """Hash one audit record (SHA-256, 32 octets) over all its columns but the hash itself."""
    columns = (column.name for column in schema.audit.columns if column.name != "hash")
    return hashlib.sha256(encode("hsmkm audit/1", *(record[name] for name in columns))).digest()


def _append(tx: Transaction, previous: bytes, words: tuple[str, str, str, str]) -> None:
    actor, action, subject, detail = words
    record: dict[str, Any] = {
        "sequence": tx.sequence,
        "epoch": tx.highest(schema.epoch, "number", {}),
        "time": tx.now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "actor": actor,
        "action": action,
        "subject": subject,
        "detail": detail,
        "effect": tx.effect_digest(),
        "previous": previous,
    }
    tx.appended = tx.sequence, record_hash(record)
    tx.connection.execute(statements.insertion(schema.audit), record | {"hash": tx.appended[1]})


def _refuse_retired(connection: Connection) -> None:
    if connection.execute(statements.column_at(schema.retirement, "number", ())).first() is not None:
        raise PolicyError("this home is retired: its keys went to another token", hint="work with the new home")


def _change(verb: str, table: Table, *parts: Mapping[str, Value]) -> bytes:
    flat = [item for part in parts for pair in sorted(part.items()) for item in pair]
    return encode(f"{verb} {table.name}", len(parts[0]), *flat)


def _utc_now() -> datetime:
    return datetime.now(UTC)
