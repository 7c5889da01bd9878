"""The head end as a broker: it carries a third party's APDUs to a meter inside of its own association, and the answers.

It can neither read nor alter what it carries. Who may reach which meter is decided here, by the third party's
registration, its permission for that meter, and the system titles that the APDU names; that these are true is for the
meter to prove.
"""

from __future__ import annotations

import hashlib

from hsmkm.dlms.general import Header
from hsmkm.errors import HsmkmError, IntegrityError, PolicyError, RefusedError
from hsmkm.link.client import MeterRefusedError
from hsmkm.packages.content import THIRD_PARTY
from hsmkm.steps.communicate import active_key_set, associated, conversation
from hsmkm.steps.credentials import Pair
from hsmkm.steps.party import Party
from hsmkm.steps.third_party import header_of
from hsmkm.store import intents, meters, parties, permissions
from hsmkm.store.meter import Meter
from hsmkm.store.store import Transaction

FORWARD = "apdu-forward"


def forward(party: Party, apdu: bytes, caller: str = "", meter: str = "") -> bytes:
    """Carry an APDU to the meter that it names, and give the meter's answer.

    `caller` and `meter` are the party that brings it and the meter that it is brought for, where they are known.
    Raises PolicyError unless its originator is a registered third party with a permission for the meter, InputError
    for octets that are not a general- APDU between two parties, IntegrityError where the answer is not for it.
    """
    header = header_of(apdu)
    with party.store.read() as tx:
        sender = _sender(tx, header, caller)
        found = _meter(tx, header, sender, meter)
    with conversation(party, found) as speaking:
        key_set = active_key_set(party, found, speaking.model)
        with associated(speaking, Pair.in_force(key_set)) as client:
            intent = _noted(party, found, sender, apdu, header)
            try:
                answer = client.forward(apdu)
                _check(header, header_of(answer))
            except HsmkmError as error:
                _settled(party, found, intent, f"refused: {error.message}" if _is_refusal(error) else "unknown")
                raise
            _settled(party, found, intent, "answered")
    return answer


def _sender(tx: Transaction, header: Header, caller: str) -> str:
    for one in parties.listing(tx, role=THIRD_PARTY):
        if one.system_title == header.originator.octets and caller in ("", one.name):
            return one.name
    raise PolicyError(
        f"{header.originator} is no third party that may send this",
        hint="register it: hsmkm party add --role third-party",
    )


def _meter(tx: Transaction, header: Header, sender: str, named: str) -> Meter:
    if header.recipient is None:
        raise RefusedError("the APDU is for everybody", hint="a third party speaks with one meter")
    if named and named != str(header.recipient):
        raise RefusedError(f"the APDU is for {header.recipient}, and was brought for {named}")
    permissions.check(tx, sender, header.recipient.octets)
    return meters.require(tx, header.recipient.octets)


def _noted(party: Party, meter: Meter, sender: str, apdu: bytes, header: Header) -> int:
    """Record what is about to be carried, if it is permitted still: much can happen while a meter is waited for."""
    detail = {
        "from": sender,
        "transaction": header.transaction.hex(),
        "octets": len(apdu),
        "sha256": hashlib.sha256(apdu).hexdigest(),
    }
    with party.store.begin(FORWARD, meter.title, detail) as tx:
        _meter(tx, header, _sender(tx, header, sender), meter.title)
        return intents.open(tx, meter.system_title, FORWARD, detail)


def _settled(party: Party, meter: Meter, intent: int, outcome: str) -> None:
    with party.store.begin(f"{FORWARD}-outcome", meter.title, {"outcome": outcome}) as tx:
        intents.outcome(tx, intent, outcome)


def _is_refusal(error: HsmkmError) -> bool:
    return isinstance(error, MeterRefusedError)


def _check(asked: Header, answered: Header) -> None:
    """See that the answer goes back where the request came from; whether it is true is for the third party to see."""
    if (answered.originator, answered.recipient, answered.transaction) != (
        asked.recipient,
        asked.originator,
        asked.transaction,
    ):
        raise IntegrityError("the meter's answer is not for the request that was carried to it")
