"""What a virtual meter keeps over a restart, and the file that holds it.

The file is JSON, readable by its owner only: {"system_title": 16 hex digits, "suite": n, "keys": {"guek": hex, "gbek":
hex, "gak": hex, "master": hex}, "tx_ic": next counter the meter sends, "rx_ic": lowest counter it accepts}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hsmkm.dlms.types import KeyId, SecuritySuite, SystemTitle
from hsmkm.errors import InputError

Save = Callable[["MeterState"], None]


@dataclass(slots=True)
class MeterState:
    """The keys and counters of one device; raises InputError for keys that do not fit the suite."""

    system_title: SystemTitle
    suite: SecuritySuite
    keys: dict[KeyId, bytes] = field(repr=False)
    tx_ic: int = 1
    rx_ic: int = 0

    def __post_init__(self) -> None:
        if set(self.keys) != set(KeyId) or any(len(key) != self.suite.key_octets for key in self.keys.values()):
            raise InputError(f"a meter of suite {int(self.suite)} has four keys of {self.suite.key_octets} octets")


def encode(state: MeterState) -> str:
    """Write the state as JSON."""
    document = {
        "system_title": str(state.system_title),
        "suite": int(state.suite),
        "keys": {key_id.name.lower(): key.hex() for key_id, key in state.keys.items()},
        "tx_ic": state.tx_ic,
        "rx_ic": state.rx_ic,
    }
    return json.dumps(document, indent=1)


def decode(text: str) -> MeterState:
    """Read the state from JSON; raises InputError."""
    try:
        document = json.loads(text)
        return MeterState(
            SystemTitle.parse(document["system_title"]),
            SecuritySuite(document["suite"]),
            _keys(document["keys"]),
            int(document.get("tx_ic", 1)),
            int(document.get("rx_ic", 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"this is not a meter's state: {type(error).__name__}") from None


def _keys(document: Mapping[str, str]) -> dict[KeyId, bytes]:
    return {KeyId[name.upper()]: bytes.fromhex(value) for name, value in document.items()}


def load(path: Path) -> MeterState:
    """Read a state file; raises InputError if it is missing, malformed, or readable by others."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {type(error).__name__}") from None
    if mode & 0o077:
        raise InputError(f"{path} holds keys and is readable by others", hint=f"chmod 600 {path}")
    return decode(text)


def save_to(path: Path) -> Save:
    """Give a callback that replaces the file at once: a reader finds the old state or the new one."""
    temporary = path.with_name(f".{path.name}.new")

    def save(state: MeterState) -> None:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(encode(state))
        temporary.replace(path)

    return save
