"""A meter of several clients: each association has a key set of its own, from provisioning to reading."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hsmkm.errors import InputError, PartlyDoneError, RefusedError
from hsmkm.packages.receive import inspect_package
from hsmkm.simulator.behaviour import Fault, MeterSettings
from hsmkm.steps.communicate import conversation, find_meter, read
from hsmkm.steps.exporting import export
from hsmkm.steps.inject import inject, inject_many
from hsmkm.steps.party import Party
from hsmkm.steps.provision import provision
from hsmkm.steps.receive import receive_file
from hsmkm.steps.renew import GLOBAL_KEYS, renew
from hsmkm.steps.resolve import resolve_all, unfinished
from hsmkm.store import holders, meters, renewals
from hsmkm.store.check import check
from hsmkm.store.renewals import RenewalState
from hsmkm.token.types import KeyRole, SecretRole
from tests.associations import (
    MANAGEMENT,
    MODEL,
    READING,
    READING_BY_SHA_256,
    TITLE,
    in_force,
    states,
    two_clients,
    write_model,
)
from tests.field import ENERGY
from tests.realm import Realm

BOTH = ("management", "reading")


def energy(party: Party, association: str = "") -> object:
    (reading,) = read(party, TITLE, (ENERGY,), association)
    return reading.data.value


def injected(party: Party, address: str) -> None:
    outcomes = inject_many(party, [(TITLE, address)])
    assert [(item.association, item.state, item.error) for item in outcomes] == [
        ("management", "active", None),
        ("reading", "active", None),
    ]


def test_each_association_is_provisioned_with_a_key_set_of_its_own(realm: Realm) -> None:
    made = two_clients(realm)
    entries = inspect_package(made.package.read_bytes()).content.meters
    assert [(entry.security_setup, entry.client, entry.generation) for entry in entries] == [(0, 1, 1), (1, 2, 1)]
    wrapped = [key.wrapped for entry in entries for key in entry.keys]
    assert len(set(wrapped)) == len(wrapped) == 8
    with realm.open("factory") as party:
        assert states(party) == {(0, 1, 1): "pre-active", (1, 2, 1): "pre-active"}
        assert provision(party, made.order, "line").already
        with party.store.read() as tx:
            assert list(check(tx)) == []


def test_a_package_is_filled_by_key_sets_and_not_by_meters(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsmkm.steps.waiting.MAX_METERS", 5)
    write_model(realm)
    order = realm.folder / "many.csv"
    order.write_text("flag,serial,model,suite\n" + "".join(f"MMM,{serial},{MODEL},0\n" for serial in range(1, 6)))
    with realm.open("factory") as party:
        packages = provision(party, order, "line").packages
    entries = [inspect_package(path.read_bytes()).content.meters for path in packages]
    assert [len({entry.system_title for entry in found}) for found in entries] == [2, 2, 1]
    assert [len(found) for found in entries] == [4, 4, 2]


@pytest.mark.parametrize("own_keys", [True, False])
def test_both_associations_are_injected_and_read(realm: Realm, *, own_keys: bool) -> None:
    made = two_clients(realm, own_keys=own_keys)
    before = [dict(made.state.keys), dict(made.reading.keys)]
    with made.meter() as address, realm.open("factory") as party:
        injected(party, address)
        assert [energy(party, name) for name in BOTH] == [123_456, 123_456]
        injected(party, address)
        assert states(party) == {(0, 1, 1): "active", (1, 2, 1): "active"}
    assert not {*before[0].values(), *before[1].values()} & {*made.state.keys.values(), *made.reading.keys.values()}
    assert not set(made.state.keys.values()) & set(made.reading.keys.values())


def test_each_association_has_its_own_mechanism_secret_and_form(realm: Realm) -> None:
    made = two_clients(realm, READING_BY_SHA_256)
    initial = made.reading.secret
    with made.meter() as address, realm.open("factory") as party:
        injected(party, address)
        assert [energy(party, name) for name in BOTH] == [123_456, 123_456]
        assert [in_force(party, place).has(SecretRole.HLS) for place in (MANAGEMENT, READING)] == [False, True]
        (outcome,) = renew(party, [TITLE], (SecretRole.HLS,), "reading", prove_refusal=True)
        assert (outcome.state, outcome.association, outcome.generation) == ("active", "reading", 2)
        (refused,) = renew(party, [TITLE], (SecretRole.HLS,))
        assert isinstance(refused.error, RefusedError)
    assert made.reading.secret != initial
    assert made.state.secret == b""


def test_renewing_one_association_leaves_the_other_as_it_is(realm: Realm) -> None:
    made = two_clients(realm)
    with made.meter() as address, realm.open("factory") as party:
        injected(party, address)
        management, reading = dict(made.state.keys), dict(made.reading.keys)
        (outcome,) = renew(party, [TITLE], (*KeyRole,), "reading", prove_refusal=True)
        assert (outcome.state, outcome.association, outcome.generation) == ("active", "reading", 2)
        assert made.state.keys == management
        assert not set(made.reading.keys.values()) & set(reading.values())
        assert states(party) == {(0, 1, 1): "active", (1, 2, 1): "deactivated", (1, 2, 2): "active"}
        (outcome,) = renew(party, [TITLE], GLOBAL_KEYS)
        assert (outcome.state, outcome.association, outcome.generation) == ("active", "management", 2)
        assert [energy(party, name) for name in BOTH] == [123_456, 123_456]


@pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.LIE, Fault.FIRST_ONLY])
def test_a_fault_in_one_association_is_resolved_there_and_touches_no_other(realm: Realm, fault: Fault) -> None:
    made = two_clients(realm)
    settings = MeterSettings(fault=fault, fault_count=1, fault_setup=1)
    with made.meter(settings) as address, realm.open("factory") as party:
        first, second = inject_many(party, [(TITLE, address)])
        assert (first.state, first.error) == ("active", None)
        assert (second.association, second.state) == ("reading", "unknown")
        assert isinstance(second.error, PartlyDoneError)
        management = dict(made.state.keys)
        with pytest.raises(RefusedError, match="not every meter"):
            export(party, "delivery", "utility", (TITLE,), None)
        assert unfinished(party) == [TITLE]
        (renewed,) = renew(party, [TITLE], GLOBAL_KEYS, "reading")
        assert "is not finished" in renewed.detail
        (outcome,) = resolve_all(party, TITLE)
        assert (outcome.association, outcome.state) == ("reading", "active")
        assert unfinished(party) == []
        assert made.state.keys == management
        injected(party, address)
        assert [energy(party, name) for name in BOTH] == [123_456, 123_456]
        assert export(party, "delivery", "utility", (TITLE,), None).meters == 1


def test_one_association_is_renewed_while_another_is_in_doubt(realm: Realm) -> None:
    made = two_clients(realm)
    with made.meter() as address, realm.open("factory") as party:
        injected(party, address)
    faulty = MeterSettings(fault=Fault.DROP_AFTER, fault_count=2)
    with made.meter(faulty) as address, realm.open("factory") as party:
        _moved(party, address)
        outcomes = [renew(party, [TITLE], GLOBAL_KEYS, name)[0] for name in BOTH]
        assert [item.state for item in outcomes] == ["unknown", "unknown"]
        outcomes = resolve_all(party, TITLE)
        assert [(item.association, item.state) for item in outcomes] == [
            ("management", "active"),
            ("reading", "active"),
        ]
        with party.store.read() as tx:
            found = renewals.listing(tx, bytes.fromhex(TITLE))
        assert all(item.state in (RenewalState.ACTIVE, RenewalState.ABANDONED) for item in found)
        assert [energy(party, name) for name in BOTH] == [123_456, 123_456]


def test_what_was_sent_in_one_association_was_not_in_another(realm: Realm) -> None:
    made = two_clients(realm)
    with made.meter(MeterSettings(fault=Fault.REJECT, fault_setup=0)) as address, realm.open("factory") as party:
        (outcome,) = inject_many(party, [(TITLE, address)], "management")
        assert outcome.state == "unknown"
        resolve_all(party, TITLE, go_on=False)
        assert [inject(party, TITLE, address, name).generation for name in BOTH] == [2, 1]


def test_a_delivery_gives_every_key_set_and_the_utility_reads_through_each(realm: Realm) -> None:
    made = two_clients(realm)
    with made.meter() as address:
        with realm.open("factory") as party:
            injected(party, address)
            sent = export(party, "delivery", "utility", (TITLE,), None)
            with party.store.read() as tx:
                given = {item.ref for item in holders.for_meter(tx, bytes.fromhex(TITLE)) if item.party == "utility"}
            assert {(ref.security_setup, ref.client) for ref in given} == {MANAGEMENT, READING}
        with realm.open("utility") as party:
            assert receive_file(party, sent.path).meters == 1
            _moved(party, address)
            assert [energy(party, name) for name in BOTH] == [123_456, 123_456]
            with pytest.raises(InputError, match="has no association 'writing'"):
                energy(party, "writing")


def test_the_model_must_know_every_association_that_there_are_keys_of(realm: Realm) -> None:
    made = two_clients(realm)
    with made.meter(MeterSettings(fault=Fault.DROP_AFTER, fault_setup=1)) as address, realm.open("factory") as party:
        inject_many(party, [(TITLE, address)])
        path = realm.home("factory") / "models" / f"{MODEL}.toml"
        whole = path.read_text()
        path.write_text(whole.partition("# What is not said")[0])
        with pytest.raises(RefusedError, match="no association of Security Setup 1 and client 2"):
            resolve_all(party, TITLE)
        path.write_text(whole)
        assert [item.state for item in resolve_all(party, TITLE)] == ["active"]


def test_the_lease_is_the_meters(realm: Realm) -> None:
    made = two_clients(realm)
    with made.meter() as address, realm.open("factory") as party:
        injected(party, address)
        with (
            conversation(party, find_meter(party, TITLE), "management"),
            pytest.raises(RefusedError, match="is held by"),
            conversation(party, find_meter(party, TITLE), "reading"),
        ):
            pass


def _moved(party: Party, address: str) -> None:
    with party.store.begin("meter-address", TITLE, {}) as tx:
        meters.update(tx, replace(meters.require(tx, bytes.fromhex(TITLE)), address=address))
