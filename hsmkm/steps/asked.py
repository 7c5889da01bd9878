"""The requests of a folder, read and checked by workers: what each is for, and every fault of them all.

A request is a file `NAME.csr`, or `TITLE.NAME.csr` for the holder of that system title, where NAME is a certificate
profile, with `-p384` for a party's key on P-384; an officer's is called `officer.csr`, or `ANYTHING.officer.csr`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from hsmkm.errors import Fault, InputError
from hsmkm.pki.certificates import common_name, is_title, public_key
from hsmkm.pki.profiles import OFFICER, may_certify
from hsmkm.pki.requests import CheckedRequest, check_request
from hsmkm.pki.slots import P384, Slot, curve_of, slot
from hsmkm.steps.hands import Hand, Hands
from hsmkm.store import certified_keys
from hsmkm.store.store import Transaction

MAX_REQUEST = 64 * 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """A checked request, the file it came in, and what it is for."""

    path: Path
    slot: Slot
    request: CheckedRequest

    @property
    def issuer(self) -> str:
        """The name of the authority that issues such a certificate."""
        return self.request.profile.issuer

    @property
    def key_digest(self) -> bytes:
        """The SHA-256 of the key, 32 octets."""
        return hashlib.sha256(self.request.key).digest()


def asked_in(hands: Hands, folder: Path) -> tuple[list[Wanted], list[Fault]]:
    """Check every request of a folder: those that are right, and what is wrong; InputError where there is none."""
    paths = sorted(folder.glob("*.csr")) if folder.is_dir() else []
    if not paths:
        raise InputError(
            f"no requests in {folder}",
            hint="they are called PROFILE.csr, PROFILE-p384.csr or TITLE.PROFILE.csr, see hsmkm pki request",
        )
    size = hands.shape.batch
    batches = ((paths[start : start + size],) for start in range(0, len(paths), size))
    found: list[Wanted] = []
    faults: list[Fault] = []
    with closing(hands.work(len(paths), check_files, batches)) as answers:
        for some, wrong in answers:
            found += some
            faults += wrong
    return found, faults


def check_files(_hand: Hand, paths: Sequence[Path]) -> tuple[list[Wanted], list[Fault]]:
    """Check the requests in some files, in a worker."""
    found: list[Wanted] = []
    faults: list[Fault] = []
    for path in paths:
        try:
            found.append(_check(path))
        except InputError as error:
            faults += error.faults or (Fault(str(path), 0, 0, error.message),)
    return found, faults


def _check(path: Path) -> Wanted:
    title, dot, name = path.stem.rpartition(".")
    if name == OFFICER.name:
        title, one = "", Slot(name)
    elif dot and not is_title(title):
        raise InputError(f"{title!r} is not a system title of 16 hex digits in capitals")
    else:
        one = slot(name)
    with path.open("rb") as file:
        data = file.read(MAX_REQUEST + 1)
    return Wanted(path, one, check_request(data, one.profile, title or None, str(path)))


def curve_faults(wanted: Sequence[Wanted], issuers: Mapping[str, x509.Certificate]) -> Iterator[Fault]:
    """Say which keys are on a curve that their authority, given by its name, cannot certify for a slot."""
    curves = {name: public_key(issuer).curve for name, issuer in issuers.items()}
    for one in wanted:
        key = one.request.public_key
        curve = curve_of(key)
        if one.slot.curve == P384 and curve != P384:
            yield Fault(str(one.path), 0, 0, f"the key is on {curve}, and {one.slot.name} is on {P384}")
        if not may_certify(curves[one.issuer], key.curve):
            name = common_name(issuers[one.issuer].subject)
            yield Fault(str(one.path), 0, 0, f"the key is on {curve}, and {name!r} on P-256 certifies none there")


def used_keys(tx: Transaction, wanted: Sequence[Wanted]) -> Iterator[Fault]:
    """Name the requests whose key is another request's too, or was certified for something else."""
    seen: dict[bytes, Path] = {}
    known = certified_keys.purposes(tx, [one.key_digest for one in wanted])
    for one in wanted:
        digest, purpose = one.key_digest, (one.request.profile.name, one.request.subject)
        if digest in seen:
            yield Fault(str(one.path), 0, 0, f"the key is also that of {seen[digest].name}")
        seen[digest] = one.path
        found = certified_keys.in_the_way(known.get(digest, purpose), purpose)
        if found is not None:
            yield Fault(str(one.path), 0, 0, f"the key {found}")
