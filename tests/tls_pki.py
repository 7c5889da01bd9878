"""A small PKI made for one test run: root, issuing authority, leaves of any profile, CRLs, and home folders of it."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DAY = dt.timedelta(days=1)
BOTH_SIDES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Holder:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def key_usage(*names: str) -> x509.KeyUsage:
    flags = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**(flags | dict.fromkeys(names, True)))


class TlsPki:
    """Root and issuing authority with keys in memory."""

    def __init__(self, name: str = "Test") -> None:
        self.root = self._authority(f"{name} root", None)
        self.issuing = self._authority(f"{name} issuing", self.root)

    def leaf(
        self,
        title: str,
        *,
        purposes: Sequence[x509.ObjectIdentifier] = BOTH_SIDES,
        usages: Sequence[str] = ("digital_signature", "key_agreement"),
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
        ca: bool = False,
    ) -> Holder:
        """Issue a certificate whose common name is a system title, valid for localhost and 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(title, key, self.issuing, start, end)
        builder = builder.add_extension(key_usage(*usages), critical=True)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(purposes)), critical=False)
        if ca:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return Holder(builder.sign(self.issuing.key, hashes.SHA256()), key)

    def crl(
        self, issuer: Holder, revoked: Sequence[Holder] = (), next_update: dt.datetime | None = None
    ) -> x509.CertificateRevocationList:
        end = next_update or now() + DAY
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.certificate.subject)
            .last_update(end - 10 * DAY)
            .next_update(end)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
                critical=False,
            )
        )
        for holder in revoked:
            entry = x509.RevokedCertificateBuilder(holder.certificate.serial_number, now() - DAY)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(issuer.key, hashes.SHA256())

    def home(self, folder: Path, own: Holder) -> Path:
        """Lay out the part of a home folder that TLS reads."""
        for name in ("certificates", "tls", "trust/crl"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "certificates/tls.pem").write_bytes(_pem(own) + _pem(self.issuing))
        (folder / "trust/anchors.pem").write_bytes(_pem(self.root))
        (folder / "trust/intermediates.pem").write_bytes(_pem(self.issuing))
        write_key(folder, own)
        self.write_crls(folder)
        return folder

    def write_crls(self, home: Path, revoked: Sequence[Holder] = (), next_update: dt.datetime | None = None) -> None:
        """Write the CRLs of both authorities; the issuing one revokes, and is in date until `next_update`."""
        lists = {"root": self.crl(self.root), "issuing": self.crl(self.issuing, revoked, next_update)}
        for name, revocation_list in lists.items():
            (home / "trust/crl" / f"{name}.crl").write_bytes(revocation_list.public_bytes(Encoding.DER))

    def _authority(self, name: str, issuer: Holder | None) -> Holder:
        key = ec.generate_private_key(ec.SECP256R1())
        signer = issuer.key if issuer else key
        builder = self._builder(name, key, issuer)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(key_usage("key_cert_sign", "crl_sign"), critical=True)
        return Holder(builder.sign(signer, hashes.SHA256()), key)

    def _builder(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: Holder | None,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
    ) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = issuer.key if issuer else key
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start or now() - 30 * DAY)
            .not_valid_after(end or now() + 30 * DAY)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )


def write_key(home: Path, own: Holder, mode: int = 0o600) -> None:
    """Write the TLS key with a file mode."""
    path = home / "tls/key.pem"
    path.write_bytes(own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(mode)


def _pem(holder: Holder) -> bytes:
    return holder.certificate.public_bytes(Encoding.PEM)
