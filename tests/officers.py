"""Officers for tests: keys in files, certificates of an authority of their own, and what they sign."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hsmkm.packages.container import sign_content
from hsmkm.pki.certificates import write_certificates
from hsmkm.pki.requests import build_request, check_request
from hsmkm.steps import certify
from hsmkm.steps.officers import add_officer
from hsmkm.steps.party import utc_now
from tests.realm import Realm


@dataclass(frozen=True)
class Person:
    """Somebody with a key and a certificate; `folder` holds them as key.pem and officer.pem, chain.pem beside."""

    name: str
    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]

    @property
    def file(self) -> Path:
        return self.folder / "officer.pem"

    def sign(self, request: bytes) -> bytes:
        """Sign a request as `hsmkm approval sign` does."""
        return sign_content(request, self.key, self.certificate, self.chain, utc_now())

    def sign_with_openssl(self, request: bytes, *extra: str) -> bytes:
        """Sign a request with OpenSSL alone."""
        (self.folder / "request.json").write_bytes(request)
        command = (
            "openssl cms -sign -cades -nosmimecap -nodetach -binary -outform DER -md sha256 -signer officer.pem "
            "-inkey key.pem -certfile chain.pem -in request.json -out request.p7m"
        )
        subprocess.run([*command.split(), *extra], cwd=self.folder, capture_output=True, check=True)
        return (self.folder / "request.p7m").read_bytes()


def certify_officers(realm: Realm, *names: str, lifetime: timedelta | None = None) -> dict[str, Person]:
    """Have the realm's authority certify a new key for each name; the authority for officers is made where needed."""
    with realm.open("authority") as party:
        if not certify.own_path(party, "officer-issuing").is_file():
            certify.create_issuing(party, "officer-issuing", "Test Officer Issuing", "P-384")
        issuer = certify.open_authority(party, "officer-issuing")
        people = {}
        for name in names:
            key = ec.generate_private_key(ec.SECP256R1())
            checked = check_request(build_request(key, "officer", name).public_bytes(Encoding.DER), "officer")
            certificate = issuer.issue(checked, utc_now(), lifetime)
            folder = realm.folder / "officers" / name
            write_certificates(folder / "officer.pem", [certificate])
            write_certificates(folder / "chain.pem", [issuer.certificate])
            (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            people[name] = Person(name, folder, key, certificate, (issuer.certificate,))
        certify.publish(party, realm.folder / "pki", 7)
    return people


def register_officers(realm: Realm, home: str, people: dict[str, Person]) -> None:
    """Let a home take the authority's lists, and register each with the role of an officer."""
    with realm.open(home) as party:
        certify.update_trust(party, realm.folder / "pki")
        for person in people.values():
            add_officer(party, person.name, ("officer",), person.file)


def set_policy(realm: Realm, home: str, **settings: str) -> None:
    """Give settings of the section policy these values, written as in TOML."""
    path = realm.home(home) / "hsmkm.toml"
    names = "|".join(settings)
    kept = [line for line in path.read_text().splitlines() if not re.match(rf"({names}) *=", line)]
    lines = "\n".join(f"{name} = {value}" for name, value in settings.items())
    path.write_text("\n".join(kept).replace("[policy]", f"[policy]\n{lines}") + "\n")
