"""Malformed requests, each refused for its own reason: one right request, and one thing changed in it at a time.

What is changed is signed again by the key, so that nothing but the change is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsmkm.errors import InputError
from hsmkm.pki.der import bit_string, element, sequence
from hsmkm.pki.requests import check_request

TITLE = "4D4D4D0000BC614E"
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
SHA256 = bytes.fromhex("06082a8648ce3d040302")
SHA1 = bytes.fromhex("06072a8648ce3d0401")
COMMON_NAME, ORGANIZATION, SERIAL_NUMBER = (bytes.fromhex(f"0603550{last}") for last in ("403", "40a", "405"))
UTF8, PRINTABLE, SET, INTEGER = 0x0C, 0x13, 0x31, 0x02
EXTENSION_REQUEST = bytes.fromhex("06092a864886f70d01090e")
CHALLENGE_PASSWORD = bytes.fromhex("06092a864886f70d010907")
P256 = bytes.fromhex("06072a8648ce3d020106082a8648ce3d030107")


def spki(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def point(octets: bytes, algorithm: bytes = P256) -> bytes:
    return sequence(sequence(algorithm), bit_string(octets))


def named(*parts: tuple[bytes, bytes], tag: int = UTF8) -> bytes:
    return sequence(*(element(SET, sequence(oid, element(tag, text))) for oid, text in parts))


def asked(*extensions: bytes) -> bytes:
    return sequence(EXTENSION_REQUEST, element(SET, sequence(*extensions)))


def extension(oid: str, value: bytes) -> bytes:
    return sequence(bytes.fromhex(oid), element(0x04, value))


def attributes(*each: bytes) -> bytes:
    return element(0xA0, b"".join(each))


BASIC_CONSTRAINTS = extension("0603551d13", bytes.fromhex("30030101ff"))
KEY_USAGE = extension("0603551d0f", bytes.fromhex("03020780"))
ALTERNATIVE_NAME = extension("0603551d11", bytes.fromhex("30098207") + b"a.local")
PUBLIC = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


@dataclass(frozen=True)
class Parts:
    """A request in its parts, each in DER."""

    version: bytes = element(INTEGER, b"\0")
    subject: bytes = named((COMMON_NAME, TITLE.encode()))
    key: bytes = spki(KEY)
    attributes: bytes = attributes()
    algorithm: bytes = sequence(SHA256)
    signer: ec.EllipticCurvePrivateKey = KEY
    signature: bytes | None = None
    after: bytes = b""

    def der(self) -> bytes:
        info = sequence(self.version, self.subject, self.key, self.attributes)
        signature = self.signature
        if signature is None:
            signature = bit_string(self.signer.sign(info, ec.ECDSA(hashes.SHA256())))
        return sequence(info, self.algorithm, signature) + self.after


RIGHT = Parts()


def changed(**parts: object) -> bytes:
    return replace(RIGHT, **parts).der()  # type: ignore[arg-type] # by name


MALFORMED = {
    "nothing": (b"", "not a PKCS#10 request in DER or PEM"),
    "another structure": (sequence(sequence()), "not a PKCS#10 request in DER or PEM"),
    "octets behind it": (changed(after=b"\0"), "octets follow the request"),
    "a length not in DER": (
        sequence(b"\x30\x81\x03\x02\x01\x00", RIGHT.algorithm, bit_string(b"")),
        "not in DER: not the shortest definite length",
    ),
    "another version": (changed(version=element(INTEGER, b"\2")), "the version is not that of PKCS#10, which is 0"),
    "no attributes": (changed(attributes=b""), "the attributes are missing or are not alone"),
    "a challenge password": (
        changed(attributes=attributes(sequence(CHALLENGE_PASSWORD, element(SET, element(UTF8, b"x"))))),
        "the attribute 1.2.840.113549.1.9.7 is not allowed",
    ),
    "to be an authority": (
        changed(attributes=attributes(asked(BASIC_CONSTRAINTS))),
        "the asked-for extension 2.5.29.19 is not allowed",
    ),
    "a usage": (changed(attributes=attributes(asked(KEY_USAGE))), "the asked-for extension 2.5.29.15 is not allowed"),
    "another name": (
        changed(attributes=attributes(asked(ALTERNATIVE_NAME))),
        "the asked-for extension 2.5.29.17 is not allowed",
    ),
    "extensions that are none": (
        changed(attributes=attributes(sequence(EXTENSION_REQUEST, element(SET, element(INTEGER, b"\1"))))),
        "the asked-for extensions cannot be read",
    ),
    "no subject": (changed(subject=sequence()), "the subject is not exactly one common name"),
    "more than a title": (
        changed(subject=named((COMMON_NAME, TITLE.encode()), (ORGANIZATION, b"Others"))),
        "the subject is not exactly one common name",
    ),
    "a title under another attribute": (
        changed(subject=named((SERIAL_NUMBER, TITLE.encode()), tag=PRINTABLE)),
        "the subject is not exactly one common name",
    ),
    "a title in small letters": (
        changed(subject=named((COMMON_NAME, TITLE.lower().encode()))),
        f"the subject '{TITLE.lower()}' is not a system title of 16 hex digits in capitals",
    ),
    "a title cut short": (
        changed(subject=named((COMMON_NAME, TITLE[:14].encode()))),
        f"the subject '{TITLE[:14]}' is not a system title of 16 hex digits in capitals",
    ),
    "somebody else's title": (
        changed(subject=named((COMMON_NAME, b"4D4D4D0000BC614F"))),
        f"the subject is '4D4D4D0000BC614F' and not '{TITLE}'",
    ),
    "an RSA key": (
        changed(key=spki(rsa.generate_private_key(65537, 2048))),
        "the key is not on an elliptic curve: neither P-256 nor P-384",
    ),
    "another curve": (
        changed(key=spki(ec.generate_private_key(ec.SECP256K1()))),
        "the curve is neither P-256 nor P-384 by name",
    ),
    "a point in short": (
        changed(key=point(KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint))),
        "the public key is not an uncompressed point of 65 octets",
    ),
    "the point at infinity": (
        changed(key=point(b"\0")),
        "the public key is not an uncompressed point of 65 octets",
    ),
    "a point off the curve": (
        changed(key=point(PUBLIC[:-1] + bytes([PUBLIC[-1] ^ 1]))),
        "the public key is not a point on its curve",
    ),
    "SHA-1": (
        changed(algorithm=sequence(SHA1)),
        "the signature algorithm is neither ecdsa-with-SHA256 nor ecdsa-with-SHA384 without parameters",
    ),
    "parameters of the algorithm": (
        changed(algorithm=sequence(SHA256, b"\5\0")),
        "the signature algorithm is neither ecdsa-with-SHA256 nor ecdsa-with-SHA384 without parameters",
    ),
    "the hash of the other curve": (
        changed(algorithm=sequence(bytes.fromhex("06082a8648ce3d040303"))),
        "the signature does not use sha256, which goes with secp256r1",
    ),
    "another key's signature": (
        changed(signer=OTHER),
        "the signature was not made by the key in the request, or the one that should have signed it",
    ),
    "a signature of zero": (
        changed(signature=bit_string(sequence(b"\2\1\0", b"\2\1\1"))),
        "the signature holds a number that is not positive",
    ),
    "a raw signature": (
        changed(signature=bit_string(bytes(range(64)))),
        "the signature is not a pair of numbers in DER",
    ),
    "a signature with unused bits": (
        changed(signature=element(0x03, b"\1" + utils.encode_dss_signature(2, 2))),
        "the signature is not a whole number of octets",
    ),
}


def test_the_request_that_is_changed_is_right() -> None:
    assert check_request(RIGHT.der(), "digital-signature", TITLE).subject == TITLE


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_request_is_refused_for_its_own_reason(what: str) -> None:
    data, reason = MALFORMED[what]
    wanted = TITLE if what == "somebody else's title" else None
    with pytest.raises(InputError) as raised:
        check_request(data, "digital-signature", wanted)
    assert [fault.text for fault in raised.value.faults] == [reason]


def test_they_are_twenty_reasons_and_more() -> None:
    assert len({reason for _, reason in MALFORMED.values()}) >= 20


def test_everything_wrong_is_told_at_once() -> None:
    data = changed(
        version=element(INTEGER, b"\1"), key=point(PUBLIC[:-1] + bytes([PUBLIC[-1] ^ 1])), algorithm=sequence(SHA1)
    )
    with pytest.raises(InputError) as raised:
        check_request(data, "digital-signature", TITLE)
    assert len(raised.value.faults) == 3
