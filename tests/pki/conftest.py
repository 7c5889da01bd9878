"""A small hierarchy made anew for each session, with keys that live in memory and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.pki.authority import Authority, create_issuing, create_root
from hsmkm.pki.lint import Linted
from hsmkm.pki.requests import build_request, check_request
from hsmkm.pki.revocation import Revocation, build_crl
from hsmkm.pki.trust import TrustStore

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)


@dataclass
class Hierarchy:
    """A root with its two issuing authorities; `now` is the date of everything in it."""

    root: Authority
    issuing: Authority
    package_issuing: Authority
    now: datetime = NOW
    recorded: list[Linted] = field(default_factory=list)

    def leaf(
        self,
        profile: str = "digital-signature",
        subject: str = "4D4D4D0000BC614E",
        names: tuple[str, ...] = (),
        now: datetime | None = None,
        curve: ec.EllipticCurve | None = None,
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(curve or ec.SECP256R1())
        request = check_request(build_request(key, profile, subject, names).public_bytes(Encoding.DER), profile)
        authority = self.package_issuing if profile == "package-signing" else self.issuing
        return authority.issue(request, now or self.now), key

    def crl(
        self, authority: Authority, *revoked: x509.Certificate, number: int = 1, now: datetime | None = None
    ) -> x509.CertificateRevocationList:
        begin = now or self.now
        entries = [Revocation(one.serial_number, begin, x509.ReasonFlags.key_compromise) for one in revoked]
        return build_crl(authority.signer, authority.certificate, entries, number, begin, begin + timedelta(days=7))

    def crls(self) -> tuple[x509.CertificateRevocationList, ...]:
        return tuple(self.crl(one) for one in (self.root, self.issuing, self.package_issuing))

    @property
    def chain(self) -> list[x509.Certificate]:
        return [self.issuing.certificate, self.package_issuing.certificate]

    def trust(self, *crls: x509.CertificateRevocationList) -> TrustStore:
        return TrustStore((self.root.certificate,), (), crls or self.crls())


def build_hierarchy(curve: ec.EllipticCurve, now: datetime = NOW) -> Hierarchy:
    recorded: list[Linted] = []
    keys = [ec.generate_private_key(curve) for _ in range(3)]
    certificate = create_root(keys[0], "Test root", now, recorded.append)
    root = Authority(keys[0], certificate, recorded.append)
    issuing, package_issuing = (
        Authority(key, create_issuing(root, name, f"Test {name}", key.public_key(), now), recorded.append)
        for name, key in (("issuing", keys[1]), ("package-issuing", keys[2]))
    )
    return Hierarchy(root, issuing, package_issuing, now, recorded)


@pytest.fixture(scope="session")
def hierarchy() -> Hierarchy:
    return build_hierarchy(ec.SECP256R1())


@pytest.fixture(scope="session")
def hierarchy_384() -> Hierarchy:
    return build_hierarchy(ec.SECP384R1())


@pytest.fixture
def make_hierarchy() -> Callable[[ec.EllipticCurve, datetime], Hierarchy]:
    return build_hierarchy
