"""general-ciphering under every kind of key, and general-signing, through the steps and against the virtual meter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from hsmkm.config import read_model
from hsmkm.dlms import general
from hsmkm.dlms.general import AgreedKey, GeneralCiphering, GeneralSigning, IdentifiedKey, KeyParameters, WrappedKey
from hsmkm.errors import InputError, IntegrityError, PartlyDoneError, PolicyError, RefusedError
from hsmkm.link.client import MeterRefusedError
from hsmkm.simulator.behaviour import Fault, MeterSettings
from hsmkm.simulator.key_pairs import generate
from hsmkm.simulator.session import Session
from hsmkm.steps.communicate import find_meter, read
from hsmkm.steps.inject import inject
from hsmkm.steps.party import Party
from hsmkm.steps.renew import ALL_KEYS, renew
from hsmkm.steps.resolve import resolve
from hsmkm.store import certificates, meters
from hsmkm.store.certificates import CertificateState
from hsmkm.token.types import KeyRole
from tests.field import ENERGY
from tests.mechanisms import AGREEMENT, TITLE, set_up, write_model
from tests.realm import Realm

KEYS = ("identified", "wrapped", "one-pass", "static")
CASES = [(key, suite) for suite in (0, 1, 2) for key in KEYS if suite or key in ("identified", "wrapped")]
SIGNED = 0xFC


def protection(key: str, policy: int | None = None) -> str:
    demanded = "" if policy is None else f"policy = {policy:#x}\n"
    return f'[protection]\nform = "general-ciphering"\nkey = "{key}"\n{demanded}'


def energy(party: Party) -> object:
    (reading,) = read(party, TITLE, (ENERGY,))
    return reading.data.value


@contextmanager
def overheard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[bytes, bytes]]]:
    """Listen to what the meter takes and answers."""
    heard: list[tuple[bytes, bytes]] = []
    receive = Session.receive

    def listening(self: Session, apdu: bytes, client_sap: int) -> bytes:
        answer = receive(self, apdu, client_sap)
        heard.append((apdu, answer))
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Session, "receive", listening)
        yield heard


def ciphered(apdu: bytes) -> GeneralCiphering:
    layer = general.parse(apdu)
    if isinstance(layer, GeneralSigning):
        layer = general.parse(layer.content)
    assert isinstance(layer, GeneralCiphering)
    return layer


def kind(apdu: bytes) -> str | None:
    info = ciphered(apdu).key_info
    if isinstance(info, AgreedKey):
        return "static" if info.parameters is KeyParameters.STATIC else "one-pass"
    names: dict[Any, str | None] = {IdentifiedKey: "identified", WrappedKey: "wrapped", type(None): None}
    return names[type(info)]


@pytest.mark.parametrize(("key", "suite"), CASES)
def test_a_meter_is_keyed_and_read_under_every_kind_of_key(
    realm: Realm, monkeypatch: pytest.MonkeyPatch, key: str, suite: int
) -> None:
    line = set_up(realm, 5, suite, protection(key))
    with line.meter() as address, realm.open("factory") as party:
        assert inject(party, TITLE, address).state == "active"
        with overheard(monkeypatch) as heard:
            assert energy(party) == 123_456
    asked = [(request, answer) for request, answer in heard if request[0] == general.GENERAL_CIPHERING]
    assert len(asked) == 2
    assert {kind(request) for request, _ in asked} == {key}
    assert {kind(answer) for _, answer in asked} == {None if key == "wrapped" else key}
    assert not [apdu for pair in heard for apdu in pair if b"\x01\xe2\x40" in apdu]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("mechanism", [5, 7])
def test_a_policy_that_demands_signatures_has_the_ciphered_apdu_signed(
    realm: Realm, monkeypatch: pytest.MonkeyPatch, mechanism: int, key: str
) -> None:
    line = set_up(realm, mechanism, 1, protection(key, SIGNED), policy=SIGNED)
    with line.meter() as address, realm.open("factory") as party:
        assert inject(party, TITLE, address).state == "active"
        with overheard(monkeypatch) as heard:
            assert energy(party) == 123_456
    signed = [pair for pair in heard if pair[0][0] == general.GENERAL_SIGNING]
    assert len(signed) == 2
    assert {apdu[0] for pair in signed for apdu in pair} == {general.GENERAL_SIGNING}
    assert {kind(request) for request, _ in signed} == {key}


@pytest.mark.parametrize(
    ("key", "roles"), [("wrapped", ALL_KEYS), ("wrapped", (KeyRole.MASTER,)), ("static", ALL_KEYS)]
)
@pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER])
def test_keys_in_doubt_are_found_out_whatever_key_the_model_takes(
    realm: Realm, key: str, roles: tuple[KeyRole, ...], fault: Fault
) -> None:
    line = set_up(realm, 5, 1, protection(key))
    with line.meter() as address, realm.open("factory") as party:
        inject(party, TITLE, address)
    with line.meter(MeterSettings(fault=fault, fault_count=1)) as address, realm.open("factory") as party:
        with party.store.begin("meter-address", TITLE, {}) as tx:
            meters.update(tx, replace(find_meter(party, TITLE), address=address))
        (outcome,) = renew(party, [TITLE], roles)
        assert isinstance(outcome.error, PartlyDoneError)
        assert resolve(party, TITLE).state == "active"
        assert energy(party) == 123_456


def test_a_statically_agreed_key_is_never_used_with_one_iv_twice(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    line = set_up(realm, 5, 1, protection("static"))
    with line.meter() as address, overheard(monkeypatch) as heard:
        with realm.open("factory") as party:
            inject(party, TITLE, address)
            energy(party)
        with realm.open("factory") as party:
            energy(party)
    requests = [request for request, _ in heard if request[0] == general.GENERAL_CIPHERING]
    layers = [ciphered(request) for request in requests if kind(request) == "static"]
    numbers = [layer.header.transaction_number for layer in layers]
    counters = [layer.content.counter for layer in layers]
    assert numbers == sorted(set(numbers))
    assert counters == sorted(set(counters))
    assert len(counters) >= 4


def test_a_recorded_answer_under_a_statically_agreed_key_is_refused(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = set_up(realm, 5, 1, protection("static"))
    receive, recorded = Session.receive, []

    def replaying(self: Session, apdu: bytes, client_sap: int) -> bytes:
        answer = receive(self, apdu, client_sap)
        if apdu[0] == general.GENERAL_CIPHERING:
            recorded.append(answer)
            return recorded[0]
        return answer

    with line.meter() as address, realm.open("factory") as party:
        inject(party, TITLE, address)
        monkeypatch.setattr(Session, "receive", replaying)
        with pytest.raises(IntegrityError):
            read(party, TITLE, (ENERGY, ENERGY))


@pytest.mark.parametrize("key", ["one-pass", "static"])
def test_agreed_keys_take_the_meters_certificate_while_it_is_in_force(realm: Realm, key: str) -> None:
    line = set_up(realm, 5, 1, protection(key))
    with line.meter() as address, realm.open("factory") as party:
        inject(party, TITLE, address)
        with party.store.begin("meter-certificate-revoked", TITLE, {}) as tx:
            (record,) = certificates.listing(tx, owner=TITLE, profile="key-agreement")
            certificates.set_state(tx, record.fingerprint, CertificateState.REVOKED)
        with pytest.raises(RefusedError, match="no certificate for key agreement"):
            energy(party)


@pytest.mark.parametrize("key", ["one-pass", "static"])
def test_a_meter_with_another_agreement_key_is_found_out(realm: Realm, key: str) -> None:
    line = set_up(realm, 5, 1, protection(key))
    with line.meter() as address, realm.open("factory") as party:
        inject(party, TITLE, address)
        line.state.key_pairs[AGREEMENT] = generate(line.state.suite)
        with pytest.raises((MeterRefusedError, IntegrityError)):
            energy(party)


@pytest.mark.parametrize("key", ["one-pass", "static"])
def test_a_policy_against_keys_on_the_host_forbids_agreed_ones(
    realm: Realm, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    line = set_up(realm, 5, 1, protection(key))
    with line.meter() as address, realm.open("factory") as party:
        monkeypatch.setattr(party.session, "settings", replace(party.session.settings, kdf_on_host=False))
        inject(party, TITLE, address)
        with pytest.raises(PolicyError, match="host"):
            energy(party)


@pytest.mark.parametrize(
    ("text", "suite", "fault"),
    [
        ('[protection]\nkey = "static"\n', 1, "protection.key: static is a key of general-ciphering"),
        ('[protection]\nform = "general-ciphering"\nkey = "secret"\n', 1, "protection.key: unknown key 'secret'"),
        ('[protection]\nform = "general-ciphering"\nkey = "one-pass"\n', 0, "protection.key: agreed keys need"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_its_line(realm: Realm, text: str, suite: int, fault: str) -> None:
    with pytest.raises(InputError) as caught:
        read_model(write_model(realm, 5, suite, text))
    (found,) = caught.value.faults
    assert found.text.startswith(fault)
    assert found.line == 5 + text.count("\n")


def test_renewed_globals_leave_the_master_key_of_wrapped_keys(realm: Realm) -> None:
    line = set_up(realm, 5, 0, protection("wrapped"))
    with line.meter() as address, realm.open("factory") as party:
        inject(party, TITLE, address)
        (outcome,) = renew(party, [TITLE], (KeyRole.GUEK, KeyRole.GAK), prove_refusal=True)
        assert outcome.state == "active"
        assert energy(party) == 123_456
