"""Authorities: how a certificate comes to its signature.

    build with a dummy signature -> parse back -> lint -> record -> sign the same octets in the token -> verify

The record comes before the signature, so that a certificate which exists is always known with its serial number, also
after a crash between the two; a recorded one that was never signed harms nobody.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from hsmkm.errors import IntegrityError, RefusedError
from hsmkm.pki.certificates import common_name, public_key
from hsmkm.pki.der import bit_string, sequence
from hsmkm.pki.lint import MAX_SERIAL_BITS, Linted, Plan, expected_extensions, lint
from hsmkm.pki.profiles import NO_END, POLICY_ARC, ROOT, CertificateProfile, hash_for, profile
from hsmkm.pki.requests import CheckedRequest, subject_name
from hsmkm.pki.stand_in import dummy_signer

_ALGORITHMS = {
    "sha256": bytes.fromhex("300a06082a8648ce3d040302"),
    "sha384": bytes.fromhex("300a06082a8648ce3d040303"),
}
"""AlgorithmIdentifier of ecdsa-with-SHA256 and ecdsa-with-SHA384, parameters absent (RFC 5758 section 3.2)."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certification key in the token with its certificate; `record` runs before each signature."""

    signer: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    record: Callable[[Linted], None]

    def issue(self, request: CheckedRequest, now: datetime, lifetime: timedelta | None = None) -> x509.Certificate:
        """Issue the certificate of a checked request.

        The validity ends with the profile's lifetime, the one given or the authority's own, whichever comes first.
        Raises RefusedError where this authority does not issue the profile or the certificate does not fit it.
        """
        arc = _must_issue(self.certificate, request.profile)
        plan = _plan(request.profile, request.subject, request.public_key, self, now, lifetime)
        plan = replace(plan, names=request.names, arc=arc)
        return _certify(plan, self.signer, self.record)

    def issue_many(
        self,
        requests: Iterable[CheckedRequest],
        now: datetime,
        record: Callable[[Sequence[Linted]], None],
        *,
        without_end: bool = False,
    ) -> list[x509.Certificate]:
        """Issue certificates of which `record` takes all at once before the first of them is signed.

        `without_end` gives them no well-defined end where the profile allows that. Raises RefusedError as `issue`.
        """
        linted = [self._lint(request, now, without_end=without_end) for request in requests]
        record(linted)
        return [sign(one, self.signer) for one in linted]

    def _lint(self, request: CheckedRequest, now: datetime, *, without_end: bool) -> Linted:
        arc = _must_issue(self.certificate, request.profile)
        plan = _plan(request.profile, request.subject, request.public_key, self, now)
        plan = replace(plan, names=request.names, arc=arc)
        if without_end and request.profile.may_lack_end:
            plan = replace(plan, not_after=NO_END)
        return lint(_build(plan), plan)

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
        return _certify(replace(_plan(kind, name, key, self, now), arc=arc), self.signer, self.record)


def create_root(
    signer: ec.EllipticCurvePrivateKey, name: str, now: datetime, record: Callable[[Linted], None]
) -> x509.Certificate:
    """Make the self-signed certificate of a root; it becomes an anchor only where someone places it."""
    key = signer.public_key()
    begin = _whole_seconds(now)
    plan = Plan(ROOT, name, key, None, key, _serial(), begin, begin + ROOT.lifetime)
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
    signature = signer.sign(linted.tbs, ec.ECDSA(digest))
    try:
        linted.plan.issuer_key.verify(signature, linted.tbs, ec.ECDSA(digest))
    except InvalidSignature as error:
        raise IntegrityError(
            "the signature made does not verify under the authority's certificate",
            hint="the key in the token is not the one certified, or the token is faulty",
        ) from error
    return x509.load_der_x509_certificate(sequence(linted.tbs, _ALGORITHMS[digest.name], bit_string(signature)))


def _certify(plan: Plan, signer: ec.EllipticCurvePrivateKey, record: Callable[[Linted], None]) -> x509.Certificate:
    linted = lint(_build(plan), plan)
    record(linted)
    return sign(linted, signer)


def _build(plan: Plan) -> x509.Certificate:
    subject = subject_name(plan.subject)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(plan.issuer_subject or subject)
        .public_key(plan.public_key)
        .serial_number(plan.serial)
        .not_valid_before(plan.not_before)
        .not_valid_after(plan.not_after)
    )
    for _oid, (critical, value) in expected_extensions(plan):
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(dummy_signer(plan.issuer_key), hash_for(plan.issuer_key.curve))


def _plan(
    kind: CertificateProfile,
    subject: str,
    key: ec.EllipticCurvePublicKey,
    authority: Authority,
    now: datetime,
    lifetime: timedelta | None = None,
) -> Plan:
    issuer, begin = authority.certificate, _whole_seconds(now)
    if not issuer.not_valid_before_utc <= begin < issuer.not_valid_after_utc:
        raise RefusedError("the authority's certificate is not valid now", hint="renew the authority first")
    end = min(begin + min(lifetime or kind.lifetime, kind.lifetime), issuer.not_valid_after_utc)
    return Plan(kind, subject, key, issuer, public_key(issuer), _serial(), begin, end)


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
