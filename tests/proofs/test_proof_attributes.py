"""Every long-lived key of every party may do what its table says and nothing else, and gets no further usage.

pkcs11-tool, which knows nothing of us, lists the objects; what it does not show is read attribute by attribute. Then
host code that holds the token's PIN tries the three ways to read a meter's key: two are closed, the third is shown.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from pkcs11 import Attribute, KeyType, ObjectClass

from hsmkm.errors import IntegrityError, TokenRefusedError
from hsmkm.steps.officer_key import request_certificate
from hsmkm.steps.party import Party
from hsmkm.steps.provision import provision
from hsmkm.store import key_sets
from hsmkm.token import attributes
from hsmkm.token.keyring import GAK_STORAGE, STORAGE
from hsmkm.token.profile import load_profile
from hsmkm.token.template import Template, ffi
from hsmkm.token.types import KeyRole, MeterRole, Sealed, Use
from tests.officers import certify_officers
from tests.realm import ROLES, Realm, title_of

A = Attribute
SECRET, PRIVATE, PUBLIC = ObjectClass.SECRET_KEY, ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY
USAGES = {
    SECRET: (A.ENCRYPT, A.DECRYPT, A.WRAP, A.UNWRAP, A.SIGN, A.VERIFY, A.DERIVE),
    PRIVATE: (A.DECRYPT, A.SIGN, A.SIGN_RECOVER, A.UNWRAP, A.DERIVE),
    PUBLIC: (A.ENCRYPT, A.VERIFY, A.VERIFY_RECOVER, A.WRAP, A.DERIVE),
}
SECRET_KEYS = {"storage:1": {A.WRAP, A.UNWRAP}, "gak-storage:1": {A.WRAP, A.UNWRAP}, "integrity:1": {A.SIGN, A.VERIFY}}
PARTY_PAIRS = {
    f"{profile}{curve}": usage
    for profile, usage in {"digital-signature": A.SIGN, "package-signing": A.SIGN, "key-agreement": A.DERIVE}.items()
    for curve in ("", "-p384")
}
AUTHORITY_PAIRS = {"ca:root": A.SIGN, "ca:issuing": A.SIGN, "ca:package-issuing": A.SIGN}
OFFICER_PAIRS = {"authority": "ca:officer-issuing", "line": "officer"}
"""Pairs that a home gets only where officers are certified, or the home is an officer's own; a line's stands for it."""

ANCHOR = "anchor"
HIDDEN = "sensitive, always sensitive, never extractable, local"
PARTIES = sorted(ROLES)

Key = tuple[str, ObjectClass]


def table(name: str) -> dict[Key, set[Attribute]]:
    """The usages of every object that a party's token may hold."""
    found: dict[Key, set[Attribute]] = {(label, SECRET): usages for label, usages in SECRET_KEYS.items()}
    for label, usage in (AUTHORITY_PAIRS if name == "authority" else PARTY_PAIRS).items():
        found[label, PRIVATE] = {usage}
        found[label, PUBLIC] = {A.VERIFY if usage is A.SIGN else A.DERIVE}
    return found


def objects(party: Party) -> dict[Key, int]:
    """Every key of the token with its handle; what else it holds is the store's anchor, which is no secret."""
    cryptoki = party.vault.session.cryptoki
    found: dict[Key, int] = {}
    for handle in cryptoki.find(Template({A.TOKEN: True}), 100):
        of_class = ObjectClass(int.from_bytes(cryptoki.read(handle, A.CLASS), "little"))
        if of_class is ObjectClass.DATA:
            assert cryptoki.read(handle, A.LABEL).decode() == ANCHOR
            continue
        key = (cryptoki.read(handle, A.LABEL).decode(), of_class)
        assert key not in found
        found[key] = handle
    return found


def true_of(party: Party, handle: int, *asked: Attribute) -> set[Attribute]:
    return {each for each in asked if party.vault.session.cryptoki.read(handle, each) == b"\1"}


@pytest.mark.parametrize("name", PARTIES)
def test_each_key_has_the_usages_of_its_table_and_no_other(realm: Realm, name: str) -> None:
    with realm.open(name) as party:
        found = {key: true_of(party, handle, *USAGES[key[1]]) for key, handle in objects(party).items()}
    assert found == table(name)


def test_the_page_on_tokens_says_what_they_hold() -> None:
    page = (Path(__file__).parents[2] / "docs" / "token.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w:-]+)` \| [^|]+ \| [^|]+ \| ([A-Z, ]+) \|$", page, re.MULTILINE)
    said = {label.replace(":N", ":1"): {Attribute[usage] for usage in usages.split(", ")} for label, usages in rows}
    held = {
        label: usages for name in PARTIES for (label, of_class), usages in table(name).items() if of_class != PUBLIC
    }
    assert said == held | {label: {A.SIGN} for label in OFFICER_PAIRS.values()}


@pytest.mark.parametrize(("name", "label"), OFFICER_PAIRS.items())
def test_the_pairs_of_officers_and_of_their_authority_sign_and_do_nothing_else(
    realm: Realm, name: str, label: str
) -> None:
    if name == "authority":
        certify_officers(realm, "alice")
    with realm.open(name) as party:
        if name != "authority":
            request_certificate(party, "alice", realm.folder / "alice.csr")
        found = {key: true_of(party, handle, *USAGES[key[1]]) for key, handle in objects(party).items()}
    assert found == {**table(name), (label, PRIVATE): {A.SIGN}, (label, PUBLIC): {A.VERIFY}}


@pytest.mark.parametrize("name", PARTIES)
def test_no_secret_ever_was_or_will_be_readable_or_changeable(realm: Realm, name: str) -> None:
    always = {A.PRIVATE, A.SENSITIVE, A.ALWAYS_SENSITIVE, A.NEVER_EXTRACTABLE, A.LOCAL}
    asked = (*always, A.EXTRACTABLE, A.MODIFIABLE, A.COPYABLE)
    with realm.open(name) as party:
        for (label, of_class), handle in objects(party).items():
            if of_class is PUBLIC:
                assert A.MODIFIABLE not in true_of(party, handle, A.MODIFIABLE), label
                continue
            kept_at_birth = {A.COPYABLE} if label.startswith("key-agreement") else set()
            assert true_of(party, handle, *asked) == always | kept_at_birth, label
            with pytest.raises(TokenRefusedError, match="CKR_ATTRIBUTE_SENSITIVE"):
                party.vault.session.cryptoki.read(handle, A.VALUE)


@pytest.mark.parametrize("name", PARTIES)
def test_pkcs11_tool_sees_the_same(realm: Realm, name: str) -> None:
    with realm.open(name):
        pass  # the copied home's softhsm2.conf points at it from now on
    shown: dict[Key, tuple[set[str], str]] = {}
    for block in re.split(r"\n(?=\S)", tool(realm, name)):
        fields = dict(re.findall(r"^  (\w+): +(.*?) *$", block, re.MULTILINE))
        if fields.get("label", "").strip("'") == ANCHOR and block.startswith("Data object"):
            continue
        of_class = {"Secret": SECRET, "Private": PRIVATE, "Public": PUBLIC}[block.split()[0]]
        key = (fields["label"], of_class)
        assert key not in shown
        shown[key] = (set(re.split(r", *", fields["Usage"])), re.sub(r", +", ", ", fields["Access"]))
    expected = {
        (label, of_class): (
            {usage.name.lower() for usage in usages} - ({"sign"} if of_class is SECRET else set()),
            "local" if of_class is PUBLIC else HIDDEN,
        )
        for (label, of_class), usages in table(name).items()
    }  # this program never shows SIGN of a secret key
    assert shown == expected


def tool(realm: Realm, name: str) -> str:
    token = realm.home(name) / "token"
    command = ["pkcs11-tool", "--module", load_profile("softhsm2").module(""), "--token-label", name, "--list-objects"]
    done = subprocess.run(
        [*command, "--login", "--pin", (token / "pin").read_text().strip()],
        env={"SOFTHSM2_CONF": str(token / "softhsm2.conf"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["authority", "utility"])
def test_no_secret_gets_a_further_usage_in_place_or_in_a_copy(realm: Realm, name: str) -> None:
    loosened = [{A.EXTRACTABLE: True}, {A.SENSITIVE: False}, {A.MODIFIABLE: True}, {A.PRIVATE: False}]
    with realm.open(name) as party:
        cryptoki = party.vault.session.cryptoki
        for key, handle in objects(party).items():
            if key[1] is PUBLIC:
                continue
            further = [{usage: True} for usage in USAGES[key[1]] if usage not in table(name)[key]]
            for change in (*further, *loosened):
                with pytest.raises(TokenRefusedError):
                    cryptoki.set_attributes(handle, Template(change))
                for place in ({A.TOKEN: False}, {A.TOKEN: True}):
                    with pytest.raises(TokenRefusedError):
                        cryptoki.copy(handle, Template(place | change))
        assert objects(party).keys() == table(name).keys()


def test_a_copy_of_the_key_agreement_key_has_the_same_one_usage_or_is_refused(realm: Realm) -> None:
    """COPYABLE cannot be lowered in a copy, and this key is one: it signed its request at birth (RFC 2986)."""
    with realm.open("utility") as party:
        cryptoki = party.vault.session.cryptoki
        handle = objects(party)["key-agreement", PRIVATE]
        asked = (*USAGES[PRIVATE], A.SENSITIVE, A.EXTRACTABLE, A.MODIFIABLE)
        for change in ({A.SIGN: True}, {A.TOKEN: False, A.SIGN: True}, {A.TOKEN: False}, {A.DECRYPT: True}):
            with pytest.raises(TokenRefusedError, match="CKR_ATTRIBUTE_READ_ONLY"):
                cryptoki.copy(handle, Template(change))
        copy = cryptoki.copy(handle, Template({}))
        assert true_of(party, copy, *asked) == true_of(party, handle, *asked) == {A.DERIVE, A.SENSITIVE}
        for change in ({A.SIGN: True}, {A.MODIFIABLE: True}):
            with pytest.raises(TokenRefusedError, match=r"CKR_ACTION_PROHIBITED|CKR_ATTRIBUTE_READ_ONLY"):
                cryptoki.set_attributes(copy, Template(change))


def test_each_pair_has_an_identity_of_its_own_that_both_halves_share(realm: Realm) -> None:
    seen: set[bytes] = set()
    for name in PARTIES:
        with realm.open(name) as party:
            read = party.vault.session.cryptoki.read
            by_label: dict[str, set[bytes]] = {}
            for (label, _), handle in objects(party).items():
                by_label.setdefault(label, set()).add(read(handle, A.ID))
        identities = set().union(*by_label.values())
        assert {len(found) for found in by_label.values()} == {1}
        assert {len(identity) for identity in identities} == {16}
        assert len(identities) == len(by_label)
        assert not identities & seen
        seen |= identities


# The three ways to read a meter's key through the storage key, tried on keys that a factory made for a meter.


@dataclass
class Attacker:
    """Host code with the token's PIN and the database: a party's own session, without the party's manners."""

    party: Party
    sealed: dict[MeterRole, Sealed]

    def unwrap(self, role: KeyRole, kind: str, *, sensitive: bool = True) -> int:
        listed = attributes.secret_key(KeyType.AES, frozenset(), on_token=False, sensitive=sensitive, extractable=True)
        free: attributes.Attributes = {A.MODIFIABLE: True, A.COPYABLE: True}
        vault = self.party.vault
        wrapping = vault.session.profile.mechanisms.aes_key_wrap
        under = vault.keyring.newest(kind)[1]
        return vault.session.cryptoki.unwrap(wrapping, under, self.sealed[role].wrapped, Template(listed | free))

    def known_wrapping_key(self, value: bytes) -> int:
        listed = attributes.secret_key(
            KeyType.AES, frozenset({A.WRAP}), on_token=False, sensitive=True, extractable=False
        )
        memory = ffi.new("unsigned char[32]", value)
        return self.party.vault.session.cryptoki.create(Template(listed | {A.VALUE: memory}))


@pytest.fixture
def attacker(realm: Realm) -> Iterator[Attacker]:
    with realm.open("factory") as party:
        provision(party, realm.order(1), "line")
        with party.store.read() as tx:
            found = key_sets.newest(tx, bytes.fromhex(title_of(1)), 0, 1)
        assert found is not None
        yield Attacker(party, {key.role: Sealed(found.storage_key, key.wrapped) for key in found.keys})


@pytest.mark.parametrize("role", [KeyRole.MASTER, KeyRole.GUEK, KeyRole.GBEK])
def test_way_1_is_closed_nothing_under_the_storage_key_unwraps_readable(attacker: Attacker, role: KeyRole) -> None:
    cryptoki = attacker.party.vault.session.cryptoki
    with pytest.raises(TokenRefusedError, match="CKR_TEMPLATE_INCONSISTENT"):
        attacker.unwrap(role, STORAGE, sensitive=False)
    hidden = attacker.unwrap(role, STORAGE)
    with pytest.raises(TokenRefusedError, match="CKR_ATTRIBUTE_SENSITIVE"):
        cryptoki.read(hidden, A.VALUE)
    for change in ({A.SENSITIVE: False}, {A.TOKEN: False, A.SENSITIVE: False}):
        with pytest.raises(TokenRefusedError):
            cryptoki.set_attributes(hidden, Template(change))
        with pytest.raises(TokenRefusedError):
            cryptoki.copy(hidden, Template(change))


def test_the_storage_key_of_gaks_unwraps_readable_and_nothing_but_gaks_lies_under_it(attacker: Attacker) -> None:
    gak = attacker.unwrap(KeyRole.GAK, GAK_STORAGE, sensitive=False)
    assert len(attacker.party.vault.session.cryptoki.read(gak, A.VALUE)) == 16
    for role in (KeyRole.MASTER, KeyRole.GUEK, KeyRole.GBEK):
        with pytest.raises(IntegrityError):
            attacker.unwrap(role, GAK_STORAGE, sensitive=False)


@pytest.mark.parametrize("kind", [STORAGE, GAK_STORAGE])
def test_way_2_is_closed_the_storage_key_decrypts_nothing_and_does_not_learn_to(attacker: Attacker, kind: str) -> None:
    cryptoki = attacker.party.vault.session.cryptoki
    handle = attacker.party.vault.keyring.newest(kind)[1]
    for usage in (A.DECRYPT, A.ENCRYPT):
        for change in ({usage: True}, {A.MODIFIABLE: True}, {A.MODIFIABLE: True, usage: True}):
            with pytest.raises(TokenRefusedError):
                cryptoki.set_attributes(handle, Template(change))
            with pytest.raises(TokenRefusedError):
                cryptoki.copy(handle, Template({A.TOKEN: False} | change))
    ecb = ffi.new("CK_MECHANISM *", {"mechanism": 0x1081})
    out = ffi.new("unsigned char[64]")
    for operation in (cryptoki.decrypt, cryptoki.encrypt):
        with pytest.raises(TokenRefusedError, match="CKR_KEY_FUNCTION_NOT_PERMITTED"):
            operation(ecb, handle, attacker.sealed[KeyRole.GUEK].wrapped[:16], out, 64)


def test_way_3_is_open_a_known_key_takes_out_a_key_in_transport_and_never_one_in_use(attacker: Attacker) -> None:
    vault = attacker.party.vault
    wrapping = vault.session.profile.mechanisms.aes_key_wrap
    known = bytes(range(32))
    thief = attacker.known_wrapping_key(known)
    taken = {}
    for role, sealed in attacker.sealed.items():
        with vault.open(role, sealed, 0, Use.TRANSPORT) as key:
            taken[role] = aes_key_unwrap(known, vault.session.cryptoki.wrap(wrapping, thief, key.number()))
    for role in (KeyRole.MASTER, KeyRole.GUEK, KeyRole.GBEK):
        with (
            vault.open(role, attacker.sealed[role], 0, Use.IN_USE) as key,
            pytest.raises(TokenRefusedError, match="CKR_KEY_UNEXTRACTABLE"),
        ):
            vault.session.cryptoki.wrap(wrapping, thief, key.number())
    with (
        vault.open(KeyRole.GUEK, attacker.sealed[KeyRole.GUEK], 0, Use.IN_USE) as guek,
        vault.open(KeyRole.GAK, attacker.sealed[KeyRole.GAK], 0, Use.IN_USE) as gak,
        vault.cipher(guek, gak) as cipher,
    ):
        protected = cipher.protect(bytes(12), 0x30, b"", b"reading")
    aad = b"\x30" + taken[KeyRole.GAK]
    assert protected == AESGCM(taken[KeyRole.GUEK]).encrypt(bytes(12), b"reading", aad)[:-4]


def test_way_3_has_a_side_door_an_unwrapped_session_key_gets_a_further_usage_but_stays_in(attacker: Attacker) -> None:
    vault = attacker.party.vault
    cryptoki = vault.session.cryptoki
    with (
        vault.open(KeyRole.MASTER, attacker.sealed[KeyRole.MASTER], 0, Use.IN_USE) as master,
        vault.generate(KeyRole.MASTER, 0) as born,
    ):
        cryptoki.set_attributes(master.number(), Template({A.DECRYPT: True}))
        for change in ({A.EXTRACTABLE: True}, {A.SENSITIVE: False}):
            with pytest.raises(TokenRefusedError, match="CKR_ATTRIBUTE_READ_ONLY"):
                cryptoki.set_attributes(master.number(), Template(change))
        with pytest.raises(TokenRefusedError, match="CKR_ACTION_PROHIBITED"):
            cryptoki.set_attributes(born.number(), Template({A.DECRYPT: True}))


def test_doctor_declares_every_exposure(realm: Realm) -> None:
    found = {row["check"]: row for row in realm.rows("utility", "token", "doctor")}
    exposures = {check.removeprefix("exposure: ") for check in found if check.startswith("exposure: ")}
    agreed = {"agreed key, packages", "agreed key, key agreement with meters"}
    assert exposures == {"GAK", "LLS password", "dedicated key", "HLS secret", "TLS key"} | agreed
    assert {found[f"exposure: {what}"]["ok"] for what in exposures} == {"declared"}
    (realm.home("utility") / "tls" / "key.pem").chmod(0o640)
    done = realm.cli("utility", "token", "doctor")
    assert done.returncode != 0
    assert "hint: exposure: TLS key: chmod 600" in done.stderr
