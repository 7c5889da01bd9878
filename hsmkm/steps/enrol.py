"""Enrolment of a meter over DLMS (Security Setup version 1): its key pairs, requests, and certificates.

    generate_key_pair -> generate_certificate_request -> issued -> import_certificate -> export_certificate

It is spoken to as the model says that a meter without certificates is. The meter makes its keys; what leaves it are
requests. Which key it last asked for is kept, so that no certificate of another key is sent into it. A certificate is
checked as whoever relies on it would before it is sent, and read back before it is recorded. Each act is an intent
before its first octet: after a crash it is known which came to no end. A meter that has certificates is enrolled again
in the same way, and the new ones replace them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.dlms import axdr, security_setup
from hsmkm.dlms import certificates as dlms_certificates
from hsmkm.dlms.axdr import Data
from hsmkm.dlms.certificates import ByEntity, CertificateEntity, CertificateType
from hsmkm.dlms.protection import Protection
from hsmkm.dlms.security_setup import Attribute, Method
from hsmkm.dlms.types import AttributeRef, LogicalName, MethodRef
from hsmkm.durable_file import replace_file
from hsmkm.errors import HsmkmError, InputError, IntegrityError, ProtocolError, RefusedError
from hsmkm.link.client import Client
from hsmkm.pki.certificates import fingerprint, parse_certificate, public_key, read_certificates
from hsmkm.pki.requests import CheckedRequest, check_request
from hsmkm.pki.slots import Slot, curve_for, curve_of
from hsmkm.pki.trust import TrustStore, issued
from hsmkm.steps.certify import own_chain, trust_of
from hsmkm.steps.communicate import Conversation, active_key_set, associated, conversation, find_meter
from hsmkm.steps.credentials import Pair, policy_of
from hsmkm.steps.issuances import key_digest
from hsmkm.steps.meter_certificates import (
    METER_PROFILES,
    check_meter_certificate,
    in_force,
    keep_meter_certificate,
)
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.results import Enrolled
from hsmkm.store import certificates, intents, parties
from hsmkm.store.certificates import CertificateState

KEY_PAIR, IMPORT, REMOVE = "meter-key-pair", "meter-import-certificate", "meter-remove-certificate"
TYPES = dict(zip(METER_PROFILES, CertificateType, strict=False))
CLIENT_PROFILES = ("digital-signature", "key-agreement")
_REQUESTED = "requested "


@dataclass(frozen=True, slots=True)
class _Issued:
    """A certificate that an authority issued for the meter, from a file, and its authorities below the root."""

    profile: str
    leaf: x509.Certificate
    authorities: tuple[x509.Certificate, ...]


def request_certificates(
    party: Party, name: str, out: Path, association: str = "", profiles: Sequence[str] = METER_PROFILES
) -> list[Enrolled]:
    """Let the meter make a key pair for each profile, and write its requests `TITLE.PROFILE.csr` for the authority."""
    made: list[Enrolled] = []
    with _speaking(party, name, association) as (speaking, client):
        title = speaking.meter.title
        for profile in profiles:
            with _noted(speaking, KEY_PAIR, profile) as outcome:
                request = _new_request(speaking, client, profile)
                outcome.append(_REQUESTED + key_digest(request.public_key).hex())
            path = out / f"{title}.{profile}.csr"
            replace_file(path, _pem(request))
            made.append(Enrolled(title, profile, "requested", path))
    return made


def _new_request(speaking: Conversation, client: Client, profile: str) -> CheckedRequest:
    """Take a request as hostile as any other: it must be for this meter, of its own key, on the curve of its suite."""
    kind = dlms_certificates.encode_type(TYPES[profile])
    client.action(_method(speaking, Method.GENERATE_KEY_PAIR), kind)
    answer = client.action(_method(speaking, Method.GENERATE_CERTIFICATE_REQUEST), kind)
    if answer is None:
        raise ProtocolError("the meter gave no certificate request")
    title, suite = speaking.meter.title, speaking.meter.suite
    request = check_request(answer.octets(), profile, title, f"the {profile} request of meter {title}")
    if curve_of(request.public_key) != curve_for((suite,)):
        raise RefusedError(f"the {profile} key of meter {title} is not on {curve_for((suite,))}")
    known = {digest for other in METER_PROFILES if other != profile for digest in _asked(speaking, other)}
    if key_digest(request.public_key).hex() in known:
        raise RefusedError(f"meter {title} gave the key of another certificate for {profile}")
    return request


def import_certificates(party: Party, name: str, folder: Path, association: str = "") -> list[Enrolled]:
    """Put what the authority issued (`TITLE.PROFILE.pem`) into the meter, all of it checked before any is sent.

    RefusedError tells everything that is wrong with each. A meter lacks the certificate of the issuing authority at
    first: it is sent before the others, and our own after them, by which it knows us.
    """
    meter = find_meter(party, name)
    issued = [_read_issued(party, path, profile) for profile, path in _files(folder, meter.title)]
    with conversation(party, meter, association) as speaking:
        reasons = [reason for one in issued for reason in _import_reasons(speaking, one)]
    if reasons:
        raise RefusedError(f"nothing is imported into meter {meter.title}", reasons, hint="nothing was sent")
    done: list[Enrolled] = []
    with _speaking(party, name, association) as (speaking, client):
        _import_missing(speaking, client, [("issuing", one) for item in issued for one in item.authorities])
        for one in issued:
            with _noted(speaking, IMPORT, one.profile, fingerprint(one.leaf).hex()) as outcome:
                client.action(_method(speaking, Method.IMPORT_CERTIFICATE), _octets(one.leaf))
                _verify(speaking, client, one)
                outcome.append("imported")
            with party.store.begin("meter-certificate", meter.title, {"profile": one.profile}) as tx:
                keep_meter_certificate(tx, one.leaf, meter.title, one.profile)
            done.append(Enrolled(meter.title, one.profile, "imported", None, f"{one.leaf.serial_number:X}"))
        _import_missing(speaking, client, _ours(speaking))
    return done


def introduce(party: Party, name: str, association: str = "", other: str = "") -> list[Enrolled]:
    """Put our own certificates into a meter that lacks them, or those of a registered party.

    The meter knows by them what we, or that party, sign and agree on. The party that enrols a meter does so by itself;
    whoever comes to speak with it later has to. A party's certificates are judged first, as whoever relies on them
    would; RefusedError tells every reason, and nothing is sent then.
    """
    theirs = _of_party(party, other, find_meter(party, name).suite) if other else []
    with _speaking(party, name, association) as (speaking, client):
        sent = _import_missing(speaking, client, theirs or _ours(speaking))
        return [
            Enrolled(speaking.meter.title, label, "imported", None, f"{one.serial_number:X}") for label, one in sent
        ]


def remove_certificate(party: Party, name: str, profile: str, association: str = "") -> list[Enrolled]:
    """Let the meter forget its own certificate of a profile; nobody here uses it from then on."""
    if profile not in TYPES:
        raise InputError(f"a meter has no {profile!r} certificate", hint=f"one of {', '.join(METER_PROFILES)}")
    with _speaking(party, name, association) as (speaking, client):
        title = speaking.meter.title
        with _noted(speaking, REMOVE, profile) as outcome:
            wanted = dlms_certificates.encode_identification(_own(speaking, profile))
            client.action(_method(speaking, Method.REMOVE_CERTIFICATE), wanted)
            outcome.append("removed")
        with party.store.begin("meter-certificate-removed", title, {"profile": profile}) as tx:
            for record in in_force(tx, title, profile):
                certificates.set_state(tx, record.fingerprint, CertificateState.REMOVED)
    return [Enrolled(title, profile, "removed")]


@contextmanager
def _speaking(party: Party, name: str, association: str) -> Iterator[tuple[Conversation, Client]]:
    """Associate under the active keys, everything authenticated and encrypted; RefusedError where that cannot be."""
    with conversation(party, find_meter(party, name), association, enrolling=True) as speaking:
        model, key_set = speaking.model, active_key_set(party, speaking.meter, speaking.model)
        if key_set.suite == 0 or model.security_setup.version == 0:
            raise RefusedError(
                f"meter {speaking.meter.title} has no certificates: its suite is {key_set.suite} and its Security "
                f"Setup of version {model.security_setup.version}",
                hint="certificates are of suites 1 and 2, and of version 1",
            )
        policy = policy_of(model)
        if not (policy.request & policy.response).covers(Protection.CIPHERED):
            raise RefusedError("a meter is enrolled only where everything is authenticated and encrypted")
        with associated(speaking, Pair.of(key_set)) as client:
            yield speaking, client


@contextmanager
def _noted(speaking: Conversation, action: str, profile: str, digest: str = "") -> Iterator[list[str]]:
    """Keep what is about to be done before it is, and what came of it: the text that the block appends, or its error.

    An error of the link leaves it open: the meter may have done it.
    """
    store, meter = speaking.party.store, speaking.meter
    detail = {"profile": profile} | ({"certificate": digest} if digest else {})
    with store.begin(action, meter.title, detail) as tx:
        intent = intents.open(tx, meter.system_title, action, detail)
    outcome: list[str] = []
    try:
        yield outcome
    except (RefusedError, InputError, IntegrityError) as error:
        outcome.append(f"refused: {error.message}")
        raise
    finally:
        if outcome:
            with store.begin(f"{action}-outcome", meter.title, {"outcome": outcome[0]}) as tx:
                intents.outcome(tx, intent, outcome[0])


def _asked(speaking: Conversation, profile: str) -> list[str]:
    """List the digests of the keys for which the meter asked for certificates of a profile, oldest first."""
    with speaking.party.store.read() as tx:
        found = intents.listing(tx, speaking.meter.system_title, KEY_PAIR)
    return [
        item.outcome.removeprefix(_REQUESTED)
        for item in found
        if item.detail.get("profile") == profile and item.outcome and item.outcome.startswith(_REQUESTED)
    ]


def _files(folder: Path, title: str) -> list[tuple[str, Path]]:
    found = [(profile, folder / f"{title}.{profile}.pem") for profile in METER_PROFILES]
    present = [(profile, path) for profile, path in found if path.is_file()]
    if not present:
        hint = "files are called TITLE.PROFILE.pem, as hsmkm pki issue writes them"
        raise InputError(f"no certificates of meter {title} in {folder}", hint=hint)
    return present


def _read_issued(party: Party, path: Path, profile: str) -> _Issued:
    leaf, *chain = read_certificates(path)
    anchors = trust_of(party).anchors
    return _Issued(profile, leaf, tuple(one for one in reversed(chain) if one not in anchors))


def _import_reasons(speaking: Conversation, one: _Issued) -> Iterator[str]:
    meter = speaking.meter
    if _asked(speaking, one.profile)[-1:] != [key_digest(public_key(one.leaf)).hex()]:
        yield f"{one.profile}: the certificate is not of the key that the meter last asked for"
    try:
        holder = meter.title, one.profile, meter.suite
        check_meter_certificate(trust_of(speaking.party), one.leaf, one.authorities, holder)
    except HsmkmError as error:
        reasons = error.reasons if isinstance(error, RefusedError) else ()
        yield from (f"{one.profile}: {reason}" for reason in reasons or (error.message,))


def _ours(speaking: Conversation) -> list[tuple[str, x509.Certificate]]:
    """List our certificates on the curve of the meter's suite, their authorities below the root first."""
    anchors = trust_of(speaking.party).anchors
    found: list[tuple[str, x509.Certificate]] = []
    for profile in CLIENT_PROFILES:
        leaf, *chain = own_chain(speaking.party, Slot(profile, curve_for((speaking.meter.suite,))).name)
        found += [("issuing", one) for one in reversed(chain) if one not in anchors]
        found.append((f"our {profile}", leaf))
    return found


def _of_party(party: Party, other: str, suite: int) -> list[tuple[str, x509.Certificate]]:
    """List a registered party's pinned certificates on the curve of a suite, their authorities below the root first."""
    trust, curve, reasons = trust_of(party), curve_for((suite,)), []
    found: list[tuple[str, x509.Certificate]] = []
    with party.store.read() as tx:
        row = parties.require(tx, other)
        pinned = {profile: row.certificates.get(Slot(profile, curve).name) for profile in CLIENT_PROFILES}
        records = {profile: certificates.get(tx, digest) if digest else None for profile, digest in pinned.items()}
    for profile, record in records.items():
        if record is None:
            reasons.append(f"{profile}: there is none on {curve}")
            continue
        leaf = parse_certificate(record.der, f"the {profile} certificate of {other}")
        try:
            trust.check(leaf, (), profile, utc_now(), row.system_title.hex().upper() if row.system_title else "")
        except RefusedError as error:
            reasons += [f"{profile}: {reason}" for reason in error.reasons]
        found += [("issuing", one) for one in _authorities(trust, leaf)]
        found.append((f"{other} {profile}", leaf))
    if reasons:
        raise RefusedError(f"the certificates of {other} are not accepted", reasons, hint="nothing was sent")
    return found


def _authorities(trust: TrustStore, leaf: x509.Certificate) -> list[x509.Certificate]:
    """Give the authorities below the anchors that lead to a leaf, the uppermost first."""
    path: list[x509.Certificate] = []
    last = leaf
    while issuer := next((one for one in trust.intermediates if one not in path and issued(one, last)), None):
        path.insert(0, issuer)
        last = issuer
    return path


def _import_missing(
    speaking: Conversation, client: Client, wanted: Sequence[tuple[str, x509.Certificate]]
) -> list[tuple[str, x509.Certificate]]:
    """Send the certificates that the meter does not list; it verifies them under its own anchors."""
    sent: list[tuple[str, x509.Certificate]] = []
    answer = client.get(AttributeRef(security_setup.CLASS_ID, _logical_name(speaking), Attribute.CERTIFICATES))
    held = {(int.from_bytes(info.serial), info.subject) for info in dlms_certificates.decode_certificates(answer)}
    for label, one in dict.fromkeys(wanted):
        if (one.serial_number, one.subject.public_bytes()) not in held:
            with _noted(speaking, IMPORT, label, fingerprint(one).hex()) as outcome:
                client.action(_method(speaking, Method.IMPORT_CERTIFICATE), _octets(one))
                outcome.append("imported")
            sent.append((label, one))
    return sent


def _verify(speaking: Conversation, client: Client, one: _Issued) -> None:
    wanted = dlms_certificates.encode_identification(_own(speaking, one.profile))
    answer = client.action(_method(speaking, Method.EXPORT_CERTIFICATE), wanted)
    if answer is None or answer.octets() != one.leaf.public_bytes(Encoding.DER):
        raise IntegrityError(
            f"meter {speaking.meter.title} does not hold the {one.profile} certificate that it was given",
            hint="enrol it again, and look at the meter",
        )


def _own(speaking: Conversation, profile: str) -> ByEntity:
    return ByEntity(CertificateEntity.SERVER, TYPES[profile], speaking.meter.system_title)


def _logical_name(speaking: Conversation) -> LogicalName:
    return LogicalName.parse(speaking.model.security_setup.logical_name)


def _method(speaking: Conversation, which: Method) -> MethodRef:
    return MethodRef(security_setup.CLASS_ID, _logical_name(speaking), which)


def _octets(certificate: x509.Certificate) -> Data:
    return axdr.octet_string(certificate.public_bytes(Encoding.DER))


def _pem(request: CheckedRequest) -> bytes:
    return x509.load_der_x509_csr(request.der).public_bytes(Encoding.PEM)
