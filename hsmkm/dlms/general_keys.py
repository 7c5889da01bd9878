"""The keys of general-ciphering: identified, wrapped under the master key, or agreed.

A wrapped or one-pass key is fresh for each APDU. Its answer may come under the same key, without key-info: a client
cannot open what the meter wraps, because it never unwraps under a master key. A statically agreed key is the same for
the same transaction-id, so its counter has to be a durable one of the pair of key-agreement keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from hsmkm.dlms import curves
from hsmkm.dlms.agreement import AlgorithmIds, one_pass_info, static_info
from hsmkm.dlms.channel import Traffic
from hsmkm.dlms.ciphering import CipherKey, FreshCounter, InvocationCounter, ReceiveCounter
from hsmkm.dlms.general import AgreedKey, Header, IdentifiedKey, KeyInfo, KeyParameters, WrappedKey
from hsmkm.dlms.hls import Signer, Verifier
from hsmkm.dlms.types import KeyId, SecuritySuite, SystemTitle
from hsmkm.errors import IntegrityError, RefusedError


class KeyChoice(Enum):
    """Which key an APDU of ours is under; PREVIOUS is that of the APDU which it answers."""

    GUEK = "guek"
    GBEK = "gbek"
    WRAPPED = "wrapped"
    ONE_PASS = "one-pass"  # noqa: S105 - the name of a scheme
    STATIC = "static"
    PREVIOUS = "previous"


class KeyWrapping(Protocol):
    """The holder of a master key; the keys that it gives come with the GAK."""

    def fresh(self) -> tuple[bytes, CipherKey]:
        """Make a key of the suite; give it wrapped under the master key (RFC 3394), and to use."""
        ...

    def unwrap(self, wrapped: bytes) -> CipherKey:
        """Open a wrapped key; raises IntegrityError, also where the holder only wraps."""
        ...


class KeyAgreement(Protocol):
    """The holder of a key-agreement key pair; the keys that it derives (concatenation KDF) come with the GAK."""

    def ephemeral(self, peer: bytes, other_info: bytes) -> tuple[bytes, CipherKey]:
        """Make an ephemeral pair and agree with the peer's static point X || Y; its point X || Y, and the key."""
        ...

    def from_ephemeral(self, point: bytes, other_info: bytes) -> CipherKey:
        """Agree by our static key with the peer's ephemeral point."""
        ...

    def static(self, peer: bytes, other_info: bytes) -> CipherKey:
        """Agree by our static key with the peer's static point."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What agreed keys need: both sides' keys, and the durable counters of the static key."""

    holder: KeyAgreement = field(repr=False)
    peer_point: bytes
    signer: Signer = field(repr=False)
    verifier: Verifier = field(repr=False)
    sent: InvocationCounter
    received: ReceiveCounter
    algorithms: AlgorithmIds = field(default_factory=AlgorithmIds)


@dataclass(slots=True, kw_only=True)
class GeneralKeys:
    """The key source of one side; a kind of key that is None is refused.

    Only a meter `takes_broadcast`: every member of the group has the GBEK, so that an answer under it proves nothing.
    """

    suite: SecuritySuite
    choice: KeyChoice = KeyChoice.GUEK
    guek: Traffic | None = None
    gbek: Traffic | None = None
    wrapping: KeyWrapping | None = field(default=None, repr=False)
    agreement: Agreement | None = None
    takes_broadcast: bool = False
    _previous: tuple[bytes, Traffic] | None = field(default=None, init=False, repr=False)

    def outgoing(self, header: Header) -> tuple[KeyInfo | None, Traffic]:
        """Give the key of our choice; raises RefusedError where it is missing."""
        info, traffic = self._chosen(header)
        self._previous = header.transaction, traffic
        return info, traffic

    def _chosen(self, header: Header) -> tuple[KeyInfo | None, Traffic]:
        if self.choice is KeyChoice.PREVIOUS:
            return None, self._earlier(header)
        if self.choice in (KeyChoice.GUEK, KeyChoice.GBEK):
            key_id = KeyId.GUEK if self.choice is KeyChoice.GUEK else KeyId.GBEK
            return IdentifiedKey(key_id), self._identified(key_id)
        if self.choice is KeyChoice.WRAPPED:
            wrapped, key = self._wrapping().fresh()
            return WrappedKey(wrapped), _fresh(key)
        if self.choice is KeyChoice.ONE_PASS:
            return self._one_pass(header)
        return AgreedKey(KeyParameters.STATIC), self._static(header)

    def incoming(self, header: Header, info: KeyInfo | None) -> Traffic:
        """Give the key of an APDU that came; raises IntegrityError where it is missing or not proved."""
        traffic = self._found(header, info)
        self._previous = header.transaction, traffic
        return traffic

    def _found(self, header: Header, info: KeyInfo | None) -> Traffic:
        if info is None:
            return self._earlier(header)
        if isinstance(info, IdentifiedKey):
            if info.key_id == KeyId.GBEK and not self.takes_broadcast:
                raise IntegrityError("an answer under the broadcast key proves nothing of its sender")
            return self._identified(info.key_id)
        if isinstance(info, WrappedKey):
            if info.kek_id or len(info.wrapped) != self.suite.wrapped_octets:
                raise IntegrityError("the wrapped key is not one of the suite under the master key")
            return _fresh(self._wrapping().unwrap(info.wrapped))
        if info.parameters is KeyParameters.ONE_PASS:
            return self._from_ephemeral(header, info.data)
        if info.data:
            raise IntegrityError("a statically agreed key has no data")
        return self._static(header)

    def _earlier(self, header: Header) -> Traffic:
        if self._previous is None or self._previous[0] != header.transaction:
            raise IntegrityError("the APDU names no key, and its transaction has none")
        return self._previous[1]

    def _identified(self, key_id: int) -> Traffic:
        traffic = {KeyId.GUEK: self.guek, KeyId.GBEK: self.gbek}.get(KeyId(key_id)) if key_id in (0, 1) else None
        if traffic is None:
            raise IntegrityError("the identified key is not here")
        return traffic

    def _wrapping(self) -> KeyWrapping:
        if self.wrapping is None:
            raise IntegrityError("there is no master key for wrapped keys")
        return self.wrapping

    def _agreement(self) -> Agreement:
        if self.agreement is None or self.suite is SecuritySuite.SUITE_0:
            raise IntegrityError("there are no keys to agree with")
        return self.agreement

    def _one_pass(self, header: Header) -> tuple[KeyInfo, Traffic]:
        agreement = self._agreement()
        info = one_pass_info(agreement.algorithms.of(self.suite), header.originator, _recipient(header))
        curves.check_point(self.suite, agreement.peer_point)
        point, key = agreement.holder.ephemeral(agreement.peer_point, info)
        curves.check_point(self.suite, point)
        signature = agreement.signer.sign(point)
        if len(signature) != self.suite.point_octets:
            raise RefusedError(f"the signing key is not of suite {int(self.suite)}")
        return AgreedKey(KeyParameters.ONE_PASS, point + signature), _fresh(key)

    def _from_ephemeral(self, header: Header, data: bytes) -> Traffic:
        agreement = self._agreement()
        point, signature = data[: self.suite.point_octets], data[self.suite.point_octets :]
        curves.check_point(self.suite, point)
        curves.check_signature(self.suite, signature)
        agreement.verifier.verify(point, signature)
        info = one_pass_info(agreement.algorithms.of(self.suite), header.originator, _recipient(header))
        return _fresh(agreement.holder.from_ephemeral(point, info))

    def _static(self, header: Header) -> Traffic:
        agreement = self._agreement()
        curves.check_point(self.suite, agreement.peer_point)
        algorithm = agreement.algorithms.of(self.suite)
        info = static_info(algorithm, header.originator, header.transaction, _recipient(header))
        return Traffic(agreement.holder.static(agreement.peer_point, info), agreement.sent, agreement.received)


def _fresh(key: CipherKey) -> Traffic:
    counters = FreshCounter()
    return Traffic(key, counters, counters, fresh=True)


def _recipient(header: Header) -> SystemTitle:
    if header.recipient is None:
        raise IntegrityError("an agreed key is for one recipient")
    return header.recipient
