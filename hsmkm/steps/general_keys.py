"""The keys and transaction numbers of general-ciphering, from token and store.

| key        | where it comes from                                                          | proves             |
|------------|------------------------------------------------------------------------------|--------------------|
| identified | the GUEK of the association, with its counters                               | GUEK, GAK          |
| wrapped    | made in the token for each request, wrapped under the master key             | master key, GAK    |
| one-pass   | agreed in the token by an ephemeral pair of ours and one of the meter        | both parties, GAK  |
| static     | agreed in the token by both key-agreement keys, for each transaction anew    | both parties, GAK  |

A client only wraps under a master key, so that the answer to a wrapped key comes under that key. Keys of an exchange
are destroyed with the one after the next, and at the end.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from hsmkm.dlms.agreement import AlgorithmIds
from hsmkm.dlms.channel import Traffic
from hsmkm.dlms.ciphering import InvocationCounter, ReceiveCounter
from hsmkm.dlms.general_keys import Agreement, GeneralKeys, KeyChoice
from hsmkm.dlms.types import SecuritySuite
from hsmkm.errors import IntegrityError
from hsmkm.pki.certificates import public_key
from hsmkm.pki.profiles import DIGITAL_SIGNATURE, KEY_AGREEMENT
from hsmkm.pki.slots import Slot, curve_for
from hsmkm.steps.credentials import TokenSigningKey, meter_key, open_key
from hsmkm.steps.meter_certificates import meter_certificate
from hsmkm.steps.party import Party
from hsmkm.store import transactions
from hsmkm.store.key_set import IDENTITY_OCTETS, KeySet
from hsmkm.token import curves
from hsmkm.token.agreement import agree_dlms, make_ephemeral_pair
from hsmkm.token.keys import CipherKey, KeyHandle
from hsmkm.token.types import KeyRole, SessionRole, Use
from hsmkm.token.vault import Vault

CHOICES = {
    "identified": KeyChoice.GUEK,
    "wrapped": KeyChoice.WRAPPED,
    "one-pass": KeyChoice.ONE_PASS,
    "static": KeyChoice.STATIC,
}
"""The key of general-ciphering by the name it has in a meter model."""

Counters = Callable[[bytes], tuple[InvocationCounter, ReceiveCounter]]
"""Gives the durable counters of a key by its identity: of what we send, and of what comes."""

_KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What general-ciphering with one meter rests on.

    `gak` and `master` are the key sets whose GAK and master key are taken to be in force; `master` is needed for a
    wrapped key only, `guek` for an identified one, `counters` for a static one.
    """

    meter: bytes
    suite: int
    choice: KeyChoice
    gak: KeySet
    master: KeySet | None = None
    guek: Traffic | None = None
    counters: Counters | None = field(default=None, repr=False)
    algorithms: AlgorithmIds = field(default_factory=AlgorithmIds)


@contextmanager
def general_keys(party: Party, terms: Terms) -> Iterator[GeneralKeys]:
    """Open the key source of general-ciphering, as `hsmkm.dlms.settings` takes it, for one association.

    Raises RefusedError where a key or a certificate is missing, PolicyError where the token cannot agree on a key
    without showing it to the host (policy `kdf_on_host`).
    """
    with ExitStack() as stack:
        gak = stack.enter_context(open_key(party, terms.gak, KeyRole.GAK, Use.IN_USE))
        kept = stack.enter_context(ExchangeKeys(party.vault, gak))
        wrapping: TokenWrapping | None = None
        if terms.choice is KeyChoice.WRAPPED and terms.master is not None:
            master = stack.enter_context(open_key(party, terms.master, KeyRole.MASTER, Use.IN_USE))
            wrapping = TokenWrapping(party.vault, master, kept, terms.suite)
        agrees = terms.choice in (KeyChoice.ONE_PASS, KeyChoice.STATIC)
        yield GeneralKeys(
            suite=SecuritySuite(terms.suite),
            choice=terms.choice,
            guek=terms.guek,
            wrapping=wrapping,
            agreement=_agreement(party, terms, kept) if agrees else None,
        )


class ExchangeKeys:
    """The keys of the last request and its answer, with the GAK; older ones are destroyed."""

    def __init__(self, vault: Vault, gak: KeyHandle) -> None:
        self._vault = vault
        self._gak = gak
        self._kept: deque[ExitStack] = deque()

    def keep(self, key: KeyHandle) -> CipherKey:
        """Take a key over, and give it to use."""
        with ExitStack() as stack:
            stack.enter_context(key)
            cipher = stack.enter_context(self._vault.cipher(key, self._gak))
            self._kept.append(stack.pop_all())
        if len(self._kept) > _KEPT:
            self._kept.popleft().close()
        return cipher

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for each in self._kept:
                stack.push(each)


@dataclass(frozen=True, slots=True)
class TokenWrapping:
    """A master key in the token; fulfils `hsmkm.dlms.general_keys.KeyWrapping`."""

    vault: Vault = field(repr=False)
    master: KeyHandle
    kept: ExchangeKeys = field(repr=False)
    suite: int

    def fresh(self) -> tuple[bytes, CipherKey]:
        """Make a key; give it wrapped, and to use."""
        key = self.vault.generate_ephemeral_key(self.suite)
        cipher = self.kept.keep(key)
        return self.vault.wrap(self.master, key), cipher

    def unwrap(self, wrapped: bytes) -> CipherKey:
        """Refuse: a client never unwraps under a master key. Raises IntegrityError."""
        raise IntegrityError(
            f"the meter sent a wrapped key of {len(wrapped)} octets, and a client only wraps under a master key",
            hint="let the meter answer under the key of the request",
        )


@dataclass(frozen=True, slots=True)
class TokenAgreement:
    """Our key-agreement key in the token; fulfils `hsmkm.dlms.general_keys.KeyAgreement`."""

    vault: Vault = field(repr=False)
    label: str
    kept: ExchangeKeys = field(repr=False)
    suite: int

    def ephemeral(self, peer: bytes, other_info: bytes) -> tuple[bytes, CipherKey]:
        """Agree by a new pair with the peer's static point; the new point, and the key."""
        with make_ephemeral_pair(self.vault, self.suite) as pair:
            key = agree_dlms(self.vault, pair, peer, other_info, SessionRole.EPHEMERAL)
            return pair.point, self.kept.keep(key)

    def from_ephemeral(self, point: bytes, other_info: bytes) -> CipherKey:
        """Agree by our static key with the peer's ephemeral point."""
        return self.static(point, other_info)

    def static(self, peer: bytes, other_info: bytes) -> CipherKey:
        """Agree by our static key with the peer's static point."""
        return self.kept.keep(agree_dlms(self.vault, self.label, peer, other_info, SessionRole.EPHEMERAL))


class StoredTransactions:
    """Numbers the transactions with one recipient; blocks are durable before their first number is used."""

    def __init__(self, party: Party, recipient: bytes) -> None:
        self._party = party
        self._recipient = recipient
        self._block: deque[int] = deque()

    def next(self) -> int:
        """Give the next number, above every earlier one."""
        if not self._block:
            with self._party.store.count() as tx:
                block = self._party.settings.dlms.counter_block
                self._block.extend(transactions.reserve(tx, self._recipient, block))
        return self._block.popleft()


def pair_identity(own: bytes, peer: bytes) -> bytes:
    """Name a pair of key-agreement keys, by their points X || Y, as the counters of static keys are kept: 16 octets."""
    return hashlib.sha256(b"hsmkm agreed pair/1" + own + peer).digest()[:IDENTITY_OCTETS]


def _agreement(party: Party, terms: Terms, kept: ExchangeKeys) -> Agreement:
    title, curve = terms.meter.hex().upper(), curve_for((terms.suite,))
    label = Slot(KEY_AGREEMENT.name, curve).name
    theirs = public_key(meter_certificate(party, title, KEY_AGREEMENT.name, terms.suite))
    own, peer = curves.encode_raw(party.vault.public_key(label)), curves.encode_raw(theirs)
    if terms.counters is None:
        raise ValueError("agreed keys take counters")
    sent, received = terms.counters(pair_identity(own, peer))
    return Agreement(
        holder=TokenAgreement(party.vault, label, kept, terms.suite),
        peer_point=peer,
        signer=TokenSigningKey(party.vault, Slot(DIGITAL_SIGNATURE.name, curve).name),
        verifier=meter_key(party, terms.meter, terms.suite),
        sent=sent,
        received=received,
        algorithms=terms.algorithms,
    )
