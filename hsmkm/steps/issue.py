"""Certificates issued from a folder of requests: all are checked before the first, and they are signed in batches.

The requests are those of `hsmkm.steps.asked`. A batch is recorded in one transaction, then signed by workers, then
completed in another, and then its files are written; the next one is recorded while workers sign. What a crash leaves
recorded and unsigned keeps its serial number for ever. A run over the same requests within a week takes up one that
never came to its end: what that one completed is written again, the rest issued under fresh serial numbers.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hsmkm.durable_file import replace_files
from hsmkm.errors import Fault, InputError
from hsmkm.pki.authority import Authority, Draft
from hsmkm.pki.certificates import parse_certificate, pem, public_key
from hsmkm.pki.lint import Plan
from hsmkm.pki.requests import subject_name
from hsmkm.pki.to_be_signed import encode, with_signature
from hsmkm.steps.asked import Wanted, asked_in, curve_faults, used_keys
from hsmkm.steps.certify import name_text, open_authority, own_chain, serial_octets
from hsmkm.steps.issuances import claim_older, record_many_planned
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.results import Made
from hsmkm.steps.signatures import Terms, sign_drafts
from hsmkm.store import certificates, intents
from hsmkm.store.canonical import canonical_json
from hsmkm.store.certificates import CertificateRecord, CertificateState, Source
from hsmkm.store.store import StoredRow

BATCH = 500
"""Certificates that are recorded at once, and completed at once."""

SIGNED = 125
"""Certificates that a worker signs at once, at most."""

RUN = "pki-issue"
TAKEN_UP = timedelta(days=7)


def issue(party: Party, folder: Path, out: Path, *, without_end: bool = False) -> list[Made]:
    """Issue a certificate for every request of a folder, or none if one is wrong; InputError names every fault.

    `without_end` gives certificates for signature and agreement no end, as for devices that are never reached again.
    """
    wanted, faults = asked_in(party.hands, folder)
    return issue_checked(party, folder, wanted, faults, out, without_end=without_end)


def issue_checked(
    party: Party,
    folder: Path,
    wanted: Sequence[Wanted],
    faults: Sequence[Fault],
    out: Path,
    *,
    without_end: bool = False,
) -> list[Made]:
    """Issue as `issue` does for what was found in a folder, with the faults that were found there."""
    with party.store.begin("pki-check", str(folder), {"requests": len(wanted)}) as tx:
        claim_older(tx)
        wrong = [*faults, *used_keys(tx, wanted)]
    wrong += curve_faults(wanted, {name: own_chain(party, name)[0] for name in {one.issuer for one in wanted}})
    if wrong:
        raise InputError(f"{len(wrong)} fault(s) in the requests of {folder}", wrong, "nothing was issued")
    run, since = _begin(party, wanted, without_end=without_end)
    made = _again(party, wanted, since, out) if since else []
    done = {item.path.stem for item in made}
    rest = sorted((one for one in wanted if one.path.stem not in done), key=lambda one: one.issuer)
    for issuer, group in groupby(rest, key=lambda one: one.issuer):
        made += _Issuing(party, issuer, out, without_end=without_end).issue(list(group))
    with party.store.begin("pki-issue-end", str(folder), {"requests": len(wanted)}) as tx:
        intents.outcome(tx, run, "issued")
    return sorted(made, key=lambda item: item.path)


def issue_without_end(party: Party, folder: Path, out: Path) -> list[Made]:
    """Issue as `issue` does, without an end."""
    return issue(party, folder, out, without_end=True)


def _begin(party: Party, wanted: Sequence[Wanted], *, without_end: bool) -> tuple[int, datetime | None]:
    """Note the run, or find it begun and never ended: its number, and since when it has been issuing."""
    title = bytes.fromhex(party.settings.party.system_title)
    asked = {one.path.name: hashlib.sha256(one.request.der).hexdigest() for one in wanted}
    digest = hashlib.sha256(canonical_json({"asked": asked, "without end": without_end}).encode()).hexdigest()
    with party.store.begin("pki-issue-begin", title.hex().upper(), {"requests": len(wanted)}) as tx:
        for known in intents.unfinished(tx, title):
            if known.detail.get("run") == digest and utc_now() - known.opened < TAKEN_UP:
                return known.id, known.opened
        return intents.open(tx, title, RUN, {"run": digest}), None


def _again(party: Party, wanted: Sequence[Wanted], since: datetime, out: Path) -> list[Made]:
    """Write what an interrupted run completed; what was revoked meanwhile does not count."""
    found: dict[str, list[tuple[Wanted, x509.Certificate]]] = {}
    with party.store.read() as tx:
        for one in wanted:
            request = one.request
            listed = certificates.listing(tx, owner=request.subject, profile=request.profile.name, source=Source.ISSUED)
            recent = [item for item in listed if item.not_before >= since and item.state is CertificateState.VALID]
            made = [parse_certificate(item.der) for item in recent]
            its = [(one, item) for item in made if public_key(item) == request.public_key][:1]
            found.setdefault(one.issuer, []).extend(its)
    return [
        item
        for issuer, signed in found.items()
        for item in _write(
            [(one, made.public_bytes(Encoding.DER), made.serial_number) for one, made in signed],
            own_chain(party, issuer),
            out,
        )
    ]


def _write(signed: Sequence[tuple[Wanted, bytes, int]], chain: Sequence[x509.Certificate], out: Path) -> Iterator[Made]:
    """Write each certificate with its chain, given in DER with its serial number."""
    above = b"".join(pem(one.public_bytes(Encoding.DER)) for one in chain)
    replace_files(out, {f"{one.path.stem}.pem": pem(der) + above for one, der, _ in signed})
    for one, _, serial in signed:
        yield Made(one.slot.name, one.request.subject, out / f"{one.path.stem}.pem", f"{serial:X}")


@dataclass(frozen=True, slots=True)
class _Planned:
    """A certificate that is recorded: for whom, what was planned, and the octets that are to be signed."""

    wanted: Wanted
    plan: Plan
    tbs: bytes


@dataclass
class _Issuing:
    """What one authority issues in a run; `_recorded` are the batches that are recorded and not completed."""

    party: Party
    issuer: str
    out: Path
    without_end: bool = field(kw_only=True)

    def __post_init__(self) -> None:
        self._authority: Authority = open_authority(self.party, self.issuer)
        self._chain = own_chain(self.party, self.issuer)
        self._now = utc_now()
        self._recorded: deque[tuple[Sequence[_Planned], Sequence[StoredRow]]] = deque()

    def issue(self, wanted: Sequence[Wanted]) -> Iterator[Made]:
        """Issue certificates, each batch durable before its certificates are given."""
        signatures: list[bytes] = []
        with closing(self.party.hands.work(len(wanted), sign_drafts, self._drafts(wanted))) as answers:
            for some in answers:
                signatures += some
                if len(signatures) == len(self._recorded[0][0]):
                    yield from self._complete(*self._recorded.popleft(), signatures)
                    signatures = []

    def _drafts(self, wanted: Sequence[Wanted]) -> Iterator[tuple[Terms, list[Draft]]]:
        """Record batch after batch, and give what workers are to sign of it."""
        issuer = self._authority.certificate.public_bytes(Encoding.DER)
        terms = Terms(f"ca:{self.issuer}", issuer, self._now, self.without_end)
        size = min(SIGNED, self.party.hands.shape.batch)
        for start in range(0, len(wanted), BATCH):
            planned = self._record(wanted[start : start + BATCH])
            drafts = [Draft(one.wanted.request, one.plan.serial, one.tbs) for one in planned]
            yield from ((terms, drafts[at : at + size]) for at in range(0, len(drafts), size))

    def _record(self, batch: Sequence[Wanted]) -> list[_Planned]:
        plans = [self._authority.plan(one.request, self._now, without_end=self.without_end) for one in batch]
        planned = [_Planned(one, plan, encode(plan)) for one, plan in zip(batch, plans, strict=True)]
        with self.party.store.begin("pki-issue", *_about(batch)) as tx:
            rows = record_many_planned(tx, [(one.plan, one.tbs) for one in planned])
        self._recorded.append((planned, rows))
        return planned

    def _complete(
        self, batch: Sequence[_Planned], rows: Sequence[StoredRow], signatures: Sequence[bytes]
    ) -> Iterator[Made]:
        """Store certificates, whose signatures were verified, and write their files."""
        issuer = name_text(self._authority.certificate.subject)
        ders = [with_signature(one.tbs, one.plan, made) for one, made in zip(batch, signatures, strict=True)]
        records = [_record_of(one.plan, der, issuer) for one, der in zip(batch, ders, strict=True)]
        with self.party.store.begin("pki-issued", *_about([one.wanted for one in batch])) as tx:
            certificates.complete_recorded(tx, rows, records)
        signed = [(one.wanted, der, one.plan.serial) for one, der in zip(batch, ders, strict=True)]
        yield from _write(signed, self._chain, self.out)


def _about(batch: Sequence[Wanted]) -> tuple[str, dict[str, object]]:
    """Say what the audit record of a batch is about."""
    subjects = {one.request.subject for one in batch}
    about = next(iter(subjects)) if len(subjects) == 1 else f"{len(subjects)} holders"
    return about, {"certificates": len(batch), "profiles": sorted({one.request.profile.name for one in batch})}


def _record_of(plan: Plan, der: bytes, issuer: str) -> CertificateRecord:
    """Describe a certificate, made as planned, as the store keeps it."""
    return CertificateRecord(
        fingerprint=hashlib.sha256(der).digest(),
        der=der,
        profile=plan.profile.name,
        subject=name_text(subject_name(plan.subject)),
        issuer=issuer,
        serial=serial_octets(plan.serial),
        not_before=plan.not_before,
        not_after=plan.not_after,
        owner=plan.subject,
        source=Source.ISSUED,
    )
