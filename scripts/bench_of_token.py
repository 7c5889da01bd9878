"""The token's own rates beside the calls of the token layer: AES-GCM of 64 octets, and signatures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from bench_lab import Lab, Loop
from bench_line import Line

from hsmkm.steps.party import Party, open_party
from hsmkm.token.types import KeyRole, Use
from hsmkm.token.workers import Worker

ACTOR = "bench"
FEW = 20
SIGNATURES = {"p256": ("package-signing", 32), "p384": ("package-signing-p384", 48)}
APDU = bytes(64)
AUTHENTICATED_AND_ENCRYPTED = 0x30


def protect(party: Party, count: int) -> float:
    """Protect APDUs of 64 octets with cached keys; the seconds."""
    vault = party.vault
    with vault.generate(KeyRole.GUEK, 0) as guek, vault.generate(KeyRole.GAK, 0) as gak:
        sealed = vault.seal(guek), vault.seal(gak)
    with (
        vault.open(KeyRole.GUEK, sealed[0], 0, Use.IN_USE) as key,
        vault.open(KeyRole.GAK, sealed[1], 0, Use.IN_USE) as authentication,
        vault.cipher(key, authentication) as cipher,
    ):
        began = time.monotonic()
        for counter in range(count):
            cipher.protect(counter.to_bytes(12, "big"), AUTHENTICATED_AND_ENCRYPTED, b"", APDU)
        return time.monotonic() - began


def sign(party: Party, label: str, octets: int, count: int) -> float:
    """Sign texts as long as a digest; the seconds."""
    party.vault.sign_raw(label, bytes(octets))
    began = time.monotonic()
    for _ in range(count):
        party.vault.sign_raw(label, bytes(octets))
    return time.monotonic() - began


def lines(lab: Lab) -> Iterator[Line]:
    """Give a line for APDUs, and one for signatures on each curve."""
    apdu = "a C loop of the same GCM, on the same kind of key"
    base = partial(lab.loop, Loop("factory", "gcm"))
    yield Line("protect", "APDUs", apdu, partial(_in_worker, lab, protect), base, 20_000, FEW, 0.7)
    for curve, (label, octets) in SIGNATURES.items():
        base = partial(lab.loop, Loop("factory", "sign", key=label))
        ours = partial(_in_worker, lab, sign, label, octets)
        yield Line(f"sign-{curve}", "signatures", "a C loop that signs", ours, base, 1_000, FEW)


def _in_worker(lab: Lab, function: Callable[..., float], *arguments: object) -> float:
    with Worker(open_party, lab.home("factory"), ACTOR) as worker:
        return worker.call(function, *arguments)
