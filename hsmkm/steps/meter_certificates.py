"""Certificates of meters: the one place where one is found and judged, whatever it is to be used for.

A certificate that is expired, not yet valid, revoked, of another usage, curve, title or owner, or whose chain does not
end in a placed anchor is not used: not to verify what a meter signs, not to agree on keys, not for TLS, not in a
package, and not for an import into the meter.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from cryptography import x509

from hsmkm.errors import RefusedError
from hsmkm.pki.certificates import fingerprint, parse_certificate, public_key
from hsmkm.pki.profiles import PROFILES
from hsmkm.pki.slots import curve_for, curve_of
from hsmkm.pki.trust import TrustStore
from hsmkm.steps.certify import entry, trust_of
from hsmkm.steps.party import Party, utc_now
from hsmkm.store import certificates
from hsmkm.store.certificates import CertificateRecord, CertificateState, Source
from hsmkm.store.store import Transaction

METER_PROFILES = ("digital-signature", "key-agreement", "tls")
_FOR = dict(zip(METER_PROFILES, ("digital signatures", "key agreement", "TLS"), strict=True))


def meter_certificate(party: Party, title: str, profile: str, suite: int) -> x509.Certificate:
    """Give the meter's certificate of a profile on the curve of its suite, the one in force that lasts longest.

    Raises RefusedError where it has none, and with every reason where that one is not accepted.
    """
    with party.store.read() as tx:
        listed = in_force(tx, title, profile)
    for record in listed:
        certificate = parse_certificate(record.der, f"the {profile} certificate of meter {title}")
        if curve_of(public_key(certificate)) == curve_for((suite,)):
            check_meter_certificate(trust_of(party), certificate, (), (title, profile, suite))
            return certificate
    raise RefusedError(
        f"meter {title} has no certificate for {_FOR[profile]} on {curve_for((suite,))}",
        hint=f"hsmkm meter enrol {title}",
    )


def in_force(tx: Transaction, title: str, profile: str) -> list[CertificateRecord]:
    """List the meter's certificates of a profile that were neither replaced nor removed, as far as we said."""
    listed = certificates.listing(tx, owner=title, profile=profile)
    return [record for record in listed if record.state is CertificateState.VALID]


def check_meter_certificate(
    trust: TrustStore, certificate: x509.Certificate, chain: Sequence[x509.Certificate], holder: tuple[str, str, int]
) -> None:
    """Accept a certificate for a holder: (title, profile, suite). RefusedError tells every reason against it."""
    title, profile, suite = holder
    reasons: list[str] = []
    key = public_key(certificate)
    if key.curve.name != {"P-256": "secp256r1", "P-384": "secp384r1"}[curve_for((suite,))]:
        reasons.append(f"the key is on {key.curve.name}, and suite {suite} is on {curve_for((suite,))}")
    try:
        trust.check(certificate, chain, profile, utc_now(), title)
    except RefusedError as error:
        reasons += error.reasons or (error.message,)
    if reasons:
        raise RefusedError(f"the {profile} certificate of meter {title} is not accepted", reasons)


def profile_of(certificate: x509.Certificate) -> str:
    """Name the profile that a meter's certificate is of, by its key usage; RefusedError for none."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    for name in METER_PROFILES:
        if usage == PROFILES[name].key_usage():
            return name
    raise RefusedError("the key usage of a certificate is that of no profile of meters")


def accepted_certificates(tx: Transaction, trust: TrustStore, title: str, suite: int) -> tuple[bytes, ...]:
    """Give the meter's certificates in force, in DER, for another party; those not accepted any more are left out."""
    found: list[bytes] = []
    for record in (record for profile in METER_PROFILES for record in in_force(tx, title, profile)):
        with suppress(RefusedError):
            check_meter_certificate(trust, parse_certificate(record.der), (), (title, record.profile, suite))
            found.append(record.der)
    return tuple(found)


def keep_meter_certificate(tx: Transaction, certificate: x509.Certificate, title: str, profile: str) -> None:
    """Store a meter's certificate in force, and the ones of its profile before it as replaced."""
    record = entry(certificate, profile, title, Source.METER)
    for older in in_force(tx, title, profile):
        if older.fingerprint != record.fingerprint:
            certificates.set_state(tx, older.fingerprint, CertificateState.REPLACED)
    if certificates.get(tx, record.fingerprint) is None:
        certificates.add(tx, record)
    else:
        certificates.set_state(tx, record.fingerprint, CertificateState.VALID)


def take_meter_certificate(tx: Transaction, certificate: x509.Certificate, title: str, profile: str) -> None:
    """Store a certificate that another party sent; one known already, or older than the one in force, is let be."""
    later = [item for item in in_force(tx, title, profile) if item.not_before > certificate.not_valid_before_utc]
    if not later and certificates.get(tx, fingerprint(certificate)) is None:
        keep_meter_certificate(tx, certificate, title, profile)
