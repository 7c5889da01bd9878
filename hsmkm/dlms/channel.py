"""One side of a protected conversation: puts protection around APDUs and takes it off, for client and meter alike.

An APDU is ciphered first, in one of five forms, and then signed as a whole where a signature is demanded. What comes in
may be layered either way round. `unprotect` tells what protection it found; whether that is enough is for the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from hsmkm.dlms import ciphering, curves, general
from hsmkm.dlms.ciphering import (
    AUTHENTICATION,
    BROADCAST,
    DED_OF_PLAIN,
    ENCRYPTION,
    GLO_OF_PLAIN,
    CipherKey,
    Content,
    DedTag,
    GloTag,
    InvocationCounter,
    ReceiveCounter,
)
from hsmkm.dlms.general import GeneralCiphering, GeneralKeyed, GeneralSigning, Header, KeyInfo
from hsmkm.dlms.hls import Signer, Verifier
from hsmkm.dlms.octets import Octets, encode_counted
from hsmkm.dlms.protection import Protection
from hsmkm.dlms.suspicion import OtherSuiteError, RepeatedCounterError, ReplayedAnswerError
from hsmkm.dlms.types import SecuritySuite, SystemTitle
from hsmkm.errors import IntegrityError, RefusedError


class Form(Enum):
    """Which APDU carries the protected one, and under which kind of key."""

    GLOBAL = "glo"
    DEDICATED = "ded"
    GENERAL_GLOBAL = "general-glo"
    GENERAL_DEDICATED = "general-ded"
    GENERAL = "general-ciphering"

    @property
    def dedicated(self) -> bool:
        """Whether the key is the dedicated one."""
        return self in (Form.DEDICATED, Form.GENERAL_DEDICATED)

    @property
    def for_initiate(self) -> Form:
        """The form of the xDLMS Initiate, which has tags of its own and is never under the dedicated key it brings."""
        return Form.GENERAL if self is Form.GENERAL else Form.GLOBAL

    def same_key(self, other: Form) -> bool:
        """Whether both forms are under the same kind of key; meters answer a general- form in the short one too."""
        return self.dedicated is other.dedicated and (self is Form.GENERAL) is (other is Form.GENERAL)


@dataclass(frozen=True, slots=True)
class Traffic:
    """A key with the counters of what is sent and received under it.

    `broadcast` keys set their bit in the security control; a `fresh` key was made for one exchange, so its counters
    need not be durable.
    """

    key: CipherKey = field(repr=False)
    sent: InvocationCounter
    received: ReceiveCounter
    broadcast: bool = False
    fresh: bool = False


class KeySource(Protocol):
    """Gives the keys of general-ciphering."""

    def outgoing(self, header: Header) -> tuple[KeyInfo | None, Traffic]:
        """Give the key for an APDU of ours, and what tells the receiver which it is."""
        ...

    def incoming(self, header: Header, info: KeyInfo | None) -> Traffic:
        """Give the key of an APDU that came; raises IntegrityError where it is not ours to open."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A plain APDU and how it came; `form`, `counter` and `key_info` are those of the ciphering layer."""

    apdu: bytes = field(repr=False)
    protection: Protection = Protection.NONE
    form: Form | None = None
    header: Header | None = None
    key_info: KeyInfo | None = None
    counter: int | None = None

    @property
    def authentic(self) -> bool:
        """Whether a tag or a signature vouches for the sender."""
        return bool(self.protection & (Protection.AUTHENTICATED | Protection.SIGNED))


_FORMS = {general.GENERAL_GLO: Form.GENERAL_GLOBAL, general.GENERAL_DED: Form.GENERAL_DEDICATED}
_FORMS[general.GENERAL_CIPHERING] = Form.GENERAL
_FORMS |= dict.fromkeys(map(int, GloTag), Form.GLOBAL) | dict.fromkeys(map(int, DedTag), Form.DEDICATED)


@dataclass(slots=True, kw_only=True)
class Channel:
    """The keys that one side shares with the other; a form without its key is refused."""

    suite: SecuritySuite
    own: SystemTitle
    peer: SystemTitle
    under_global: Traffic | None = None
    under_dedicated: Traffic | None = None
    general: KeySource | None = None
    signer: Signer | None = field(default=None, repr=False)
    verifier: Verifier | None = field(default=None, repr=False)
    _lowest: dict[Form, int] = field(default_factory=dict, init=False)

    def protect(
        self, apdu: bytes, protection: Protection, form: Form = Form.GLOBAL, header: Header | None = None
    ) -> bytes:
        """Protect an APDU of ours; general-ciphering and signatures need a header.

        Raises RefusedError where there is no header or no key to sign with, IntegrityError for a form without its key.
        """
        if protection & Protection.CIPHERED:
            apdu = self._cipher(apdu, self._control(protection), form, header)
        if protection & Protection.SIGNED:
            apdu = self._sign(apdu, _needed(header))
        return apdu

    def unprotect(self, apdu: bytes) -> Opened:
        """Take every layer of protection off.

        Raises IntegrityError for a bad tag or signature, another sender, receiver or suite, and a counter that may be a
        replay; ProtocolError for octets that the standard does not allow.
        """
        opened = Opened(apdu)
        while True:
            tag = Octets(opened.apdu).peek()
            if tag == general.GENERAL_SIGNING and not opened.protection & Protection.SIGNED:
                opened = self._verified(opened)
            elif tag in _FORMS and not opened.protection & Protection.CIPHERED:
                opened = self._deciphered(opened, _FORMS[tag])
            else:
                return opened

    def _control(self, protection: Protection) -> int:
        authentication = AUTHENTICATION if protection & Protection.AUTHENTICATED else 0
        encryption = ENCRYPTION if protection & Protection.ENCRYPTED else 0
        return ciphering.security_control(self.suite, authentication | encryption)

    def _cipher(self, apdu: bytes, control: int, form: Form, header: Header | None) -> bytes:
        if form is Form.GENERAL:
            header = _needed(header)
            info, traffic = self._source().outgoing(header)
            control |= BROADCAST if traffic.broadcast else 0
            content = ciphering.seal(apdu, traffic.key, control, self.own, traffic.sent.next(), header.encode())
            return GeneralCiphering(header, info, content).encode()
        traffic = self._traffic(form)
        tags = DED_OF_PLAIN if form is Form.DEDICATED else GLO_OF_PLAIN
        content = ciphering.seal(apdu, traffic.key, control, self.own, traffic.sent.next())
        if form in (Form.GENERAL_GLOBAL, Form.GENERAL_DEDICATED):
            return GeneralKeyed(form.dedicated, self.own, content).encode()
        return bytes([tags[apdu[0]]]) + encode_counted(content.encode())

    def _sign(self, content: bytes, header: Header) -> bytes:
        if self.signer is None or self.suite is SecuritySuite.SUITE_0:
            raise RefusedError("there is no key to sign with")
        signature = self.signer.sign(general.signed_octets(header, content))
        if len(signature) != self.suite.point_octets:
            raise RefusedError(f"the signing key is not of suite {int(self.suite)}")
        return GeneralSigning(header, content, signature).encode()

    def _verified(self, opened: Opened) -> Opened:
        layer = general.parse(opened.apdu)
        if not isinstance(layer, GeneralSigning) or self.verifier is None or self.suite is SecuritySuite.SUITE_0:
            raise IntegrityError("there is no key to check the signature with")
        header = self._checked(layer.header, opened)
        curves.check_signature(self.suite, layer.signature)
        self.verifier.verify(general.signed_octets(header, layer.content), layer.signature)
        protection = opened.protection | Protection.SIGNED
        return Opened(layer.content, protection, opened.form, header, opened.key_info, opened.counter)

    def _deciphered(self, opened: Opened, form: Form) -> Opened:
        if form is Form.GENERAL:
            return self._general_opened(opened)
        traffic = self._traffic(form)
        if form in (Form.GLOBAL, Form.DEDICATED):
            ciphered = ciphering.parse(opened.apdu)
            content = ciphered.content
            self._check_control(content, traffic)
            plain = ciphering.unprotect(ciphered, traffic.key, self.peer, demanded=0)
        else:
            layer = general.parse(opened.apdu)
            if not isinstance(layer, GeneralKeyed) or layer.title != self.peer:
                raise IntegrityError("the APDU is not from the other side of the association")
            content = layer.content
            self._check_control(content, traffic)
            plain = ciphering.unseal(content, traffic.key, self.peer, demanded=0)
        return self._accepted(opened, form, content, traffic, Opened(plain, header=opened.header))

    def _general_opened(self, opened: Opened) -> Opened:
        layer = general.parse(opened.apdu)
        if not isinstance(layer, GeneralCiphering):
            raise IntegrityError("the APDU is not general-ciphering")
        header = self._checked(layer.header, opened)
        traffic = self._source().incoming(header, layer.key_info)
        self._check_control(layer.content, traffic)
        plain = ciphering.unseal(layer.content, traffic.key, self.peer, header.encode(), demanded=0)
        inner = Opened(plain, header=header, key_info=layer.key_info)
        return self._accepted(opened, Form.GENERAL, layer.content, traffic, inner)

    def _check_control(self, content: Content, traffic: Traffic) -> None:
        if not content.belongs_to(self.suite):
            raise OtherSuiteError("the APDU is of another security suite than the association")
        if bool(content.security_control & BROADCAST) != traffic.broadcast:
            raise IntegrityError("the APDU is not under the key that it names")

    def _accepted(self, opened: Opened, form: Form, content: Content, traffic: Traffic, inner: Opened) -> Opened:
        """Take the counter: durably where tag or signature vouch for it, else for as long as this channel lives."""
        control = content.security_control
        if traffic.fresh or control & AUTHENTICATION or opened.protection & Protection.SIGNED:
            traffic.received.accept(content.counter)
        elif content.counter < self._lowest.get(form, 0):
            raise RepeatedCounterError("the invocation counter is below the lowest acceptable one")
        if not traffic.fresh:
            self._lowest[form] = content.counter + 1
        found = Protection.AUTHENTICATED if control & AUTHENTICATION else Protection.NONE
        found |= Protection.ENCRYPTED if control & ENCRYPTION else Protection.NONE
        protection = opened.protection | found
        return Opened(inner.apdu, protection, form, inner.header, inner.key_info, content.counter)

    def _checked(self, header: Header, opened: Opened) -> Header:
        if header.originator != self.peer or header.recipient not in (self.own, None):
            raise IntegrityError("the APDU is not between the two sides of the association")
        if opened.header is not None and opened.header.transaction != header.transaction:
            raise ReplayedAnswerError("the layers of the APDU are of different transactions")
        return header

    def _traffic(self, form: Form) -> Traffic:
        traffic = self.under_dedicated if form.dedicated else self.under_global
        if traffic is None:
            raise IntegrityError(f"there is no key for {form.value} APDUs")
        return traffic

    def _source(self) -> KeySource:
        if self.general is None:
            raise IntegrityError("there are no keys for general-ciphering")
        return self.general


def _needed(header: Header | None) -> Header:
    if header is None:
        raise RefusedError("general-ciphering and general-signing need a transaction")
    return header
