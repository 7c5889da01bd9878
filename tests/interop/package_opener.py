"""A recipient of key packages whose key-agreement keys a test holds, so that it sees which keys a party gives away.

The keys are opened with cryptography and not with a token: ECDH, the KDF of X9.63, AES key unwrap.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
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
from hsmkm.steps.exporting import export
from hsmkm.steps.issue import issue
from hsmkm.steps.party import Party
from hsmkm.steps.register_party import PartyPlan, register_party
from tests.realm import Realm

NAME, TITLE = "opener", "4F50450000000099"
CURVES = {"key-agreement": ec.SECP256R1(), "key-agreement-p384": ec.SECP384R1()}
HASHES = {"secp256r1": SHA256(), "secp384r1": SHA384()}

Keys = dict[str, bytes]


@dataclass(frozen=True)
class PackageOpener:
    """A second utility of the factory, with a private key on each curve in files."""

    keys: tuple[ec.EllipticCurvePrivateKey, ...]

    @classmethod
    def join(cls, realm: Realm) -> PackageOpener:
        """Certify new keys and register their holder with the factory."""
        requests, issued = realm.folder / "requests" / NAME, realm.folder / "certificates" / NAME
        requests.mkdir(parents=True)
        for slot, curve in CURVES.items():
            key = ec.generate_private_key(curve)
            request = build_request(key, "key-agreement", TITLE)
            (requests / f"{slot}.csr").write_bytes(request.public_bytes(Encoding.PEM))
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            (realm.folder / f"opener-{slot}.pem").write_bytes(pem)
        with realm.open("authority") as party:
            issue(party, requests, issued)
        with realm.open("factory") as party:
            register_party(party, PartyPlan(NAME, "utility", (), "", "", issued))
        return cls.of(realm)

    @classmethod
    def of(cls, realm: Realm) -> PackageOpener:
        """Find the opener that joined the realm this one is a copy of."""
        keys = [load_pem_private_key((realm.folder / f"opener-{slot}.pem").read_bytes(), None) for slot in CURVES]
        return cls(tuple(key for key in keys if isinstance(key, ec.EllipticCurvePrivateKey)))

    def open(self, path: Path) -> dict[str, Keys]:
        """Give the keys of every meter in a package, by title and role."""
        content = inspect_package(path.read_bytes()).content
        info = parse_recipient_info(content.recipient_info)
        (key,) = [key for key in self.keys if len(info.point) == 1 + 2 * (key.key_size // 8)]
        agreed = key.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(key.curve, info.point))
        kdf = X963KDF(HASHES[key.curve.name], 32, shared_info(info.ukm))
        package_key = aes_key_unwrap(kdf.derive(agreed), info.wrapped)
        return {
            entry.system_title.hex().upper(): {
                key.role.value: aes_key_unwrap(package_key, key.wrapped) for key in entry.keys
            }
            for entry in content.meters
        }

    def keys_in_force(self, party: Party, title: str) -> Keys:
        """Have the factory deliver one meter, and give the keys that it delivers."""
        return self.open(export(party, "delivery", NAME, (title,), None).path)[title]
