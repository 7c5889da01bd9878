"""What leaves is checked before it leaves, and what comes back is believed only from the one it was sent to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from hsmkm.errors import HsmkmError, InputError, IntegrityError, RefusedError
from hsmkm.packages.content import Purpose
from hsmkm.packages.receipt import open_receipt, receipt_for, sign_receipt
from hsmkm.packages.send import Package
from hsmkm.steps import certify
from hsmkm.steps.deliver import REFUSED, accept_receipt, outbox, record, signatory
from hsmkm.steps.exporting import export
from hsmkm.steps.party import utc_now
from hsmkm.steps.provision import provision
from hsmkm.steps.receive import receive_or_refuse
from hsmkm.store import key_sets, packages
from tests.forge import certified, everything, forge, kept_list
from tests.realm import Realm, title_of

NO_SUCH = "00000000-0000-4000-8000-000000000000"


def revoke(realm: Realm, name: str, profile: str, *where: str) -> None:
    """Revoke a certificate and let these parties take the new list."""
    with realm.open("authority") as party:
        certify.revoke(party, realm.folder / "certificates" / name / f"{profile}.pem", "keyCompromise")
        certify.publish(party, realm.folder / "pki", 7)
    for one in where:
        with realm.open(one) as party:
            certify.update_trust(party, realm.folder / "pki")


def distribution(realm: Realm, to: str = "concentrator", **header: object) -> Package:
    """Let the utility send a distribution, whatever its header says, as it sends any."""
    with realm.open("utility") as party, outbox(party):
        package = forge(party, certified(realm, to), title_of(1), purpose=Purpose.DISTRIBUTION, header=header)
        record(party, package, lambda _tx: None)
    return package


def own_receipt(realm: Realm, name: str, package: Package, *reasons: str, data: bytes = b"") -> bytes:
    """Sign a receipt for a package as a party, for the package's octets or for others."""
    with realm.open(name) as party:
        sender = signatory(party)
        made = receipt_for(package.header.id, data or package.data, reasons, utc_now())
        return sign_receipt(made, sender.signer, sender.certificate, sender.chain, utc_now())


def test_a_concentrator_says_why_it_refuses_and_the_aim_keeps_that(realm: Realm) -> None:
    begin = utc_now() - timedelta(days=3)
    package = distribution(realm, created=begin, expires=begin + timedelta(days=1))
    with realm.open("concentrator") as party:
        receipt = receive_or_refuse(party, package.data)
    assert open_receipt(receipt)[0].reasons == ("the package has expired",)
    with realm.open("utility") as party:
        kept, before = accept_receipt(party, receipt, package.header.id)
        again, known = accept_receipt(party, receipt)
        with party.store.read() as tx:
            found = packages.get(tx, package.header.id)
    assert (kept.state, kept.receipt, before, known) == (REFUSED, receipt, False, True)
    assert again == kept == found


def test_a_package_for_the_other_concentrator_is_refused_with_a_receipt_that_its_sender_does_not_take(
    realm: Realm,
) -> None:
    package = distribution(realm, "other-concentrator")
    with realm.open("concentrator") as party:
        receipt = receive_or_refuse(party, package.data)
    assert set(open_receipt(receipt)[0].reasons) == {
        "the package is for another recipient",
        "the package key was wrapped for another certificate than ours",
    }
    assert refused(realm, receipt) == ("the receipt is not signed with the recipient's registered certificate",)


def refused(realm: Realm, receipt: bytes, expected: str = "") -> tuple[str, ...]:
    """Let the utility refuse a receipt, and see that this changed nothing."""
    before = everything(realm, "utility")
    with realm.open("utility") as party, pytest.raises(RefusedError) as caught:
        accept_receipt(party, receipt, expected)
    assert everything(realm, "utility") == before
    return caught.value.reasons or (caught.value.message,)


def test_everything_wrong_with_a_receipt_is_told_at_once(realm: Realm) -> None:
    package = distribution(realm)
    receipt = own_receipt(realm, "other-concentrator", package, data=b"other octets")
    revoke(realm, "other-concentrator", "package-signing", "utility")
    assert set(refused(realm, receipt)) == {
        "the certificate of 'other-concentrator' is revoked",
        "the receipt is not signed with the recipient's registered certificate",
        "the receipt is for other octets than those of the package",
    }


def test_a_receipt_for_what_was_not_sent_is_refused(realm: Realm) -> None:
    package, other = distribution(realm), None
    receipt = own_receipt(realm, "concentrator", package)
    assert "which was not sent from here" in refused(realm, receipt, NO_SUCH)[0]
    with realm.open("utility") as party:
        other = forge(party, certified(realm, "concentrator"), title_of(2), purpose=Purpose.DISTRIBUTION)
    assert "which was not sent from here" in refused(realm, own_receipt(realm, "concentrator", other))[0]


def test_the_first_receipt_stays(realm: Realm) -> None:
    package = distribution(realm)
    first = own_receipt(realm, "concentrator", package, "no room")
    with realm.open("utility") as party:
        accept_receipt(party, first)
    assert "another receipt already" in refused(realm, own_receipt(realm, "concentrator", package))[0]


def test_an_altered_receipt_is_refused_and_changes_nothing(realm: Realm) -> None:
    receipt = own_receipt(realm, "concentrator", distribution(realm))
    before = everything(realm, "utility")
    with realm.open("utility") as party:
        for place in range(0, len(receipt), 11):
            altered = bytearray(receipt)
            altered[place] ^= 0x01
            with pytest.raises((InputError, IntegrityError, RefusedError)):
                accept_receipt(party, bytes(altered))
        for damaged in (b"", receipt[:-1], receipt + b"\0"):
            with pytest.raises(InputError):
                accept_receipt(party, damaged)
    assert everything(realm, "utility") == before


def unchanged(realm: Realm, name: str, call: Callable[[], object]) -> HsmkmError:
    """Let a call fail, and see that it changed no row and left no package."""
    before = everything(realm, name)
    with pytest.raises(HsmkmError) as caught:
        call()
    assert everything(realm, name) == before
    assert not list(realm.home(name).glob("packages/*"))
    return caught.value


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nobody", "there is no party nobody"),
        ("utility", "a package for injection goes to a party of role line, not utility"),
    ],
)
def test_an_order_for_someone_who_is_no_line_equipment_makes_no_keys(realm: Realm, line: str, expected: str) -> None:
    with realm.open("factory") as party:
        error = unchanged(realm, "factory", lambda: provision(party, realm.order(1, 2), line))
    assert isinstance(error, RefusedError)
    assert expected in (error.message, *error.reasons)


def test_an_order_for_line_equipment_whose_certificate_is_revoked_makes_no_keys(realm: Realm) -> None:
    revoke(realm, "line", "key-agreement", "factory")
    with realm.open("factory") as party:
        error = unchanged(realm, "factory", lambda: provision(party, realm.order(1, 2), "line"))
    assert isinstance(error, RefusedError)
    assert error.reasons == (
        f"the certificate of '{certified(realm, 'line').peer.system_title.hex().upper()}' is revoked",
    )


def test_a_factory_whose_own_certificate_is_revoked_signs_nothing(realm: Realm) -> None:
    revoke(realm, "factory", "package-signing", "factory")
    with realm.open("factory") as party:
        error = unchanged(realm, "factory", lambda: provision(party, realm.order(1, 2), "line"))
    assert isinstance(error, RefusedError)
    assert "the certificate of 'factory' is revoked" in error.reasons


def test_an_order_of_another_makers_meters_names_each(realm: Realm) -> None:
    path = realm.order(1)
    model = realm.home("factory") / "models" / "virtual.toml"
    model.parent.mkdir()
    model.write_text('flags = ["MMM", "XYZ", "ABC"]\n')
    path.write_text("flag,serial,model,suite\nMMM,1,virtual,0\nXYZ,2,virtual,0\nABC,3,virtual,0\n")
    with realm.open("factory") as party:
        error = unchanged(realm, "factory", lambda: provision(party, path, "line"))
    assert isinstance(error, InputError)
    assert [str(fault) for fault in error.faults] == [
        "order.csv:3:2: FLAG id XYZ is not one of this factory (MMM)",
        "order.csv:4:2: FLAG id ABC is not one of this factory (MMM)",
    ]


@pytest.mark.parametrize(
    ("to", "purpose", "expected"),
    [
        ("nobody", "delivery", "there is no party nobody"),
        ("line", "delivery", "a package for delivery goes to a party of role utility, not line"),
        ("utility", "distribution", "a package for distribution comes from a party of role utility, not factory"),
        ("utility", "migration", "a migration takes the whole home, with its counters"),
    ],
)
def test_keys_are_exported_only_to_whom_the_purpose_allows(realm: Realm, to: str, purpose: str, expected: str) -> None:
    with realm.open("factory") as party:
        provision(party, realm.order(1), "line")
        for file in party.home.glob("packages/*"):
            file.unlink()
        error = unchanged(realm, "factory", lambda: export(party, purpose, to, (title_of(1),), None))
    assert isinstance(error, RefusedError)
    assert expected in (error.message, *error.reasons)


def test_keys_are_not_exported_to_a_revoked_recipient_nor_without_a_revocation_list(realm: Realm) -> None:
    with realm.open("factory") as party:
        provision(party, realm.order(1), "line")
        for file in party.home.glob("packages/*"):
            file.unlink()
    revoke(realm, "utility", "key-agreement", "factory")
    for expected in ("is revoked", "there is no revocation list of 'Test Issuing'"):
        with realm.open("factory") as party:
            error = unchanged(realm, "factory", lambda: export(party, "delivery", "utility", (title_of(1),), None))
        assert isinstance(error, RefusedError)
        assert any(expected in reason for reason in error.reasons), error.reasons
        if expected == "is revoked":
            kept_list(realm, "factory", "Test Issuing").unlink()


def test_no_meter_is_exported_where_one_has_no_keys(realm: Realm) -> None:
    with realm.open("factory") as party:
        provision(party, realm.order(1), "line")
        for file in party.home.glob("packages/*"):
            file.unlink()
        error = unchanged(realm, "factory", lambda: export(party, "delivery", "utility", (title_of(1), "77"), None))
    assert "77" in error.message


def test_a_refused_delivery_leaves_the_factorys_keys_without_a_date_of_destruction(realm: Realm) -> None:
    with realm.open("factory") as party:
        provision(party, realm.order(1), "line")
        sent = export(party, "delivery", "utility", (title_of(1),), None)
    data = sent.path.read_bytes()
    with realm.open("utility") as party:
        sender = signatory(party)
        made = receipt_for(sent.id, data, ("no room",), utc_now())
        receipt = sign_receipt(made, sender.signer, sender.certificate, sender.chain, utc_now())
    with realm.open("factory") as party:
        kept, _ = accept_receipt(party, receipt)
        with party.store.read() as tx:
            found = key_sets.newest(tx, bytes.fromhex(title_of(1)), 0, 1)
    assert kept.state == REFUSED
    assert found is not None
    assert found.destroy_after is None
