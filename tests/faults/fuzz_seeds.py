"""Real inputs for every parser, by the functions that make them: packages, certificates, APDUs, orders, settings."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.dlms import agreement, axdr, certificates, security_setup, xdlms
from hsmkm.dlms.agreement import PublicShare
from hsmkm.dlms.broadcast import CONFIRMED
from hsmkm.dlms.certificates import ByEntity, BySerial, CertificateEntity, CertificateInfo, CertificateType
from hsmkm.dlms.channel import Form
from hsmkm.dlms.general_keys import KeyChoice
from hsmkm.dlms.security_setup import KeyTransfer
from hsmkm.dlms.types import KeyId, Mechanism, SecuritySuite
from hsmkm.packages.approval import ApprovalRequest
from hsmkm.packages.archive import DATABASE, SETTINGS, ArchivePurpose, Manifest, member, write_archive
from hsmkm.packages.container import sign_content
from hsmkm.packages.content import MeterEntry, PackageContent, Peer, Purpose, Under, WrappedKey
from hsmkm.packages.receipt import receipt_for, sign_receipt
from hsmkm.packages.send import new_header
from hsmkm.packages.strict_json import canonical
from hsmkm.packages.transport import UKM_OCTETS, WRAPPED_OCTETS, RecipientInfo, issuer_and_serial
from hsmkm.pki.requests import build_request
from hsmkm.simulator.key_pairs import SoftwareSigner, generate, point_of
from hsmkm.simulator.meter import ACTIVE_ENERGY, LONG_VALUE
from hsmkm.store.snapshot import Snapshot
from hsmkm.token import curves
from hsmkm.token.types import KeyRole
from tests.packages.conftest import NOW, UTILITY, Pki
from tests.simulator.dlms_realm import CLIENT, Realm, realm

ROOT = Path(__file__).resolve().parents[2]
GENERAL = (KeyChoice.GUEK, KeyChoice.GBEK, KeyChoice.WRAPPED, KeyChoice.ONE_PASS, KeyChoice.STATIC)


@cache
def apdus() -> tuple[bytes, ...]:
    """Record what clients and meters of every suite say, in every form of protection."""
    return tuple(dict.fromkeys((*plain(), *_apdus())))


def _apdus() -> Iterator[bytes]:
    for suite in SecuritySuite:
        made = realm(suite)
        yield from _conversation(made)
        for choice in GENERAL if suite is not SecuritySuite.SUITE_0 else GENERAL[:3]:
            yield from _conversation(made, form=Form.GENERAL, key_source=made.general_keys(choice))
    plain = realm(SecuritySuite.SUITE_1, policy=0)
    yield from _conversation(plain, mechanism=Mechanism.NONE, key=None)


def _conversation(made: Realm, **changes: object) -> Iterator[bytes]:
    wire = made.wire(**changes)
    wire.associate()
    for attribute in (ACTIVE_ENERGY, LONG_VALUE):
        wire.drive(wire.association.get(attribute))
    transfer = security_setup.encode_key_transfer([KeyTransfer(KeyId.GUEK, secrets.token_bytes(24))])
    wire.drive(wire.association.action(security_setup.key_transfer_method(), transfer))
    wire.drive(wire.association.release())
    yield from wire.seen


def plain() -> tuple[bytes, ...]:
    """Write what otherwise travels inside: proposals, and a request that may be broadcast, which asks for no answer."""
    action = xdlms.ActionRequest(1, security_setup.key_transfer_method(), axdr.octet_string(b"data")).encode()
    silent = action[:2] + bytes((action[2] & ~CONFIRMED,)) + action[3:]
    return xdlms.InitiateRequest(0x1E5D, 1024).encode(), xdlms.InitiateResponse(0x1E5D, 1024).encode(), action, silent


@cache
def data() -> tuple[bytes, ...]:
    """Write the data of every method and attribute that is read: keys, shares, certificates."""
    entity, kind = CertificateEntity.SERVER, CertificateType.KEY_AGREEMENT
    found = CertificateInfo(entity, kind, b"\x05", b"issuer", b"subject", b"")
    made = [
        security_setup.encode_key_transfer([KeyTransfer(key_id, secrets.token_bytes(24)) for key_id in KeyId]),
        certificates.encode_type(kind),
        certificates.encode_identification(ByEntity(entity, kind, CLIENT.octets)),
        certificates.encode_identification(BySerial(b"\x05", b"issuer")),
        certificates.encode_certificates([found, found]),
        axdr.double_long_unsigned(123_456),
    ]
    for suite in (SecuritySuite.SUITE_1, SecuritySuite.SUITE_2):
        key = generate(suite)
        share = PublicShare.sign(suite, KeyId.GUEK, point_of(key.public_key()), SoftwareSigner(key))
        made.append(agreement.encode_key_agreement([share]))
    return tuple(axdr.encode(one) for one in made)


@cache
def signed() -> Mapping[str, tuple[bytes, ...]]:
    """Make what is signed, and what it is signed with: packages, a receipt, a checkpoint, certificates, a CRL."""
    pki = Pki.make()
    made: dict[str, tuple[bytes, ...]] = {"package": (), "content": (), "recipient info": (), "request": ()}
    certificates = [pki.root.certificate, pki.leaf("tls", "5554490000000001", ec.generate_private_key(ec.SECP256R1()))]
    for suite in (0, 2):
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = pki.leaf("package-signing", "factory", key)
        certificates.append(leaf)
        info = _recipient_info(leaf, key.public_key())
        content = _content(suite, info, leaf.public_bytes(Encoding.DER))
        request = build_request(key, "digital-signature", "5554490000000001")
        made["recipient info"] += (info,)
        made["content"] += (content,)
        made["package"] += (sign_content(content, key, leaf, (pki.package_issuing.certificate,), NOW),)
        made["request"] += (request.public_bytes(Encoding.DER), request.public_bytes(Encoding.PEM))
    ders = [one.public_bytes(Encoding.DER) for one in certificates]
    crl = pki.crl(pki.issuing, leaf).public_bytes(Encoding.DER)
    receipt = receipt_for("0f8fad5b-d9cb-469f-a165-70867728950e", made["package"][0], ["no"], NOW)
    checkpoint = canonical({"epoch": 1, "hash": "ab" * 32, "sequence": 7, "time": "2026-05-04T12:00:00Z"})
    made |= _officers(key, leaf)
    return made | {
        "receipt": (sign_receipt(receipt, key, leaf, (), NOW), receipt.encode()),
        "checkpoint": (sign_content(checkpoint, key, leaf, (), NOW), checkpoint),
        "certificate": (*ders, b"".join(one.public_bytes(Encoding.PEM) for one in certificates)),
        "crl": (crl,),
    }


def _officers(key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate) -> Mapping[str, tuple[bytes, ...]]:
    """Make an approval and a backup."""
    asked: dict[str, object] = {"keys": ["storage"], "number": 2}
    named = ("0f8fad5b-d9cb-469f-a165-70867728950e", "utility", UTILITY.system_title, "token-rotate", "token")
    request = ApprovalRequest(*named, asked, "anna", NOW, NOW + timedelta(hours=8)).encode()
    with tempfile.TemporaryDirectory() as folder:
        sources = {name: Path(folder, name) for name in (DATABASE, SETTINGS)}
        for name, path in sources.items():
            path.write_text(name, encoding="utf-8")
        files = tuple(member(name, path) for name, path in sources.items())
        snapshot = Snapshot("0001", bytes(16), 1, 1, bytes(32))
        manifest = Manifest(ArchivePurpose.BACKUP, NOW, UTILITY, b"", snapshot, files)
        write_archive(Path(folder, "a"), sign_content(manifest.encode(), key, leaf, (), NOW), manifest, sources)
        archive = Path(folder, "a").read_bytes()
    approval = sign_content(request, key, leaf, (), NOW)
    return {"approval": (approval, request), "manifest": (manifest.encode(),), "archive": (archive,)}


def _recipient_info(certificate: x509.Certificate, key: ec.EllipticCurvePublicKey) -> bytes:
    octets = (secrets.token_bytes(UKM_OCTETS), issuer_and_serial(certificate), secrets.token_bytes(WRAPPED_OCTETS))
    return RecipientInfo(curves.encode(key), *octets).encode()


def _content(suite: int, info: bytes, certificate: bytes) -> bytes:
    octets = 40 if suite == SecuritySuite.SUITE_2 else 24
    keys = tuple(
        WrappedKey(role, secrets.token_bytes(16), secrets.token_bytes(octets), Under.PACKAGE) for role in KeyRole
    )
    entry = MeterEntry(b"MMM00001", "S1", "mm100", suite, 0, 1, 1, "active", keys=keys, certificates=(certificate,))
    header = new_header(Purpose.DELIVERY, 1, Peer("factory", "factory"), UTILITY, NOW)
    return PackageContent(header, info, (entry,)).encode()


def models() -> tuple[bytes, ...]:
    """Read the shipped meter models."""
    return tuple(path.read_bytes() for path in sorted((ROOT / "models").glob("*.toml")))


def profiles() -> tuple[bytes, ...]:
    """Read the shipped profiles of tokens."""
    return tuple(path.read_bytes() for path in sorted((ROOT / "tokens").glob("*.toml")))


def points() -> tuple[bytes, ...]:
    """Make public points as a token shows them, after their curve's parameters."""
    made = []
    for name, suite in (("P-256", SecuritySuite.SUITE_1), ("P-384", SecuritySuite.SUITE_2)):
        point = b"\x04" + point_of(generate(suite).public_key())
        made.append(curves.parameters(name) + b"\x04" + bytes((len(point),)) + point)
    return tuple(made)
