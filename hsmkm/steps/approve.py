"""Four eyes: what the policy lists is done only with the signature of a second officer under exactly that request.

An operation calls `require_approval` in the transaction of its effect, so that an approval is used up when the effect
is durable, and only then. `requested_by` and the actor are claims of whoever is logged in; the signature is the proof.
The signer is somebody else than both. With `policy.approvals` = 2 it takes the signatures of two officers, and then no
claim counts.
"""

from __future__ import annotations

import hashlib
import shlex
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from hsmkm.config import APPROVABLE, OFFICER_CHANGE, Settings
from hsmkm.durable_file import replace_file
from hsmkm.errors import InputError, PolicyError, RefusedError
from hsmkm.packages.approval import MAX_REQUEST, MAX_SIGNED, ApprovalRequest, digest_of, open_approval, parse_request
from hsmkm.packages.fields import time_text
from hsmkm.packages.strict_json import canonical, parse
from hsmkm.pki.certificates import fingerprint, parse_certificate
from hsmkm.pki.trust import TrustStore
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.trusted import trust_in
from hsmkm.store import approvals, certificates, officers
from hsmkm.store.approvals import OPEN, USED, Approval, Decision
from hsmkm.store.officers import OFFICER, Officer
from hsmkm.store.store import Transaction

PROFILE = "officer"
CLOCK_SKEW = timedelta(minutes=5)
BEFORE_OFFICERS = frozenset({OFFICER_CHANGE, "token-init-keys", "trust-anchor", "ca-create"})
"""What makes a home and its officers: it needs no approval as long as there are not enough officers to give one."""

LISTED = 100
"""So many meters a request names one by one, for a person to read; of more it has the digest of their list."""

_FEWEST = 2


class ApprovalRequiredError(PolicyError):
    """The policy wants an approval that is not there, or that does not allow this; the hint says how to get one."""


def require_approval(
    tx: Transaction, party: Party, action: str, subject: str, request: Mapping[str, object], approval: str | None
) -> None:
    """Use up an approval of exactly this, where the policy lists the action; else raise ApprovalRequiredError.

    `request` holds every detail that a second officer must see: text, whole numbers, lists and dictionaries. `approval`
    is the id of an approval added before, or the file of a signed one, which is then added in this transaction.
    """
    found = _fitting(tx, party, (action, subject, request), approval)
    if found is not None:
        approvals.put(tx, replace(found, state=USED))


def of_meters(titles: Iterable[str]) -> tuple[str, dict[str, object]]:
    """Give subject and request for something that is done to meters, given by their system titles.

    The SHA-256 of a long list is that of its titles in order, each with a line end: `sort LIST | sha256sum`.
    """
    every = sorted(titles)
    subject = every[0] if len(every) == 1 else f"{len(every)} meters"
    if len(every) <= LISTED:
        return subject, {"meters": every}
    digest = hashlib.sha256("".join(f"{title}\n" for title in every).encode("ascii")).hexdigest()
    return subject, {"meters": {"count": len(every), "sha256": digest}}


def check_approval(
    party: Party, action: str, subject: str, request: Mapping[str, object], approval: str | None
) -> None:
    """Raise what `require_approval` would raise, before work that cannot be undone; nothing is used up."""
    with party.store.read() as tx:
        _fitting(tx, party, (action, subject, request), approval)


def _fitting(
    tx: Transaction, party: Party, wanted: tuple[str, str, Mapping[str, object]], approval: str | None
) -> Approval | None:
    """Give the approval that allows this, None where none is needed; ApprovalRequiredError with every reason."""
    action, subject, request = wanted
    if not is_required(tx, party.settings, action):
        return None
    if not approval:
        raise _refused(party, f"{action} of {subject} needs the approval of a second officer", wanted)
    try:
        found = _named(tx, party, approval)
        reasons = list(_reasons(tx, party, found, (action, subject, digest_of(request))))
    except RefusedError as error:
        reasons = [*error.reasons] or [error.message]
    if reasons:
        raise _refused(party, f"approval {approval} does not allow this: {'; '.join(reasons)}", wanted)
    return found


def is_required(tx: Transaction, settings: Settings, action: str) -> bool:
    """Whether the policy wants an approval of this action, and there are officers who could give one."""
    if not settings.policy.is_listed(action):
        return False
    if action not in BEFORE_OFFICERS:
        return True
    registered = [one for one in officers.listing(tx) if one.has(OFFICER)]
    return len(registered) >= max(_FEWEST, settings.policy.approvals)


def write_request(
    settings: Settings, actor: str, what: tuple[str, str, str], out: Path | None
) -> tuple[ApprovalRequest, Path]:
    """Write the request for (action, subject, JSON of the request) to a file, by default HOME/approvals/ID.json."""
    action, subject, text = what
    if action not in APPROVABLE:
        raise InputError(f"{action!r} is nothing that is approved", hint=f"use one of {', '.join(APPROVABLE)}")
    asked = parse(text.encode(), MAX_REQUEST, "the request")
    if not isinstance(asked, dict):
        raise InputError("the request is not a JSON object", hint="take it from the hint of the command refused")
    data = new_request(settings, actor, action, subject, asked)
    made = parse_request(data)
    path = out or settings.home / "approvals" / f"{made.id}.json"
    replace_file(path, data)
    return made, path


def new_request(settings: Settings, actor: str, action: str, subject: str, request: Mapping[str, object]) -> bytes:
    """Write the request for an approval, in the octets that are to be signed; InputError for what has no form."""
    now = utc_now()
    return ApprovalRequest(
        id=str(uuid.uuid4()),
        party=settings.party.name,
        system_title=bytes.fromhex(settings.party.system_title),
        action=action,
        subject=subject,
        request=request,
        requested_by=actor,
        created=now,
        expires=now + timedelta(hours=settings.policy.approval_hours),
    ).encode()


def take(tx: Transaction, party: Party, data: bytes) -> Approval:
    """Check a signed request and record it, or one more officer's signature under one that is open.

    Raises InputError and IntegrityError where it is no signed request, RefusedError with every reason for all else.
    """
    found = _signed(tx, party, data)
    approvals.put(tx, found)
    return found


def _signed(tx: Transaction, party: Party, data: bytes) -> Approval:
    """Check a signed request; gives the approval as it is with this signature."""
    request, signed = open_approval(data)
    known = approvals.get(tx, request.id)
    reasons = [*_request_reasons(party, request), *_signer_reasons(tx, party, request.requested_by, signed.signer)]
    signer = _registered(tx, fingerprint(signed.signer))
    if known is not None:
        reasons += _known_reasons(known, request, signer)
    if reasons or signer is None:
        hint = "nothing was recorded; a request that was refused is made anew"
        raise RefusedError(f"approval {request.id} is refused", reasons, hint=hint)
    decision = Decision(signer.name, signer.fingerprint, hashlib.sha256(data).digest(), time_text(signed.signed_at))
    return _approval(request, (*(known.decisions if known else ()), decision))


def read_signed(path: Path) -> bytes:
    """Read a signed request; InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_SIGNED + 1)
    except OSError as error:
        hint = "give the id of an approval (hsmkm approval list) or the file of a signed one"
        raise InputError(f"cannot read approval {path}: {error.strerror}", hint=hint) from error


def officer_trust(tx: Transaction, party: Party, certificate: x509.Certificate, name: str | None) -> list[str]:
    """Say why a certificate is not accepted as that of an officer of this name, now."""
    trust: TrustStore = trust_in(party, tx)
    try:
        trust.check(certificate, (), PROFILE, utc_now(), owner=name)
    except RefusedError as error:
        return list(error.reasons)
    return []


def _approval(request: ApprovalRequest, decisions: tuple[Decision, ...]) -> Approval:
    return Approval(
        id=request.id,
        action=request.action,
        subject=request.subject,
        digest=request.digest,
        requested_by=request.requested_by,
        created=request.created,
        expires=request.expires,
        decisions=decisions,
    )


def _named(tx: Transaction, party: Party, approval: str) -> Approval:
    try:
        wanted = str(uuid.UUID(approval))
    except ValueError:
        return _signed(tx, party, read_signed(Path(approval)))
    found = approvals.get(tx, wanted)
    if found is None:
        raise RefusedError(f"there is no approval {wanted}")
    return found


def _reasons(tx: Transaction, party: Party, found: Approval, asked: tuple[str, str, bytes]) -> Iterator[str]:
    action, subject, digest = asked
    if found.state != OPEN:
        yield "it was used before"
    if tx.now > found.expires:
        yield f"it has expired on {time_text(found.expires)}"
    if found.action != action:
        yield f"it is for {found.action}"
    if found.subject != subject:
        yield f"it is for {found.subject!r}"
    if found.digest != digest:
        yield "it is for another request than what is to be done now"
    needed = party.settings.policy.approvals
    if len(found.decisions) < needed:
        yield f"{len(found.decisions)} of {needed} officers have signed it"
    for one in found.decisions:
        if one.officer == party.actor:
            yield f"{one.officer} signed it, and is who uses it"
        yield from _standing_reasons(tx, party, one)


def _standing_reasons(tx: Transaction, party: Party, decision: Decision) -> Iterator[str]:
    """Say why a signature that was taken does not count any more: roles and certificates change meanwhile."""
    officer = officers.get(tx, decision.officer)
    if officer is None or not officer.has(OFFICER) or officer.fingerprint != decision.certificate:
        yield f"{decision.officer} is not an officer with that certificate any more"
        return
    record = certificates.get(tx, decision.certificate)
    if record is None:
        yield f"the certificate of {decision.officer} is not in the store"
        return
    yield from officer_trust(tx, party, parse_certificate(record.der), decision.officer)


def _request_reasons(party: Party, request: ApprovalRequest) -> Iterator[str]:
    ours, now = party.settings, utc_now()
    if (request.party, request.system_title.hex().upper()) != (ours.party.name, ours.party.system_title):
        yield f"it is for {request.party} and not for {ours.party.name}"
    if now > request.expires:
        yield f"it has expired on {time_text(request.expires)}"
    if request.created > now + CLOCK_SKEW:
        yield "it was requested in the future"
    if request.expires - request.created > timedelta(hours=ours.policy.approval_hours):
        yield f"it is valid for longer than the {ours.policy.approval_hours} hours of the policy"


def _signer_reasons(tx: Transaction, party: Party, requested_by: str, signer: x509.Certificate) -> Iterator[str]:
    officer = _registered(tx, fingerprint(signer))
    if officer is None:
        yield "its signer is not a registered officer"
    elif not officer.has(OFFICER):
        yield f"{officer.name} is {' and '.join(officer.roles)}, and only an officer approves"
    elif officer.name == requested_by:
        yield f"{officer.name} asked for it, and another officer must sign it"
    yield from officer_trust(tx, party, signer, officer.name if officer else None)


def _registered(tx: Transaction, pinned: bytes) -> Officer | None:
    """Find who is registered with a certificate; every row is verified on the way."""
    found = (one for one in officers.listing(tx) if one.state == officers.REGISTERED and one.fingerprint == pinned)
    return next(found, None)


def _known_reasons(known: Approval, request: ApprovalRequest, signer: Officer | None) -> Iterator[str]:
    if known != replace(_approval(request, known.decisions), state=known.state):
        yield "another request is recorded under its id"
    if known.state != OPEN:
        yield "it was used before"
    if signer is not None and any(one.officer == signer.name for one in known.decisions):
        yield f"{signer.name} has signed it already"


def _refused(party: Party, message: str, wanted: tuple[str, str, Mapping[str, object]]) -> ApprovalRequiredError:
    """Refuse, with the command that asks for the approval of exactly this: what is to be done is not typed by hand."""
    action, subject, request = wanted
    frame = ("hsmkm", "--home", str(party.home), "--actor", party.actor)
    asked = ("approval", "request", action, subject, "--request", canonical(dict(request)).decode())
    return ApprovalRequiredError(message, hint=shlex.join((*frame, *asked)))
