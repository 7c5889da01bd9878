"""A recipient of key packages whose key-agreement key a test holds, so that it sees which keys a party gives away.

The keys are opened with cryptography and not with a token: ECDH, the KDF of X9.63, AES key unwrap.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from hsmkm.packages.receive import inspect_package
from hsmkm.packages.transport import parse_recipient_info, shared_info
from hsmkm.pki.requests import build_request
from hsmkm.steps import deliver
from hsmkm.steps.issue import issue
from hsmkm.steps.party import Party
from hsmkm.steps.register_party import PartyPlan, register_party
from tests.realm import Realm

NAME, TITLE = "opener", "4F50450000000099"

Keys = dict[str, bytes]


@dataclass(frozen=True)
class PackageOpener:
    """A second utility of the factory, with its private key in a file."""

    key: ec.EllipticCurvePrivateKey

    @classmethod
    def join(cls, realm: Realm) -> PackageOpener:
        """Certify a new key and register its holder with the factory."""
        key = ec.generate_private_key(ec.SECP256R1())
        requests, issued = realm.folder / "requests" / NAME, realm.folder / "certificates" / NAME
        requests.mkdir(parents=True)
        request = build_request(key, "key-agreement", TITLE)
        (requests / "key-agreement.csr").write_bytes(request.public_bytes(Encoding.PEM))
        with realm.open("authority") as party:
            issue(party, requests, issued)
        with realm.open("factory") as party:
            register_party(party, PartyPlan(NAME, "utility", (), "", "", issued))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (realm.folder / "opener.pem").write_bytes(pem)
        return cls(key)

    @classmethod
    def of(cls, realm: Realm) -> PackageOpener:
        """Find the opener that joined the realm this one is a copy of."""
        key = load_pem_private_key((realm.folder / "opener.pem").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(key)

    def open(self, path: Path) -> dict[str, Keys]:
        """Give the keys of every meter in a package, by title and role."""
        content = inspect_package(path.read_bytes()).content
        info = parse_recipient_info(content.recipient_info)
        ephemeral = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), info.point)
        agreed = self.key.exchange(ec.ECDH(), ephemeral)
        package_key = aes_key_unwrap(X963KDF(SHA256(), 32, shared_info(info.ukm)).derive(agreed), info.wrapped)
        return {
            entry.system_title.hex().upper(): {
                key.role.value: aes_key_unwrap(package_key, key.wrapped) for key in entry.keys
            }
            for entry in content.meters
        }

    def keys_in_force(self, party: Party, title: str) -> Keys:
        """Have the factory deliver one meter, and give the keys that it delivers."""
        return self.open(deliver.export(party, "delivery", NAME, (title,), None).path)[title]
