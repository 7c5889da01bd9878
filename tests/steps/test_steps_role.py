"""Roles: who changes something has a role that allows it, at the moment of the change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hsmkm.errors import PolicyError, RefusedError
from hsmkm.steps.attest import check_store, verify_audit
from hsmkm.steps.officers import add_officer, remove_officer
from hsmkm.steps.party import Party, open_party
from hsmkm.steps.provision import provision
from hsmkm.steps.role import roles_for
from tests.officers import Person, certify_officers, register_officers, set_policy
from tests.realm import Realm

ACTIONS = {
    "officer-add": ("officer",),
    "pki-trust": ("officer",),
    "pki-authority-begin": ("officer",),
    "party-add": ("officer",),
    "token-rotate": ("officer",),
    "store-recover": ("officer",),
    "pki-issue": ("officer", "operator"),
    "approval-add": ("officer", "operator"),
    "package-send": ("operator",),
    "renewal-prepare": ("operator",),
    "package-receipt": ("operator", "service"),
    "refused: replay": ("operator", "service"),
    "": ("operator", "service"),
}
NAMES = {"alice": "officer", "oscar": "operator", "sam": "service", "ada": "auditor", "nobody": "no role here"}


@pytest.fixture
def people(realm: Realm) -> dict[str, Person]:
    """A factory with roles, where alice is the officer."""
    found = certify_officers(realm, "alice", "bob")
    register_officers(realm, "factory", {"alice": found["alice"]})
    with realm.open("factory") as party:
        for name, role in NAMES.items():
            if role in ("operator", "service", "auditor"):
                add_officer(party, name, (role,), None)
    set_policy(realm, "factory", roles="true")
    return found


def as_actor(party: Party, name: str) -> Party:
    """Open the store of a party as somebody else."""
    party.store._actor = name
    return replace(party, actor=name)


@pytest.mark.parametrize(("action", "roles"), ACTIONS.items())
def test_each_action_is_for_some_roles(action: str, roles: tuple[str, ...]) -> None:
    assert roles_for(action) == roles


def test_every_change_is_asked_for_and_refused_to_the_wrong_role(realm: Realm, people: dict[str, Person]) -> None:
    with open_party(realm.home("factory"), "alice") as party:
        for name, role in NAMES.items():
            asking = as_actor(party, name)
            for action, roles in ACTIONS.items():
                opened = asking.store.begin(action, "test", {}) if action else asking.store.count()
                if role in roles:
                    with opened:
                        pass
                    continue
                with pytest.raises(PolicyError, match=f"{name} .*{role}.* is for {' or '.join(roles)}"), opened:
                    pytest.fail("the change was begun")
        assert people


def test_an_auditor_checks_and_an_operator_provisions(realm: Realm, people: dict[str, Person]) -> None:
    assert people
    order = realm.order(1)
    with open_party(realm.home("factory"), "ada") as party:
        assert check_store(party) == verify_audit(party, ()) == []
        with pytest.raises(PolicyError, match="ada is auditor: package-send is for operator"):
            provision(party, order, "line")
        assert provision(as_actor(party, "oscar"), order, "line").meters == 1


def test_a_role_that_was_taken_away_is_gone_at_once_and_the_last_officer_stays(
    realm: Realm, people: dict[str, Person]
) -> None:
    with open_party(realm.home("factory"), "alice") as party:
        remove_officer(party, "oscar")
        with (
            pytest.raises(PolicyError, match="oscar has no role here"),
            as_actor(party, "oscar").store.begin("package-send", "line", {}),
        ):
            pytest.fail("the change was begun")
        alice = as_actor(party, "alice")
        with pytest.raises(RefusedError, match="alice is the last officer"):
            remove_officer(alice, "alice")
        with pytest.raises(RefusedError, match="alice is the last officer"):
            add_officer(alice, "alice", ("auditor",), None)
        add_officer(alice, "bob", ("officer",), people["bob"].file)
        remove_officer(alice, "alice")


def test_an_officer_needs_a_certificate_of_the_same_name_and_a_key_of_nobody_else(
    realm: Realm, people: dict[str, Person]
) -> None:
    with open_party(realm.home("factory"), "alice") as party:
        with pytest.raises(RefusedError) as error:
            add_officer(party, "robert", ("officer",), people["bob"].file)
        assert "the certificate belongs to 'bob' and not to 'robert'" in error.value.reasons
        with pytest.raises(RefusedError) as error:
            add_officer(party, "alicia", ("officer",), people["alice"].file)
        assert "its key is that of alice" in error.value.reasons
        with pytest.raises(RefusedError, match="is not accepted"):
            add_officer(party, "factory", ("officer",), realm.folder / "certificates/factory/package-signing.pem")
