"""Agreement on keys by ECDH in the token: for packages as RFC 5753 says, with meters as DLMS says.

Packages (dhSinglePass-stdDH-sha256kdf, -sha384kdf): the KDF of X9.63, 32 octets on either curve. DLMS: the KDF of
SP 800-56A, 16 octets on P-256 (suite 1) and 32 on P-384 (suite 2). How the token derives, and whether the policy
allows it, is decided in derivation.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pkcs11 import Attribute

from hsmkm.errors import InputError
from hsmkm.token import attributes, curves
from hsmkm.token.derivation import Kdf, Wanted, agree, choose_rung
from hsmkm.token.ephemeral import EphemeralPair
from hsmkm.token.types import CarrierRole, KeyRole, SessionRole, Use, key_octets

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from hsmkm.token.keys import KeyHandle
    from hsmkm.token.vault import Vault

KEK_OCTETS = 32
MAX_OTHER_INFO = 279  # AlgorithmID 7, titles 8 + 8, a transaction-id of 255 with its length octet
_CURVES = {1: "P-256", 2: "P-384"}
_SUITES = {curve: suite for suite, curve in _CURVES.items()}


def agree_as_sender(
    vault: Vault, recipient_public: ec.EllipticCurvePublicKey, shared_info: bytes
) -> tuple[bytes, KeyHandle]:
    """Make an ephemeral key pair in the token and agree; its point, uncompressed, and a key that only wraps.

    Raises PolicyError unless the policy allows the token's way of deriving, InputError for a curve other than P-256 and
    P-384.
    """
    choose_rung(vault, Kdf.X963)
    with EphemeralPair.make(vault.session, curves.name_of(recipient_public)) as pair:
        kek = agree(vault, Kdf.X963, pair.private(), recipient_public, shared_info, _carrier(Attribute.WRAP))
        return curves.encode(pair.public), kek


def agree_as_recipient(vault: Vault, label: str, ephemeral_point: bytes, shared_info: bytes) -> KeyHandle:
    """Agree with the key pair of this label; a key that only unwraps.

    Raises PolicyError as agree_as_sender does, InputError for a point that is not on the key's curve.
    """
    choose_rung(vault, Kdf.X963)
    peer = curves.decode(curves.name_of(vault.public_key(label)), ephemeral_point)
    private = vault.key_pairs.private(label, "derive")
    return agree(vault, Kdf.X963, private, peer, shared_info, _carrier(Attribute.UNWRAP))


def make_ephemeral_pair(vault: Vault, suite: int) -> EphemeralPair:
    """Make the ephemeral key pair of a DLMS agreement in the token: P-256 in suite 1, P-384 in suite 2.

    Raises InputError for a suite without public keys.
    """
    if suite not in _CURVES:
        raise InputError(f"security suite {suite} has no key agreement", hint="suites 1 and 2 have")
    return EphemeralPair.make(vault.session, _CURVES[suite])


def agree_dlms(
    vault: Vault, own: EphemeralPair | str, peer_point: bytes, other_info: bytes, role: KeyRole | SessionRole
) -> KeyHandle:
    """Agree with a meter or another client: K = Hash(00000001 || Z || OtherInfo), cut to the suite's key length.

    `own` is an ephemeral pair (Ephemeral Unified Model; originator of One-Pass Diffie-Hellman) or the label of a
    key-agreement key (recipient of One-Pass Diffie-Hellman; Static Unified Model); `peer_point` is X || Y as it
    arrives, or as a certificate has it. A meter's key comes for transport, ready to be sealed; an ephemeral key comes
    in use, for one general-ciphering exchange.

    Raises InputError for a point that is not on the own key's curve or is the own one, PolicyError if the token has no
    way to derive that the policy allows.
    """
    if role not in frozenset(KeyRole) and role is not SessionRole.EPHEMERAL:
        raise InputError(f"a {role} key is not agreed on", hint="a meter's keys and ephemeral keys are")
    if not 0 < len(other_info) <= MAX_OTHER_INFO:
        raise InputError(f"the OtherInfo of a key agreement has {len(other_info)} octets")
    choose_rung(vault, Kdf.SP800)
    public = vault.public_key(own) if isinstance(own, str) else own.public
    curve = curves.name_of(public)
    peer = curves.decode_raw(curve, peer_point)
    if peer == public:
        raise InputError("the other side's point is our own", hint="an answer was reflected")
    private = vault.key_pairs.private(own, "derive") if isinstance(own, str) else own.private()
    use = Use.IN_USE if role is SessionRole.EPHEMERAL else Use.TRANSPORT
    wanted = Wanted(attributes.session_key(role, use), role, use, key_octets(_SUITES[curve]))
    return agree(vault, Kdf.SP800, private, peer, other_info, wanted)


def _carrier(usage: Attribute) -> Wanted:
    return Wanted(attributes.carrier_key(usage), CarrierRole.AGREED, Use.IN_USE, KEK_OCTETS)
