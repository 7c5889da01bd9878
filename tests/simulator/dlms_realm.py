"""A meter of suite 1 or 2 with its certificates, and the clients that speak with it, in one process."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hsmkm.dlms.agreement import AlgorithmIds
from hsmkm.dlms.association import Association
from hsmkm.dlms.certificates import CertificateType
from hsmkm.dlms.channel import Traffic
from hsmkm.dlms.events import Event, Send
from hsmkm.dlms.general_keys import Agreement, GeneralKeys, KeyChoice
from hsmkm.dlms.settings import AssociationSettings
from hsmkm.dlms.types import KeyId, Mechanism, SecuritySuite, SystemTitle
from hsmkm.simulator.behaviour import MeterSettings
from hsmkm.simulator.key_pairs import SoftwareSigner, SoftwareVerifier, digest_of, generate, point_of
from hsmkm.simulator.keys import (
    SoftwareAgreement,
    SoftwareCounter,
    SoftwareKeys,
    SoftwareReceiveCounter,
    SoftwareSecret,
    SoftwareWrapping,
)
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.session import Session
from hsmkm.simulator.state import MeterState

METER, CLIENT = SystemTitle.parse("4D4D4D0000BC614E"), SystemTitle.parse("4D4D4D0000000001")
THIRD = SystemTitle.parse("4D4D4D0000000003")
NO_TAG = 1 << 158
"""Set in a serial number of 20 octets, so that none begins as a DER INTEGER does."""
SIGNATURE, AGREEMENT, TLS = (
    CertificateType.DIGITAL_SIGNATURE,
    CertificateType.KEY_AGREEMENT,
    CertificateType.TLS,
)
PASSWORD, SECRET = b"password", b"secret of HLS"
Keys = dict[CertificateType, ec.EllipticCurvePrivateKey]


class Authority:
    """A certification authority that signs whatever a test asks for."""

    def __init__(self, suite: SecuritySuite, name: str = "authority") -> None:
        self.key = generate(suite)
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._build(self.name, self.key.public_key(), None, x509.BasicConstraints(True, None))

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def issue(
        self,
        name: object,
        public: ec.EllipticCurvePublicKey,
        kind: CertificateType,
        *,
        days: tuple[int, int] = (-1, 30),
    ) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(name))])
        certificate = self._build(subject, public, kind, None, days)
        return certificate.public_bytes(Encoding.DER)

    def _build(
        self,
        subject: x509.Name,
        public: ec.EllipticCurvePublicKey,
        kind: CertificateType | None,
        constraints: x509.BasicConstraints | None,
        days: tuple[int, int] = (-1, 30),
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(public)
        builder = builder.serial_number(x509.random_serial_number() | NO_TAG)
        builder = builder.not_valid_before(now + timedelta(days[0])).not_valid_after(now + timedelta(days[1]))
        signs, agrees = kind in (SIGNATURE, TLS), kind in (AGREEMENT, TLS)
        usage = x509.KeyUsage(signs, False, False, False, agrees, kind is None, kind is None, False, False)
        builder = builder.add_extension(usage, critical=True)
        if constraints:
            builder = builder.add_extension(constraints, critical=True)
        return builder.sign(self.key, digest_of(self.key.curve))


@dataclass
class Realm:
    """One meter, the head end's client, and a third party."""

    suite: SecuritySuite
    meter: Meter
    authority: Authority
    client_keys: Keys
    third_keys: Keys
    counter: SoftwareCounter
    received: SoftwareReceiveCounter
    transactions: SoftwareCounter
    algorithms: AlgorithmIds

    @property
    def state(self) -> MeterState:
        return self.meter.state

    def key(self, key_id: KeyId) -> bytes:
        return self.state.keys[key_id]

    def meter_public(self, kind: CertificateType) -> ec.EllipticCurvePublicKey:
        return self.state.key_pairs[kind].public_key()

    def agreement(self, keys: Keys) -> Agreement:
        return Agreement(
            holder=SoftwareAgreement(self.suite, keys[AGREEMENT], self.key(KeyId.GAK)),
            peer_point=point_of(self.meter_public(AGREEMENT)),
            signer=SoftwareSigner(keys[SIGNATURE]),
            verifier=SoftwareVerifier(self.meter_public(SIGNATURE)),
            sent=SoftwareCounter(),
            received=SoftwareReceiveCounter(),
            algorithms=self.algorithms,
        )

    def general_keys(self, choice: KeyChoice) -> GeneralKeys:
        gak, kinds = self.key(KeyId.GAK), self.suite is not SecuritySuite.SUITE_0
        gbek = SoftwareKeys(self.key(KeyId.GBEK), gak)
        return GeneralKeys(
            suite=self.suite,
            choice=choice,
            guek=Traffic(SoftwareKeys(self.key(KeyId.GUEK), gak), self.counter, self.received),
            gbek=Traffic(gbek, SoftwareCounter(), SoftwareReceiveCounter(), broadcast=True),
            wrapping=SoftwareWrapping(self.key(KeyId.MASTER), gak),
            agreement=self.agreement(self.client_keys) if kinds else None,
        )

    def settings(self, **changes: object) -> AssociationSettings:
        signs = self.suite is not SecuritySuite.SUITE_0
        base = AssociationSettings(
            client_sap=1,
            server_sap=1,
            client_title=CLIENT,
            server_title=METER,
            mechanism=Mechanism.HLS_GMAC,
            suite=self.suite,
            key=SoftwareKeys(self.key(KeyId.GUEK), self.key(KeyId.GAK)),
            counter=self.counter,
            receive_counter=self.received,
            challenge=secrets.token_bytes(16),
            password=SoftwareSecret(PASSWORD),
            secret=SoftwareSecret(SECRET),
            signer=SoftwareSigner(self.client_keys[SIGNATURE]) if signs else None,
            verifier=SoftwareVerifier(self.meter_public(SIGNATURE)) if signs else None,
            allow_weak_digests=True,
            transactions=self.transactions,
        )
        return replace(base, **changes)  # type: ignore[arg-type] # each test changes fields of its own

    def wire(self, **changes: object) -> Wire:
        return Wire(self.settings(**changes), self.meter)


class Wire:
    """An association wired to a meter; tests may change what travels each way."""

    def __init__(self, settings: AssociationSettings, meter: Meter) -> None:
        self.association = Association(settings)
        self.session = Session(meter)
        self.there: Callable[[bytes], bytes] = lambda request: request
        self.back: Callable[[bytes], bytes] = lambda answer: answer
        self.seen: list[bytes] = []

    def step(self, request: bytes) -> Event:
        sent = self.there(request)
        answer = self.session.receive(sent, self.association.settings.client_sap)
        self.session.sent()
        self.seen += [sent, answer]
        return self.association.receive(self.back(answer))

    def drive(self, request: bytes) -> Event:
        event = self.step(request)
        while isinstance(event, Send):
            event = self.step(event.apdu)
        return event

    def associate(self) -> Event:
        return self.drive(self.association.associate())


def realm(suite: SecuritySuite, *, version: int = 1, policy: int | None = None, **behaviour: object) -> Realm:
    """Make a meter that knows its clients' certificates, with random keys."""
    keys = {key_id: secrets.token_bytes(suite.key_octets) for key_id in KeyId}
    mechanisms = frozenset(Mechanism) - {Mechanism.HLS_MANUFACTURER}
    state = MeterState(METER, suite, keys, version=version, policy=policy, mechanisms=mechanisms)
    state.password, state.secret = PASSWORD, SECRET
    settings = MeterSettings(**behaviour)  # type: ignore[arg-type] # each test gives fields of its own
    pairs = suite if suite is not SecuritySuite.SUITE_0 else SecuritySuite.SUITE_1
    authority = Authority(pairs)
    owners: dict[SystemTitle, Keys] = {
        title: {kind: generate(pairs) for kind in (SIGNATURE, AGREEMENT)} for title in (CLIENT, THIRD)
    }
    if suite is not SecuritySuite.SUITE_0:
        state.anchors.append(authority.der)
        state.key_pairs = {kind: generate(suite) for kind in (SIGNATURE, AGREEMENT)}
        for title, own in [*owners.items(), (METER, state.key_pairs)]:
            state.certificates += [authority.issue(title, key.public_key(), kind) for kind, key in own.items()]
    return Realm(
        suite,
        Meter(state, settings),
        authority,
        owners[CLIENT],
        owners[THIRD],
        SoftwareCounter(),
        SoftwareReceiveCounter(),
        SoftwareCounter(),
        settings.algorithms,
    )
