"""Reading and writing certificates, and what a certificate says about its holder.

A file of own certificates holds the leaf first and then its chain without the root, in PEM.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from binascii import b2a_base64
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID

from hsmkm.durable_file import replace_file
from hsmkm.errors import Fault, InputError, RefusedError

TITLE = re.compile(r"[0-9A-F]{16}")
MAX_NAME = 64
"""The upper bound of a common name (RFC 5280 appendix A, ub-common-name)."""

UNREADABLE = (
    ValueError,
    TypeError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,
)
"""What cryptography raises for octets that are no certificate, request or revocation list."""

# RFC 5280 section 4.1.2.2 forbids such a number; cryptography takes it for now, and warns whoever runs the program.
warnings.filterwarnings("error", "Parsed a serial number", CryptographyDeprecationWarning)

_LINE = 48
"""Octets in a line of PEM, which has 64 characters."""

MAX_FILE = 4 << 20
"""No certificate file of ours is larger; a larger one is refused before it is parsed."""


def is_title(text: str) -> bool:
    """Whether the text is a system title: 16 hex digits in capitals."""
    return TITLE.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether the text can be a common name: 1 to 64 printable characters."""
    if text.isascii():
        return 0 < len(text) <= MAX_NAME and text.isprintable()
    return len(text) <= MAX_NAME and all(unicodedata.category(char)[0] not in "CZ" or char == " " for char in text)


def common_name(name: x509.Name) -> str | None:
    """Return the common name where the name holds exactly one attribute and it is that, else None."""
    attributes = list(name)
    if len(attributes) != 1 or attributes[0].oid != NameOID.COMMON_NAME:
        return None
    value = attributes[0].value
    return value if isinstance(value, str) else None


def holder(certificate: x509.Certificate) -> str:
    """Return the holder's common name, a system title in DLMS certificates; raise RefusedError where it has none."""
    name = common_name(certificate.subject)
    if name is None:
        raise RefusedError("the certificate's subject is not exactly one common name")
    return name


def fingerprint(certificate: x509.Certificate) -> bytes:
    """Return the SHA-256 of the certificate, 32 octets."""
    return certificate.fingerprint(hashes.SHA256())


def public_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Return the certificate's key; raise RefusedError where it is no elliptic-curve key."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise RefusedError("the certificate's key is not an elliptic-curve key")
    return key


def public_octets(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return the key as SubjectPublicKeyInfo in DER, the form in which a record names it."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def pem(der: bytes) -> bytes:
    """Write a certificate in DER as PEM (RFC 7468 section 5)."""
    lines = [b2a_base64(der[start : start + _LINE]) for start in range(0, len(der), _LINE)]
    return b"-----BEGIN CERTIFICATE-----\n" + b"".join(lines) + b"-----END CERTIFICATE-----\n"


def parse_certificate(data: bytes, source: str = "certificate") -> x509.Certificate:
    """Parse one certificate in DER or PEM; raise InputError for anything else."""
    certificates = parse_certificates(data, source)
    if len(certificates) != 1:
        raise _faulty(source, f"holds {len(certificates)} certificates where one is expected")
    return certificates[0]


def parse_certificates(data: bytes, source: str = "certificates") -> tuple[x509.Certificate, ...]:
    """Parse the certificates of a PEM file, or one in DER; raise InputError for anything else."""
    if len(data) > MAX_FILE:
        raise _faulty(source, f"is larger than {MAX_FILE} octets")
    try:
        if data[:1] == b"\x30":
            certificates = [x509.load_der_x509_certificate(data)]
        else:
            certificates = x509.load_pem_x509_certificates(data)
        for one in certificates:
            _touch(one)
    except (*UNREADABLE, UnsupportedAlgorithm) as error:
        raise _faulty(source, "is not a certificate in DER or PEM") from error
    return tuple(certificates)


def _touch(certificate: x509.Certificate) -> None:
    """Read every part once: cryptography parses some of them only when they are asked for, and raises then."""
    for part in ("subject", "issuer", "extensions", "not_valid_before_utc", "not_valid_after_utc"):
        getattr(certificate, part)
    certificate.public_key()


def read_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """Read a PEM file of certificates, the leaf first where it is a party's own; raise InputError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise _faulty(str(path), f"cannot be read: {error.strerror}") from error
    return parse_certificates(data, str(path))


def write_certificates(path: Path, certificates: Iterable[x509.Certificate]) -> None:
    """Write certificates as PEM, whole or not at all; an existing file is replaced."""
    replace_file(path, b"".join(one.public_bytes(Encoding.PEM) for one in certificates))


def _faulty(source: str, text: str) -> InputError:
    fault = Fault(source, 0, 0, text)
    return InputError(f"{source} {text}", [fault], "give a file of certificates in PEM, or one certificate in DER")
