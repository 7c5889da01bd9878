from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hsmkm.errors import InputError
from hsmkm.pki.requests import build_request, check_request

TITLE = "4D4D4D0000BC614E"

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def faults(data: bytes, profile: str = "digital-signature", subject: str | None = None) -> str:
    with pytest.raises(InputError) as raised:
        check_request(data, profile, subject)
    return "\n".join(fault.text for fault in raised.value.faults)


def request_for(subject: list[tuple[x509.ObjectIdentifier, str]], key: Key, *extensions: x509.ExtensionType) -> bytes:
    builder = x509.CertificateSigningRequestBuilder()
    builder = builder.subject_name(x509.Name([x509.NameAttribute(oid, text) for oid, text in subject]))
    for one in extensions:
        builder = builder.add_extension(one, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize("profile", ["digital-signature", "key-agreement", "tls", "package-signing"])
@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_openssl_verifies_a_request_of_each_profile(profile: str, curve: ec.EllipticCurve, tmp_path: Path) -> None:
    names = ("localhost", "127.0.0.1") if profile == "tls" else ()
    request = build_request(ec.generate_private_key(curve), profile, TITLE, names)
    path = tmp_path / "request.pem"
    path.write_bytes(request.public_bytes(Encoding.PEM))
    done = subprocess.run(
        ["openssl", "req", "-verify", "-noout", "-subject", "-in", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert TITLE in done.stdout
    assert "verify OK" in done.stdout + done.stderr


def test_a_dlms_request_has_no_attributes(key: ec.EllipticCurvePrivateKey) -> None:
    assert len(list(build_request(key, "digital-signature", TITLE).attributes)) == 0


@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_a_good_request_tells_subject_key_and_names(key: ec.EllipticCurvePrivateKey, encoding: Encoding) -> None:
    data = build_request(key, "tls", "utility", ("aim.example", "192.0.2.1")).public_bytes(encoding)
    checked = check_request(data, "tls", "utility")
    assert (checked.subject, checked.names) == ("utility", ("aim.example", "192.0.2.1"))
    assert checked.public_key == key.public_key()


def test_a_title_in_small_letters_is_refused(key: ec.EllipticCurvePrivateKey) -> None:
    assert "16 hex digits in capitals" in faults(request_for([(NameOID.COMMON_NAME, TITLE.lower())], key))


def test_a_subject_with_more_than_the_title_is_refused(key: ec.EllipticCurvePrivateKey) -> None:
    data = request_for([(NameOID.COMMON_NAME, TITLE), (NameOID.ORGANIZATION_NAME, "Others")], key)
    assert "not exactly one common name" in faults(data)


def test_a_request_for_somebody_else_is_refused(key: ec.EllipticCurvePrivateKey) -> None:
    data = request_for([(NameOID.COMMON_NAME, TITLE)], key)
    assert "and not '4D4D4D0000BC614F'" in faults(data, subject="4D4D4D0000BC614F")


def test_an_altered_signature_is_refused(key: ec.EllipticCurvePrivateKey) -> None:
    data = bytearray(request_for([(NameOID.COMMON_NAME, TITLE)], key))
    data[data.index(TITLE.encode()) + 15] ^= 1
    assert "the signature was not made by the key" in faults(bytes(data))


@pytest.mark.parametrize(
    ("profile", "extension", "oid"),
    [
        ("digital-signature", x509.BasicConstraints(ca=True, path_length=None), "2.5.29.19"),
        ("digital-signature", x509.SubjectAlternativeName([x509.DNSName("a.example")]), "2.5.29.17"),
        ("tls", x509.BasicConstraints(ca=True, path_length=None), "2.5.29.19"),
    ],
)
def test_an_extension_that_is_asked_for_is_refused(
    key: ec.EllipticCurvePrivateKey, profile: str, extension: x509.ExtensionType, oid: str
) -> None:
    data = request_for([(NameOID.COMMON_NAME, TITLE)], key, extension)
    assert f"the asked-for extension {oid} is not allowed" in faults(data, profile)


@pytest.mark.parametrize(
    "name",
    [x509.RFC822Name("a@example"), x509.DNSName("UPPER.example"), x509.DNSName("a b"), x509.DNSName("-a.example")],
)
def test_alternative_names_are_dns_names_or_addresses(key: ec.EllipticCurvePrivateKey, name: x509.GeneralName) -> None:
    data = request_for([(NameOID.COMMON_NAME, TITLE)], key, x509.SubjectAlternativeName([name]))
    assert "the subjectAltName" in faults(data, "tls")


def test_an_attribute_is_refused(key: ec.EllipticCurvePrivateKey) -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, TITLE)])
    )
    builder = builder.add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, b"not a secret")
    data = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    assert "the attribute 1.2.840.113549.1.9.7 is not allowed" in faults(data)


@pytest.mark.parametrize(
    "other", [ec.generate_private_key(ec.SECP256K1()), rsa.generate_private_key(65537, 2048)], ids=["k1", "rsa"]
)
def test_a_key_outside_the_suites_is_refused(other: Key) -> None:
    assert "neither P-256 nor P-384" in faults(request_for([(NameOID.COMMON_NAME, TITLE)], other))


def test_the_hash_goes_with_the_curve() -> None:
    data = request_for([(NameOID.COMMON_NAME, TITLE)], ec.generate_private_key(ec.SECP384R1()))
    assert "sha384, which goes with secp384r1" in faults(data)


@pytest.mark.parametrize("data", [b"", b"\x30", b"\x30\x80\x00\x00", b"-----BEGIN", bytes(20_000)])
def test_octets_that_are_no_request_are_refused(data: bytes) -> None:
    assert faults(data)


def test_octets_after_a_request_are_refused(key: ec.EllipticCurvePrivateKey) -> None:
    assert faults(request_for([(NameOID.COMMON_NAME, TITLE)], key) + b"\0") == "octets follow the request"


def test_an_authority_is_not_made_from_a_request(key: ec.EllipticCurvePrivateKey) -> None:
    assert "authority" in faults(request_for([(NameOID.COMMON_NAME, "root")], key), "root")


def test_a_wrong_request_is_not_even_built(key: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(InputError):
        build_request(key, "digital-signature", "utility")
    with pytest.raises(InputError):
        build_request(key, "tls", "utility", ("a.example", "a.example"))


def test_the_signing_key_of_the_same_holder_signs_for_a_key_that_only_agrees(key: ec.EllipticCurvePrivateKey) -> None:
    agreement = ec.generate_private_key(ec.SECP256R1()).public_key()
    data = build_request(key, "key-agreement", TITLE, public_key=agreement).public_bytes(Encoding.DER)
    assert check_request(data, "key-agreement", TITLE, signed_by=key.public_key()).public_key == agreement
    assert "the signature was not made by the key" in faults(data, "key-agreement")
    with pytest.raises(InputError):
        check_request(data, "key-agreement", signed_by=agreement)
    with pytest.raises(InputError):
        check_request(data, "digital-signature", signed_by=key.public_key())
    with pytest.raises(InputError):
        build_request(key, "digital-signature", TITLE, public_key=agreement)
