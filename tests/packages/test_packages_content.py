from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from secrets import token_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmkm.errors import InputError
from hsmkm.packages.content import (
    MeterEntry,
    PackageContent,
    PackageHeader,
    Peer,
    Purpose,
    Under,
    WrappedKey,
    parse_content,
)
from hsmkm.packages.fields import time_text
from hsmkm.packages.strict_json import canonical, parse
from hsmkm.token.types import KeyRole, SecretRole

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
HEADER = PackageHeader(
    "0f8fad5b-d9cb-469f-a165-70867728950e", 7, NOW, NOW + timedelta(days=30), Purpose.DELIVERY,
    Peer("factory", "factory"), Peer("utility", "utility", bytes.fromhex("5554490000000001")),
)  # fmt: skip


def entry(number: int = 1, suite: int = 0, **changes: object) -> MeterEntry:
    length = 40 if suite == 2 else 24
    keys = tuple(WrappedKey(role, token_bytes(16), token_bytes(length), Under.PACKAGE) for role in KeyRole)
    made = MeterEntry(b"MMM" + number.to_bytes(5, "big"), f"S{number}", "mm100", suite, 0, 1, 1, "active", keys=keys)
    return replace(made, **changes)  # type: ignore[arg-type]  # the fields of an entry


def content(*meters: MeterEntry, header: PackageHeader = HEADER) -> PackageContent:
    return PackageContent(header, b"\x30\x00", meters or (entry(),))


def faults(data: bytes) -> str:
    with pytest.raises(InputError) as raised:
        parse_content(data)
    return "\n".join(fault.text for fault in raised.value.faults) or raised.value.message


def changed(**members: object) -> bytes:
    return json.dumps(json.loads(content().encode()) | members).encode()


def changed_meter(**members: object) -> bytes:
    document = json.loads(content().encode())
    document["meters"][0] |= members
    return json.dumps(document).encode()


def changed_key(**members: object) -> bytes:
    document = json.loads(content().encode())
    document["meters"][0]["keys"]["guek"] |= members
    return json.dumps(document).encode()


def without(name: str) -> bytes:
    document = json.loads(content().encode())
    del document[name]
    return json.dumps(document).encode()


@pytest.mark.parametrize("suite", [0, 1, 2])
def test_a_content_comes_back_as_it_was_written(suite: int) -> None:
    made = content(entry(1, suite, certificates=(b"\x30\x01\x00",)), entry(2, suite, address="192.0.2.1:4059"))
    assert parse_content(made.encode()) == made


def test_the_header_is_hashed_in_the_canonical_form_of_rfc_8785() -> None:
    text = (
        '{"created":"2026-05-04T12:00:00Z","expires":"2026-06-03T12:00:00Z","format":"hsmkm-key-package/1",'
        '"id":"0f8fad5b-d9cb-469f-a165-70867728950e","purpose":"delivery",'
        '"recipient":{"name":"utility","role":"utility","system_title":"5554490000000001"},'
        '"sender":{"name":"factory","role":"factory","system_title":""},"sequence":7}'
    )
    assert HEADER.ukm() == hashlib.sha256(text.encode()).digest()


def test_canonical_text_escapes_as_rfc_8785_does() -> None:
    text = '\u20ac$\u000f\nA\'B"\\\\"/'
    assert canonical({"b": 1, "a": text}).decode() == '{"a":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/","b":1}'


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"a":1,"a":1}', "a name occurs twice"),
        (b'{"a":1.0}', "not a whole one"),
        (b'{"a":1e3}', "not a whole one"),
        (b'{"a":NaN}', "not a whole one"),
        (b'{"a":9007199254740992}', "out of range"),
        (b'{"a":' + b"9" * 5000 + b"}", "out of range"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff", "not UTF-8"),
        (b'{"a":"\\uD800"}', "not UTF-8"),
        (b"", "Expecting value"),
        (b"{} x", "Extra data"),
    ],
)
def test_json_is_strict(data: bytes, text: str) -> None:
    with pytest.raises(InputError, match=text):
        parse(data, 1 << 20, "it")


@given(st.binary(max_size=200))
def test_octets_never_raise_anything_but_an_input_error(data: bytes) -> None:
    with pytest.raises(InputError):
        parse_content(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*json.loads(content().encode())]), JSON)
def test_a_member_of_any_other_type_is_a_fault_and_nothing_else(name: str, value: object) -> None:
    with suppress(InputError):
        parse_content(changed(**{name: value}))


@given(st.sampled_from([*json.loads(content().encode())["meters"][0]]), JSON)
def test_a_member_of_a_meter_of_any_other_type_is_a_fault_and_nothing_else(name: str, value: object) -> None:
    with suppress(InputError):
        parse_content(changed_meter(**{name: value}))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (changed(format="hsmkm-key-package/2"), "format is none of"),
        (changed(id="0F8FAD5B-D9CB-469F-A165-70867728950E"), "id is not a UUID"),
        (changed(sequence=0), "sequence is not a whole number"),
        (changed(sequence=True), "sequence is not a whole number"),
        (changed(created="2026-05-04 12:00:00Z"), "created is not a time"),
        (changed(created="2026-13-04T12:00:00Z"), "created is not a time"),
        (changed(expires=time_text(NOW)), "expires is not after created"),
        (changed(expires="2036-05-04T12:00:00Z"), "expires is not after created by at most 366 days"),
        (changed(purpose="sale"), "purpose is none of"),
        (changed(sender="factory"), "sender is not an object"),
        (changed(sender={"name": "f", "role": "factory"}), "sender.system_title is missing"),
        (changed(extra=1), "extra has no place here"),
        (changed(meters=[]), "meters is not a list of 1 to 10000"),
        (changed(transport={"key_wrap": "aes128-wrap", "recipient_info": "MAA="}), "transport.key_wrap is none of"),
        (changed(transport={"key_wrap": "aes256-wrap", "recipient_info": "MAB="}), "recipient_info is not base64"),
        (without("transport"), "transport is missing, and there are keys"),
        (without("sequence"), "sequence is missing"),
        (changed_meter(system_title="4d4d4d0000000001"), "meters[0].system_title is not a system title"),
        (changed_meter(serial=""), "meters[0].serial is not printable"),
        (changed_meter(serial="a\nb"), "meters[0].serial is not printable"),
        (changed_meter(suite=3), "meters[0].suite is not a whole number between 0 and 2"),
        (changed_meter(suite=2), "meters[0].keys.guek.wrapped is not 40 octets"),
        (changed_meter(state="destroyed"), "meters[0].state is none of"),
        (changed_meter(keys={}), "meters[0].keys is empty"),
        (changed_meter(keys={"lls2": {}}), "meters[0].keys.lls2 has no place here"),
        (changed_meter(certificates=[]), "meters[0].certificates is not a list"),
        (changed_meter(certificates=["!"]), "meters[0].certificates[0] is not base64"),
        (changed_key(wrapped="AA" * 24), "in hex with small letters"),
        (changed_key(wrapped="aa" * 40), "meters[0].keys.guek.wrapped is not 24 octets"),
        (changed_key(identity="aa" * 15), "meters[0].keys.guek.identity is not 16 octets"),
        (changed_key(under="master"), "guek does not lie under the package key"),
    ],
)  # fmt: skip
def test_each_fault_of_form_is_named_with_its_place(data: bytes, text: str) -> None:
    assert text in faults(data)


def test_all_faults_come_at_once() -> None:
    found = faults(changed(sequence=0, purpose="sale", meters=[{}, 5]))
    for text in ("sequence", "purpose", "meters[0].system_title is missing", "meters[1] is not an object"):
        assert text in found


def test_a_generation_is_given_once() -> None:
    assert "occurs twice" in faults_of(content(entry(1), entry(1)))


def test_the_same_key_twice_is_found_by_its_wrapping_and_by_its_identity() -> None:
    first, second = entry(1), entry(2)
    by_wrapping = replace(second.keys[1], wrapped=first.keys[1].wrapped)
    by_identity = replace(second.keys[1], identity=first.keys[1].identity)
    for key in (by_wrapping, by_identity):
        assert "is the same key as" in faults_of(content(first, replace(second, keys=(*second.keys[2:], key))))
    gak_as_guek = replace(first.keys[3], wrapped=first.keys[1].wrapped)
    assert "gak is the same key as guek" in faults_of(content(replace(first, keys=(*first.keys[:3], gak_as_guek))))


def test_a_group_shares_its_broadcast_key() -> None:
    first, second = entry(1, group="north"), entry(2, group="north")
    gbek = next(key for key in first.keys if key.role is KeyRole.GBEK)
    shared = replace(second, keys=(*(key for key in second.keys if key.role is not KeyRole.GBEK), gbek))
    assert parse_content(content(first, shared).encode()).meters[0] == first
    assert "is the same key as" in faults_of(content(replace(first, group=""), replace(shared, group="")))


def test_a_copied_key_may_be_in_two_generations_of_one_meter() -> None:
    first = entry(1)
    second = replace(entry(1), generation=2, keys=(first.keys[0],))
    assert len(parse_content(content(first, second).encode()).meters) == 2


def test_purposes_say_which_keys_there_are() -> None:
    activation = replace(HEADER, purpose=Purpose.ACTIVATION)
    distribution = replace(HEADER, purpose=Purpose.DISTRIBUTION)
    assert "an activation carries no keys" in faults_of(content(header=activation))
    assert "a distribution carries no master key" in faults_of(content(header=distribution))
    assert "there are no keys" in faults_of(PackageContent(HEADER, b"", (entry(keys=()),)))
    relay = PackageContent(distribution, b"", (entry(keys=()),))
    assert parse_content(relay.encode()) == relay


@pytest.mark.parametrize("suite", [0, 1, 2])
@pytest.mark.parametrize("octets", [16, 24, 48, 72])
def test_secrets_have_lengths_of_their_own_in_every_suite(suite: int, octets: int) -> None:
    made = entry(suite=suite)
    secrets = tuple(WrappedKey(role, token_bytes(16), token_bytes(octets), Under.PACKAGE) for role in SecretRole)
    whole = content(replace(made, keys=(*made.keys, *secrets)))
    assert parse_content(whole.encode()) == whole


@pytest.mark.parametrize("octets", [0, 8, 15, 21, 23, 80])
def test_a_secret_of_another_length_has_no_form(octets: int) -> None:
    secret = WrappedKey(SecretRole.HLS, token_bytes(16), token_bytes(octets), Under.PACKAGE)
    assert "meters[0].keys.hls.wrapped is not" in faults_of(content(replace(entry(), keys=(secret,))))


def test_ten_thousand_meters_are_the_most() -> None:
    document = json.loads(PackageContent(replace(HEADER, purpose=Purpose.ACTIVATION), b"", (entry(keys=()),)).encode())
    one = document["meters"][0]
    document["meters"] = [one | {"generation": number} for number in range(10_001)]
    assert "meters is not a list of 1 to 10000" in faults(json.dumps(document).encode())
    document["meters"].pop()
    assert len(parse_content(json.dumps(document).encode()).meters) == 10_000


def test_no_key_shows_in_a_representation() -> None:
    made = entry()
    assert all(key.wrapped.hex() not in repr(made) and repr(key.wrapped) not in repr(made) for key in made.keys)


def faults_of(made: PackageContent) -> str:
    with pytest.raises(InputError) as raised:
        made.encode()
    return "\n".join(fault.text for fault in raised.value.faults)
