"""The operations that a crash may interrupt, what is done after it, and what must then be true.

Each is done by one party in a folder that was left by the operations before it. After a crash the same is asked again,
as a person would: what is in doubt is resolved, then the command is given once more. Then the party is looked through.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.errors import HsmkmError, PartlyDoneError, RefusedError
from hsmkm.packages.content import Purpose
from hsmkm.pki.certificates import read_certificates
from hsmkm.steps import certify
from hsmkm.steps.agree import renew_by_agreement
from hsmkm.steps.attest import check_store, verify_audit
from hsmkm.steps.credentials import open_key
from hsmkm.steps.deliver import accept_receipt
from hsmkm.steps.exporting import export
from hsmkm.steps.inject import inject
from hsmkm.steps.issue import issue
from hsmkm.steps.party import Party, open_party
from hsmkm.steps.provision import provision
from hsmkm.steps.receive import receive_file
from hsmkm.steps.register import register
from hsmkm.steps.renew import GLOBAL_KEYS, renew
from hsmkm.steps.resolve import resolve, unfinished
from hsmkm.steps.results import Outcome
from hsmkm.steps.rotate import rotate
from hsmkm.store import certificates, holders, key_sets, meters, packages
from hsmkm.store.key_set import KeyState
from hsmkm.store.packages import Direction
from hsmkm.token.types import KeyRole, Use
from tests.field import energy
from tests.realm import ACTOR, title_of

FLEET = (1, 2)
METER = title_of(1)
ENERGY = 123_456
RENEWALS = 25
"""Of so many turns at a meter, one renews its keys."""

BREATH = 0.02
"""Seconds between two turns, in which another may take the meter's lease."""

RESOLUTIONS = 6
"""How often a person tries to resolve a meter before it counts as lost."""

_EXPECTED = re.compile(
    r"hsmkm\.toml|initial\.json|health\.json|store\.db(-wal|-shm)?|packages\.lock|(packages|receipts)/[0-9a-f-]{36}\.p7m|"
    r"token/(softhsm2\.conf|pin|so-pin|login\.lock|tokens/.*)|tls/key\.pem|trust/.*|certificates/[\w-]+\.(pem|csr)|models/[\w-]+\.toml|.*\.lock"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an operation takes place: the folder with the homes, and the meter's address."""

    folder: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run came to: its error, or nothing; and what was found not to be in order after it."""

    error: str = ""
    hint: str = ""
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of one party."""

    home: str
    before: str
    """The state of the realm that it begins with; see tests.faults.realms."""

    act: Callable[[Party, Place], object]
    again: Callable[[Party, Place], object]
    check: Callable[[Party, Place], Iterator[str]]
    speaks: bool = False
    """Whether it speaks to a meter."""

    words: Callable[[Place], tuple[str, ...]] | None = None
    """The words of the command that a user gives, where it is that which is interrupted, with its processes."""

    def run(self, place: Place, verb: str) -> Answer:
        """Open the party and act, or do it again and look through what there is."""
        with open_party(Path(place.folder) / self.home, ACTOR) as party:
            if verb == "act":
                self.act(party, place)
                return Answer()
            self.again(party, place)
            return Answer(problems=[*disorder(party), *self.check(party, place)])


def disorder(party: Party) -> Iterator[str]:
    """Name what must never be left behind, whatever happened."""
    yield from (f"store check: {problem}" for problem in check_store(party))
    yield from (f"audit verify: {problem}" for problem in verify_audit(party, ()))
    yield from _packages(party)
    yield from _serial_numbers(party)
    yield from _left_over(party)


def _packages(party: Party) -> Iterator[str]:
    with party.store.read() as tx:
        known = {record.id: record for record in packages.listing(tx)}
    folder = party.home / "packages"
    files = {path.stem: path for path in folder.glob("*.p7m")} if folder.is_dir() else {}
    for name in files.keys() - {record.id for record in known.values() if record.direction is Direction.SENT}:
        yield f"orphan: package file {name} without a row"
    for record in known.values():
        if record.direction is Direction.RECEIVED:
            continue
        if record.id not in files:
            yield f"orphan: package row {record.id} without a file"
        elif hashlib.sha256(files[record.id].read_bytes()).digest() != record.sha256:
            yield f"package {record.id} is not what its row says"
    numbers = [(item.direction, item.peer, item.purpose, item.sequence) for item in known.values()]
    if len(set(numbers)) != len(numbers):
        yield "two packages have one sequence number"


def _serial_numbers(party: Party) -> Iterator[str]:
    with party.store.read() as tx:
        rows = tx.all(certificates.ISSUANCES.everything())
    serials = [(row["issuer"], row["serial"]) for row in rows]
    if len(set(serials)) != len(serials):
        yield "two certificates have one serial number"


def _left_over(party: Party) -> Iterator[str]:
    for path in sorted(party.home.rglob("*")):
        name = path.relative_to(party.home).as_posix()
        if path.is_file() and not _EXPECTED.fullmatch(name):
            yield f"orphan: file {re.sub(r'[0-9a-f]{8,}', '*', name)}"


def sound(party: Party) -> Iterator[str]:
    """Name every meter without a key set, and every key set that does not open in the token."""
    with party.store.read() as tx:
        found = [(meter, key_sets.for_meter(tx, meter.system_title)) for meter in meters.listing(tx)]
    for meter, sets in found:
        if not sets:
            yield f"meter {meter.title} without a key set"
        for key_set, state in sets:
            for key in key_set.keys if state is not KeyState.DESTROYED else ():
                with open_key(party, key_set, key.role, Use.TRANSPORT):
                    pass


def reads(party: Party, place: Place) -> Iterator[str]:
    """Name a meter that does not read under the keys that the store calls active, or that is in doubt."""
    yield from sound(party)
    if unfinished(party):
        yield "a renewal is still not finished"
    try:
        if energy(party, FLEET[0]) != ENERGY:
            yield "the meter says something else"
    except HsmkmError as error:
        yield f"the meter does not read under its active keys: {error.message}"
    with party.store.read() as tx:
        states = [state for _, state in key_sets.for_meter(tx, bytes.fromhex(METER))]
    if states.count(KeyState.ACTIVE) != 1:
        yield f"{states.count(KeyState.ACTIVE)} generations are active"
    del place


def done(outcomes: Sequence[Outcome]) -> None:
    """Raise the error of a meter that failed."""
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error


def resolved(party: Party) -> None:
    """Resolve as an operator does until nothing is in doubt; raises what the last try raised."""
    for turn in range(RESOLUTIONS):
        if not unfinished(party):
            return
        try:
            resolve(party, METER)
        except PartlyDoneError:
            if turn == RESOLUTIONS - 1:
                raise


def _provision(party: Party, place: Place) -> None:
    provision(party, Path(place.folder) / "order.csv", "line")


def _all_provisioned(party: Party, place: Place) -> Iterator[str]:
    yield from sound(party)
    with party.store.read() as tx:
        known = {meter.system_title for meter in meters.listing(tx)}
        sent = packages.listing(tx)
    if known != {bytes.fromhex(title_of(serial)) for serial in FLEET}:
        yield f"{len(known)} of {len(FLEET)} meters are provisioned"
    if [item.purpose for item in sent] != [Purpose.INJECTION.value]:
        yield f"{len(sent)} injection packages for one order"
    del place


def _inject(party: Party, place: Place) -> None:
    inject(party, METER, place.address)


def _inject_again(party: Party, place: Place) -> None:
    resolved(party)
    _inject(party, place)


def _export(party: Party, place: Place) -> None:
    export(party, "delivery", "utility", tuple(map(title_of, FLEET)), None)
    del place


def _exported(party: Party, place: Place) -> Iterator[str]:
    del place
    yield from sound(party)


def _import(party: Party, place: Place) -> None:
    receive_file(party, next(Path(place.folder, "delivered").glob("*.p7m")))


def _imported(party: Party, place: Place) -> Iterator[str]:
    yield from _all_known(party)
    yield from sound(party)
    (delivered,) = Path(place.folder, "delivered").glob("*.p7m")
    if not (party.home / "receipts" / delivered.name).is_file():
        yield "there is no receipt of the package"


def _all_known(party: Party) -> Iterator[str]:
    with party.store.read() as tx:
        count = len(meters.listing(tx))
    if count != len(FLEET):
        yield f"{count} of {len(FLEET)} meters are known"


def _receipt(party: Party, place: Place) -> None:
    accept_receipt(party, next(Path(place.folder, "receipted").glob("*.p7m")).read_bytes())


def _receipted(party: Party, place: Place) -> Iterator[str]:
    yield from sound(party)
    with party.store.read() as tx:
        sent = [item for item in packages.listing(tx) if item.purpose == Purpose.DELIVERY.value]
    if [item.state for item in sent] != ["accepted"]:
        yield "the delivery is not accepted"
    del place


def _renew(party: Party, place: Place) -> None:
    done(renew(party, [METER], GLOBAL_KEYS))
    del place


def _renew_again(party: Party, place: Place) -> None:
    resolved(party)
    _renew(party, place)


def _agree(party: Party, place: Place) -> None:
    done(renew_by_agreement(party, [METER]))
    del place


def _agree_again(party: Party, place: Place) -> None:
    resolved(party)
    _agree(party, place)


def _resolve(party: Party, place: Place) -> None:
    resolve(party, METER)
    del place


def _resolve_again(party: Party, place: Place) -> None:
    resolved(party)
    del place


def _issue(party: Party, place: Place) -> None:
    issue(party, Path(place.folder) / "asked", Path(place.folder) / "issued")


def _issued(party: Party, place: Place) -> Iterator[str]:
    files = [read_certificates(path)[0] for path in sorted(Path(place.folder, "issued").glob("*.pem"))]
    asked = list(Path(place.folder, "asked").glob("*.csr"))
    if len(files) != len(asked):
        yield f"{len(files)} certificates for {len(asked)} requests"
    if len({one.serial_number for one in files}) != len(files):
        yield "two certificates have one serial number"
    with party.store.read() as tx:
        known = {item.der for item in certificates.listing(tx)}
    for one in [*files, *(read_certificates(path)[0] for path in Path(place.folder, "shown").glob("*.pem"))]:
        if one.public_bytes(Encoding.DER) not in known:
            yield "orphan: a certificate without a row"
    yield from (f"orphan: file {path.name}" for path in Path(place.folder, "issued").glob(".*"))


def _register(party: Party, place: Place) -> None:
    """Give the meter to a concentrator that is a client and not there: its package waits."""
    with suppress(PartlyDoneError):
        done(register(party, [(METER, place.address)], "concentrator", 0))


def _registered(party: Party, place: Place) -> Iterator[str]:
    del place
    yield from sound(party)
    with party.store.read() as tx:
        given = [key.identity for item, _ in key_sets.for_meter(tx, bytes.fromhex(METER)) for key in item.keys]
        held = [item for identity in given for item in holders.for_key(tx, identity) if item.party == "concentrator"]
    if len({item.package_id for item in held}) != 1:
        yield "a concentrator is given keys in no package, or in several"


def _rotate(party: Party, place: Place) -> None:
    del place
    rotate(party)


def _rotated(party: Party, place: Place) -> Iterator[str]:
    del place
    yield from sound(party)
    with party.store.read() as tx:
        found = [item for meter in meters.listing(tx) for item, _ in key_sets.for_meter(tx, meter.system_title)]
    if {item.storage_key for item in found} != {party.vault.storage_key}:
        yield "a key set is under an older storage key"


def _request(party: Party, place: Place) -> None:
    certify.request(party, ("127.0.0.1",), Path(place.folder) / "requests")


def _requested(party: Party, place: Place) -> Iterator[str]:
    """Name what is missing of a party's requests, and a key that does not belong to its request."""
    for slot in certify.requested_slots(party):
        path = Path(place.folder) / "requests" / f"{slot.name}.csr"
        request = x509.load_pem_x509_csr(path.read_bytes())
        if request.public_key() != certify._own_public_key(party, slot):
            yield f"the request {path.name} is for another key"


def _talk(party: Party, place: Place) -> None:
    """Read and renew the meter for ever, beside others that do the same; what is in doubt is resolved first."""
    del place
    for turn in itertools.count(os.getpid()):
        with suppress(RefusedError, PartlyDoneError):  # another has the meter's lease, or left it in doubt
            if unfinished(party):
                resolve(party, METER)
            elif turn % RENEWALS == 0:
                done(renew(party, [METER], (KeyRole.GUEK, KeyRole.GAK)))
            else:
                energy(party, FLEET[0])
        time.sleep(BREATH)


def _settle(party: Party, place: Place) -> None:
    resolved(party)
    del place


TALK = Operation("utility", "", _talk, _settle, reads, speaks=True)
"""What the workers of the counter harness do; no injection ends it but a kill."""

OPERATIONS = {
    "provision": Operation("factory", "ordered", _provision, _provision, _all_provisioned),
    "inject": Operation("factory", "provisioned", _inject, _inject_again, reads, speaks=True),
    "export": Operation("factory", "injected", _export, _export, _exported),
    "import": Operation("utility", "exported", _import, _import, _imported),
    "receipt": Operation("factory", "imported", _receipt, _receipt, _receipted),
    "renew": Operation("factory", "injected", _renew, _renew_again, reads, speaks=True),
    "agree": Operation("factory", "agreeable", _agree, _agree_again, reads, speaks=True),
    "resolve": Operation("factory", "in doubt", _resolve, _resolve_again, reads, speaks=True),
    "register": Operation("utility", "imported", _register, _register, _registered),
    "rotate": Operation("factory", "injected", _rotate, _rotate, _rotated),
    "request": Operation("newcomer", "bare", _request, _request, _requested),
    "issue": Operation("authority", "asked", _issue, _issue, _issued),
}
OPERATIONS |= {
    "hsmkm meter provision": replace(
        OPERATIONS["provision"],
        words=lambda place: ("meter", "provision", f"{place.folder}/order.csv", "--line", "line"),
    ),
    "hsmkm package import": replace(
        OPERATIONS["import"],
        words=lambda place: ("package", "import", *map(str, Path(place.folder, "delivered").glob("*.p7m"))),
    ),
    "hsmkm renew": replace(OPERATIONS["renew"], words=lambda _: ("renew", METER)),
}
