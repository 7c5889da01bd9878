"""The Security Setup object of a virtual meter: its attributes, and its methods with their faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from hsmkm.dlms import agreement, axdr, certificates, security_setup
from hsmkm.dlms.agreement import PublicShare
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.certificates import CertificateType
from hsmkm.dlms.protection import SecurityPolicy
from hsmkm.dlms.security_setup import Attribute, KeyTransfer, Method
from hsmkm.dlms.types import AttributeRef, KeyId, LogicalName, SecuritySuite, SystemTitle
from hsmkm.errors import IntegrityError, ProtocolError, RefusedError
from hsmkm.simulator.behaviour import DroppedError, Fault, MeterSettings
from hsmkm.simulator.certificates import Certificates
from hsmkm.simulator.key_pairs import SoftwareSigner, SoftwareVerifier, derive, generate, point_of, public_of
from hsmkm.simulator.state import MeterState

SUCCESS = 0
TEMPORARY_FAILURE = 2
READ_WRITE_DENIED = 3
TYPE_UNMATCHED = 12
OTHER_REASON = 250

NewKeys = dict[KeyId, bytes]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a method came to: an Action-Result, its return value, and keys that are to become effective."""

    error: int = SUCCESS
    data: Data | None = None
    keys: Mapping[KeyId, bytes] = field(default_factory=dict, repr=False)


def _faultless() -> None:
    """Make no fault."""


class SecuritySetup:
    """Class 64, version 0 or 1 by the state.

    `activate` makes keys effective at once, `changed` notes a new state, and `next_fault` says what goes wrong.
    """

    def __init__(
        self,
        state: MeterState,
        settings: MeterSettings,
        activate: Callable[[Mapping[KeyId, bytes]], None],
        changed: Callable[[], None],
        next_fault: Callable[[], Fault | None] = _faultless,
    ) -> None:
        self._state = state
        self._settings = settings
        self._activate = activate
        self._changed = changed
        self._next_fault = next_fault
        self.certificates = Certificates(state, settings.now)

    @property
    def logical_name(self) -> LogicalName:
        """The name of the object: 0.0.43.0.E.255."""
        return security_setup.logical_name(self._state.setup)

    def attributes(self, client_title: bytes) -> dict[AttributeRef, Data]:
        """Every attribute but the server's system title, for an associated client."""
        state = self._state
        values = {
            Attribute.LOGICAL_NAME: axdr.octet_string(self.logical_name.octets),
            Attribute.SECURITY_POLICY: axdr.enum(state.policy or 0),
            Attribute.SECURITY_SUITE: axdr.enum(state.suite),
            Attribute.CLIENT_SYSTEM_TITLE: axdr.octet_string(client_title),
        }
        if state.version:
            infos = [held.info() for held in self.certificates.held()]
            values[Attribute.CERTIFICATES] = certificates.encode_certificates(infos)
        return {security_setup.attribute(which, self._state.setup): value for which, value in values.items()}

    def invoke(self, method: int, data: Data | None, client: SystemTitle) -> Outcome:
        """Invoke a method; some faults raise DroppedError."""
        if method not in Method.__members__.values() or (not self._state.version and method > Method.KEY_TRANSFER):
            return Outcome(READ_WRITE_DENIED)
        if data is None:
            return Outcome(TYPE_UNMATCHED)
        try:
            return self._invoke(Method(method), data, client)
        except (ProtocolError, IntegrityError, RefusedError, InvalidUnwrap):
            return Outcome(OTHER_REASON)

    def _invoke(self, method: Method, data: Data, client: SystemTitle) -> Outcome:
        if method is Method.KEY_TRANSFER:
            return self._with_fault(lambda: Outcome(keys=self._unwrap(security_setup.decode_key_transfer(data))))
        if method is Method.KEY_AGREEMENT:
            return self._with_fault(lambda: self._agree(data, client))
        outcome = self._strengthen(data) if method is Method.SECURITY_ACTIVATE else self._certify(method, data)
        self._changed()
        return outcome

    def _strengthen(self, data: Data) -> Outcome:
        state, value = self._state, data.integer()
        if not SecurityPolicy.parse(state.version, value).strengthens(state.demands):
            return Outcome(READ_WRITE_DENIED)
        state.policy = value
        return Outcome()

    def _certify(self, method: Method, data: Data) -> Outcome:
        if self._state.suite is SecuritySuite.SUITE_0:
            return Outcome(READ_WRITE_DENIED)
        if method is Method.GENERATE_KEY_PAIR:
            self.certificates.generate_key_pair(certificates.decode_type(data))
            return Outcome()
        if method is Method.GENERATE_CERTIFICATE_REQUEST:
            return Outcome(data=axdr.octet_string(self.certificates.request(certificates.decode_type(data))))
        if method is Method.IMPORT_CERTIFICATE:
            self.certificates.take(data.octets())
            return Outcome()
        wanted = certificates.decode_identification(data)
        if method is Method.EXPORT_CERTIFICATE:
            return Outcome(data=axdr.octet_string(self.certificates.export(wanted)))
        self.certificates.remove(wanted)
        return Outcome()

    def _with_fault(self, renew: Callable[[], Outcome]) -> Outcome:
        fault = self._next_fault()
        if fault is Fault.REJECT:
            return Outcome(TEMPORARY_FAILURE)
        if fault is Fault.DROP_BEFORE:
            raise DroppedError
        outcome = renew()
        if fault is Fault.LIE:
            return Outcome(data=outcome.data)
        if fault is Fault.DROP_AFTER:
            self._activate(outcome.keys)
            raise DroppedError
        if fault is Fault.FIRST_ONLY:
            return Outcome(data=outcome.data, keys=dict(list(outcome.keys.items())[:1]))
        return outcome

    def _unwrap(self, transfers: tuple[KeyTransfer, ...]) -> NewKeys:
        if any(len(transfer.wrapped) != self._state.suite.wrapped_octets for transfer in transfers):
            raise ProtocolError("a key of the wrong length for the suite")
        master = self._state.keys[KeyId.MASTER]
        return {transfer.key_id: aes_key_unwrap(master, transfer.wrapped) for transfer in transfers}

    def _agree(self, data: Data, client: SystemTitle) -> Outcome:
        """Agree on keys by the Ephemeral Unified Model, and answer with the meter's own signed points."""
        state = self._state
        theirs = self.certificates.public_key(client, CertificateType.DIGITAL_SIGNATURE)
        ours = state.key_pairs.get(CertificateType.DIGITAL_SIGNATURE)
        if theirs is None or ours is None:
            raise RefusedError("a side has no certified key for digital signatures")
        keys, answers = NewKeys(), []
        for share in agreement.decode_key_agreement(state.suite, data):
            share.check(state.suite, SoftwareVerifier(theirs))
            pair = generate(state.suite)
            algorithm = self._settings.algorithms.of(state.suite, share.key_id)
            info = agreement.ephemeral_info(algorithm, client, state.system_title)
            keys[share.key_id] = derive(state.suite, pair, public_of(state.suite, share.point), info)
            point = point_of(pair.public_key())
            answers.append(PublicShare.sign(state.suite, share.key_id, point, SoftwareSigner(ours)))
        return Outcome(data=agreement.encode_key_agreement(answers), keys=keys)
