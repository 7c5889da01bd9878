from __future__ import annotations

import copy
import datetime as dt
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from hsmkm.errors import IntegrityError, PolicyError, RefusedError, TokenRefusedError
from hsmkm.token.agreement import agree_as_recipient
from hsmkm.token.curves import encode
from hsmkm.token.signer import BirthSigner, TokenSigner

if TYPE_CHECKING:
    from hsmkm.token.vault import Vault

NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "4D4D4D0000BC614E")])


@pytest.mark.parametrize(("curve", "digest"), [("P-256", hashes.SHA256()), ("P-384", hashes.SHA384())])
def test_a_signature_verifies_with_the_public_key(vault: Vault, curve: str, digest: hashes.HashAlgorithm) -> None:
    vault.create_ec_key("digital-signature", curve)
    signer = TokenSigner(vault, "digital-signature")
    signer.public_key().verify(signer.sign(b"data", ec.ECDSA(digest)), b"data", ec.ECDSA(digest))
    hasher = hashes.Hash(digest)
    hasher.update(b"data")
    prehashed = signer.sign(hasher.finalize(), ec.ECDSA(utils.Prehashed(digest)))
    signer.public_key().verify(prehashed, b"data", ec.ECDSA(digest))


def test_cryptographys_builders_take_it_for_a_private_key(vault: Vault) -> None:
    vault.create_ec_key("ca:root")
    signer = TokenSigner(vault, "ca:root")
    now = dt.datetime.now(dt.UTC)
    certificate = (x509.CertificateBuilder(NAME, NAME, signer.public_key(), 1, now, now + dt.timedelta(days=1))).sign(
        signer, hashes.SHA256()
    )
    certificate.verify_directly_issued_by(certificate)
    request = x509.CertificateSigningRequestBuilder(NAME).sign(signer, hashes.SHA256())
    assert request.is_signature_valid
    crl = x509.CertificateRevocationListBuilder(NAME, now, now + dt.timedelta(days=1)).sign(signer, hashes.SHA256())
    assert crl.is_signature_valid(signer.public_key())


def test_the_key_stays_in_the_token(vault: Vault) -> None:
    vault.create_ec_key("digital-signature")
    signer = TokenSigner(vault, "digital-signature")
    with pytest.raises(PolicyError):
        signer.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(PolicyError):
        signer.private_numbers()
    with pytest.raises(PolicyError):
        signer.exchange(ec.ECDH(), signer.public_key())
    assert copy.copy(signer) is copy.deepcopy(signer) is signer
    assert (signer.key_size, signer.curve.name) == (256, "secp256r1")


@pytest.mark.parametrize("curve", ["P-256", "P-384"])
def test_a_key_agreement_key_signs_at_its_birth_and_never_again(vault: Vault, curve: str) -> None:
    digest = hashes.SHA256() if curve == "P-256" else hashes.SHA384()

    def at_birth(signer: BirthSigner) -> x509.CertificateSigningRequest:
        return x509.CertificateSigningRequestBuilder(NAME).sign(signer, digest)

    request = vault.create_agreement_key("key-agreement", curve, at_birth)
    assert request.is_signature_valid
    assert request.public_key() == vault.public_key("key-agreement")
    with pytest.raises(IntegrityError, match="other attributes"):
        TokenSigner(vault, "key-agreement")
    private = vault.key_pairs.private("key-agreement", "derive")
    mechanisms, cryptoki = vault.session.profile.mechanisms, vault.session.cryptoki
    with pytest.raises(TokenRefusedError):
        cryptoki.sign(mechanisms.ecdsa, private, bytes(32))
    with agree_as_recipient(vault, "key-agreement", encode(vault.public_key("key-agreement")), b"info") as kek:
        assert kek.octets == 32


def test_a_label_names_one_key_of_one_use(vault: Vault) -> None:
    vault.create_ec_key("digital-signature")
    with pytest.raises(RefusedError, match="has a key"):
        vault.create_ec_key("digital-signature")
    with pytest.raises(RefusedError, match="no key"):
        TokenSigner(vault, "package-signing")
    vault.create_ec_key("key-agreement", usage="derive")
    with pytest.raises(IntegrityError, match="other attributes"):
        TokenSigner(vault, "key-agreement")


def test_after_a_reconnection_the_key_must_be_the_same(vault: Vault) -> None:
    vault.create_ec_key("digital-signature")
    signer = TokenSigner(vault, "digital-signature")
    vault.session.reconnect()
    signer.public_key().verify(signer.sign(b"x", ec.ECDSA(hashes.SHA256())), b"x", ec.ECDSA(hashes.SHA256()))
    vault.key_pairs.destroy("digital-signature")
    vault.create_ec_key("digital-signature")
    vault.session.reconnect()
    with pytest.raises(IntegrityError, match="not what it was"):
        signer.sign(b"x", ec.ECDSA(hashes.SHA256()))
