"""The ceremony that makes a root: what was made, on which machine and token, as a text to be signed on paper.

The transcript holds nothing secret. Everything in it that speaks of the key is read back from the token, and what
speaks of the certificate from its file, after both were made.
"""

from __future__ import annotations

import hashlib
import platform
import textwrap
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.asymmetric import ec

from hsmkm.durable_file import replace_file
from hsmkm.errors import RefusedError
from hsmkm.pki.certificates import fingerprint, public_key, read_certificates
from hsmkm.steps.certify import create_root
from hsmkm.steps.issuances import key_digest
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.results import Made

LABEL = "ca:root"
PACKAGES = ("hsmkm", "cryptography", "python-pkcs11", "cffi", "asn1crypto", "SQLAlchemy")
SIGNATURES = 3
_HEX_GROUP = 4


def create_root_with_transcript(party: Party, name: str, curve: str, path: Path, approval: str = "") -> Made:
    """Make a root as `create_root` does, and write the transcript; RefusedError where that file is there already."""
    if path.exists():
        raise RefusedError(f"{path} is there already", hint="a transcript is written once: name a new file")
    begun = utc_now()
    made = create_root(party, name, curve, approval)
    (certificate,) = read_certificates(made.path)
    text = "\n".join(_lines(party, certificate, f"{begun:%Y-%m-%d %H:%M:%S} UTC")) + "\n"
    replace_file(path, text.encode())
    digest = hashlib.sha256(text.encode()).hexdigest()
    with party.store.begin("pki-ceremony", name, {"transcript": digest}):
        return made


def _lines(party: Party, certificate: x509.Certificate, begun: str) -> Iterator[str]:
    yield "Transcript: a root certification authority"
    yield ""
    yield from _table("Ceremony", [("begun", begun), ("party", party.settings.party.name), ("actor", party.actor)])
    yield from _table("Token", _token(party))
    key = public_key(certificate)
    told = party.vault.key_attributes(LABEL)
    yield from _table("Key, as the token tells it", [("label", LABEL), ("curve", key.curve.name), *_yes_or_no(told)])
    yield from _table("Certificate", _certificate(certificate, key))
    yield from _table("Software", _software(party))
    yield "Compare the SHA-256 of the certificate with: openssl x509 -in root.pem -noout -fingerprint -sha256"
    yield ""
    yield from ("name, date, signature: " + "_" * 60 + "\n" for _ in range(SIGNATURES))


def _token(party: Party) -> list[tuple[str, str]]:
    uri = party.session.uri
    fields = ("token", "serial", "manufacturer", "model")
    return [("label" if name == "token" else name, str(getattr(uri, name))) for name in fields]


def _yes_or_no(told: dict[str, bool | None]) -> list[tuple[str, str]]:
    words = {True: "true", False: "false", None: "not stored by this token"}
    return [(name, words[value]) for name, value in told.items()]


def _certificate(certificate: x509.Certificate, key: ec.EllipticCurvePublicKey) -> list[tuple[str, str]]:
    return [
        ("subject", certificate.subject.rfc4514_string()),
        ("serial", f"{certificate.serial_number:X}"),
        ("not before", f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC"),
        ("not after", f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"),
        ("public key, SHA-256", _grouped(key_digest(key))),
        ("certificate, SHA-256", _grouped(fingerprint(certificate))),
    ]


def _software(party: Party) -> list[tuple[str, str]]:
    module = Path(party.session.module_path)
    return [
        ("system", platform.platform()),
        ("Python", platform.python_version()),
        ("OpenSSL", backend.openssl_version_text()),
        *((name, _version(name)) for name in PACKAGES),
        ("PKCS#11 module", str(module)),
        ("module, SHA-256", _grouped(hashlib.sha256(module.read_bytes()).digest())),
    ]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "from its source tree"


def _grouped(digest: bytes) -> str:
    """Write a digest in groups of four digits, as people read it aloud."""
    return " ".join(textwrap.wrap(digest.hex().upper(), _HEX_GROUP))


def _table(title: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    width = max(len(name) for name, _ in rows)
    yield title
    yield from (f"  {name:<{width}}  {value}" for name, value in rows)
    yield ""
