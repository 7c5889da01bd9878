"""Broadcasts to a group: one APDU under the group's GBEK, its counter reserved once, sent to every member.

No meter answers a broadcast. That the octets left, and for a meter reached straight that a connection to it came about,
is all that is known of a delivery: not that a meter took it, nor that it could open it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from hsmkm.config import load_model
from hsmkm.dlms import broadcast
from hsmkm.dlms.types import SecuritySuite, SystemTitle
from hsmkm.errors import HsmkmError, InputError, PolicyError, RefusedError, TransportError
from hsmkm.steps.communicate import dial
from hsmkm.steps.group_members import Overview, Standing, compromised_members, ours, survey
from hsmkm.steps.party import Party
from hsmkm.store import counters
from hsmkm.store.groups import GroupKeys, MemberState, Renewal
from hsmkm.store.store import Transaction
from hsmkm.token.types import KeyRole, Sealed, Use

UNCONFIRMED = "sent, unconfirmed"
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Protected:
    """A broadcast ready to be sent: the group's keys it is under, its counter and its octets."""

    group: str
    generation: int
    counter: int
    apdu: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is known of one member's copy; `can_open` is whether the member's key set carries the keys in force."""

    system_title: str
    state: str
    can_open: bool
    detail: str = ""
    error: HsmkmError | None = None


def protect(party: Party, name: str, apdu: bytes, form: str = broadcast.GENERAL_GLO) -> Protected:
    """Protect a plain SET or ACTION request that asks for no answer, for every member of a group.

    Raises InputError for another APDU or form, RefusedError where the group has no keys in force, PolicyError where a
    member that is compromised has them.
    """
    broadcast.check(apdu)
    if form not in broadcast.FORMS:
        raise InputError(f"unknown form {form!r}", hint=f"use one of {', '.join(broadcast.FORMS)}")
    title = bytes.fromhex(party.settings.party.system_title)
    detail = {"apdu_sha256": hashlib.sha256(apdu).hexdigest(), "form": form}
    with party.store.begin("group-broadcast", name, detail) as tx:
        seen, keys = _in_force(tx, name)
        (counter,) = counters.reserve(tx, keys.key(KeyRole.GBEK).identity, title, 1, None)
    suite = SecuritySuite(seen.group.suite)
    gbek, gak = (Sealed(keys.storage_key, keys.key(role).wrapped) for role in (KeyRole.GBEK, KeyRole.GAK))
    with (
        party.vault.open(KeyRole.GBEK, gbek, suite, Use.IN_USE) as encryption,
        party.vault.open(KeyRole.GAK, gak, suite, Use.IN_USE) as authentication,
        party.vault.cipher(encryption, authentication) as key,
    ):
        octets = broadcast.protect(apdu, key, suite, SystemTitle(title), counter, form)
    return Protected(name, keys.generation, counter, octets)


def _in_force(tx: Transaction, name: str) -> tuple[Overview, GroupKeys]:
    ours(tx, name)
    seen = survey(tx, name)
    if seen.current is None:
        raise RefusedError(f"group {name} has no keys in force", hint=f"hsmkm group renew {name}")
    if seen.group.renewal is Renewal.COMPROMISED:
        raise PolicyError(
            f"a meter that left group {name} compromised has its keys",
            hint=f"renew them with: hsmkm group renew {name}",
        )
    if lost := compromised_members(tx, seen):
        raise PolicyError(
            f"member {lost[0]} of group {name} is compromised",
            hint=f"hsmkm group remove {name} {lost[0]} --compromised, and hsmkm group renew {name}",
        )
    return seen, seen.current


def send(party: Party, protected: Protected) -> list[Delivery]:
    """Send a broadcast to each member, straight or through its concentrator; nothing that comes back is waited for."""
    with party.store.read() as tx:
        seen = survey(tx, protected.group)
    members = [item for item in seen.standings if item.member.state is MemberState.MEMBER]
    found = [_deliver(party, item, seen.group.client, protected.apdu) for item in members]
    detail = {"counter": protected.counter, "sent": sum(item.error is None for item in found), "members": len(found)}
    with party.store.begin("group-broadcast-sent", protected.group, detail):
        return found


def _deliver(party: Party, item: Standing, client_sap: int, apdu: bytes) -> Delivery:
    title = item.member.title
    try:
        server_sap = load_model(item.meter.model, party.home).addressing.server_sap
        with dial(party, item.meter)() as link:
            link.send(apdu, client_sap, server_sap)
    except (TransportError, RefusedError, InputError) as error:
        return Delivery(title, FAILED, item.receives, error.message, error)
    way = f"through {item.meter.concentrator}" if item.meter.concentrator else f"to {item.meter.address}"
    return Delivery(title, UNCONFIRMED, item.receives, way)
