"""Step 3 over many meters: their key sets in force, verified and wrapped by workers, in one signed package.

The party reads what the store has, page by page, and says which sets are in force; workers verify each set's MAC, and
wrap its keys for the recipient (`hsmkm.steps.outbound`), while the next page is read; the party writes the package and
who was given what. Nothing leaves unless every meter can be given and every MAC fits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from typing import Any

from hsmkm.errors import InputError, RefusedError
from hsmkm.packages.bulk import join
from hsmkm.packages.content import (
    FOR_THIRD_PARTIES,
    MAX_CONTENT,
    MAX_METERS,
    ROLES,
    THIRD_PARTY,
    WRAP_OVERHEAD,
    MeterEntry,
    PackageHeader,
    Purpose,
    parse_content,
)
from hsmkm.packages.send import NOT_DISTRIBUTED, Outgoing, close_bulk, open_bulk, outgoing
from hsmkm.pki.slots import curve_for
from hsmkm.pki.trust import TrustStore
from hsmkm.steps.certify import trust_of
from hsmkm.steps.deliver import (
    Parcel,
    busy_meters,
    exportable,
    hand_out,
    header_for,
    in_force,
    not_injected,
    nothing_else,
    outbox,
    recipient,
    send,
    signatory,
    with_certificates,
)
from hsmkm.steps.first_package import check_recipient
from hsmkm.steps.meter_certificates import accepted_certificates
from hsmkm.steps.outbound import Given, Lot, Stored, give_key_sets
from hsmkm.steps.party import Party
from hsmkm.steps.results import Sent
from hsmkm.store import groups, holders, key_states, meters, models, parties, permissions, sealed_sets
from hsmkm.store.key_set import KeySet, KeySetRef, KeyState
from hsmkm.store.key_set_bulk import Form, Kind, identities_of
from hsmkm.store.meter import Meter
from hsmkm.store.pages import PAGE
from hsmkm.store.sealed_sets import SealedSet
from hsmkm.store.store import Transaction

PARTS = "export fewer meters at a time: hsmkm package export --list FILE"


def export(party: Party, purpose: str, to: str, names: tuple[str, ...], order: str | None, approval: str = "") -> Sent:
    """Export meters by name, or those of an order, to a registered party.

    Each is given with its newest generation in force, in every association that there are keys of; RefusedError names
    each meter whose keys are in doubt or missing. A third party gets the GAK and the certificates alone, of meters that
    it may reach; PolicyError names another.
    """
    kind = _purpose(purpose, to)
    if kind is Purpose.INJECTION:
        with party.store.read() as tx:
            content = _one_by_one(tx, trust_of(party), _selected(tx, names, order))
        return send(party, kind, to, content, approval=approval)
    with outbox(party):
        with party.store.read() as tx:
            third = parties.require(tx, to).role == THIRD_PARTY
            selected = _selected(tx, names, order)
            for meter in selected if third else ():
                permissions.check(tx, to, meter.system_title)
            check_recipient(party, to, approval)
            choice = _Choice(tx, trust_of(party), kind, third=third)
            parcel, giving = _wrapped(party, to, selected, choice)
        return hand_out(party, parcel, nothing_else, giving.note, approval)


def _purpose(purpose: str, to: str) -> Purpose:
    try:
        kind = Purpose(purpose)
    except ValueError as error:
        known = ", ".join(item.value for item in Purpose)
        raise InputError(f"unknown purpose {purpose!r}", hint=f"use one of {known}") from error
    if kind is Purpose.TRANSFER:
        raise RefusedError("a transfer changes the owner of meters", hint=f"hsmkm meter transfer METER --to {to}")
    if kind is Purpose.MIGRATION:
        raise RefusedError("a migration takes the whole home, with its counters", hint="hsmkm token migrate --to")
    return kind


def _selected(tx: Transaction, names: tuple[str, ...], order: str | None) -> list[Meter]:
    found = [meters.find(tx, name) for name in names]
    after = b""
    while order is not None and (page := meters.listing(tx, after=after, limit=meters.PAGE, order=order)):
        found += page
        after = page[-1].system_title
        if len(found) > MAX_METERS and len(page) == meters.PAGE:
            raise InputError(
                f"a package has at most {MAX_METERS} key sets, and order {order} has more meters", hint=PARTS
            )
    if not found:
        raise InputError("no meter is selected", hint="name meters, or an order with --order")
    return found


def _refuse(reasons: Sequence[str]) -> None:
    if reasons:
        raise RefusedError("not every meter can be exported, and none was", reasons, hint="hsmkm resolve --all")


def _one_by_one(tx: Transaction, trust: TrustStore, selected: Sequence[Meter]) -> list[Outgoing]:
    """Give the key sets of an injection, whose master keys carry the others."""
    content: list[Outgoing] = []
    found = exportable(tx, selected)
    _refuse([one for one in found if isinstance(one, str)])
    places = groups.places_of(tx, [meter.system_title for meter in selected])
    for meter, held in zip(selected, found, strict=True):
        if not isinstance(held, str):
            given = [_given(meter, item, places.get(meter.system_title, ())) for item in held]
            content += [with_certificates(tx, trust, given[0]), *given[1:]]
    return content


def _given(meter: Meter, item: tuple[KeySet, KeyState], places: Sequence[groups.Member]) -> Outgoing:
    ref = item[0].ref
    return outgoing(meter, *item, group=groups.group_among(places, ref.security_setup, ref.client))


@dataclass(slots=True)
class _Alike:
    """Sets of one kind that go out, and the entries that they are like, by what these do not share."""

    kind: Kind
    numbers: dict[tuple[object, ...], int] = field(default_factory=dict)
    likes: list[MeterEntry] = field(default_factory=list)
    sets: list[Stored] = field(default_factory=list)

    def add(self, one: SealedSet, *own: Any) -> None:  # noqa: ANN401 - of several types
        """Add a set; `own` are state, address, group and certificates of its entry."""
        number = self.numbers.get(own)
        if number is None:
            number = self.numbers[own] = len(self.likes)
            self.likes.append(_like(self.kind.form, *own))
        self.sets.append((one.system_title, one.serial, one.keys, one.mac, number))


def _like(form: Form, state: KeyState, address: str, group: str, certificates: tuple[bytes, ...]) -> MeterEntry:
    return MeterEntry(
        system_title=b"",
        serial="",
        model=form.model,
        suite=form.suite,
        security_setup=form.security_setup,
        client=form.client,
        generation=form.generation,
        state=state.value,
        address=address,
        group=group,
        certificates=certificates,
    )


class _Choice:
    """Chooses the key sets of meters that go out, by kind; what decides it is verified, they themselves are not yet."""

    def __init__(self, tx: Transaction, trust: TrustStore, purpose: Purpose, *, third: bool) -> None:
        self._tx = tx
        self._trust = trust
        self.purpose = purpose
        self._third = third
        self._found: dict[int, _Alike] = {}

    def of(self, wanted: Sequence[Meter]) -> Iterator[Lot]:
        """Give the lots of all meters, page by page.

        Raises RefusedError at the end, which names each meter that is not given, and InputError beyond what a package
        holds; nothing more is given from the first of them on.
        """
        reasons: list[str] = []
        sets = 0
        for start in range(0, len(wanted), PAGE):
            found = self._page(wanted[start : start + PAGE], reasons)
            sets += sum(len(lot.sets) for lot in found)
            if sets > MAX_METERS:
                raise InputError(f"a package has at most {MAX_METERS} key sets, and more are selected", hint=PARTS)
            yield from found if not reasons else ()
        _refuse(reasons)

    def _page(self, wanted: Sequence[Meter], reasons: list[str]) -> list[Lot]:
        """Give the lots of some meters, and add why others are not given."""
        self._found = {}
        tx, titles = self._tx, [meter.system_title for meter in wanted]
        busy, places = busy_meters(tx, wanted), groups.places_of(tx, titles)
        idle = [title for title in titles if title not in busy]
        held, states = sealed_sets.of_meters(tx, idle), key_states.recorded_of(tx, idle)
        initial = {model: models.initial_identities(tx, model) for model in sorted({meter.model for meter in wanted})}
        for meter in wanted:
            title = meter.system_title
            sets = held.get(title, [])
            now = [states.get(one.ref, one.kind.form.state) if states else one.kind.form.state for one in sets]
            reason = busy.get(title) or self._choose(meter, sets, now, initial[meter.model], places.get(title, ()))
            if reason:
                reasons.append(reason)
        return [self._lot(alike) for alike in self._found.values()]

    def _choose(
        self,
        meter: Meter,
        held: Sequence[SealedSet],
        states: Sequence[KeyState],
        initial: set[bytes],
        places: Sequence[groups.Member],
    ) -> str:
        """Choose a meter's sets in force, or say why it is not given."""
        forms = [one.kind.form for one in held]
        told = [(form.security_setup, form.client, now) for form, now in zip(forms, states, strict=True)]
        chosen = in_force(meter, told)
        if isinstance(chosen, str):
            sealed_sets.verify(self._tx, held)
            return chosen
        sealed_sets.verify(self._tx, [one for place, one in enumerate(held) if place not in chosen])
        if initial and not initial.isdisjoint(_identities(held[place] for place in chosen)):
            sealed_sets.verify(self._tx, held)
            return not_injected(meter)
        certificates = () if meter.suite == 0 else self._certificates(meter)
        address = "" if self._third else meter.address or ""
        for place in chosen:
            one, (setup, client, state) = held[place], told[place]
            group = groups.group_among(places, setup, client) if places else ""
            alike = self._found.get(id(one.kind)) or self._found.setdefault(id(one.kind), _Alike(one.kind))
            alike.add(one, state, address, group, certificates)
            certificates = ()
        return ""

    def _certificates(self, meter: Meter) -> tuple[bytes, ...]:
        return accepted_certificates(self._tx, self._trust, meter.title, meter.suite)

    def _lot(self, alike: _Alike) -> Lot:
        roles = FOR_THIRD_PARTIES if self._third else frozenset(ROLES)
        if self.purpose is Purpose.DISTRIBUTION:
            roles -= NOT_DISTRIBUTED
        return Lot(self.purpose, alike.kind, roles, tuple(alike.likes), tuple(alike.sets))


def _identities(sets: Iterable[SealedSet]) -> Iterator[bytes]:
    for one in sets:
        for born in identities_of([one.keys], one.kind.form):
            yield from born


def _wrapped(party: Party, to: str, selected: Sequence[Meter], choice: _Choice) -> tuple[Parcel, holders.Giving]:
    """Let the workers wrap what is chosen, and make a package of it; with it comes who is given what."""
    suites = {meter.suite for meter in selected}
    curve = curve_for(suites)
    sender, receiver = signatory(party, curve), recipient(party, to, curve)
    header = header_for(party, choice.purpose, sender, receiver)
    lent, info = open_bulk(party.vault, trust_of(party), sender, receiver, header, suites)
    taking = _Taking(header)
    handed: deque[Lot] = deque()

    def batches() -> Iterator[tuple[object, ...]]:
        for lot in _batches(choice.of(selected), party.hands.shape.batch):
            handed.append(lot)
            yield lent, lot

    with closing(party.hands.work(len(selected), give_key_sets, batches())) as answers:
        for given in answers:
            taking.take(handed.popleft(), given)
    data = close_bulk(sender, header, taking.content(info))
    titles = {meter.system_title for meter in selected}
    return Parcel(header, len(titles), data, carries_keys=True), taking.giving


class _Taking:
    """Takes up what workers give: the entries of the package, and who is given what."""

    def __init__(self, header: PackageHeader) -> None:
        self._header = header
        self.giving = holders.Giving(header.recipient.name, header.id, header.created)
        self._entries: list[str] = []
        self._probes: list[str] = []
        self._octets: set[bytes] = set()
        self._keys = 0

    def take(self, lot: Lot, given: Given) -> None:
        """Take up a lot; IntegrityError, naming the row, where the MAC of a set of it does not fit."""
        form = lot.kind.form
        place = form.security_setup, form.client, form.generation
        for number in given.misfits:
            raise sealed_sets.misfit(KeySetRef(lot.sets[number][0], *place))
        self._entries.append(given.entries)
        self._probes += given.probes
        roles = [number for number, (role, _) in enumerate(form.keys) if role in lot.roles]
        if roles:
            at = [form.slices(identity=True)[number] for number in roles]
            born = [[one[2][identity] for identity in at] for one in lot.sets]
            self.giving.add(((one[0], *place), its) for one, its in zip(lot.sets, born, strict=True))
            self._note(born, given.travelling, [form.keys[number][1] + WRAP_OVERHEAD for number in roles])

    def _note(self, born: Iterable[Iterable[bytes]], travelling: Sequence[bytes], lengths: Sequence[int]) -> None:
        """Note the identities and wrapped keys that are given, to see whether one is given twice."""
        ends = list(accumulate(lengths))
        octets = [moved[end - length : end] for moved in travelling for end, length in zip(ends, lengths, strict=True)]
        octets += chain.from_iterable(born)
        self._octets.update(octets)
        self._keys += len(octets)

    def content(self, info: bytes) -> bytes:
        """Write the content of the package; InputError for what its recipient would refuse.

        What is unusual is read back whole: a key that is given twice may be that of a group.
        """
        content = join(self._header, info, self._entries, self._probes)
        if len(self._octets) != self._keys or len(content) > MAX_CONTENT:
            parse_content(content)
        return content


def _batches(lots: Iterable[Lot], size: int) -> Iterator[Lot]:
    """Divide lots into what a worker takes up at once."""
    for lot in lots:
        for start in range(0, len(lot.sets), size):
            part = lot.sets[start : start + size]
            numbers = {like: number for number, like in enumerate(dict.fromkeys(one[4] for one in part))}
            if len(lot.likes) > 1:
                part = tuple((*one[:4], numbers[one[4]]) for one in part)
            yield replace(lot, likes=tuple(lot.likes[like] for like in numbers), sets=part)
