"""Where four eyes are asked for: each operation of the list is refused without an approval, and done with one."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from hsmkm.config import load_settings
from hsmkm.errors import PolicyError, RefusedError, TokenUnreachableError
from hsmkm.steps import approve, certify, rotate, setup
from hsmkm.steps.approve import ApprovalRequiredError
from hsmkm.steps.attest import check_store, verify_audit
from hsmkm.steps.destroy import destroy
from hsmkm.steps.migrate import migrate
from hsmkm.steps.officers import add_approval, add_officer
from hsmkm.steps.party import Party, open_party, utc_now
from hsmkm.steps.provision import provision
from hsmkm.steps.records import DESTROYED
from hsmkm.steps.recover import open_recovery, recover_store
from hsmkm.steps.register_party import PartyPlan, register_party
from hsmkm.store import approvals, audit, packages
from hsmkm.store.approvals import USED
from hsmkm.store.store import Store, Transaction
from hsmkm.token.session import SOFTHSM
from hsmkm.token.workers import Worker
from tests.database import keep
from tests.officers import Person, certify_officers, register_officers, set_policy
from tests.realm import ACTOR, TITLES, Realm, certify_home, title_of
from tests.steps.test_steps_migrate import agreement, new_home


@pytest.fixture
def people(realm: Realm) -> dict[str, Person]:
    return certify_officers(realm, "alice", "bob")


def watch(realm: Realm, home: str, people: dict[str, Person]) -> None:
    """Let a home have two officers, and demand an approval of everything that can be approved."""
    register_officers(realm, home, people)
    set_policy(realm, home, four_eyes='["all"]')


def approved(party: Party, refused: ApprovalRequiredError, by: Person, folder: Path) -> str:
    """Do what the hint of a refusal says, and have it signed; the signed file."""
    words = shlex.split(refused.hint)
    assert words[1:5] == ["--home", str(party.home), "--actor", ACTOR]
    path = folder / f"{len(list(folder.iterdir()))}.p7m"
    asked, written = approve.write_request(party.settings, ACTOR, (words[7], words[8], words[10]), None)
    path.write_bytes(by.sign(written.read_bytes()))
    assert asked.action == words[7]
    return str(path)


def test_an_authority_is_made_with_an_approval_and_no_key_without(
    realm: Realm, people: dict[str, Person], tmp_path: Path
) -> None:
    with realm.open("authority") as party:
        certify.place_anchor(party, realm.folder / "pki" / "root.pem")
    watch(realm, "authority", people)
    with realm.open("authority") as party:
        (party.home / "certificates" / "issuing.pem").unlink()
        party.vault.key_pairs.destroy("ca:issuing")
        with pytest.raises(ApprovalRequiredError) as error:
            certify.create_issuing(party, "issuing", "Second Issuing", "P-384")
        assert not party.vault.has_ec_key("ca:issuing")
        approval = approved(party, error.value, people["bob"], tmp_path)
        with pytest.raises(ApprovalRequiredError, match="it is for another request"):
            certify.create_issuing(party, "issuing", "Second Issuing", "P-256", approval)
        made = certify.create_issuing(party, "issuing", "Second Issuing", "P-384", approval)
        assert made.subject == "Second Issuing"
        with pytest.raises(ApprovalRequiredError, match="it was used before"):
            certify.create_issuing(party, "issuing", "Second Issuing", "P-384", approval)


def test_an_anchor_is_placed_with_an_approval_and_once_placed_without(
    realm: Realm, people: dict[str, Person], tmp_path: Path
) -> None:
    watch(realm, "utility", people)
    other = tmp_path / "other"
    setup.make_token(setup.write_home(other, "other", "authority", "4155540000000009", ()), ACTOR)
    with open_party(other, ACTOR) as party:
        root = certify.create_root(party, "Other Root", "P-256").path
    with realm.open("utility") as party:
        certify.place_anchor(party, realm.folder / "pki" / "root.pem")
        with pytest.raises(ApprovalRequiredError) as error:
            certify.place_anchor(party, root)
        assert certify.trust_of(party).anchors[1:] == ()
        certify.place_anchor(party, root, approved(party, error.value, people["alice"], tmp_path))
        assert len(certify.trust_of(party).anchors) == 2


def test_keys_are_given_to_an_approved_recipient_and_to_no_other_key_of_it(
    realm: Realm, people: dict[str, Person], tmp_path: Path
) -> None:
    watch(realm, "factory", people)
    order = realm.order(1)
    (tmp_path / "signed").mkdir()
    with realm.open("factory") as party:
        with pytest.raises(ApprovalRequiredError) as error:
            provision(party, order, "line")
        assert list((party.home / "packages").iterdir()) == []
        add_approval(party, Path(approved(party, error.value, people["alice"], tmp_path / "signed")))
        provision(party, order, "line")
        provision(party, realm.order(2, name="second.csv"), "line")
        with party.store.read() as tx:
            assert len(packages.listing(tx, peer="line")) == 2
            assert [one.state for one in approvals.listing(tx)] == [approvals.USED]
    with realm.open("line") as party:
        party.vault.key_pairs.destroy("key-agreement")
    certify_home(realm, "line")
    with realm.open("factory") as party:
        plan = PartyPlan("line", "line", (), "", "", realm.folder / "certificates" / "line", replace=True)
        register_party(party, plan)
        with pytest.raises(ApprovalRequiredError, match="package-first-recipient of line needs"):
            provision(party, realm.order(3, name="third.csv"), "line")


def test_storage_keys_are_not_made_anew_beside_a_store(realm: Realm, people: dict[str, Person]) -> None:
    watch(realm, "factory", people)
    settings = load_settings(realm.home("factory"))
    setup.make_token(settings, ACTOR)
    shutil.rmtree(realm.home("factory") / "token")
    setup.set_in_file(realm.home("factory") / "hsmkm.toml", "token", "uri", "")
    with pytest.raises(PolicyError, match="integrity key that this token lacks"):
        setup.make_token(load_settings(realm.home("factory")), ACTOR)


def test_a_missing_storage_key_is_made_with_an_approval(
    realm: Realm, people: dict[str, Person], tmp_path: Path
) -> None:
    watch(realm, "factory", people)
    settings = load_settings(realm.home("factory"))
    with realm.open("factory") as party:
        party.session.destroy(party.vault.keyring.newest("gak-storage")[1])
    with pytest.raises(ApprovalRequiredError) as error:
        setup.make_token(settings, ACTOR)
    with realm.open("factory") as party:
        assert party.vault.keyring.missing() == ["gak-storage"]
        approval = approved(party, error.value, people["bob"], tmp_path)
    setup.make_token(settings, ACTOR, approval)
    with realm.open("factory") as party:
        assert party.vault.keyring.missing() == []


def test_keys_are_rotated_with_one_approval_and_the_old_ones_retired_with_another(
    realm: Realm, people: dict[str, Person], tmp_path: Path
) -> None:
    watch(realm, "factory", people)
    with realm.open("factory") as party:
        with pytest.raises(ApprovalRequiredError) as error:
            rotate.rotate(party)
        assert party.vault.storage_key == 1
        rotation = approved(party, error.value, people["alice"], tmp_path)
        assert {item.number for item in rotate.rotate(party, rotation)} == {2}
        with pytest.raises(ApprovalRequiredError, match="it was used before"):
            rotate.retire(party, rotation)
        with pytest.raises(ApprovalRequiredError) as error:
            rotate.retire(party)
        assert party.vault.keyring.numbers_below(2)
        assert len(rotate.retire(party, approved(party, error.value, people["bob"], tmp_path))) == 3


def test_a_home_moves_with_an_approval_for_that_very_token_and_stays_in_use_without(
    realm: Realm, people: dict[str, Person], tmp_path: Path
) -> None:
    for name in ("new", "other"):
        home = realm.home(name)
        setup.make_token(setup.write_home(home, "factory", "factory", TITLES["factory"], ("MMM",)), ACTOR)
        certify_home(realm, name)
    to, elsewhere = (realm.home(name) / "certificates" / "key-agreement-p384.pem" for name in ("new", "other"))
    watch(realm, "factory", people)
    (folder := tmp_path / "signed").mkdir()
    with realm.open("factory") as party:
        with pytest.raises(ApprovalRequiredError) as error:
            migrate(party, to, tmp_path / "archive", False)
        approval = approved(party, error.value, people["alice"], folder)
        for wrong, standby in ((elsewhere, False), (to, True)):
            with pytest.raises(ApprovalRequiredError, match="it is for another request"):
                migrate(party, wrong, tmp_path / "archive", standby, approval)
        with party.store.begin("test-at-work", "x", {}):
            pass
        assert not (tmp_path / "archive").exists()
        assert migrate(party, to, tmp_path / "archive", False, approval).purpose == "migration"
        with pytest.raises(PolicyError, match="retired"), party.store.begin("test-at-work", "x", {}):
            pass


def test_a_third_officer_needs_an_approval_and_the_first_two_do_not(
    realm: Realm, people: dict[str, Person], tmp_path: Path
) -> None:
    set_policy(realm, "factory", four_eyes='["meter-destroy"]')
    register_officers(realm, "factory", people)
    carol = certify_officers(realm, "carol")["carol"]
    with realm.open("factory") as party:
        certify.update_trust(party, realm.folder / "pki")
        with pytest.raises(ApprovalRequiredError) as error:
            add_officer(party, "carol", ("officer",), carol.file)
        approval = approved(party, error.value, people["bob"], tmp_path)
        assert add_officer(party, "carol", ("officer",), carol.file, approval).has("officer")


def signed(party: Party, by: Person, folder: Path) -> Path:
    """Have somebody sign a request for the destruction of a meter."""
    path = folder / f"{len(list(folder.iterdir()))}.p7m"
    path.write_bytes(by.sign(approve.new_request(party.settings, ACTOR, "meter-destroy", "m", {})))
    return path


def use(party: Party, approval: str) -> None:
    with party.store.begin("test-effect", "m", {}) as tx:
        approve.require_approval(tx, party, "meter-destroy", "m", {}, approval)


def test_a_revoked_certificate_approves_nothing_more(realm: Realm, people: dict[str, Person], tmp_path: Path) -> None:
    watch(realm, "factory", people)
    (folder := tmp_path / "signed").mkdir()
    with realm.open("factory") as party:
        before = add_approval(party, signed(party, people["alice"], folder)).id
    with realm.open("authority") as party:
        certify.revoke(party, people["alice"].file, "keyCompromise")
        certify.publish(party, realm.folder / "pki", 7)
    with realm.open("factory") as party:
        certify.update_trust(party, realm.folder / "pki")
        with pytest.raises(ApprovalRequiredError, match="the certificate of 'alice' is revoked"):
            use(party, before)
        with pytest.raises(RefusedError) as error:
            add_approval(party, signed(party, people["alice"], folder))
        assert error.value.reasons == ("the certificate of 'alice' is revoked",)
        use(party, str(signed(party, people["bob"], folder)))


def test_an_expired_certificate_approves_nothing_more(
    realm: Realm, people: dict[str, Person], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(realm, "factory", people)
    (folder := tmp_path / "signed").mkdir()
    with realm.open("factory") as party:
        before = add_approval(party, signed(party, people["alice"], folder)).id
        late = utc_now() + timedelta(days=3 * 365)
        monkeypatch.setattr(approve, "utc_now", lambda: late)
        with pytest.raises(ApprovalRequiredError, match="the certificate of 'alice' has expired"):
            use(party, before)
        with pytest.raises(RefusedError) as error:
            add_approval(party, signed(party, people["alice"], folder))
        assert "the certificate of 'alice' has expired" in error.value.reasons


def test_a_list_past_its_date_approves_nothing(realm: Realm, people: dict[str, Person], tmp_path: Path) -> None:
    watch(realm, "factory", people)
    for path in (realm.home("factory") / "trust" / "crl").iterdir():
        path.unlink()
    (folder := tmp_path / "signed").mkdir()
    with realm.open("factory") as party, pytest.raises(RefusedError) as error:
        add_approval(party, signed(party, people["alice"], folder))
    assert "there is no revocation list of 'Test Officer Issuing'" in error.value.reasons


def _destroy(party: Party, approval: str) -> None:
    destroy(party, [title_of(1)], approval)


def _recover(party: Party, approval: str) -> None:
    recover_store(party, approval)


def _rotate(party: Party, approval: str) -> None:
    rotate.rotate(party, approval)


def _migrate(party: Party, approval: str) -> None:
    realm = Realm(party.home.parent)
    migrate(party, agreement(realm, "moved"), realm.folder / "archive", False, approval)


DOINGS: dict[str, Callable[[Party, str], None]] = {
    "meter-destroy": _destroy,
    "store-recover": _recover,
    "token-rotate": _rotate,
    "token-migrate": _migrate,
}
"""What is approved; a home that migrates does nothing after it."""


def opener(action: str) -> Callable[[Path, str], AbstractContextManager[Party]]:
    return open_recovery if action == "store-recover" else open_party


def die(party: Party, action: str, approval: str, moment: str) -> None:
    """Do it, and be killed when the approval is used up: inside of its transaction, or right after that."""
    put, begin, used = approvals.put, Store.begin, list[str]()

    def dying_put(tx: Transaction, approval: approvals.Approval) -> None:
        put(tx, approval)
        if approval.state == USED:
            used.append(approval.id)
            if moment == "inside":
                os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def dying_begin(store: Store, *arguments: Any, **options: Any) -> Iterator[Transaction]:  # noqa: ANN401 - passed on as they are
        with begin(store, *arguments, **options) as tx:
            yield tx
        if used:
            os.kill(os.getpid(), signal.SIGKILL)

    approvals.put = dying_put
    Store.begin = dying_begin  # type: ignore[assignment,method-assign]
    DOINGS[action](party, approval)


def recorded(realm: Realm, action: str) -> tuple[int, list[str]]:
    """How often it was done, by the audit log, and what became of the approvals of it."""
    with opener(action)(realm.home("factory"), ACTOR) as party, party.store.read() as tx:
        done = audit.tally(tx, DESTROYED if action == "meter-destroy" else action)
        return sum(item.count for item in done), [one.state for one in approvals.listing(tx) if one.action == action]


def restore(realm: Realm, copy: Path) -> None:
    """Put the factory's database back to what it was a change ago."""
    put_back = keep(realm.url("factory"), copy)
    with realm.open("factory") as party, party.store.begin("test-change", "c", {}):
        pass
    put_back()


def kill(realm: Realm, action: str, approval: str, moment: str) -> None:
    with pytest.raises(TokenUnreachableError), Worker(opener(action), realm.home("factory"), ACTOR) as worker:
        worker.call(die, action, approval, moment)


@pytest.mark.slow
def test_killed_between_its_use_and_its_effect_an_approval_has_both_or_neither(
    realm: Realm, people: dict[str, Person], tmp_path: Path
) -> None:
    (signed_files := tmp_path / "signed").mkdir()
    with realm.open("factory") as party:
        provision(party, realm.order(1), "line")
    new_home(realm, "moved", SOFTHSM)
    register_officers(realm, "factory", people)
    set_policy(realm, "factory", four_eyes='["meter-destroy", "store-recover", "token-rotate", "token-migrate"]')
    for action, work in DOINGS.items():
        if action == "store-recover":
            restore(realm, tmp_path / "backup.db")
        with opener(action)(realm.home("factory"), ACTOR) as party:
            with pytest.raises(ApprovalRequiredError) as error:
                work(party, "")
            approval = approved(party, error.value, people["bob"], signed_files)
        assert recorded(realm, action) == (0, [])
        kill(realm, action, approval, "inside")
        assert recorded(realm, action) == (0, [])
        kill(realm, action, approval, "after")
        assert recorded(realm, action) == (1, [USED])
        if action == "token-rotate":
            with realm.open("factory") as party:
                assert {item.number for item in rotate.rotate(party)} == {2}
    with realm.open("factory") as party:
        _migrate(party, "")
        assert (realm.folder / "archive").is_file()
        assert check_store(party) == verify_audit(party, ()) == []
