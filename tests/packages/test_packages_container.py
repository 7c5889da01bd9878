from __future__ import annotations

import hashlib
import subprocess
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from asn1crypto import cms
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsmkm.errors import InputError, IntegrityError, RefusedError
from hsmkm.packages.container import open_container, sign_content
from hsmkm.packages.receipt import open_receipt, parse_receipt, receipt_for, sign_receipt
from hsmkm.packages.send import check_receipt
from hsmkm.pki.certificates import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from hsmkm.packages.send import Signatory
    from tests.packages.conftest import Pki

CONTENT = b'{"format":"anything"}'
PACKAGE = "0f8fad5b-d9cb-469f-a165-70867728950e"


@pytest.fixture
def now(pki: Pki) -> datetime:
    return pki.root.certificate.not_valid_before_utc


def sign(sender: Signatory, now: datetime, content: bytes = CONTENT) -> bytes:
    return sign_content(content, sender.signer, sender.certificate, sender.chain, now)


def openssl_accepts(data: bytes, pki: Pki, now: datetime, folder: Path) -> bool:
    (folder / "file.p7m").write_bytes(data)
    done = subprocess.run(
        [
            "openssl", "cms", "-verify", "-cades", "-inform", "DER", "-binary", "-purpose", "any", "-x509_strict",
            "-attime", str(int(now.timestamp()) + 60), "-CAfile", str(pki.write(folder)),
            "-in", str(folder / "file.p7m"), "-out", str(folder / "content"),
        ],
        capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


def test_openssl_accepts_a_container_and_gets_the_content(
    software_sender: Signatory, pki: Pki, now: datetime, tmp_path: Path
) -> None:
    assert openssl_accepts(sign(software_sender, now), pki, now, tmp_path)
    assert (tmp_path / "content").read_bytes() == CONTENT


def test_neither_openssl_nor_we_accept_an_altered_octet_of_content(
    software_sender: Signatory, pki: Pki, now: datetime, tmp_path: Path
) -> None:
    data = sign(software_sender, now)
    start = data.index(CONTENT)
    for place in range(start, start + len(CONTENT), 7):
        altered = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        assert not openssl_accepts(altered, pki, now, tmp_path)
        with pytest.raises(IntegrityError):
            open_container(altered)


def test_no_octet_of_a_container_can_change_unnoticed(software_sender: Signatory, now: datetime) -> None:
    data = sign(software_sender, now)
    good = open_container(data)
    for place in range(len(data)):
        altered = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        try:
            opened = open_container(altered)
        except (InputError, IntegrityError, RefusedError):
            continue
        # An octet of an included certificate may change here: the trust store then refuses the chain.
        assert (opened.content, opened.signed_at) == (good.content, good.signed_at)
        assert opened.chain != good.chain
        assert opened.signer == good.signer


def test_what_comes_out_is_what_went_in(software_sender: Signatory, now: datetime) -> None:
    signed = open_container(sign(software_sender, now))
    assert signed.content == CONTENT
    assert signed.signer == software_sender.certificate
    assert signed.chain == software_sender.chain
    assert signed.signed_at == now


def test_p384_signs_with_sha384(software_sender: Signatory, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    like = software_sender.certificate
    builder = x509.CertificateBuilder().subject_name(like.subject).issuer_name(like.issuer).serial_number(9)
    builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1)).public_key(key.public_key())
    certificate = builder.sign(key, SHA384())
    data = sign_content(CONTENT, key, certificate, (), now)
    assert cms.ContentInfo.load(data)["content"]["signer_infos"][0]["digest_algorithm"]["algorithm"].native == "sha384"
    assert open_container(data).signer == certificate


def test_a_key_that_is_not_the_certified_one_signs_nothing(software_sender: Signatory, now: datetime) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(IntegrityError):
        sign_content(CONTENT, other, software_sender.certificate, (), now)


def test_octets_before_after_or_missing_are_refused(software_sender: Signatory, now: datetime) -> None:
    data = sign(software_sender, now)
    for altered in (data + b"\0", b"\0" + data, data[:-1], data[: len(data) // 2], b"", b"\x30\x00"):
        with pytest.raises(InputError):
            open_container(altered)


def test_ber_is_refused(software_sender: Signatory, now: datetime) -> None:
    data = sign(software_sender, now)
    assert data[:2] == b"\x30\x82"
    with pytest.raises(InputError):
        open_container(b"\x30\x80" + data[4:] + b"\0\0")
    with pytest.raises(InputError):
        open_container(b"\x30\x83\x00" + data[2:])


def test_two_signers_are_refused(software_sender: Signatory, now: datetime) -> None:
    outer = cms.ContentInfo.load(sign(software_sender, now))
    infos = outer["content"]["signer_infos"]
    infos.append(infos[0].copy())
    with pytest.raises(InputError):
        open_container(outer.dump(force=True))


def test_an_unsigned_attribute_is_refused(software_sender: Signatory, now: datetime) -> None:
    outer = cms.ContentInfo.load(sign(software_sender, now))
    outer["content"]["signer_infos"][0]["unsigned_attrs"] = [{"type": "message_digest", "values": [b"x"]}]
    with pytest.raises(InputError):
        open_container(outer.dump(force=True))


def test_a_signature_does_not_move_to_another_certificate_of_the_same_key(
    software_sender: Signatory, pki: Pki, now: datetime
) -> None:
    second = pki.leaf("package-signing", "factory", software_sender.signer)
    outer = cms.ContentInfo.load(sign(software_sender, now))
    signed = outer["content"]
    signed["certificates"] = [cms.CertificateChoices("certificate", _load(second.public_bytes(Encoding.DER)))]
    sid = signed["signer_infos"][0]["sid"].chosen
    sid["serial_number"] = second.serial_number
    with pytest.raises(IntegrityError, match="another certificate"):
        open_container(outer.dump(force=True))


def _load(der: bytes) -> object:
    return asn1_x509.Certificate.load(der)


def test_a_container_made_by_openssl_opens_too(software_sender: Signatory, pki: Pki, tmp_path: Path) -> None:
    key = software_sender.signer.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "leaf.pem").write_bytes(software_sender.certificate.public_bytes(Encoding.PEM))
    (tmp_path / "chain.pem").write_bytes(pki.package_issuing.certificate.public_bytes(Encoding.PEM))
    (tmp_path / "content").write_bytes(CONTENT)
    subprocess.run(
        [
            "openssl", "cms", "-sign", "-cades", "-nosmimecap", "-nodetach", "-binary", "-outform", "DER",
            "-md", "sha256", "-signer", "leaf.pem", "-inkey", "key.pem", "-certfile", "chain.pem",
            "-in", "content", "-out", "made.p7m",
        ],
        cwd=tmp_path, capture_output=True, check=True,
    )  # fmt: skip
    signed = open_container((tmp_path / "made.p7m").read_bytes())
    assert (signed.content, signed.signer) == (CONTENT, software_sender.certificate)


def test_ten_megabytes_are_eaten(software_sender: Signatory, now: datetime) -> None:
    content = bytes(10 << 20)
    assert open_container(sign(software_sender, now, content)).content == content


def receipt_of(sender: Signatory, now: datetime, *reasons: str, package: bytes = b"package") -> bytes:
    receipt = receipt_for(PACKAGE, package, reasons, now)
    return sign_receipt(receipt, sender.signer, sender.certificate, sender.chain, now)


def accepted(data: bytes, sender: Signatory, pki: Pki, now: datetime, package: bytes = b"package") -> bool:
    pinned = fingerprint(sender.certificate)
    digest = hashlib.sha256(package).digest()
    return check_receipt(data, PACKAGE, digest, pki.trust(), (pinned,), now).accepted


def test_openssl_accepts_a_receipt_and_refuses_an_altered_one(
    software_sender: Signatory, pki: Pki, now: datetime, tmp_path: Path
) -> None:
    data = receipt_of(software_sender, now)
    place = data.index(b'"accepted"') + 3
    assert openssl_accepts(data, pki, now, tmp_path)
    assert not openssl_accepts(data[:place] + b"x" + data[place + 1 :], pki, now, tmp_path)


def test_a_receipt_says_what_became_of_a_package(software_sender: Signatory, pki: Pki, now: datetime) -> None:
    assert accepted(receipt_of(software_sender, now), software_sender, pki, now)
    refused, _signed = open_receipt(receipt_of(software_sender, now, "it has expired", "a\nb"))
    assert (refused.result, refused.reasons) == ("refused", ("it has expired", "a?b"))


def test_a_receipt_for_another_package_or_by_another_party_is_refused(
    software_sender: Signatory, pki: Pki, now: datetime
) -> None:
    data = receipt_of(software_sender, now)
    with pytest.raises(RefusedError) as raised:
        accepted(data, software_sender, pki, now, package=b"other")
    assert raised.value.reasons == ("the receipt is for other octets than those of the package",)
    other = replace(software_sender, certificate=pki.package_issuing.certificate)
    with pytest.raises(RefusedError) as raised:
        accepted(data, other, pki, now)
    assert raised.value.reasons == ("the receipt is not signed with the recipient's registered certificate",)
    with pytest.raises(RefusedError) as raised:
        accepted(data, software_sender, pki, now + timedelta(days=8))
    assert any("past its date" in reason for reason in raised.value.reasons)


@pytest.mark.parametrize("member", ["package", "sha256", "result", "time", "format", "reasons"])
def test_a_receipt_has_one_form(member: str, now: datetime) -> None:
    data = receipt_for(PACKAGE, b"package", [], now).encode()
    with pytest.raises(InputError):
        parse_receipt(data.replace(f'"{member}"'.encode(), b'"other"'))
    with pytest.raises(InputError):
        parse_receipt(data.replace(b'"accepted"', b'"refused"'))


@pytest.fixture
def good(software_sender: Signatory, now: datetime) -> bytes:
    return sign(software_sender, now)


@given(start=st.integers(0, 2000), removed=st.integers(0, 8), added=st.binary(max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_container_patched_anywhere_is_refused_in_our_own_words(
    good: bytes, start: int, removed: int, added: bytes
) -> None:
    with suppress(InputError, IntegrityError, RefusedError):
        open_container(good[:start] + added + good[start + removed :])
