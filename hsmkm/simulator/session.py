"""One connection to a virtual meter: the server's side of associations, APDU in, APDU out.

States: idle -> (AARQ with HLS) pending -> (f(StoC) fits) associated; the public client goes from idle to associated.
"""

from __future__ import annotations

import hmac
from enum import Enum

from hsmkm.dlms import acse, axdr, ciphering, hls, xdlms
from hsmkm.dlms.acse import AssociationRequest, AssociationResponse, Context
from hsmkm.dlms.association import REPLY_TO_HLS
from hsmkm.dlms.ciphering import Ciphered, GloTag
from hsmkm.dlms.octets import Octets
from hsmkm.dlms.security_setup import key_transfer_method
from hsmkm.dlms.settings import PUBLIC_CLIENT_SAP
from hsmkm.dlms.types import SYSTEM_TITLE_OCTETS, KeyId, Mechanism, SystemTitle
from hsmkm.dlms.xdlms import (
    ActionRequest,
    ActionResult,
    ConfirmedServiceError,
    ExceptionResponse,
    GetBlock,
    GetNext,
    GetRequest,
    GetResult,
    InitiateRequest,
    InitiateResponse,
    Request,
    Response,
    SetResult,
)
from hsmkm.errors import InputError, IntegrityError, ProtocolError
from hsmkm.simulator.meter import READ_WRITE_DENIED, SUCCESS, Activation, Meter

MAX_PDU = 1024
CHALLENGE_OCTETS = 16
BLOCK_OVERHEAD = 64

REJECTED = 1
NO_REASON = 1
AUTHENTICATION_FAILURE = 13
DATA_BLOCK_UNAVAILABLE = 14
NO_LONG_GET = 16
OTHER_REASON_OF_SERVICE = 3

_INITIATE_ERROR = ConfirmedServiceError(1, 6, 0).encode()
_NOT_ASSOCIATED = ConfirmedServiceError(1, 6, 2).encode()
_UNDECIPHERABLE = ExceptionResponse(1, xdlms.DECIPHERING_ERROR).encode()
_NOT_UNDERSTOOD = ExceptionResponse(1, OTHER_REASON_OF_SERVICE).encode()


class _State(Enum):
    IDLE = 0
    PENDING = 1
    ASSOCIATED = 2


class _StaleError(Exception):
    """The counter of an APDU with a good tag is below the lowest acceptable one."""


class Session:
    """One connection; `receive` raises DroppedError where the meter closes it instead of answering."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._state = _State.IDLE
        self._key = meter.cipher_key()
        self._client: SystemTitle | None = None
        self._public = False
        self._client_challenge = b""
        self._own_challenge = b""
        self._client_max_pdu = 0
        self._pending: dict[KeyId, bytes] = {}
        self._long_value = b""
        self._block = 0
        self._carrier = 0
        self._lowest = 0

    def receive(self, apdu: bytes, client_sap: int) -> bytes:
        """Answer one APDU; the meter's state is saved before."""
        try:
            answer = self._dispatch(apdu, client_sap)
        except (ProtocolError, InputError):
            answer = _NOT_UNDERSTOOD
        except IntegrityError:
            answer = _UNDECIPHERABLE
        except _StaleError:
            lowest = self._meter.state.rx_ic
            answer = ExceptionResponse(1, xdlms.INVOCATION_COUNTER_ERROR, lowest).encode()
        finally:
            self._meter.store()
        return answer

    def sent(self) -> None:
        """Take note that the answer is on its way: keys become effective now, unless they wait for the release."""
        if self._meter.settings.activate is not Activation.RELEASE:
            self._activate()

    def close(self) -> None:
        """Take note that the connection is gone, which releases the association."""
        self._activate()
        self._state = _State.IDLE

    def _activate(self) -> None:
        if self._pending:
            self._meter.activate(self._pending)
            self._pending = {}
        if self._state is not _State.IDLE:
            self._key = self._meter.cipher_key()

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
        if self._public:
            return self._serve(xdlms.parse_request(apdu)).encode()
        return self._serve_ciphered(apdu)

    def _associate(self, apdu: bytes, client_sap: int) -> bytes:
        self._activate()
        self._state, self._public, self._client = _State.IDLE, False, None
        self._key = self._meter.cipher_key()
        request = acse.parse_request(apdu)
        try:
            return self._accept(request, client_sap)
        except (ProtocolError, IntegrityError, _StaleError):
            return self._reject(request.context, NO_REASON)

    def _accept(self, request: AssociationRequest, client_sap: int) -> bytes:
        if client_sap == PUBLIC_CLIENT_SAP:
            return self._accept_public(request)
        title = request.calling_title
        if request.mechanism != Mechanism.HLS_GMAC or title is None or len(title) != SYSTEM_TITLE_OCTETS:
            return self._reject(request.context, AUTHENTICATION_FAILURE)
        if request.context != Context.LOGICAL_NAMES_CIPHERED or not hls.challenge_fits(request.challenge or b""):
            return self._reject(request.context, NO_REASON)
        self._client = SystemTitle(title)
        initiate = xdlms.parse_initiate_request(self._decipher(request.initiate, GloTag.INITIATE_REQUEST))
        self._client_challenge = request.challenge or b""
        self._own_challenge = self._meter.settings.challenge(CHALLENGE_OCTETS)
        self._state = _State.PENDING
        answer = self._encipher(self._initiate(initiate).encode())
        return AssociationResponse(
            context=request.context,
            result=0,
            diagnostic=acse.AUTHENTICATION_REQUIRED,
            responding_title=self._meter.title.octets,
            mechanism=Mechanism.HLS_GMAC,
            challenge=self._own_challenge,
            user_information=answer,
        ).encode()

    def _accept_public(self, request: AssociationRequest) -> bytes:
        if request.mechanism or request.context != Context.LOGICAL_NAMES:
            return self._reject(request.context, NO_REASON)
        initiate = self._initiate(xdlms.parse_initiate_request(request.initiate))
        self._state, self._public = _State.ASSOCIATED, True
        response = AssociationResponse(
            context=request.context,
            result=0,
            responding_title=self._meter.title.octets,
            user_information=initiate.encode(),
        )
        return response.encode()

    def _reject(self, context: int, diagnostic: int) -> bytes:
        response = AssociationResponse(
            context=context,
            result=REJECTED,
            diagnostic=diagnostic,
            user_information=_INITIATE_ERROR,
        )
        return response.encode()

    def _initiate(self, request: InitiateRequest) -> InitiateResponse:
        self._client_max_pdu = request.max_pdu
        return InitiateResponse(request.conformance & xdlms.CLIENT_CONFORMANCE, MAX_PDU)

    @property
    def _control(self) -> int:
        return ciphering.security_control(self._meter.state.suite)

    def _decipher(self, apdu: bytes, *tags: GloTag) -> bytes:
        ciphered: Ciphered = ciphering.parse(apdu)
        if ciphered.tag not in tags or ciphered.security_control != self._control or self._client is None:
            raise IntegrityError("the request is not protected as the security policy demands")
        plain = ciphering.unprotect(ciphered, self._key, self._client)
        self._lowest, self._carrier = self._meter.state.rx_ic, ciphered.counter
        if not self._meter.accepts(ciphered.counter):
            raise _StaleError
        return plain

    def _encipher(self, apdu: bytes) -> bytes:
        return ciphering.protect(apdu, self._key, self._control, self._meter.title, self._meter.next_counter())

    def _serve_ciphered(self, apdu: bytes) -> bytes:
        plain = self._decipher(apdu, GloTag.GET_REQUEST, GloTag.SET_REQUEST, GloTag.ACTION_REQUEST)
        answer = self._encipher(self._serve(xdlms.parse_request(plain)).encode())
        if self._meter.settings.activate is Activation.NOW:
            self._activate()
        return answer

    def _serve(self, request: Request) -> Response:
        if isinstance(request, ActionRequest):
            return self._action(request)
        if self._state is not _State.ASSOCIATED:
            raise ProtocolError("the client has not proved itself")
        if isinstance(request, GetRequest):
            return self._get(request)
        if isinstance(request, GetNext):
            return self._next_block(request)
        return SetResult(request.invoke, READ_WRITE_DENIED)

    def _get(self, request: GetRequest) -> Response:
        title = self._client.octets if self._client else b""
        error, data = self._meter.read(request.ref, title, public=self._public)
        result = GetResult(request.invoke, error, data)
        if data is None or not self._client_max_pdu or len(result.encode()) <= self._block_octets:
            return result
        self._long_value, self._block = axdr.encode(data), 1
        return self._current_block(request.invoke)

    @property
    def _block_octets(self) -> int:
        return max(self._client_max_pdu - BLOCK_OVERHEAD, 1)

    def _next_block(self, request: GetNext) -> Response:
        if not self._long_value or request.number != self._block:
            error = DATA_BLOCK_UNAVAILABLE if self._long_value else NO_LONG_GET
            return GetBlock(request.invoke, last=True, number=request.number, error=error)
        self._block += 1
        return self._current_block(request.invoke)

    def _current_block(self, invoke: int) -> GetBlock:
        size = self._block_octets
        start = (self._block - 1) * size
        raw = self._long_value[start : start + size]
        last = start + size >= len(self._long_value)
        if last:
            self._long_value = b""
        return GetBlock(invoke, last, self._block, SUCCESS, raw)

    def _action(self, request: ActionRequest) -> ActionResult:
        if self._state is _State.PENDING:
            return self._authenticate(request)
        if self._public or request.ref != key_transfer_method():
            return ActionResult(request.invoke, READ_WRITE_DENIED)
        error, keys = self._meter.transfer(request.data)
        self._pending.update(keys)
        return ActionResult(request.invoke, error)

    def _authenticate(self, request: ActionRequest) -> ActionResult:
        if request.ref != REPLY_TO_HLS or request.data is None or self._client is None:
            raise ProtocolError("the client has not proved itself")
        if not self._proved(self._client, request.data.octets()):
            self._state = _State.IDLE
            return ActionResult(request.invoke, READ_WRITE_DENIED)
        self._state = _State.ASSOCIATED
        meter = self._meter
        answer = hls.token(self._key, meter.state.suite, meter.title, meter.next_counter(), self._client_challenge)
        return ActionResult(request.invoke, SUCCESS, axdr.octet_string(answer))

    def _proved(self, client: SystemTitle, token: bytes) -> bool:
        """Check f(StoC); its counter must be fresh and another than its carrier's, or an IV was used twice."""
        if hmac.compare_digest(self._own_challenge, self._client_challenge):
            return False
        try:
            counter = hls.verify(self._key, self._meter.state.suite, client, self._own_challenge, token)
        except IntegrityError:
            return False
        if counter < self._lowest or counter == self._carrier:
            return False
        return counter < self._carrier or self._meter.accepts(counter)
