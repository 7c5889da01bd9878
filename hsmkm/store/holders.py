"""Who was given which key, and in which package: what to renew when a party is compromised or leaves.

A package gives tens of thousands of keys, so one MAC covers all its rows: that of its list, which has for each meter
the digest of the meter's rows. Whoever reads the rows of one meter reads the list, and no row of another.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeAlias

from sqlalchemy import Select, select

from hsmkm.errors import IntegrityError
from hsmkm.store.authenticated import AuthenticatedTable
from hsmkm.store.canonical import encode, item
from hsmkm.store.cells import altered, text_of
from hsmkm.store.key_set import IDENTITY_OCTETS, TITLE_OCTETS, KeySetRef
from hsmkm.store.pages import rows_of
from hsmkm.store.schema import holder_lists
from hsmkm.store.schema import holders as table
from hsmkm.store.store import StoredRow, Transaction
from hsmkm.store.times import from_seconds, to_seconds

COLUMNS = (
    "identity",
    "system_title",
    "security_setup",
    "client",
    "generation",
    "party",
    "package_id",
    "given",
)
LABEL = "hsmkm holder/1"
LISTS = AuthenticatedTable("hsmkm holder list/1", holder_lists, ("package_id",), ("package_id", "digest"))
"""`meters` is for each meter, by title, its 8 octets and the SHA-256 of its rows; `digest` is the SHA-256 of that."""
DIGEST_OCTETS = 32
ENTRY_OCTETS = TITLE_OCTETS + DIGEST_OCTETS

Place: TypeAlias = tuple[bytes, int, int, int]
"""System title, security setup, client and generation of a key set."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A party that was given a key of a set, at a moment that the store notes itself."""

    identity: bytes
    ref: KeySetRef
    party: str
    package_id: str
    given: datetime | None = None


def add_many(tx: Transaction, given: Iterable[Holder]) -> int:
    """Note all that packages give, and return how many keys that is; RefusedError where one was noted already."""
    now = to_seconds(tx.now)
    rows = []
    packages: dict[str, list[StoredRow]] = defaultdict(list)
    for holder in given:
        ref = holder.ref
        place = (ref.system_title, ref.security_setup, ref.client, ref.generation)
        row = (holder.identity, *place, holder.party, holder.package_id, now)
        rows.append(row)
        packages[holder.package_id].append(dict(zip(COLUMNS, row, strict=True)))
        tx.effect(b"".join((b"holder", holder.identity, str(ref).encode(), holder.party.encode())))
    for package_id, its in packages.items():
        _put_list(tx, package_id, its)
    return tx.insert_rows(table, COLUMNS, sorted(rows))


class Giving:
    """What a package gives, laid out as its key sets become known; noted at once in the transaction of the package."""

    def __init__(self, party: str, package_id: str, moment: datetime) -> None:
        now = to_seconds(moment)
        self._package_id = package_id
        self._before = item(LABEL) + item(bytes(IDENTITY_OCTETS))[:-IDENTITY_OCTETS]
        self._tail = b"".join([item(value) for value in (party, package_id, now)])
        self._cells = party, package_id, now
        self._rows: list[tuple[bytes | str | int | None, ...]] = []
        self._of_meters: dict[bytes, list[bytes]] = {}

    def add(self, sets: Iterable[tuple[Place, Sequence[bytes]]]) -> None:
        """Lay out key sets by their place, each with the identities of its keys."""
        before, tail, cells, of_meters = self._before, self._tail, self._cells, self._of_meters
        rows: list[tuple[bytes | str | int | None, ...]] = []
        for (title, *numbers), identities in sets:
            place = item(title) + b"".join([item(number) for number in numbers]) + tail
            of_meters.setdefault(title, []).extend([before + identity + place for identity in identities])
            rows += [(identity, title, *numbers, *cells) for identity in identities]
        rows.sort()  # and so the last sort has little left to do
        self._rows += rows

    def note(self, tx: Transaction) -> int:
        """Note it all, and return how many keys that is; RefusedError where one was noted already."""
        if not self._rows:
            return 0
        meters = sorted(self._of_meters.items())
        entries = b"".join([title + hashlib.sha256(b"".join(sorted(its))).digest() for title, its in meters])
        tx.effect(entries)
        digest = hashlib.sha256(entries).digest()
        LISTS.insert(tx, {"package_id": self._package_id, "meters": entries, "digest": digest})
        self._rows.sort()
        return tx.insert_rows(table, COLUMNS, self._rows)


def add_sets(tx: Transaction, party: str, package_id: str, sets: Iterable[tuple[Place, Sequence[bytes]]]) -> int:
    """Note what a package gives, as `add_many`: key sets by their place, each with the identities of its keys."""
    giving = Giving(party, package_id, tx.now)
    giving.add(sets)
    return giving.note(tx)


def for_key(tx: Transaction, identity: bytes, *, after: bytes = b"", meters: int | None = None) -> list[Holder]:
    """List who was given a key; raises IntegrityError where what its meter's holders are was altered.

    Many meters may have one key; `meters` of them at most are listed, by title, beginning behind `after`.
    """
    its = table.c.identity == identity, table.c.system_title > after
    statement = select(table).where(*its).order_by(*table.primary_key.columns)
    if meters is not None:
        titles = select(table.c.system_title).where(*its).distinct().order_by(table.c.system_title).limit(meters)
        last = max(tx.connection.scalars(titles), default=b"")
        statement = statement.where(table.c.system_title <= last)
    return _read(tx, statement)


def for_meter(tx: Transaction, system_title: bytes) -> list[Holder]:
    """List who was given the keys of a meter, by generation and moment; raises IntegrityError as `for_key`."""
    columns = (table.c.security_setup, table.c.client, table.c.generation, table.c.given, table.c.party)
    return _read(tx, _of_meter(system_title).order_by(*columns, table.c.identity))


def for_meters(tx: Transaction, titles: Sequence[bytes]) -> list[Holder]:
    """List who was given the keys of many meters; raises IntegrityError as `for_key`."""
    rows = list(rows_of(tx, select(table), table, titles))
    if tx.authenticator is not None:
        packages: defaultdict[tuple[str, bytes], list[StoredRow]] = defaultdict(list)
        for row in rows:
            packages[row["package_id"], row["system_title"]].append(row)
        for (package_id, title), its in packages.items():
            _refuse_other(tx, package_id, title, its)
    return [_holder(row) for row in rows]


def of_package(tx: Transaction, package_id: str) -> list[Holder]:
    """List what a package gave, by meter; raises IntegrityError where anything of it was altered, added or is gone."""
    found = LISTS.fetch(tx, package_id=package_id)
    if found is None:
        _refuse_unlisted(tx, package_id)
        return []
    first, last = (found["meters"][at : at + TITLE_OCTETS] for at in (0, len(found["meters"]) - ENTRY_OCTETS))
    rows = tx.all(
        select(table)
        .where(table.c.system_title.between(first, last), table.c.package_id == package_id)
        .order_by(table.c.system_title, *table.primary_key.columns)
    )
    if tx.authenticator is not None and _summed(found) != _entries(rows):
        raise altered(LISTS.name(found))
    return [_holder(row) for row in rows]


def seal(tx: Transaction) -> None:
    """Put every row under a MAC that has none, as it is."""
    known = {row["package_id"] for row in tx.all(select(holder_lists.c.package_id))}
    for package_id, rows in _by_package(tx):
        if package_id not in known:
            _put_list(tx, package_id, rows)


def faults(tx: Transaction) -> Iterator[str]:
    """Name the meters whose rows are not what the list of their package says, and the lists that say nothing."""
    seen = set()
    for package_id, rows in _by_package(tx):
        seen.add(package_id)
        found = tx.one(LISTS.everything().where(holder_lists.c.package_id == package_id))
        yield from _faults_of(package_id, found, rows)
    for row in tx.stream(LISTS.everything()):
        if row["package_id"] not in seen:
            yield from _faults_of(row["package_id"], row, [])


def _faults_of(package_id: str, found: StoredRow | None, rows: Iterable[StoredRow]) -> list[str]:
    if found is not None and not _is_whole(found):
        return [LISTS.name(found)]
    said = _titles(found["meters"]) if found else {}
    try:
        its = _titles(_entries(rows))
    except IntegrityError:
        return [f"{table.name} {text_of(package_id)}"]
    return [_name(package_id, title) for title in sorted({*said, *its}) if said.get(title) != its.get(title)]


def _read(tx: Transaction, statement: Select[Any]) -> list[Holder]:
    rows = tx.all(statement)
    if tx.authenticator is not None:
        for package_id, title in dict.fromkeys((row["package_id"], _title(row)) for row in rows):
            its = tx.all(_of_meter(title).where(table.c.package_id == package_id))
            _refuse_other(tx, package_id, title, its)
    return [_holder(row) for row in rows]


def _refuse_other(tx: Transaction, package_id: str, title: bytes, its: Iterable[StoredRow]) -> None:
    """Raise IntegrityError unless these rows are all that the list of their package says of the meter."""
    if _entry(_said(tx, package_id), title) != _entries(its):
        raise altered(_name(package_id, title))


def _said(tx: Transaction, package_id: str) -> bytes:
    """Give the entries of a package's list, which is verified once in a transaction: it never changes."""
    if package_id not in tx.verified:
        found = LISTS.fetch(tx, package_id=package_id)
        if found is None:
            return b""
        tx.verified[package_id] = _summed(found)
    return tx.verified[package_id]


def _refuse_unlisted(tx: Transaction, package_id: str) -> None:
    row = tx.one(select(table).where(table.c.package_id == package_id).limit(1))
    if row is not None and tx.authenticator is not None:
        raise altered(_name(package_id, row["system_title"]))


def _summed(found: StoredRow) -> bytes:
    """Give the entries of a list whose MAC was verified, if its digest is theirs."""
    if not _is_whole(found):
        raise altered(LISTS.name(found))
    return bytes(found["meters"])


def _is_whole(found: StoredRow) -> bool:
    meters = found["meters"]
    return isinstance(meters, bytes) and bool(hashlib.sha256(meters).digest() == found["digest"])


def _put_list(tx: Transaction, package_id: str, rows: Iterable[StoredRow]) -> None:
    entries = _entries(rows)
    LISTS.insert(tx, {"package_id": package_id, "meters": entries, "digest": hashlib.sha256(entries).digest()})


def _entries(rows: Iterable[StoredRow]) -> bytes:
    """Give title and digest of each meter in rows of one package."""
    of_meters: dict[bytes, list[bytes]] = defaultdict(list)
    for row in rows:
        of_meters[_title(row)].append(encode(LABEL, *(row[name] for name in COLUMNS)))
    return b"".join(title + hashlib.sha256(b"".join(sorted(its))).digest() for title, its in sorted(of_meters.items()))


def _title(row: StoredRow) -> bytes:
    title = row["system_title"]
    if not isinstance(title, bytes):
        raise altered(_name(row["package_id"], title))
    return title


def _entry(entries: bytes, title: bytes) -> bytes:
    """Give the entry of a meter, or nothing."""
    places = range(0, len(entries), ENTRY_OCTETS)
    at = bisect_left(places, title, key=lambda place: entries[place : place + TITLE_OCTETS]) * ENTRY_OCTETS
    found = entries[at : at + ENTRY_OCTETS]
    return found if found[:TITLE_OCTETS] == title else b""


def _titles(entries: bytes) -> dict[bytes, bytes]:
    places = range(0, len(entries), ENTRY_OCTETS)
    return {entries[at : at + TITLE_OCTETS]: entries[at + TITLE_OCTETS : at + ENTRY_OCTETS] for at in places}


def _by_package(tx: Transaction) -> Iterator[tuple[str, list[StoredRow]]]:
    rows = tx.stream(select(table).order_by(table.c.package_id))
    for package_id, group in groupby(rows, key=itemgetter("package_id")):
        yield package_id, list(group)


def _of_meter(system_title: bytes) -> Select[Any]:
    return select(table).where(table.c.system_title == system_title)


def _name(package_id: str, title: object) -> str:
    return f"holders {text_of(title)} {package_id}"


def _holder(row: StoredRow) -> Holder:
    ref = KeySetRef(row["system_title"], row["security_setup"], row["client"], row["generation"])
    return Holder(row["identity"], ref, row["party"], row["package_id"], from_seconds(row["given"]))
