"""One connection to a virtual meter: the server's side of associations, APDU in, APDU out.

States: idle -> (AARQ with HLS) pending -> (f(StoC) fits) associated; without HLS from idle to associated.
"""

from __future__ import annotations

import contextlib
import hmac
from enum import Enum

from hsmkm.dlms import acse, axdr, broadcast, general, hls, xdlms
from hsmkm.dlms.acse import AssociationRequest, AssociationResponse, Context
from hsmkm.dlms.association import REPLY_TO_HLS
from hsmkm.dlms.channel import Channel, Form, Opened, Traffic
from hsmkm.dlms.ciphering import FreshCounter
from hsmkm.dlms.general import AgreedKey, GeneralKeyed, Header, IdentifiedKey, KeyParameters
from hsmkm.dlms.general_keys import GeneralKeys, KeyChoice
from hsmkm.dlms.hls import Handshake, Proof
from hsmkm.dlms.octets import Octets
from hsmkm.dlms.protection import Protection
from hsmkm.dlms.settings import PUBLIC_CLIENT_SAP
from hsmkm.dlms.types import SYSTEM_TITLE_OCTETS, KeyId, Mechanism, SystemTitle
from hsmkm.dlms.xdlms import (
    ActionRequest,
    ActionResult,
    ConfirmedServiceError,
    ExceptionResponse,
    InitiateResponse,
    Request,
    Response,
)
from hsmkm.errors import InputError, IntegrityError, ProtocolError, RefusedError
from hsmkm.simulator.behaviour import Activation
from hsmkm.simulator.meter import Meter, StaleCounterError
from hsmkm.simulator.security_setup import READ_WRITE_DENIED, SUCCESS
from hsmkm.simulator.services import BLOCK_OVERHEAD, GENERAL_OVERHEAD, Rights, Services

MAX_PDU = 1024
_CONFORMANCE = xdlms.CLIENT_CONFORMANCE | xdlms.GENERAL_PROTECTION
CHALLENGE_OCTETS = 16

REJECTED = 1
NO_REASON = 1
CONTEXT_NOT_SUPPORTED = 2
MECHANISM_NOT_RECOGNISED = 11
AUTHENTICATION_FAILURE = 13
OTHER_REASON_OF_SERVICE = 3

_INITIATE_ERROR = ConfirmedServiceError(1, 6, 0).encode()
_NOT_ASSOCIATED = ConfirmedServiceError(1, 6, 2).encode()
_UNDECIPHERABLE = ExceptionResponse(1, xdlms.DECIPHERING_ERROR).encode()
_NOT_UNDERSTOOD = ExceptionResponse(1, OTHER_REASON_OF_SERVICE).encode()


class _State(Enum):
    IDLE = 0
    PENDING = 1
    ASSOCIATED = 2


class _RejectedError(Exception):
    """The AARQ is declined, with its diagnostic."""

    def __init__(self, diagnostic: int) -> None:
        super().__init__(diagnostic)
        self.diagnostic = diagnostic


class Session:
    """One connection; `receive` raises DroppedError where the meter closes it instead of answering."""

    def __init__(self, meter: Meter) -> None:
        self._device = self._meter = meter
        self._reset()

    def _reset(self) -> None:
        self._state = _State.IDLE
        self._unicast = self._meter.unicast()
        self._generation = self._meter.generation
        self._channel: Channel | None = None
        self._third: dict[SystemTitle, Channel] = {}
        self._client: SystemTitle | None = None
        self._public = False
        self._proof: Proof | None = None
        self._handshake: Handshake | None = None
        self._services = Services(self._meter, 0)
        self._carrier: int | None = None
        self._lowest = 0

    def receive(self, apdu: bytes, client_sap: int) -> bytes:
        """Answer one APDU; the meter's state is saved before. The answer to a broadcast is empty: there is none."""
        if client_sap == self._meter.settings.broadcast_sap:
            return self._take_broadcast(apdu)
        try:
            answer = self._dispatch(apdu, client_sap)
        except StaleCounterError:
            lowest = self._meter.state.rx_ic
            answer = ExceptionResponse(1, xdlms.INVOCATION_COUNTER_ERROR, lowest).encode()
        except (ProtocolError, InputError):
            answer = _NOT_UNDERSTOOD
        except (IntegrityError, RefusedError):
            answer = _UNDECIPHERABLE
        finally:
            self._meter.store()
        return answer

    def _take_broadcast(self, apdu: bytes) -> bytes:
        """Carry out a broadcast that names its sender; what is not one, or a replay, changes nothing."""
        meter = self._meter
        with contextlib.suppress(ProtocolError, IntegrityError, InputError):
            sender = broadcast.sender_of(apdu)
            if sender is not None:
                traffic = meter.broadcast(sender)
                plain = broadcast.unprotect(apdu, traffic.key, meter.state.suite, sender, traffic.received)
                rights = Rights(sender, public=False, authentic=False, broadcast=True)
                Services(meter, 0).serve(xdlms.parse_request(plain), rights)
        meter.store()
        return b""

    @property
    def is_open(self) -> bool:
        """Whether there is an association, or one that waits for the client's proof."""
        return self._state is not _State.IDLE

    def sent(self) -> None:
        """Take note that the answer is on its way: keys become effective now, unless they wait for the release."""
        if self._meter.settings.activate is not Activation.RELEASE:
            self._activate()

    def close(self) -> None:
        """Take note that the connection is gone, which releases the association."""
        self._activate()
        self._state = _State.IDLE

    def _activate(self) -> None:
        if self._services.pending:
            self._meter.activate(self._services.pending)
            self._services.pending = {}
        if self._generation != self._meter.generation:
            self._renew_channel()

    def _renew_channel(self) -> None:
        """Go on under the keys that are effective now, whichever connection changed them; a dedicated key stays."""
        self._generation = self._meter.generation
        self._unicast = self._meter.unicast()
        if self._channel is None or self._client is None:
            return
        dedicated = self._channel.under_dedicated
        self._channel = self._meter.channel(self._client, self._unicast)
        self._channel.under_dedicated = dedicated

    def _dispatch(self, apdu: bytes, client_sap: int) -> bytes:
        tag = Octets(apdu).peek()
        if tag == acse.AARQ:
            return self._associate(apdu, client_sap)
        if tag == acse.RLRQ:
            acse.parse_release_request(apdu)
            self.close()
            return acse.release_response()
        if self._state is _State.IDLE:
            return _NOT_ASSOCIATED
        if self._channel is None:
            return self._serve(xdlms.parse_request(apdu), Rights(self._client, self._public, authentic=False)).encode()
        third = self._third_party(apdu)
        return self._serve_protected(apdu, third or self._channel, is_client=third is None)

    def _associate(self, apdu: bytes, client_sap: int) -> bytes:
        self._activate()
        self._meter = self._device.towards(client_sap)
        self._reset()
        request = acse.parse_request(apdu)
        try:
            return self._accept(request, client_sap).encode()
        except _RejectedError as rejected:
            diagnostic = rejected.diagnostic
        except (ProtocolError, IntegrityError, RefusedError):
            diagnostic = NO_REASON
        self._reset()
        return AssociationResponse(
            context=request.context, result=REJECTED, diagnostic=diagnostic, user_information=_INITIATE_ERROR
        ).encode()

    def _accept(self, request: AssociationRequest, client_sap: int) -> AssociationResponse:
        mechanism = self._mechanism(request, client_sap)
        title = request.calling_title
        if title is not None and len(title) == SYSTEM_TITLE_OCTETS:
            self._client = SystemTitle(title)
        self._open_context(request)
        own_challenge = self._authenticate_request(request, mechanism)
        answer = self._initiate(request.initiate)
        self._state = _State.PENDING if self._proof else _State.ASSOCIATED
        return AssociationResponse(
            context=request.context,
            result=0,
            diagnostic=acse.AUTHENTICATION_REQUIRED if self._proof else 0,
            responding_title=self._meter.title.octets,
            mechanism=mechanism if self._proof else None,
            challenge=own_challenge,
            user_information=answer,
        )

    def _mechanism(self, request: AssociationRequest, client_sap: int) -> Mechanism:
        """Give the mechanism if this client may use it; the public client may only use none, in a plain context."""
        number = request.mechanism or 0
        self._public = client_sap == PUBLIC_CLIENT_SAP
        if self._public:
            if number or request.context != Context.LOGICAL_NAMES:
                raise _RejectedError(NO_REASON)
            return Mechanism.NONE
        if number not in self._meter.state.mechanisms:
            raise _RejectedError(AUTHENTICATION_FAILURE if number == 0 else MECHANISM_NOT_RECOGNISED)
        return Mechanism(number)

    def _open_context(self, request: AssociationRequest) -> None:
        if request.context == Context.LOGICAL_NAMES_CIPHERED and self._client is not None:
            self._channel = self._meter.channel(self._client, self._unicast)
        elif request.context != Context.LOGICAL_NAMES or (not self._public and self._meter.state.demands.request):
            raise _RejectedError(CONTEXT_NOT_SUPPORTED)

    def _authenticate_request(self, request: AssociationRequest, mechanism: Mechanism) -> bytes | None:
        """Check the password of mechanism 1, or give our challenge for HLS."""
        value = request.challenge or b""
        if mechanism is Mechanism.LLS:
            password = self._meter.state.password
            if not password or not hmac.compare_digest(password, value):
                raise _RejectedError(AUTHENTICATION_FAILURE)
        if not mechanism.is_hls:
            return None
        self._proof = self._meter.proof(mechanism, self._client, self._unicast)
        if self._proof is None or not hls.challenge_fits(value):
            raise _RejectedError(AUTHENTICATION_FAILURE)
        challenge = self._meter.settings.challenge(CHALLENGE_OCTETS)
        self._handshake = Handshake(self._meter.title, self._client, challenge, value)
        return challenge

    def _initiate(self, octets: bytes) -> bytes:
        """Take the InitiateRequest, which may bring a dedicated key, and give the protected answer."""
        channel = self._channel
        opened = channel.unprotect(octets) if channel else Opened(octets)
        demands = self._meter.state.demands
        if channel is not None and not opened.protection.covers(demands.request & Protection.CIPHERED):
            raise IntegrityError("the request is not protected as the security policy demands")
        request = xdlms.parse_initiate_request(opened.apdu)
        if request.dedicated_key is not None:
            self._take_dedicated(request.dedicated_key, opened)
        plain = opened.form in (Form.GLOBAL, None) and not demands.response & Protection.SIGNED
        self._services = Services(self._meter, request.max_pdu, BLOCK_OVERHEAD if plain else GENERAL_OVERHEAD)
        answer = InitiateResponse(request.conformance & _CONFORMANCE, MAX_PDU).encode()
        if channel is None:
            return answer
        wanted = (demands.response | opened.protection) & Protection.CIPHERED
        return self._answered(channel, answer, opened, wanted)

    def _take_dedicated(self, value: bytes, opened: Opened) -> None:
        if self._channel is None or not opened.protection.covers(Protection.CIPHERED):
            raise IntegrityError("a dedicated key travels authenticated and encrypted")
        if len(value) != self._meter.state.suite.key_octets:
            raise ProtocolError("a dedicated key of the wrong length for the suite")
        counters = FreshCounter(), FreshCounter()
        self._channel.under_dedicated = Traffic(self._meter.under(value), *counters, fresh=True)

    def _third_party(self, apdu: bytes) -> Channel | None:
        """The channel of whoever a general- APDU is from, unless that is the client."""
        if self._state is not _State.ASSOCIATED or apdu[0] not in (general.GENERAL_CIPHERING, general.GENERAL_SIGNING):
            return None
        layer = general.parse(apdu)
        if isinstance(layer, GeneralKeyed) or layer.header.originator == self._client:
            return None
        originator = layer.header.originator
        return self._third.setdefault(originator, self._meter.channel(originator, None))

    def _serve_protected(self, apdu: bytes, channel: Channel, *, is_client: bool) -> bytes:
        lowest = self._meter.state.rx_ic
        opened = channel.unprotect(apdu)
        demands = self._meter.state.demands
        if not opened.protection.covers(demands.request) or not (is_client or opened.authentic):
            raise IntegrityError("the request is not protected as the security policy demands")
        if opened.header is not None:
            self._meter.transactions(channel.peer).accept(opened.header.transaction_number)
        if is_client:
            self._lowest, self._carrier = lowest, opened.counter if _under_guek(opened) else None
        shared = opened.key_info == IdentifiedKey(KeyId.GBEK)
        rights = Rights(channel.peer, public=False, authentic=opened.authentic and not shared)
        response = self._serve(xdlms.parse_request(opened.apdu), rights).encode()
        answer = self._answered(channel, response, opened, demands.response | opened.protection)
        if self._meter.settings.activate is Activation.NOW:
            self._activate()
        return answer

    def _answered(self, channel: Channel, apdu: bytes, opened: Opened, protection: Protection) -> bytes:
        """Protect an answer in the form of its request, under the same kind of key."""
        form = opened.form or Form.GLOBAL
        header: Header | None = opened.header.answered_by(self._meter.title) if opened.header else None
        if isinstance(channel.general, GeneralKeys) and form is Form.GENERAL:
            channel.general.choice = _choice(opened)
        return channel.protect(apdu, protection, form, header)

    def _serve(self, request: Request, rights: Rights) -> Response:
        if self._state is _State.PENDING:
            return self._authenticate(request)
        return self._services.serve(request, rights)

    def _authenticate(self, request: Request) -> ActionResult:
        proof, handshake = self._proof, self._handshake
        if not isinstance(request, ActionRequest) or request.ref != REPLY_TO_HLS or request.data is None:
            raise ProtocolError("the client has not proved itself")
        if proof is None or handshake is None or not self._proved(proof, handshake, request.data.octets()):
            self._state = _State.IDLE
            return ActionResult(request.invoke, READ_WRITE_DENIED)
        self._state = _State.ASSOCIATED
        return ActionResult(request.invoke, SUCCESS, axdr.octet_string(proof.answer(handshake)))

    def _proved(self, proof: Proof, handshake: Handshake, token: bytes) -> bool:
        """Check f(StoC); a counter in it must be fresh and another than its carrier's, or an IV was used twice."""
        if hmac.compare_digest(handshake.own_challenge, handshake.peer_challenge):
            return False
        try:
            counter = proof.check(handshake, token)
            if counter is None:
                return True
            fresh = counter >= self._lowest and counter != self._carrier
            if fresh and (self._carrier is None or counter > self._carrier):
                self._unicast.received.accept(counter)
            else:
                self._meter.hear(counter)
        except IntegrityError:
            return False
        return fresh


def _under_guek(opened: Opened) -> bool:
    """Whether the APDU used up a counter value of the GUEK."""
    return opened.form in (Form.GLOBAL, Form.GENERAL_GLOBAL) or opened.key_info == IdentifiedKey(KeyId.GUEK)


def _choice(opened: Opened) -> KeyChoice:
    """Under which key an APDU is answered: one of its kind, never the broadcast key, PREVIOUS for a wrapped one."""
    if isinstance(opened.key_info, IdentifiedKey):
        return KeyChoice.GUEK
    if isinstance(opened.key_info, AgreedKey):
        one_pass = opened.key_info.parameters is KeyParameters.ONE_PASS
        return KeyChoice.ONE_PASS if one_pass else KeyChoice.STATIC
    return KeyChoice.PREVIOUS
