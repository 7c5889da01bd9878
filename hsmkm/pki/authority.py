"""Authorities: how a certificate comes to its signature.

    encode -> parse back, without a signature -> lint -> record -> sign the same octets in the token -> verify

The record comes before the signature, so that a certificate which exists is always known with its serial number, also
after a crash between the two; a recorded one that was never signed harms nobody. In bulk whoever records encodes, and
whoever signs parses back and lints: nothing is signed that the signing process did not lint.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.pki.certificates import common_name, public_key, public_octets
from hsmkm.pki.lint import MAX_SERIAL_BITS, Linted, Plan, lint
from hsmkm.pki.profiles import NO_END, POLICY_ARC, ROOT, CertificateProfile, hash_for, profile
from hsmkm.pki.requests import CheckedRequest
from hsmkm.pki.to_be_signed import encode, unsigned, with_signature


@dataclass(frozen=True, slots=True)
class Draft:
    """A certificate to be signed, as it travels to whoever has the key: its request, serial number and TBS in DER."""

    request: CheckedRequest
    serial: int
    tbs: bytes


@dataclass(frozen=True, slots=True)
class Authority:
    """A certification key in the token with its certificate; `record` runs before each signature."""

    signer: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    record: Callable[[Linted], None]

    def issue(
        self,
        request: CheckedRequest,
        now: datetime,
        lifetime: timedelta | None = None,
        *,
        without_end: bool = False,
    ) -> x509.Certificate:
        """Issue the certificate of a checked request.

        The validity ends with the profile's lifetime, the one given or the authority's own, whichever comes first;
        `without_end` gives it no well-defined end where the profile allows that. Raises RefusedError where this
        authority does not issue the profile or the certificate does not fit it.
        """
        return _certify(self.plan(request, now, lifetime, without_end=without_end), self.signer, self.record)

    def plan(
        self,
        request: CheckedRequest,
        now: datetime,
        lifetime: timedelta | None = None,
        *,
        without_end: bool = False,
        serial: int = 0,
    ) -> Plan:
        """Say what is to be certified, as `issue` does; the serial number is a new one unless it is given."""
        kind = request.profile
        arc = _must_issue(self.certificate, kind)
        begin, end = _validity(kind, self.certificate, now, lifetime)
        return Plan(
            kind,
            request.subject,
            request.key,
            self.certificate,
            _issuer_key(self.certificate),
            serial or _serial(),
            begin,
            NO_END if without_end and kind.may_lack_end else end,
            request.names,
            arc,
        )

    def sign_drafts(self, drafts: Iterable[Draft], now: datetime, *, without_end: bool = False) -> Iterator[bytes]:
        """Check and sign drafts that were planned for this moment and are recorded; give each signature in DER.

        Raises RefusedError where a draft is not what is planned for its request, and as `sign`.
        """
        for draft in drafts:
            plan = self.plan(draft.request, now, without_end=without_end, serial=draft.serial)
            yield sign(lint(unsigned(draft.tbs, plan), plan), self.signer).signature

    def certify_authority(
        self, profile_name: str, name: str, key: ec.EllipticCurvePublicKey, now: datetime, arc: str = POLICY_ARC
    ) -> x509.Certificate:
        """Issue the certificate of an authority under this one, for a key made on the same premises.

        What that authority issues has its policies under the same arc.
        """
        kind = profile(profile_name)
        if not kind.is_authority or kind is ROOT:
            raise RefusedError(f"the profile {kind.name} is not that of an authority under a root")
        _must_issue(self.certificate, kind)
        begin, end = _validity(kind, self.certificate, now)
        issuer_key = public_key(self.certificate)
        plan = Plan(kind, name, public_octets(key), self.certificate, issuer_key, _serial(), begin, end, arc=arc)
        return _certify(plan, self.signer, self.record)


def create_root(
    signer: ec.EllipticCurvePrivateKey, name: str, now: datetime, record: Callable[[Linted], None]
) -> x509.Certificate:
    """Make the self-signed certificate of a root; it becomes an anchor only where someone places it."""
    key = signer.public_key()
    begin = _whole_seconds(now)
    plan = Plan(ROOT, name, public_octets(key), None, key, _serial(), begin, begin + ROOT.lifetime)
    return _certify(plan, signer, record)


def create_issuing(
    root: Authority,
    profile_name: str,
    name: str,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    arc: str = POLICY_ARC,
) -> x509.Certificate:
    """Make the certificate of the authority `issuing` or `package-issuing` under a root, its policies under an arc."""
    return root.certify_authority(profile_name, name, key, now, arc)


def sign(linted: Linted, signer: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Sign what was linted; raise IntegrityError where the signature does not verify under the authority's key."""
    if type(linted) is not Linted:
        raise TypeError("only what lint() made is signed")
    digest = hash_for(linted.plan.issuer_key.curve)
    tbs = linted.tbs
    signature = signer.sign(tbs, ec.ECDSA(digest))
    try:
        linted.plan.issuer_key.verify(signature, tbs, ec.ECDSA(digest))
    except InvalidSignature as error:
        raise IntegrityError(
            "the signature made does not verify under the authority's certificate",
            hint="the key in the token is not the one certified, or the token is faulty",
        ) from error
    return x509.load_der_x509_certificate(with_signature(tbs, linted.plan, signature))


def _certify(plan: Plan, signer: ec.EllipticCurvePrivateKey, record: Callable[[Linted], None]) -> x509.Certificate:
    linted = lint(unsigned(encode(plan), plan), plan)
    record(linted)
    return sign(linted, signer)


@lru_cache(maxsize=8)
def _issuer_key(issuer: x509.Certificate) -> ec.EllipticCurvePublicKey:
    return public_key(issuer)


@lru_cache(maxsize=8)
def _validity(
    kind: CertificateProfile, issuer: x509.Certificate, now: datetime, lifetime: timedelta | None = None
) -> tuple[datetime, datetime]:
    begin, last = _whole_seconds(now), issuer.not_valid_after_utc
    if not issuer.not_valid_before_utc <= begin < last:
        raise RefusedError("the authority's certificate is not valid now", hint="renew the authority first")
    return begin, min(begin + min(lifetime or kind.lifetime, kind.lifetime), last)


@lru_cache(maxsize=8)
def _must_issue(issuer: x509.Certificate, kind: CertificateProfile) -> str:
    """Refuse where the issuer's own certificate does not say that it issues this profile; gives its policies' arc."""
    wanted = profile(kind.issuer)
    limits = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    fits = limits.ca and limits.path_length == wanted.path_length and usage == wanted.key_usage()
    arc = arc_of(issuer, wanted)
    if not fits or arc is None:
        name = common_name(issuer.subject)
        raise RefusedError(f"the authority {name!r} does not issue {kind.name} certificates, {wanted.name} does")
    return arc


def arc_of(certificate: x509.Certificate, kind: CertificateProfile) -> str | None:
    """Name the arc under which a certificate has exactly the policies of a profile; None where there is none."""
    found = policies_of(certificate)
    arcs = {oid.dotted_string.removesuffix(f".{end}") for oid in found for end in kind.policies} or {POLICY_ARC}
    return next((arc for arc in arcs if frozenset(kind.policies_under(arc)) == found), None)


def policies_of(certificate: x509.Certificate) -> frozenset[x509.ObjectIdentifier]:
    """Return the policies that a certificate names; none where it has no such extension."""
    try:
        value = certificate.extensions.get_extension_for_class(x509.CertificatePolicies).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(one.policy_identifier for one in value)


def _serial() -> int:
    return secrets.randbits(MAX_SERIAL_BITS - 1) | 1 << (MAX_SERIAL_BITS - 1)


def _whole_seconds(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)
