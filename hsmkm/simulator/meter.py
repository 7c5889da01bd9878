"""A virtual meter without I/O: its keys, objects and faults. `session` is one connection to it.

When a transferred key becomes effective varies in the field, and so do the ways to fail; both are settings here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from hsmkm.dlms import axdr, security_setup
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.security_setup import Attribute, KeyTransfer
from hsmkm.dlms.types import AttributeRef, KeyId, LogicalName, SystemTitle
from hsmkm.errors import ProtocolError
from hsmkm.simulator.keys import SoftwareKeys
from hsmkm.simulator.state import MeterState, Save

SUCCESS = 0
TEMPORARY_FAILURE = 2
READ_WRITE_DENIED = 3
OBJECT_UNDEFINED = 4
TYPE_UNMATCHED = 12
OTHER_REASON = 250

AUTHENTICATED_AND_ENCRYPTED = 3
EVERY_TRANSFER = -1
PROFILE_OCTETS = 5000
_PROFILE = axdr.octet_string(bytes(at & 0xFF for at in range(PROFILE_OCTETS)))

LOGICAL_DEVICE_NAME = AttributeRef(1, LogicalName.parse("0.0.42.0.0.255"), 2)
ACTIVE_ENERGY = AttributeRef(3, LogicalName.parse("1.0.1.8.0.255"), 2)
LONG_VALUE = AttributeRef(1, LogicalName.parse("0.0.128.0.0.255"), 2)


class Activation(StrEnum):
    """When a transferred key becomes effective."""

    NOW = "now"
    AFTER_RESPONSE = "after-response"
    RELEASE = "release"


class Fault(StrEnum):
    """How a key_transfer goes wrong."""

    REJECT = "reject"
    DROP_BEFORE = "drop-before"
    DROP_AFTER = "drop-after"
    LIE = "lie"
    FIRST_ONLY = "first-only"


class DroppedError(Exception):
    """The meter closes the connection and does not answer."""


@dataclass(frozen=True, slots=True)
class MeterSettings:
    """How a meter behaves; a fault hits the next `fault_count` key transfers, -1 for all."""

    activate: Activation = Activation.AFTER_RESPONSE
    ic_reset: bool = False
    fault: Fault | None = None
    fault_count: int = 1
    challenge: Callable[[int], bytes] = secrets.token_bytes


def _forget(_state: MeterState) -> None:
    """Keep nothing over a restart."""


class Meter:
    """One device; `save` is called with its state before it answers, whenever keys or counters changed."""

    def __init__(self, state: MeterState, settings: MeterSettings | None = None, save: Save = _forget) -> None:
        self.state = state
        self.settings = settings or MeterSettings()
        self._save = save
        self._faults_left = self.settings.fault_count
        self._changed = False

    @property
    def title(self) -> SystemTitle:
        """The meter's system title."""
        return self.state.system_title

    def cipher_key(self) -> SoftwareKeys:
        """The unicast keys that are effective now."""
        return SoftwareKeys(self.state.keys[KeyId.GUEK], self.state.keys[KeyId.GAK])

    def next_counter(self) -> int:
        """Take a counter value for an APDU or token of the meter's own."""
        self._changed = True
        self.state.tx_ic += 1
        return self.state.tx_ic - 1

    def accepts(self, counter: int) -> bool:
        """Take the counter of an APDU whose tag fits, unless it is below the lowest acceptable one."""
        if counter < self.state.rx_ic:
            return False
        self._changed = True
        self.state.rx_ic = counter + 1
        return True

    def store(self) -> None:
        """Save the state if it changed since the last time."""
        if self._changed:
            self._save(self.state)
            self._changed = False

    def activate(self, keys: Mapping[KeyId, bytes]) -> None:
        """Make transferred keys effective."""
        self.state.keys.update(keys)
        if KeyId.GUEK in keys and self.settings.ic_reset:
            self.state.tx_ic, self.state.rx_ic = 1, 0
        self._changed = True
        self.store()

    def read(self, ref: AttributeRef, client_title: bytes, *, public: bool) -> tuple[int, Data | None]:
        """Read an attribute: a Data-Access-Result, and the value where that is 0.

        The counter object tells the last counter accepted, and 0 before the first.
        """
        state = self.state
        open_to_all = {
            security_setup.invocation_counter(): axdr.double_long_unsigned(max(state.rx_ic - 1, 0)),
            security_setup.attribute(Attribute.SERVER_SYSTEM_TITLE): axdr.octet_string(self.title.octets),
            LOGICAL_DEVICE_NAME: axdr.octet_string(self.title.octets[:3] + self.title.octets[3:].hex().encode()),
        }
        to_clients = {
            ACTIVE_ENERGY: axdr.double_long_unsigned(123_456),
            LONG_VALUE: _PROFILE,
            security_setup.attribute(Attribute.LOGICAL_NAME): axdr.octet_string(security_setup.logical_name().octets),
            security_setup.attribute(Attribute.SECURITY_POLICY): axdr.enum(AUTHENTICATED_AND_ENCRYPTED),
            security_setup.attribute(Attribute.SECURITY_SUITE): axdr.enum(state.suite),
            security_setup.attribute(Attribute.CLIENT_SYSTEM_TITLE): axdr.octet_string(client_title),
        }
        if ref in open_to_all:
            return SUCCESS, open_to_all[ref]
        if public:
            return READ_WRITE_DENIED, None
        return (SUCCESS, to_clients[ref]) if ref in to_clients else (OBJECT_UNDEFINED, None)

    def transfer(self, data: Data | None) -> tuple[int, dict[KeyId, bytes]]:
        """Take a key_transfer: an Action-Result, and the keys to make effective; some faults raise DroppedError."""
        fault = self._next_fault()
        if fault is Fault.REJECT:
            return TEMPORARY_FAILURE, {}
        if fault is Fault.DROP_BEFORE:
            raise DroppedError
        try:
            keys = self._unwrap(security_setup.decode_key_transfer(data)) if data is not None else None
        except (ProtocolError, InvalidUnwrap):
            return OTHER_REASON, {}
        if keys is None:
            return TYPE_UNMATCHED, {}
        if fault is Fault.LIE:
            return SUCCESS, {}
        if fault is Fault.DROP_AFTER:
            self.activate(keys)
            raise DroppedError
        return SUCCESS, dict(list(keys.items())[:1]) if fault is Fault.FIRST_ONLY else keys

    def _unwrap(self, transfers: tuple[KeyTransfer, ...]) -> dict[KeyId, bytes]:
        if any(len(transfer.wrapped) != self.state.suite.wrapped_octets for transfer in transfers):
            raise ProtocolError("a key of the wrong length for the suite")
        master = self.state.keys[KeyId.MASTER]
        return {transfer.key_id: aes_key_unwrap(master, transfer.wrapped) for transfer in transfers}

    def _next_fault(self) -> Fault | None:
        if self.settings.fault is None or self._faults_left == 0:
            return None
        if self._faults_left != EVERY_TRANSFER:
            self._faults_left -= 1
        return self.settings.fault
