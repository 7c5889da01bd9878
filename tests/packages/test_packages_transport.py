from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from dataclasses import replace
from secrets import token_bytes
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hsmkm.errors import InputError, IntegrityError, RefusedError
from hsmkm.packages.content import Purpose
from hsmkm.packages.send import Recipient, outgoing
from hsmkm.packages.transport import (
    open_package_key,
    parse_recipient_info,
    shared_info,
    wrap_package_key,
)
from hsmkm.pki.der import element, octet_string, sequence
from hsmkm.store.key_set import KeyState
from hsmkm.token.types import KeyRole

if TYPE_CHECKING:
    from pathlib import Path

    from tests.packages.conftest import World

UKM = bytes(range(32))
WRAP_IV = "A6A6A6A6A6A6A6A6"


def openssl(*arguments: str | Path, data: bytes = b"") -> bytes:
    command = ["openssl", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def primitives(der: bytes) -> list[tuple[str, bytes]]:
    """The primitive elements of a structure as openssl sees them."""
    found = []
    for line in openssl("asn1parse", "-inform", "DER", data=der).decode().splitlines():
        match = re.match(r"\s*(\d+):d=\d+\s+hl=\s*(\d+)\s+l=\s*(\d+)\s+prim:\s+([A-Z ]+?)\s*(:|$|\[)", line)
        if match:
            start = int(match[1]) + int(match[2])
            found.append((match[4], der[start : start + int(match[3])]))
    return found


def unwrap(key: bytes, wrapped: bytes) -> bytes:
    return openssl("enc", "-d", "-id-aes256-wrap", "-K", key.hex(), "-iv", WRAP_IV, data=wrapped)


def test_a_package_opens_with_openssl_alone(world: World, tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    key_file = tmp_path / "agreement.pem"
    key_file.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    certificate = world.pki.agreement(world.recipient.peer.system_title, private.public_key())
    world.recipient = Recipient(world.recipient.peer, certificate, (world.pki.issuing.certificate,))
    meter, values = world.meter(), {role: token_bytes(16) for role in KeyRole}
    package = world.build(outgoing(meter, world.key_set(meter, values=values), KeyState.ACTIVE))
    (tmp_path / "package.p7m").write_bytes(package.data)

    at = str(int(package.header.created.timestamp()) + 60)
    content = openssl(
        "cms", "-verify", "-cades", "-inform", "DER", "-binary", "-purpose", "any", "-attime", at,
        "-CAfile", world.pki.write(tmp_path), "-in", tmp_path / "package.p7m",
    )  # fmt: skip
    document = json.loads(content)
    info = base64.b64decode(document["transport"]["recipient_info"])
    header = {name: value for name, value in document.items() if name not in ("transport", "meters")}
    ukm = hashlib.sha256(json.dumps(header, sort_keys=True, separators=(",", ":")).encode()).digest()

    bits = [value for kind, value in primitives(info) if kind == "BIT STRING"]
    octets = [value for kind, value in primitives(info) if kind == "OCTET STRING"]
    oids = [value for kind, value in primitives(info) if kind == "OBJECT"]
    assert octets[0] == ukm
    assert bytes.fromhex("2b8104010b01") in oids
    assert bytes.fromhex("60864801650304012d") in oids

    peer = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200") + bits[0][1:]
    (tmp_path / "peer.der").write_bytes(peer)
    shared = openssl("pkeyutl", "-derive", "-inkey", key_file, "-peerkey", tmp_path / "peer.der", "-peerform", "DER")
    # RFC 5753 section 7.2, by hand: SEQUENCE {SEQUENCE {id-aes256-wrap}, [0] OCTET STRING ukm, [2] 00000100}
    information = "3039" + "300b060960864801650304012d" + "a0220420" + ukm.hex() + "a206040400000100"
    kek = openssl(
        "kdf", "-keylen", "32", "-binary", "-kdfopt", "digest:SHA256", "-kdfopt", f"hexkey:{shared.hex()}",
        "-kdfopt", f"hexinfo:{information}", "X963KDF",
    )  # fmt: skip
    package_key = unwrap(kek, octets[-1])
    keys = document["meters"][0]["keys"]
    assert {role: unwrap(package_key, bytes.fromhex(keys[role]["wrapped"])) for role in KeyRole} == values

    (tmp_path / "enveloped.der").write_bytes(enveloped(info, package_key, b"any content"))
    (tmp_path / "recipient.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    opened = openssl(
        "cms", "-decrypt", "-inform", "DER", "-binary", "-in", tmp_path / "enveloped.der",
        "-recip", tmp_path / "recipient.pem", "-inkey", key_file,
    )  # fmt: skip
    assert opened == b"any content"


def enveloped(info: bytes, key: bytes, content: bytes) -> bytes:
    """CMS EnvelopedData around a recipient info, for openssl to judge the recipient info as a whole."""
    iv = token_bytes(16)
    encrypted = openssl("enc", "-aes-256-cbc", "-K", key.hex(), "-iv", iv.hex(), data=content)
    algorithm = sequence(bytes.fromhex("060960864801650304012a"), octet_string(iv))
    body = sequence(bytes.fromhex("06092a864886f70d010701"), algorithm, element(0x80, encrypted))
    data = sequence(element(2, b"\2"), element(0x31, b"\xa1" + info[1:]), body)
    return sequence(bytes.fromhex("06092a864886f70d010703"), element(0xA0, data))


def test_in_an_injection_the_master_key_carries_the_others(world: World) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    peer = replace(world.recipient.peer, name="line-1", role="line")
    certificate = world.pki.agreement(peer.system_title, private.public_key())
    world.recipient = Recipient(peer, certificate, (world.pki.issuing.certificate,))
    meter, values = world.meter(), {role: token_bytes(16) for role in KeyRole}
    package = world.build(
        outgoing(meter, world.key_set(meter, values=values), KeyState.ACTIVE), purpose=Purpose.INJECTION
    )
    keys = {key.role: key for key in package.meters[0].keys}
    for role in (KeyRole.GUEK, KeyRole.GBEK, KeyRole.GAK):
        assert keys[role].under == "master"
        clear = openssl(
            "enc", "-d", "-id-aes128-wrap", "-K", values[KeyRole.MASTER].hex(), "-iv", WRAP_IV, data=keys[role].wrapped
        )
        assert clear == values[role]
    assert keys[KeyRole.MASTER].under == "package"


@pytest.mark.parametrize(("curve", "octets"), [("P-256", 65), ("P-384", 97)])
def test_the_package_key_reaches_the_recipient_in_the_token(world: World, curve: str, octets: int) -> None:
    if curve == "P-384":
        world.vault.create_ec_key("key-agreement-384", curve, "derive")
    label = "key-agreement" if curve == "P-256" else "key-agreement-384"
    key = world.vault.public_key(label)
    certificate = world.recipient.certificate if curve == "P-256" else certified(key, world.recipient.certificate)
    meter_key = world.vault.import_key(KeyRole.GUEK, 0, bytearray(token_bytes(16)))
    sealed = world.vault.seal(meter_key)
    with world.vault.generate_package_key() as package_key:
        info = wrap_package_key(world.vault, package_key, certificate, UKM)
        wrapped = world.vault.wrap(package_key, meter_key)
    assert len(parse_recipient_info(info).point) == octets
    with (
        open_package_key(world.vault, label, certificate, info, UKM) as opened,
        world.vault.unwrap(opened, wrapped, KeyRole.GUEK, 0) as same,
    ):
        assert world.vault.seal(same) == sealed


def certified(key: ec.EllipticCurvePublicKey, like: x509.Certificate) -> x509.Certificate:
    """A certificate with this key, by an authority that nobody trusts; the transport does not ask who it is."""
    builder = x509.CertificateBuilder().subject_name(like.subject).issuer_name(like.subject).serial_number(9)
    builder = builder.not_valid_before(like.not_valid_before_utc).not_valid_after(like.not_valid_after_utc)
    return builder.public_key(key).sign(ec.generate_private_key(ec.SECP384R1()), SHA384())


def test_the_shared_info_is_that_of_rfc_5753() -> None:
    assert shared_info(bytes(32)).hex() == ("3039300b060960864801650304012da0220420" + "00" * 32 + "a206040400000100")


@pytest.fixture
def info(world: World) -> bytes:
    with world.vault.generate_package_key() as package_key:
        return wrap_package_key(world.vault, package_key, world.recipient.certificate, UKM)


def test_another_header_does_not_open(world: World, info: bytes) -> None:
    with pytest.raises(RefusedError) as raised:
        open_package_key(world.vault, "key-agreement", world.recipient.certificate, info, bytes(32))
    assert raised.value.reasons == ("the package key is bound to another header",)


def test_a_header_exchanged_on_both_sides_still_does_not_open(world: World, info: bytes) -> None:
    forged = replace(parse_recipient_info(info), ukm=bytes(32)).encode()
    with pytest.raises(IntegrityError):
        open_package_key(world.vault, "key-agreement", world.recipient.certificate, forged, bytes(32))


def test_another_certificate_of_ours_does_not_open(world: World, info: bytes) -> None:
    other = world.pki.agreement(world.recipient.peer.system_title, world.vault.public_key("key-agreement"))
    with pytest.raises(RefusedError, match="not made for"):
        open_package_key(world.vault, "key-agreement", other, info, UKM)


def test_a_point_off_the_curve_is_refused_before_the_token_sees_it(world: World, info: bytes) -> None:
    parsed = parse_recipient_info(info)
    forged = replace(parsed, point=b"\4" + bytes(63) + b"\1").encode()
    with pytest.raises(RefusedError) as raised:
        open_package_key(world.vault, "key-agreement", world.recipient.certificate, forged, UKM)
    assert raised.value.reasons == ("the sender's ephemeral key is no point of the curve",)


def test_an_altered_package_key_does_not_unwrap(world: World, info: bytes) -> None:
    parsed = parse_recipient_info(info)
    forged = replace(parsed, wrapped=parsed.wrapped[:-1] + bytes([parsed.wrapped[-1] ^ 1])).encode()
    with pytest.raises(IntegrityError):
        open_package_key(world.vault, "key-agreement", world.recipient.certificate, forged, UKM)


def test_there_is_one_form_of_a_recipient_info(info: bytes) -> None:
    assert parse_recipient_info(info).encode() == info
    for altered in (
        info + b"\0",
        info[:-1],
        b"",
        b"\x30\x80" + info[2:] + b"\0\0",
        info.replace(b"\4\1\x2d", b"\4\1\5"),
    ):
        with pytest.raises(InputError):
            parse_recipient_info(altered)


def test_no_octet_of_a_recipient_info_can_change_unnoticed(info: bytes) -> None:
    varying = {parse_recipient_info(info).point, UKM, parse_recipient_info(info).wrapped}
    for place in range(len(info)):
        altered = info[:place] + bytes([info[place] ^ 0x10]) + info[place + 1 :]
        try:
            parsed = parse_recipient_info(altered)
        except InputError:
            continue
        same = {parsed.point, parsed.ukm, parsed.wrapped} == varying
        assert not same or parsed.recipient != parse_recipient_info(info).recipient
