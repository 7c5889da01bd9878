"""Clients that must not get in: each a folder with a TLS key, a certificate and a home's trust, and why it fails."""

from __future__ import annotations

import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.link.tls import client_context
from hsmkm.pki.certificates import write_certificates
from hsmkm.pki.requests import build_request, check_request
from hsmkm.pki.revocation import build_crl
from hsmkm.steps import certify
from hsmkm.steps.party import utc_now
from hsmkm.store import certificates
from hsmkm.store.certificates import Source
from tests.field import PATIENCE, Running
from tests.realm import Realm, title_of
from tests.tls_pki import Holder, TlsPki, write_key

NOBODY = "4E4F424F00000009"
REASONS = {
    "without a certificate": "peer did not return a certificate",
    "with a meter's certificate": "not of the tls profile: no extended key usage",
    "with an expired certificate": "certificate has expired",
    "with a revoked certificate": "certificate revoked",
    "of another PKI": "unable to get local issuer certificate",
}


@dataclass(frozen=True)
class Strangers:
    """The folders by what is wrong with the client; `unregistered` is good but belongs to no party."""

    realm: Realm
    folder: Path

    def home(self, name: str) -> Path:
        return self.folder / name.replace(" ", "-")

    @property
    def unregistered(self) -> Path:
        return self.home("unregistered")

    def context(self, name: str) -> ssl.SSLContext:
        """What the stranger dials with."""
        if name in ("without a certificate", "of another PKI"):
            context = ssl.create_default_context(cafile=str(self.realm.home("utility") / "trust" / "anchors.pem"))
            if name == "of another PKI":
                home = self.home(name)
                context.load_cert_chain(home / "certificates" / "tls.pem", home / "tls" / "key.pem")
            return context
        return client_context(self.home(name))


def make_strangers(realm: Realm) -> Strangers:
    """Have the realm's authority, and another, issue what the strangers show; takes two seconds to expire one."""
    strangers = Strangers(realm, realm.folder / "strangers")
    with realm.open("authority") as party:
        issuer = certify.open_authority(party, "issuing")
        plans = {
            "with a meter's certificate": ("digital-signature", title_of(1), None),
            "with an expired certificate": ("tls", NOBODY, timedelta(seconds=1)),
            "with a revoked certificate": ("tls", NOBODY, None),
            "unregistered": ("tls", NOBODY, None),
        }
        for name, (profile, title, lifetime) in plans.items():
            key = ec.generate_private_key(ec.SECP256R1())
            request = build_request(key, profile, title, ("127.0.0.1",) if profile == "tls" else ())
            checked = check_request(request.public_bytes(Encoding.DER), profile)
            made = issuer.issue(checked, utc_now(), lifetime)
            with party.store.begin("pki-issued", title, {}) as tx:
                certificates.complete_issued(tx, certify.entry(made, profile, title, Source.ISSUED))
            _lay_out(strangers.home(name), realm, made, certify.own_chain(party, "issuing"), key)
    other = TlsPki()
    other.home(strangers.home("of another PKI"), other.leaf(NOBODY))
    revoke(realm, strangers.home("with a revoked certificate"), "utility", "concentrator")
    time.sleep(1)
    return strangers


def _lay_out(
    home: Path,
    realm: Realm,
    leaf: x509.Certificate,
    chain: tuple[x509.Certificate, ...],
    key: ec.EllipticCurvePrivateKey,
) -> None:
    shutil.copytree(realm.home("utility") / "trust", home / "trust")
    (home / "certificates").mkdir()
    (home / "tls").mkdir()
    write_certificates(home / "certificates" / "tls.pem", [leaf, *chain])
    write_key(home, Holder(leaf, key))


def revoke(realm: Realm, home: Path, *takers: str) -> None:
    """Revoke a home's TLS certificate, publish, and have parties take the new list."""
    with realm.open("authority") as party:
        certify.revoke(party, home / "certificates" / "tls.pem", "keyCompromise")
        certify.publish(party, realm.folder / "pki", 7)
    for taker in takers:
        with realm.open(taker) as party:
            certify.update_trust(party, realm.folder / "pki")


@contextmanager
def list_past_its_date(realm: Realm, name: str) -> Iterator[None]:
    """Have a party hold a list of the issuing authority that is past its date."""
    now = utc_now()
    with realm.open("authority") as party:
        issuer = certify.open_authority(party, "issuing")
        begin, end = now - timedelta(days=8), now - timedelta(days=1)
        crl = build_crl(issuer.signer, issuer.certificate, [], 1000, begin, end)
    held = {path: path.read_bytes() for path in (realm.home(name) / "trust" / "crl").glob("*.crl")}
    (path,) = (path for path, data in held.items() if x509.load_der_x509_crl(data).issuer == crl.issuer)
    path.write_bytes(crl.public_bytes(Encoding.DER))
    try:
        yield
    finally:
        path.write_bytes(held[path])


def is_let_in(context: ssl.SSLContext, port: int, request: bytes) -> bool:
    """Dial, ask, and tell whether anything came back."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as link,
        ):
            link.sendall(request)
            return bool(link.recv(1))
    except OSError:
        return False


def is_refused(running: Running, context: ssl.SSLContext, request: bytes, reason: str) -> None:
    """Check that a client is refused for this reason."""
    before = len(running.log.read_text())
    assert not is_let_in(context, running.port, request)
    running.logged(reason, before)
