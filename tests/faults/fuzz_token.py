"""A PKCS#11 module that answers whatever an input says: codes, lengths, handles and octets, within its buffers.

It takes the place of the table of functions that the real module gives, so that all that reads an answer is real.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pkcs11 import Attribute

from hsmkm.errors import HsmkmError
from hsmkm.token.cdefs import CALLED
from hsmkm.token.cryptoki import Module, Session
from hsmkm.token.profile import load_profile
from hsmkm.token.template import Template, ffi

LENGTHS = (0, 1, 8, 24, 32, 64, 1023, 1024, 1025, 1 << 16, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)
CODES = (0x01, 0x05, 0x30, 0x32, 0x90, 0xA0, 0xA4, 0xB3, 0x101, 0x150, 0x190, 0x80000001)
MECHANISM, KEY, ROOM = 0x250, 7, 64
_OUT = {"C_WrapKey", "C_Sign", "C_Encrypt", "C_Decrypt", "C_DigestFinal"}


class Answers:
    """Takes what the token answers from the octets of an input; after their end all is well and zero."""

    def __init__(self, octets: bytes) -> None:
        self._octets = memoryview(octets)

    def octet(self) -> int:
        """Take one octet."""
        taken, self._octets = self._octets[:1], self._octets[1:]
        return taken[0] if taken else 0

    def length(self) -> int:
        """Take a length, of the kind that lies."""
        return LENGTHS[self.octet() % len(LENGTHS)]

    def code(self) -> int:
        """Take a return value: mostly CKR_OK."""
        octet = self.octet()
        return CODES[octet % len(CODES)] if octet > 0xC0 else 0

    def fill(self, memory: Any, room: int) -> None:  # noqa: ANN401 - C memory
        """Write octets of the input into memory, never more than it holds."""
        taken, self._octets = self._octets[:room], self._octets[room:]
        ffi.memmove(memory, bytes(taken), len(taken))


class Lying:
    """The functions of a module, each of which answers by `Answers`."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def functions(self) -> dict[str, Callable[..., int]]:
        """Give the table."""
        return {name: self._function(name) for name in CALLED}

    def _function(self, name: str) -> Callable[..., int]:
        def called(*arguments: Any) -> int:  # noqa: ANN401 - C values
            self._answer(name, arguments)
            return self._answers.code()

        return called

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> None:
        answers = self._answers
        if name in _OUT:
            out, length = arguments[-2:]
            answers.fill(out, int(length[0]))
            length[0] = answers.length()
        elif name in ("C_GetSlotList", "C_FindObjects"):
            arguments[-1][0] = answers.length()
        elif name == "C_GetAttributeValue":
            for item in arguments[2][0 : arguments[3]] if arguments[3] > 1 else (arguments[2],):
                answers.fill(item.pValue, int(item.ulValueLen))
                item.ulValueLen = answers.length()
        elif name in ("C_GetTokenInfo", "C_GetSessionInfo"):
            answers.fill(arguments[-1], ffi.sizeof(arguments[-1][0]))


def session(answers: Answers) -> Session:
    """Open a session with a module that answers so."""
    module = object.__new__(Module)
    module.path, module.functions = "lying", Lying(answers).functions()
    return Session(module, 1, load_profile("softhsm2").altered)


def converse(octets: bytes) -> None:
    """Make every call whose answer has a length or a value; each may be refused, and the next is made.

    AssertionError where more comes out than the answer had room for.
    """
    one = session(Answers(octets))
    module = one._module
    out = ffi.new("unsigned char[]", ROOM)
    template = Template({Attribute.LABEL: b"storage:1", Attribute.WRAP: True, Attribute.VALUE_LEN: 32})
    mechanism = ffi.new("CK_MECHANISM *")
    calls: tuple[Callable[[], object], ...] = (
        module.slots,
        lambda: module.token(0),
        one.alive,
        lambda: one.find(template, 4),
        lambda: one.read(KEY, Attribute.EC_POINT),
        lambda: one.read_into(KEY, Attribute.VALUE, out, ROOM),
        lambda: one.differences(KEY, template),
        lambda: one.wrap(MECHANISM, KEY, KEY),
        lambda: one.sign(MECHANISM, KEY, b"data"),
        lambda: one.encrypt(mechanism, KEY, b"data", out, ROOM),
        lambda: one.decrypt(mechanism, KEY, b"data", out, ROOM),
        lambda: one.digest_key(MECHANISM, b"a", KEY, b"b", out),
        lambda: one.random(16),
    )
    for call in calls:
        try:
            given = call()
        except HsmkmError:
            continue
        assert not isinstance(given, int) or given <= ROOM, "more octets are told of than there is room for"
