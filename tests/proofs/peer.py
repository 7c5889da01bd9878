"""Ends we can look into: parties whose certified keys lie in PEM files, and virtual meters."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hsmkm.pki.requests import build_request
from hsmkm.pki.slots import P256, P384, Slot
from hsmkm.steps.issue import issue
from tests.realm import HSMKM, Realm, running, title_of

PATIENCE = 180.0
_WRAPPER_OCTETS = 8
_GLO_ACTION = b"\xcb"
PACKAGE_PROFILES = ("key-agreement", "package-signing")
CURVES = {P256: ec.SECP256R1(), P384: ec.SECP384R1()}


def add_pem_party(realm: Realm, name: str, role: str, title: str, to: str, curve: str = P256) -> Path:
    """Certify a party with keys in PEM files, register it with `to`, and give its private key-agreement key."""
    folder = realm.folder / "pem" / name
    folder.mkdir(parents=True)
    for profile in PACKAGE_PROFILES:
        key = ec.generate_private_key(CURVES[curve])
        slot = Slot(profile, curve).name
        path = folder / f"{slot}.key"
        path.touch(0o600)
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        subject = title if profile == "key-agreement" else name
        request = build_request(key, profile, subject)
        (folder / f"{slot}.csr").write_bytes(request.public_bytes(Encoding.PEM))
    with realm.open("authority") as party:
        issue(party, folder, folder)
    realm.rows(to, "party", "add", name, "--role", role, "--certificates", str(folder))
    return folder / f"{Slot('key-agreement', curve).name}.key"


@contextmanager
def virtual_meters(realm: Realm, *serials: int, suite: int = 0) -> Iterator[dict[int, int]]:
    """Run a process of virtual meters with their model's initial keys, and give their ports by serial number."""
    files = [meter_file(realm, serial) for serial in serials]
    initial = {name: value.hex() for name, value in realm.initial_keys(suite).items()}
    for serial, path in zip(serials, files, strict=True):
        path.parent.mkdir(exist_ok=True)
        path.touch(0o600)
        path.write_text(json.dumps({"system_title": title_of(serial), "suite": suite, "keys": initial}))
    command = [str(HSMKM), "simulate", "meter", *map(str, files)]
    with running(command, realm.folder / "meters" / "log") as ports:
        yield dict(zip(serials, ports, strict=True))


def meter_file(realm: Realm, serial: int) -> Path:
    """Where a virtual meter keeps its state."""
    return realm.folder / "meters" / f"{title_of(serial)}.json"


def meter_keys(realm: Realm, serial: int) -> dict[str, bytes]:
    """The keys that a virtual meter holds."""
    keys: dict[str, str] = json.loads(meter_file(realm, serial).read_text())["keys"]
    return {role: bytes.fromhex(value) for role, value in keys.items()}


class SlowMeter:
    """Stands between a client and a meter, and stops the first key_transfer before the meter gets it."""

    def __init__(self, port: int) -> None:
        self._meter = port
        self._reached, self._free = threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def wait_reached(self) -> None:
        """Wait until the key_transfer is here: the client waits for the meter's answer."""
        assert self._reached.wait(PATIENCE), "no key_transfer came"

    def let_go(self) -> None:
        self._free.set()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            self._threads.append(threading.Thread(target=self._carry, args=(client,)))
            self._threads[-1].start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._meter)) as meter:
            back = threading.Thread(target=_pump, args=(meter, client))
            back.start()
            _pump(client, meter, self._stop_transfer)
            back.join()

    def _stop_transfer(self, frame: bytes) -> None:
        if frame[_WRAPPER_OCTETS : _WRAPPER_OCTETS + 1] == _GLO_ACTION:
            self._reached.set()
            self._free.wait(PATIENCE)


def _pump(source: socket.socket, sink: socket.socket, before: Callable[[bytes], None] = lambda _: None) -> None:
    with suppress(OSError):
        while octets := source.recv(65536):
            before(octets)
            sink.sendall(octets)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
