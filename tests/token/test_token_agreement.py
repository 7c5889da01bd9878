from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import ObjectClass

from hsmkm.errors import InputError, IntegrityError, PolicyError, RefusedError
from hsmkm.token.agreement import agree_as_recipient, agree_as_sender
from hsmkm.token.curves import decode, encode
from hsmkm.token.session import open_session
from hsmkm.token.template import Template
from hsmkm.token.types import KeyRole, Use
from hsmkm.token.vault import Vault

if TYPE_CHECKING:
    from hsmkm.token.types import TokenSettings

CURVES = {"P-256": (ec.SECP256R1(), "SHA256"), "P-384": (ec.SECP384R1(), "SHA384")}
INFO = bytes.fromhex("3015300b0609608648016503040130a206040400000100")


def x963(shared: bytes, digest: str) -> bytes:
    """OpenSSL's KDF of ANSI X9.63, 32 octets."""
    options = (f"digest:{digest}", f"hexkey:{shared.hex()}", f"hexinfo:{INFO.hex()}")
    arguments = [part for option in options for part in ("-kdfopt", option)]
    done = subprocess.run(
        ["openssl", "kdf", "-keylen", "32", "-binary", *arguments, "X963KDF"], capture_output=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("curve", list(CURVES))
def test_a_recipient_in_the_token_agrees_with_openssl(vault: Vault, curve: str) -> None:
    parameters, digest = CURVES[curve]
    public = decode(curve, vault.create_ec_key("key-agreement", curve, "derive"))
    ephemeral = ec.generate_private_key(parameters)
    kek = x963(ephemeral.exchange(ec.ECDH(), public), digest)
    package, meter, master = bytes(range(32)), bytes(range(16)), bytes(16)
    with (
        agree_as_recipient(vault, "key-agreement", encode(ephemeral.public_key()), INFO) as agreed,
        vault.unwrap_package_key(agreed, aes_key_wrap(kek, package)) as opened,
        vault.unwrap(opened, aes_key_wrap(package, meter), KeyRole.GUEK, 0) as guek,
        vault.import_key(KeyRole.MASTER, 0, bytearray(master)) as known,
        vault.open(KeyRole.MASTER, vault.seal(known), 0, Use.IN_USE) as wrapping,
    ):
        assert aes_key_unwrap(master, vault.wrap(wrapping, guek)) == meter


@pytest.mark.parametrize("curve", list(CURVES))
def test_a_sender_in_the_token_agrees_with_openssl(vault: Vault, curve: str) -> None:
    parameters, digest = CURVES[curve]
    recipient = ec.generate_private_key(parameters)
    point, kek = agree_as_sender(vault, recipient.public_key(), INFO)
    with kek, vault.generate_package_key() as package, vault.generate(KeyRole.GUEK, 0) as guek:
        outer, inner = vault.wrap(kek, package), vault.wrap(package, guek)
    shared = recipient.exchange(ec.ECDH(), decode(curve, point))
    opened = aes_key_unwrap(x963(shared, digest), outer)
    assert len(opened) == 32
    assert len(aes_key_unwrap(opened, inner)) == 16


def test_other_shared_info_does_not_open_a_package(vault: Vault) -> None:
    vault.create_ec_key("key-agreement", usage="derive")
    point, kek = agree_as_sender(vault, vault.public_key("key-agreement"), b"one header")
    with kek, vault.generate_package_key() as package:
        wrapped = vault.wrap(kek, package)
    with agree_as_recipient(vault, "key-agreement", point, b"another") as agreed, pytest.raises(IntegrityError):
        vault.unwrap_package_key(agreed, wrapped)


def test_each_agreement_is_ephemeral(vault: Vault) -> None:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    first, second = agree_as_sender(vault, public, INFO), agree_as_sender(vault, public, INFO)
    assert first[0] != second[0]


def test_points_off_the_curve_or_in_another_form_are_refused(vault: Vault) -> None:
    vault.create_ec_key("key-agreement", usage="derive")
    good = ec.generate_private_key(ec.SECP256R1()).public_key()
    off = bytearray(encode(good))
    off[-1] ^= 1
    for point in (bytes(off), good.public_bytes(Encoding.X962, PublicFormat.CompressedPoint), b"", b"\0", bytes(65)):
        with pytest.raises(InputError):
            agree_as_recipient(vault, "key-agreement", point, INFO)
    with pytest.raises(InputError, match="no curve"):
        agree_as_sender(vault, ec.generate_private_key(ec.SECP521R1()).public_key(), INFO)


def test_a_signing_key_agrees_on_nothing(vault: Vault) -> None:
    vault.create_ec_key("digital-signature")
    point = encode(ec.generate_private_key(ec.SECP256R1()).public_key())
    with pytest.raises(IntegrityError, match="other attributes"):
        agree_as_recipient(vault, "digital-signature", point, INFO)


def test_no_session_object_is_left_behind(vault: Vault) -> None:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    before = vault.session.cryptoki.find(Template({}), 1000)
    agree_as_sender(vault, public, INFO)[1].destroy()
    assert len(vault.session.cryptoki.find(Template({}), 1000)) == len(before)


@pytest.mark.parametrize("profile_name", ["softhsm2"])
def test_the_policy_decides_on_the_kdf_in_the_host(token_settings: TokenSettings) -> None:
    with open_session(replace(token_settings, kdf_on_host=False)) as session:
        vault = Vault(session)
        vault.create_ec_key("key-agreement", usage="derive")
        public = vault.public_key("key-agreement")
        with pytest.raises(PolicyError, match="policy"):
            agree_as_sender(vault, public, INFO)
        with pytest.raises(PolicyError, match="policy"):
            agree_as_recipient(vault, "key-agreement", encode(public), INFO)


def test_halves_that_a_crash_left_are_cleared_away_before_the_pair_is_made_again(vault: Vault) -> None:
    vault.create_agreement_key("agreed", "P-256", lambda signer: signer.public_key())
    keys, cryptoki = vault.key_pairs, vault.key_pairs._session.cryptoki
    stale = vault.public_key("agreed")
    private = keys._find("agreed", ObjectClass.PRIVATE_KEY)
    assert private is not None
    cryptoki.destroy(private)
    made = vault.create_agreement_key("agreed", "P-256", lambda signer: signer.public_key())
    assert vault.public_key("agreed") == made
    assert made != stale
    assert keys.identity("agreed")
    with pytest.raises(RefusedError, match="has a key agreed"):
        vault.create_agreement_key("agreed", "P-256", lambda signer: signer.public_key())
