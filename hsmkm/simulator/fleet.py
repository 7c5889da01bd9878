"""A fleet of virtual meters in one process: each is made when it is first met, and a few hundred octets while it rests.

All listen on one port of the loopback, whose network has an address for each: meter n is 127.a.b.c, where a.b.c is n in
three octets. They are alike but for their system titles, which count upwards from that of the state file they are made
after, and for what has happened to them since. The way to them, and they themselves, fail as `fate` says.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any, Protocol

from hsmkm.dlms.types import KeyId, SystemTitle
from hsmkm.errors import InputError
from hsmkm.simulator.behaviour import Fault, Faults, MeterSettings
from hsmkm.simulator.fate import Chances, Fate, Fates
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.state import MeterState, document, from_document
from hsmkm.simulator.tally import CONNECTIONS, EXCHANGES, NEW_KEYS, TWICE, TWO_AT_ONCE, Heard, Tally

NETWORK = int(IPv4Address("127.0.0.0"))
MOST_METERS = 2**24 - 2
"""The last address of the network is its broadcast address."""

_SERIAL_OCTETS = 5
_SERIALS = 2 ** (8 * _SERIAL_OCTETS)


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """How a fleet behaves: its meters, what befalls them, and whether each has a character of its own.

    `reset_at_reboot`: a meter that reboots has forgotten its counters.
    """

    meters: int
    seed: int = 1
    chances: Chances = field(default_factory=Chances)
    behaviour: MeterSettings = field(default_factory=MeterSettings)
    mixed: bool = False
    reset_at_reboot: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.meters <= MOST_METERS:
            raise InputError(f"a fleet has 1 to {MOST_METERS} meters, as many as the loopback has addresses")


class Line(Protocol):
    """One connection to a meter, as the fleet sees it."""

    @property
    def client(self) -> int:
        """The SAP that speaks on it."""

    @property
    def is_open(self) -> bool:
        """Whether there is an association on it, and the client at its end."""

    def cut(self) -> None:
        """Lose the connection with all that was of it."""


class Device:
    """A meter while somebody is connected to it."""

    __slots__ = ("heard", "lines", "meter", "number")

    def __init__(self, number: int, meter: Meter, heard: Heard) -> None:
        self.number = number
        self.meter = meter
        self.heard = heard
        self.lines: list[Line] = []


class Fleet:
    """The meters: those that rest as octets, and those that are spoken to as devices."""

    def __init__(self, first: MeterState, settings: FleetSettings) -> None:
        self.settings = settings
        self.first = first
        self.tally = Tally()
        self._template = document(first)
        self._lowest = int.from_bytes(first.system_title.octets[-_SERIAL_OCTETS:], "big")
        self._prefix = first.system_title.octets[:-_SERIAL_OCTETS]
        if first.key_pairs or first.new_key_pairs:
            raise InputError("the meters of a fleet share no key pair", hint="take the key pairs out of the state file")
        if self._lowest + settings.meters > _SERIALS:
            raise InputError("the system titles of the fleet do not count up so far", hint="begin with a lower one")
        self._fates = Fates(settings.seed, settings.chances)
        self._resting: dict[int, bytes] = {}
        self._runs: dict[int, bytes] = {}
        self._active: dict[int, Device] = {}
        self._exchanges = array("Q", bytes(8)) * (settings.meters + 1)
        self._new_keys = array("Q", bytes(8)) * (settings.meters + 1)

    def title(self, number: int) -> SystemTitle:
        """The system title of a meter, by its number from 1."""
        return SystemTitle(self._prefix + (self._lowest + number - 1).to_bytes(_SERIAL_OCTETS, "big"))

    def places(self, port: int) -> Iterator[str]:
        """Give a line TITLE,ADDRESS:PORT for each meter, as commands take them."""
        for number in range(1, self.settings.meters + 1):
            yield f"{self.title(number)},{IPv4Address(NETWORK + number)}:{port}\n"

    def number_at(self, address: str) -> int | None:
        """Tell which meter an address of ours is; None where there is none."""
        number = int(IPv4Address(address)) - NETWORK
        return number if 1 <= number <= self.settings.meters else None

    def keys(self, number: int) -> dict[KeyId, bytes]:
        """Tell which keys are effective in a meter."""
        device = self._active.get(number) or self._awake(number)
        return dict(device.meter.state.keys)

    def enter(self, number: int, line: Line) -> Device:
        """Begin a connection to a meter."""
        device = self._active.get(number)
        if device is None:
            device = self._active[number] = self._awake(number)
        device.lines.append(line)
        self.tally.count(CONNECTIONS)
        return device

    def leave(self, device: Device, line: Line) -> None:
        """End a connection; a meter that nobody is connected to rests."""
        device.lines.remove(line)
        if not device.lines:
            del self._active[device.number]
            self._put_to_rest(device)

    def fate(self, number: int) -> Fate:
        """Say what befalls the next exchange of a meter, and count it."""
        fate = self._fates.exchange(number, self._exchanges[number])
        self._exchanges[number] += 1
        self.tally.count(EXCHANGES)
        if fate.mishap is not None:
            self.tally.befell(number, fate.mishap)
        return fate

    def reboot(self, device: Device) -> None:
        """Cut a meter's connections, and forget its counters where the settings say so."""
        for line in tuple(device.lines):
            line.cut()
        if self.settings.reset_at_reboot:
            for state in (device.meter.state, *device.meter.state.associations):
                state.tx_ic, state.rx_ic = 1, 0

    def opened(self, device: Device, line: Line) -> None:
        """Count a client that has another association with the meter beside the one it has just opened."""
        if any(other is not line and other.client == line.client and other.is_open for other in device.lines):
            self.tally.befell(device.number, TWO_AT_ONCE)

    def close(self) -> None:
        """Cut every connection, as when all meters lose their power."""
        for device in tuple(self._active.values()):
            for line in tuple(device.lines):
                line.cut()

    def report(self) -> Iterator[str]:
        """Say what befell the fleet and its meters, a line of JSON each."""
        met = sum(count > 0 for count in self._exchanges)
        fleet = {"meters": self.settings.meters, "met": met, "seed": self.settings.seed}
        return self.tally.lines(lambda number: str(self.title(number)), fleet)

    def states(self) -> Iterator[str]:
        """Write every meter that was met as a line of JSON; `take_up` reads them."""
        for device in self._active.values():
            self._put_to_rest(device)
        for number in sorted(self._resting):
            changed = json.loads(self._resting[number])
            counts = self._exchanges[number], self._new_keys[number]
            yield json.dumps([str(self.title(number)), *counts, self._runs[number].hex(), changed]) + "\n"

    def take_up(self, lines: Iterator[str]) -> None:
        """Go on with meters as `states` wrote them; raises InputError that names the line."""
        for place, line in enumerate(lines, 1):
            try:
                self._take_up(*json.loads(line))
            except (ValueError, KeyError, TypeError, OverflowError, InputError) as error:
                said = error.message if isinstance(error, InputError) else type(error).__name__
                raise InputError(f"line {place} of the fleet's states cannot be used: {said}") from None

    def _take_up(self, title: str, exchanges: int, new_keys: int, runs: str, changed: Mapping[str, Any]) -> None:
        number = int.from_bytes(bytes.fromhex(title)[-_SERIAL_OCTETS:], "big") - self._lowest + 1
        if not 1 <= number <= self.settings.meters or str(self.title(number)) != title:
            raise InputError("it is no meter of this fleet")
        self._state(number, changed)
        self._exchanges[number], self._new_keys[number] = exchanges, new_keys
        self._runs[number] = Heard(bytes.fromhex(runs)).packed()
        self._resting[number] = _octets(changed)

    def _awake(self, number: int) -> Device:
        state = self._state(number, json.loads(self._resting.get(number, b"{}")))
        behaviour = self.settings.behaviour
        if self.settings.mixed:
            activate, restarts = self._fates.character(number)
            behaviour = replace(behaviour, activate=activate, ic_reset=restarts)
        heard = Heard(self._runs.get(number, b""))
        meter = Meter(state, behaviour, faults=_FatedFaults(self, number, behaviour))
        meter.listen(lambda guek, counter: self._hear(number, heard, guek, counter))
        return Device(number, meter, heard)

    def _hear(self, number: int, heard: Heard, guek: bytes, counter: int) -> None:
        if not heard.is_new(guek, counter):
            self.tally.befell(number, TWICE)

    def _state(self, number: int, changed: Mapping[str, Any]) -> MeterState:
        return from_document({**self._template, **changed, "system_title": str(self.title(number))})

    def _put_to_rest(self, device: Device) -> None:
        found = document(device.meter.state)
        changed = {name: value for name, value in found.items() if value != self._template[name]}
        changed.pop("system_title", None)
        self._resting[device.number] = _octets(changed)
        self._runs[device.number] = device.heard.packed()

    def next_fault(self, number: int) -> Fault | None:
        """Say how the next new keys of a meter go wrong, and count them."""
        fault = self._fates.new_key(number, self._new_keys[number])
        self._new_keys[number] += 1
        self.tally.count(NEW_KEYS)
        if fault is not None:
            self.tally.befell(number, fault)
        return fault


def _octets(changed: Mapping[str, Any]) -> bytes:
    return json.dumps(changed, separators=(",", ":")).encode()


class _FatedFaults(Faults):
    """The faults of a meter as its fate has them."""

    def __init__(self, fleet: Fleet, number: int, settings: MeterSettings) -> None:
        super().__init__(settings)
        self._fleet = fleet
        self._number = number

    def next(self, setup: int) -> Fault | None:
        """Give the fault that hits the next new keys."""
        return self._fleet.next_fault(self._number) or super().next(setup)
