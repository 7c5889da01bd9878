"""Step 5 for many meters before anybody speaks with them: where they are, and their keys, for their concentrator.

A list is taken up to a package at a time: its meters and their keys are read in pages, the package is made, and one
transaction puts the meters behind their concentrator together with the record of the package. So a meter is behind it
if, and only if, the package that tells of it will reach it. No meter's lease is taken: what is in the package is
compared in that transaction with what is there by then, and nothing stays where it differs.

`register` finishes each meter later: it speaks with it, which proves its keys, and renews them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeVar

from hsmkm.config import SYSTEM_TITLE, load_model
from hsmkm.errors import PartlyDoneError, RefusedError
from hsmkm.meter_model import MeterModel
from hsmkm.packages.content import MAX_METERS, Purpose
from hsmkm.packages.send import Outgoing, outgoing
from hsmkm.pki.trust import TrustStore
from hsmkm.steps.certify import trust_of
from hsmkm.steps.communicate import split_address
from hsmkm.steps.deliver import ACCEPTED, SENT, exportable, send, sent_of, with_certificates
from hsmkm.steps.distribute import CLIENT, GIVEN, await_receipt
from hsmkm.steps.notices import leave_concentrator
from hsmkm.steps.party import Party
from hsmkm.steps.places import Place, read_places
from hsmkm.steps.register import concentrator_of
from hsmkm.steps.renew import failing
from hsmkm.steps.results import Outcome, Sent, Told
from hsmkm.steps.tell import tell
from hsmkm.store import groups, holders, key_sets, key_states, meters, packages, renewals
from hsmkm.store.key_set import KeySet, KeySetRef, KeyState
from hsmkm.store.meter import Meter
from hsmkm.store.packages import PackageRecord
from hsmkm.store.parties import Party as Registered
from hsmkm.store.store import Transaction

K = TypeVar("K")

_Entries = tuple[Meter, Meter, list[Outgoing]]
"""A meter as it is and as it is to be, and what its concentrator is told of it."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What the store said of the meters of a page at one moment, besides their rows and keys."""

    generations: dict[tuple[bytes, int, int], list[int]]
    states: dict[KeySetRef, KeyState]
    given: dict[KeySetRef, list[PackageRecord]]
    """The packages, taken or still waiting, that gave the concentrator a key set."""


@dataclass
class _Desk:
    """Who works, and for which concentrator; models and trust are read once."""

    party: Party
    through: Registered
    models: dict[str, MeterModel] = field(default_factory=dict)

    @cached_property
    def trust(self) -> TrustStore:
        """What the certificates are judged by that are given along."""
        return trust_of(self.party)

    def model(self, name: str) -> MeterModel:
        """Read a model's settings once."""
        if name not in self.models:
            self.models[name] = load_model(name, self.party.home)
        return self.models[name]


def register_in_advance(
    party: Party, path: Path, concentrator: str, wait: int
) -> Generator[Told | Outcome, None, None]:
    """Put the meters of a list behind a concentrator and give it their keys, without speaking with them.

    Gives the outcome of each meter that is left as it was, and then each package when its receipt came, or with the
    error when `wait` seconds passed without it. May be given again: no keys are given twice.
    Raises InputError with every fault of the list, RefusedError where that party is no concentrator.
    """
    desk = _Desk(party, concentrator_of(party, concentrator))
    sent: dict[str, Sent] = {}
    refused: RefusedError | None = None
    try:
        yield from _send_all(desk, read_places(path), sent)
    except RefusedError as error:
        refused = error  # told when what was sent before has its receipts: that much is done
    for item in sent.values():
        yield _receipted(party, item, wait)
    if refused is not None:
        raise refused


def _send_all(desk: _Desk, places: Iterator[Place], sent: dict[str, Sent]) -> Iterator[Outcome]:
    """Send the packages of a list, and add them to `sent`; gives the outcome of each meter that is left as it was."""
    while page := list(islice(places, MAX_METERS)):
        outcomes: list[Outcome] = []
        with desk.party.store.read() as tx:
            entries, known = _looked_up(desk, tx, page, outcomes)
        yield from outcomes
        for part in _parts(entries):
            earlier = [one for *_, items in part for item in items for one in _given(known, item)]
            made = _tell(desk, part, known)
            sent |= {one.id: sent_of(desk.party, one) for one in earlier if one.state == SENT} | {made.id: made}


def _receipted(party: Party, sent: Sent, wait: int) -> Told:
    try:
        await_receipt(party, sent, wait)
    except (RefusedError, PartlyDoneError) as error:
        return Told(sent, "waiting" if isinstance(error, PartlyDoneError) else "refused", error)
    return Told(sent, ACCEPTED)


def _parts(entries: Sequence[_Entries]) -> Iterator[list[_Entries]]:
    """Divide meters so that what is told of each part fits into one package."""
    part: list[_Entries] = []
    room = MAX_METERS
    for item in entries:
        if part and len(item[2]) > room:
            yield part
            part, room = [], MAX_METERS
        part.append(item)
        room -= len(item[2])
    if part:
        yield part


def _looked_up(
    desk: _Desk, tx: Transaction, page: Sequence[Place], outcomes: list[Outcome]
) -> tuple[list[_Entries], _Known]:
    """Read the meters of a page, each once, and what is told of them; one that cannot be has an outcome."""
    moved = _moved(desk, tx, page, outcomes)
    titles = [before.system_title for before, _ in moved]
    members = groups.places_of(tx, titles)
    entries: list[_Entries] = []
    for (before, after), found in zip(moved, exportable(tx, [before for before, _ in moved]), strict=True):
        with failing(outcomes, before.title):
            if isinstance(found, str):
                raise RefusedError(
                    found.removeprefix(f"meter {before.title}: "), hint=f"see: hsmkm meter show {before.title}"
                )
            told = _told(desk, tx, after, found, members.get(before.system_title, ()))
            entries.append((before, after, told))
    states = key_states.recorded_of(tx, titles)
    return entries, _Known(key_sets.generations_of(tx, titles), states, _packages_with(desk, tx, titles))


def _moved(desk: _Desk, tx: Transaction, page: Sequence[Place], outcomes: list[Outcome]) -> list[tuple[Meter, Meter]]:
    known = meters.of_titles(tx, [bytes.fromhex(name) for name, _ in page if SYSTEM_TITLE.fullmatch(name.upper())])
    by_name = {meter.title: meter for meter in known.values()}
    moved: dict[bytes, tuple[Meter, Meter]] = {}
    for name, address in page:
        with failing(outcomes, name):
            split_address(address, f"meter {name}")
            meter = by_name.get(name.upper()) or meters.find(tx, name)
            if meter.system_title in moved:
                raise RefusedError(f"meter {meter.title} stands in the list twice", hint="give it once")
            after = replace(meter, concentrator=desk.through.name, address=address)
            moved[meter.system_title] = meter, after
    return list(moved.values())


def _told(
    desk: _Desk,
    tx: Transaction,
    meter: Meter,
    found: Sequence[tuple[KeySet, KeyState]],
    places: Sequence[groups.Member],
) -> list[Outgoing]:
    """Say what a concentrator is told of a meter: a client of each association that it reads in, a relay once."""
    models = [desk.model(meter.model).at((item.ref.security_setup, item.ref.client)) for item, _ in found]
    is_client = desk.through.kind == CLIENT
    taken = [item for (item, _), model in zip(found, models, strict=True) if is_client and model.for_concentrator]
    told = []
    for item in taken or [found[0][0]]:
        group = groups.group_among(places, item.ref.security_setup, item.ref.client)
        with_keys = bool(taken)
        one = outgoing(meter, item, KeyState.ACTIVE, with_keys=with_keys, group=group, revision=GIVEN)
        told.append(with_certificates(tx, desk.trust, one) if with_keys else one)
    return told


def _packages_with(desk: _Desk, tx: Transaction, titles: Sequence[bytes]) -> dict[KeySetRef, list[PackageRecord]]:
    """Find the packages, taken or still waiting, that gave the concentrator keys of these meters."""
    if desk.through.kind != CLIENT:
        return {}
    ids: defaultdict[KeySetRef, set[str]] = defaultdict(set)
    for holder in holders.for_meters(tx, titles):
        if holder.party == desk.through.name:
            ids[holder.ref].add(holder.package_id)
    records = {one: packages.get(tx, one) for one in sorted({one for some in ids.values() for one in some})}
    found = {ref: [records[one] for one in sorted(some)] for ref, some in ids.items()}
    return {ref: [one for one in some if one and one.state in (SENT, ACCEPTED)] for ref, some in found.items()}


def _given(known: _Known, item: Outgoing) -> list[PackageRecord]:
    """List the packages that gave the concentrator this key set before."""
    return known.given.get(item.key_set.ref, []) if item.key_set is not None else []


def _tell(desk: _Desk, part: Sequence[_Entries], known: _Known) -> Sent:
    """Send the package of a part, and put its meters behind the concentrator in the same transaction."""
    party, name = desk.party, desk.through.name
    content = [Outgoing(item.entry) if _given(known, item) else item for *_, items in part for item in items]
    leaving = [before for before, _, _ in part if before.concentrator not in (None, name)]

    def placed(tx: Transaction) -> None:
        _refuse_changed(tx, [before for before, _, _ in part], known)
        for before in leaving:
            leave_concentrator(tx, before)
        meters.update_many(tx, [after for before, after, _ in part if after != before])

    sent = send(party, Purpose.DISTRIBUTION, name, content, placed)
    if leaving:
        tell(party)
    return sent


def _refuse_changed(tx: Transaction, before: Sequence[Meter], known: _Known) -> None:
    """Raise RefusedError unless meters, their generations and states, and what was given, are as the package has it."""
    titles = [meter.system_title for meter in before]
    there = meters.of_titles(tx, titles)
    changed = {meter.system_title for meter in before if there.get(meter.system_title) != meter}
    changed |= renewals.under_way(tx, titles)
    changed |= {place[0] for place in _differing(known.generations, key_sets.generations_of(tx, titles))}
    changed |= {ref.system_title for ref in _differing(known.states, key_states.recorded_of(tx, titles))}
    changed |= {ref.system_title for ref, some in known.given.items() if any(_is_refused(tx, one) for one in some)}
    changed &= set(titles)
    if changed:
        named = min(changed).hex().upper()
        raise RefusedError(f"meter {named} was changed by another at the same time", hint="give the list again")


def _differing(before: Mapping[K, object], now: Mapping[K, object]) -> set[K]:
    """Give what is not in both with the same value; `before` is of a whole page, and `now` of a part of it."""
    return {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}


def _is_refused(tx: Transaction, given: PackageRecord) -> bool:
    """Tell whether a package that gave keys was refused meanwhile."""
    found = packages.get(tx, given.id)
    return found is None or found.state not in (SENT, ACCEPTED)
