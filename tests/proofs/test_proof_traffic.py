"""No run of eight octets of what is protected goes over a wire in clear: all three suites, steps 5 to 7 and a reading.

Taps between head end and concentrator, concentrator and AIM, and concentrator and meters keep every octet. The
plaintexts are taken where both sides put protection on and take it off, in this process: the head end's and the
meters'. What the public client asks and hears is in clear by the standard, and looked at apart.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from hsmkm.config import data_folder
from hsmkm.dlms import ciphering
from hsmkm.dlms.settings import PUBLIC_CLIENT_SAP
from hsmkm.link.wrapper import Decoder
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.state import load, save_to
from hsmkm.steps.renew import GLOBAL_KEYS, renew
from tests.field import ENERGY, deliver_meters, energy, open_field, state_path
from tests.mechanisms import set_up, under_initial_keys
from tests.realm import MODELS, Realm, copy_realm, title_of
from tests.tap import Tap, tapping

pytestmark = pytest.mark.slow

RUN = 8
FLEET = {1: 0, 2: 1, 3: 2}
FORMS = {0: "glo", 1: "ded", 2: "general-ded"}
CARRIERS = {1: {0xC8, 0xCB, 0xCC, 0xCF}, 2: {0xD0, 0xD3, 0xD4, 0xD7}, 3: {0xDC}}
"""Tags of the APDUs that carry a meter's services, by serial number."""

PLAIN_TAGS = {0x01, 0x08, 0xC0, 0xC3, 0xC4, 0xC7}
VALUE = 123_456
READ = bytes.fromhex("C401C100060001E240")
PUBLIC_REQUEST = bytes.fromhex("C001C1000100002B0100FF0200")


def runs(octets: bytes) -> Iterator[bytes]:
    return (octets[at : at + RUN] for at in range(len(octets) - RUN + 1))


def in_clear(secret: set[bytes], wire: bytes) -> set[bytes]:
    """Every run of eight octets of what is secret that stands on the wire."""
    wanted = {run for each in secret for run in runs(bytes(each))}
    return {run for run in runs(wire) if run in wanted}


@dataclass
class Record:
    """What went over the wires: raw octets over TLS, and the APDUs of each meter; and what was protected or a key."""

    tls: bytearray = field(default_factory=bytearray)
    apdus: dict[int, list[bytes]] = field(default_factory=dict)
    public: list[bytes] = field(default_factory=list)
    plain: set[bytes] = field(default_factory=set)
    keys: set[bytes] = field(default_factory=set)

    def keep_meter(self, serial: int, tap: Tap) -> None:
        """Sort what went to and from a meter into what is the public client's and what is not."""
        for stream in tap.streams:
            for frame in Decoder().feed(bytes(stream)):
                public = PUBLIC_CLIENT_SAP in (frame.source, frame.destination)
                (self.public if public else self.apdus.setdefault(serial, [])).append(frame.apdu)

    @property
    def wire(self) -> bytes:
        return bytes(self.tls) + b"".join(apdu for apdus in self.apdus.values() for apdu in apdus)


def listen(patch: pytest.MonkeyPatch, plain: set[bytes]) -> None:
    """Note every APDU before protection is put on, and after it is taken off, whoever of this process does it."""
    seal, unseal = ciphering.seal, ciphering.unseal

    def sealing(apdu: bytes, *rest: Any, **named: Any) -> ciphering.Content:  # noqa: ANN401 - passed on as it is
        plain.add(apdu)
        return seal(apdu, *rest, **named)

    def unsealing(*rest: Any, **named: Any) -> bytes:  # noqa: ANN401 - passed on as it is
        apdu = unseal(*rest, **named)
        plain.add(apdu)
        return apdu

    patch.setattr(ciphering, "seal", sealing)
    patch.setattr(ciphering, "unseal", unsealing)


def in_forms(realm: Realm) -> None:
    """Have utility and concentrator speak to the meters of each suite in another form."""
    for name in ("utility", "concentrator"):
        folder = realm.home(name) / "models"
        folder.mkdir()
        for suite, model in MODELS.items():
            text = (data_folder("models") / f"{model}.toml").read_text(encoding="utf-8")
            form = f'form = "{FORMS[suite]}"'
            text, found = re.subn('form = "[a-z-]*"', form, text)
            (folder / f"{model}.toml").write_text(
                text if found else f"{text}\n[protection]\n{form}\n", encoding="utf-8"
            )


def keys_of(realm: Realm) -> set[bytes]:
    return {key for serial in FLEET for key in load(state_path(realm, serial)).keys.values()}


@pytest.fixture(scope="module")
def record(realm_template: Realm, tmp_path_factory: pytest.TempPathFactory) -> Record:
    realm = copy_realm(realm_template, tmp_path_factory.mktemp("traffic") / "realm")
    deliver_meters(realm, FLEET)
    in_forms(realm)
    told = Record(keys=keys_of(realm))
    with ExitStack() as stack:
        listen(stack.enter_context(pytest.MonkeyPatch.context()), told.plain)
        paths = [state_path(realm, serial) for serial in FLEET]
        ports = stack.enter_context(serving([Meter(load(path), save=save_to(path)) for path in paths]))
        taps = [stack.enter_context(tapping(f"127.0.0.1:{port}")) for port in ports]
        live = stack.enter_context(open_field(realm))
        live.serve()
        to_aim = stack.enter_context(tapping(f"127.0.0.1:{live.ports['utility']}"))
        live.ports["utility"] = to_aim.port
        live.concentrate()
        to_relay = stack.enter_context(tapping(f"127.0.0.1:{live.ports['concentrator']}"))
        live.at("concentrator", to_relay.port)
        places = [(title_of(serial), tap.address) for serial, tap in zip(FLEET, taps, strict=True)]
        assert [item.error for item in live.register(places)] == [None] * len(FLEET)
        told.keys |= keys_of(realm)
        with realm.open("utility") as party:
            outcomes = renew(party, [title for title, _ in places], GLOBAL_KEYS, wait=30)
            assert [item.error for item in outcomes] == [None] * len(FLEET)
            assert [energy(party, serial) for serial in FLEET] == [VALUE] * len(FLEET)
        listed = realm.folder / "places"
        listed.write_text("".join(f"{title}\n" for title, _ in places))
        rows = realm.rows("concentrator", "meter", "read", "--list", str(listed), "1.0.1.8.0.255")
        assert [int(row["value"]) for row in rows] == [VALUE] * len(FLEET)
        told.keys |= keys_of(realm)
        for tap in (to_aim, to_relay):
            told.tls += b"".join(bytes(stream) for stream in tap.streams)
        for serial, tap in zip(FLEET, taps, strict=True):
            told.keep_meter(serial, tap)
    return told


def test_everything_was_recorded_in_every_suite_and_form(record: Record) -> None:
    assert {plain[0] for plain in record.plain} == PLAIN_TAGS
    assert READ in {plain[:2] + b"\xc1" + plain[3:] for plain in record.plain}
    for serial, suite in FLEET.items():
        apdus = record.apdus[serial]
        assert CARRIERS[serial] <= {apdu[0] for apdu in apdus}
        short = [apdu for apdu in apdus if apdu[0] in CARRIERS[serial] - {0xDC} and apdu[1] < 0x80]
        assert {apdu[2] for apdu in short} <= {0x30 | suite}
    assert len(record.tls) > len(record.plain) * RUN
    assert len(record.keys) >= 4 * len(FLEET) + 2 * 3 * len(FLEET)


def test_no_run_of_eight_octets_of_a_protected_apdu_or_of_a_key_is_on_a_wire(record: Record) -> None:
    assert in_clear(record.plain | record.keys, record.wire) == set()


def test_what_the_public_client_hears_in_clear_holds_no_key_and_nothing_but_its_own_services(record: Record) -> None:
    public = b"".join(record.public)
    services = {plain for plain in record.plain if plain[0] not in (0x01, 0x08)}
    assert in_clear(services | record.keys, public) == set()


def test_the_same_search_finds_what_the_public_client_asks_in_clear(record: Record) -> None:
    assert in_clear({PUBLIC_REQUEST}, b"".join(record.public)) == set(runs(PUBLIC_REQUEST))


def test_the_same_search_finds_a_reading_whose_model_takes_it_in_clear(realm: Realm) -> None:
    line = set_up(realm, 5, 0, "[protection]\npolicy = 0\n", policy=0)
    with line.meter() as address, tapping(address) as tap, realm.open("factory") as party:
        with under_initial_keys(party, tap.address) as client:
            assert client.get(ENERGY).value == VALUE
        wire = b"".join(bytes(stream) for stream in tap.streams)
    asked = re.search(re.escape(READ[:2]) + b"." + re.escape(READ[3:]), wire, re.DOTALL)
    assert asked
    assert in_clear({asked[0]}, wire) == set(runs(asked[0]))


PLANTED: dict[str, Callable[[bytes, bytes], bytes]] = {
    "at the beginning": lambda wire, run: run + wire,
    "in the middle": lambda wire, run: wire[:1001] + run + wire[1001:],
    "at the end": lambda wire, run: wire + run,
}


@pytest.mark.parametrize("place", list(PLANTED))
def test_the_same_search_finds_eight_octets_of_a_key_wherever_they_stand(place: str) -> None:
    key = bytes(octet | 0x80 for octet in secrets.token_bytes(32))
    wire = bytes(octet & 0x7F for octet in secrets.token_bytes(2000))
    assert in_clear({key}, wire) == set()
    assert in_clear({key}, PLANTED[place](wire, key[11 : 11 + RUN])) == {key[11 : 11 + RUN]}
