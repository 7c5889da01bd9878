"""A group's keys are renewed member by member, and only when all members have them does the group switch.

The next GBEK and GAK are made once and committed before any member can hold them. Each member takes them as a renewal
of its own (`hsmkm.steps.renew`), in one key_transfer where its model takes an array: wrapped under its own master key,
and proved by a new association, which rests on the GAK. Until the switch broadcasts go on under the current keys, which
members that have the next ones cannot open any more. Called again, a renewal goes on where it stopped.

The next keys protect nothing before the switch, so that they may be sent to a member again. Their counter begins above
that of every group, since a meter's receive counter is for the broadcasting client and may outlive a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from hsmkm.errors import InputError, RefusedError
from hsmkm.steps.communicate import conversation, find_meter
from hsmkm.steps.group_members import IN_DOUBT, Overview, ours, overview, survey
from hsmkm.steps.party import Party
from hsmkm.steps.renew import (
    RECEIPT_SECONDS,
    SLICE,
    Work,
    carry_out,
    current_key_set,
    failing,
    prepare,
    refuse_unfinished,
)
from hsmkm.steps.resolve import resolve
from hsmkm.steps.results import Outcome
from hsmkm.steps.stages import with_probe
from hsmkm.store import counters, groups, urgent
from hsmkm.store.groups import SHARED_ROLES, Group, GroupKeys, GroupKeyState, Renewal
from hsmkm.store.key_set import IDENTITY_OCTETS, StoredKey
from hsmkm.store.store import Transaction
from hsmkm.token.types import KeyRole


@dataclass(frozen=True, slots=True)
class GroupRenewal:
    """How a group's renewal ended: what became of each member that was worked on, and whether the group switched."""

    outcomes: tuple[Outcome, ...]
    switched: bool
    overview: Overview


def renew(party: Party, name: str, *, without: Sequence[str] = (), wait: int = RECEIPT_SECONDS) -> GroupRenewal:
    """Give every member the next keys and switch; members named in `without` are left out and the switch does not wait.

    A member that fails has its error in its outcome and the group does not switch. Raises RefusedError where the group
    has no member, or all are left out.
    """
    excepted = {find_meter(party, one).system_title for one in without}
    before = overview(party, name)
    members = {item.member.system_title for item in before.standings if item.member.state is groups.MemberState.MEMBER}
    if excepted - members:
        strange = min(excepted - members).hex().upper()
        raise InputError(f"meter {strange} is not in group {name}", hint=f"hsmkm group show {name}")
    if not members - excepted:
        raise RefusedError(f"group {name} has no member to renew", hint=f"hsmkm group add {name} METER")
    keys = _next_keys(party, name)
    outcomes: list[Outcome] = []
    for item in overview(party, name).waiting:
        if item.member.system_title not in excepted and item.holds == IN_DOUBT:
            with failing(outcomes, item.member.title):
                resolve(party, item.member.title, go_on=False)
    todo = [item.member.title for item in overview(party, name).waiting if item.member.system_title not in excepted]
    todo = [title for title in todo if title not in {outcome.system_title for outcome in outcomes}]
    for start in range(0, len(todo), SLICE):
        with ExitStack() as held:
            works: list[Work] = []
            for title in todo[start : start + SLICE]:
                with failing(outcomes, title):
                    works.append(_begin(party, held, title, keys))
            outcomes += carry_out(party, works, wait=wait)
    switched = switch(party, name, keys, excepted)
    return GroupRenewal(tuple(outcomes), switched, overview(party, name))


def _next_keys(party: Party, name: str) -> GroupKeys:
    """Give the keys that members are to learn; made in the token and committed, unless they are there already."""
    with party.store.read() as tx:
        group, prepared = ours(tx, name), groups.in_state(tx, name, GroupKeyState.NEXT)
    if prepared is not None:
        return prepared
    made = tuple(_made(party, group, role) for role in SHARED_ROLES)
    with party.store.begin("group-prepare", name, {"roles": [role.value for role in SHARED_ROLES]}) as tx:
        if groups.in_state(tx, name, GroupKeyState.NEXT) is not None:
            raise RefusedError(f"group {name} is being renewed by another process", hint="wait until it is done")
        known = groups.generations(tx, name)
        number = known[-1].generation + 1 if known else 1
        keys = GroupKeys(name, number, party.vault.storage_key, made, GroupKeyState.NEXT)
        groups.add_keys(tx, group.suite, keys)
    return keys


def _made(party: Party, group: Group, role: KeyRole) -> StoredKey:
    with party.vault.generate(role, group.suite) as key:
        return StoredKey(role, party.vault.random(IDENTITY_OCTETS), party.vault.seal(key).wrapped)


def _begin(party: Party, held: ExitStack, title: str, keys: GroupKeys) -> Work:
    speaking = held.enter_context(conversation(party, find_meter(party, title)))
    refuse_unfinished(speaking)
    return prepare(speaking, current_key_set(speaking), with_probe(speaking.model, SHARED_ROLES), keys)


def switch(party: Party, name: str, keys: GroupKeys, excepted: set[bytes]) -> bool:
    """Put the next keys in force for broadcasts, in one transaction; False while a member lacks them."""
    with party.store.read() as tx:
        if not _is_ready(survey(tx, name), keys, excepted):
            return False
    detail = {"generation": keys.generation, "without": sorted(title.hex().upper() for title in excepted)}
    with party.store.begin("group-switch", name, detail) as tx:
        seen = survey(tx, name)
        if not _is_ready(seen, keys, excepted):
            raise RefusedError(f"group {name} was changed at the same time", hint=f"hsmkm group renew {name} again")
        if seen.current is not None:
            groups.move_keys(tx, seen.current, GroupKeyState.RETIRED)
        _begin_counter(party, tx, keys)
        groups.move_keys(tx, keys, GroupKeyState.CURRENT)
        groups.set_renewal(tx, name, Renewal.NONE)
        urgent.settle_group(tx, name, keys.generation)
    return True


def _is_ready(seen: Overview, keys: GroupKeys, excepted: set[bytes]) -> bool:
    return seen.next == keys and all(item.member.system_title in excepted for item in seen.waiting)


def _begin_counter(party: Party, tx: Transaction, keys: GroupKeys) -> None:
    """Begin the counter of the keys above those of all groups' keys before them."""
    title = bytes.fromhex(party.settings.party.system_title)
    known = (counters.current(tx, item.key(KeyRole.GBEK).identity, title) for item in groups.every_generation(tx))
    highest = max((counter.next for counter in known if counter is not None), default=1)
    identity = keys.key(KeyRole.GBEK).identity
    counters.reserve(tx, identity, title, 1, None, begin_at=min(highest, counters.LAST))
