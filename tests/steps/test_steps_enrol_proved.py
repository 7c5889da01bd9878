"""A meter that proves itself by signatures enrols under its keys, works by its certificates, and is refused without."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.dlms.types import Mechanism
from hsmkm.errors import RefusedError
from hsmkm.link.client import MeterRefusedError
from hsmkm.packages.receive import inspect_package
from hsmkm.pki.certificates import read_certificates
from hsmkm.simulator.behaviour import Fault, MeterSettings
from hsmkm.steps import certify
from hsmkm.steps.agree import renew_by_agreement
from hsmkm.steps.communicate import active_key_set, conversation, find_meter, read
from hsmkm.steps.distribute import distribute
from hsmkm.steps.enrol import import_certificates, introduce, remove_certificate, request_certificates
from hsmkm.steps.exporting import export
from hsmkm.steps.inject import inject
from hsmkm.steps.issue import issue
from hsmkm.steps.meter_certificates import METER_PROFILES, meter_certificate
from hsmkm.steps.receive import receive_file
from hsmkm.steps.resolve import resolve
from hsmkm.store import meters
from hsmkm.store.key_set import KeyState
from tests.field import ENERGY
from tests.mechanisms import MODEL, TITLE, Line, moved, set_up

if TYPE_CHECKING:
    from hsmkm.steps.party import Party
    from tests.realm import Realm

MODEL_TEXT = "[enrolment]\nmechanism = 5\n[key_agreement]\nway_back = true\n"
REVOKED = f"the certificate of '{TITLE}' is revoked"


@dataclass(frozen=True)
class Plant:
    """A factory with one meter that signs, from before it has any certificate, and where the meter is."""

    realm: Realm
    line: Line
    address: str

    @property
    def issued(self) -> Path:
        return self.realm.folder / "issued"

    def enrol(self) -> None:
        requests = self.realm.folder / "meter-requests"
        with self.realm.open("factory") as party:
            assert len(request_certificates(party, TITLE, requests)) == 3
        with self.realm.open("authority") as party:
            issue(party, requests, self.issued)
        with self.realm.open("factory") as party:
            assert len(import_certificates(party, TITLE, self.issued)) == 3

    def revoke(self, *profiles: str) -> None:
        with self.realm.open("authority") as party:
            for profile in profiles:
                certify.revoke(party, self.issued / f"{TITLE}.{profile}.pem", "keyCompromise")
            certify.publish(party, self.realm.folder / "pki", 7)

    def deliver(self) -> None:
        shutil.copytree(self.realm.home("factory") / "models", self.realm.home("utility") / "models")
        with self.realm.open("factory") as party:
            sent = export(party, "delivery", "utility", (TITLE,), None).path
        with self.realm.open("utility") as party:
            receive_file(party, sent)
            moved(party, self.address)


@contextmanager
def plant(realm: Realm, suite: int, settings: MeterSettings | None = None) -> Iterator[Plant]:
    line = set_up(realm, 7, suite, MODEL_TEXT, certified=False)
    line.state.mechanisms = frozenset({Mechanism.HLS_GMAC, Mechanism.HLS_ECDSA})
    (root,) = read_certificates(realm.folder / "pki" / "root.pem")
    line.state.anchors.append(root.public_bytes(Encoding.DER))
    with line.meter(settings) as address:
        yield Plant(realm, line, address)


def refusals(act: Callable[[], object]) -> list[str]:
    """Run what must be refused, and give the reasons."""
    with pytest.raises(RefusedError) as raised:
        act()
    return list(raised.value.reasons)


def energy(party: Party) -> object:
    (reading,) = read(party, TITLE, (ENERGY,))
    return reading.data.value


def in_form(realm: Realm, name: str, key: str) -> None:
    """Let a party speak general-ciphering under an agreed key with the model's meters."""
    path = realm.home(name) / "models" / f"{MODEL}.toml"
    path.write_text(path.read_text() + f'[protection]\nform = "general-ciphering"\nkey = "{key}"\n')


@pytest.mark.slow
@pytest.mark.parametrize("suite", [1, 2])
def test_a_meter_of_mechanism_7_is_injected_and_enrolled_under_its_keys_and_then_signs(
    realm: Realm, suite: int
) -> None:
    with plant(realm, suite) as made:
        with realm.open("factory") as party:
            assert inject(party, TITLE, made.address).state == "active"
            with pytest.raises(RefusedError, match="no certificate for digital signatures"):
                energy(party)
        made.enrol()
        with realm.open("factory") as party:
            assert energy(party) == 123_456
            (outcome,) = renew_by_agreement(party, [TITLE])
            assert outcome.state == "active"
            assert energy(party) == 123_456


@pytest.mark.slow
def test_an_injection_in_doubt_is_resolved_without_certificates(realm: Realm) -> None:
    with plant(realm, 1, MeterSettings(fault=Fault.DROP_AFTER, fault_count=1)) as made:
        with realm.open("factory") as party:
            assert inject_fails(party, made.address)
            assert resolve(party, TITLE).state == "active"
        made.enrol()
        with realm.open("factory") as party:
            assert energy(party) == 123_456


def inject_fails(party: Party, address: str) -> bool:
    return inject(party, TITLE, address).error is not None


@pytest.mark.slow
def test_a_delivered_meter_knows_the_utility_once_it_introduced_itself_and_tells_a_concentrator_its_certificates(
    realm: Realm,
) -> None:
    with plant(realm, 1) as made:
        with realm.open("factory") as party:
            inject(party, TITLE, made.address)
        made.enrol()
        made.deliver()
        with realm.open("utility") as party:
            with pytest.raises(MeterRefusedError):
                energy(party)
            labels = ["our digital-signature", "our key-agreement"]
            assert [item.profile for item in introduce(party, TITLE)] == labels
            assert introduce(party, TITLE) == []
            assert energy(party) == 123_456
            sent = distributed(party)
    (entry,) = inspect_package(sent.read_bytes()).content.meters
    assert len(entry.certificates) == 3
    with realm.open("concentrator") as party:
        receive_file(party, sent)
        for profile in METER_PROFILES:
            found = meter_certificate(party, TITLE, profile, 1)
            assert found == read_certificates(made.issued / f"{TITLE}.{profile}.pem")[0]


def distributed(party: Party) -> Path:
    """Give the meter's keys to the concentrator that is a client; the package's file."""
    known = find_meter(party, TITLE)
    with party.store.begin("meter-concentrator", TITLE, {}) as tx:
        meters.update(tx, replace(known, concentrator="concentrator"))
    with conversation(party, find_meter(party, TITLE)) as speaking:
        key_set = active_key_set(party, speaking.meter, speaking.model)
        (sent,) = distribute(party, [(speaking, key_set)], KeyState.ACTIVE)
    return sent.path


@pytest.mark.slow
def test_a_revoked_meter_is_refused_wherever_it_could_be_used_and_works_again_when_enrolled_anew(
    realm: Realm,
) -> None:
    with plant(realm, 1) as made:
        with realm.open("factory") as party:
            inject(party, TITLE, made.address)
        made.enrol()
        made.deliver()
        with realm.open("utility") as party:
            introduce(party, TITLE)
            assert energy(party) == 123_456
        made.revoke(*METER_PROFILES)
        for name in ("factory", "utility"):
            with realm.open(name) as party:
                certify.update_trust(party, realm.folder / "pki")
                assert refusals(partial(energy, party)) == [REVOKED], "mechanism 7"
                (outcome,) = renew_by_agreement(party, [TITLE])
                assert isinstance(outcome.error, RefusedError)
                assert REVOKED in outcome.error.reasons, "key_agreement"
                for profile in METER_PROFILES:
                    assert REVOKED in refusals(partial(meter_certificate, party, TITLE, profile, 1)), profile
        with realm.open("factory") as party:
            told = refusals(partial(import_certificates, party, TITLE, made.issued))
            assert told == [f"{profile}: {REVOKED}" for profile in METER_PROFILES], "import"
            sent = export(party, "delivery", "utility", (TITLE,), None).path
            (entry,) = inspect_package(sent.read_bytes()).content.meters
            assert entry.certificates == (), "package"
        for key in ("one-pass", "static"):
            models = realm.home("utility") / "models" / f"{MODEL}.toml"
            before = models.read_text()
            in_form(realm, "utility", key)
            with realm.open("utility") as party:
                assert REVOKED in refusals(partial(energy, party)), "general-ciphering"
            models.write_text(before)
        made.enrol()
        with realm.open("factory") as party:
            assert energy(party) == 123_456
            assert [item.state for item in remove_certificate(party, TITLE, "tls")] == ["removed"]
