from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.dlms import axdr, security_setup
from hsmkm.dlms.security_setup import Attribute, KeyTransfer
from hsmkm.dlms.types import KeyId
from hsmkm.errors import ProtocolError

WRAPPED = bytes.fromhex("1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5")


def test_a_key_transfer_is_that_of_the_standard() -> None:
    keys = (KeyTransfer(KeyId.GUEK, WRAPPED), KeyTransfer(KeyId.GAK, WRAPPED))
    data = security_setup.encode_key_transfer(keys)
    expected = "0102" + "020216000918" + WRAPPED.hex() + "020216020918" + WRAPPED.hex()
    assert axdr.encode(data).hex() == expected
    assert security_setup.decode_key_transfer(data) == keys


def test_a_wrapped_key_does_not_show() -> None:
    assert WRAPPED.hex() not in repr(KeyTransfer(KeyId.GUEK, WRAPPED))
    assert repr(KeyTransfer(KeyId.GUEK, WRAPPED)).count("wrapped") == 0


@pytest.mark.parametrize(
    "data",
    [
        axdr.array(),
        axdr.enum(0),
        axdr.array(axdr.structure(axdr.enum(4), axdr.octet_string(WRAPPED))),
        axdr.array(axdr.structure(axdr.enum(0), axdr.octet_string(WRAPPED[:-1]))),
        axdr.array(axdr.structure(axdr.enum(0))),
        axdr.array(*[axdr.structure(axdr.enum(0), axdr.octet_string(WRAPPED))] * 2),
    ],
)
def test_other_data_is_refused(data: axdr.Data) -> None:
    with pytest.raises(ProtocolError):
        security_setup.decode_key_transfer(data)


@given(st.binary(max_size=80))
def test_hostile_octets_raise_nothing_but_protocol_errors(octets: bytes) -> None:
    try:
        security_setup.decode_key_transfer(axdr.decode(b"\x01\x01\x02\x02" + octets))
    except ProtocolError:
        return


def test_objects_are_named_by_their_setup() -> None:
    assert str(security_setup.attribute(Attribute.SECURITY_SUITE)) == "64/0.0.43.0.0.255/3"
    assert str(security_setup.key_transfer_method(1)) == "64/0.0.43.0.1.255/2"
    assert str(security_setup.invocation_counter(2)) == "1/0.0.43.1.2.255/2"
