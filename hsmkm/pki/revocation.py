"""Certificate revocation lists (RFC 5280 section 5), in DER.

A list speaks only between its two dates. After `next_update` it says nothing, and whoever relies on it refuses: so a
list that an attacker holds back does harm at once and is noticed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from hsmkm.errors import Fault, InputError, IntegrityError, RefusedError
from hsmkm.pki.certificates import UNREADABLE, common_name, public_key
from hsmkm.pki.lint import MAX_SERIAL_BITS
from hsmkm.pki.profiles import HASHES, hash_for

MAX_CRL = 16 << 20


@dataclass(frozen=True, slots=True)
class Revocation:
    """One revoked certificate: its serial number, when and why."""

    serial: int
    date: datetime
    reason: x509.ReasonFlags = x509.ReasonFlags.unspecified


def build_crl(
    signer: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
    revoked: Iterable[Revocation],
    number: int,
    this_update: datetime,
    next_update: datetime,
) -> x509.CertificateRevocationList:
    """Build the list of an authority and verify it; raise RefusedError with everything that is wrong with it."""
    entries = sorted(revoked, key=lambda one: one.serial)
    begin, end = (one.astimezone(UTC).replace(microsecond=0) for one in (this_update, next_update))
    reasons = list_faults(entries, number, begin, end)
    if reasons:
        raise RefusedError("the revocation list is not acceptable", reasons)
    subject_key = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority_key = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key)
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject).last_update(begin).next_update(end)
    builder = builder.add_extension(x509.CRLNumber(number), critical=False).add_extension(authority_key, critical=False)
    for one in entries:
        builder = builder.add_revoked_certificate(_entry(one))
    crl = builder.sign(signer, hash_for(signer.curve))
    verify_crl(crl, issuer)
    return crl


def parse_crl(data: bytes, source: str = "CRL") -> x509.CertificateRevocationList:
    """Parse a list in DER; raise InputError for anything else, also for one without a number or an end."""
    if len(data) > MAX_CRL:
        raise _wrong(source, f"it is larger than {MAX_CRL} octets")
    try:
        crl = x509.load_der_x509_crl(data)
        number(crl)
        known = {x509.CRLNumber.oid, x509.AuthorityKeyIdentifier.oid}
        unknown = [one.oid.dotted_string for one in crl.extensions if one.critical and one.oid not in known]
    except (*UNREADABLE, x509.ExtensionNotFound) as error:
        raise _wrong(source, "not a revocation list in DER with a number") from error
    if unknown:
        raise _wrong(source, f"the critical extension {unknown[0]} is not understood")
    if crl.next_update_utc is None:
        raise _wrong(source, "it does not say until when it holds")
    return crl


def verify_crl(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> None:
    """Check that the issuer signed the list; raise IntegrityError."""
    if crl.issuer != issuer.subject or not is_signed_by(crl, issuer):
        raise IntegrityError(f"the revocation list was not signed by {common_name(issuer.subject)!r}")


def is_signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """Whether the signature of the list is the issuer's, with the hash of its curve."""
    key = public_key(issuer)
    try:
        used = crl.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return False
    if key.curve.name not in HASHES or used is None or used.name != hash_for(key.curve).name:
        return False
    return crl.is_signature_valid(key)


def number(crl: x509.CertificateRevocationList) -> int:
    """Return the number of the list, which rises with each one of its issuer."""
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def _entry(one: Revocation) -> x509.RevokedCertificate:
    date = one.date.astimezone(UTC).replace(microsecond=0)
    builder = x509.RevokedCertificateBuilder().serial_number(one.serial).revocation_date(date)
    if one.reason is not x509.ReasonFlags.unspecified:
        builder = builder.add_extension(x509.CRLReason(one.reason), critical=False)
    return builder.build()


def list_faults(entries: list[Revocation], number: int, begin: datetime, end: datetime) -> list[str]:
    """Say what is wrong with the entries, number and dates of a list."""
    reasons = []
    if not 0 <= number < 1 << MAX_SERIAL_BITS:
        reasons.append("the number is not a positive one of at most 20 octets")
    if begin >= end:
        reasons.append("the next update is not after this one")
    serials = [one.serial for one in entries]
    if len(set(serials)) != len(serials):
        reasons.append("a serial number occurs twice")
    if any(not 0 < serial < 1 << MAX_SERIAL_BITS for serial in serials):
        reasons.append("a serial number is not a positive one of at most 20 octets")
    if any(one.date > begin for one in entries):
        reasons.append("a revocation lies after the date of the list")
    if any(one.reason is x509.ReasonFlags.remove_from_crl for one in entries):
        reasons.append("only a delta list can take a certificate off")
    return reasons


def _wrong(source: str, text: str) -> InputError:
    return InputError("the revocation list is not acceptable", [Fault(source, 0, 0, text)])
