"""Key agreement of suites 1 and 2: inputs of the KDF, and the data of key_agreement (IEC 62056-5-3 clause 5.6).

K = Hash(00000001 || Z || AlgorithmID || PartyU || PartyV), SHA-256 cut to 16 octets in suite 1, SHA-384 cut to 32
octets in suite 2: the one-round concatenation KDF of NIST SP 800-56A. The holder of Z computes it; what follows Z comes
from here.

| scheme                             | used by                         | PartyU     | PartyV                        |
|------------------------------------|---------------------------------|------------|-------------------------------|
| Ephemeral Unified Model, C(2e, 0s) | the method key_agreement        | client     | server                        |
| One-Pass Diffie-Hellman, C(1e, 1s) | general-ciphering, parameters 1 | originator | recipient                     |
| Static Unified Model, C(0e, 2s)    | general-ciphering, parameters 2 | originator | transaction-id, recipient     |

The parties are named by their system titles, bare; a transaction-id keeps its length octet. The prefix of the
AlgorithmID differs in the field and is a setting of the meter model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hsmkm.dlms import axdr, curves
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.hls import Signer, Verifier
from hsmkm.dlms.octets import encode_counted
from hsmkm.dlms.types import KeyId, SecuritySuite, SystemTitle
from hsmkm.errors import InputError, ProtocolError, RefusedError

GREEN_BOOK_PREFIX = bytes.fromhex("608574050803")
GBCS_PREFIX = bytes.fromhex("608574060803")
PREFIX_OCTETS = 6
_WRAP = 2


@dataclass(frozen=True, slots=True)
class AlgorithmIds:
    """How a meter model names what a derived key is for.

    `wrap_for_master` chooses AES-WRAP for key_id 3, as the table of the Green Book implies; otherwise every key is for
    AES-GCM. Raises InputError for a prefix of another length than 6 octets.
    """

    prefix: bytes = GREEN_BOOK_PREFIX
    wrap_for_master: bool = False

    def __post_init__(self) -> None:
        if len(self.prefix) != PREFIX_OCTETS:
            raise InputError("the prefix of an AlgorithmID has 6 octets", hint="for example 608574050803")

    def of(self, suite: SecuritySuite, key_id: KeyId | None = None) -> bytes:
        """Give the 7 octets for a key of the suite; None is a key of general-ciphering. RefusedError for suite 0."""
        long = suite.coordinate_octets > SecuritySuite.SUITE_1.coordinate_octets
        wrap = _WRAP if self.wrap_for_master and key_id is KeyId.MASTER else 0
        return self.prefix + bytes([wrap + long])

    def other(self) -> AlgorithmIds:
        """The other prefix seen in the field, to be tried where an association under the derived key fails."""
        prefix = GBCS_PREFIX if self.prefix == GREEN_BOOK_PREFIX else GREEN_BOOK_PREFIX
        return AlgorithmIds(prefix, self.wrap_for_master)


def ephemeral_info(algorithm_id: bytes, client: SystemTitle, server: SystemTitle) -> bytes:
    """OtherInfo of the method key_agreement."""
    return algorithm_id + client.octets + server.octets


def one_pass_info(algorithm_id: bytes, originator: SystemTitle, recipient: SystemTitle) -> bytes:
    """OtherInfo of a one-pass agreed key."""
    return algorithm_id + originator.octets + recipient.octets


def static_info(algorithm_id: bytes, originator: SystemTitle, transaction: bytes, recipient: SystemTitle) -> bytes:
    """OtherInfo of a statically agreed key; the transaction-id keeps its length octet."""
    return algorithm_id + originator.octets + encode_counted(transaction) + recipient.octets


@dataclass(frozen=True, slots=True)
class PublicShare:
    """One entry of key_agreement, either direction: an ephemeral point X || Y, signed together with its key_id."""

    key_id: KeyId
    point: bytes
    signature: bytes = field(repr=False)

    @staticmethod
    def signed_octets(key_id: KeyId, point: bytes) -> bytes:
        """What the signature covers: the octet key_id, then X || Y."""
        return bytes([key_id]) + point

    @classmethod
    def sign(cls, suite: SecuritySuite, key_id: KeyId, point: bytes, signer: Signer) -> PublicShare:
        """Sign a point of our own; IntegrityError off the curve, RefusedError for a signing key of another suite."""
        curves.check_point(suite, point)
        signature = signer.sign(cls.signed_octets(key_id, point))
        if len(signature) != suite.point_octets:
            raise RefusedError(f"the signing key is not of suite {int(suite)}")
        return cls(key_id, point, signature)

    def check(self, suite: SecuritySuite, verifier: Verifier) -> None:
        """Check the other side's point and signature; raises IntegrityError."""
        curves.check_point(suite, self.point)
        curves.check_signature(suite, self.signature)
        verifier.verify(self.signed_octets(self.key_id, self.point), self.signature)


def encode_key_agreement(shares: Sequence[PublicShare]) -> Data:
    """Build the method's data, or its answer: an array of structure{enum key_id, octet-string point || signature}."""
    return axdr.array(
        *(axdr.structure(axdr.enum(share.key_id), axdr.octet_string(share.point + share.signature)) for share in shares)
    )


def decode_key_agreement(suite: SecuritySuite, data: Data) -> tuple[PublicShare, ...]:
    """Read the method's data or its answer; nothing is checked but the form.

    Raises ProtocolError for an unknown or repeated key_id and for a wrong length, RefusedError for suite 0.
    """
    shares = tuple(_decode_share(suite, entry) for entry in data.items())
    if not shares or len({share.key_id for share in shares}) != len(shares):
        raise ProtocolError("a key_agreement names each of its keys once")
    return shares


def _decode_share(suite: SecuritySuite, entry: Data) -> PublicShare:
    fields = entry.items()
    if len(fields) != 2:  # noqa: PLR2004 - key_id and data
        raise ProtocolError("an entry of a key_agreement has two elements")
    key_id, octets = fields[0].integer(), fields[1].octets()
    if key_id not in KeyId.__members__.values() or len(octets) != 2 * suite.point_octets:
        raise ProtocolError("an entry of a key_agreement has an unknown key_id or a wrong length")
    return PublicShare(KeyId(key_id), octets[: suite.point_octets], octets[suite.point_octets :])
