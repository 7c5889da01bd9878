"""The client's side of an association, without I/O: calls give octets to send, `receive` gives what an answer means.

| state          | call or answer                         | event          | next state                         |
|----------------|----------------------------------------|----------------|------------------------------------|
| IDLE           | associate()                            |                | ASSOCIATING                        |
| ASSOCIATING    | AARE accepted, no mechanism            | Associated     | ASSOCIATED                         |
| ASSOCIATING    | AARE accepted, HLS                     | Send(f(StoC))  | AUTHENTICATING                     |
| ASSOCIATING    | AARE rejected, or an error in clear    | Refused        | CLOSED                             |
| AUTHENTICATING | f(CtoS) that fits                      | Associated     | ASSOCIATED                         |
| AUTHENTICATING | error                                  | Refused        | CLOSED                             |
| ASSOCIATED     | get(), set(), action()                 |                | GETTING, SETTING, ACTING           |
| GETTING        | block that is not the last             | Send(next)     | GETTING                            |
| GETTING, SETTING, ACTING | result, or error             | Result/Refused | ASSOCIATED                         |
| ASSOCIATED     | release()                              |                | RELEASING                          |
| RELEASING      | RLRE                                   | Released       | CLOSED                             |
| any            | anything else, or a check that fails   | (raises)       | CLOSED                             |

An association is used once: its challenge must be fresh, so a closed one stays closed. Everything a meter says in a
ciphered association must come protected as it was asked; errors in clear are hints, marked as not authenticated.

    association = Association(settings)
    event = association.receive(exchange(association.associate()))
    while isinstance(event, Send):
        event = association.receive(exchange(event.apdu))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from hsmkm.dlms import acse, axdr, ciphering, hls, xdlms
from hsmkm.dlms.acse import AssociationRequest, AssociationResponse, Context
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.ciphering import CipherKey, GloTag, InvocationCounter, ReceiveCounter
from hsmkm.dlms.types import (
    SYSTEM_TITLE_OCTETS,
    AttributeRef,
    LogicalName,
    Mechanism,
    MethodRef,
    SecuritySuite,
    SystemTitle,
)
from hsmkm.dlms.xdlms import (
    ActionRequest,
    ActionResult,
    ExceptionResponse,
    GetBlock,
    GetNext,
    GetRequest,
    GetResult,
    InitiateRequest,
    Request,
    Response,
    SetRequest,
    SetResult,
)
from hsmkm.errors import IntegrityError, ProtocolError, RefusedError

PUBLIC_CLIENT_SAP = 16
MANAGEMENT_SERVER_SAP = 1
REPLY_TO_HLS = MethodRef(15, LogicalName(bytes([0, 0, 40, 0, 0, 255])), 1)
LARGEST_VALUE = 1 << 20
"""Octets that a value in blocks may have; a meter that sends more is refused."""


class State(Enum):
    """States of the table above."""

    IDLE = "idle"
    ASSOCIATING = "associating"
    AUTHENTICATING = "authenticating"
    ASSOCIATED = "associated"
    GETTING = "getting"
    SETTING = "setting"
    ACTING = "acting"
    RELEASING = "releasing"
    CLOSED = "closed"


class RefusalKind(Enum):
    """What kind of answer refused; `Refused.code` is the number within the kind."""

    DATA_ACCESS = "data-access-result"
    ACTION = "action-result"
    EXCEPTION = "exception-response"
    REJECTED = "association-rejected"
    CONFIRMED_SERVICE_ERROR = "confirmed-service-error"


@dataclass(frozen=True, slots=True)
class Send:
    """The protocol needs another request: send it and pass its answer to `receive`."""

    apdu: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Associated:
    """The association is open; under HLS the meter has proved that it holds the keys."""

    server_title: SystemTitle | None
    max_pdu: int


@dataclass(frozen=True, slots=True)
class Result:
    """The service was done; `data` is what a GET or a method returned."""

    data: Data | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The meter declined; where `authenticated` is False anybody on the way may have said so, `counter` included."""

    reason: str
    kind: RefusalKind
    code: int
    authenticated: bool
    counter: int | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """The association is closed in good order."""


Event = Send | Associated | Result | Refused | Released


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationSettings:
    """Who speaks to whom, and under what protection; `challenge` is 8 to 64 fresh random octets of the caller.

    Raises RefusedError for a combination that is not spoken: mechanism 5 needs key, counters, challenge and the
    meter's title; mechanism 0 has none of the first three.
    """

    client_sap: int
    server_sap: int
    client_title: SystemTitle | None = None
    server_title: SystemTitle | None = None
    mechanism: Mechanism = Mechanism.NONE
    suite: SecuritySuite = SecuritySuite.SUITE_0
    key: CipherKey | None = field(default=None, repr=False)
    counter: InvocationCounter | None = None
    receive_counter: ReceiveCounter | None = None
    challenge: bytes = field(default=b"", repr=False)
    max_pdu: int = 1024

    def __post_init__(self) -> None:
        if self.mechanism is Mechanism.HLS_GMAC:
            _Security.of(self)
        elif self.mechanism is not Mechanism.NONE or self.key is not None:
            raise RefusedError(
                f"an association with mechanism {int(self.mechanism)} is not supported",
                hint="use mechanism 5 with keys, or 0 without",
            )


def public(server_title: SystemTitle | None = None, *, server_sap: int = MANAGEMENT_SERVER_SAP) -> AssociationSettings:
    """Give the settings of the public client, which has no security and may read a meter's counter and title."""
    return AssociationSettings(client_sap=PUBLIC_CLIENT_SAP, server_sap=server_sap, server_title=server_title)


@dataclass(frozen=True, slots=True)
class _Security:
    """The settings of a ciphered association, all present."""

    client_title: SystemTitle
    server_title: SystemTitle
    suite: SecuritySuite
    key: CipherKey
    counter: InvocationCounter
    receive_counter: ReceiveCounter
    challenge: bytes

    @classmethod
    def of(cls, settings: AssociationSettings) -> _Security:
        client, server, key = settings.client_title, settings.server_title, settings.key
        counter, received = settings.counter, settings.receive_counter
        if client is None or server is None or key is None or counter is None or received is None:
            raise RefusedError("HLS with GMAC needs both titles, the keys and both counters")
        if client == server:
            raise RefusedError("client and meter have the same system title", hint="each holder of a key needs its own")
        if not hls.challenge_fits(settings.challenge):
            raise RefusedError("a challenge has 8 to 64 octets")
        return cls(client, server, settings.suite, key, counter, received, settings.challenge)

    @property
    def control(self) -> int:
        return ciphering.security_control(self.suite)

    def protect(self, apdu: bytes) -> bytes:
        return ciphering.protect(apdu, self.key, self.control, self.client_title, self.counter.next())

    def unprotect(self, apdu: bytes, tag: GloTag) -> bytes:
        if not apdu or apdu[0] != tag:
            raise IntegrityError("the answer is not ciphered as the request was")
        ciphered = ciphering.parse(apdu)
        if ciphered.security_control != self.control:
            raise IntegrityError("the answer is not ciphered as the request was")
        plain = ciphering.unprotect(ciphered, self.key, self.server_title)
        self.receive_counter.accept(ciphered.counter)
        return plain


_ANSWER_TAGS = {
    State.AUTHENTICATING: GloTag.ACTION_RESPONSE,
    State.GETTING: GloTag.GET_RESPONSE,
    State.SETTING: GloTag.SET_RESPONSE,
    State.ACTING: GloTag.ACTION_RESPONSE,
}


class Association:
    """One association of one client with one meter; the module's table is its contract."""

    def __init__(self, settings: AssociationSettings) -> None:
        self.settings = settings
        self._security = _Security.of(settings) if settings.key is not None else None
        self._state = State.IDLE
        self._invoke = 0
        self._server_title: SystemTitle | None = None
        self._server_max_pdu = 0
        self._blocks = bytearray()
        self._block_number = 0

    @property
    def state(self) -> State:
        """Where the association stands."""
        return self._state

    def associate(self) -> bytes:
        """Give the AARQ; raises RefusedError unless the association is idle."""
        self._leave(State.IDLE)
        initiate = InitiateRequest(xdlms.CLIENT_CONFORMANCE, self.settings.max_pdu).encode()
        if self._security is None:
            request = AssociationRequest(context=Context.LOGICAL_NAMES, initiate=initiate)
        else:
            request = AssociationRequest(
                context=Context.LOGICAL_NAMES_CIPHERED,
                initiate=self._security.protect(initiate),
                calling_title=self._security.client_title.octets,
                mechanism=self.settings.mechanism,
                challenge=self._security.challenge,
            )
        self._state = State.ASSOCIATING
        return request.encode()

    def get(self, ref: AttributeRef) -> bytes:
        """Give the request to read an attribute; raises RefusedError unless associated."""
        self._leave(State.ASSOCIATED)
        self._blocks.clear()
        self._block_number = 0
        return self._protected(GetRequest(self._next_invoke(), ref), State.GETTING)

    def set(self, ref: AttributeRef, data: Data) -> bytes:
        """Give the request to write an attribute; raises RefusedError unless associated, or if it is too long."""
        self._leave(State.ASSOCIATED)
        return self._protected(SetRequest(self._next_invoke(), ref, data), State.SETTING)

    def action(self, ref: MethodRef, data: Data | None = None) -> bytes:
        """Give the request to invoke a method; raises RefusedError unless associated, or if it is too long."""
        self._leave(State.ASSOCIATED)
        return self._protected(ActionRequest(self._next_invoke(), ref, data), State.ACTING)

    def release(self) -> bytes:
        """Give the RLRQ; raises RefusedError unless associated."""
        self._leave(State.ASSOCIATED)
        self._state = State.RELEASING
        return acse.release_request()

    def receive(self, apdu: bytes) -> Event:
        """Take the answer to what was sent last.

        Raises ProtocolError for what the standard does not allow and IntegrityError for what is not the meter's; both,
        and whatever else is raised, close the association.
        """
        state, self._state = self._state, State.CLOSED
        if state in _ANSWER_TAGS:
            return self._service_answer(state, apdu)
        if state is State.ASSOCIATING:
            return _refused_in_clear(apdu) or self._associate_answer(acse.parse_response(apdu))
        if state is State.RELEASING:
            refused = _refused_in_clear(apdu)
            if refused is None:
                acse.parse_release_response(apdu)
            return refused or Released()
        self._state = state
        raise ProtocolError("an answer came while none was awaited")

    def _leave(self, state: State) -> None:
        if self._state is not state:
            raise RefusedError(
                f"the association is {self._state.value}, not {state.value}",
                hint="a closed association is not opened again: make a new one",
            )

    def _next_invoke(self) -> int:
        self._invoke = (self._invoke + 1) & xdlms.INVOKE_MASK
        return self._invoke

    def _protected(self, request: Request, waiting: State) -> bytes:
        plain = request.encode()
        overhead = ciphering.LARGEST_OVERHEAD if self._security else 0
        if self._server_max_pdu and len(plain) + overhead > self._server_max_pdu:
            raise RefusedError(
                f"the request has {len(plain)} octets, the meter takes {self._server_max_pdu}",
                hint="send less at once, for example one key after the other",
            )
        apdu = plain if self._security is None else self._security.protect(plain)
        self._state = waiting
        return apdu

    def _associate_answer(self, answer: AssociationResponse) -> Event:
        if answer.result != 0:
            code = answer.diagnostic
            return Refused(f"association rejected: {answer.reason}", RefusalKind.REJECTED, code, authenticated=False)
        self._check_title(answer.responding_title)
        information = answer.user_information or b""
        refused = _refused_in_clear(information) if information else None
        if refused is not None:
            return refused
        wanted = Context.LOGICAL_NAMES_CIPHERED if self._security else Context.LOGICAL_NAMES
        if answer.context != wanted:
            raise ProtocolError("the meter accepted another application context than proposed")
        if self._security is None:
            return self._associated(information)
        return self._authenticate(self._security, answer, information)

    def _associated(self, initiate: bytes) -> Event:
        self._server_max_pdu = xdlms.parse_initiate_response(initiate).max_pdu
        self._state = State.ASSOCIATED
        return Associated(self._server_title, self._server_max_pdu)

    def _authenticate(self, security: _Security, answer: AssociationResponse, initiate: bytes) -> Event:
        plain = security.unprotect(initiate, GloTag.INITIATE_RESPONSE)
        self._server_max_pdu = xdlms.parse_initiate_response(plain).max_pdu
        challenge = answer.challenge
        if answer.mechanism != self.settings.mechanism or challenge is None:
            raise IntegrityError("the meter opened the association without the mechanism that was asked for")
        if not hls.challenge_fits(challenge) or challenge == security.challenge:
            raise ProtocolError("the meter's challenge is our own, or not of 8 to 64 octets")
        token = hls.token(security.key, security.suite, security.client_title, security.counter.next(), challenge)
        request = ActionRequest(self._next_invoke(), REPLY_TO_HLS, axdr.octet_string(token))
        return Send(self._protected(request, State.AUTHENTICATING))

    def _check_title(self, octets: bytes | None) -> None:
        expected = self.settings.server_title
        if octets is None and self._security is None:
            return
        if octets is None or len(octets) != SYSTEM_TITLE_OCTETS:
            raise ProtocolError("the meter gave no system title of 8 octets")
        self._server_title = SystemTitle(octets)
        if expected is not None and self._server_title != expected:
            raise IntegrityError(
                f"meter {self._server_title} answered in place of {expected}", hint="check the address"
            )

    def _service_answer(self, state: State, apdu: bytes) -> Event:
        refused = _refused_in_clear(apdu)
        if refused is not None:
            return self._end(state, refused)
        plain = apdu if self._security is None else self._security.unprotect(apdu, _ANSWER_TAGS[state])
        response = xdlms.parse_response(plain)
        if response.invoke != self._invoke:
            raise ProtocolError("the answer belongs to another request")
        return self._meaning(state, response)

    def _meaning(self, state: State, response: Response) -> Event:
        if state is State.GETTING and isinstance(response, GetBlock):
            return self._block(response)
        if state is State.GETTING and isinstance(response, GetResult):
            return self._outcome(state, response.error, response.data)
        if state is State.SETTING and isinstance(response, SetResult):
            return self._outcome(state, response.error, None)
        if isinstance(response, ActionResult) and state is State.ACTING:
            return self._action_outcome(state, response)
        if isinstance(response, ActionResult) and state is State.AUTHENTICATING and self._security is not None:
            return self._authenticated(self._security, response)
        raise ProtocolError("the answer is that of another service")

    def _authenticated(self, security: _Security, response: ActionResult) -> Event:
        if response.error:
            return self._action_outcome(State.AUTHENTICATING, response)
        if response.data is None:
            raise IntegrityError("the meter did not answer the challenge")
        hls.verify(security.key, security.suite, security.server_title, security.challenge, response.data.octets())
        self._state = State.ASSOCIATED
        return Associated(self._server_title, self._server_max_pdu)

    def _action_outcome(self, state: State, response: ActionResult) -> Event:
        if response.error:
            return self._end(state, self._refused(RefusalKind.ACTION, response.error))
        return self._outcome(state, response.data_error, response.data)

    def _outcome(self, state: State, error: int, data: Data | None) -> Event:
        return self._end(state, self._refused(RefusalKind.DATA_ACCESS, error) if error else Result(data))

    def _refused(self, kind: RefusalKind, code: int) -> Refused:
        reason = xdlms.DATA_ACCESS_RESULTS.get(code, f"{kind.value} {code}")
        return Refused(reason, kind, code, authenticated=self._security is not None)

    def _end(self, state: State, event: Event) -> Event:
        self._state = State.CLOSED if state is State.AUTHENTICATING else State.ASSOCIATED
        return event

    def _block(self, block: GetBlock) -> Event:
        if block.error:
            return self._outcome(State.GETTING, block.error, None)
        self._block_number += 1
        if block.number != self._block_number or len(self._blocks) + len(block.raw) > LARGEST_VALUE:
            raise ProtocolError("a block came out of order, or the value is too large")
        if not block.raw and not block.last:
            raise ProtocolError("a block is empty")
        self._blocks += block.raw
        if block.last:
            return self._outcome(State.GETTING, xdlms.SUCCESS, axdr.decode(bytes(self._blocks)))
        return Send(self._protected(GetNext(self._invoke, block.number), State.GETTING))


def _refused_in_clear(apdu: bytes) -> Refused | None:
    error = xdlms.parse_error(apdu)
    if error is None:
        return None
    if isinstance(error, ExceptionResponse):
        kind, code = RefusalKind.EXCEPTION, error.service_error
        return Refused(error.reason, kind, code, authenticated=False, counter=error.counter)
    reason = f"confirmed service error {error.service}, {error.kind}, {error.value}"
    return Refused(reason, RefusalKind.CONFIRMED_SERVICE_ERROR, error.value, authenticated=False)
