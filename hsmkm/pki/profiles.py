"""The certificate profiles: what each kind of certificate may do, who issues it and how long it lives.

KeyUsage is critical in all of them, BasicConstraints is critical and only in authorities, the key identifiers and
CertificatePolicies are not critical, ExtendedKeyUsage is only in TLS certificates (DLMS Green Book, X.509 profile;
RFC 5280 section 4.2).

Package signing has an authority and a policy of its own, so that no certificate made for a meter or a TLS service can
ever sign keys, whatever its holder claims; and officers have theirs, so that none of these ever approves anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from hsmkm.errors import InputError

POLICY_ARC = "1.2.840.113556.1.8000.2554.5619.61890.40646.18511.35729.4614308.15517292"
"""The arc of the policies unless the settings name another: the random UUID 15f3f1c2-9ec6-484f-8b91-4668a4ecc66c under
the arc that its owner opened to UUIDs cut into numbers below 2^24, so that it decodes everywhere without registration.
"""

EARLIER_ARC = "2.25.29180419528223544606359186039743759980"
"""The arc of the first authorities: the same UUID whole (ITU-T X.667), which decoders with 32-bit arcs cannot read."""

KNOWN_ARCS = (POLICY_ARC, EARLIER_ARC)

POLICY_DLMS, POLICY_TLS, POLICY_PACKAGE_SIGNING, POLICY_OFFICER = "1.1", "1.2", "1.3", "1.4"
"""What keeps the purposes apart: the ends of policy identifiers under one arc."""

SIGN = frozenset({"digital_signature"})
AGREE = frozenset({"key_agreement"})
CERTIFY = frozenset({"key_cert_sign", "crl_sign"})

KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)
"""The bits of KeyUsage by the names of `x509.KeyUsage`; encipherOnly and decipherOnly are never set."""

_YEAR = timedelta(days=365)

NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""The end of a certificate that has no well-defined one (RFC 5280 section 4.1.2.5), as devices may have it."""


@dataclass(frozen=True, slots=True)
class CertificateProfile:
    """One kind of certificate; `path_length` is None where the holder is no authority.

    `may_lack_end`: a device that nobody can reach for a renewal may have one whose validity has no end.
    """

    name: str
    issuer: str
    usage: frozenset[str]
    lifetime: timedelta
    subject: Literal["title", "name"] = "name"
    extended_usage: tuple[x509.ObjectIdentifier, ...] = ()
    policies: tuple[str, ...] = ()
    path_length: int | None = None
    may_lack_end: bool = False

    def __reduce__(self) -> tuple[Callable[[str], CertificateProfile], tuple[str]]:
        """Travel between processes as a name: each profile is one object in each of them."""
        return profile, (self.name,)

    @property
    def is_authority(self) -> bool:
        """Whether the holder certifies others."""
        return self.path_length is not None

    def policies_under(self, arc: str) -> tuple[x509.ObjectIdentifier, ...]:
        """The policies of this profile under an arc."""
        return tuple(x509.ObjectIdentifier(f"{arc}.{end}") for end in self.policies)

    def key_usage(self) -> x509.KeyUsage:
        """The KeyUsage extension with exactly the bits of this profile."""
        bits = {name: name in self.usage for name in KEY_USAGES}
        return x509.KeyUsage(**bits, encipher_only=False, decipher_only=False)


ROOT = CertificateProfile("root", "root", CERTIFY, 20 * _YEAR, path_length=1)
ISSUING = CertificateProfile("issuing", "root", CERTIFY, 10 * _YEAR, policies=(POLICY_DLMS, POLICY_TLS), path_length=0)
PACKAGE_ISSUING = CertificateProfile(
    "package-issuing", "root", CERTIFY, 10 * _YEAR, policies=(POLICY_PACKAGE_SIGNING,), path_length=0
)
OFFICER_ISSUING = CertificateProfile(
    "officer-issuing", "root", CERTIFY, 10 * _YEAR, policies=(POLICY_OFFICER,), path_length=0
)
DIGITAL_SIGNATURE = CertificateProfile(
    "digital-signature", "issuing", SIGN, 5 * _YEAR, subject="title", policies=(POLICY_DLMS,), may_lack_end=True
)
KEY_AGREEMENT = CertificateProfile(
    "key-agreement", "issuing", AGREE, 5 * _YEAR, subject="title", policies=(POLICY_DLMS,), may_lack_end=True
)
TLS = CertificateProfile(
    "tls",
    "issuing",
    SIGN | AGREE,
    timedelta(days=90),
    extended_usage=(ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    policies=(POLICY_TLS,),
)
PACKAGE_SIGNING = CertificateProfile(
    "package-signing", "package-issuing", SIGN, 2 * _YEAR, policies=(POLICY_PACKAGE_SIGNING,)
)
OFFICER = CertificateProfile("officer", "officer-issuing", SIGN, 2 * _YEAR, policies=(POLICY_OFFICER,))

_ALL = (
    *(ROOT, ISSUING, PACKAGE_ISSUING, OFFICER_ISSUING),
    *(DIGITAL_SIGNATURE, KEY_AGREEMENT, TLS, PACKAGE_SIGNING, OFFICER),
)
PROFILES = {one.name: one for one in _ALL}


def profile(name: str) -> CertificateProfile:
    """Return the profile of this name; raise InputError where there is none."""
    try:
        return PROFILES[name]
    except KeyError:
        raise InputError(f"no certificate profile is called {name!r}", hint=f"one of {', '.join(PROFILES)}") from None


HASHES: dict[str, hashes.SHA256 | hashes.SHA384] = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384()}
"""The hash that goes with each curve of suites 1 and 2; a curve that is not here is not allowed."""


def hash_for(curve: ec.EllipticCurve) -> hashes.SHA256 | hashes.SHA384:
    """Return the hash that signatures on this curve use; raise InputError for a curve outside suites 1 and 2."""
    try:
        return HASHES[curve.name]
    except KeyError:
        raise InputError(f"the curve {curve.name} is not allowed", hint="use P-256 or P-384") from None


def may_certify(issuer: ec.EllipticCurve, holder: ec.EllipticCurve) -> bool:
    """Whether an authority on one curve may certify a key on the other: a P-384 key needs a P-384 authority."""
    return issuer.name in HASHES and holder.name in HASHES and issuer.key_size >= holder.key_size
