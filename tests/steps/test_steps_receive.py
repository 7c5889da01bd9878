"""A package is taken whole or not at all: each bad one is refused with every reason, and the store stays as it was."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.errors import InputError, IntegrityError, RefusedError
from hsmkm.packages.container import open_container
from hsmkm.packages.content import Peer, Purpose
from hsmkm.packages.receipt import open_receipt
from hsmkm.packages.receive import PackageRefusedError, inspect_package
from hsmkm.packages.transport import parse_recipient_info
from hsmkm.pki.certificates import read_certificates
from hsmkm.pki.revocation import build_crl
from hsmkm.steps import certify
from hsmkm.steps.party import utc_now
from hsmkm.steps.receive import read_package, receive, receive_or_refuse
from hsmkm.steps.register_party import PartyPlan, register_party
from hsmkm.store import key_sets, meters
from hsmkm.token.types import KeyRole
from tests.forge import certified, everything, forge, kept_list, peer, rewritten, sign, signed
from tests.realm import Realm, build_realm, title_of

PAST = {"created": utc_now() - timedelta(days=3), "expires": utc_now() - timedelta(days=2)}
STRANGER = "the signer is not the package-signing certificate of a registered party"
OTHER_RECIPIENT = "the package is for another recipient"
OTHER_KEY = "the package key was wrapped for another certificate than ours"
OTHER_FLAG = "the sender may not speak for meters of 'XYZ'"
BOUND = "the package key is bound to another header"
XYZ = b"XYZ".hex().upper() + "0000000001"


def from_factory(realm: Realm, *titles: str, **changes: object) -> bytes:
    """Let the factory make a package for the utility."""
    with realm.open("factory") as party:
        return forge(party, certified(realm, "utility"), *(titles or (title_of(1),)), **changes).data  # type: ignore[arg-type]  # as forge


def taken(realm: Realm, data: bytes) -> bytes:
    """Let the utility take a package that is right; its receipt."""
    with realm.open("utility") as party:
        return receive(party, data).receipt


def refused(realm: Realm, data: bytes, name: str = "utility") -> set[str]:
    """Let a party refuse a package, and see that this changed no row and left no receipt."""
    before = everything(realm, name)
    with realm.open(name) as party, pytest.raises(PackageRefusedError) as caught:
        receive(party, data)
    assert everything(realm, name) == before
    assert not list(realm.home(name).glob("receipts/*"))
    assert len(set(caught.value.reasons)) == len(caught.value.reasons)
    return set(caught.value.reasons)


def test_a_package_that_is_right_is_taken(realm: Realm) -> None:
    receipt, _ = open_receipt(taken(realm, from_factory(realm, title_of(1), title_of(2))))
    assert receipt.accepted
    with realm.open("utility") as party, party.store.read() as tx:
        found = key_sets.newest(tx, bytes.fromhex(title_of(2)), 0, 1)
    assert found is not None
    assert {key.role for key in found.keys} == set(KeyRole)


def test_a_replay_is_answered_with_the_first_receipt_octet_for_octet(realm: Realm) -> None:
    data = from_factory(realm)
    first = taken(realm, data)
    before = everything(realm, "utility")
    shutil.rmtree(realm.home("utility") / "receipts")
    with realm.open("utility") as party:
        again = receive(party, data)
    assert (again.receipt, again.replayed, again.path.read_bytes()) == (first, True, first)
    assert everything(realm, "utility") == before


def test_the_same_id_with_other_octets_is_no_replay(realm: Realm) -> None:
    with realm.open("factory") as party:
        first = forge(party, certified(realm, "utility"), title_of(1))
        header = {"id": first.header.id}
        second = forge(party, certified(realm, "utility"), title_of(2), sequence=2, header=header)
    taken(realm, first.data)
    shutil.rmtree(realm.home("utility") / "receipts")
    (reason,) = refused(realm, second.data)
    assert first.header.id in reason


def test_an_older_sequence_than_the_one_held_is_refused(realm: Realm) -> None:
    taken(realm, from_factory(realm, title_of(1), sequence=5))
    shutil.rmtree(realm.home("utility") / "receipts")
    for sequence in (4, 5):
        data = from_factory(realm, title_of(2), sequence=sequence)
        assert refused(realm, data) == {f"the sequence {sequence} does not rise: 5 was taken before"}


def test_a_generation_that_is_held_is_not_taken_again(realm: Realm) -> None:
    taken(realm, from_factory(realm))
    shutil.rmtree(realm.home("utility") / "receipts")
    data = from_factory(realm, title_of(1), title_of(2), sequence=2)
    assert refused(realm, data) == {f"meter {title_of(1)} generation 1: the generation does not rise, 1 is known"}


def test_a_delivery_never_replaces_the_keys_of_a_meter_that_is_registered(realm: Realm) -> None:
    taken(realm, from_factory(realm))
    with realm.open("utility") as party, party.store.begin("meter-registered", title_of(1), {}) as tx:
        meters.update(tx, replace(meters.require(tx, bytes.fromhex(title_of(1))), registered=utc_now()))
    shutil.rmtree(realm.home("utility") / "receipts")
    place = f"meter {title_of(1)} generation 1"
    assert refused(realm, from_factory(realm, sequence=2)) == {
        f"{place}: the generation does not rise, 1 is known",
        f"{place}: the meter is registered here, its keys are renewed and not delivered",
    }


def test_a_party_with_our_own_system_title_is_not_registered(realm: Realm) -> None:
    folder = realm.folder / "certificates" / "utility"
    with realm.open("utility") as party, pytest.raises(RefusedError, match="our own system title"):
        register_party(party, PartyPlan("twin", "concentrator", (), "client", "127.0.0.1:9", folder))


def test_the_lists_of_a_second_pki_do_not_displace_those_of_the_first(realm: Realm, tmp_path: Path) -> None:
    other = build_realm(tmp_path / "other")
    with realm.open("utility") as party:
        certify.place_anchor(party, other.folder / "pki" / "root.pem")
        certify.update_trust(party, other.folder / "pki")
        trust = certify.trust_of(party)
        for home in (realm, other):
            leaf, *chain = read_certificates(home.folder / "certificates" / "utility" / "tls.pem")
            trust.check(leaf, chain, "tls", utc_now())


def test_a_meter_that_comes_back_as_another_model_is_refused(realm: Realm) -> None:
    taken(realm, from_factory(realm))
    shutil.rmtree(realm.home("utility") / "receipts")
    data = from_factory(realm, sequence=2, entry={"generation": 2, "model": "other"})
    (reason,) = refused(realm, data)
    assert reason.endswith("serial number, model or suite differ from what is known of this meter")


def as_role(realm: Realm, name: str, claimed: str) -> bytes:
    """Let a party make a package for the utility and name itself with a role."""
    with realm.open(name) as party:
        header = {"sender": replace(peer(name), role=claimed)}
        return forge(party, certified(realm, "utility"), title_of(1), header=header).data


def as_injection(realm: Realm) -> bytes:
    """Turn a delivery into an injection, whose keys but the master key lie under that."""
    with realm.open("factory") as party:
        package = forge(party, certified(realm, "utility"), title_of(1))
        document = json.loads(open_container(package.data).content)
        for role, key in document["meters"][0]["keys"].items():
            key["under"] = "package" if role == "master" else "master"
        return rewritten(party, package.data, purpose="injection", meters=document["meters"])


CASES: dict[str, tuple[Callable[[Realm], bytes], set[str]]] = {
    "for another party": (
        lambda realm: for_other(realm, "concentrator"),
        {OTHER_RECIPIENT, OTHER_KEY},
    ),
    "expired": (lambda realm: from_factory(realm, header=PAST), {"the package has expired"}),
    "from the future": (
        lambda realm: from_factory(realm, header={"created": utc_now() + timedelta(days=1)}),
        {"the package was created in the future"},
    ),
    "of another maker's meters": (lambda realm: from_factory(realm, title_of(1), XYZ), {OTHER_FLAG}),
    "of an unknown signer": (lambda realm: as_role(realm, "line", "factory"), {STRANGER}),
    "of a party of another role": (
        lambda realm: as_role(realm, "concentrator", "concentrator"),
        {"a package for delivery comes from a party of role factory, not concentrator"},
    ),
    "of a party that claims another role than it is registered with": (
        lambda realm: as_role(realm, "concentrator", "factory"),
        {
            "a package for delivery comes from a party of role factory, not concentrator",
            "the package names the sender with another role or system title than it is registered with",
        },
    ),
    "under another's name": (
        lambda realm: from_factory(realm, header={"sender": Peer("utility", "factory", peer("factory").system_title)}),
        {"the package names the sender 'utility', and its signer is 'factory'"},
    ),
    "an injection": (
        as_injection,
        {
            "a package for injection goes to a party of role line, not utility",
            "an injection is opened by line equipment, which keeps no keys",
            BOUND,
        },
    ),
    "wrong in everything": (
        lambda realm: for_other(realm, "concentrator", XYZ, header=PAST),
        {OTHER_RECIPIENT, OTHER_KEY, OTHER_FLAG, "the package has expired"},
    ),
    "wrong in everything and of an unknown signer": (
        lambda realm: for_other(realm, "concentrator", XYZ, header=PAST, sender="line"),
        {STRANGER, OTHER_RECIPIENT, OTHER_KEY, "the package has expired"},
    ),
}


def for_other(realm: Realm, to: str, title: str = title_of(1), sender: str = "factory", **changes: object) -> bytes:
    with realm.open(sender) as party:
        return forge(party, certified(realm, to), title, **changes).data  # type: ignore[arg-type]  # as forge


@pytest.mark.parametrize("case", CASES)
def test_a_bad_package_is_refused_with_every_reason_and_changes_nothing(realm: Realm, case: str) -> None:
    make, reasons = CASES[case]
    assert refused(realm, make(realm)) == reasons


def test_a_package_signed_again_by_another_party_does_not_open(realm: Realm) -> None:
    with realm.open("utility") as party:
        register_party(party, PartyPlan("line", "factory", ("MMM",), "", "", realm.folder / "certificates" / "line"))
    original = inspect_package(from_factory(realm)).content
    with realm.open("line") as party:
        stolen = sign(party, original.encode())
        sender = replace(peer("line"), role="factory")
        renamed = signed(party, replace(original.header, sender=sender), original.recipient_info, original.meters).data
    with realm.open("line") as party:
        of_its_own = forge(party, certified(realm, "utility"), title_of(2), header={"sender": sender}).data
    assert refused(realm, stolen) == {
        "the package names the sender 'factory', and its signer is 'line'",
        "the package names the sender with another role or system title than it is registered with",
    }
    assert refused(realm, renamed) == {BOUND}
    assert open_receipt(taken(realm, of_its_own))[0].accepted


def test_the_package_key_of_another_package_does_not_open(realm: Realm) -> None:
    with realm.open("factory") as party:
        one, other = (forge(party, certified(realm, "utility"), title_of(1)) for _ in range(2))
        info = inspect_package(other.data).content.recipient_info
        moved = signed(party, one.header, info, one.meters).data
        ours = parse_recipient_info(inspect_package(one.data).content.recipient_info)
        altered = replace(ours, wrapped=bytes(40)).encode()
        broken = signed(party, one.header, altered, one.meters).data
    assert refused(realm, moved) == {BOUND}
    assert refused(realm, broken) == {"the package key does not unwrap: it was altered or made for another key"}


def test_every_key_that_does_not_unwrap_is_named(realm: Realm) -> None:
    with realm.open("factory") as party:
        package = forge(party, certified(realm, "utility"), title_of(1), title_of(2), title_of(3))
        info = inspect_package(package.data).content.recipient_info
        bad = {(0, KeyRole.GUEK), (0, KeyRole.GAK), (2, KeyRole.MASTER)}
        meters = tuple(
            replace(
                entry,
                keys=tuple(
                    replace(key, wrapped=bytes([number]) * 23 + key.identity[:1]) if (number, key.role) in bad else key
                    for key in entry.keys
                ),
            )
            for number, entry in enumerate(package.meters)
        )
        data = signed(party, package.header, info, meters).data
    first, third = (f"meter {title_of(number)} generation 1" for number in (1, 3))
    assert refused(realm, data) == {
        f"{first}: guek does not unwrap",
        f"{first}: gak does not unwrap",
        f"{third}: master does not unwrap",
    }


def test_keys_of_another_length_than_the_suites_are_refused_by_form(realm: Realm) -> None:
    with realm.open("factory") as party:
        package = forge(party, certified(realm, "utility"), title_of(1), title_of(2))
        entries = json.loads(open_container(package.data).content)["meters"]
        entries[0]["keys"]["guek"]["wrapped"] = "00" * 40
        entries[1]["suite"] = 2
        data = rewritten(party, package.data, meters=entries)
    reasons = refused(realm, data)
    expected = {f"meters[1].keys.{role.value}.wrapped is not 40 octets in hex with small letters" for role in KeyRole}
    assert reasons == expected | {"meters[0].keys.guek.wrapped is not 24 octets in hex with small letters"}


def test_faults_of_form_and_of_trust_are_told_together(realm: Realm) -> None:
    with realm.open("line") as party:
        package = forge(party, certified(realm, "utility"), title_of(1))
        data = rewritten(party, package.data, sequence=0, purpose="present", colour="red")
    reasons = refused(realm, data)
    assert STRANGER in reasons
    for word in ("sequence", "purpose", "colour"):
        assert any(word in reason for reason in reasons), reasons


def test_a_revoked_signer_is_refused(realm: Realm) -> None:
    data = from_factory(realm)
    with realm.open("authority") as party:
        certify.revoke(party, realm.folder / "certificates" / "factory" / "package-signing.pem", "keyCompromise")
        certify.publish(party, realm.folder / "pki", 7)
    with realm.open("utility") as party:
        certify.update_trust(party, realm.folder / "pki")
    assert refused(realm, data) == {"the certificate of 'factory' is revoked"}


def test_a_revocation_list_past_its_date_refuses_and_a_new_one_heals(realm: Realm) -> None:
    data = from_factory(realm)
    kept = kept_list(realm, "utility", "Test Package Issuing")
    good = kept.read_bytes()
    with realm.open("authority") as party:
        issuer = certify.open_authority(party, "package-issuing")
        begin, end = (utc_now() - timedelta(days=days) for days in (9, 2))
        old = build_crl(issuer.signer, issuer.certificate, [], 99, begin, end)
        kept.write_bytes(old.public_bytes(Encoding.DER))
    assert refused(realm, data) == {"the revocation list of 'Test Package Issuing' is past its date"}
    kept.unlink()
    assert refused(realm, data) == {"there is no revocation list of 'Test Package Issuing'"}
    kept.write_bytes(good)
    assert open_receipt(taken(realm, data))[0].accepted


def test_a_package_altered_anywhere_is_refused_and_changes_nothing(realm: Realm) -> None:
    data = from_factory(realm)
    before = everything(realm, "utility")
    with realm.open("utility") as party:
        for place in range(0, len(data), 7):
            altered = bytearray(data)
            altered[place] ^= 0x01
            with pytest.raises((InputError, IntegrityError, PackageRefusedError)):
                receive(party, bytes(altered))
        for length in (0, 1, len(data) // 2, len(data) - 1):
            with pytest.raises(InputError):
                receive(party, data[:length])
        for tail in (b"\x00", b"\n", data):
            with pytest.raises(InputError):
                receive(party, data + tail)
        with pytest.raises(InputError):
            receive(party, base64.b64encode(data))
    assert everything(realm, "utility") == before
    assert open_receipt(taken(realm, data))[0].accepted


def test_a_certificate_that_nobody_signed_along_is_refused(realm: Realm) -> None:
    """The certificates of a container are not covered by its signature: what is added there is noticed all the same."""
    with realm.open("factory") as party:
        stray = realm.folder / "certificates" / "line" / "tls.pem"
        own = party.home / "certificates" / "package-signing.pem"
        kept = own.read_bytes()
        own.write_bytes(kept + stray.read_bytes().split(b"-----BEGIN")[1].join([b"-----BEGIN", b""]))
        data = forge(party, certified(realm, "utility"), title_of(1)).data
    (reason,) = refused(realm, data)
    assert "that came along is not on the path" in reason


def refusal(realm: Realm, name: str, data: bytes) -> bytes:
    with realm.open(name) as party:
        return receive_or_refuse(party, data)


def test_what_is_refused_for_good_gets_a_signed_receipt_that_says_why(realm: Realm) -> None:
    data = for_other(realm, "concentrator", XYZ, header=PAST)
    receipt, container = open_receipt(refusal(realm, "utility", data))
    assert not receipt.accepted
    assert set(receipt.reasons) == {OTHER_RECIPIENT, OTHER_KEY, OTHER_FLAG, "the package has expired"}
    assert container.signer == read_certificates(realm.folder / "certificates" / "utility" / "package-signing.pem")[0]
    with realm.open("utility") as party, party.store.read() as tx:
        assert not key_sets.generations(tx, bytes.fromhex(XYZ), 0, 1)


def test_what_was_damaged_on_its_way_gets_no_receipt(realm: Realm) -> None:
    data = from_factory(realm)
    before = everything(realm, "utility")
    with realm.open("utility") as party:
        for damaged in (data[:-1], data[: len(data) // 2], data + b"\0", data[:-1] + bytes([data[-1] ^ 1])):
            with pytest.raises((InputError, IntegrityError)):
                receive_or_refuse(party, damaged)
    assert everything(realm, "utility") == before


def test_purposes_go_only_where_they_belong(realm: Realm) -> None:
    with realm.open("factory") as party:
        data = forge(party, certified(realm, "utility"), title_of(1), purpose=Purpose.DISTRIBUTION).data
    assert refused(realm, data) == {
        "a package for distribution comes from a party of role utility, not factory",
        "a package for distribution goes to a party of role concentrator or third-party, not utility",
    }


def test_a_name_that_could_be_that_of_a_group_is_not_registered(realm: Realm) -> None:
    plan = PartyPlan("line/street-1", "line", (), "", "", realm.folder / "certificates" / "line")
    with realm.open("utility") as party, pytest.raises(InputError, match="'line/street-1' is not a party name"):
        register_party(party, plan)


def test_a_certificate_folder_of_a_stranger_is_not_registered(realm: Realm, tmp_path: Path) -> None:
    folder = tmp_path / "stranger"
    shutil.copytree(realm.folder / "certificates" / "line", folder)
    (folder / "tls.pem").write_bytes((folder / "package-signing.pem").read_bytes())
    before = everything(realm, "utility")
    with realm.open("utility") as party, pytest.raises(RefusedError) as caught:
        register_party(party, PartyPlan("stranger", "factory", ("MMM",), "", "", folder))
    assert all(reason.startswith("tls.pem: ") for reason in caught.value.reasons)
    assert everything(realm, "utility") == before


def test_a_package_file_that_never_ends_is_read_no_further_than_a_package_may_be_long() -> None:
    with pytest.raises(InputError, match=r"/dev/zero is above \d+ octets"):
        read_package(Path("/dev/zero"))
