"""The form of packages that move keys to another token: strict, and no other purpose has it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hsmkm.errors import InputError
from hsmkm.packages.content import Peer, Purpose, parse_content
from hsmkm.packages.moving import MovingKey, MovingKeys, parse_moving
from hsmkm.packages.send import new_header
from hsmkm.token.types import KeyRole, SecretRole

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ME = Peer("me", "utility", b"UTI\x00\x00\x00\x00\x01")
KEYS = (
    MovingKey(bytes(16), KeyRole.GUEK, 0, bytes(24)),
    MovingKey(bytes(16), KeyRole.GBEK, 0, bytes(24)),
    MovingKey(b"\x01" * 16, KeyRole.MASTER, 2, bytes(40)),
    MovingKey(b"\x02" * 16, SecretRole.HLS, 1, bytes(72)),
)


def content() -> MovingKeys:
    header = new_header(Purpose.MIGRATION, 1, ME, ME, NOW, timedelta(days=30))
    return MovingKeys(header, b"info", bytes(32), KEYS)


def changed(**changes: Any) -> bytes:  # noqa: ANN401 - JSON values
    return json.dumps(json.loads(content().encode()) | changes).encode()


def key(**changes: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON values
    return [json.loads(content().encode())["keys"][0] | changes]


def test_it_is_read_as_it_was_written() -> None:
    made = content()
    assert parse_moving(made.encode()) == made


@pytest.mark.parametrize(
    "changes",
    [
        {"purpose": "delivery"},
        {"store": "00"},
        {"keys": []},
        {"keys": key() * 2},
        {"keys": key(role="kek")},
        {"keys": key(suite=2)},
        {"keys": key(suite=3)},
        {"keys": key(wrapped="00" * 25)},
        {"keys": key(identity="00" * 15)},
        {"keys": key(value="00")},
        {"meters": []},
        {"sequence": 0},
    ],
)
def test_anything_else_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        parse_moving(changed(**changes))


def test_keys_of_meters_do_not_travel_as_a_migration() -> None:
    entry = {
        "system_title": "4D4D4D0000000001",
        "serial": "1",
        "model": "virtual",
        "suite": 0,
        "security_setup": 0,
        "client": 1,
        "address": "",
        "group": "",
        "generation": 1,
        "revision": 0,
        "state": "active",
        "keys": {"guek": {"identity": "00" * 16, "wrapped": "00" * 24, "under": "package"}},
    }
    document = json.loads(content().encode())
    del document["keys"], document["store"]
    with pytest.raises(InputError) as raised:
        parse_content(json.dumps(document | {"meters": [entry]}).encode())
    assert any("a migration carries keys by their identity" in fault.text for fault in raised.value.faults)
