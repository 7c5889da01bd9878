"""Broadcasts: one APDU for every member of a group, under the GBEK, that nobody answers (IEC 62056-5-3 clause 5.7.2).

Bit 6 of the security control says that the key is the GBEK. The IV is made as for one receiver, and the additional
authenticated data begins with the GAK, so that the members share that too. A broadcast is an unconfirmed service: bit 6
of its invoke-id-and-priority is clear.
"""

from __future__ import annotations

from hsmkm.dlms import ciphering, general, xdlms
from hsmkm.dlms.ciphering import BOTH, BROADCAST, GLO_OF_PLAIN, CipherKey, Content, ReceiveCounter
from hsmkm.dlms.general import GeneralKeyed
from hsmkm.dlms.octets import Octets, encode_counted
from hsmkm.dlms.types import SecuritySuite, SystemTitle
from hsmkm.errors import InputError, IntegrityError, ProtocolError

CONFIRMED = 0x40
LONGEST = 0xFFFF - 64
"""Octets of a plain APDU that fit, protected, into one frame of the wrapper."""

GENERAL_GLO, GLO = "general-glo", "glo"
FORMS = (GENERAL_GLO, GLO)
_SERVICES = (xdlms.Tag.SET_REQUEST, xdlms.Tag.ACTION_REQUEST)
_HEAD_OCTETS = 3


def check(apdu: bytes) -> None:
    """Raise InputError unless an APDU is a SET or ACTION request that asks for no answer."""
    if len(apdu) < _HEAD_OCTETS or apdu[0] not in _SERVICES or len(apdu) > LONGEST:
        raise InputError(
            "this is no plain SET or ACTION request that can be broadcast",
            hint=f"its first octet is C1 or C3, and it has at most {LONGEST} octets",
        )
    if apdu[2] & CONFIRMED:
        raise InputError(
            "the APDU asks for an answer, and a broadcast has none",
            hint="clear bit 6 (0x40) of its third octet, invoke-id-and-priority",
        )
    if apdu[1] == xdlms.NORMAL:
        try:
            xdlms.parse_request(apdu)
        except ProtocolError as error:
            raise InputError(f"the APDU is malformed: {error.message}", hint="see IEC 62056-5-3 clause 9") from error


def protect(apdu: bytes, key: CipherKey, suite: SecuritySuite, sender: SystemTitle, counter: int, form: str) -> bytes:
    """Authenticate and encrypt under the GBEK; general-glo names the sender, with glo the meters must know it."""
    control = int(suite) | BOTH | BROADCAST
    content = ciphering.seal(apdu, key, control, sender, counter)
    if form == GENERAL_GLO:
        return GeneralKeyed(dedicated=False, title=sender, content=content).encode()
    return bytes([GLO_OF_PLAIN[apdu[0]]]) + encode_counted(content.encode())


def sender_of(apdu: bytes) -> SystemTitle | None:
    """Give the sender that a general-glo APDU names; None for a glo APDU. Raises ProtocolError for anything else."""
    return _parse(apdu)[0]


def unprotect(
    apdu: bytes, key: CipherKey, suite: SecuritySuite, sender: SystemTitle, received: ReceiveCounter
) -> bytes:
    """Give the plain APDU of a broadcast by `sender`.

    Raises IntegrityError for another sender or suite, one not under the GBEK or without a tag, a bad tag, a replay, and
    a service that asks for an answer; ProtocolError for octets that the standard does not allow.
    """
    named, content, tag = _parse(apdu)
    if named not in (sender, None) or not content.belongs_to(suite) or not content.security_control & BROADCAST:
        raise IntegrityError("the APDU is not a broadcast of this sender and suite")
    plain = ciphering.unseal(content, key, sender, demanded=BOTH)
    if tag is not None and (not plain or GLO_OF_PLAIN.get(plain[0]) != tag):
        raise IntegrityError("the protected APDU is not the service that its tag names")
    received.accept(content.counter)
    try:
        check(plain)
    except InputError as error:
        raise IntegrityError(error.message) from error
    return plain


def _parse(apdu: bytes) -> tuple[SystemTitle | None, Content, int | None]:
    if Octets(apdu).peek() != general.GENERAL_GLO:
        ciphered = ciphering.parse(apdu)
        return None, ciphered.content, int(ciphered.tag)
    layer = general.parse(apdu)
    if not isinstance(layer, GeneralKeyed):
        raise ProtocolError("the APDU is not general-glo-ciphering")
    return layer.title, layer.content, None
