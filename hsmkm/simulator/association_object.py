"""The association object (class 15) of a virtual meter, by which clients change LLS and HLS secrets."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding

from hsmkm.dlms.axdr import Data
from hsmkm.dlms.types import AttributeRef, KeyId, LogicalName, MethodRef
from hsmkm.errors import ProtocolError
from hsmkm.simulator.behaviour import DroppedError, Fault
from hsmkm.simulator.security_setup import OTHER_REASON, READ_WRITE_DENIED, SUCCESS, TEMPORARY_FAILURE, TYPE_UNMATCHED
from hsmkm.simulator.state import MeterState

OBJECT = LogicalName.parse("0.0.40.0.0.255")
SECRET = AttributeRef(15, OBJECT, 7)
CHANGE_HLS_SECRET = MethodRef(15, OBJECT, 2)
SECRET_OCTETS = range(8, 65)


class AssociationObject:
    """Takes an LLS password by its attribute, and an HLS secret, wrapped under the master key, by its method.

    A new secret is used from the next association on. `next_fault` says what goes wrong with this change.
    """

    def __init__(self, state: MeterState, next_fault: Callable[[], Fault | None], keep: Callable[[], None]) -> None:
        self._state = state
        self._next_fault = next_fault
        self._keep = keep

    def write(self, ref: AttributeRef, data: Data) -> int:
        """Write an attribute: a Data-Access-Result; some faults raise DroppedError."""
        if ref != SECRET:
            return READ_WRITE_DENIED
        try:
            return self._take(data.octets(), is_password=True)
        except ProtocolError:
            return TYPE_UNMATCHED

    def change(self, data: Data | None) -> int:
        """Invoke change_HLS_secret: an Action-Result; some faults raise DroppedError."""
        if data is None:
            return TYPE_UNMATCHED
        try:
            value = aes_key_unwrap_with_padding(self._state.keys[KeyId.MASTER], data.octets())
        except (InvalidUnwrap, ValueError, ProtocolError):
            return OTHER_REASON
        return self._take(value, is_password=False)

    def _take(self, value: bytes, *, is_password: bool) -> int:
        if len(value) not in SECRET_OCTETS:
            return TYPE_UNMATCHED
        fault = self._next_fault()
        if fault is Fault.REJECT:
            return TEMPORARY_FAILURE
        if fault is Fault.DROP_BEFORE:
            raise DroppedError
        if fault is not Fault.LIE:
            self._state.password, self._state.secret = (
                (value, self._state.secret) if is_password else (self._state.password, value)
            )
            self._keep()
        if fault is Fault.DROP_AFTER:
            raise DroppedError
        return SUCCESS
