"""What a party trusts: anchors placed by hand, intermediates, and revocation lists.

A certificate is accepted for a profile when a path leads from it to an anchor, every certificate of the path is valid
now, is what its place demands, and is spoken for by a revocation list of its issuer that holds now. A missing list and
one past its date refuse. A valid path alone gives no authority: who may do what is decided by the registered parties.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.errors import InputError, RefusedError
from hsmkm.pki.authority import policies_of
from hsmkm.pki.certificates import common_name, is_title, read_certificates
from hsmkm.pki.lint import SIGNATURE_OIDS
from hsmkm.pki.profiles import HASHES, KNOWN_ARCS, ROOT, CertificateProfile, hash_for, may_certify, profile
from hsmkm.pki.revocation import MAX_CRL, is_signed_by, number, parse_crl

MAX_PATH = 4
"""The longest path: leaf, two intermediates, anchor."""

MAX_CANDIDATES = 64
"""No more certificates than these are looked at on the way to an anchor, whatever a sender puts into a chain."""

_Path = tuple[x509.Certificate, ...]

_UNDERSTOOD = frozenset(
    one.oid
    for one in (
        x509.KeyUsage,
        x509.BasicConstraints,
        x509.ExtendedKeyUsage,
        x509.CertificatePolicies,
        x509.SubjectAlternativeName,
        x509.SubjectKeyIdentifier,
        x509.AuthorityKeyIdentifier,
    )
)


_HARMLESS = frozenset(
    {x509.ReasonFlags.superseded, x509.ReasonFlags.cessation_of_operation, x509.ReasonFlags.affiliation_changed}
)
"""Why a certificate is taken back whose key nobody else came to have."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a certificate is judged, and when it signed, where that was at another time."""

    now: datetime
    signed: datetime | None = None

    def is_before(self, entry: x509.RevokedCertificate) -> bool:
        """Whether the signature was made before this harmless revocation."""
        try:
            reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
        except x509.ExtensionNotFound:
            return False
        return self.signed is not None and self.signed <= entry.revocation_date_utc and reason in _HARMLESS


@dataclass(frozen=True, slots=True)
class TrustStore:
    """Anchors, intermediates and revocation lists, as they lie in a party's trust folder.

    `arcs` are those under which policies are understood; along a path they stand under one of them.
    """

    anchors: tuple[x509.Certificate, ...]
    intermediates: tuple[x509.Certificate, ...] = ()
    crls: tuple[x509.CertificateRevocationList, ...] = ()
    arcs: tuple[str, ...] = KNOWN_ARCS

    @classmethod
    def load(cls, folder: Path, arcs: tuple[str, ...] = KNOWN_ARCS) -> TrustStore:
        """Read `anchors.pem`, `intermediates.pem` (may be absent) and `crl/*.crl`; raise InputError."""
        intermediates = folder / "intermediates.pem"
        return cls(
            read_certificates(folder / "anchors.pem"),
            read_certificates(intermediates) if intermediates.exists() else (),
            tuple(_read_crl(path) for path in sorted((folder / "crl").glob("*.crl"))),
            arcs,
        )

    def check(
        self,
        leaf: x509.Certificate,
        chain: Sequence[x509.Certificate],
        profile_name: str,
        now: datetime,
        owner: str | None = None,
        signed: datetime | None = None,
    ) -> None:
        """Accept the leaf for a profile and, where given, its owner's name; raise RefusedError with every reason.

        `chain` are certificates the other side sent: they may lead to an anchor and are never one. `signed` is when the
        leaf made a signature that is kept: its path must have been valid then. Lists count as they are now; one that
        takes a certificate back later, and not for a compromise, does not undo what was signed before.
        """
        kind = profile(profile_name)
        moment = Moment(now, signed)
        reasons = [*_leaf_reasons(leaf, kind, self.arcs, owner), *self._best_path_reasons(leaf, chain, kind, moment)]
        if reasons:
            name = common_name(leaf.subject)
            raise RefusedError(
                f"the certificate of {name!r} is not accepted for {kind.name}",
                reasons,
                hint="see the reasons; a list past its date is replaced by a new one of the authority",
            )

    def stray(self, leaf: x509.Certificate, chain: Sequence[x509.Certificate]) -> list[str]:
        """Say which certificates that came with a leaf are not, octet for octet, on the path from it to an anchor.

        No signature covers what is sent along in a container: what is not needed there could be put in or altered by
        anybody on the way, and the same content would have many forms.
        """
        left, last = list(chain), leaf
        while issuer := next((one for one in left if issued(one, last) and _is_exact(one)), None):
            left.remove(issuer)
            last = issuer
        if last is not leaf and not self._is_ours(last):
            left.append(last)
        return [f"the certificate of {common_name(one.subject)!r} that came along is not on the path" for one in left]

    def _is_ours(self, certificate: x509.Certificate) -> bool:
        known = (*self.anchors, *self.intermediates)
        by_another = certificate.subject != certificate.issuer
        return certificate in known or (by_another and any(issued(one, certificate) for one in known))

    def _best_path_reasons(
        self, leaf: x509.Certificate, chain: Sequence[x509.Certificate], kind: CertificateProfile, moment: Moment
    ) -> list[str]:
        """Return what is wrong with the path that is best to take; an authority may have been renewed meanwhile."""
        best: list[str] | None = None
        for path in self._paths(leaf, list(dict.fromkeys([*self.intermediates, *chain]))[:MAX_CANDIDATES]):
            reasons = list(self._path_reasons(path, kind, moment))
            if best is None or len(reasons) < len(best):
                best = reasons
            if not best:
                break
        return [*_validity(leaf, moment), "no path leads to a placed trust anchor"] if best is None else best

    def _paths(self, leaf: x509.Certificate, candidates: Sequence[x509.Certificate]) -> Iterator[_Path]:
        """Yield the paths from the leaf to an anchor in which every signature holds, shorter ones first."""
        paths: list[_Path] = [(leaf,)]
        for _length in range(MAX_PATH - 1):
            yield from ((*path, anchor) for path in paths for anchor in self.anchors if issued(anchor, path[-1]))
            longer = [(*path, one) for path in paths for one in candidates if one not in path and issued(one, path[-1])]
            paths = longer[:MAX_CANDIDATES]

    def _path_reasons(
        self, path: Sequence[x509.Certificate], kind: CertificateProfile, moment: Moment
    ) -> Iterator[str]:
        expected = kind
        for place, (certificate, issuer) in enumerate(pairwise(path)):
            yield from _validity(certificate, moment)
            yield from self._revocation(certificate, issuer, moment)
            expected = profile(expected.issuer)
            arcs = tuple(_arcs_of(path[0], kind, self.arcs)) or self.arcs
            yield from _authority_reasons(issuer, kind, expected, arcs, place)
            yield from _curve_reasons(certificate, issuer)
        yield from _validity(path[-1], moment)

    def _revocation(self, certificate: x509.Certificate, issuer: x509.Certificate, moment: Moment) -> Iterator[str]:
        now, name, by = moment.now, common_name(certificate.subject), common_name(issuer.subject)
        lists = [crl for crl in self.crls if crl.issuer == issuer.subject and is_signed_by(crl, issuer)]
        if not lists:
            yield f"there is no revocation list of {by!r}"
            return
        newest = max(lists, key=number)
        until = newest.next_update_utc
        if now < newest.last_update_utc:
            yield f"the revocation list of {by!r} is not valid yet"
        if until is None or now > until:
            yield f"the revocation list of {by!r} is past its date"
        entry = newest.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if entry is not None and not moment.is_before(entry):
            yield f"the certificate of {name!r} is revoked"


def _read_crl(path: Path) -> x509.CertificateRevocationList:
    try:
        with path.open("rb") as file:
            return parse_crl(file.read(MAX_CRL + 1), str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether the names fit and the issuer's key made the signature, with a hash and curve that are allowed."""
    key = issuer.public_key()
    if issuer.subject != certificate.issuer or not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    if key.curve.name not in HASHES:
        return False
    if certificate.signature_algorithm_oid != SIGNATURE_OIDS[hash_for(key.curve).name]:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _is_exact(certificate: x509.Certificate) -> bool:
    """Whether the signature, which does not cover its own encoding, is a BIT STRING without unused bits."""
    return certificate.public_bytes(Encoding.DER).endswith(b"\0" + certificate.signature)


def _validity(certificate: x509.Certificate, moment: Moment) -> Iterator[str]:
    name, now = common_name(certificate.subject), moment.signed or moment.now
    if now < certificate.not_valid_before_utc:
        yield f"the certificate of {name!r} is not valid yet"
    if now > certificate.not_valid_after_utc:
        yield f"the certificate of {name!r} has expired"


def _leaf_reasons(
    leaf: x509.Certificate, kind: CertificateProfile, arcs: Sequence[str], owner: str | None
) -> Iterator[str]:
    name = common_name(leaf.subject)
    if name is None:
        yield "the subject is not exactly one common name"
    if kind.subject == "title" and not is_title(name or ""):
        yield f"the subject {name!r} is not a system title"
    if owner is not None and name != owner:
        yield f"the certificate belongs to {name!r} and not to {owner!r}"
    yield from _usage_reasons(leaf, kind, arcs)


def _arcs_of(certificate: x509.Certificate, kind: CertificateProfile, arcs: Sequence[str]) -> Iterator[str]:
    """Yield the arcs under which a certificate has the policies of a profile."""
    found = policies_of(certificate)
    return (arc for arc in arcs if frozenset(kind.policies_under(arc)) <= found)


def _usage_reasons(certificate: x509.Certificate, kind: CertificateProfile, arcs: Sequence[str]) -> Iterator[str]:
    """Compare key usage, extended usage, policies and the place in the hierarchy with the profile."""
    name = common_name(certificate.subject)
    try:
        extensions = {one.oid: one for one in certificate.extensions}
    except (ValueError, x509.DuplicateExtension):
        yield f"the extensions of the certificate of {name!r} cannot be read"
        return
    if any(one.critical and one.oid not in _UNDERSTOOD for one in extensions.values()):
        yield f"the certificate of {name!r} has a critical extension that is not understood"
    usage = extensions.get(x509.KeyUsage.oid)
    if usage is None or usage.value != kind.key_usage():
        yield f"the key usage of the certificate of {name!r} is not that of {kind.name}"
    extended = extensions.get(x509.ExtendedKeyUsage.oid)
    if (set() if extended is None else set(extended.value)) != set(kind.extended_usage):
        yield f"the extended key usage of the certificate of {name!r} is not that of {kind.name}"
    if not any(_arcs_of(certificate, kind, arcs)):
        yield f"the certificate of {name!r} lacks the policy of {kind.name}"
    constraints = extensions.get(x509.BasicConstraints.oid)
    if (constraints is not None and constraints.value.ca) != kind.is_authority:
        yield f"the certificate of {name!r} is {'not ' if kind.is_authority else ''}that of an authority"


def _authority_reasons(
    issuer: x509.Certificate, leaf: CertificateProfile, expected: CertificateProfile, arcs: Sequence[str], below: int
) -> Iterator[str]:
    """Say what keeps the issuer from certifying; `below` counts the authorities between it and the leaf."""
    name = common_name(issuer.subject)
    constraints = _constraints(issuer)
    if constraints is not None and constraints.path_length is not None and constraints.path_length < below:
        yield f"the path under {name!r} is longer than it allows"
    yield from _usage_reasons(issuer, expected, arcs)
    if expected is not ROOT and not any(_arcs_of(issuer, leaf, arcs)):
        yield f"the certificate of {name!r} lacks the policy of {leaf.name}"


def _curve_reasons(certificate: x509.Certificate, issuer: x509.Certificate) -> Iterator[str]:
    key, by = certificate.public_key(), issuer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in HASHES:
        yield f"the key of {common_name(certificate.subject)!r} is neither on P-256 nor on P-384"
    elif isinstance(by, ec.EllipticCurvePublicKey) and not may_certify(by.curve, key.curve):
        yield f"a key on {key.curve.name} is certified by one on {by.curve.name}"


def _constraints(certificate: x509.Certificate) -> x509.BasicConstraints | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return None
