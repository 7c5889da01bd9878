"""The prefix that names the meter behind a gateway (IEC 62056-5-3, gateway protocol).

An APDU for a device behind a gateway is preceded by `E6` (request) or `E7` (response), the network id (1 octet), the
length of the address (1 octet) and the address. The address here is the meter's system title (8 octets); the parser
takes any address of 1 to 32 octets, so that a frame for a stranger is refused for what it is.

The prefix is neither ciphered nor authenticated. It routes and no more: what protects the APDU is its own ciphering,
and an answer whose prefix was changed fails there, because the system title is part of the IV.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from hsmkm.errors import ProtocolError

MAX_ADDRESS = 32
_FIXED_OCTETS = 3


class Direction(IntEnum):
    """The tag of the prefix."""

    REQUEST = 0xE6
    RESPONSE = 0xE7


@dataclass(frozen=True, slots=True)
class GatewayFrame:
    """An APDU with its prefix; `address` has 1 to 32 octets, `network_id` is 0 to 255."""

    direction: Direction
    network_id: int
    address: bytes
    apdu: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.address) <= MAX_ADDRESS:
            raise ProtocolError(f"a gateway address has 1 to {MAX_ADDRESS} octets, not {len(self.address)}")
        if not self.apdu:
            raise ProtocolError("a gateway prefix without an APDU")

    def encode(self) -> bytes:
        """Return the prefix followed by the APDU."""
        return bytes((self.direction, self.network_id, len(self.address))) + self.address + self.apdu

    def answer(self, apdu: bytes) -> GatewayFrame:
        """Return the response that belongs to this request: same network, same address."""
        return GatewayFrame(Direction.RESPONSE, self.network_id, self.address, apdu)


def parse(octets: bytes) -> GatewayFrame:
    """Read a prefixed APDU; a wrong tag, a cut or empty address or a missing APDU raises ProtocolError."""
    if len(octets) < _FIXED_OCTETS:
        raise ProtocolError(f"a gateway prefix has at least {_FIXED_OCTETS} octets, not {len(octets)}")
    tag, network_id, length = octets[:_FIXED_OCTETS]
    if tag not in (Direction.REQUEST, Direction.RESPONSE):
        raise ProtocolError(f"tag {tag:02X} is neither E6 (request) nor E7 (response) of the gateway protocol")
    end = _FIXED_OCTETS + length
    if len(octets) < end:
        raise ProtocolError(f"a gateway address of {length} octets is cut off after {len(octets) - _FIXED_OCTETS}")
    return GatewayFrame(Direction(tag), network_id, octets[_FIXED_OCTETS:end], octets[end:])
