"""What is laid out once for many key sets is what one at a time makes, octet for octet."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from hsmkm.store.key_set import KeySet, KeySetRef, KeyState, StoredKey, encode_key_set, pack, unpack
from hsmkm.store.key_set_bulk import Form, FormEncoder, Kind, identities_of, wrapped_of
from hsmkm.store.meter import Meter
from hsmkm.store.times import to_seconds
from hsmkm.token.types import KeyRole, MeterRole, SecretRole

MASTER_FIRST = (KeyRole.MASTER, KeyRole.GUEK, KeyRole.GBEK, KeyRole.GAK)


def form(suite: int, order: str | None, secret: tuple[SecretRole, int] | None) -> Form:
    octets = 32 if suite == 2 else 16
    keys: list[tuple[MeterRole, int]] = [(role, octets) for role in MASTER_FIRST]
    return Form(
        3, 16, 1, "model-x", order, suite, KeyState.PRE_ACTIVE, tuple(keys + ([secret] if secret is not None else []))
    )


@pytest.mark.parametrize("suite", [0, 1, 2])
@pytest.mark.parametrize("order", [None, "ab" * 32])
@pytest.mark.parametrize("secret", [None, (SecretRole.LLS, 8), (SecretRole.HLS, 64)])
@pytest.mark.parametrize(("storage_key", "integrity_key"), [(1, 1), (7, 300), (70000, 255)])
def test_a_set_in_bulk_is_encoded_like_one_alone(
    suite: int, order: str | None, secret: tuple[SecretRole, int] | None, storage_key: int, integrity_key: int
) -> None:
    its = form(suite, order, secret)
    title, serial = b"MMM\x00\x01\x02\x03\xff", "Zähler 7"
    born = [bytes([1 + place]) * 16 for place in range(len(its.keys))]
    wraps = [bytes([101 + place]) * (octets + 8) for place, (_, octets) in enumerate(its.keys)]
    keys = tuple(StoredKey(role, *pair) for (role, _), *pair in zip(its.keys, born, wraps, strict=True))
    alone = KeySet(KeySetRef(title, 3, 16, 1), suite, storage_key, KeyState.PRE_ACTIVE, keys)
    meter = Meter(title, serial, "model-x", suite, order)
    stored, covered = FormEncoder(its, storage_key, integrity_key).encode(
        title, serial, b"".join(born), b"".join(wraps)
    )
    assert stored == pack(alone.keys)
    assert unpack(stored, "row") == alone.keys
    assert covered == encode_key_set(alone, meter, integrity_key)
    for moment in (None, datetime(2027, 5, 6, tzinfo=UTC)):
        dated = encode_key_set(replace(alone, destroy_after=moment), meter, integrity_key)
        kind = Kind(its, storage_key, integrity_key, to_seconds(moment))
        assert kind.encoder().covered(title, serial, stored) == dated
    assert list(identities_of([stored], its)) == [tuple(key.identity for key in alone.keys)]
    assert list(wrapped_of([stored], its)) == [key.wrapped for key in alone.keys]


def test_a_form_names_each_role_once() -> None:
    with pytest.raises(ValueError, match="one key of each role"):
        Form(0, 1, 1, "m", None, 0, KeyState.PRE_ACTIVE, ((KeyRole.GUEK, 16), (KeyRole.GUEK, 16)))
