"""Signatures as DLMS writes them, r || s, against published ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from hsmkm.errors import InputError, IntegrityError, RefusedError
from hsmkm.token import curves
from hsmkm.token.signature import verify_raw

if TYPE_CHECKING:
    from hsmkm.token.vault import Vault

Vectors = dict[str, list[dict[str, str]]]
CURVES = {"P-256": (32, SHA256()), "P-384": (48, SHA384())}


def published_key(vectors: Vectors) -> ec.EllipticCurvePublicKey:
    """The client's digital-signature key of the Green Book's examples."""
    point = bytes.fromhex(vectors["key_agreement_ephemeral_unified"][0]["client_sign_q"])
    return curves.decode("P-256", b"\4" + point)


def test_the_published_signatures_fit_what_they_sign(vectors: Vectors) -> None:
    unified, one_pass = vectors["key_agreement_ephemeral_unified"][0], vectors["key_agreement_one_pass"][0]
    public = published_key(vectors)
    with_key_id, alone = b"\0" + bytes.fromhex(unified["client_epk"]), bytes.fromhex(one_pass["client_epk"])
    verify_raw(public, with_key_id, bytes.fromhex(unified["client_sig_over_00_epk"]))
    verify_raw(public, alone, bytes.fromhex(one_pass["client_sig_over_epk_only"]))
    with pytest.raises(IntegrityError, match="does not fit"):
        verify_raw(public, with_key_id[1:], bytes.fromhex(unified["client_sig_over_00_epk"]))
    with pytest.raises(IntegrityError, match="does not fit"):
        verify_raw(public, b"\0" + alone, bytes.fromhex(one_pass["client_sig_over_epk_only"]))


@pytest.mark.parametrize("curve", list(CURVES))
def test_the_token_signs_r_and_s_bare(vault: Vault, curve: str) -> None:
    octets, algorithm = CURVES[curve]
    vault.create_ec_key("digital-signature", curve)
    public = vault.public_key("digital-signature")
    for data in (b"", b"data", bytes(5000)):
        signature = vault.sign_raw("digital-signature", data)
        assert len(signature) == 2 * octets
        halves = int.from_bytes(signature[:octets]), int.from_bytes(signature[octets:])
        public.verify(encode_dss_signature(*halves), data, ec.ECDSA(algorithm))
        verify_raw(public, data, signature)


def test_a_reconnection_finds_the_signing_key_again(vault: Vault) -> None:
    vault.create_ec_key("digital-signature")
    vault.sign_raw("digital-signature", b"data")
    vault.session.reconnect()
    verify_raw(vault.public_key("digital-signature"), b"data", vault.sign_raw("digital-signature", b"data"))


@pytest.mark.parametrize("curve", list(CURVES))
def test_r_and_s_out_of_range_are_told_from_a_signature_that_does_not_fit(curve: str) -> None:
    octets, _ = CURVES[curve]
    private = ec.generate_private_key(ec.SECP256R1() if curve == "P-256" else ec.SECP384R1())
    good = (5).to_bytes(octets)
    order = curves.order(curve)
    for wrong in (0, order, order + 1, (1 << 8 * octets) - 1):
        for signature in (wrong.to_bytes(octets) + good, good + wrong.to_bytes(octets)):
            with pytest.raises(IntegrityError, match="out of range"):
                verify_raw(private.public_key(), b"data", signature)
    for edge in (1, order - 1):
        with pytest.raises(IntegrityError, match="does not fit"):
            verify_raw(private.public_key(), b"data", edge.to_bytes(octets) + good)
    for length in (0, 1, 2 * octets - 1, 2 * octets + 1):
        with pytest.raises(IntegrityError, match="octets instead of"):
            verify_raw(private.public_key(), b"data", bytes(length))


def test_an_altered_signature_or_text_does_not_fit(vault: Vault) -> None:
    vault.create_ec_key("digital-signature")
    public = vault.public_key("digital-signature")
    signature = vault.sign_raw("digital-signature", b"data")
    for position in (0, 31, 32, 63):
        altered = bytearray(signature)
        altered[position] ^= 1
        with pytest.raises(IntegrityError):
            verify_raw(public, b"data", bytes(altered))
    with pytest.raises(IntegrityError):
        verify_raw(public, b"datA", signature)


def test_the_order_is_that_of_the_curve() -> None:
    for curve, parameters in (("P-256", ec.SECP256R1()), ("P-384", ec.SECP384R1())):
        ec.derive_private_key(curves.order(curve) - 1, parameters)
        with pytest.raises(ValueError, match=r"Invalid EC key|private_value"):
            ec.derive_private_key(curves.order(curve), parameters)


def test_only_signing_keys_on_the_curves_of_dlms(vault: Vault) -> None:
    with pytest.raises(RefusedError, match="no key"):
        vault.sign_raw("digital-signature", b"data")
    vault.create_ec_key("key-agreement", usage="derive")
    with pytest.raises(IntegrityError, match="other attributes"):
        vault.sign_raw("key-agreement", b"data")
    with pytest.raises(InputError, match="no curve"):
        verify_raw(ec.generate_private_key(ec.SECP521R1()).public_key(), b"data", bytes(132))
