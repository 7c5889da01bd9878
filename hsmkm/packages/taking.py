"""Key sets on their way in, in bulk: brought from under a package key to under our storage keys, with their MACs.

For a key set of four keys: 3 calls of the token for each key, and 2 for the MAC. Nothing here knows of the store, so
that workers can do it; each of them opens the package key for itself, which never leaves the token.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from hsmkm.errors import IntegrityError
from hsmkm.packages.transport import open_package_key
from hsmkm.pki.certificates import parse_certificate
from hsmkm.store.key_set_bulk import Form, FormEncoder
from hsmkm.token.keys import KeyHandle
from hsmkm.token.moves import Move, Moves
from hsmkm.token.types import MeterRole
from hsmkm.token.vault import Vault


@dataclass(frozen=True, slots=True)
class Carried:
    """How a package key came: for the key of this label and certificate (DER), bound to `ukm`."""

    label: str
    certificate: bytes
    recipient_info: bytes
    ukm: bytes

    def open(self, vault: Vault) -> KeyHandle:
        """Open the package key in the token; raises as `open_package_key`."""
        certificate = parse_certificate(self.certificate)
        return open_package_key(vault, self.label, certificate, self.recipient_info, self.ukm)


@dataclass(frozen=True, slots=True)
class Arriving:
    """Sets of one form: of each its place among the entries of the package, system title and serial number.

    With them come the identities of its keys (16 octets each) and the keys as they travel, in the order of the form.
    """

    form: Form
    sets: tuple[tuple[int, bytes, str, bytes, bytes], ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of them: the numbers of our storage and integrity keys, and of each set what is stored, and its MAC.

    `faults` are the sets by their places in the package with the roles that do not unwrap; their rows are empty.
    """

    keys: tuple[int, int]
    sets: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    faults: tuple[tuple[int, MeterRole], ...] = ()


class Labour(Protocol):
    """Somebody who takes many sets at once."""

    @property
    def batch(self) -> int:
        """How many sets are worth the while, and how many are handed over together."""

    def take(self, sets: int, carried: Carried, arriving: Iterable[Arriving]) -> Generator[Taken, None, None]:
        """Do as `take_key_sets` for each lot of so many sets in all, in their order."""


def take_key_sets(vault: Vault, package_key: KeyHandle, arriving: Arriving, *, own_session: bool = False) -> Taken:
    """Unwrap the keys of sets under the package key and wrap them under the newest storage keys; make their MACs."""
    form, target, source = arriving.form, vault.storage_handle, package_key.number()
    storage_key, integrity_key = vault.storage_key, vault.integrity_key
    encoder, make = FormEncoder(form, storage_key, integrity_key), vault.macs(integrity_key).make
    sets: list[tuple[bytes, bytes]] = []
    faults: list[tuple[int, MeterRole]] = []
    plan = [Move(role, octets, source, target(role, storage_key), foreign=True) for role, octets in form.keys]
    with Moves(vault, plan, own_session=own_session) as moves:
        for place, title, serial, identities, travelling in arriving.sets:
            try:
                sealed = moves.move(travelling)
            except IntegrityError:
                refused = moves.refused(travelling)
                if not refused:
                    raise
                faults += [(place, role) for role in refused]
                sets.append((b"", b""))
            else:
                stored, covered = encoder.encode(title, serial, identities, sealed)
                sets.append((stored, make(covered)))
    return Taken((storage_key, integrity_key), tuple(sets), tuple(faults))
