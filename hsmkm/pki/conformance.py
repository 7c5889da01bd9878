"""The rules of the profiles for a certificate or revocation list that exists, whoever made it.

What was asked for is not known of it: it is compared with the profile that it comes closest to, and with what it says
of itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cryptography import x509

from hsmkm.errors import HsmkmError, RefusedError
from hsmkm.pki.authority import arc_of
from hsmkm.pki.certificates import common_name, public_key, public_octets
from hsmkm.pki.lint import Plan, differences
from hsmkm.pki.profiles import POLICY_ARC, PROFILES, CertificateProfile
from hsmkm.pki.requests import texts_of
from hsmkm.pki.revocation import Revocation, list_faults, number, verify_crl
from hsmkm.pki.trust import issued


def certificate_faults(certificate: x509.Certificate, issuers: Sequence[x509.Certificate]) -> list[str]:
    """Say where a certificate fits none of the profiles; its issuer is looked for among `issuers` and itself."""
    issuer = next((one for one in (certificate, *issuers) if issued(one, certificate)), None)
    if issuer is None:
        return [_no_issuer(certificate.issuer)]
    try:
        compared = [_compared(certificate, issuer, kind) for kind in PROFILES.values()]
    except RefusedError as error:
        return [error.message]
    return min(compared, key=len)


def crl_faults(crl: x509.CertificateRevocationList, issuers: Sequence[x509.Certificate]) -> list[str]:
    """Say where a revocation list is not as ours are; its issuer is looked for among `issuers`."""
    found = [f"the extension {one.oid.dotted_string} is critical" for one in crl.extensions if one.critical]
    if x509.AuthorityKeyIdentifier.oid not in {one.oid for one in crl.extensions}:
        found.append(f"the extension {x509.AuthorityKeyIdentifier.oid.dotted_string} is missing")
    if crl.next_update_utc is not None:
        entries = [Revocation(one.serial_number, one.revocation_date_utc) for one in crl]
        found += list_faults(entries, number(crl), crl.last_update_utc, crl.next_update_utc)
    if not any(_signed(crl, one) for one in issuers):
        found.append(_no_issuer(crl.issuer))
    return found


def _no_issuer(name: x509.Name) -> str:
    return f"its issuer {common_name(name) or name.rfc4514_string()!r} is not at hand, or did not sign it"


def _compared(certificate: x509.Certificate, issuer: x509.Certificate, kind: CertificateProfile) -> list[str]:
    plan = Plan(
        profile=kind,
        subject=common_name(certificate.subject) or "",
        key=public_octets(public_key(certificate)),
        issuer=None if issuer == certificate else issuer,
        issuer_key=public_key(issuer),
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        names=tuple(_names(certificate)),
        arc=arc_of(certificate, kind) or POLICY_ARC,
    )
    return [f"as {kind.name}: {text}" for text in differences(certificate, plan)]


def _names(certificate: x509.Certificate) -> Iterator[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return
    yield from filter(None, texts_of(names.value))


def _signed(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        verify_crl(crl, issuer)
    except HsmkmError:
        return False
    return True
