"""What a virtual meter keeps over a restart, and the file that holds it.

The file is JSON, readable by its owner only. Needed are "system_title" (16 hex digits), "suite" and "keys" ("guek",
"gbek", "gak", "master" in hex). The rest has defaults:

| name                            | meaning                                                                  |
|---------------------------------|--------------------------------------------------------------------------|
| tx_ic, rx_ic                    | next counter the meter sends, lowest counter it accepts under the GUEK   |
| version, policy                 | of the Security Setup object; policy as its attribute has it             |
| mechanisms                      | authentication mechanisms that clients may use                           |
| password, secret                | of mechanism 1, and of 3, 4 and 6; hex                                   |
| sent, lowest                    | further counters by name                                                 |
| message                         | consumer message text, hex; written by broadcasts and clients            |
| key_pairs, new_key_pairs        | by certificate type, PKCS#8 in hex; new ones wait for their certificate  |
| certificates, anchors           | DER in hex; anchors are only placed here, never over the wire            |
| associations                    | further ones: what belongs to a Security Setup and a client, see below   |

One of "associations" has "setup" (the E of its Security Setup, 0.0.43.0.E.255, and of its counter, 0.0.43.1.E.255),
"client" (the SAP that speaks in it) and "keys", and of the above what is not the whole device's: "tx_ic", "rx_ic",
"version", "policy", "mechanisms", "password", "secret", "sent", "lowest". Every other client speaks in the first one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from hsmkm.dlms.certificates import CertificateType
from hsmkm.dlms.protection import SecurityPolicy
from hsmkm.dlms.settings import PUBLIC_CLIENT_SAP
from hsmkm.dlms.types import KeyId, Mechanism, SecuritySuite, SystemTitle
from hsmkm.errors import InputError, ProtocolError

Save = Callable[["MeterState"], None]
KeyPairs = dict[CertificateType, ec.EllipticCurvePrivateKey]

DEFAULT_POLICIES = (0x03, 0x6C)
MAX_SETUP = 255


@dataclass(slots=True)
class MeterState:
    """The keys, counters and certificates of one device; raises InputError for keys that do not fit the suite.

    `associations` are its further ones, each a state whose key pairs and certificates are those of the device.
    """

    system_title: SystemTitle
    suite: SecuritySuite
    keys: dict[KeyId, bytes] = field(repr=False)
    tx_ic: int = 1
    rx_ic: int = 0
    version: int = 0
    policy: int | None = None
    mechanisms: frozenset[Mechanism] = frozenset({Mechanism.HLS_GMAC})
    password: bytes = field(default=b"", repr=False)
    secret: bytes = field(default=b"", repr=False)
    sent: dict[str, int] = field(default_factory=dict)
    lowest: dict[str, int] = field(default_factory=dict)
    message: bytes = b""
    key_pairs: KeyPairs = field(default_factory=dict, repr=False)
    new_key_pairs: KeyPairs = field(default_factory=dict, repr=False)
    certificates: list[bytes] = field(default_factory=list, repr=False)
    anchors: list[bytes] = field(default_factory=list, repr=False)
    setup: int = 0
    client: int | None = None
    associations: list[MeterState] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._take_in()
        if set(self.keys) != set(KeyId) or any(len(key) != self.suite.key_octets for key in self.keys.values()):
            raise InputError(f"a meter of suite {int(self.suite)} has four keys of {self.suite.key_octets} octets")
        if self.version not in (0, 1):
            raise InputError("a Security Setup is of version 0 or 1")
        if self.policy is None:
            self.policy = DEFAULT_POLICIES[self.version]
        try:
            _ = self.demands
        except ProtocolError as error:
            raise InputError(error.message) from None

    def _take_in(self) -> None:
        """Make the further associations those of this device; raises InputError where two cannot be told apart."""
        clients = [other.client for other in self.associations]
        setups = [one.setup for one in (self, *self.associations)]
        if len(set(clients)) != len(clients) or None in clients or PUBLIC_CLIENT_SAP in clients:
            raise InputError("each further association of a meter has a client of its own, not the public one")
        if len(set(setups)) != len(setups) or any(not 0 <= setup <= MAX_SETUP for setup in setups):
            raise InputError(f"each association of a meter has a Security Setup of its own, 0 to {MAX_SETUP}")
        for other in self.associations:
            if (other.system_title, other.suite) != (self.system_title, self.suite):
                raise InputError("all associations of a meter have its system title and suite")
            other.key_pairs, other.new_key_pairs = self.key_pairs, self.new_key_pairs
            other.certificates, other.anchors = self.certificates, self.anchors

    @property
    def demands(self) -> SecurityPolicy:
        """What the security policy demands."""
        return SecurityPolicy.parse(self.version, self.policy or 0)


def encode(state: MeterState) -> str:
    """Write the state as JSON."""
    return json.dumps(document(state), indent=1)


def document(state: MeterState) -> dict[str, Any]:
    """Give the state as JSON has it."""
    return {
        "system_title": str(state.system_title),
        "suite": int(state.suite),
        **_association(state),
        "message": state.message.hex(),
        "key_pairs": _written(state.key_pairs),
        "new_key_pairs": _written(state.new_key_pairs),
        "certificates": [der.hex() for der in state.certificates],
        "anchors": [der.hex() for der in state.anchors],
        "associations": [
            {"setup": other.setup, "client": other.client, **_association(other)} for other in state.associations
        ],
    }


def _association(state: MeterState) -> dict[str, object]:
    return {
        "keys": {key_id.name.lower(): key.hex() for key_id, key in state.keys.items()},
        "tx_ic": state.tx_ic,
        "rx_ic": state.rx_ic,
        "version": state.version,
        "policy": state.policy,
        "mechanisms": sorted(state.mechanisms),
        "password": state.password.hex(),
        "secret": state.secret.hex(),
        "sent": state.sent,
        "lowest": state.lowest,
    }


def decode(text: str) -> MeterState:
    """Read the state from JSON; raises InputError."""
    try:
        return from_document(json.loads(text))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"this is not a meter's state: {type(error).__name__}") from None


def from_document(found: Mapping[str, Any]) -> MeterState:
    """Take a state as JSON has it; what is missing or malformed raises KeyError, TypeError or ValueError."""
    device = {name: found[name] for name in ("system_title", "suite")}
    others = [_state(other | device) for other in found.get("associations", [])]
    return _state(found, others)


def _state(found: Mapping[str, Any], associations: Sequence[MeterState] = ()) -> MeterState:
    return MeterState(
        SystemTitle.parse(found["system_title"]),
        SecuritySuite(found["suite"]),
        _keys(found["keys"]),
        int(found.get("tx_ic", 1)),
        int(found.get("rx_ic", 0)),
        associations=list(associations),
        **_rest(found),
    )


def _keys(found: Mapping[str, str]) -> dict[KeyId, bytes]:
    return {KeyId[name.upper()]: bytes.fromhex(value) for name, value in found.items()}


def _rest(found: Mapping[str, Any]) -> dict[str, Any]:
    readers: dict[str, Callable[[Any], Any]] = {
        "version": int,
        "policy": lambda value: None if value is None else int(value),
        "mechanisms": lambda numbers: frozenset(Mechanism(number) for number in numbers),
        "password": bytes.fromhex,
        "secret": bytes.fromhex,
        "sent": _counters,
        "lowest": _counters,
        "message": bytes.fromhex,
        "key_pairs": _read,
        "new_key_pairs": _read,
        "certificates": _octets,
        "anchors": _octets,
        "setup": int,
        "client": int,
    }
    return {name: reader(found[name]) for name, reader in readers.items() if name in found}


def _counters(found: Mapping[str, int]) -> dict[str, int]:
    return {str(name): int(value) for name, value in found.items()}


def _octets(texts: list[str]) -> list[bytes]:
    return [bytes.fromhex(text) for text in texts]


def _written(pairs: KeyPairs) -> dict[str, str]:
    form = Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
    return {str(int(kind)): pair.private_bytes(*form).hex() for kind, pair in pairs.items()}


def _read(found: Mapping[str, str]) -> KeyPairs:
    pairs: KeyPairs = {}
    for kind, text in found.items():
        pair = load_der_private_key(bytes.fromhex(text), None)
        if not isinstance(pair, ec.EllipticCurvePrivateKey):
            raise TypeError(kind)
        pairs[CertificateType(int(kind))] = pair
    return pairs


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
