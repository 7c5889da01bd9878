"""Mechanisms, suites, forms and key agreement of our client against the independent meter on gurux-dlms."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from hsmkm.dlms import agreement, ciphering, security_setup
from hsmkm.dlms.agreement import GBCS_PREFIX, AlgorithmIds, PublicShare
from hsmkm.dlms.association import Association
from hsmkm.dlms.channel import Form
from hsmkm.dlms.general import Header
from hsmkm.dlms.security_setup import KeyTransfer, Method
from hsmkm.dlms.settings import AssociationSettings
from hsmkm.dlms.types import AttributeRef, KeyId, LogicalName, Mechanism, SecuritySuite, SystemTitle
from hsmkm.errors import IntegrityError
from hsmkm.link.client import Client, MeterRefusedError
from hsmkm.link.tcp import TcpLink
from hsmkm.simulator.key_pairs import SoftwareSigner, SoftwareVerifier, derive, generate, point_of, public_of
from hsmkm.simulator.keys import (
    SoftwareCounter,
    SoftwareDedicatedKey,
    SoftwareKeys,
    SoftwareReceiveCounter,
    SoftwareSecret,
)

pytestmark = pytest.mark.slow

StartMeter = Callable[..., int]

METER, CLIENT = SystemTitle.parse("4D4D4D0000BC614E"), SystemTitle.parse("4D4D4D0000000001")
REGISTER = AttributeRef(3, LogicalName.parse("1.0.1.8.0.255"), 2)
SUITE_1 = SecuritySuite.SUITE_1
DIGESTS = [Mechanism.HLS_MD5, Mechanism.HLS_SHA1, Mechanism.HLS_SHA256]
SECRET = b"12345678"


class Party:
    """One client with keys of a suite, and the signing keys of both sides on P-256."""

    def __init__(self, folder: Path, suite: SecuritySuite) -> None:
        self.suite = suite
        self.keys = {key_id: secrets.token_bytes(suite.key_octets) for key_id in KeyId}
        self.client, self.meter = generate(SUITE_1), generate(SUITE_1)
        self.counter, self.received = SoftwareCounter(), SoftwareReceiveCounter()
        self.files = folder / "server.pem", folder / "client.pem"
        form = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        self.files[0].write_bytes(self.meter.private_bytes(*form))
        self.files[1].write_bytes(
            self.client.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )

    @property
    def options(self) -> tuple[str, ...]:
        names = {KeyId.GUEK: "guek", KeyId.GBEK: "gbek", KeyId.GAK: "gak", KeyId.MASTER: "kek"}
        keys = [text for key_id, name in names.items() for text in (f"--{name}", self.keys[key_id].hex())]
        signing = ("--server-sign-key", str(self.files[0]), "--client-sign-pub", str(self.files[1]))
        return ("--suite", str(int(self.suite)), *signing, *keys)

    def cipher(self) -> SoftwareKeys:
        return SoftwareKeys(self.keys[KeyId.GUEK], self.keys[KeyId.GAK])

    def settings(self, **changes: object) -> AssociationSettings:
        made = AssociationSettings(
            client_sap=1,
            server_sap=1,
            client_title=CLIENT,
            server_title=METER,
            mechanism=Mechanism.HLS_GMAC,
            suite=self.suite,
            key=self.cipher(),
            counter=self.counter,
            receive_counter=self.received,
            challenge=secrets.token_bytes(16),
            secret=SoftwareSecret(SECRET),
            signer=SoftwareSigner(self.client),
            verifier=SoftwareVerifier(self.meter.public_key()),
            allow_weak_digests=True,
        )
        return replace(made, **changes)  # type: ignore[arg-type] # each test changes fields of its own

    @contextmanager
    def associated(self, port: int, **changes: object) -> Iterator[Client]:
        with TcpLink("127.0.0.1", port, 20) as link:
            client = Client(link, Association(self.settings(**changes)))
            client.associate()
            yield client
            client.release()

    def reads(self, port: int, **changes: object) -> int:
        with self.associated(port, **changes) as client:
            return client.get(REGISTER).integer()

    def agree(self, client: Client, key_id: KeyId) -> Callable[[AlgorithmIds], bytes]:
        """Do a key_agreement; give what computes the key by an AlgorithmID."""
        pair = generate(self.suite)
        share = PublicShare.sign(self.suite, key_id, point_of(pair.public_key()), SoftwareSigner(self.client))
        data = agreement.encode_key_agreement([share])
        answer = client.action(security_setup.method(Method.KEY_AGREEMENT), data)
        assert answer is not None
        (theirs,) = agreement.decode_key_agreement(self.suite, answer)
        theirs.check(self.suite, SoftwareVerifier(self.meter.public_key()))
        return lambda ids: self._derived(pair, theirs, ids)

    def _derived(self, pair: ec.EllipticCurvePrivateKey, theirs: PublicShare, ids: AlgorithmIds) -> bytes:
        info = agreement.ephemeral_info(ids.of(self.suite, theirs.key_id), CLIENT, METER)
        return derive(self.suite, pair, public_of(self.suite, theirs.point), info)


@pytest.fixture
def party(tmp_path: Path) -> Party:
    return Party(tmp_path, SUITE_1)


@pytest.mark.parametrize("suite", list(SecuritySuite))
def test_the_digest_mechanisms_and_gmac_in_every_suite(
    start_meter: StartMeter, tmp_path: Path, suite: SecuritySuite
) -> None:
    party = Party(tmp_path, suite)
    port = start_meter(*party.options)
    for mechanism in (*DIGESTS, Mechanism.HLS_GMAC):
        assert party.reads(port, mechanism=mechanism) == 123_456
    for mechanism in DIGESTS:
        with pytest.raises(MeterRefusedError):
            party.reads(port, mechanism=mechanism, secret=SoftwareSecret(b"12345679"))


def test_mechanisms_without_ciphering(start_meter: StartMeter, party: Party) -> None:
    port = start_meter(*party.options)
    for mechanism in (Mechanism.HLS_MD5, Mechanism.HLS_SHA1, Mechanism.HLS_SHA256):
        assert party.reads(port, mechanism=mechanism, key=None) == 123_456


def test_mechanism_7_is_mutual(start_meter: StartMeter, party: Party) -> None:
    port = start_meter(*party.options)
    assert party.reads(port, mechanism=Mechanism.HLS_ECDSA) == 123_456
    stranger = generate(SUITE_1)
    with pytest.raises(MeterRefusedError):
        party.reads(port, mechanism=Mechanism.HLS_ECDSA, signer=SoftwareSigner(stranger))
    with pytest.raises(IntegrityError):
        party.reads(port, mechanism=Mechanism.HLS_ECDSA, verifier=SoftwareVerifier(stranger.public_key()))


@pytest.mark.parametrize("suite", list(SecuritySuite))
def test_keys_are_transferred_in_every_suite(start_meter: StartMeter, tmp_path: Path, suite: SecuritySuite) -> None:
    party = Party(tmp_path, suite)
    port = start_meter(*party.options)
    new = {key_id: secrets.token_bytes(suite.key_octets) for key_id in (KeyId.GUEK, KeyId.GAK, KeyId.MASTER)}
    wrapped = [KeyTransfer(key_id, aes_key_wrap(party.keys[KeyId.MASTER], key)) for key_id, key in new.items()]
    with party.associated(port) as client:
        client.action(security_setup.key_transfer_method(), security_setup.encode_key_transfer(wrapped))
    old = party.cipher()
    party.keys |= new
    assert party.reads(port) == 123_456
    with pytest.raises(MeterRefusedError):
        party.reads(port, key=old)


@pytest.mark.parametrize("form", [Form.GENERAL_GLOBAL, Form.DEDICATED, Form.GENERAL_DEDICATED])
def test_other_forms_are_understood(start_meter: StartMeter, party: Party, form: Form) -> None:
    port = start_meter(*party.options)
    dedicated = SoftwareDedicatedKey(secrets.token_bytes(16), party.keys[KeyId.GAK])
    assert party.reads(port, form=form, dedicated=dedicated) == 123_456


@pytest.mark.parametrize("key_id", [KeyId.GUEK, KeyId.GAK])
def test_keys_are_agreed_on(start_meter: StartMeter, party: Party, key_id: KeyId) -> None:
    port = start_meter(*party.options)
    with party.associated(port) as client:
        key_by = party.agree(client, key_id)
    old = party.cipher()
    party.keys[key_id] = key_by(AlgorithmIds())
    assert party.reads(port) == 123_456
    with pytest.raises(MeterRefusedError):
        party.reads(port, key=old)


def test_a_master_key_agreed_on_is_for_wrapping(start_meter: StartMeter, party: Party) -> None:
    port = start_meter(*party.options)
    with party.associated(port) as client:
        key_by = party.agree(client, KeyId.MASTER)
    master = key_by(AlgorithmIds(wrap_for_master=True))
    entry = KeyTransfer(KeyId.GBEK, aes_key_wrap(master, secrets.token_bytes(16)))
    with party.associated(port) as client:
        client.action(security_setup.key_transfer_method(), security_setup.encode_key_transfer([entry]))


def test_the_other_algorithm_is_found_by_trying(start_other_meter: StartMeter, party: Party) -> None:
    port = start_other_meter(*party.options)
    with party.associated(port) as client:
        key_by = party.agree(client, KeyId.GUEK)
    party.keys[KeyId.GUEK] = key_by(AlgorithmIds())
    with pytest.raises(MeterRefusedError):
        party.reads(port)
    party.keys[KeyId.GUEK] = key_by(AlgorithmIds().other())
    assert key_by(AlgorithmIds(GBCS_PREFIX)) == party.keys[KeyId.GUEK]
    assert party.reads(port) == 123_456


def test_a_share_under_another_signature_is_refused(start_meter: StartMeter, party: Party) -> None:
    port = start_meter(*party.options)
    with party.associated(port) as client:
        party.client = generate(SUITE_1)
        with pytest.raises(MeterRefusedError):
            party.agree(client, KeyId.GUEK)
    assert party.reads(port) == 123_456


@pytest.mark.parametrize("suite", [SecuritySuite.SUITE_1, SecuritySuite.SUITE_2])
def test_gurux_authenticates_the_header_of_general_ciphering_alike(gurux_python: Path, suite: SecuritySuite) -> None:
    key, gak = (secrets.token_bytes(suite.key_octets) for _ in range(2))
    plain, counter = bytes.fromhex("C0010000080000010000FF0200"), 0x01234567
    program = Path(__file__).parent / "gurux_general.py"
    arguments = [str(int(suite)), key.hex(), gak.hex(), str(CLIENT), str(METER), str(counter), plain.hex()]
    done = subprocess.run(
        [str(gurux_python), str(program), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    header = Header(counter.to_bytes(8, "big"), CLIENT, METER)
    control = ciphering.security_control(suite)
    content = ciphering.seal(plain, SoftwareKeys(key, gak), control, CLIENT, counter, header.encode())
    assert done.stdout.strip() == content.payload.hex(), done.stderr[-2000:]
