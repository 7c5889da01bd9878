"""Broadcast groups and who is in them: what the members' key sets share, and what of it each member holds.

A group has one GBEK and one GAK. Its members learn them by a group renewal only, so every other renewal of a member
leaves these two alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hsmkm.config import load_model
from hsmkm.errors import InputError, RefusedError
from hsmkm.packages.content import MeterEntry
from hsmkm.steps.communicate import Conversation, find_meter
from hsmkm.steps.party import Party
from hsmkm.store import groups, key_sets, key_states, meters, renewals, urgent
from hsmkm.store.groups import (
    SHARED_ROLES,
    Group,
    GroupKeys,
    GroupKeyState,
    Member,
    MemberState,
    Renewal,
)
from hsmkm.store.key_set import KeySet, KeySetRef, KeyState, StoredKey
from hsmkm.store.meter import Meter
from hsmkm.store.store import Transaction
from hsmkm.token.types import KeyRole, MeterRole, Sealed, Use

BROADCAST_CLIENT = 102
"""The service access point that meters of the field take unasked-for APDUs from, unless a group says another."""
LARGEST_SAP = 0xFFFF
IN_DOUBT = "in doubt"
NEITHER = "neither"


@dataclass(frozen=True, slots=True)
class Standing:
    """A member, and which of the group's keys it holds: current, next, neither, or in doubt."""

    member: Member
    meter: Meter
    holds: str

    @property
    def receives(self) -> bool:
        """Tell whether a broadcast of now can be opened by it; the meter of a removed member still can."""
        return self.holds == GroupKeyState.CURRENT.value


@dataclass(frozen=True, slots=True)
class Overview:
    """A group with its keys in force, those being learned, and its members."""

    group: Group
    current: GroupKeys | None
    next: GroupKeys | None
    standings: tuple[Standing, ...]

    @property
    def count(self) -> int:
        """How many members there are now."""
        return sum(item.member.state is MemberState.MEMBER for item in self.standings)

    @property
    def waiting(self) -> tuple[Standing, ...]:
        """The members that do not hold the newest keys."""
        newest = GroupKeyState.NEXT if self.next else GroupKeyState.CURRENT
        members = (item for item in self.standings if item.member.state is MemberState.MEMBER)
        return tuple(item for item in members if item.holds != newest.value)


def create(party: Party, name: str, suite: int, client: int = BROADCAST_CLIENT) -> Group:
    """Make a group without members and keys; its first renewal makes the keys."""
    groups.check_name(name)
    if suite not in (0, 1, 2):
        raise InputError(f"there is no security suite {suite}", hint="0, 1 or 2")
    if not 0 < client <= LARGEST_SAP:
        raise InputError(f"{client} is no service access point", hint=f"1 to {LARGEST_SAP}")
    group = Group(name, suite, client)
    with party.store.begin("group-create", name, {"suite": suite, "client": client}) as tx:
        groups.add(tx, group)
    return group


def add(party: Party, name: str, titles: Sequence[str]) -> Overview:
    """Put meters into a group, all or none; they learn its keys with the next renewal.

    The keys in force are not given to them: they were used, and a meter that restarts its counter on a key transfer
    would then take recorded broadcasts.
    """
    found = [find_meter(party, title) for title in dict.fromkeys(titles)]
    with party.store.begin("group-add", name, {"meters": [meter.title for meter in found]}) as tx:
        group = ours(tx, name)
        reasons = [reason for meter in found if (reason := _why_not(party, tx, group, meter))]
        if reasons:
            raise RefusedError(f"not every meter can be in group {name}, and none was added", reasons)
        for meter in found:
            groups.put_member(tx, _member(party, name, meter))
    return overview(party, name)


def remove(party: Party, name: str, titles: Sequence[str], *, compromised: bool = False) -> Overview:
    """Take meters out of a group: its keys must be renewed, and are not given to them.

    Keys that were prepared and may have reached one of these meters are abandoned. After `compromised` nothing is
    broadcast until the group has keys that these meters never had.
    """
    found = [find_meter(party, title) for title in dict.fromkeys(titles)]
    why = Renewal.COMPROMISED if compromised else Renewal.REMOVED
    with party.store.begin("group-remove", name, {"meters": [meter.title for meter in found], "why": why.value}) as tx:
        ours(tx, name)
        for meter in found:
            member = _member(party, name, meter)
            if groups.own_group_of(tx, meter.system_title, member.security_setup, member.client) != name:
                raise RefusedError(f"meter {meter.title} is not in group {name}", hint=f"hsmkm group show {name}")
            leave(tx, member, why)
    return overview(party, name)


def leave(tx: Transaction, member: Member, why: Renewal) -> None:
    """Take one meter out of its group, within a transaction; a compromised one makes the group's renewal urgent."""
    name = member.group
    groups.put_member(tx, replace(member, state=MemberState.REMOVED))
    _abandon_reached(tx, name, member)
    if not groups.generations(tx, name):
        return
    if groups.require(tx, name).renewal is not Renewal.COMPROMISED:
        groups.set_renewal(tx, name, why)
    if why is Renewal.COMPROMISED:
        current = groups.in_state(tx, name, GroupKeyState.CURRENT)
        reason = f"meter {member.title} left it compromised"
        urgent.queue_group(tx, name, current.generation if current else 0, reason)


def overview(party: Party, name: str) -> Overview:
    """Tell what is known of a group and each of its members."""
    with party.store.read() as tx:
        return survey(tx, name)


def survey(tx: Transaction, name: str) -> Overview:
    """Do the same within a transaction; raises RefusedError where there is no such group."""
    group = groups.require(tx, name)
    current, prepared = (groups.in_state(tx, name, state) for state in (GroupKeyState.CURRENT, GroupKeyState.NEXT))
    standings = tuple(
        Standing(member, meters.require(tx, member.system_title), holds(tx, member, current, prepared))
        for member in groups.members(tx, name)
    )
    return Overview(group, current, prepared, standings)


def listing(party: Party) -> list[Overview]:
    """Tell what is known of every group."""
    with party.store.read() as tx:
        return [survey(tx, group.name) for group in groups.listing(tx)]


def ours(tx: Transaction, name: str) -> Group:
    """Find a group of our own; RefusedError for another party's, whose keys are that party's to renew and to use."""
    group = groups.require(tx, name)
    if group.origin:
        raise RefusedError(f"group {name} is that of {group.origin}", hint="its own party renews and uses its keys")
    return group


def holds(tx: Transaction, member: Member, current: GroupKeys | None, prepared: GroupKeys | None) -> str:
    """Say which of a group's keys a member holds, by the key set in force; in doubt while a renewal is unfinished."""
    place = (member.security_setup, member.client)
    if any((item.security_setup, item.client) == place for item in renewals.unfinished(tx, member.system_title)):
        return IN_DOUBT
    key_set = key_sets.active(tx, member.system_title, *place)
    for keys in (prepared, current):
        if keys is not None and keys.held_by(key_set):
            return keys.state.value
    return NEITHER


def group_name(party: Party, ref: KeySetRef) -> str:
    """Name the group of a meter's key sets, as packages do; empty where there is none."""
    with party.store.read() as tx:
        return groups.group_of(tx, ref.system_title, ref.security_setup, ref.client)


def own_roles(speaking: Conversation, roles: tuple[MeterRole, ...]) -> tuple[MeterRole, ...]:
    """Leave out what a member shares with its group; RefusedError where nothing is left, or a probe would replace it.

    A fresh master key is proved with a fresh GBEK, and a member's GBEK is its group's.
    """
    group = shared_with(speaking, (*roles, *((KeyRole.GBEK,) if KeyRole.MASTER in roles else ())))
    if not group:
        return roles
    title = speaking.meter.title
    if KeyRole.MASTER in roles:
        raise RefusedError(
            f"meter {title} is in group {group}, whose GBEK the proof of a new master key would replace",
            hint=f"hsmkm group remove {group} {title}, renew, add it again, and hsmkm group renew {group}",
        )
    own = tuple(role for role in roles if role not in SHARED_ROLES)
    if not own:
        raise RefusedError(
            f"meter {title} shares these keys with group {group}", hint=f"renew them with: hsmkm group renew {group}"
        )
    return own


def shared_with(speaking: Conversation, roles: tuple[MeterRole, ...]) -> str:
    """Name the group that a meter shares any of these keys with; empty where there is none."""
    if not any(role in SHARED_ROLES for role in roles):
        return ""
    ref = speaking.ref(0)
    with speaking.party.store.read() as tx:
        return groups.own_group_of(tx, ref.system_title, ref.security_setup, ref.client)


def resealed(party: Party, suite: int, keys: GroupKeys) -> dict[MeterRole, StoredKey]:
    """Give a group's keys for a member's key set: same identities, under the newest storage key."""
    found: dict[MeterRole, StoredKey] = {}
    for stored in keys.keys:
        wrapped = stored.wrapped
        if keys.storage_key != party.vault.storage_key:
            sealed = Sealed(keys.storage_key, stored.wrapped)
            with party.vault.open(stored.role, sealed, suite, Use.TRANSPORT) as key:
                wrapped = party.vault.seal(key).wrapped
        found[stored.role] = StoredKey(stored.role, stored.identity, wrapped)
    return found


def refuse_left(tx: Transaction, ref: KeySetRef, keys: GroupKeys) -> None:
    """Raise RefusedError unless the meter is in the group still, and the keys are still the next ones."""
    prepared = groups.in_state(tx, keys.group, GroupKeyState.NEXT)
    inside = groups.own_group_of(tx, ref.system_title, ref.security_setup, ref.client) == keys.group
    if not inside or prepared is None or prepared.generation != keys.generation:
        raise RefusedError(
            f"group {keys.group} was changed at the same time", hint=f"hsmkm group renew {keys.group} again"
        )


def learn(tx: Transaction, sender: str, entries: Sequence[MeterEntry]) -> None:
    """Take note of the groups that another party's package puts meters into."""
    placed = set(groups.places_of(tx, sorted({entry.system_title for entry in entries})))
    for entry in entries:
        if entry.group:
            placed.add(entry.system_title)
        if entry.system_title in placed:
            _learn(tx, sender, entry)


def _learn(tx: Transaction, sender: str, entry: MeterEntry) -> None:
    name = f"{sender}/{entry.group}" if entry.group else ""
    for member in groups.places(tx, entry.system_title):
        here = (member.security_setup, member.client) == (entry.security_setup, entry.client)
        if here and member.group != name and member.group.startswith(f"{sender}/"):
            groups.put_member(tx, replace(member, state=MemberState.REMOVED))
    if not name:
        return
    if groups.find(tx, name) is None:
        groups.add(tx, Group(name, entry.suite, BROADCAST_CLIENT, origin=sender))
    groups.put_member(tx, Member(name, entry.system_title, entry.security_setup, entry.client))


def _member(party: Party, name: str, meter: Meter) -> Member:
    model = load_model(meter.model, party.home)
    return Member(name, meter.system_title, *model.place)


def _place(member: Member) -> tuple[int, int]:
    return member.security_setup, member.client


def _why_not(party: Party, tx: Transaction, group: Group, meter: Meter) -> str:
    member = _member(party, group.name, meter)
    inside = groups.own_group_of(tx, meter.system_title, *_place(member))
    if inside:
        return f"meter {meter.title} is in group {inside} already"
    if meter.suite != group.suite:
        return f"meter {meter.title} is of security suite {meter.suite}, the group of {group.suite}"
    return "" if key_sets.active(tx, meter.system_title, *_place(member)) else f"meter {meter.title} has no active keys"


def _abandon_reached(tx: Transaction, name: str, member: Member) -> None:
    """Abandon prepared keys that a removed meter's key sets carry: they were sent to it, or may have been."""
    prepared = groups.in_state(tx, name, GroupKeyState.NEXT)
    if prepared is None:
        return
    held: list[KeySet] = [key_set for key_set, _state in key_sets.for_meter(tx, member.system_title)]
    if any(prepared.touches(key_set) for key_set in held):
        groups.move_keys(tx, prepared, GroupKeyState.ABANDONED)


def compromised_members(tx: Transaction, seen: Overview) -> list[str]:
    """Name the members whose compromised keys are those of the group in force."""
    return [item.member.title for item in seen.standings if seen.current and _is_compromised(tx, item, seen.current)]


def _is_compromised(tx: Transaction, item: Standing, keys: GroupKeys) -> bool:
    place = (item.member.system_title, *_place(item.member))
    refs = (KeySetRef(*place, generation) for generation in key_sets.generations(tx, *place))
    lost = (ref for ref in refs if key_states.state(tx, ref) is KeyState.COMPROMISED)
    return any(keys.touches(key_sets.get(tx, ref)) for ref in lost)
