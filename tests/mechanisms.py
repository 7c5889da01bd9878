"""Meter models of every authentication mechanism for a realm's factory, and the virtual meters that come with them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import Certificate, load_pem_x509_certificates

from hsmkm.dlms.certificates import CertificateType
from hsmkm.dlms.types import KeyId, Mechanism, SecuritySuite, SystemTitle
from hsmkm.link.client import Client
from hsmkm.pki.requests import build_request, check_request
from hsmkm.simulator.behaviour import MeterSettings
from hsmkm.simulator.key_pairs import generate
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.state import MeterState
from hsmkm.steps.certify import entry, keep, open_authority
from hsmkm.steps.communicate import associated, conversation, find_meter, initial_key_set
from hsmkm.steps.credentials import Pair
from hsmkm.steps.model import import_keys
from hsmkm.steps.party import Party
from hsmkm.steps.provision import provision
from hsmkm.store import meters
from hsmkm.store.certificates import Source
from tests.realm import Realm, title_of

MODEL = "proven"
SECRETS = {1: "lls", 3: "hls", 4: "hls", 6: "hls"}
TITLE = title_of(1)
SIGNATURE, AGREEMENT = CertificateType.DIGITAL_SIGNATURE, CertificateType.KEY_AGREEMENT
PROFILES = {SIGNATURE: "digital-signature", AGREEMENT: "key-agreement"}


@dataclass(frozen=True)
class Line:
    """A factory with a model of one mechanism, one provisioned meter, and what that meter comes with."""

    realm: Realm
    mechanism: int
    suite: int
    keys: dict[str, bytes]
    state: MeterState
    package: Path

    @contextmanager
    def meter(self, settings: MeterSettings | None = None) -> Iterator[str]:
        """Run the virtual meter and give its address."""
        with serving([Meter(self.state, settings)]) as (port,):
            yield f"127.0.0.1:{port}"


def write_model(realm: Realm, mechanism: int, suite: int, extra: str = "", *, weak: bool = True) -> Path:
    """Write a model's settings into the factory's home; `extra` holds further sections."""
    folder = realm.home("factory") / "models"
    folder.mkdir(exist_ok=True)
    path = folder / f"{MODEL}.toml"
    allowed = "true" if weak else "false"
    path.write_text(
        f'flags = ["MMM"]\nsuites = [{suite}]\n'
        f"[authentication]\nmechanism = {mechanism}\nallow_weak_digests = {allowed}\n{extra}"
    )
    return path


def initial_secret() -> bytes:
    """Make the secret that a model's meters come with."""
    return secrets.token_bytes(8)


def import_model(realm: Realm, party: Party, mechanism: int, suite: int) -> dict[str, bytes]:
    """Import random initial keys, with the secret that the mechanism takes."""
    octets = SecuritySuite(suite).key_octets
    keys = {name: secrets.token_bytes(octets) for name in ("guek", "gbek", "gak", "master")}
    if mechanism in SECRETS:
        keys[SECRETS[mechanism]] = initial_secret()
    path = realm.folder / "proven.keys"
    path.touch(0o600)
    path.write_text("".join(f"{name} = {value.hex()}\n" for name, value in keys.items()))
    import_keys(party, MODEL, suite, path)
    path.unlink()
    return keys


def set_up(
    realm: Realm, mechanism: int, suite: int, extra: str = "", policy: int | None = None, *, certified: bool = True
) -> Line:
    """Make the model, provision one meter, and give the meter its initial keys and, where it signs, certificates."""
    write_model(realm, mechanism, suite, extra)
    order = realm.folder / "order.csv"
    order.write_text(f"flag,serial,model,suite\nMMM,1,{MODEL},{suite}\n")
    with realm.open("factory") as party:
        keys = import_model(realm, party, mechanism, suite)
        (package,) = provision(party, order, "line").packages
    state = MeterState(
        SystemTitle.parse(TITLE),
        SecuritySuite(suite),
        {key_id: keys[key_id.name.lower()] for key_id in KeyId},
        version=1,
        policy=policy,
        mechanisms=frozenset({Mechanism(mechanism)}),
        password=keys.get("lls", b""),
        secret=keys.get("hls", b""),
    )
    line = Line(realm, mechanism, suite, keys, state, package)
    if suite and certified:
        certify_meter(line)
    return line


def certify_meter(line: Line, owner: str = "factory") -> None:
    """Give the meter certified keys for signature and agreement, and it and its owner the other's certificates."""
    folder = line.realm.home(owner) / "certificates"
    ending = "-p384.pem" if line.suite == SecuritySuite.SUITE_2 else ".pem"
    made = {kind: _certified(line, kind) for kind in PROFILES}
    with line.realm.open(owner) as party, party.store.begin("meter-certificate", TITLE, {}) as tx:
        for kind, certificate in made.items():
            keep(tx, entry(certificate, PROFILES[kind], TITLE, Source.PARTY))
    for kind, certificate in made.items():
        line.state.certificates.append(certificate.public_bytes(Encoding.DER))
        leaf, *chain = load_pem_x509_certificates((folder / f"{PROFILES[kind]}{ending}").read_bytes())
        line.state.certificates.append(leaf.public_bytes(Encoding.DER))
    line.state.anchors += [one.public_bytes(Encoding.DER) for one in chain]


def _certified(line: Line, kind: CertificateType) -> Certificate:
    key = line.state.key_pairs[kind] = generate(line.state.suite)
    request = build_request(key, PROFILES[kind], TITLE).public_bytes(Encoding.DER)
    with line.realm.open("authority") as party:
        checked = check_request(request, PROFILES[kind], source="meter")
        return open_authority(party, "issuing").issue(checked, datetime.now(UTC))


def moved(party: Party, address: str) -> None:
    """Have the party find the meter at another address."""
    with party.store.begin("meter-address", TITLE, {}) as tx:
        meters.update(tx, replace(meters.require(tx, bytes.fromhex(TITLE)), address=address))


@contextmanager
def under_initial_keys(party: Party, address: str) -> Iterator[Client]:
    """Associate with the meter at an address under what its model comes with."""
    meter = replace(find_meter(party, TITLE), address=address)
    with party.store.begin("meter-address", TITLE, {}) as tx:
        meters.update(tx, meter)
    with conversation(party, meter) as speaking:
        key_set = initial_key_set(party, meter, speaking.model)
        with associated(speaking, Pair.of(key_set)) as client:
            yield client
