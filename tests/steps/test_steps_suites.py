"""Suites 1 and 2 go wherever suite 0 goes, and what speaks of one meter of suite 2 is signed and agreed on P-384."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hsmkm.errors import RefusedError
from hsmkm.packages.container import open_container
from hsmkm.packages.receive import PackageRefusedError, inspect_package
from hsmkm.packages.transport import issuer_and_serial, parse_recipient_info
from hsmkm.pki.certificates import public_key, read_certificates
from hsmkm.pki.slots import P256, P384, Slot, curve_of
from hsmkm.steps.deliver import accept_receipt
from hsmkm.steps.exporting import export
from hsmkm.steps.party import Party
from hsmkm.steps.provision import provision
from hsmkm.steps.receive import receive, receive_file, receive_or_refuse
from hsmkm.steps.renew import ALL_KEYS, renew
from hsmkm.steps.results import Provisioned, Sent
from hsmkm.store import key_sets
from tests.field import deliver_meters, energy, open_field, state_path
from tests.forge import certified, forge
from tests.realm import KEY_OCTETS, Realm, title_of

FLEET = {1: 0, 2: 1, 3: 2}
READING = 123_456


def provisioned(realm: Realm, suites: dict[int, int]) -> Provisioned:
    with realm.open("factory") as party:
        return provision(party, realm.mixed_order(suites), "line")


def curves(package: bytes, realm: Realm, recipient: str) -> tuple[str, str]:
    """The curve on which a package is signed, and that of the certificate its key is agreed with."""
    found = inspect_package(package)
    named = parse_recipient_info(found.content.recipient_info).recipient
    slots = (Slot("key-agreement", curve) for curve in (P256, P384))
    leaves = [read_certificates(realm.folder / "certificates" / recipient / f"{one.name}.pem")[0] for one in slots]
    (agreed,) = [curve_of(public_key(leaf)) for leaf in leaves if issuer_and_serial(leaf) == named]
    return curve_of(public_key(found.signed.signer)), agreed


@pytest.mark.parametrize(
    ("suites", "curve"),
    [({1: 0}, P256), ({1: 1}, P256), ({1: 0, 2: 1}, P256), ({1: 2}, P384), (FLEET, P384)],
    ids=["0", "1", "0 and 1", "2", "0, 1 and 2"],
)
def test_a_package_is_signed_and_agreed_on_p_384_as_soon_as_one_meter_is_of_suite_2(
    realm: Realm, suites: dict[int, int], curve: str
) -> None:
    (path,) = provisioned(realm, suites).packages
    assert curves(path.read_bytes(), realm, "line") == (curve, curve)
    for entry in inspect_package(path.read_bytes()).content.meters:
        assert {len(key.wrapped) for key in entry.keys} == {KEY_OCTETS[entry.suite] + 8}


@pytest.mark.slow
def test_a_fleet_of_every_suite_is_injected_delivered_registered_renewed_and_read(realm: Realm) -> None:
    deliver_meters(realm, FLEET)
    (delivery,) = sorted((realm.home("utility") / "receipts").glob("*.p7m"))
    assert curve_of(public_key(open_container(delivery.read_bytes()).signer)) == P384
    with open_field(realm) as field:
        field.serve()
        field.concentrate()
        outcomes = field.register(field.meters(*FLEET))
        assert [(item.state, item.generation) for item in outcomes] == [("active", 2)] * len(FLEET)
        with realm.open("utility") as party:
            titles = [title_of(serial) for serial in FLEET]
            again = renew(party, titles, ALL_KEYS, wait=30, prove_refusal=True)
            assert [(item.state, item.generation) for item in again] == [("active", 3)] * len(FLEET)
            assert [energy(party, serial) for serial in FLEET] == [READING] * len(FLEET)
        assert {state for _, state in field.package_states()} == {"accepted"}
        for serial in FLEET:
            assert field.key_states("concentrator", serial)[-1] == (3, "active")
    for serial, suite in FLEET.items():
        held = json.loads(state_path(realm, serial).read_text())["keys"]
        assert {len(bytes.fromhex(value)) for value in held.values()} == {KEY_OCTETS[suite]}


@pytest.mark.parametrize(("signed", "agreed"), [(P256, P256), (P256, P384), (P384, P256)])
def test_a_package_of_suite_2_on_p_256_is_refused_whole(realm: Realm, signed: str, agreed: str) -> None:
    with realm.open("factory") as party:
        package = forge(party, certified(realm, "utility", agreed), title_of(3), suite=2, curve=signed)
    with realm.open("utility") as party, pytest.raises(PackageRefusedError) as refused:
        receive(party, package.data)
    assert refused.value.reasons == ("meters of suite 2 need signing and key-agreement keys on P-384",)
    with realm.open("utility") as party, party.store.read() as tx:
        assert key_sets.for_meter(tx, bytes.fromhex(title_of(3))) == []


@pytest.mark.parametrize(("suite", "curve"), [(1, P256), (2, P384)])
def test_a_receipt_is_signed_on_the_curve_of_its_package_whether_it_was_taken_or_refused(
    realm: Realm, suite: int, curve: str
) -> None:
    with realm.open("factory") as party:
        good = forge(party, certified(realm, "utility", curve), title_of(1), suite=suite, curve=curve)
        stale = forge(party, certified(realm, "utility", curve), title_of(2), suite=suite, curve=curve)
    with realm.open("utility") as party:
        receipts = [receive_or_refuse(party, package.data) for package in (good, stale)]
    assert {curve_of(public_key(open_container(receipt).signer)) for receipt in receipts} == {curve}


def test_a_recipient_without_keys_on_p_384_gets_no_meter_of_suite_2_and_the_others_as_before(realm: Realm) -> None:
    for name in (Slot("key-agreement", P384).name, Slot("package-signing", P384).name):
        (realm.folder / "certificates" / "utility" / f"{name}.pem").unlink()
    options = ("party", "add", "utility", "--role", "utility", "--replace", "--certificates")
    realm.rows("factory", *options, str(realm.folder / "certificates" / "utility"))
    with meters_of(realm, FLEET) as party:
        with pytest.raises(RefusedError, match="no key-agreement-p384 certificate is registered for utility"):
            export(party, "delivery", "utility", (title_of(1), title_of(3)), None)
        sent = export(party, "delivery", "utility", (title_of(1), title_of(2)), None)
    assert taken(realm, sent) == 2


@contextmanager
def meters_of(realm: Realm, fleet: dict[int, int]) -> Iterator[Party]:
    """Open the factory after it provisioned meters, which nobody injected."""
    provisioned(realm, fleet)
    with realm.open("factory") as party:
        yield party


def taken(realm: Realm, sent: Sent) -> int:
    """Take a package as the utility, and its receipt as the factory; the number of its meters."""
    with realm.open("utility") as party:
        found = receive_file(party, sent.path)
    with realm.open("factory") as party:
        accept_receipt(party, found.receipt)
    return found.meters
