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
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from sqlalchemy import (
    Connection,
    Engine,
    NestedTransaction,
    Select,
    Table,
    bindparam,
    delete,
    exc,
    func,
    insert,
    select,
    update,
)

from hsmkm.errors import IntegrityError, PolicyError, RefusedError
from hsmkm.store import engine as engines
from hsmkm.store import revision, schema, state, sums
from hsmkm.store.anchor import Anchor
from hsmkm.store.canonical import MECHANISM, Value, canonical_json, encode
from hsmkm.store.failures import database_errors
from hsmkm.store.group_commit import GroupCommit
from hsmkm.store.guard import Guard, Opening
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
        self, connection: Connection, authenticator: Authenticator | None, now: datetime, *, writes: bool = False
    ) -> None:
        self.connection = connection
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
        result = self.connection.execute(insert(table).values(dict(values)))
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
        self.effect(_change("update", table, key, changes))
        if table.name in sums.TABLES and "mac" in changes:
            for mac in self._macs(table, key):
                self.changes.remove(table.name, mac)
                self.changes.add(table.name, changes["mac"])
        return self.connection.execute(_where(update(table), table, key).values(dict(changes))).rowcount

    def update_macs(self, table: Table, key: Sequence[str], rows: Sequence[tuple[bytes, StoredRow]]) -> None:
        """Change many rows, each given with the MAC that it had; the cells of `key` say which, the others are new."""
        for before, row in rows:
            self.effect(_change("update", table, {name: row[name] for name in key}, row))
            self.changes.remove(table.name, before)
            self.changes.add(table.name, row["mac"])
        statement = _where(update(table), table, {name: bindparam(f"key_{name}") for name in key})
        bound = [{f"key_{name}" if name in key else name: value for name, value in row.items()} for _, row in rows]
        changed = [name for name in rows[0][1] if name not in key]
        self.connection.execute(statement.values({name: bindparam(name) for name in changed}), bound)

    def delete(self, table: Table, key: Mapping[str, Value]) -> int:
        """Delete the rows that `key` matches and return how many they were."""
        self.effect(_change("delete", table, key))
        if table.name in sums.TABLES:
            for mac in self._macs(table, key):
                self.changes.remove(table.name, mac)
        return self.connection.execute(_where(delete(table), table, key)).rowcount

    def _macs(self, table: Table, key: Mapping[str, Value]) -> list[object]:
        """Read the MACs of the rows that `key` matches."""
        return list(self.connection.scalars(_where(select(table.c.mac), table, key)))

    def one(self, statement: Select[Any]) -> StoredRow | None:
        """Read the first row."""
        row = self.connection.execute(statement).first()
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
        mac = self.authenticator.mac(encode(label, MECHANISM, number, *values))
        if mac.key_number != number:
            raise IntegrityError("the integrity key changed while a row was being authenticated")
        return mac

    def verify(self, row: str, mac: Mac, label: str, *values: Value) -> None:
        """Raise IntegrityError, naming the row, unless its MAC fits; a listing without a token checks nothing."""
        if self.authenticator is None:
            return
        try:
            self.authenticator.verify(encode(label, MECHANISM, mac.key_number, *values), mac)
        except IntegrityError as error:
            raise altered(row) from error


Permit: TypeAlias = Callable[[Transaction, str, str], None]
"""Raises PolicyError where an actor may not do an action (empty for counters and leases) in this transaction."""


def altered(row: str) -> IntegrityError:
    """Say that a row does not fit its MAC; `row` names its table and key."""
    return IntegrityError(f"{row} does not fit its mac", hint="hsmkm store check names every altered row")


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
    def _change(self, action: str, *, although_retired: bool = False) -> Iterator[tuple[Transaction, _Shared]]:
        if self.guard is None:
            raise PolicyError("the store is open for listing only", hint="a change needs the token")
        with self._once(), database_errors(), self._group.block() as shared:
            tx = Transaction(shared.connection, self._authenticator, self._clock(), writes=True)
            tx.before = shared.state
            if not although_retired:
                _refuse_retired(shared.connection)
            if self.permit is not None:
                self.permit(tx, self._actor, action)
            yield tx, shared
            if tx.appended or tx.changes.tables:
                shared.changed_to(tx.before.after(tx.changes, tx.appended, tx.counters))

    def _begin(self) -> _Shared:
        if self.guard is None:
            raise RuntimeError("a change was begun without a token")
        with ExitStack() as stack:
            connection = stack.enter_context(self._engine.connect())
            connection.begin()
            tx = Transaction(connection, self._authenticator, self._clock(), writes=True)
            found = self.guard.enter(tx)
            if found.mac.key_number > self.guard.authenticator.integrity_key:
                self.guard.authenticator.still_there()
            stack.pop_all()
            return _Shared(tx, self.guard, found)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Read the store as it is at one moment."""
        with database_errors(), self._engine.connect() as plain:
            connection = plain.execution_options(**{engines.READ_ONLY: True})
            with connection.begin():
                yield Transaction(connection, self._authenticator, self._clock())

    def copy_to(self, path: Path) -> None:
        """Copy the database as it is at one moment into a new file; raises RefusedError where it is no SQLite file."""
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


class _Shared:
    """One transaction of the database, which the blocks of several threads may share."""

    def __init__(self, tx: Transaction, guard: Guard, found: StoreState) -> None:
        self.connection = tx.connection
        self.state = found
        """The state after the blocks so far; in the database it is written once, before the commit."""
        self._tx = tx
        self._guard = guard
        self._newest: tuple[int, bytes] | None = None
        self._changed = False
        self._savepoint: NestedTransaction | None = None
        self.for_one = not found.advance
        """The first change of a store stands alone: a crash before its anchor must not look like one that is gone."""

    def newest_record(self) -> tuple[int, bytes]:
        """Give sequence and hash of the newest audit record, compared with the database once."""
        if self._newest is None:
            self._newest = state.newest_record(self._tx, self.state)
        return self.state.audit_sequence, self.state.audit_hash

    def changed_to(self, after: StoreState) -> None:
        """Take note of the state after a block that changed something."""
        self.state, self._changed = after, True

    def savepoint(self) -> Callable[[], None]:
        """Set a savepoint before a block."""
        self._savepoint = self.connection.begin_nested()
        return self._savepoint.commit

    def back_to_savepoint(self) -> None:
        """Undo a block; StoreUnavailableError where the database has given up the whole transaction."""
        if self._savepoint is not None:
            with database_errors():
                self._savepoint.rollback()

    def commit(self) -> None:
        """Write the state, commit, and raise the anchor."""
        try:
            with database_errors():
                after = state.write(self._tx, self.state) if self._changed else None
                self.connection.commit()
        finally:
            self.roll_back()
        if after is not None:
            self._guard.committed(after)

    def roll_back(self) -> None:
        """Undo everything that is not committed."""
        with suppress(exc.DBAPIError):  # a connection that is gone has undone it already
            self.connection.rollback()
        with suppress(exc.DBAPIError):
            self.connection.close()


def record_hash(record: Mapping[str, Any]) -> bytes:
    """Hash one audit record (SHA-256, 32 octets) over all its columns but the hash itself."""
    columns = (column.name for column in schema.audit.columns if column.name != "hash")
    return hashlib.sha256(encode("hsmkm audit/1", *(record[name] for name in columns))).digest()


def _append(tx: Transaction, previous: bytes, words: tuple[str, str, str, str]) -> None:
    actor, action, subject, detail = words
    record: dict[str, Any] = {
        "sequence": tx.sequence,
        "epoch": tx.connection.scalar(select(func.max(schema.epoch.c.number))),
        "time": tx.now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "actor": actor,
        "action": action,
        "subject": subject,
        "detail": detail,
        "effect": tx.effect_digest(),
        "previous": previous,
    }
    tx.appended = tx.sequence, record_hash(record)
    tx.connection.execute(insert(schema.audit).values(record | {"hash": tx.appended[1]}))


def _refuse_retired(connection: Connection) -> None:
    if connection.execute(select(schema.retirement.c.number)).first() is not None:
        raise PolicyError("this home is retired: its keys went to another token", hint="work with the new home")


def _change(verb: str, table: Table, *parts: Mapping[str, Value]) -> bytes:
    flat = [item for part in parts for pair in sorted(part.items()) for item in pair]
    return encode(f"{verb} {table.name}", len(parts[0]), *flat)


def _where(statement: Any, table: Table, key: Mapping[str, Any]) -> Any:  # noqa: ANN401 - Update or Delete alike
    for name, value in key.items():
        statement = statement.where(table.c[name] == value)
    return statement


def refuse_other_schema(tx: Transaction) -> None:
    """Raise RefusedError where the store was brought to another schema since it was opened."""
    found = tx.connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if found != schema.HEAD:
        text = f"the store has the schema {found} now, and this program works with {schema.HEAD}"
        raise RefusedError(text, hint="upgrade what is older of both, and begin again: hsmkm store upgrade")


def _utc_now() -> datetime:
    return datetime.now(UTC)
