"""Certificates and revocation lists in files, judged by the rules of our profiles, and by pkilint where it is there.

It takes no token and no database. Issuers are looked for in the files themselves, among those given, and among what the
home trusts and has as an authority.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.errors import InputError
from hsmkm.pki import pkilint
from hsmkm.pki.certificates import UNREADABLE, common_name, parse_certificates, read_certificates
from hsmkm.pki.conformance import certificate_faults, crl_faults
from hsmkm.pki.revocation import MAX_CRL, parse_crl
from hsmkm.steps.certify import AUTHORITY_PROFILES

NOTHING = "no finding"
_CRL_IN_PEM = b"-----BEGIN X509 CRL-----"
_AT_HOME = ("trust/anchors.pem", "trust/intermediates.pem", *(f"certificates/{one}.pem" for one in AUTHORITY_PROFILES))
_Subject = x509.Certificate | x509.CertificateRevocationList


@dataclass(frozen=True, slots=True)
class Judged:
    """What one linter says of one certificate or list; `is_error` where a rule is broken."""

    file: Path
    subject: str
    linter: str
    finding: str
    is_error: bool = False


def lint_files(home: Path, files: Sequence[Path], issuers: Sequence[Path]) -> list[Judged]:
    """Judge every certificate and list of the files, each once; InputError for a file that holds none."""
    placed = {one.public_bytes(Encoding.DER): (path, one) for path in reversed(files) for one in reversed(_read(path))}
    subjects = list(reversed(placed.values()))
    at_home = [home / name for name in _AT_HOME if (home / name).is_file()]
    known = [one for path in (*issuers, *at_home) for one in read_certificates(path)]
    known += [one for _, one in subjects if isinstance(one, x509.Certificate)]
    return [judged for path, one in subjects for judged in _judge(path, one, known)]


def _read(path: Path) -> list[_Subject]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CRL + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if path.suffix == ".crl" or data.lstrip().startswith(_CRL_IN_PEM):
        return [parse_crl(_crl_der(data, path), str(path))]
    found = parse_certificates(data, str(path))
    return list(found)


def _crl_der(data: bytes, path: Path) -> bytes:
    if not data.lstrip().startswith(b"-----"):
        return data
    try:
        return x509.load_pem_x509_crl(data).public_bytes(Encoding.DER)
    except UNREADABLE as error:
        raise InputError(f"{path} is not a revocation list in DER or PEM") from error


def _judge(path: Path, one: _Subject, known: Sequence[x509.Certificate]) -> Iterator[Judged]:
    if isinstance(one, x509.Certificate):
        subject, faults = one.subject, certificate_faults(one, known)
    else:
        subject, faults = one.issuer, crl_faults(one, known)
    name = common_name(subject) or subject.rfc4514_string()
    yield from (Judged(path, name, "hsmkm", text, is_error=True) for text in faults)
    if not faults:
        yield Judged(path, name, "hsmkm", NOTHING)
    if pkilint.is_installed():
        said = pkilint.findings(one)
        yield from (Judged(path, name, "pkilint", f"{item.severity}: {item.text}", item.is_error) for item in said)
        if not said:
            yield Judged(path, name, "pkilint", NOTHING)
