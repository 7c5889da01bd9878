"""A third party's end of a conversation with a meter: its APDUs are protected end to end, whoever carries them.

    protected here (general-ciphering under an agreed key, signed where demanded) -> carried by the head end inside of
    its own association -> the meter's answer, protected for us alone -> carried back -> opened here

What was asked is durable before an APDU leaves, and an answer is taken once, for the request whose transaction it
names. The broker has neither of the two key-agreement keys; the GAK, which it has, opens nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from hsmkm.dlms import axdr, general, xdlms
from hsmkm.dlms.agreement import AlgorithmIds
from hsmkm.dlms.channel import Channel, Form
from hsmkm.dlms.general import LARGEST_APDU, TRANSACTION_OCTETS, GeneralKeyed, Header
from hsmkm.dlms.protection import Protection
from hsmkm.dlms.types import AttributeRef, SecuritySuite, SystemTitle
from hsmkm.dlms.xdlms import GetBlock, GetRequest, GetResult
from hsmkm.durable_file import replace_file
from hsmkm.errors import InputError, IntegrityError, PolicyError, ProtocolError, RefusedError
from hsmkm.link.aim import Aim, AimConnection
from hsmkm.link.tcp import ApduLink
from hsmkm.link.tls import client_context
from hsmkm.meter_model import AGREED_KEYS
from hsmkm.pki.profiles import DIGITAL_SIGNATURE
from hsmkm.pki.slots import Slot, curve_for
from hsmkm.steps.communicate import (
    Conversation,
    active_key_set,
    conversation,
    find_meter,
    split_address,
)
from hsmkm.steps.credentials import TokenSigningKey, meter_key, policy_of
from hsmkm.steps.general_keys import CHOICES, StoredTransactions, Terms, general_keys
from hsmkm.steps.party import Party
from hsmkm.steps.results import Protected, Reading, Wanted
from hsmkm.steps.stored_counters import StoredCounter, StoredReceiveCounter
from hsmkm.store import intents, parties
from hsmkm.store.intents import Intent
from hsmkm.store.meter import Meter
from hsmkm.store.store import Transaction

APDU = "apdu"
ANSWERED = "answered"
ANSWER_SECONDS = 150.0
_INVOKE = 1

Carry = Callable[[bytes], bytes]
"""Takes an APDU to the meter and brings its answer, and is trusted with nothing."""


def protect(party: Party, name: str, wanted: Wanted, out: Path) -> Protected:
    """Write the protected request to a file; RefusedError where a key or certificate is missing."""
    with _end(party, find_meter(party, name), wanted) as end:
        apdu, asked = end.ask(GetRequest(_INVOKE, wanted.attribute), wanted.attribute)
        replace_file(out, apdu)
    return Protected(end.meter.title, asked, out, len(apdu))


def open_answer(party: Party, apdu: bytes) -> Reading:
    """Open the meter's answer to a request of ours.

    Raises IntegrityError for an answer that was altered, is not the meter's, or is that of no open request of ours;
    RefusedError where the meter refused what was asked, under its protection.
    """
    header = header_of(apdu)
    meter = find_meter(party, str(header.originator))
    with party.store.read() as tx:
        asked = _asked(tx, meter, header.transaction.hex())
    attribute = AttributeRef.parse(str(asked.detail["attribute"]))
    wanted = Wanted(attribute, signed=bool(asked.detail["signed"]))
    with _end(party, meter, wanted) as end:
        return end.reading(end.open(apdu, header.transaction.hex()), attribute)


def read_through(party: Party, name: str, wanted: Sequence[Wanted], through: str) -> list[Reading]:
    """Read attributes of a meter through a registered AIM's service, which carries APDUs that it cannot read."""
    meter = find_meter(party, name)
    with AimConnection(_aim(party, through)) as connection:
        path = f"/v1/meters/{meter.title}/apdu"
        return [
            _exchanged(party, meter, each, lambda apdu: connection.request("POST", path, LARGEST_APDU, apdu))
            for each in wanted
        ]


def _exchanged(party: Party, meter: Meter, wanted: Wanted, carry: Carry) -> Reading:
    with _end(party, meter, wanted) as end:
        apdu, asked = end.ask(GetRequest(_INVOKE, wanted.attribute), wanted.attribute)
        return end.reading(end.open(carry(apdu), asked), wanted.attribute)


def header_of(apdu: bytes) -> Header:
    """Read who says it to whom: of the outer layer, which is not proved yet. InputError for any other APDU."""
    if len(apdu) > LARGEST_APDU:
        raise InputError(f"an APDU has at most {LARGEST_APDU} octets, not {len(apdu)}")
    try:
        layer = general.parse(apdu)
    except ProtocolError as error:
        raise InputError(f"this is not an APDU that is protected end to end: {error.message}") from error
    if isinstance(layer, GeneralKeyed):
        raise InputError("this APDU is under a key of an association", hint="general-ciphering, general-signing")
    return layer.header


def _asked(tx: Transaction, meter: Meter, transaction: str) -> Intent:
    """Find the open request of a transaction; a request is answered once."""
    listed = intents.listing(tx, meter.system_title, APDU)
    found = [item for item in listed if item.detail.get("transaction") == transaction]
    if not found:
        raise IntegrityError("the APDU answers no request of ours", hint="open the answer to what apdu protect wrote")
    if found[-1].outcome is not None:
        raise IntegrityError("this request was answered before", hint="the answer is a recording: ask again")
    return found[-1]


def _data(answer: GetResult) -> axdr.Data:
    if answer.data is None:
        code = answer.error
        raise RefusedError(f"the meter refused: {xdlms.DATA_ACCESS_RESULTS.get(code, f'data access result {code}')}")
    return answer.data


class _End:
    """Our end of a conversation with one meter: gives protected requests, and takes protected answers."""

    def __init__(self, speaking: Conversation, channel: Channel, demanded: Protection) -> None:
        self._speaking = speaking
        self._channel = channel
        self._demanded = demanded
        self._transactions = StoredTransactions(speaking.party, speaking.meter.system_title)
        self.meter = speaking.meter

    def ask(self, request: GetRequest, attribute: AttributeRef) -> tuple[bytes, str]:
        """Protect a request, and give its transaction in hex; that it was made is durable before it is given."""
        number = self._transactions.next().to_bytes(TRANSACTION_OCTETS, "big")
        header = Header(number, self._channel.own, self._channel.peer)
        apdu = self._channel.protect(request.encode(), self._demanded, Form.GENERAL, header)
        signed = bool(self._demanded & Protection.SIGNED)
        detail = {"transaction": number.hex(), "attribute": str(attribute), "signed": signed}
        with self._speaking.party.store.begin("apdu-protect", self.meter.title, detail) as tx:
            intents.open(tx, self.meter.system_title, APDU, detail)
        return apdu, number.hex()

    def open(self, apdu: bytes, asked: str) -> GetResult | GetBlock:
        """Take every protection off an answer, and record that its request is answered."""
        opened = self._channel.unprotect(apdu)
        header = opened.header
        if header is None or opened.form is not Form.GENERAL or not opened.protection.covers(self._demanded):
            raise IntegrityError("the answer is protected less than the request demands")
        if header.recipient != self._channel.own or header.transaction.hex() != asked:
            raise IntegrityError("the answer is not for us, or that of another transaction")
        answer = xdlms.parse_response(opened.apdu)
        if not isinstance(answer, GetResult | GetBlock) or answer.invoke != _INVOKE:
            raise ProtocolError("the answer is that of another service")
        with self._speaking.party.store.begin("apdu-open", self.meter.title, {"transaction": asked}) as tx:
            intents.outcome(tx, _asked(tx, self.meter, asked).id, ANSWERED)
        return answer

    def reading(self, answer: GetResult | GetBlock, attribute: AttributeRef) -> Reading:
        """Take the value out of an answer; RefusedError where the meter gave none, or only a part of it."""
        if isinstance(answer, GetBlock):
            raise RefusedError(
                f"{attribute} of meter {self.meter.title} is longer than one APDU",
                hint="each APDU is carried in an association of its own, and blocks take one: read less at once",
            )
        return Reading(attribute, _data(answer))


@contextmanager
def _end(party: Party, meter: Meter, wanted: Wanted) -> Iterator[_End]:
    if wanted.key not in AGREED_KEYS:
        raise InputError(f"unknown key {wanted.key!r}", hint=f"use one of {', '.join(AGREED_KEYS)}")
    with ExitStack() as stack:
        speaking = stack.enter_context(conversation(party, meter, reach=_no_link))
        key_set = active_key_set(party, meter, speaking.model)
        suite = SecuritySuite(key_set.suite)
        if suite is SecuritySuite.SUITE_0:
            raise RefusedError(f"meter {meter.title} is of suite 0", hint="end-to-end protection takes suite 1 or 2")
        terms = Terms(
            meter=meter.system_title,
            suite=key_set.suite,
            choice=CHOICES[wanted.key],
            gak=key_set,
            counters=lambda identity: (StoredCounter(speaking, identity), StoredReceiveCounter(speaking, identity)),
            algorithms=AlgorithmIds(bytes.fromhex(speaking.model.key_agreement.algorithm_id)),
        )
        channel = Channel(
            suite=suite,
            own=SystemTitle(speaking.client_title),
            peer=SystemTitle(meter.system_title),
            general=stack.enter_context(general_keys(party, terms)),
            signer=TokenSigningKey(party.vault, Slot(DIGITAL_SIGNATURE.name, curve_for((suite,))).name),
            verifier=meter_key(party, meter.system_title, suite),
        )
        policy = policy_of(speaking.model)
        signed = Protection.SIGNED if wanted.signed else (policy.request | policy.response) & Protection.SIGNED
        yield _End(speaking, channel, Protection.CIPHERED | signed)


def _no_link() -> AbstractContextManager[ApduLink]:
    raise PolicyError("a third party has no link to the meter", hint="its APDUs are carried by the head end")


def _aim(party: Party, name: str) -> Aim:
    with party.store.read() as tx:
        aim = parties.require(tx, name)
    host, port = split_address(aim.address or "", f"party {name}")
    title = aim.system_title.hex().upper() if aim.system_title else ""
    return Aim(host, port, client_context(party.home, title), ANSWER_SECONDS)
