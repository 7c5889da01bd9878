"""A DLMS client: drives an association's state machine over a link, one call for one service."""

from __future__ import annotations

import time

from hsmkm.dlms.association import Association
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.events import Associated, Event, Forwarded, Refused, Released, Result, Send
from hsmkm.dlms.types import AttributeRef, MethodRef
from hsmkm.errors import ProtocolError, RefusedError, TransportError
from hsmkm.link.tcp import ApduLink

VALUE_SECONDS = 1800.0
"""How long one value may take in all its blocks; a megabyte over the slowest line takes half of it."""


class MeterRefusedError(RefusedError):
    """The meter declined; `event` says how, and whether the refusal was authenticated."""

    def __init__(self, event: Refused, hint: str = "") -> None:
        self.event = event
        super().__init__(f"the meter refused: {event.reason}", (event.reason,), hint)
        self.args = (event, hint)


class Client:
    """One association over one link.

    Every method raises MeterRefusedError where the meter declines, TransportError where it cannot be reached or stays
    silent, ProtocolError or IntegrityError where its answer is not to be believed.
    """

    def __init__(self, link: ApduLink, association: Association) -> None:
        self._link = link
        self._association = association

    def associate(self) -> Associated:
        """Open the association, with mutual authentication where the settings ask for it."""
        event = self._drive(self._association.associate())
        if isinstance(event, Associated):
            return event
        raise _unexpected()

    def get(self, ref: AttributeRef) -> Data:
        """Read an attribute, in blocks where the meter sends blocks."""
        data = self._result(self._association.get(ref))
        if data is None:
            raise _unexpected()
        return data

    def set(self, ref: AttributeRef, data: Data) -> None:
        """Write an attribute."""
        self._result(self._association.set(ref, data))

    def action(self, ref: MethodRef, data: Data | None = None) -> Data | None:
        """Invoke a method and give its return value."""
        return self._result(self._association.action(ref, data))

    def forward(self, apdu: bytes) -> bytes:
        """Carry a third party's general- APDU to the meter and give the meter's answer; neither can be read here."""
        event = self._drive(self._association.forward(apdu))
        if isinstance(event, Forwarded):
            return event.apdu
        raise _unexpected()

    def release(self) -> None:
        """Close the association in good order; the link stays open."""
        if not isinstance(self._drive(self._association.release()), Released):
            raise _unexpected()

    def _result(self, request: bytes) -> Data | None:
        event = self._drive(request)
        if isinstance(event, Result):
            return event.data
        raise _unexpected()

    def _drive(self, request: bytes) -> Event:
        event: Event = Send(request)
        deadline = time.monotonic() + VALUE_SECONDS
        while isinstance(event, Send):
            if time.monotonic() > deadline:
                raise TransportError(f"the meter has not given its whole answer within {VALUE_SECONDS:g} s")
            event = self._association.receive(self._exchange(event.apdu))
        if isinstance(event, Refused):
            raise MeterRefusedError(event)
        return event

    def _exchange(self, apdu: bytes) -> bytes:
        settings = self._association.settings
        return self._link.exchange(apdu, settings.client_sap, settings.server_sap)


def _unexpected() -> ProtocolError:
    return ProtocolError("the meter's answer is that of another service")
