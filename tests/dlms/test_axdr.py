from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.dlms import axdr
from hsmkm.dlms.axdr import MAX_DEPTH, Data, DataType
from hsmkm.errors import InputError, ProtocolError

LEAVES = st.one_of(
    st.builds(Data, st.just(DataType.NULL)),
    st.builds(Data, st.just(DataType.BOOLEAN), st.booleans()),
    st.builds(Data, st.just(DataType.DOUBLE_LONG), st.integers(-(2**31), 2**31 - 1)),
    st.builds(Data, st.just(DataType.LONG64_UNSIGNED), st.integers(0, 2**64 - 1)),
    st.builds(Data, st.just(DataType.INTEGER), st.integers(-128, 127)),
    st.builds(Data, st.just(DataType.ENUM), st.integers(0, 255)),
    st.builds(Data, st.just(DataType.OCTET_STRING), st.binary(max_size=300)),
    st.builds(Data, st.just(DataType.UTF8_STRING), st.text(max_size=40)),
    st.builds(Data, st.just(DataType.BIT_STRING), st.text("01", max_size=20)),
    st.builds(Data, st.just(DataType.FLOAT64), st.floats(allow_nan=False)),
    st.builds(Data, st.just(DataType.DATE_TIME), st.binary(min_size=12, max_size=12)),
)


def nest(inner: st.SearchStrategy[Data]) -> st.SearchStrategy[Data]:
    kinds = st.sampled_from([DataType.ARRAY, DataType.STRUCTURE])
    return st.builds(Data, kinds, st.lists(inner, max_size=4).map(tuple))


@given(st.recursive(LEAVES, nest, max_leaves=20))
def test_what_is_written_reads_back(data: Data) -> None:
    assert axdr.decode(axdr.encode(data)) == data


@given(st.binary(max_size=200))
def test_hostile_octets_raise_nothing_but_protocol_errors(octets: bytes) -> None:
    try:
        data = axdr.decode(octets)
    except ProtocolError:
        return
    assert axdr.encode(data)


@pytest.mark.parametrize(
    ("octets", "data"),
    [
        ("0600BC614E", axdr.double_long_unsigned(12_345_678)),
        ("0904AABBCCDD", axdr.octet_string(bytes.fromhex("AABBCCDD"))),
        ("09820004AABBCCDD", axdr.octet_string(bytes.fromhex("AABBCCDD"))),
        ("0202160009020102", axdr.structure(axdr.enum(0), axdr.octet_string(b"\x01\x02"))),
        ("0F80", Data(DataType.INTEGER, -128)),
        ("040AFFC0", Data(DataType.BIT_STRING, "1111111111")),
        ("0A03414243", Data(DataType.VISIBLE_STRING, "ABC")),
        ("00", Data(DataType.NULL)),
    ],
)
def test_encodings_of_the_standard(octets: str, data: Data) -> None:
    assert axdr.decode(bytes.fromhex(octets)) == data


@pytest.mark.parametrize(
    "octets",
    [
        "",
        "0904AABBCC",
        "0904AABBCCDDEE",
        "01FF",
        "0184FFFFFFFF00",
        "0985FFFFFFFFFF",
        "0980",
        "13",
        "1301",
        "63",
        "0A01FF",
        "0C01FF",
        "0101" * (MAX_DEPTH + 1) + "00",
    ],
)
def test_bad_lengths_types_and_depths_are_refused(octets: str) -> None:
    with pytest.raises(ProtocolError):
        axdr.decode(bytes.fromhex(octets))


def test_the_number_of_values_is_bounded() -> None:
    bomb = bytes.fromhex("0183011000") + bytes(0x011000)
    with pytest.raises(ProtocolError, match="too many"):
        axdr.decode(bomb)


@pytest.mark.parametrize(
    "data",
    [
        Data(DataType.ENUM, 256),
        Data(DataType.UNSIGNED, -1),
        Data(DataType.OCTET_STRING, "text"),
        Data(DataType.NULL, 1),
        Data(DataType.TIME, b"\x00"),
        Data(DataType.BIT_STRING, "012"),
        Data(DataType.FLOAT32, "1"),
    ],
)
def test_a_value_that_does_not_fit_its_type_is_not_written(data: Data) -> None:
    with pytest.raises(InputError):
        axdr.encode(data)


def test_the_representation_shows_no_octets() -> None:
    assert repr(axdr.structure(axdr.octet_string(b"secret"))) == "Data(structure, (Data(octet-string, 6 octets),))"


def test_a_value_is_asked_for_by_type() -> None:
    with pytest.raises(ProtocolError, match="octet-string was expected, not enum"):
        axdr.enum(1).octets()
    with pytest.raises(ProtocolError):
        axdr.octet_string(b"").integer()
    with pytest.raises(ProtocolError):
        axdr.octet_string(b"").items()
