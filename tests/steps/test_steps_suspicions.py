"""What no honest meter answers is refused, counted by kind, and shown to the operator; everything else is not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from hsmkm.dlms.agreement import PublicShare
from hsmkm.dlms.hls import Signer
from hsmkm.dlms.suspicion import KINDS
from hsmkm.dlms.types import KeyId, SecuritySuite
from hsmkm.errors import HsmkmError, IntegrityError, ProtocolError
from hsmkm.service.party_desk import PartyDesk
from hsmkm.simulator.behaviour import Fault, MeterSettings
from hsmkm.simulator.key_pairs import SoftwareSigner
from hsmkm.steps.agree import renew_by_agreement
from hsmkm.steps.communicate import read
from hsmkm.steps.inject import inject
from hsmkm.steps.party import open_party
from hsmkm.steps.resolve import resolve
from hsmkm.steps.suspicions import of_meter
from hsmkm.token.standing import StandingWorker
from hsmkm.token.workers import Worker
from tests.field import ENERGY
from tests.mechanisms import TITLE, Line, moved, set_up
from tests.realm import ACTOR, Realm
from tests.tap import tapping, unaltered

pytestmark = pytest.mark.slow

GLO_GET_RESPONSE = 0xCC
WRAPPER_HEADER = 8


def told(realm: Realm) -> dict[str, int]:
    rows = realm.rows("factory", "meter", "show", TITLE)
    return {row["state"]: row["number"] for row in rows if row["kind"] == "refusal"}


def refused(
    line: Line,
    kind: type[HsmkmError],
    settings: MeterSettings | None = None,
    alter: Callable[[bytes], bytes] = unaltered,
) -> str:
    """Read the meter, which must be refused, and give the kinds that are counted then."""
    with ExitStack() as stack:
        address = stack.enter_context(line.meter(settings))
        tap = stack.enter_context(tapping(address, alter))
        party = stack.enter_context(line.realm.open("factory"))
        moved(party, tap.address)
        with pytest.raises(kind) as error:
            read(party, TITLE, (ENERGY,))
        return error.value.suspicion


def of_another_suite(octets: bytes) -> bytes:
    """Alter the security control of a get-response."""
    frame = bytearray(octets)
    if frame[WRAPPER_HEADER] == GLO_GET_RESPONSE:
        frame[WRAPPER_HEADER + 2] ^= 0x03
    return bytes(frame)


def agreed_badly(line: Line, patch: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Renew by key_agreement with a meter that answers badly and keeps its key, and find out what it holds."""
    with line.meter(MeterSettings(fault=Fault.LIE)) as address, line.realm.open("factory") as party:
        moved(party, address)
        with pytest.MonkeyPatch.context() as meddled:
            patch(meddled)
            (outcome,) = renew_by_agreement(party, [TITLE])
        assert outcome.state == "unknown"
        assert resolve(party, TITLE).state == "active"


def nothing_signed(meddled: pytest.MonkeyPatch) -> None:
    meddled.setattr(SoftwareSigner, "sign", lambda _self, _data: bytes(64))


class OffTheCurve:
    """What the meter makes its answer with: a point that is on no curve, signed in good order."""

    @staticmethod
    def sign(_suite: SecuritySuite, key_id: KeyId, _point: bytes, signer: Signer) -> PublicShare:
        point = bytes(63) + b"\x01"
        return PublicShare(key_id, point, signer.sign(PublicShare.signed_octets(key_id, point)))


def off_the_curve(meddled: pytest.MonkeyPatch) -> None:
    meddled.setattr("hsmkm.simulator.security_setup.PublicShare", OffTheCurve)


def test_each_kind_is_refused_counted_and_shown(realm: Realm) -> None:
    line = set_up(realm, 5, 1, "[key_agreement]\nway_back = true\n")
    with line.meter() as address, realm.open("factory") as party:
        assert inject(party, TITLE, address).state == "active"
    assert told(realm) == {}

    assert refused(line, ProtocolError, MeterSettings(challenge=lambda _: b"7octets")) == "bad-challenge"
    assert refused(line, IntegrityError, alter=of_another_suite) == "wrong-suite"
    agreed_badly(line, nothing_signed)
    agreed_badly(line, off_the_curve)
    honest = line.state.tx_ic
    line.state.tx_ic = 1
    assert refused(line, IntegrityError) == "repeated-counter"
    line.state.tx_ic = honest
    with line.meter() as address, realm.open("factory") as party:
        moved(party, address)
        read(party, TITLE, (ENERGY,))
        with party.store.read() as tx:
            counted = {item.action: item.count for item in of_meter(tx, TITLE)}
    kinds = {"bad-challenge", "wrong-suite", "signature-out-of-range", "bad-point", "repeated-counter"}
    assert counted == told(realm) == dict.fromkeys(kinds, 1)
    with StandingWorker(lambda: Worker(open_party, realm.home("factory"), ACTOR)) as worker:
        desk = PartyDesk(realm.home("factory"), worker)
        for _ in range(2):
            assert desk.refusals() == dict.fromkeys(KINDS, 0) | counted
