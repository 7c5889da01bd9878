"""Certificates of authorities and parties: made, issued, installed, revoked, and the anchors that a party places.

An authority's keys are in its token under `ca:<profile>`; every issuance is recorded before it is signed. A party's
requests are signed by the keys they are for, in its token; the TLS key alone lies in a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.durable_file import replace_file
from hsmkm.errors import InputError, RefusedError
from hsmkm.pki import authority as authorities
from hsmkm.pki.authority import Authority
from hsmkm.pki.certificates import (
    common_name,
    fingerprint,
    public_key,
    read_certificates,
    write_certificates,
)
from hsmkm.pki.lint import Linted
from hsmkm.pki.profiles import POLICY_ARC
from hsmkm.pki.requests import build_request
from hsmkm.pki.revocation import MAX_CRL, Revocation, build_crl, is_signed_by, number, parse_crl
from hsmkm.pki.slots import P384, SLOTS, Slot, curve_of, slots_for
from hsmkm.pki.tls_key import create_tls_key, load_tls_key
from hsmkm.pki.trust import TrustStore
from hsmkm.steps.approve import check_approval, require_approval
from hsmkm.steps.issuances import record_planned
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.results import Made
from hsmkm.steps.trusted import placed, trust_in
from hsmkm.store import certificates
from hsmkm.store.certificates import CertificateRecord, Source
from hsmkm.store.store import Transaction
from hsmkm.token.signer import TokenSigner

Approved = Callable[[Transaction], None]
"""Uses up what approves an authority, in the transaction that records its certificate."""

AUTHORITY_PROFILES = ("root", "issuing", "package-issuing", "officer-issuing")
HOUSEKEEPING = Slot("package-signing")
"""The key of an authority that is for its own home; its authorities' keys sign certificates and lists, nothing else."""


def create_root(party: Party, name: str, curve: str, approval: str = "") -> Made:
    """Make a root key in the token and its self-signed certificate; RefusedError where the token has one."""
    approved = _approved(party, "root", name, curve, approval)
    _make_key(party, "root", curve)
    signer = TokenSigner(party.vault, "ca:root")
    made = authorities.create_root(signer, name, utc_now(), lambda linted: _record(party, "root", linted, approved))
    return _keep_authority(party, "root", made)


def create_issuing(party: Party, profile_name: str, name: str, curve: str, approval: str = "") -> Made:
    """Make an issuing authority under the root.

    `issuing` is for DLMS and TLS, `package-issuing` for package signing, `officer-issuing` for officers.
    """
    approved = _approved(party, profile_name, name, curve, approval)
    root = open_authority(party, "root", approved)
    label, arc = _make_key(party, profile_name, curve), party.settings.pki.policy_arc or POLICY_ARC
    made = authorities.create_issuing(root, profile_name, name, party.vault.public_key(label), utc_now(), arc)
    return _keep_authority(party, profile_name, made)


def _approved(party: Party, profile_name: str, name: str, curve: str, approval: str) -> Approved:
    """Check the approval of an authority before its key is made; it is used up where its certificate is recorded."""
    wanted = party, "ca-create", name, {"profile": profile_name, "curve": curve}, approval
    check_approval(*wanted)
    return lambda tx: require_approval(tx, *wanted)


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


def open_authority(party: Party, profile_name: str, approved: Approved | None = None) -> Authority:
    """Take an authority's key and certificate; RefusedError where this home has no such authority."""
    certificate = own_chain(party, profile_name)[0]
    signer = TokenSigner(party.vault, f"ca:{profile_name}")
    return Authority(signer, certificate, lambda linted: _record(party, profile_name, linted, approved))


def _record(party: Party, issuer: str, linted: Linted, approved: Approved | None = None) -> None:
    plan = linted.plan
    action = "pki-authority-begin" if approved is not None else "pki-issue"
    with party.store.begin(action, plan.subject, {"profile": plan.profile.name, "issuer": issuer}) as tx:
        if approved is not None:
            approved(tx)
        record_planned(tx, linted)


def name_text(name: x509.Name) -> str:
    """Write a distinguished name as the store keeps it (RFC 4514)."""
    return name.rfc4514_string()


def serial_octets(serial: int) -> bytes:
    """Write a serial number as the store keeps it: 20 octets, big endian."""
    return serial.to_bytes(20, "big")


def own_path(party: Party, name: str) -> Path:
    """Name the file of an own certificate, the leaf first, then its chain, by its slot or authority."""
    return party.home / "certificates" / f"{name}.pem"


def own_chain(party: Party, name: str) -> tuple[x509.Certificate, ...]:
    """Read an own certificate with its chain, by its slot or authority; RefusedError where it is not installed."""
    path = own_path(party, name)
    if not path.is_file():
        raise RefusedError(f"{party.settings.party.name} has no {name} certificate", hint="hsmkm pki install")
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
    """Write a request for each certificate of a party, signed by its key; makes the TLS key if there is none.

    There is none on P-384 until `hsmkm token init` made keys there.
    """
    return request_slots(party, requested_slots(party), names, out)


def request_slots(party: Party, slots: Iterable[Slot], names: tuple[str, ...], out: Path) -> list[Made]:
    """Write the requests for these slots; `names` are those of the TLS service."""
    title, name = party.settings.party.system_title, party.settings.party.name
    made = []
    for one in slots:
        subject = name if one.profile == "package-signing" else title
        path = out / f"{one.name}.csr"
        replace_file(path, _request(party, one, subject, names))
        made.append(Made(one.name, subject, path))
    with party.store.begin("pki-request", title, {"profiles": [item.profile for item in made]}):
        return made


def requested_slots(party: Party) -> list[Slot]:
    """List the slots that the settings name and the token is made for: a home from before suite 2 has none on P-384.

    An authority signs backups and checkpoints of its home, no package and no APDU, and so has one slot alone.
    """
    if party.settings.party.role == "authority":
        return [HOUSEKEEPING]
    wanted = slots_for(party.settings.party.suites)
    return [one for one in wanted if one.curve != P384 or party.vault.has_ec_key(Slot("package-signing", P384).name)]


def _request(party: Party, one: Slot, subject: str, names: tuple[str, ...]) -> bytes:
    if one.profile == "key-agreement":
        return _agreement_request(party, one, subject)
    signer: ec.EllipticCurvePrivateKey
    if one.profile == "tls":
        path = party.home / "tls" / "key.pem"
        signer = load_tls_key(path) if path.exists() else create_tls_key(path)
        return _pem(build_request(signer, one.profile, subject, names))
    if party.settings.party.role == "authority" and not party.vault.has_ec_key(one.name):
        party.vault.create_ec_key(one.name, one.curve)
    return _pem(build_request(TokenSigner(party.vault, one.name), one.profile, subject))


def _pem(built: x509.CertificateSigningRequest) -> bytes:
    return built.public_bytes(Encoding.PEM)


def _agreement_request(party: Party, one: Slot, subject: str) -> bytes:
    """Give the request that the key-agreement key signed at its birth, or make the key now; it never signs again."""
    kept = party.home / "certificates" / f"{one.name}.csr"
    if not party.vault.has_ec_key(one.name):

        def at_birth(signer: ec.EllipticCurvePrivateKey) -> None:
            replace_file(kept, _pem(build_request(signer, one.profile, subject)))

        party.vault.create_agreement_key(one.name, one.curve, at_birth)
    return kept.read_bytes()


def _own_public_key(party: Party, one: Slot) -> ec.EllipticCurvePublicKey:
    if one.profile == "tls":
        return load_tls_key(party.home / "tls" / "key.pem").public_key()
    return party.vault.public_key(one.name)


def install(party: Party, folder: Path) -> list[Made]:
    """Install the party's own certificates from a folder of `PROFILE.pem` and `PROFILE-p384.pem`, each with its chain.

    RefusedError names every one that is not of its key, not of its profile, or not under a placed anchor.
    """
    trust = trust_of(party)
    found: list[tuple[Slot, x509.Certificate, list[x509.Certificate]]] = []
    reasons: list[str] = []
    for one in SLOTS:
        path = folder / f"{one.name}.pem"
        if not path.is_file():
            continue
        leaf, *chain = read_certificates(path)
        found.append((one, leaf, chain))
        reasons += _install_reasons(party, trust, one, leaf, chain)
    if not found:
        raise InputError(
            f"no certificates in {folder}",
            hint="files are called as hsmkm pki issue writes them, PROFILE.pem or PROFILE-p384.pem",
        )
    if reasons:
        raise RefusedError("the certificates are not installed", reasons, hint="nothing was changed")
    name = party.settings.party.name
    with party.store.begin("pki-install", name, {"profiles": [item[0].name for item in found]}) as tx:
        for one, leaf, _ in found:
            keep(tx, entry(leaf, one.profile, name, Source.OWN))
    for one, leaf, chain in found:
        write_certificates(own_path(party, one.name), [leaf, *chain])
    return [Made(one.name, common_name(leaf.subject) or "", own_path(party, one.name)) for one, leaf, _ in found]


def _install_reasons(
    party: Party, trust: TrustStore, one: Slot, leaf: x509.Certificate, chain: list[x509.Certificate]
) -> Iterator[str]:
    if public_key(leaf) != _own_public_key(party, one):
        yield f"{one.name}: the certificate is not of this party's key"
    try:
        trust.check(leaf, chain, one.profile, utc_now())
    except RefusedError as error:
        yield from (f"{one.name}: {reason}" for reason in error.reasons or (error.message,))


def curve_reasons(one: Slot, leaf: x509.Certificate) -> Iterator[str]:
    """Say where a certificate lies on another curve than its slot; a TLS key may lie on either."""
    if one.profile != "tls" and curve_of(public_key(leaf)) != one.curve:
        yield f"the key is not on {one.curve}"


def place_anchor(party: Party, path: Path, approval: str = "") -> Made:
    """Place a trust anchor, an explicit act: compare the fingerprint shown with what the authority told you."""
    (anchor,) = read_certificates(path)[:1]
    if not _issued(anchor, anchor):
        raise RefusedError(
            f"{path} is not a root: it was issued by another", hint="place the root.pem of the authority"
        )
    folder = party.home / "trust"
    present = _read_if_there(folder / "anchors.pem")
    name = common_name(anchor.subject) or ""
    request = {"fingerprint": fingerprint(anchor).hex()}
    with party.store.begin("pki-trust", name, request) as tx:
        if fingerprint(anchor) not in placed(tx):
            require_approval(tx, party, "trust-anchor", name, request, approval)
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
    with path.open("rb") as file:
        crl = parse_crl(file.read(MAX_CRL + 1), str(path))
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
    with party.store.read() as tx:
        return trust_in(party, tx)
