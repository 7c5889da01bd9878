"""No octet of a package or of a receipt can change: whichever it is, the whole is refused."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from hsmkm.errors import InputError, IntegrityError, RefusedError
from hsmkm.packages.receipt import Receipt, receipt_for, sign_receipt
from hsmkm.packages.send import check_receipt
from hsmkm.pki.certificates import fingerprint
from tests.packages.conftest import NOW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hsmkm.packages.send import Signatory
    from tests.packages.conftest import Pki, World

PACKAGE = "0f8fad5b-d9cb-469f-a165-70867728950e"


def altered(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Change each octet in turn, by another bit each."""
    for place in range(len(data)):
        yield place, data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]


def taken(data: bytes, take: Callable[[bytes], object]) -> list[int]:
    """List the octets whose change was not refused."""
    found = []
    for place, octets in altered(data):
        try:
            take(octets)
        except (InputError, IntegrityError, RefusedError):
            continue
        found.append(place)
    return found


@pytest.mark.slow
def test_each_octet_of_a_package_that_is_flipped_is_refused(world: World) -> None:
    data = world.build(world.out()).data
    assert world.open(data).meters

    assert taken(data, world.open) == []


@pytest.mark.slow
def test_each_octet_of_a_receipt_that_is_flipped_is_refused(software_sender: Signatory, pki: Pki) -> None:
    signer, certificate, chain = software_sender.signer, software_sender.certificate, software_sender.chain
    data = sign_receipt(receipt_for(PACKAGE, b"package", [], NOW), signer, certificate, chain, NOW)
    digest, pinned, trust = hashlib.sha256(b"package").digest(), (fingerprint(certificate),), pki.trust()

    def take(octets: bytes) -> Receipt:
        return check_receipt(octets, PACKAGE, digest, trust, pinned, NOW)

    assert take(data).accepted
    assert taken(data, take) == []
