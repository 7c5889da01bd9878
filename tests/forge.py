"""Packages as an adversary or a mistaken party makes them: by the functions that make good ones, from other inputs."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography import x509

from hsmkm.packages.container import open_container, sign_content
from hsmkm.packages.content import MeterEntry, PackageContent, PackageHeader, Peer, Purpose, Under, WrappedKey
from hsmkm.packages.send import Package, Recipient, new_header
from hsmkm.packages.strict_json import canonical
from hsmkm.packages.transport import wrap_package_key
from hsmkm.pki.certificates import common_name, read_certificates
from hsmkm.pki.slots import P256, Slot
from hsmkm.steps.deliver import signatory
from hsmkm.steps.party import Party, utc_now
from hsmkm.token.keys import KeyHandle
from hsmkm.token.types import KeyRole
from tests.database import query, tables
from tests.realm import MODELS, ROLES, TITLES, Realm

MASTERLESS = (Purpose.DISTRIBUTION,)


def peer(name: str) -> Peer:
    """Name a party of the realm as it names itself."""
    return Peer(name, ROLES[name], bytes.fromhex(TITLES[name]))


def certified(realm: Realm, name: str, curve: str = P256) -> Recipient:
    """Take any party of the realm as a recipient, registered or not."""
    path = realm.folder / "certificates" / name / f"{Slot('key-agreement', curve).name}.pem"
    leaf, *chain = read_certificates(path)
    return Recipient(peer(name), leaf, tuple(chain))


def forge(  # noqa: PLR0913 - each is something that a package may say wrongly
    party: Party,
    to: Recipient,
    *titles: str,
    purpose: Purpose = Purpose.DELIVERY,
    sequence: int = 1,
    header: Mapping[str, Any] | None = None,
    entry: Mapping[str, Any] | None = None,
    suite: int = 0,
    curve: str = P256,
) -> Package:
    """Make a package with fresh keys for these meters; `header` and `entry` replace what it would say.

    It is signed on `curve`, and agreed on that of the recipient's certificate, whatever the suite asks for.
    """
    made = new_header(purpose, sequence, signatory(party).peer, to.peer, utc_now())
    made = replace(made, **(header or {}))
    with party.vault.generate_package_key() as key:
        info = wrap_package_key(party.vault, key, to.certificate, made.ukm())
        meters = tuple(replace(_entry(party, key, title, purpose, suite), **(entry or {})) for title in titles)
    return signed(party, made, info, meters, curve)


def signed(
    party: Party, header: PackageHeader, info: bytes, meters: tuple[MeterEntry, ...], curve: str = P256
) -> Package:
    """Sign what a package says, as the party that is open."""
    return Package(header, meters, sign(party, PackageContent(header, info, meters).encode(), curve))


def sign(party: Party, content: bytes, curve: str = P256) -> bytes:
    """Sign any octets as a package of the party that is open."""
    sender = signatory(party, curve)
    return sign_content(content, sender.signer, sender.certificate, sender.chain, utc_now())


def rewritten(party: Party, package: bytes, **members: object) -> bytes:
    """Change members of a package's JSON, which its maker would refuse to write, and sign it again."""
    return sign(party, canonical(json.loads(open_container(package).content) | members))


def _entry(party: Party, package_key: KeyHandle, title: str, purpose: Purpose, suite: int) -> MeterEntry:
    keys = []
    for role in KeyRole:
        if role is KeyRole.MASTER and purpose in MASTERLESS:
            continue
        with party.vault.generate(role, suite) as key:
            wrapped = party.vault.wrap(package_key, key)
        keys.append(WrappedKey(role, secrets.token_bytes(16), wrapped, Under.PACKAGE))
    octets = bytes.fromhex(title)
    serial = str(int.from_bytes(octets[3:], "big"))
    return MeterEntry(octets, serial, MODELS[suite], suite, 0, 1, 1, "active", keys=tuple(keys))


def everything(realm: Realm, name: str) -> dict[str, list[tuple[object, ...]]]:
    """Read every row of every table of a party's store."""
    url = realm.url(name)
    return {table: sorted(query(url, f'SELECT * FROM "{table}"'), key=repr) for table in tables(url)}  # noqa: S608 - names of our own schema


def kept_list(realm: Realm, name: str, issuer: str) -> Path:
    """Find the revocation list of an authority that a party holds."""
    found = [
        path
        for path in (realm.home(name) / "trust" / "crl").iterdir()
        if common_name(x509.load_der_x509_crl(path.read_bytes()).issuer) == issuer
    ]
    assert len(found) == 1
    return found[0]
