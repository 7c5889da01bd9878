"""Four eyes: what is listed is done with a second officer's signature, and each rule refuses for its own reason."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from hsmkm.errors import InputError, IntegrityError, RefusedError
from hsmkm.packages.approval import parse_request
from hsmkm.steps import approve
from hsmkm.steps.attest import check_store
from hsmkm.steps.officers import add_approval, add_officer, remove_officer
from hsmkm.steps.party import Party, utc_now
from hsmkm.store import approvals, officers
from tests.officers import Person, certify_officers, register_officers, set_policy
from tests.realm import ACTOR, Realm, copy_realm

ACTION, SUBJECT, REQUEST = "meter-destroy", "5554490000000001", {"meters": ["5554490000000001"], "generations": [1, 2]}


@pytest.fixture(scope="module")
def watched(realm_template: Realm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Realm, dict[str, Person]]:
    """A utility with the officers alice and bob, and an auditor, where destroying a meter takes an approval."""
    realm = copy_realm(realm_template, tmp_path_factory.mktemp("watched") / "realm")
    people = certify_officers(realm, "alice", "bob", "carol", "dave", "eve")
    register_officers(realm, "utility", {name: people[name] for name in ("alice", "bob", "dave")})
    with realm.open("utility") as party:
        add_officer(party, "carol", ("auditor",), people["carol"].file)
    set_policy(realm, "utility", four_eyes=f'["{ACTION}"]', approval_hours="1")
    return realm, people


@pytest.fixture(scope="module")
def people(watched: tuple[Realm, dict[str, Person]]) -> dict[str, Person]:
    return watched[1]


@pytest.fixture(scope="module")
def party(watched: tuple[Realm, dict[str, Person]]) -> Iterator[Party]:
    with watched[0].open("utility") as opened:
        yield opened


Signs = Callable[..., Path]


@pytest.fixture
def signed(party: Party, people: dict[str, Person], tmp_path: Path) -> Signs:
    """Write the file of a request that somebody signed."""

    def sign(by: str = "alice", requested_by: str = ACTOR, **changes: object) -> Path:
        request = parse_request(approve.new_request(party.settings, requested_by, ACTION, SUBJECT, REQUEST))
        path = tmp_path / f"{by}.p7m"
        path.write_bytes(people[by].sign(replace(request, **changes).encode()))  # type: ignore[arg-type]
        return path

    return sign


def destroy(party: Party, approval: str | None, action: str = ACTION, subject: str = SUBJECT, **more: object) -> None:
    with party.store.begin("test-effect", subject, {}) as tx:
        approve.require_approval(tx, party, action, subject, REQUEST | more, approval)


def refused(party: Party, approval: str | None, **more: str) -> str:
    with pytest.raises(approve.ApprovalRequiredError) as error:
        destroy(party, approval, **more)
    assert error.value.exit_code == 5
    return error.value.message


def test_what_is_not_listed_needs_none(party: Party) -> None:
    destroy(party, None, action="token-rotate")


def test_what_is_listed_is_refused_with_the_command_that_asks_for_exactly_it(party: Party) -> None:
    with pytest.raises(approve.ApprovalRequiredError, match="needs the approval of a second officer") as error:
        destroy(party, None)
    *frame, noun, verb, action, subject, option, text = shlex.split(error.value.hint)
    assert frame == ["hsmkm", "--home", str(party.home), "--actor", ACTOR]
    assert (noun, verb, action, subject, option) == ("approval", "request", ACTION, SUBJECT, "--request")
    assert json.loads(text) == REQUEST


def test_an_approval_is_used_once(party: Party, signed: Signs) -> None:
    approval = add_approval(party, signed()).id
    destroy(party, approval)
    assert "it was used before" in refused(party, approval)


def test_the_signed_file_can_be_given_at_once_and_then_never_again(party: Party, signed: Signs) -> None:
    path = signed()
    destroy(party, str(path))
    assert "it was used before" in refused(party, str(path))


def test_what_openssl_signs_is_taken(party: Party, people: dict[str, Person], tmp_path: Path) -> None:
    path = tmp_path / "openssl.p7m"
    request = approve.new_request(party.settings, ACTOR, ACTION, SUBJECT, REQUEST)
    path.write_bytes(people["alice"].sign_with_openssl(request))
    destroy(party, add_approval(party, path).id)


def test_an_approval_stays_open_where_the_effect_fails(party: Party, signed: Signs) -> None:
    approval = add_approval(party, signed()).id
    with suppress(OSError), party.store.begin("test-effect", SUBJECT, {}) as tx:
        approve.require_approval(tx, party, ACTION, SUBJECT, REQUEST, approval)
        raise OSError("the effect fails")
    with party.store.read() as tx:
        found = approvals.get(tx, approval)
    assert found is not None
    assert found.state == approvals.OPEN
    destroy(party, approval)


def test_it_is_for_one_action_one_subject_and_one_request(party: Party, signed: Signs) -> None:
    approval = add_approval(party, signed()).id
    assert "it is for another request" in refused(party, approval, also="this")
    assert f"it is for '{SUBJECT}'" in refused(party, approval, subject="5554490000000002")
    other = replace(party.settings.policy, four_eyes=("all",))
    everything = replace(party, settings=replace(party.settings, policy=other))
    assert f"it is for {ACTION}" in refused(everything, approval, action="token-rotate")


def test_there_is_no_such_approval(party: Party) -> None:
    assert "there is no approval" in refused(party, "15f3f1c2-9ec6-484f-8b91-4668a4ecc66c")


@pytest.mark.parametrize(
    ("by", "reason"),
    [
        ("eve", "its signer is not a registered officer"),
        ("carol", "carol is auditor, and only an officer approves"),
        ("bob", "bob asked for it, and another officer must sign it"),
    ],
)
def test_a_signature_of_the_wrong_person_is_refused(party: Party, signed: Signs, by: str, reason: str) -> None:
    path = signed(by, requested_by="bob")
    with pytest.raises(RefusedError) as error:
        add_approval(party, path)
    assert reason in error.value.reasons


def test_who_uses_it_is_not_who_signed_it(party: Party, signed: Signs) -> None:
    approval = add_approval(party, signed("alice")).id
    assert "alice signed it, and is who uses it" in refused(replace(party, actor="alice"), approval)


def test_requests_of_other_times_and_places_are_refused(party: Party, signed: Signs) -> None:
    now = utc_now()
    cases: list[tuple[dict[str, object], str]] = [
        ({"party": "factory"}, "it is for factory and not for utility"),
        ({"created": now - timedelta(hours=2), "expires": now - timedelta(hours=1)}, "it has expired on"),
        ({"created": now + timedelta(hours=1), "expires": now + timedelta(hours=2)}, "it was requested in the future"),
        ({"expires": now + timedelta(days=9)}, "it is valid for longer than the 1 hours of the policy"),
    ]
    for changes, reason in cases:
        path = signed(**changes)
        with pytest.raises(RefusedError) as error:
            add_approval(party, path)
        assert [text for text in error.value.reasons if reason in text], reason


def test_an_approval_that_expired_since_it_was_added_is_refused(
    party: Party, signed: Signs, monkeypatch: pytest.MonkeyPatch
) -> None:
    approval = add_approval(party, signed()).id
    later = utc_now() + timedelta(hours=2)
    monkeypatch.setattr(party.store, "_clock", lambda: later)
    assert "it has expired on" in refused(party, approval)


def test_an_altered_request_does_not_fit_its_signature(party: Party, signed: Signs) -> None:
    path = signed()
    path.write_bytes(path.read_bytes().replace(SUBJECT.encode(), b"5554490000000002"))
    with pytest.raises(IntegrityError, match="does not fit the digest that was signed"):
        add_approval(party, path)


def test_a_request_that_lies_about_its_digest_or_its_form_is_refused(
    party: Party, people: dict[str, Person], tmp_path: Path
) -> None:
    request, path = approve.new_request(party.settings, ACTOR, ACTION, SUBJECT, REQUEST), tmp_path / "file"
    digest = json.loads(request)["digest"].encode()
    cases = {
        request.replace(digest, bytes(reversed(digest))): "digest is not that of the request",
        request + b"\n": "document is not in canonical form",
        request.replace(b'"action"', b'"more":1,"action"'): "more has no place here",
    }
    for content, reason in cases.items():
        path.write_bytes(people["alice"].sign(content))
        with pytest.raises(InputError) as error:
            add_approval(party, path)
        assert reason in [fault.text for fault in error.value.faults]


def test_two_signatures_where_the_policy_wants_two(party: Party, people: dict[str, Person], tmp_path: Path) -> None:
    policy = replace(party.settings.policy, approvals=2)
    strict = replace(party, settings=replace(party.settings, policy=policy))
    request = approve.new_request(party.settings, ACTOR, ACTION, SUBJECT, REQUEST)
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(people["alice"].sign(request))
    two.write_bytes(people["bob"].sign(request))
    approval = add_approval(strict, one).id
    assert "1 of 2 officers have signed it" in refused(strict, approval)
    with pytest.raises(RefusedError) as error:
        add_approval(strict, one)
    assert "alice has signed it already" in error.value.reasons
    assert add_approval(strict, two).id == approval
    destroy(strict, approval)


def test_an_officer_who_was_removed_approves_nothing_more(
    watched: tuple[Realm, dict[str, Person]], party: Party, signed: Signs, tmp_path: Path
) -> None:
    approval = add_approval(party, signed("dave")).id
    late = signed("dave")
    request = approve.new_request(
        party.settings, ACTOR, "officer-change", "dave", {"roles": [], "certificate": "", "state": "removed"}
    )
    with pytest.raises(approve.ApprovalRequiredError):
        remove_officer(party, "dave")
    (tmp_path / "removal").write_bytes(watched[1]["alice"].sign(request))
    assert remove_officer(party, "dave", str(tmp_path / "removal")).state == officers.REMOVED
    assert "dave is not an officer with that certificate any more" in refused(party, approval)
    with pytest.raises(RefusedError) as error:
        add_approval(party, late)
    assert "its signer is not a registered officer" in error.value.reasons


def test_an_altered_officer_or_approval_is_named_by_the_check(party: Party, signed: Signs) -> None:
    approval = add_approval(party, signed()).id
    assert not check_store(party)
    with party.store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE officers SET powers = 'officer' WHERE name = 'carol'")
        connection.exec_driver_sql("UPDATE approvals SET expires = expires + 9 WHERE id = ?", (approval,))
    assert {str(item.row) for item in check_store(party)} == {"carol", approval}
    with pytest.raises(IntegrityError, match="does not fit its mac"):
        destroy(party, approval)
    with party.store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE officers SET powers = 'auditor' WHERE name = 'carol'")
        connection.exec_driver_sql("UPDATE approvals SET expires = expires - 9 WHERE id = ?", (approval,))
    assert not check_store(party)


def test_a_request_for_a_whole_fleet_has_the_digest_of_its_list(
    party: Party, people: dict[str, Person], tmp_path: Path
) -> None:
    titles = [f"{number:016X}" for number in range(10_000, 0, -1)]
    subject, request = approve.of_meters(titles)
    assert subject == "10000 meters"
    listed = tmp_path / "list"
    listed.write_text("".join(f"{title}\n" for title in titles))
    counted = subprocess.run(f"sort {listed} | sha256sum", shell=True, capture_output=True, text=True, check=True)  # noqa: S602 - as the page says
    assert request == {"meters": {"count": 10_000, "sha256": counted.stdout.split()[0]}}
    signed = tmp_path / "fleet.p7m"
    signed.write_bytes(people["alice"].sign(approve.new_request(party.settings, ACTOR, ACTION, subject, request)))
    with party.store.begin("test-effect", subject, {}) as tx:
        with pytest.raises(approve.ApprovalRequiredError, match="it is for another request"):
            approve.require_approval(
                tx, party, ACTION, *approve.of_meters([*titles[1:], f"{10_001:016X}"]), str(signed)
            )
        approve.require_approval(tx, party, ACTION, subject, request, str(signed))


def test_a_request_for_meters_that_a_person_can_read_names_each() -> None:
    titles = [f"{number:016X}" for number in range(approve.LISTED, 0, -1)]
    assert approve.of_meters(titles) == (f"{len(titles)} meters", {"meters": titles[::-1]})
    assert approve.of_meters(titles[:1]) == (titles[0], {"meters": titles[:1]})
