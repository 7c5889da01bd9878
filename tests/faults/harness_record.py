"""What every party asked of its token in all seven steps and all three suites, recorded and read by rules.

The shim records between the parties and SoftHSM; `tests.faults.record` reads. A sample records operations of parties
in this process; without one, the demo is recorded with all its processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric import ec
from pkcs11 import Attribute, KeyType

from hsmkm.errors import TokenUnreachableError
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.state import load, save_to
from hsmkm.steps.communicate import read as read_meter
from hsmkm.steps.inject import inject
from hsmkm.steps.party import Party, open_party
from hsmkm.steps.renew import ALL_KEYS, renew
from hsmkm.token import attributes, keys
from hsmkm.token.agreement import agree_as_sender
from hsmkm.token.keys import KeyHandle
from hsmkm.token.template import Template, ffi
from hsmkm.token.types import KeyRole, Sealed, Use
from tests.faults.record import check, read
from tests.faults.report import Report
from tests.faults.shim import Shim, build
from tests.field import ENERGY, deliver_meters, state_path
from tests.realm import ACTOR, Realm, build_realm, title_of

NAME = "record"
DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"
SUITES = {1: 0, 2: 1, 3: 2}


def run(sample: int | None, _seed: int) -> Report:
    """Record and check all seven steps, or in a sample what parties do in one process; and what must be named."""
    shim = build()
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record"
        with patch.dict(os.environ, shim.environment()):
            realm = build_realm(Path(folder) / "realm")
            _record_parties(shim, realm, record)
            found = negative_controls(shim, realm, Path(folder))
        if sample is None:
            _record_demo(shim, record, Path(folder))
        verdict = check(read(record))
    return Report(NAME, verdict.calls, tuple(text for _, text in verdict.violations), found)


def _record_parties(shim: Shim, realm: Realm, record: Path) -> None:
    """Take meters of every suite through steps 1 to 4, renew all their keys, and read them."""
    with shim.recording(record):
        deliver_meters(realm, SUITES)
        paths = [state_path(realm, serial) for serial in SUITES]
        with (
            serving([Meter(load(path), save=save_to(path)) for path in paths]) as ports,
            realm.open("factory") as party,
        ):
            for serial, port in zip(SUITES, ports, strict=True):
                inject(party, title_of(serial), f"127.0.0.1:{port}")
            renew(party, [title_of(serial) for serial in SUITES], ALL_KEYS)
            for serial in SUITES:
                read_meter(party, title_of(serial), (ENERGY,))


def _record_demo(shim: Shim, record: Path, folder: Path) -> None:
    """Let the demo take the seven steps with all its processes."""
    environment = os.environ | shim.environment(record=record) | {"TMPDIR": str(folder)}
    command = [sys.executable, str(DEMO), "--meters", "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the demo failed: {done.stderr}")


# The negative controls: each does one thing that no party does, and the rule of its name must find it


@dataclass(frozen=True, slots=True)
class Misuse:
    """Code that holds a party's session, and the keys of a meter."""

    party: Party
    sealed: dict[KeyRole, Sealed]

    @classmethod
    @contextmanager
    def by(cls, realm: Realm) -> Iterator[Misuse]:
        """Open a party that has made a meter's keys."""
        with open_party(realm.home("factory"), ACTOR) as party, party.vault.generate(KeyRole.MASTER, 0) as master:
            sealed = {KeyRole.MASTER: party.vault.seal(master)}
            for role in (KeyRole.GUEK, KeyRole.GAK):
                with party.vault.generate(role, 0) as key:
                    sealed[role] = party.vault.seal(key)
            yield cls(party, sealed)

    def make(self, usages: frozenset[Attribute], *, sensitive: bool = True) -> int:
        """Make a session key that leaves the token, with any usage."""
        listed = attributes.secret_key(
            KeyType.AES, usages, on_token=False, sensitive=sensitive, extractable=not sensitive
        )
        session = self.party.vault.session
        return session.cryptoki.generate_key(
            session.profile.mechanisms.aes_key_gen, Template(listed | {Attribute.VALUE_LEN: 16})
        )

    def protect(self, times: int) -> None:
        """Protect with the meter's GUEK, always under the same initialisation vector."""
        vault = self.party.vault
        with (
            vault.open(KeyRole.GUEK, self.sealed[KeyRole.GUEK], 0, Use.IN_USE) as guek,
            vault.open(KeyRole.GAK, self.sealed[KeyRole.GAK], 0, Use.IN_USE) as gak,
            vault.cipher(guek, gak) as cipher,
        ):
            for _ in range(times):
                cipher.protect(bytes(12), 0x30, b"", b"reading")


def _reads(misuse: Misuse) -> None:
    key = misuse.make(frozenset(), sensitive=False)
    misuse.party.vault.session.cryptoki.read(key, Attribute.VALUE)


def _creates(misuse: Misuse) -> None:
    listed = attributes.secret_key(
        KeyType.AES, frozenset({Attribute.WRAP}), on_token=False, sensitive=True, extractable=False
    )
    memory = ffi.new("unsigned char[16]")
    misuse.party.vault.session.cryptoki.create(Template(listed | {Attribute.VALUE: memory}))


def _wraps_and_decrypts(misuse: Misuse) -> None:
    misuse.make(frozenset({Attribute.WRAP, Attribute.DECRYPT}))


def _unwraps_under_master(misuse: Misuse) -> None:
    vault = misuse.party.vault
    with (
        vault.open(KeyRole.MASTER, misuse.sealed[KeyRole.MASTER], 0, Use.IN_USE) as master,
        vault.generate(KeyRole.GUEK, 0) as guek,
    ):
        wrapped = vault.wrap(master, guek)
        cryptoki = vault.session.cryptoki
        cryptoki.set_attributes(master.number(), Template({Attribute.UNWRAP: True}))
        listed = attributes.session_key(KeyRole.GUEK, Use.TRANSPORT) | {Attribute.MODIFIABLE: True}
        cryptoki.unwrap(vault.session.profile.mechanisms.aes_key_wrap, master.number(), wrapped, Template(listed))


def _carries_package_key(misuse: Misuse) -> None:
    vault = misuse.party.vault
    recipient = ec.generate_private_key(ec.SECP256R1()).public_key()
    with (
        vault.generate_package_key() as package_key,
        vault.open(KeyRole.MASTER, misuse.sealed[KeyRole.MASTER], 0, Use.IN_USE) as master,
    ):
        _, kek = agree_as_sender(vault, recipient, b"")
        with kek:
            vault.wrap(kek, package_key)
        vault.session.cryptoki.wrap(
            vault.session.profile.mechanisms.aes_key_wrap, master.number(), package_key.number()
        )


def _repeats_iv(misuse: Misuse) -> None:
    misuse.protect(2)


def _sends_again(misuse: Misuse) -> None:
    misuse.protect(1)
    vault = misuse.party.vault
    with (
        vault.open(KeyRole.MASTER, misuse.sealed[KeyRole.MASTER], 0, Use.IN_USE) as master,
        vault.open(KeyRole.GUEK, misuse.sealed[KeyRole.GUEK], 0, Use.TRANSPORT) as guek,
    ):
        vault.wrap(master, guek)


def _keeps_handles(misuse: Misuse) -> None:
    vault = misuse.party.vault
    key = vault.generate(KeyRole.GUEK, 0)
    vault.session.reconnect()
    vault.mac(b"the new generation")
    with patch.object(keys.KeyHandle, "number", _number), suppress(TokenUnreachableError):
        vault.session.cryptoki.destroy(key.number())


def _number(handle: KeyHandle) -> int:
    """What a handle that forgot its generation would give."""
    return handle._object


CONTROLS: tuple[tuple[str, Callable[[Misuse], None]], ...] = (
    ("clear", _reads),
    ("clear", _creates),
    ("usage", _wraps_and_decrypts),
    ("work", _unwraps_under_master),
    ("work", _carries_package_key),
    ("iv", _repeats_iv),
    ("sent again", _sends_again),
    ("handle", _keeps_handles),
)


def negative_controls(shim: Shim, realm: Realm, folder: Path) -> int:
    """Count the misuses that their rule named."""
    return sum(
        rule in _rules(shim, realm, folder / f"misuse-{place}", work) for place, (rule, work) in enumerate(CONTROLS)
    )


def _rules(shim: Shim, realm: Realm, record: Path, work: Callable[[Misuse], None]) -> set[str]:
    """Name the rules that a misuse broke."""
    with shim.recording(record), Misuse.by(realm) as misuse:
        work(misuse)
    return {rule for rule, _ in check(read(record)).violations}
