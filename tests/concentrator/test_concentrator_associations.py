"""A meter of two clients behind a concentrator, which is given the keys of the association that is for it only."""

from __future__ import annotations

import pytest

from hsmkm.errors import RefusedError
from hsmkm.steps.communicate import read
from hsmkm.steps.exporting import export
from hsmkm.steps.inject import inject_many
from hsmkm.steps.receive import receive_file
from hsmkm.steps.register import register
from hsmkm.steps.renew import GLOBAL_KEYS, renew
from hsmkm.store import holders, key_sets
from tests.associations import MODEL, READING, TITLE, saved, states, two_clients, write_model
from tests.field import ENERGY, open_field, state_path
from tests.realm import Realm

pytestmark = pytest.mark.slow


def deliver(realm: Realm) -> None:
    made = two_clients(realm)
    with made.meter() as address, realm.open("factory") as party:
        assert [item.state for item in inject_many(party, [(TITLE, address)])] == ["active", "active"]
        sent = export(party, "delivery", "utility", (TITLE,), None)
    state_path(realm, 1).parent.mkdir()
    saved(made.state, state_path(realm, 1))
    with realm.open("utility") as party:
        receive_file(party, sent.path)


def test_registration_renews_every_association_and_gives_the_concentrator_its_own(realm: Realm) -> None:
    deliver(realm)
    write_model(realm, "", "concentrator")
    with open_field(realm) as field:
        field.serve()
        concentrator = field.concentrate()
        outcomes = field.register(field.meters(1))
        assert [(item.association, item.state, item.generation) for item in outcomes] == [
            ("management", "active", 2),
            ("reading", "active", 2),
        ]
        with realm.open("utility") as party:
            assert [read(party, TITLE, (ENERGY,), name)[0].data.value for name in ("management", "reading")] == [
                123_456,
                123_456,
            ]
            assert [renew(party, [TITLE], GLOBAL_KEYS, name)[0].generation for name in ("management", "reading")] == [
                3,
                3,
            ]
            with party.store.read() as tx:
                given = {
                    item.ref for item in holders.for_meter(tx, bytes.fromhex(TITLE)) if item.party == "concentrator"
                }
            assert {(ref.security_setup, ref.client) for ref in given} == {READING}
            assert {state for _, state in field.package_states()} == {"accepted"}
        (row,) = realm.rows("concentrator", "meter", "read", TITLE, "1.0.1.8.0.255")
        assert row["value"] == "123456"
        concentrator.stop()
        with realm.open("concentrator") as party:
            assert states(party) == {(1, 2, 1): "deactivated", (1, 2, 2): "deactivated", (1, 2, 3): "active"}


def test_a_meter_with_keys_of_an_association_that_the_model_lacks_is_not_registered(realm: Realm) -> None:
    deliver(realm)
    path = realm.home("utility") / "models" / f"{MODEL}.toml"
    path.write_text(path.read_text().partition("# What is not said")[0])
    with realm.open("utility") as party:
        (outcome,) = register(party, [(TITLE, "127.0.0.1:9")], "concentrator", 1)
        assert isinstance(outcome.error, RefusedError)
        assert "no association of Security Setup 1 and client 2" in outcome.detail
        with party.store.read() as tx:
            assert len(key_sets.for_meter(tx, bytes.fromhex(TITLE))) == 2
