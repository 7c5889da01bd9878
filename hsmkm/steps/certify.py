"""Certificates of authorities and parties: made, issued, installed, revoked, and the anchors that a party places.

An authority's keys are in its token under `ca:<profile>`; every issuance is recorded before it is signed. A party's
requests are signed by the keys they are for, in its token; the TLS key alone lies in a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.errors import Fault, InputError, IntegrityError, RefusedError
from hsmkm.pki import authority as authorities
from hsmkm.pki.authority import Authority
from hsmkm.pki.certificates import (
    common_name,
    fingerprint,
    public_key,
    read_certificates,
    replace_file,
    write_certificates,
)
from hsmkm.pki.lint import Linted
from hsmkm.pki.profiles import profile
from hsmkm.pki.requests import CheckedRequest, build_request, check_request
from hsmkm.pki.revocation import MAX_CRL, Revocation, build_crl, is_signed_by, number, parse_crl
from hsmkm.pki.tls_key import create_tls_key, load_tls_key
from hsmkm.pki.trust import TrustStore
from hsmkm.steps.party import Party, utc_now
from hsmkm.store import certificates
from hsmkm.store.certificates import CertificateRecord, Issuance, Source
from hsmkm.store.store import Transaction
from hsmkm.token.signer import TokenSigner

PARTY_PROFILES = ("digital-signature", "package-signing", "key-agreement", "tls")
AUTHORITY_PROFILES = ("root", "issuing", "package-issuing")
MAX_REQUEST = 64 * 1024


@dataclass(frozen=True, slots=True)
class Made:
    """A certificate or list that was written: its profile, subject and file."""

    profile: str
    subject: str
    path: Path
    serial: str = ""


def create_root(party: Party, name: str, curve: str) -> Made:
    """Make a root key in the token and its self-signed certificate; RefusedError where the token has one."""
    _make_key(party, "root", curve)
    signer = TokenSigner(party.vault, "ca:root")
    made = authorities.create_root(signer, name, utc_now(), lambda linted: _record(party, "root", linted))
    return _keep_authority(party, "root", made)


def create_issuing(party: Party, profile_name: str, name: str, curve: str) -> Made:
    """Make an issuing authority under the root: `issuing` for DLMS and TLS, `package-issuing` for package signing."""
    root = open_authority(party, "root")
    label = _make_key(party, profile_name, curve)
    made = authorities.create_issuing(root, profile_name, name, party.vault.public_key(label), utc_now())
    return _keep_authority(party, profile_name, made)


def _make_key(party: Party, profile_name: str, curve: str) -> str:
    """Make an authority's key, or take the one that a crash left without a certificate; gives its label."""
    label = f"ca:{profile_name}"
    if own_path(party, profile_name).is_file() or not party.vault.has_ec_key(label):
        party.vault.create_ec_key(label, curve=curve, usage="sign")
    return label


def _keep_authority(party: Party, profile_name: str, made: x509.Certificate) -> Made:
    chain = [made] if profile_name == "root" else [made, *own_chain(party, "root")]
    with party.store.begin("pki-authority", common_name(made.subject) or "", {"profile": profile_name}) as tx:
        certificates.complete_issued(tx, entry(made, profile_name, party.settings.party.name, Source.OWN))
    path = own_path(party, profile_name)
    write_certificates(path, chain)
    return Made(profile_name, common_name(made.subject) or "", path, f"{made.serial_number:X}")


def open_authority(party: Party, profile_name: str) -> Authority:
    """Take an authority's key and certificate; RefusedError where this home has no such authority."""
    certificate = own_chain(party, profile_name)[0]
    signer = TokenSigner(party.vault, f"ca:{profile_name}")
    return Authority(signer, certificate, lambda linted: _record(party, profile_name, linted))


def _record(party: Party, issuer: str, linted: Linted) -> None:
    plan = linted.plan
    planned = Issuance(
        issuer=name_text(linted.certificate.issuer),
        serial=serial_octets(plan.serial),
        profile=plan.profile.name,
        subject=plan.subject,
        tbs_digest=hashlib.sha256(linted.tbs).digest(),
        not_before=plan.not_before,
        not_after=plan.not_after,
    )
    with party.store.begin("pki-issue", plan.subject, {"profile": plan.profile.name, "issuer": issuer}) as tx:
        certificates.record_issued(tx, planned)


def name_text(name: x509.Name) -> str:
    """Write a distinguished name as the store keeps it (RFC 4514)."""
    return name.rfc4514_string()


def serial_octets(serial: int) -> bytes:
    """Write a serial number as the store keeps it: 20 octets, big endian."""
    return serial.to_bytes(20, "big")


def own_path(party: Party, profile_name: str) -> Path:
    """Name the file of an own certificate, the leaf first, then its chain."""
    return party.home / "certificates" / f"{profile_name}.pem"


def own_chain(party: Party, profile_name: str) -> tuple[x509.Certificate, ...]:
    """Read an own certificate with its chain; RefusedError where it is not installed."""
    path = own_path(party, profile_name)
    if not path.is_file():
        raise RefusedError(f"{party.settings.party.name} has no {profile_name} certificate", hint="hsmkm pki install")
    return read_certificates(path)


def entry(certificate: x509.Certificate, profile_name: str, owner: str, source: Source) -> CertificateRecord:
    """Describe a certificate as the store keeps it."""
    return CertificateRecord(
        fingerprint=fingerprint(certificate),
        der=certificate.public_bytes(Encoding.DER),
        profile=profile_name,
        subject=name_text(certificate.subject),
        issuer=name_text(certificate.issuer),
        serial=serial_octets(certificate.serial_number),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        owner=owner,
        source=source,
    )


def keep(tx: Transaction, certificate: CertificateRecord) -> None:
    """Store a certificate unless it is there."""
    if certificates.get(tx, certificate.fingerprint) is None:
        certificates.add(tx, certificate)


def issue(party: Party, folder: Path, out: Path) -> list[Made]:
    """Issue a certificate for every request `PROFILE.csr` of a folder, or none if one is wrong.

    InputError names every fault of every request.
    """
    checked: list[CheckedRequest] = []
    faults: list[Fault] = []
    for path in _request_files(folder):
        try:
            checked.append(check_request(path.read_bytes()[: MAX_REQUEST + 1], path.stem, source=str(path)))
        except InputError as error:
            faults += error.faults or (Fault(str(path), 0, 0, error.message),)
    if faults:
        raise InputError(f"{len(faults)} fault(s) in the requests of {folder}", faults, "nothing was issued")
    return [_issue_one(party, request, out) for request in checked]


def _request_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.csr")) if folder.is_dir() else []
    if not found:
        raise InputError(
            f"no requests in {folder}", hint="requests are files called PROFILE.csr, see hsmkm pki request"
        )
    return found


def _issue_one(party: Party, request: CheckedRequest, out: Path) -> Made:
    issuer = open_authority(party, request.profile.issuer)
    made = issuer.issue(request, utc_now())
    with party.store.begin("pki-issued", request.subject, {"profile": request.profile.name}) as tx:
        certificates.complete_issued(tx, entry(made, request.profile.name, request.subject, Source.ISSUED))
    path = out / f"{request.profile.name}.pem"
    write_certificates(path, [made, *own_chain(party, request.profile.issuer)])
    return Made(request.profile.name, request.subject, path, f"{made.serial_number:X}")


def revoke(party: Party, path: Path, reason: str) -> Made:
    """Revoke a certificate that this authority issued; the next CRL names it. RefusedError for a stranger's."""
    certificate = read_certificates(path)[0]
    try:
        flag = x509.ReasonFlags(reason)
    except ValueError as error:
        known = ", ".join(item.value for item in x509.ReasonFlags)
        raise InputError(f"unknown reason {reason!r}", hint=f"use one of {known}") from error
    with party.store.begin("pki-revoke", common_name(certificate.subject) or "", {"reason": flag.value}) as tx:
        serial = serial_octets(certificate.serial_number)
        certificates.revoke(tx, name_text(certificate.issuer), serial, utc_now(), flag.value)
    return Made("revoked", common_name(certificate.subject) or "", path, f"{certificate.serial_number:X}")


def publish(party: Party, out: Path, days: int) -> list[Made]:
    """Write what every party needs of this PKI: root.pem, intermediates.pem, and a new CRL of each authority."""
    present = [name for name in AUTHORITY_PROFILES if own_path(party, name).is_file()]
    chains = {name: own_chain(party, name)[0] for name in present}
    if "root" not in chains:
        raise RefusedError("this home has no root authority", hint="hsmkm pki create-root")
    write_certificates(out / "root.pem", [chains["root"]])
    write_certificates(out / "intermediates.pem", [chains[name] for name in present if name != "root"])
    made = [Made("root", common_name(chains["root"].subject) or "", out / "root.pem")]
    return made + [_publish_crl(party, name, out, days) for name in present]


def _publish_crl(party: Party, profile_name: str, out: Path, days: int) -> Made:
    issuer = open_authority(party, profile_name)
    now = utc_now()
    name = name_text(issuer.certificate.subject)
    end = now + timedelta(days=days)
    with party.store.begin("pki-crl", name, {"days": days}) as tx:
        revoked = [
            Revocation(int.from_bytes(item.serial, "big"), item.revoked or now, x509.ReasonFlags(item.reason))
            for item in certificates.revoked(tx, name)
        ]
        list_number = certificates.next_crl_number(tx, name)
        crl = build_crl(issuer.signer, issuer.certificate, revoked, list_number, now, end)
        der = crl.public_bytes(Encoding.DER)
        certificates.record_crl(tx, name, list_number, (now, end), hashlib.sha256(der).digest())
    path = out / f"{profile_name}.crl"
    replace_file(path, der)
    return Made(f"crl {list_number}", common_name(issuer.certificate.subject) or "", path)


def request(party: Party, names: tuple[str, ...], out: Path) -> list[Made]:
    """Write a request for each certificate of a party, signed by its key; makes the TLS key if there is none."""
    title = party.settings.party.system_title
    made = []
    for profile_name in PARTY_PROFILES:
        subject = (
            title if profile(profile_name).subject == "title" or profile_name == "tls" else party.settings.party.name
        )
        path = out / f"{profile_name}.csr"
        replace_file(path, _request(party, profile_name, subject, names))
        made.append(Made(profile_name, subject, path))
    with party.store.begin("pki-request", title, {"profiles": list(PARTY_PROFILES)}):
        return made


def _request(party: Party, profile_name: str, subject: str, names: tuple[str, ...]) -> bytes:
    if profile_name == "key-agreement":
        return _agreement_request(party, subject)
    signer: ec.EllipticCurvePrivateKey
    if profile_name == "tls":
        path = party.home / "tls" / "key.pem"
        signer = load_tls_key(path) if path.exists() else create_tls_key(path)
        return _pem(build_request(signer, profile_name, subject, names))
    return _pem(build_request(TokenSigner(party.vault, profile_name), profile_name, subject))


def _pem(built: x509.CertificateSigningRequest) -> bytes:
    return built.public_bytes(Encoding.PEM)


def _agreement_request(party: Party, subject: str) -> bytes:
    """Give the request that the key-agreement key signed at its birth, or make the key now; it never signs again."""
    kept = party.home / "certificates" / "key-agreement.csr"
    if not party.vault.has_ec_key("key-agreement"):
        curve = {"secp256r1": "P-256", "secp384r1": "P-384"}[party.vault.public_key("package-signing").curve.name]

        def at_birth(signer: ec.EllipticCurvePrivateKey) -> None:
            replace_file(kept, _pem(build_request(signer, "key-agreement", subject)))

        party.vault.create_agreement_key("key-agreement", curve, at_birth)
    return kept.read_bytes()


def _own_public_key(party: Party, profile_name: str) -> ec.EllipticCurvePublicKey:
    if profile_name == "tls":
        return load_tls_key(party.home / "tls" / "key.pem").public_key()
    return party.vault.public_key(profile_name)


def install(party: Party, folder: Path) -> list[Made]:
    """Install the party's own certificates from a folder of `PROFILE.pem`, each with its chain.

    RefusedError names every one that is not of its key, not of its profile, or not under a placed anchor.
    """
    trust = trust_of(party)
    found: list[tuple[str, x509.Certificate, list[x509.Certificate]]] = []
    reasons: list[str] = []
    for profile_name in PARTY_PROFILES:
        path = folder / f"{profile_name}.pem"
        if not path.is_file():
            continue
        leaf, *chain = read_certificates(path)
        found.append((profile_name, leaf, chain))
        reasons += _install_reasons(party, trust, profile_name, leaf, chain)
    if not found:
        raise InputError(
            f"no certificates in {folder}", hint="files are called PROFILE.pem, as hsmkm pki issue writes them"
        )
    if reasons:
        raise RefusedError("the certificates are not installed", reasons, hint="nothing was changed")
    name = party.settings.party.name
    with party.store.begin("pki-install", name, {"profiles": [item[0] for item in found]}) as tx:
        for profile_name, leaf, _ in found:
            keep(tx, entry(leaf, profile_name, name, Source.OWN))
    for profile_name, leaf, chain in found:
        write_certificates(own_path(party, profile_name), [leaf, *chain])
    return [Made(item[0], common_name(item[1].subject) or "", own_path(party, item[0])) for item in found]


def _install_reasons(
    party: Party, trust: TrustStore, profile_name: str, leaf: x509.Certificate, chain: list[x509.Certificate]
) -> Iterator[str]:
    if public_key(leaf) != _own_public_key(party, profile_name):
        yield f"{profile_name}: the certificate is not of this party's key"
    try:
        trust.check(leaf, chain, profile_name, utc_now())
    except RefusedError as error:
        yield from (f"{profile_name}: {reason}" for reason in error.reasons or (error.message,))


def place_anchor(party: Party, path: Path) -> Made:
    """Place a trust anchor, an explicit act: compare the fingerprint shown with what the authority told you."""
    (anchor,) = read_certificates(path)[:1]
    if not _issued(anchor, anchor):
        raise RefusedError(
            f"{path} is not a root: it was issued by another", hint="place the root.pem of the authority"
        )
    folder = party.home / "trust"
    present = _read_if_there(folder / "anchors.pem")
    name = common_name(anchor.subject) or ""
    with party.store.begin("pki-trust", name, {"fingerprint": fingerprint(anchor).hex()}) as tx:
        keep(tx, entry(anchor, "root", name, Source.ANCHOR))
    write_certificates(folder / "anchors.pem", dict.fromkeys([*present, anchor]))
    return Made("root", name, folder / "anchors.pem", fingerprint(anchor).hex())


def update_trust(party: Party, folder: Path) -> list[Made]:
    """Take intermediates and CRLs of a published PKI, each verified under what is trusted already, all or none.

    What is held of other PKIs stays. RefusedError for what is not under a placed anchor, or older than what is held.
    """
    target = party.home / "trust"
    offered = _read_if_there(folder / "intermediates.pem")
    anchors = trust_of(party).anchors
    for certificate in offered:
        if not any(_issued(anchor, certificate) for anchor in anchors):
            name = common_name(certificate.subject)
            raise RefusedError(f"{name} is not under a placed anchor", hint="hsmkm pki trust")
    issuers = [*anchors, *dict.fromkeys([*_read_if_there(target / "intermediates.pem"), *offered])]
    lists = [_checked_list(path, issuers, target) for path in sorted(folder.glob("*.crl"))]
    if not offered and not lists:
        raise InputError(f"nothing is published in {folder}", hint="it holds intermediates.pem and lists called *.crl")
    made = [item for item, _ in lists]
    with party.store.begin("pki-update-trust", party.settings.party.name, {"lists": [item.subject for item in made]}):
        write_certificates(target / "intermediates.pem", issuers[len(anchors) :])
        for item, der in lists:
            replace_file(item.path, der)
    return made


def _read_if_there(path: Path) -> tuple[x509.Certificate, ...]:
    return read_certificates(path) if path.is_file() else ()


def _checked_list(path: Path, issuers: list[x509.Certificate], target: Path) -> tuple[Made, bytes]:
    """Verify a CRL; it is kept under its issuer's key identifier, so that lists of two PKIs never meet."""
    crl = parse_crl(path.read_bytes()[: MAX_CRL + 1], str(path))
    issuer = next((item for item in issuers if item.subject == crl.issuer and is_signed_by(crl, item)), None)
    if issuer is None:
        raise RefusedError(f"{path} is not signed by an authority that is trusted", hint="place its root first")
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    kept = target / "crl" / f"{identifier.hex()}.crl"
    if kept.is_file() and number(parse_crl(kept.read_bytes(), str(kept))) > number(crl):
        raise RefusedError(f"{path} is older than the list held", hint="fetch the newest list from the authority")
    return Made("crl", common_name(issuer.subject) or "", kept), crl.public_bytes(Encoding.DER)


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def trust_of(party: Party) -> TrustStore:
    """Load anchors, intermediates and CRLs; IntegrityError where the anchors' file holds one that was never placed."""
    trust = TrustStore.load(party.home / "trust")
    with party.store.read() as tx:
        placed = _placed(tx)
    if any(fingerprint(anchor) not in placed for anchor in trust.anchors):
        raise IntegrityError(
            "trust/anchors.pem holds an anchor that was never placed",
            hint="place it with hsmkm pki trust, or restore the file",
        )
    return trust


def _placed(tx: Transaction) -> set[bytes]:
    return {item.fingerprint for item in certificates.listing(tx, source=Source.ANCHOR)}
