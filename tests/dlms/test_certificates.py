from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.dlms import axdr, certificates
from hsmkm.dlms.certificates import ByEntity, BySerial, CertificateEntity, CertificateInfo, CertificateType
from hsmkm.errors import ProtocolError

INFO = CertificateInfo(CertificateEntity.CLIENT, CertificateType.TLS, b"\x05", b"issuer", b"subject", b"")
BY_ENTITY = ByEntity(CertificateEntity.SERVER, CertificateType.KEY_AGREEMENT, b"MMM\0\0\xbca\x4e")
BY_SERIAL = BySerial(b"\x05", b"issuer")


def test_the_two_ways_to_name_a_certificate() -> None:
    by_entity = axdr.encode(certificates.encode_identification(BY_ENTITY))
    assert by_entity.hex().upper() == "0202160002031600160109084D4D4D0000BC614E"
    by_serial = axdr.encode(certificates.encode_identification(BY_SERIAL))
    assert by_serial.hex() == "0202160102020901050906" + b"issuer".hex()
    for wanted, octets in ((BY_ENTITY, by_entity), (BY_SERIAL, by_serial)):
        assert certificates.decode_identification(axdr.decode(octets)) == wanted


def test_the_list_of_certificates() -> None:
    data = axdr.decode(axdr.encode(certificates.encode_certificates([INFO, INFO])))
    assert certificates.decode_certificates(data) == (INFO, INFO)


@pytest.mark.parametrize("text", ["0200", "0202160202020901050900", "020216000203160916010900", "02021600020116 00"])
def test_malformed_identifications_are_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        certificates.decode_identification(axdr.decode(bytes.fromhex(text)))


def test_lists_and_names_are_bounded() -> None:
    with pytest.raises(ProtocolError, match="so many"):
        certificates.decode_certificates(certificates.encode_certificates([INFO] * 257))
    with pytest.raises(ProtocolError, match="too long"):
        certificates.decode_identification(certificates.encode_identification(BySerial(b"\1", bytes(5000))))


@given(st.binary(max_size=120))
def test_hostile_octets_raise_protocol_errors_only(octets: bytes) -> None:
    for start in (b"", b"\x02\x02\x16\x00\x02\x03", b"\x02\x02\x16\x01\x02\x02", b"\x01\x01\x02\x06\x16\x00\x16\x00"):
        for decode in (
            certificates.decode_identification,
            certificates.decode_certificates,
            certificates.decode_type,
        ):
            try:
                decode(axdr.decode(start + octets))
            except ProtocolError:
                continue
