"""The check between the building of a certificate and the signature over it.

Every field of the certificate that would be signed is read back and compared with what was asked for. The outcome is a
`Linted`, which only `lint` can make and which alone can be signed: so nothing is signed that was not checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import InitVar, dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import SignatureAlgorithmOID

from hsmkm.errors import RefusedError
from hsmkm.pki.certificates import common_name, is_name, is_title, public_octets
from hsmkm.pki.der import Reader
from hsmkm.pki.profiles import NO_END, POLICY_ARC, CertificateProfile, hash_for, may_certify
from hsmkm.pki.requests import alternative_names

_SEQUENCE, _BIT_STRING = 0x30, 0x03

MAX_SERIAL_BITS = 159
"""A serial number is positive and at most 20 octets (RFC 5280 section 4.1.2.2), with the sign bit clear."""

SIGNATURE_OIDS = {"sha256": SignatureAlgorithmOID.ECDSA_WITH_SHA256, "sha384": SignatureAlgorithmOID.ECDSA_WITH_SHA384}


Extension: TypeAlias = tuple[bool, x509.ExtensionType]
"""An extension, and whether it is critical."""


class _Lint:
    """Whoever has the one instance of it is `lint`."""


_ONLY_LINT = _Lint()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be certified, by whom and for how long; `issuer` is None for a root, which certifies itself.

    `key` is the SubjectPublicKeyInfo in DER, and `arc` the one under which its policies stand.
    """

    profile: CertificateProfile
    subject: str
    key: bytes
    issuer: x509.Certificate | None
    issuer_key: ec.EllipticCurvePublicKey
    serial: int
    not_before: datetime
    not_after: datetime
    names: tuple[str, ...] = ()
    arc: str = POLICY_ARC

    @property
    def issuer_subject(self) -> x509.Name | None:
        """The name of the issuer; None for a root, whose issuer is its subject."""
        return None if self.issuer is None else self.issuer.subject


@dataclass(frozen=True, slots=True)
class Linted:
    """A certificate that was checked and not yet signed: `certificate` carries a dummy signature.

    Only `lint` makes one, and no copy of it can be made with another plan or certificate.
    """

    plan: Plan
    certificate: x509.Certificate
    made_by: InitVar[_Lint]

    def __post_init__(self, made_by: _Lint) -> None:
        """Raise TypeError for anybody but `lint`."""
        if made_by is not _ONLY_LINT:
            raise TypeError("only lint() makes a Linted")

    @property
    def tbs(self) -> bytes:
        """The octets that the signature covers."""
        return self.certificate.tbs_certificate_bytes


def lint(certificate: x509.Certificate, plan: Plan) -> Linted:
    """Compare every field with the plan and the profile; raise RefusedError with every difference."""
    reasons = differences(certificate, plan)
    if reasons:
        raise RefusedError(
            f"the certificate for {plan.subject!r} does not fit the profile {plan.profile.name}", reasons
        )
    return Linted(plan, certificate, _ONLY_LINT)


def differences(certificate: x509.Certificate, plan: Plan) -> list[str]:
    """Say every difference of a certificate from the plan and its profile."""
    return [
        *_names(certificate, plan),
        *_dates(certificate, plan),
        *_key(certificate, plan),
        *_extensions(certificate, plan),
    ]


def _names(certificate: x509.Certificate, plan: Plan) -> Iterator[str]:
    subject = common_name(certificate.subject)
    if certificate.version is not x509.Version.v3:
        yield "the version is not 3"
    if subject != plan.subject or not is_name(plan.subject):
        yield "the subject is not the common name asked for"
    if plan.profile.subject == "title" and not is_title(plan.subject):
        yield "the subject is not a system title"
    if certificate.issuer != (plan.issuer_subject or certificate.subject):
        yield "the issuer is not the authority's subject"
    serial = certificate.serial_number
    if serial != plan.serial or serial <= 0 or serial.bit_length() > MAX_SERIAL_BITS:
        yield "the serial number is not the planned one of 1 to 20 octets"


def _dates(certificate: x509.Certificate, plan: Plan) -> Iterator[str]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if (begin, end) != (plan.not_before, plan.not_after) or begin >= end:
        yield "the validity is not the planned one"
    if plan.not_after == NO_END and plan.profile.may_lack_end:
        return
    if end - begin > plan.profile.lifetime + timedelta(seconds=1):
        yield "the validity is longer than the profile allows"
    if plan.issuer is None:
        return
    if begin < plan.issuer.not_valid_before_utc or end > plan.issuer.not_valid_after_utc:
        yield "the validity reaches beyond that of the authority"


def _key(certificate: x509.Certificate, plan: Plan) -> Iterator[str]:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or public_octets(key) != plan.key:
        yield "the public key is not the one asked for"
    elif not may_certify(plan.issuer_key.curve, key.curve):
        yield f"an authority on {plan.issuer_key.curve.name} may not certify a key on {key.curve.name}"
    if certificate.signature_algorithm_oid != SIGNATURE_OIDS[hash_for(plan.issuer_key.curve).name]:
        yield "the signature algorithm does not go with the authority's curve"


def _extensions(certificate: x509.Certificate, plan: Plan) -> Iterator[str]:
    expected = {value.oid: (critical, value) for critical, value in expected_extensions(plan)}
    found = {one.oid: (one.critical, one.value) for one in certificate.extensions}
    for oid, (critical, value) in expected.items():
        if oid not in found:
            yield f"the extension {oid.dotted_string} is missing"
        elif found[oid] != (critical, value):
            yield f"the extension {oid.dotted_string} is not what the profile says"
    for oid in found.keys() - expected.keys():
        yield f"the extension {oid.dotted_string} has no place in the profile"


def expected_extensions(plan: Plan) -> tuple[Extension, ...]:
    """Give every extension the plan asks for, with its criticality."""
    return key_identifier(plan.key), *shared_extensions(plan)


def key_identifier(key: bytes) -> Extension:
    """Give the extension that is each certificate's own: the SHA-1 of its key (RFC 5280 section 4.2.1.2, method 1)."""
    point = Reader(key).inside(_SEQUENCE)
    point.take(_SEQUENCE)
    digest = hashlib.sha1(point.take(_BIT_STRING)[1:], usedforsecurity=False).digest()
    return False, x509.SubjectKeyIdentifier(digest)


def shared_extensions(plan: Plan) -> tuple[Extension, ...]:
    """Give the extensions that are alike for one authority, profile and list of names."""
    if plan.issuer is None:
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(plan.issuer_key)
        return _alike(plan.profile, plan.arc, plan.names, own)
    return extensions_under(plan.issuer, plan.profile, plan.arc, plan.names)


@lru_cache(maxsize=8)
def extensions_under(
    issuer: x509.Certificate, kind: CertificateProfile, arc: str, names: tuple[str, ...]
) -> tuple[Extension, ...]:
    """Do the same for an issuer, whose key is named as it names it itself (RFC 5280 section 4.2.1.1)."""
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return _alike(kind, arc, names, x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own))


def _alike(
    kind: CertificateProfile, arc: str, names: tuple[str, ...], issuer: x509.AuthorityKeyIdentifier
) -> tuple[Extension, ...]:
    found: list[Extension] = [(False, issuer), (True, kind.key_usage())]
    if kind.is_authority:
        found.append((True, x509.BasicConstraints(ca=True, path_length=kind.path_length)))
    if kind.policies:
        policies = [x509.PolicyInformation(oid, None) for oid in kind.policies_under(arc)]
        found.append((False, x509.CertificatePolicies(policies)))
    if kind.extended_usage:
        found.append((False, x509.ExtendedKeyUsage(kind.extended_usage)))
    if names:
        found.append((False, alternative_names(names)))
    return tuple(found)
