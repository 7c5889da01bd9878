"""The client's side of an association, without I/O: calls give octets to send, `receive` gives what an answer means.

| state          | call or answer                         | event          | next state                         |
|----------------|----------------------------------------|----------------|------------------------------------|
| IDLE           | associate()                            |                | ASSOCIATING                        |
| ASSOCIATING    | AARE accepted, mechanism 0 or 1        | Associated     | ASSOCIATED                         |
| ASSOCIATING    | AARE accepted, HLS                     | Send(f(StoC))  | AUTHENTICATING                     |
| ASSOCIATING    | AARE rejected, or an error in clear    | Refused        | CLOSED                             |
| AUTHENTICATING | f(CtoS) that fits                      | Associated     | ASSOCIATED                         |
| AUTHENTICATING | error                                  | Refused        | CLOSED                             |
| ASSOCIATED     | get(), set(), action(), forward()      |                | GETTING, SETTING, ACTING, FORWARDING |
| GETTING        | block that is not the last             | Send(next)     | GETTING                            |
| GETTING, SETTING, ACTING | result, or error             | Result/Refused | ASSOCIATED                         |
| FORWARDING     | general- APDU for somebody else        | Forwarded      | ASSOCIATED                         |
| ASSOCIATED     | release()                              |                | RELEASING                          |
| RELEASING      | RLRE                                   | Released       | CLOSED                             |
| any            | anything else, or a check that fails   | (raises)       | CLOSED                             |

An association is used once: its challenge must be fresh, so a closed one stays closed. Everything a meter says in a
ciphered association must come under the kind of key that was used to ask, protected as the policy demands; errors in
clear are hints, marked as not authenticated. The xDLMS Initiate travels inside of AARQ and AARE and is never signed.

    association = Association(settings)
    event = association.receive(exchange(association.associate()))
    while isinstance(event, Send):
        event = association.receive(exchange(event.apdu))
"""

from __future__ import annotations

from enum import Enum

from hsmkm.dlms import acse, axdr, ciphering, general, hls, xdlms
from hsmkm.dlms.acse import AssociationRequest, AssociationResponse, Context
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.channel import Form, Opened
from hsmkm.dlms.events import Associated, Event, Forwarded, RefusalKind, Refused, Released, Result, Send
from hsmkm.dlms.general import TRANSACTION_OCTETS, GeneralKeyed, Header
from hsmkm.dlms.hls import Handshake, Proof
from hsmkm.dlms.protection import Protection
from hsmkm.dlms.settings import AssociationSettings
from hsmkm.dlms.suspicion import BadChallengeError, ReplayedAnswerError
from hsmkm.dlms.types import SYSTEM_TITLE_OCTETS, AttributeRef, LogicalName, Mechanism, MethodRef, SystemTitle
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
    Tag,
)
from hsmkm.errors import IntegrityError, ProtocolError, RefusedError

REPLY_TO_HLS = MethodRef(15, LogicalName(bytes([0, 0, 40, 0, 0, 255])), 1)
LARGEST_VALUE = 1 << 20
"""Octets that a value in blocks may have; a meter that sends more is refused."""

MOST_BLOCKS = LARGEST_VALUE // 64
"""Blocks that a value may come in: each costs a value of our counter, and no meter needs blocks of a few octets."""

LARGEST_HEADER = 5 * (1 + 8)
LARGEST_KEY_INFO = 4 + 3 + 2 * 96
LARGEST_SIGNATURE = 1 + 3 + 2 + 96


class State(Enum):
    """States of the table above."""

    IDLE = "idle"
    ASSOCIATING = "associating"
    AUTHENTICATING = "authenticating"
    ASSOCIATED = "associated"
    GETTING = "getting"
    SETTING = "setting"
    ACTING = "acting"
    FORWARDING = "forwarding"
    RELEASING = "releasing"
    CLOSED = "closed"


_ANSWER_TAGS = {
    State.AUTHENTICATING: Tag.ACTION_RESPONSE,
    State.GETTING: Tag.GET_RESPONSE,
    State.SETTING: Tag.SET_RESPONSE,
    State.ACTING: Tag.ACTION_RESPONSE,
}


class Association:
    """One association of one client with one meter; the module's table is its contract."""

    def __init__(self, settings: AssociationSettings) -> None:
        self.settings = settings
        self._channel = settings.channel()
        self._policy = settings.effective_policy
        self._proof = settings.proof()
        self._state = State.IDLE
        self._invoke = 0
        self._transactions = settings.transactions or ciphering.FreshCounter()
        self._transaction = b""
        self._authentic = False
        self._peer_challenge = b""
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
        settings = self.settings
        named = settings.mechanism is not Mechanism.NONE
        title = settings.client_title if named else None
        request = AssociationRequest(
            context=self._context,
            initiate=self._initiate(),
            calling_title=title.octets if title else None,
            mechanism=settings.mechanism if named else None,
            challenge=self._authentication_value(),
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

    def forward(self, apdu: bytes) -> bytes:
        """Give a third party's general- APDU as it is; raises RefusedError unless associated, or if it is too long."""
        self._leave(State.ASSOCIATED)
        self._check_length(len(apdu))
        self._state = State.FORWARDING
        return apdu

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
        if state is State.FORWARDING:
            return self._end(state, _refused_in_clear(apdu) or self._forwarded(apdu))
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

    @property
    def _context(self) -> Context:
        return Context.LOGICAL_NAMES_CIPHERED if self._channel else Context.LOGICAL_NAMES

    def _initiate(self) -> bytes:
        settings, dedicated = self.settings, self.settings.dedicated
        value = dedicated.reveal() if dedicated else None
        if value is not None and len(value) != settings.suite.key_octets:
            raise RefusedError(f"a dedicated key of suite {int(settings.suite)} has {settings.suite.key_octets} octets")
        general_forms = settings.form not in (Form.GLOBAL, Form.DEDICATED) or self._policy.request & Protection.SIGNED
        conformance = xdlms.CLIENT_CONFORMANCE | (xdlms.GENERAL_PROTECTION if general_forms else 0)
        plain = InitiateRequest(conformance, settings.max_pdu, value).encode()
        if self._channel is None:
            return plain
        protection = Protection.CIPHERED if dedicated else self._policy.request & Protection.CIPHERED
        form = settings.form.for_initiate
        return self._channel.protect(plain, protection, form, self._header(form, protection))

    def _authentication_value(self) -> bytes | None:
        if self.settings.mechanism is Mechanism.LLS and self.settings.password is not None:
            return self.settings.password.reveal()
        return self.settings.challenge if self._proof else None

    def _header(self, form: Form, protection: Protection) -> Header | None:
        """Number the transaction of a request that names one."""
        channel = self._channel
        if channel is None or (form is not Form.GENERAL and not protection & Protection.SIGNED):
            return None
        self._transaction = self._transactions.next().to_bytes(TRANSACTION_OCTETS, "big")
        return Header(self._transaction, channel.own, channel.peer)

    def _next_invoke(self) -> int:
        self._invoke = (self._invoke + 1) & xdlms.INVOKE_MASK
        return self._invoke

    def _protected(self, request: Request, waiting: State) -> bytes:
        apdu = request.encode()
        self._check_length(len(apdu) + self._overhead)
        if self._channel is not None:
            form, protection = self.settings.form, self._policy.request
            apdu = self._channel.protect(apdu, protection, form, self._header(form, protection))
        self._state = waiting
        return apdu

    def _check_length(self, octets: int) -> None:
        if self._server_max_pdu and octets > self._server_max_pdu:
            raise RefusedError(
                f"the request has {octets} octets, the meter takes {self._server_max_pdu}",
                hint="send less at once, for example one key after the other",
            )

    @property
    def _overhead(self) -> int:
        """Octets that protection adds at most."""
        if self._channel is None:
            return 0
        total = ciphering.LARGEST_OVERHEAD
        if self.settings.form not in (Form.GLOBAL, Form.DEDICATED):
            total += 1 + SYSTEM_TITLE_OCTETS
        if self.settings.form is Form.GENERAL:
            total += LARGEST_HEADER + LARGEST_KEY_INFO
        if self._policy.request & Protection.SIGNED:
            total += LARGEST_HEADER + LARGEST_SIGNATURE
        return total

    def _opened(self, apdu: bytes, tag: Tag, form: Form, demanded: Protection) -> bytes:
        """Take the protection off an answer and check that it is as it was asked for."""
        if self._channel is None:
            return apdu
        opened: Opened = self._channel.unprotect(apdu)
        if not opened.protection.covers(demanded) or not form.same_key(opened.form or form):
            raise IntegrityError("the answer is not ciphered as the request was, or less than the policy demands")
        if opened.header is not None and opened.header.transaction != self._transaction:
            raise ReplayedAnswerError("the answer is that of another transaction")
        if not opened.apdu or opened.apdu[0] != tag:
            raise IntegrityError("the protected answer is that of another service")
        self._authentic = opened.authentic
        return opened.apdu

    def _associate_answer(self, answer: AssociationResponse) -> Event:
        if answer.result != 0:
            code = answer.diagnostic
            return Refused(f"association rejected: {answer.reason}", RefusalKind.REJECTED, code, authenticated=False)
        self._check_title(answer.responding_title)
        information = answer.user_information or b""
        refused = _refused_in_clear(information) if information else None
        if refused is not None:
            return refused
        if answer.context != self._context:
            raise ProtocolError("the meter accepted another application context than proposed")
        demanded = self._policy.response & Protection.CIPHERED
        plain = self._opened(information, Tag.INITIATE_RESPONSE, self.settings.form.for_initiate, demanded)
        self._server_max_pdu = xdlms.parse_initiate_response(plain).max_pdu
        return self._associated() if self._proof is None else self._authenticate(self._proof, answer)

    def _associated(self) -> Event:
        self._state = State.ASSOCIATED
        return Associated(self._server_title, self._server_max_pdu)

    def _authenticate(self, proof: Proof, answer: AssociationResponse) -> Event:
        challenge = answer.challenge
        if answer.mechanism != self.settings.mechanism or challenge is None:
            raise IntegrityError("the meter opened the association without the mechanism that was asked for")
        if not hls.challenge_fits(challenge) or challenge == self.settings.challenge:
            raise BadChallengeError("the meter's challenge is our own, or not of 8 to 64 octets")
        self._peer_challenge = challenge
        token = proof.answer(self._handshake)
        request = ActionRequest(self._next_invoke(), REPLY_TO_HLS, axdr.octet_string(token))
        return Send(self._protected(request, State.AUTHENTICATING))

    @property
    def _handshake(self) -> Handshake:
        settings = self.settings
        return Handshake(settings.client_title, settings.server_title, settings.challenge, self._peer_challenge)

    def _check_title(self, octets: bytes | None) -> None:
        expected = self.settings.server_title
        if octets is None and self._channel is None:
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
        plain = self._opened(apdu, _ANSWER_TAGS[state], self.settings.form, self._policy.response)
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
        if isinstance(response, ActionResult) and state is State.AUTHENTICATING and self._proof is not None:
            return self._authenticated(self._proof, response)
        raise ProtocolError("the answer is that of another service")

    def _authenticated(self, proof: Proof, response: ActionResult) -> Event:
        if response.error:
            return self._action_outcome(State.AUTHENTICATING, response)
        if response.data is None:
            raise IntegrityError("the meter did not answer the challenge")
        proof.check(self._handshake, response.data.octets())
        return self._associated()

    def _forwarded(self, apdu: bytes) -> Forwarded:
        layer = general.parse(apdu)
        if isinstance(layer, GeneralKeyed) or layer.header.recipient in (None, self.settings.client_title):
            raise ProtocolError("the answer is not for the third party")
        return Forwarded(apdu)

    def _action_outcome(self, state: State, response: ActionResult) -> Event:
        if response.error:
            return self._end(state, self._refused(RefusalKind.ACTION, response.error))
        return self._outcome(state, response.data_error, response.data)

    def _outcome(self, state: State, error: int, data: Data | None) -> Event:
        return self._end(state, self._refused(RefusalKind.DATA_ACCESS, error) if error else Result(data))

    def _refused(self, kind: RefusalKind, code: int) -> Refused:
        reason = xdlms.DATA_ACCESS_RESULTS.get(code, f"{kind.value} {code}")
        return Refused(reason, kind, code, authenticated=self._authentic)

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
        if self._block_number > MOST_BLOCKS:
            raise ProtocolError(f"a value comes in more than {MOST_BLOCKS} blocks")
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
