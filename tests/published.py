"""Private keys of published vectors as keys of a token: imported in tests only, since ours are born there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec
from pkcs11 import Attribute

from hsmkm.token import attributes, curves
from hsmkm.token.ephemeral import EphemeralPair

if TYPE_CHECKING:
    from hsmkm.token.vault import Vault


def private_key(vault: Vault, value: str, label: str = "", usage: Attribute = Attribute.DERIVE) -> int:
    """Import a published private key on P-256, as a session object or under a label, with its public half."""
    scalar = int(value, 16)
    public = ec.derive_private_key(scalar, ec.SECP256R1()).public_key()
    names: attributes.Attributes = {Attribute.LABEL: label.encode(), Attribute.ID: bytes(16)} if label else {}
    parameters = curves.parameters("P-256")
    cryptoki = vault.session.cryptoki
    if label:
        point = b"\x04\x41" + curves.encode(public)
        listed = attributes.ec_public_key(usage, parameters, on_token=True) | names
        cryptoki.create(vault.session.template(listed | {Attribute.EC_POINT: point}))
    listed = attributes.ec_private_key(usage, on_token=bool(label)) | names
    octets = scalar.to_bytes(32)
    values: attributes.Attributes = {Attribute.EC_PARAMS: parameters, Attribute.VALUE: octets}
    return cryptoki.create(vault.session.template(listed | values))


def published_pair(vault: Vault, value: str) -> EphemeralPair:
    """Import a published ephemeral key on P-256."""
    number = private_key(vault, value)
    public = ec.derive_private_key(int(value, 16), ec.SECP256R1()).public_key()
    return EphemeralPair(vault.session, public, number, (number,))
