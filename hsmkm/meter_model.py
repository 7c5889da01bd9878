"""What must be known of a meter model to key its meters and to speak with them: `models/NAME.toml` as values.

A meter has one association or several, each with its own client, Security Setup object and key set. A `MeterModel` is
one of them whole: the first is the file's top level, the further ones are its `[associations.NAME]` tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from hsmkm.errors import InputError, RefusedError

FLAG_ID = re.compile(r"[A-Z]{3}")
ASSOCIATION_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
EFFECTIVE = ("unknown", "now", "after-response", "release")
MECHANISMS = (0, 1, 3, 4, 5, 6, 7)
GMAC, ECDSA = 5, 7
WEAK_MECHANISMS = {3: "MD5", 4: "SHA-1"}
SECRET_OCTETS = range(8, 65, 8)
GENERAL_CIPHERING = "general-ciphering"
FORMS = ("glo", "ded", "general-glo", "general-ded", GENERAL_CIPHERING)
IDENTIFIED = "identified"
AGREED_KEYS = ("one-pass", "static")
GENERAL_KEYS = (IDENTIFIED, "wrapped", *AGREED_KEYS)
WAY_BACK_KEYS = ("wrapped", "one-pass")
ALGORITHM_ID = re.compile(r"[0-9A-Fa-f]{12}")
MAX_SETUP = 255
MAX_SAP = 65535
VERSION_0_POLICIES = range(4)
VERSION_1_POLICY_BITS = 0xFC
SIGNATURE_BITS = 0x90


@dataclass(frozen=True, slots=True)
class MeterAddressing:
    """Service access points (wrapper ports) of the logical device and of the two clients."""

    server_sap: int = 1
    client_sap: int = 1
    public_client_sap: int = 16

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section: a wrapper port has 16 bits (IEC 62056-4-7)."""
        saps = ("server_sap", "client_sap", "public_client_sap")
        return [(name, f"must be 0 to {MAX_SAP}") for name in saps if not 0 <= getattr(self, name) <= MAX_SAP]


@dataclass(frozen=True, slots=True)
class AuthenticationModel:
    """The authentication mechanism (0 none, 1 LLS, 3 to 7 HLS), and how many failed associations in a row are borne.

    Mechanisms 3 and 4 rest on MD5 and SHA-1, and are spoken only where `allow_weak_digests` says so. `secret_octets` is
    the length of the LLS or HLS secrets made for the model's meters.
    """

    mechanism: int = GMAC
    failed_limit: int = 10
    allow_weak_digests: bool = False
    secret_octets: int = 16

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        found = []
        if self.mechanism not in MECHANISMS:
            found.append(("mechanism", f"must be one of {', '.join(map(str, MECHANISMS))}"))
        if self.mechanism in WEAK_MECHANISMS and not self.allow_weak_digests:
            digest = WEAK_MECHANISMS[self.mechanism]
            found.append(("mechanism", f"{self.mechanism} rests on {digest}: it takes allow_weak_digests = true"))
        if self.secret_octets not in SECRET_OCTETS:
            found.append(("secret_octets", "must be 8 to 64, a multiple of 8"))
        return found


@dataclass(frozen=True, slots=True)
class SecuritySetupModel:
    """Which Security Setup object (class 64) holds the keys, and its version.

    `number` tells a meter's Security Setups apart wherever keys are stored or sent: it is the E of 0.0.43.0.E.255,
    unless another logical name is given.
    """

    logical_name: str = ""
    version: int = 1
    number: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "logical_name", self.logical_name or f"0.0.43.0.{self.number}.255")

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        found = [] if self.version in (0, 1) else [("version", "must be 0 or 1")]
        return found if 0 <= self.number <= MAX_SETUP else [*found, ("number", f"must be 0 to {MAX_SETUP}")]


@dataclass(frozen=True, slots=True)
class ProtectionModel:
    """The security policy as the Security Setup's attribute has it, and the form of protected APDUs.

    `policy` is the enum of version 0 (0 to 3) or the bits of version 1 (0x04 to 0x80); left out, everything is
    authenticated and encrypted. `key` is that of general-ciphering: the GUEK, a fresh one wrapped under the master key,
    or one that is agreed on for each APDU (one-pass) or each transaction (static).
    """

    policy: int | None = None
    form: str = FORMS[0]
    key: str = IDENTIFIED

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        found = []
        if self.form not in FORMS:
            found.append(("form", f"unknown form {self.form!r}: use one of {', '.join(FORMS)}"))
        if self.key not in GENERAL_KEYS:
            found.append(("key", f"unknown key {self.key!r}: use one of {', '.join(GENERAL_KEYS)}"))
        elif self.key != IDENTIFIED and self.form != GENERAL_CIPHERING:
            found.append(("key", f'{self.key} is a key of general-ciphering: it takes form = "{GENERAL_CIPHERING}"'))
        return found


@dataclass(frozen=True, slots=True)
class CounterModel:
    """Where the public client reads the invocation counter, and whether a new GUEK restarts it.

    Its logical name is 0.0.43.1.E.255 with the number of the Security Setup as E, unless another one is given.
    """

    logical_name: str = ""
    reset_on_key_change: bool = False


@dataclass(frozen=True, slots=True)
class KeyTransferModel:
    """How key_transfer is done: one array or key by key, in which order, when it takes effect, master changeable."""

    array: bool = True
    order: tuple[str, ...] = ("guek", "gak", "gbek")
    effective: str = "unknown"
    master_changeable: bool = True

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        found = []
        if sorted(self.order) != ["gak", "gbek", "guek"]:
            found.append(("order", 'must name "guek", "gak" and "gbek" once each'))
        if self.effective not in EFFECTIVE:
            found.append(("effective", f"unknown value {self.effective!r}: use one of {', '.join(EFFECTIVE)}"))
        return found


@dataclass(frozen=True, slots=True)
class KeyAgreementModel:
    """The KDF's AlgorithmID prefix (hex; the last octet follows the key) and whether a lost answer has a way back.

    The way back is an association of general-ciphering; `way_back_key` is its key, wrapped or one-pass.
    """

    algorithm_id: str = "608574050803"
    way_back: bool = False
    way_back_key: str = WAY_BACK_KEYS[0]

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        found = []
        if not ALGORITHM_ID.fullmatch(self.algorithm_id):
            found.append(("algorithm_id", "must be 12 hex digits: the last octet follows the key"))
        if self.way_back_key not in WAY_BACK_KEYS:
            text = f"unknown key {self.way_back_key!r}: use one of {', '.join(WAY_BACK_KEYS)}"
            found.append(("way_back_key", text))
        return found


@dataclass(frozen=True, slots=True)
class EnrolmentModel:
    """How an association is proved while the meter has no certificates yet: at injection, and when it is enrolled.

    `mechanism` 5 rests on the keys that the meter comes with, or was given; 0 is the model's own mechanism.
    """

    mechanism: int = 0

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the section."""
        return [] if self.mechanism in (0, GMAC) else [("mechanism", "must be 5, or 0 for that of authentication")]


@dataclass(frozen=True, slots=True)
class MeterModel:
    """What must be known of a meter model to key one association of its meters, from `models/NAME.toml`.

    `association_name` names it, and `others` are the model's other associations. `for_concentrator` says whether a
    concentrator that is a client is given the keys of this one.
    """

    name: str
    flags: tuple[str, ...]
    association_name: str = "management"
    for_concentrator: bool = True
    suites: tuple[int, ...] = (0,)
    addressing: MeterAddressing = field(default_factory=MeterAddressing)
    authentication: AuthenticationModel = field(default_factory=AuthenticationModel)
    security_setup: SecuritySetupModel = field(default_factory=SecuritySetupModel)
    protection: ProtectionModel = field(default_factory=ProtectionModel)
    counter: CounterModel = field(default_factory=CounterModel)
    key_transfer: KeyTransferModel = field(default_factory=KeyTransferModel)
    key_agreement: KeyAgreementModel = field(default_factory=KeyAgreementModel)
    enrolment: EnrolmentModel = field(default_factory=EnrolmentModel)
    others: tuple[MeterModel, ...] = ()

    def __post_init__(self) -> None:
        name = self.counter.logical_name or f"0.0.43.1.{self.security_setup.number}.255"
        object.__setattr__(self, "counter", replace(self.counter, logical_name=name))

    @property
    def associations(self) -> tuple[str, ...]:
        """The names of the associations, the first one first."""
        return (self.association_name, *(other.association_name for other in self.others))

    @property
    def place(self) -> tuple[int, int]:
        """The number of the Security Setup and the client's SAP, by which key sets of one meter are told apart."""
        return self.security_setup.number, self.addressing.client_sap

    @property
    def enrolling(self) -> MeterModel:
        """This association as it is spoken without certificates: no mechanism, signature or agreed key takes one."""
        if not self.enrolment.mechanism:
            return self
        policy = self.protection.policy
        return replace(
            self,
            authentication=replace(self.authentication, mechanism=self.enrolment.mechanism),
            protection=replace(self.protection, policy=policy and policy & ~SIGNATURE_BITS, key=IDENTIFIED),
        )

    @property
    def keys_at(self) -> tuple[int, str]:
        """The logical device and the Security Setup object in it, in which the meter holds the keys."""
        return self.addressing.server_sap, self.security_setup.logical_name

    def association(self, name: str = "") -> MeterModel:
        """Give one association by its name, or this one; InputError where the model has no such association."""
        for one in (self, *self.others):
            if name in ("", one.association_name):
                return self._beside(one)
        known = ", ".join(self.associations)
        raise InputError(f"model {self.name} has no association {name!r}", hint=f"it has: {known}")

    def at(self, place: tuple[int, int]) -> MeterModel:
        """Give the association whose keys are stored under a Security Setup's number and a client, or RefusedError."""
        for one in (self, *self.others):
            if one.place == place:
                return self._beside(one)
        raise RefusedError(
            f"model {self.name} has no association of Security Setup {place[0]} and client {place[1]}",
            hint="give the model the associations back that its meters have keys for",
        )

    def _beside(self, one: MeterModel) -> MeterModel:
        every = (self, *self.others)
        return replace(one, others=tuple(replace(other, others=()) for other in every if other is not one))

    def faults(self) -> list[tuple[str, str]]:
        """Name every (key, fault) of the top level."""
        found = [
            ("flags", f"{flag!r} is not a FLAG id of three capital letters")
            for flag in self.flags
            if not FLAG_ID.fullmatch(flag)
        ]
        found += [("suites", f"unknown security suite {suite}") for suite in self.suites if suite not in (0, 1, 2)]
        if not ASSOCIATION_NAME.fullmatch(self.association_name):
            found.append(("association_name", "is 1 to 32 of a to z, 0 to 9, dash and underscore"))
        if self.protection.key in AGREED_KEYS and 0 in self.suites:
            found.append(("protection.key", "agreed keys need security suite 1 or 2, and suites names 0"))
        return found + self._policy_faults() + self._mechanism_faults()

    def _policy_faults(self) -> list[tuple[str, str]]:
        version, policy = self.security_setup.version, self.protection.policy
        if policy is None:
            return []
        if version == 0:
            fits = policy in VERSION_0_POLICIES
            return [] if fits else [("protection.policy", "must be 0 to 3 for a Security Setup of version 0")]
        if policy & ~VERSION_1_POLICY_BITS:
            return [("protection.policy", "must be made of the bits 0x04 to 0x80 for a Security Setup of version 1")]
        if policy & SIGNATURE_BITS and 0 in self.suites:
            return [("protection.policy", "signatures need security suite 1 or 2, and suites names 0")]
        return []

    def _mechanism_faults(self) -> list[tuple[str, str]]:
        mechanism = self.authentication.mechanism
        if mechanism == ECDSA and 0 in self.suites:
            return [("authentication.mechanism", "7 needs security suite 1 or 2, and suites names 0")]
        if mechanism == 0 and self.protection.policy != 0:
            return [("authentication.mechanism", "0 authenticates nobody: it takes protection.policy = 0")]
        return []
