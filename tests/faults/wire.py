"""What a client sent to meters, opened with every key that is known: which key was used with which IV.

The octets come from a relay before the meter. Keys are those that meters held, and those that the octets themselves
carry in key transfers under a master key that a meter held. Written from IEC 62056-5-3 (glo- services, f(StoC) of
HLS 5) with nothing of hsmkm.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

REQUESTS = (0x21, 0xC8, 0xC9, 0xCB)
"""glo-initiateRequest, glo-get-request, glo-set-request, glo-action-request: what only a client sends."""

_AARQ, _RLRQ, _USER_INFORMATION = 0x60, 0x62, 0xBE
_HEADER_OCTETS, _TAG_OCTETS, _WRAP_OCTETS = 8, 12, 8
_KEY_OCTETS = (16, 32)
_LONG = 0x80
_CHALLENGE_ANSWER = re.compile(rb"\x09\x11[\x10-\x12](.{4}).{12}", re.DOTALL)
"""f(StoC) of HLS 5 in an octet-string: security control (authenticated only), counter, GMAC under the same GUEK."""


@dataclass(frozen=True, slots=True)
class Protected:
    """One ciphered APDU of a client."""

    control: bytes
    counter: bytes
    content: bytes
    """Ciphertext and tag."""

    def opened(self, title: bytes, key: bytes, authentication: bytes) -> bytes | None:
        """Give the plaintext, if this is the key and the authentication key."""
        mode = GCM(title + self.counter, self.content[-_TAG_OCTETS:], min_tag_length=_TAG_OCTETS)
        decryptor = Cipher(AES(key), mode).decryptor()
        decryptor.authenticate_additional_data(self.control + authentication)
        plain = decryptor.update(self.content[:-_TAG_OCTETS])
        try:
            return plain + decryptor.finalize()
        except InvalidTag:
            return None


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a key with an IV."""

    key: bytes
    counter: int


def uses(title: bytes, streams: Iterable[bytes], held: Iterable[bytes]) -> tuple[list[Use], int]:
    """List every use of a key that a client of this system title made, and count the APDUs that no key opens."""
    waiting = [apdu for stream in streams for apdu in protected(stream)]
    keys, found = set(held), list[Use]()
    usual: list[tuple[bytes, bytes]] = []
    while True:
        left = []
        before = len(keys)
        for apdu in waiting:
            opened = _opened(title, apdu, keys, usual)
            if opened is None:
                left.append(apdu)
                continue
            key, plain = opened
            found.append(Use(key, int.from_bytes(apdu.counter)))
            found += [Use(key, int.from_bytes(counter)) for counter in _CHALLENGE_ANSWER.findall(plain)]
            keys |= _carried(plain, keys)
        if not left or len(keys) == before:
            return found, len(left)
        waiting = left


def repeated(found: Iterable[Use]) -> list[int]:
    """List the counters that were used twice under one key."""
    return sorted(use.counter for use, times in Counter(found).items() if times > 1)


def protected(stream: bytes) -> Iterator[Protected]:
    """Give what a client ciphered, from one direction of a connection; of the other direction nothing."""
    place = 0
    while place + _HEADER_OCTETS <= len(stream):
        length = int.from_bytes(stream[place + 6 : place + _HEADER_OCTETS])
        apdu = stream[place + _HEADER_OCTETS : place + _HEADER_OCTETS + length]
        place += _HEADER_OCTETS + length
        if len(apdu) < length or not apdu:
            return
        if apdu[0] in (_AARQ, _RLRQ):
            apdu = _user_information(apdu)
        if apdu and apdu[0] in REQUESTS:
            _, content, _ = _element(apdu)
            yield Protected(content[:1], content[1:5], content[5:])


def _user_information(apdu: bytes) -> bytes:
    _, content, _ = _element(apdu)
    while content:
        tag, value, content = _element(content)
        if tag == _USER_INFORMATION:
            return _element(value)[1]
    return b""


def _element(octets: bytes) -> tuple[int, bytes, bytes]:
    """Take one element: its tag, its content, and what follows it."""
    length, start = octets[1], 2
    if length & _LONG:
        start += length & ~_LONG
        length = int.from_bytes(octets[2:start])
    return octets[0], octets[start : start + length], octets[start + length :]


def _opened(
    title: bytes, apdu: Protected, keys: set[bytes], usual: list[tuple[bytes, bytes]]
) -> tuple[bytes, bytes] | None:
    """Find the key and the plaintext; the pairs that opened something lately are tried first."""
    for pair in itertools.chain(list(usual), itertools.product(keys, keys)):
        plain = apdu.opened(title, *pair)
        if plain is not None:
            if pair in usual:
                usual.remove(pair)
            usual.insert(0, pair)
            return pair[0], plain
    return None


def _carried(plain: bytes, keys: set[bytes]) -> set[bytes]:
    """Unwrap every key in a plaintext that some known key wraps."""
    found = set()
    for length in (octets + _WRAP_OCTETS for octets in _KEY_OCTETS):
        for match in re.finditer(re.escape(bytes([0x09, length])), plain):
            wrapped = plain[match.end() : match.end() + length]
            for master in keys if len(wrapped) == length else ():
                try:
                    found.add(aes_key_unwrap(master, wrapped))
                except InvalidUnwrap:
                    continue
    return found
