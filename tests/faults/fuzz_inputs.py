"""Hostile inputs: what a real one becomes when it is cut, spliced, repeated, or lies about its lengths."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

LONGEST = 1 << 16
"""No mutant is longer, in octets: enough for any length of two octets to be true."""

LENGTHS = (
    *(bytes((octet,)) for octet in (0x00, 0x01, 0x7F, 0x80, 0x81, 0xFE, 0xFF)),
    *(b"\x82\xff\xff", b"\x84\xff\xff\xff\xff", b"\x88" + b"\x7f" * 8, b"\x83\x00\x00\x01", b"\xff" * 8),
)
TEXTS = (
    *(b"9" * 5000, b"-1", b"1e999", b"NaN", b"0" * 20, b"\xd9\xa1\xd9\xa2", b"true", b"null", b'""', b"{}", b"[]"),
    *(
        b"[" * 3000,
        b'{"a":' * 3000,
        b"\\ud800",
        b"\xff\xfe",
        b"\x00",
        b"\x1b[2J",
        b"%00",
        b"%zz",
        b"\r\n",
        b'"""',
        b"=1",
    ),
    *(
        b"9999-12-31T23:59:59Z",
        b"0000-00-00T00:00:00Z",
        b"\nzz = " + b"[" * 3000,
        b"\nzz = " + b"9" * 5000 + b"\n",
        b"[" + b"a." * 2000 + b"a]\n",
    ),
)
NESTS = (b"\x02\x01", b"\x01\x01", b"\x30\x80", b"\x30\x82\xff\xff", b"\xa0\x7f", b"\xe6\x00\x01a", b"\xdb\x00")


def mutants(seeds: Sequence[bytes], random: Random, count: int) -> list[bytes]:
    """Make `count` inputs, the same ones for the same state of `random`."""
    made: list[bytes] = []
    while len(made) < count:
        octets = random.choice(seeds)
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            octets = _CHANGES[random.randrange(len(_CHANGES))](octets, seeds, random)
        made.append(octets[:LONGEST])
    return made


def _flip(octets: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    place = random.randrange(max(len(octets), 1))
    return (
        octets[:place]
        + bytes(octet ^ 1 << random.randrange(8) for octet in octets[place : place + 1])
        + octets[place + 1 :]
    )


def _cut(octets: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    return octets[: random.randrange(len(octets) + 1)]


def _remove(octets: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    start = random.randrange(len(octets) + 1)
    return octets[:start] + octets[start + random.choice((1, 2, 8, 64)) :]


def _insert(octets: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    start = random.randrange(len(octets) + 1)
    return octets[:start] + _piece(random) + octets[start:]


def _overwrite(octets: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    start, piece = random.randrange(len(octets) + 1), _piece(random)
    return octets[:start] + piece + octets[start + len(piece) :]


def _repeat(octets: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    start = random.randrange(len(octets) + 1)
    piece = octets[start : start + random.choice((1, 2, 5, 40))]
    return octets[:start] + piece * random.choice((2, 10, 400)) + octets[start:]


def _nest(octets: bytes, _seeds: Sequence[bytes], random: Random) -> bytes:
    start = random.randrange(min(len(octets), 40) + 1)
    return octets[:start] + random.choice(NESTS) * random.choice((10, 200, 3000)) + octets[start:]


def _splice(octets: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
    other = random.choice(seeds)
    return octets[: random.randrange(len(octets) + 1)] + other[random.randrange(len(other) + 1) :]


def _piece(random: Random) -> bytes:
    return random.choice((random.choice(LENGTHS), random.choice(TEXTS), random.randbytes(random.choice((1, 2, 4, 16)))))


_CHANGES = (_flip, _flip, _cut, _remove, _insert, _overwrite, _overwrite, _repeat, _nest, _splice)
