"""Who associates with whom, by which mechanism, under which keys and protection."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from hsmkm.dlms import hls
from hsmkm.dlms.channel import Channel, Form, KeySource, Traffic
from hsmkm.dlms.ciphering import CipherKey, FreshCounter, InvocationCounter, ReceiveCounter
from hsmkm.dlms.hls import (
    DIGESTS,
    DigestProof,
    GmacProof,
    Password,
    Proof,
    SecretDigest,
    SignatureProof,
    Signer,
    Verifier,
)
from hsmkm.dlms.protection import AUTHENTICATED_AND_ENCRYPTED, UNPROTECTED, Protection, SecurityPolicy
from hsmkm.dlms.types import WEAK_MECHANISMS, Mechanism, SecuritySuite, SystemTitle
from hsmkm.errors import RefusedError

PUBLIC_CLIENT_SAP = 16
MANAGEMENT_SERVER_SAP = 1


class DedicatedKey(Protocol):
    """A key of one association, made by the client; it travels inside of the ciphered InitiateRequest."""

    @property
    def cipher(self) -> CipherKey:
        """The key to use, with the GAK."""
        ...

    def reveal(self) -> bytes:
        """Give its value, 16 or 32 octets by the suite."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationSettings:
    """Who speaks to whom, and under what protection; `challenge` is 8 to 64 fresh random octets of the caller.

    | mechanism  | needs                                                               |
    |------------|---------------------------------------------------------------------|
    | 0          | nothing                                                             |
    | 1          | password                                                            |
    | 3, 4       | secret, challenge, and `allow_weak_digests`                         |
    | 5          | key with its counters, both titles, challenge                       |
    | 6          | secret, both titles, challenge                                      |
    | 7          | signer, verifier, both titles, challenge, suite 1 or 2              |

    With a key, or a key source for general-ciphering, the association is ciphered; `policy` says how, everything both
    authenticated and encrypted unless told otherwise. Signatures need signer and verifier, dedicated forms the
    dedicated key. `transactions` numbers general-ciphering and general-signing; a meter that guards against replays by
    them needs a durable one. Raises RefusedError for a combination that is not spoken or would weaken the association.
    """

    client_sap: int
    server_sap: int
    client_title: SystemTitle | None = None
    server_title: SystemTitle | None = None
    mechanism: Mechanism = Mechanism.NONE
    suite: SecuritySuite = SecuritySuite.SUITE_0
    key: CipherKey | None = field(default=None, repr=False)
    counter: InvocationCounter | None = None
    receive_counter: ReceiveCounter | None = None
    challenge: bytes = field(default=b"", repr=False)
    max_pdu: int = 1024
    password: Password | None = field(default=None, repr=False)
    secret: SecretDigest | None = field(default=None, repr=False)
    signer: Signer | None = field(default=None, repr=False)
    verifier: Verifier | None = field(default=None, repr=False)
    allow_weak_digests: bool = False
    policy: SecurityPolicy = AUTHENTICATED_AND_ENCRYPTED
    form: Form = Form.GLOBAL
    dedicated: DedicatedKey | None = field(default=None, repr=False)
    key_source: KeySource | None = field(default=None, repr=False)
    transactions: InvocationCounter | None = None

    def __post_init__(self) -> None:
        _check_mechanism(self)
        if self.ciphered:
            _check_protection(self)
        elif self.dedicated is not None:
            raise RefusedError("a dedicated key travels only in a ciphered association")

    @property
    def ciphered(self) -> bool:
        """Whether APDUs are protected at all."""
        return self.key is not None or self.key_source is not None

    @property
    def effective_policy(self) -> SecurityPolicy:
        """The policy, or none where there are no keys.

        A signed answer names the transaction of its request, so that it is no replay: the request is signed then, too.
        """
        if not self.ciphered:
            return UNPROTECTED
        return SecurityPolicy(self.policy.request | self.policy.response & Protection.SIGNED, self.policy.response)

    def proof(self) -> Proof | None:
        """The mechanism with its keys; None for mechanisms 0 and 1."""
        if self.mechanism in DIGESTS and self.secret is not None:
            return DigestProof(self.mechanism, self.secret)
        if self.mechanism is Mechanism.HLS_GMAC and self.key is not None and self.counter is not None:
            return GmacProof(self.key, self.suite, self.counter)
        if self.mechanism is Mechanism.HLS_ECDSA and self.signer is not None and self.verifier is not None:
            return SignatureProof(self.suite, self.signer, self.verifier)
        return None

    def channel(self) -> Channel | None:
        """The protection of a ciphered association."""
        if not self.ciphered or self.client_title is None or self.server_title is None:
            return None
        return Channel(
            suite=self.suite,
            own=self.client_title,
            peer=self.server_title,
            under_global=self._traffic(),
            under_dedicated=self._dedicated_traffic(),
            general=self.key_source,
            signer=self.signer,
            verifier=self.verifier,
        )

    def _traffic(self) -> Traffic | None:
        if self.key is None or self.counter is None or self.receive_counter is None:
            return None
        return Traffic(self.key, self.counter, self.receive_counter)

    def _dedicated_traffic(self) -> Traffic | None:
        if self.dedicated is None:
            return None
        counters = FreshCounter(), FreshCounter()
        return Traffic(self.dedicated.cipher, *counters, fresh=True)


def public(server_title: SystemTitle | None = None, *, server_sap: int = MANAGEMENT_SERVER_SAP) -> AssociationSettings:
    """Give the settings of the public client, which has no security and may read a meter's counter and title."""
    return AssociationSettings(client_sap=PUBLIC_CLIENT_SAP, server_sap=server_sap, server_title=server_title)


def _check_mechanism(settings: AssociationSettings) -> None:
    mechanism = settings.mechanism
    if mechanism is Mechanism.NONE and settings.ciphered:
        raise RefusedError("a ciphered association authenticates its client", hint="use a mechanism of 1 to 7")
    if mechanism is Mechanism.LLS and settings.password is None:
        raise RefusedError("mechanism 1 needs the password")
    if not mechanism.is_hls:
        return
    if mechanism in WEAK_MECHANISMS and not settings.allow_weak_digests:
        raise RefusedError(
            f"mechanism {int(mechanism)} rests on a broken digest", hint="allow it in the settings of the meter model"
        )
    if settings.proof() is None:
        raise RefusedError(f"mechanism {int(mechanism)} lacks its keys, or is not spoken")
    if not hls.challenge_fits(settings.challenge):
        raise RefusedError("a challenge has 8 to 64 octets")
    if mechanism not in WEAK_MECHANISMS:
        _check_titles(settings)
    if mechanism is Mechanism.HLS_ECDSA and settings.suite is SecuritySuite.SUITE_0:
        raise RefusedError("mechanism 7 needs security suite 1 or 2")


def _check_protection(settings: AssociationSettings) -> None:
    _check_titles(settings)
    if settings.key is not None and (settings.counter is None or settings.receive_counter is None):
        raise RefusedError("a key needs both counters")
    if settings.form.dedicated and settings.dedicated is None:
        raise RefusedError("dedicated ciphering needs a dedicated key")
    if settings.dedicated is not None and settings.key is None:
        raise RefusedError("a dedicated key travels under the global one")
    if settings.form is Form.GENERAL and settings.key_source is None:
        raise RefusedError("general-ciphering needs a key source")
    if settings.form is not Form.GENERAL and settings.key is None:
        raise RefusedError(f"{settings.form.value} ciphering needs the key")
    _check_signatures(settings)


def _check_signatures(settings: AssociationSettings) -> None:
    policy = settings.policy
    if not (policy.request | policy.response) & Protection.SIGNED:
        return
    if settings.suite is SecuritySuite.SUITE_0:
        raise RefusedError("signatures need security suite 1 or 2")
    if settings.signer is None or settings.verifier is None:
        raise RefusedError("signed APDUs need a key to sign with and one to check with")


def _check_titles(settings: AssociationSettings) -> None:
    if settings.client_title is None or settings.server_title is None:
        raise RefusedError("the association needs both system titles")
    if settings.client_title == settings.server_title:
        raise RefusedError("client and meter have the same system title", hint="each holder of a key needs its own")
