"""Two parties in one token: a factory that signs packages and a utility whose key agreement opens them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from secrets import token_bytes
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.packages.content import Peer, Purpose
from hsmkm.packages.receive import AgreementKey, Opened, Receiver, Sender, open_package
from hsmkm.packages.send import Outgoing, Package, Recipient, Signatory, build_package, new_header, outgoing
from hsmkm.pki.authority import Authority, create_issuing, create_root
from hsmkm.pki.certificates import fingerprint
from hsmkm.pki.requests import build_request, check_request
from hsmkm.pki.revocation import Revocation, build_crl
from hsmkm.pki.trust import TrustStore
from hsmkm.store.key_set import KeySet, KeySetRef, KeyState, StoredKey, authenticate
from hsmkm.store.meter import Meter
from hsmkm.token.signer import TokenSigner
from hsmkm.token.types import KeyRole, key_octets

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hsmkm.token.vault import Vault

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
UTILITY = Peer("utility", "utility", bytes.fromhex("5554490000000001"))


@dataclass
class Pki:
    """Authorities with keys in memory; everything they issue is dated `NOW`."""

    root: Authority
    issuing: Authority
    package_issuing: Authority

    @classmethod
    def make(cls) -> Pki:
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
        root = Authority(keys[0], create_root(keys[0], "Test root", NOW, _recorded), _recorded)
        below = [
            Authority(key, create_issuing(root, name, f"Test {name}", key.public_key(), NOW), _recorded)
            for name, key in (("issuing", keys[1]), ("package-issuing", keys[2]))
        ]
        return cls(root, *below)

    def leaf(self, profile: str, subject: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        """Certify a signing key that makes its own request."""
        request = check_request(build_request(key, profile, subject).public_bytes(Encoding.DER), profile)
        return (self.package_issuing if profile == "package-signing" else self.issuing).issue(request, NOW)

    def agreement(self, title: bytes, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        """Certify a key-agreement key of a token, which cannot sign a request of its own."""
        signer = ec.generate_private_key(ec.SECP256R1())
        request = build_request(signer, "key-agreement", title.hex().upper(), public_key=key)
        data = request.public_bytes(Encoding.DER)
        return self.issuing.issue(check_request(data, "key-agreement", signed_by=signer.public_key()), NOW)

    def crl(self, authority: Authority, *revoked: x509.Certificate) -> x509.CertificateRevocationList:
        entries = [Revocation(one.serial_number, NOW) for one in revoked]
        return build_crl(authority.signer, authority.certificate, entries, 1, NOW, NOW + timedelta(days=7))

    def trust(self, *revoked: x509.Certificate) -> TrustStore:
        authorities = (self.root, self.issuing, self.package_issuing)
        lists = tuple(self.crl(one, *revoked) for one in authorities)
        between = (self.issuing.certificate, self.package_issuing.certificate)
        return TrustStore((self.root.certificate,), between, lists)

    def write(self, folder: Path) -> Path:
        path = folder / "root.pem"
        path.write_bytes(self.root.certificate.public_bytes(Encoding.PEM))
        return path


def _recorded(_linted: object) -> None:
    """Take the record of a test's certificate; nobody asks for it."""


@dataclass
class Known:
    """A registry in memory."""

    senders: dict[bytes, Sender] = field(default_factory=dict)
    sequences: dict[tuple[str, str], int] = field(default_factory=dict)
    generations: dict[tuple[bytes, int, int], int] = field(default_factory=dict)
    meters: dict[bytes, Meter] = field(default_factory=dict)

    def sender(self, pinned: bytes) -> Sender | None:
        return self.senders.get(pinned)

    def last_sequence(self, sender: str, purpose: str) -> int:
        return self.sequences.get((sender, purpose), 0)

    def look_up(self, titles: Sequence[bytes]) -> None:
        """Everything is at hand."""

    def newest_generation(self, system_title: bytes, security_setup: int, client: int) -> int | None:
        return self.generations.get((system_title, security_setup, client))

    def meter(self, system_title: bytes) -> Meter | None:
        return self.meters.get(system_title)


@dataclass
class World:
    """What a test changes to see a refusal."""

    vault: Vault
    pki: Pki
    sender: Signatory
    recipient: Recipient
    receiver: Receiver
    known: Known

    def meter(self, number: int = 1, flag: str = "MMM") -> Meter:
        return Meter(flag.encode() + number.to_bytes(5, "big"), f"S{number}", "mm100", 0)

    def key_set(
        self,
        meter: Meter,
        generation: int = 1,
        values: dict[KeyRole, bytes] | None = None,
        roles: tuple[KeyRole, ...] = tuple(KeyRole),
    ) -> KeySet:
        """Make and seal a key set, of known values where they are given."""
        ref = KeySetRef(meter.system_title, 0, 1, generation)
        keys = []
        for role in roles:
            value = (values or {}).get(role) or token_bytes(key_octets(meter.suite))
            with self.vault.import_key(role, meter.suite, bytearray(value)) as key:
                keys.append(StoredKey(role, token_bytes(16), self.vault.seal(key).wrapped))
        return authenticate(self.vault, KeySet(ref, meter.suite, 1, KeyState.ACTIVE, tuple(keys)), meter)

    def out(self, number: int = 1, generation: int = 1, flag: str = "MMM") -> Outgoing:
        meter = self.meter(number, flag)
        return outgoing(meter, self.key_set(meter, generation), KeyState.ACTIVE)

    def build(self, *meters: Outgoing, purpose: Purpose = Purpose.DELIVERY, sequence: int = 1) -> Package:
        header = new_header(purpose, sequence, self.sender.peer, self.recipient.peer, NOW)
        return build_package(self.vault, self.pki.trust(), self.sender, self.recipient, header, meters)

    def open(self, data: bytes, now: datetime = NOW) -> Opened:
        return open_package(self.vault, self.known, self.receiver, data, now)


@pytest.fixture(scope="session")
def pki() -> Pki:
    return Pki.make()


@pytest.fixture
def world(vault: Vault, pki: Pki) -> World:
    vault.create_ec_key("package-signing", "P-256", "sign")
    vault.create_ec_key("key-agreement", "P-256", "derive")
    signer = TokenSigner(vault, "package-signing")
    signing = pki.leaf("package-signing", "factory", signer)
    agreement = pki.agreement(UTILITY.system_title, vault.public_key("key-agreement"))
    sender = Signatory("factory", b"", signer, signing, (pki.package_issuing.certificate,))
    known = Known(senders={fingerprint(signing): Sender("factory", "factory", b"", ("MMM",))})
    receiver = Receiver(UTILITY, (AgreementKey("key-agreement", agreement),), pki.trust())
    return World(vault, pki, sender, Recipient(UTILITY, agreement, (pki.issuing.certificate,)), receiver, known)


@pytest.fixture
def software_sender(pki: Pki) -> Signatory:
    """A factory whose signing key lies in memory: for what needs no token."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = pki.leaf("package-signing", "factory", key)
    return Signatory("factory", b"", key, certificate, (pki.package_issuing.certificate,))
