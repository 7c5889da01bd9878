"""Every authentication mechanism, policy and form through the steps, against the virtual meter."""

from __future__ import annotations

import base64
import os
import shutil
from pathlib import Path

import pytest

from hsmkm.config import read_model
from hsmkm.dlms.types import KeyId
from hsmkm.errors import InputError, PartlyDoneError, RefusedError
from hsmkm.link.client import MeterRefusedError
from hsmkm.packages.receive import inspect_package
from hsmkm.simulator.behaviour import Fault, MeterSettings
from hsmkm.steps.communicate import read
from hsmkm.steps.exporting import export
from hsmkm.steps.inject import inject
from hsmkm.steps.party import Party
from hsmkm.steps.receive import receive_file
from hsmkm.steps.renew import renew
from hsmkm.steps.resolve import resolve
from hsmkm.store import certificates, key_sets
from hsmkm.store.certificates import CertificateState
from hsmkm.token.types import KeyRole, MeterRole, SecretRole
from tests.field import ENERGY
from tests.mechanisms import SECRETS, TITLE, Line, import_model, moved, set_up, under_initial_keys, write_model
from tests.proofs.held import hold, wait_held
from tests.proofs.search import Needles
from tests.realm import Realm

CASES = [(mechanism, suite) for mechanism in (1, 3, 4, 5, 6) for suite in (0, 1, 2)] + [(7, 1), (7, 2)]
FORMS = ("glo", "ded", "general-glo", "general-ded")
ROLES: dict[str, MeterRole] = {"lls": SecretRole.LLS, "hls": SecretRole.HLS}


def energy(party: Party) -> object:
    (reading,) = read(party, TITLE, (ENERGY,))
    return reading.data.value


def held_secret(line: Line) -> bytes:
    return line.state.password if line.mechanism == 1 else line.state.secret


@pytest.mark.parametrize(("mechanism", "suite"), CASES)
def test_a_meter_of_every_mechanism_is_injected_and_read(realm: Realm, mechanism: int, suite: int) -> None:
    line = set_up(realm, mechanism, suite)
    initial = held_secret(line)
    with line.meter() as address, realm.open("factory") as party:
        assert inject(party, TITLE, address).state == "active"
        assert energy(party) == 123_456
    assert line.state.keys[KeyId.GUEK] != line.keys["guek"]
    if mechanism in SECRETS:
        assert held_secret(line) != initial
        assert len(held_secret(line)) == 16


@pytest.mark.parametrize("mechanism", SECRETS)
def test_a_secret_is_renewed_alone_and_the_old_one_refused(realm: Realm, mechanism: int) -> None:
    line = set_up(realm, mechanism, 0)
    role = ROLES[SECRETS[mechanism]]
    with line.meter() as address, realm.open("factory") as party:
        inject(party, TITLE, address)
        keys, before = dict(line.state.keys), held_secret(line)
        (outcome,) = renew(party, [TITLE], (role,), prove_refusal=True)
        assert (outcome.state, outcome.generation) == ("active", 2)
        assert energy(party) == 123_456
    assert line.state.keys == keys
    assert held_secret(line) != before


@pytest.mark.parametrize("fault", [Fault.REJECT, Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.LIE])
@pytest.mark.parametrize("mechanism", [1, 6])
def test_a_secret_in_doubt_is_found_out_and_renewed(realm: Realm, mechanism: int, fault: Fault) -> None:
    line = set_up(realm, mechanism, 0)
    role = ROLES[SECRETS[mechanism]]
    with line.meter() as address, realm.open("factory") as party:
        inject(party, TITLE, address)
    before = held_secret(line)
    with line.meter(MeterSettings(fault=fault, fault_count=1)) as address, realm.open("factory") as party:
        with pytest.raises(MeterRefusedError), under_initial_keys(party, address):
            pass
        (outcome,) = renew(party, [TITLE], (role,))
        assert isinstance(outcome.error, PartlyDoneError)
        assert resolve(party, TITLE).state == "active"
        assert energy(party) == 123_456
    assert held_secret(line) != before


def test_all_keys_and_the_secret_are_renewed_together(realm: Realm) -> None:
    line = set_up(realm, 6, 1)
    with line.meter() as address, realm.open("factory") as party:
        inject(party, TITLE, address)
        keys, before = dict(line.state.keys), held_secret(line)
        (outcome,) = renew(party, [TITLE], (*KeyRole, SecretRole.HLS), prove_refusal=True)
        assert outcome.state == "active"
        assert energy(party) == 123_456
    assert not set(keys.values()) & set(line.state.keys.values())
    assert held_secret(line) != before


@pytest.mark.parametrize("mechanism", [0, 1, 3, 4, 6, 7])
def test_mechanisms_without_ciphering_read_and_are_not_keyed(realm: Realm, mechanism: int) -> None:
    line = set_up(realm, mechanism, 1, "[protection]\npolicy = 0\n", policy=0)
    with line.meter() as address, realm.open("factory") as party:
        with under_initial_keys(party, address) as client:
            assert client.get(ENERGY).value == 123_456
        with pytest.raises(RefusedError, match="does not prove its keys"):
            inject(party, TITLE, address)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suite", [0, 2])
def test_every_form_is_spoken(realm: Realm, form: str, suite: int) -> None:
    line = set_up(realm, 5, suite, f'[protection]\nform = "{form}"\n')
    with line.meter() as address, realm.open("factory") as party:
        assert inject(party, TITLE, address).state == "active"
        assert energy(party) == 123_456


@pytest.mark.parametrize("policy", [0x6C, 0xB4, 0xFC])
def test_policies_of_version_1_up_to_signatures(realm: Realm, policy: int) -> None:
    line = set_up(realm, 7, 1, f"[protection]\npolicy = {policy:#x}\n", policy=policy)
    with line.meter() as address, realm.open("factory") as party:
        assert inject(party, TITLE, address).state == "active"
        assert energy(party) == 123_456


def test_a_secret_does_not_change_where_it_could_be_read(realm: Realm) -> None:
    line = set_up(realm, 1, 0, "[protection]\npolicy = 0x24\n", policy=0x24)
    refused = pytest.raises(RefusedError, match="authenticated and encrypted")
    with line.meter() as address, realm.open("factory") as party, refused:
        inject(party, TITLE, address)


def test_mechanism_7_takes_the_meters_certificate_while_it_is_in_force(realm: Realm) -> None:
    line = set_up(realm, 7, 1)
    with line.meter() as address, realm.open("factory") as party:
        inject(party, TITLE, address)
        with party.store.begin("meter-certificate-revoked", TITLE, {}) as tx:
            (record,) = certificates.listing(tx, owner=TITLE, profile="digital-signature")
            certificates.set_state(tx, record.fingerprint, CertificateState.REVOKED)
        with pytest.raises(RefusedError, match="has no certificate"):
            energy(party)


@pytest.mark.parametrize("mechanism", [3, 4])
def test_weak_digests_are_refused_where_the_model_does_not_allow_them(realm: Realm, mechanism: int) -> None:
    path = write_model(realm, mechanism, 0, weak=False)
    with pytest.raises(InputError) as caught:
        read_model(path)
    (fault,) = caught.value.faults
    assert (fault.line, fault.text.split(":")[0]) == (4, "authentication.mechanism")


def test_initial_secrets_are_taken_for_mechanisms_that_have_one(realm: Realm) -> None:
    with realm.open("factory") as party:
        write_model(realm, 1, 0)
        with pytest.raises(InputError) as missing:
            import_model(realm, party, 5, 0)
        write_model(realm, 6, 0)
        with pytest.raises(InputError) as strange:
            import_model(realm, party, 1, 0)
    assert [fault.text for fault in missing.value.faults] == ["lls is missing"]
    assert "the model's mechanism has no lls secret" in [fault.text for fault in strange.value.faults]


@pytest.mark.parametrize("mechanism", [1, 6])
def test_a_secret_is_never_written_in_clear_into_store_or_package(realm: Realm, mechanism: int) -> None:
    line = set_up(realm, mechanism, 0)
    role = ROLES[SECRETS[mechanism]]
    initial = held_secret(line)
    with line.meter() as address, realm.open("factory") as party:
        inject(party, TITLE, address)
        with party.store.read() as tx:
            found = key_sets.newest(tx, bytes.fromhex(TITLE), 0, 1)
    assert found is not None
    assert found.has(role)
    (entry,) = inspect_package(line.package.read_bytes()).content.meters
    assert {key.role for key in entry.keys} == {*KeyRole, role}
    written = [path for path in realm.folder.rglob("*") if path.is_file() and "tokens" not in path.parts]
    assert any(path.name == "store.db" for path in written)
    for value in (initial, held_secret(line)):
        forms = (value, value.hex().encode(), value.hex().upper().encode(), base64.b64encode(value))
        assert [path for path in written if _holds(path, forms)] == []


@pytest.mark.parametrize(("mechanism", "suite"), [(1, 0), (6, 2)])
def test_a_delivered_secret_opens_an_association_for_the_utility(realm: Realm, mechanism: int, suite: int) -> None:
    line = set_up(realm, mechanism, suite)
    shutil.copytree(realm.home("factory") / "models", realm.home("utility") / "models")
    with line.meter() as address:
        with realm.open("factory") as party:
            inject(party, TITLE, address)
            sent = export(party, "delivery", "utility", (TITLE,), None)
        with realm.open("utility") as party:
            receive_file(party, sent.path)
            moved(party, address)
            assert energy(party) == 123_456
            (outcome,) = renew(party, [TITLE], (ROLES[SECRETS[mechanism]],))
            assert outcome.state == "active"
            assert energy(party) == 123_456


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", [1, 6])
def test_the_orchestrating_process_never_holds_a_secret(realm: Realm, mechanism: int) -> None:
    line = set_up(realm, mechanism, 0)
    initial = held_secret(line)
    with line.meter() as address, hold(realm, "factory", "meter", "inject", TITLE, "--address", address) as held:
        wait_held(held)
        assert held_secret(line) != initial
        needles = Needles({"secret": held_secret(line)})
        assert needles.in_memory(os.getpid()), "the virtual meter has it in this process"
        assert needles.in_memory(held.process) == set()
        assert needles.in_command(held.process) == set()
    assert held.exit_code == 0, held.stderr


def _holds(path: Path, forms: tuple[bytes, ...]) -> bool:
    content = path.read_bytes()
    return any(form in content for form in forms)
