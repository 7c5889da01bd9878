"""A virtual meter without I/O: its keys, counters and objects. `session` is one connection to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from hsmkm.dlms import axdr, security_setup
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.certificates import CertificateType
from hsmkm.dlms.channel import Channel, Traffic
from hsmkm.dlms.general_keys import Agreement, GeneralKeys
from hsmkm.dlms.hls import DIGESTS, DigestProof, GmacProof, Proof, SignatureProof
from hsmkm.dlms.security_setup import Attribute
from hsmkm.dlms.types import AttributeRef, KeyId, LogicalName, Mechanism, SystemTitle
from hsmkm.errors import IntegrityError, ProtocolError
from hsmkm.simulator.association_object import AssociationObject
from hsmkm.simulator.behaviour import Faults, MeterSettings
from hsmkm.simulator.key_pairs import SoftwareSigner, SoftwareVerifier, point_of
from hsmkm.simulator.keys import SoftwareAgreement, SoftwareKeys, SoftwareSecret, SoftwareWrapping
from hsmkm.simulator.security_setup import READ_WRITE_DENIED, SUCCESS, TYPE_UNMATCHED, SecuritySetup
from hsmkm.simulator.state import MeterState, Save

OBJECT_UNDEFINED = 4

PROFILE_OCTETS = 5000
_PROFILE = axdr.octet_string(bytes(at & 0xFF for at in range(PROFILE_OCTETS)))

LOGICAL_DEVICE_NAME = AttributeRef(1, LogicalName.parse("0.0.42.0.0.255"), 2)
ACTIVE_ENERGY = AttributeRef(3, LogicalName.parse("1.0.1.8.0.255"), 2)
CONSUMER_MESSAGE = AttributeRef(1, LogicalName.parse("0.0.96.13.0.255"), 2)
MESSAGE_OCTETS = 255
LONG_VALUE = AttributeRef(1, LogicalName.parse("0.0.128.0.0.255"), 2)


Heard = Callable[[bytes, int], None]


class StaleCounterError(IntegrityError):
    """The counter of an APDU with a good tag is below the lowest acceptable one."""


def _forget(_state: MeterState) -> None:
    """Keep nothing over a restart."""


class Meter:
    """One device as the clients of one association meet it, and the further associations that it has.

    `save` is called with the device's state before it answers, whenever that changed.
    """

    def __init__(
        self,
        state: MeterState,
        settings: MeterSettings | None = None,
        save: Save = _forget,
        faults: Faults | None = None,
    ) -> None:
        self.state = state
        self.settings = settings or MeterSettings()
        self._save = save
        self._changed = False
        self.generation = 0
        self._heard: Heard | None = None
        faults = faults or Faults(self.settings)
        next_fault = partial(faults.next, state.setup)
        self.security_setup = SecuritySetup(state, self.settings, self.activate, self.changed, next_fault)
        self.association_object = AssociationObject(state, next_fault, self._keep)
        self._others = tuple(Meter(other, self.settings, lambda _: save(state), faults) for other in state.associations)

    def towards(self, client_sap: int) -> Meter:
        """The association that a client speaks in: the first one, unless another is for it."""
        return next((other for other in self._others if other.state.client == client_sap), self)

    @property
    def title(self) -> SystemTitle:
        """The meter's system title."""
        return self.state.system_title

    def changed(self) -> None:
        """Note that the state is another than what was saved."""
        self._changed = True

    def store(self) -> None:
        """Save the state if it changed since the last time."""
        if self._changed:
            self._save(self.state)
            self._changed = False

    def _keep(self) -> None:
        self._changed = True
        self.store()

    def listen(self, heard: Heard) -> None:
        """Have somebody told each counter of an authentic APDU or token, with the GUEK that it came under."""
        self._heard = heard
        for other in self._others:
            other.listen(heard)

    def hear(self, counter: int) -> None:
        """Take note that an authentic counter came under the GUEK that is effective now."""
        if self._heard is not None:
            self._heard(self.state.keys[KeyId.GUEK], counter)

    def activate(self, keys: Mapping[KeyId, bytes]) -> None:
        """Make new keys effective."""
        self.state.keys.update(keys)
        self.generation += 1
        if KeyId.GUEK in keys and self.settings.ic_reset:
            self.state.tx_ic, self.state.rx_ic = 1, 0
        self._changed = True
        self.store()

    def unicast(self) -> Traffic:
        """The unicast keys that are effective now."""
        counters = _UnicastCounters(self)
        return Traffic(self._keys(KeyId.GUEK), counters, counters)

    def broadcast(self, client: SystemTitle) -> Traffic:
        """The broadcast keys that are effective now, and the counters of a broadcasting client."""
        counters = NamedCounters(self, f"broadcast:{client}")
        return Traffic(self._keys(KeyId.GBEK), counters, counters, broadcast=True)

    def under(self, key: bytes) -> SoftwareKeys:
        """A key together with the GAK that is effective now."""
        return SoftwareKeys(key, self.state.keys[KeyId.GAK])

    def _keys(self, key_id: KeyId) -> SoftwareKeys:
        return self.under(self.state.keys[key_id])

    def channel(self, client: SystemTitle, unicast: Traffic | None) -> Channel:
        """What protects the conversation with a client, or with a third party, which has no unicast keys."""
        state = self.state
        signing = state.key_pairs.get(CertificateType.DIGITAL_SIGNATURE)
        theirs = self.security_setup.certificates.public_key(client, CertificateType.DIGITAL_SIGNATURE)
        return Channel(
            suite=state.suite,
            own=self.title,
            peer=client,
            under_global=unicast,
            general=self.general_keys(client, unicast),
            signer=SoftwareSigner(signing) if signing else None,
            verifier=SoftwareVerifier(theirs) if theirs else None,
        )

    def general_keys(self, client: SystemTitle, unicast: Traffic | None) -> GeneralKeys:
        """The keys of general-ciphering with a client, or with a third party."""
        gak = self.state.keys[KeyId.GAK]
        if unicast is None:
            return GeneralKeys(suite=self.state.suite, agreement=self._agreement(client, gak))
        return GeneralKeys(
            suite=self.state.suite,
            guek=unicast,
            gbek=self.broadcast(client),
            wrapping=SoftwareWrapping(self.state.keys[KeyId.MASTER], gak),
            agreement=self._agreement(client, gak),
            takes_broadcast=True,
        )

    def _agreement(self, client: SystemTitle, gak: bytes) -> Agreement | None:
        state, known = self.state, self.security_setup.certificates
        own, signing = (
            state.key_pairs.get(kind) for kind in (CertificateType.KEY_AGREEMENT, CertificateType.DIGITAL_SIGNATURE)
        )
        peer = known.public_key(client, CertificateType.KEY_AGREEMENT)
        theirs = known.public_key(client, CertificateType.DIGITAL_SIGNATURE)
        if own is None or signing is None or peer is None or theirs is None:
            return None
        counters = NamedCounters(self, f"agreed:{client}")
        return Agreement(
            holder=SoftwareAgreement(state.suite, own, gak),
            peer_point=point_of(peer),
            signer=SoftwareSigner(signing),
            verifier=SoftwareVerifier(theirs),
            sent=counters,
            received=counters,
            algorithms=self.settings.algorithms,
        )

    def proof(self, mechanism: Mechanism, client: SystemTitle | None, unicast: Traffic) -> Proof | None:
        """A mechanism with the meter's keys, or None where they are missing."""
        state = self.state
        if mechanism in DIGESTS and state.secret:
            return DigestProof(mechanism, SoftwareSecret(state.secret))
        if mechanism is Mechanism.HLS_GMAC:
            return GmacProof(unicast.key, state.suite, unicast.sent)
        signing = state.key_pairs.get(CertificateType.DIGITAL_SIGNATURE)
        if mechanism is not Mechanism.HLS_ECDSA or client is None or signing is None:
            return None
        theirs = self.security_setup.certificates.public_key(client, CertificateType.DIGITAL_SIGNATURE)
        return SignatureProof(state.suite, SoftwareSigner(signing), SoftwareVerifier(theirs)) if theirs else None

    def transactions(self, originator: SystemTitle) -> NamedCounters:
        """The lowest transaction-id that is acceptable from somebody, which guards fresh keys and signatures."""
        return NamedCounters(self, f"transaction:{originator}")

    def _counters(self) -> dict[AttributeRef, Data]:
        """The counter objects of all associations, 0.0.43.1.E.255."""
        return {
            security_setup.invocation_counter(one.state.setup): axdr.double_long_unsigned(max(one.state.rx_ic - 1, 0))
            for one in (self, *self._others)
        }

    def write_message(self, data: Data) -> int:
        """Take a consumer message text: a Data-Access-Result."""
        try:
            text = data.octets()
        except ProtocolError:
            return TYPE_UNMATCHED
        if len(text) > MESSAGE_OCTETS:
            return READ_WRITE_DENIED
        self.state.message = text
        self.changed()
        return SUCCESS

    def read(self, ref: AttributeRef, client_title: bytes, *, public: bool) -> tuple[int, Data | None]:
        """Read an attribute: a Data-Access-Result, and the value where that is 0.

        A counter object tells the last counter accepted, and 0 before the first.
        """
        open_to_all = {
            **self._counters(),
            security_setup.attribute(Attribute.SERVER_SYSTEM_TITLE, self.state.setup): axdr.octet_string(
                self.title.octets
            ),
            LOGICAL_DEVICE_NAME: axdr.octet_string(self.title.octets[:3] + self.title.octets[3:].hex().encode()),
        }
        if ref in open_to_all:
            return SUCCESS, open_to_all[ref]
        if public:
            return READ_WRITE_DENIED, None
        to_clients = {ACTIVE_ENERGY: axdr.double_long_unsigned(123_456), LONG_VALUE: _PROFILE}
        to_clients[CONSUMER_MESSAGE] = axdr.octet_string(self.state.message)
        to_clients |= self.security_setup.attributes(client_title)
        return (SUCCESS, to_clients[ref]) if ref in to_clients else (OBJECT_UNDEFINED, None)


class _UnicastCounters:
    """The counters of the GUEK."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def next(self) -> int:
        """Take a value for an APDU or token of the meter's own."""
        self._meter.changed()
        self._meter.state.tx_ic += 1
        return self._meter.state.tx_ic - 1

    def accept(self, value: int) -> None:
        """Take the counter of an APDU whose tag fits; raises StaleCounterError."""
        self._meter.hear(value)
        if value < self._meter.state.rx_ic:
            raise StaleCounterError("the invocation counter is below the lowest acceptable one")
        self._meter.changed()
        self._meter.state.rx_ic = value + 1


class NamedCounters:
    """Further durable counters of the meter."""

    def __init__(self, meter: Meter, name: str) -> None:
        self._meter = meter
        self._name = name

    def next(self) -> int:
        """Take a value of the meter's own, from 1."""
        sent = self._meter.state.sent
        sent[self._name] = sent.get(self._name, 0) + 1
        self._meter.changed()
        return sent[self._name]

    def accept(self, value: int) -> None:
        """Take an authenticated value; raises IntegrityError for one that may be a replay."""
        lowest = self._meter.state.lowest
        if value < lowest.get(self._name, 0):
            raise IntegrityError("the counter is below the lowest acceptable one")
        lowest[self._name] = value + 1
        self._meter.changed()
