"""Certificates issued from a folder of requests: all are checked before the first, and they are signed in batches.

A request is a file `NAME.csr`, or `TITLE.NAME.csr` for the holder of that system title, where NAME is a certificate
profile, with `-p384` for a party's key on P-384; an officer's is called `officer.csr`, or `ANYTHING.officer.csr`. A
batch of at most 100 is recorded in one transaction, then signed, then completed in another. What a crash leaves
recorded and unsigned keeps its serial number for ever. A run over the same requests within a week takes up one that
never came to its end: what that one completed is written again, the rest issued under fresh serial numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path

from cryptography import x509

from hsmkm.errors import Fault, InputError
from hsmkm.pki.authority import Authority
from hsmkm.pki.certificates import common_name, is_title, parse_certificate, public_key, write_certificates
from hsmkm.pki.lint import Linted
from hsmkm.pki.profiles import OFFICER, may_certify
from hsmkm.pki.requests import CheckedRequest, check_request
from hsmkm.pki.slots import P384, Slot, curve_of, slot
from hsmkm.steps.certify import entry, open_authority, own_chain
from hsmkm.steps.issuances import claim_older, key_digest, record_planned
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.results import Made
from hsmkm.store import certificates, certified_keys, intents
from hsmkm.store.canonical import canonical_json
from hsmkm.store.certificates import CertificateState, Source
from hsmkm.store.store import Transaction

BATCH = 100
RUN = "pki-issue"
TAKEN_UP = timedelta(days=7)
MAX_REQUEST = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A checked request, the file it came in, and what it is for."""

    path: Path
    slot: Slot
    request: CheckedRequest

    @property
    def issuer(self) -> str:
        return self.request.profile.issuer


_Signed = tuple[_Wanted, x509.Certificate]


def issue(party: Party, folder: Path, out: Path, *, without_end: bool = False) -> list[Made]:
    """Issue a certificate for every request of a folder, or none if one is wrong; InputError names every fault.

    `without_end` gives certificates for signature and agreement no end, as for devices that are never reached again.
    """
    wanted, faults = _checked(_request_files(folder))
    with party.store.begin("pki-check", str(folder), {"requests": len(wanted)}) as tx:
        claim_older(tx)
        faults += _used_keys(tx, wanted)
    faults += [Fault(str(one.path), 0, 0, text) for one in wanted for text in _curve_reasons(party, one)]
    if faults:
        raise InputError(f"{len(faults)} fault(s) in the requests of {folder}", faults, "nothing was issued")
    run, since = _begin(party, wanted, without_end=without_end)
    signed = _completed_since(party, wanted, since) if since else []
    made = _write(party, signed, out)
    done = {one.path for one, _ in signed}
    rest = sorted((one for one in wanted if one.path not in done), key=lambda one: one.issuer)
    for issuer, group in groupby(rest, key=lambda one: one.issuer):
        authority, items = open_authority(party, issuer), list(group)
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            made += _write(party, _sign_batch(party, authority, batch, without_end=without_end), out)
    with party.store.begin("pki-issue-end", str(folder), {"requests": len(wanted)}) as tx:
        intents.outcome(tx, run, "issued")
    return sorted(made, key=lambda item: item.path)


def issue_without_end(party: Party, folder: Path, out: Path) -> list[Made]:
    """Issue as `issue` does, without an end."""
    return issue(party, folder, out, without_end=True)


def _begin(party: Party, wanted: Sequence[_Wanted], *, without_end: bool) -> tuple[int, datetime | None]:
    """Note the run, or find it begun and never ended: its number, and since when it has been issuing."""
    title = bytes.fromhex(party.settings.party.system_title)
    asked = {one.path.name: hashlib.sha256(one.request.der).hexdigest() for one in wanted}
    digest = hashlib.sha256(canonical_json({"asked": asked, "without end": without_end}).encode()).hexdigest()
    with party.store.begin("pki-issue-begin", title.hex().upper(), {"requests": len(wanted)}) as tx:
        for known in intents.unfinished(tx, title):
            if known.detail.get("run") == digest and utc_now() - known.opened < TAKEN_UP:
                return known.id, known.opened
        return intents.open(tx, title, RUN, {"run": digest}), None


def _completed_since(party: Party, wanted: Sequence[_Wanted], since: datetime) -> list[_Signed]:
    """Find what an interrupted run completed, by key, profile and holder; what was revoked meanwhile does not count."""
    found: list[_Signed] = []
    with party.store.read() as tx:
        for one in wanted:
            request = one.request
            listed = certificates.listing(tx, owner=request.subject, profile=request.profile.name, source=Source.ISSUED)
            recent = [item for item in listed if item.not_before >= since and item.state is CertificateState.VALID]
            made = [parse_certificate(item.der) for item in recent]
            found += [(one, item) for item in made if public_key(item) == request.public_key][:1]
    return found


def _sign_batch(party: Party, authority: Authority, batch: Sequence[_Wanted], *, without_end: bool) -> list[_Signed]:
    subjects = {one.request.subject for one in batch}
    about = next(iter(subjects)) if len(subjects) == 1 else f"{len(subjects)} holders"
    detail = {"certificates": len(batch), "profiles": sorted({one.request.profile.name for one in batch})}

    def record(planned: Sequence[Linted]) -> None:
        with party.store.begin("pki-issue", about, detail) as tx:
            for one in planned:
                record_planned(tx, one)

    requests = [one.request for one in batch]
    signed = list(zip(batch, authority.issue_many(requests, utc_now(), record, without_end=without_end), strict=True))
    with party.store.begin("pki-issued", about, detail) as tx:
        for one, made in signed:
            record_entry = entry(made, one.request.profile.name, one.request.subject, Source.ISSUED)
            certificates.complete_issued(tx, record_entry)
    return signed


def _write(party: Party, signed: Sequence[_Signed], out: Path) -> list[Made]:
    made: list[Made] = []
    for one, certificate in signed:
        path = out / f"{one.path.stem}.pem"
        write_certificates(path, [certificate, *own_chain(party, one.issuer)])
        made.append(Made(one.slot.name, one.request.subject, path, f"{certificate.serial_number:X}"))
    return made


def _request_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.csr")) if folder.is_dir() else []
    if not found:
        raise InputError(
            f"no requests in {folder}",
            hint="they are called PROFILE.csr, PROFILE-p384.csr or TITLE.PROFILE.csr, see hsmkm pki request",
        )
    return found


def _checked(paths: Sequence[Path]) -> tuple[list[_Wanted], list[Fault]]:
    found: list[_Wanted] = []
    faults: list[Fault] = []
    for path in paths:
        try:
            found.append(_check(path))
        except InputError as error:
            faults += error.faults or (Fault(str(path), 0, 0, error.message),)
    return found, faults


def _check(path: Path) -> _Wanted:
    title, dot, name = path.stem.rpartition(".")
    if name == OFFICER.name:
        title, one = "", Slot(name)
    elif dot and not is_title(title):
        raise InputError(f"{title!r} is not a system title of 16 hex digits in capitals")
    else:
        one = slot(name)
    with path.open("rb") as file:
        data = file.read(MAX_REQUEST + 1)
    return _Wanted(path, one, check_request(data, one.profile, title or None, str(path)))


def _curve_reasons(party: Party, one: _Wanted) -> Iterator[str]:
    """Say why this authority cannot certify the key of a request for a slot."""
    key, issuer = one.request.public_key, own_chain(party, one.issuer)[0]
    curve = curve_of(key)
    if one.slot.curve == P384 and curve != P384:
        yield f"the key is on {curve}, and {one.slot.name} is on {P384}"
    if not may_certify(public_key(issuer).curve, key.curve):
        yield f"the key is on {curve}, and {common_name(issuer.subject)!r} on P-256 certifies none there"


def _used_keys(tx: Transaction, wanted: Sequence[_Wanted]) -> list[Fault]:
    """Name the requests whose key is another request's too, or was certified for something else."""
    faults: list[Fault] = []
    seen: dict[bytes, Path] = {}
    for one in wanted:
        request, digest = one.request, key_digest(one.request.public_key)
        if digest in seen:
            faults.append(Fault(str(one.path), 0, 0, f"the key is also that of {seen[digest].name}"))
        seen[digest] = one.path
        found = certified_keys.why_not(tx, digest, request.profile.name, request.subject)
        if found is not None:
            faults.append(Fault(str(one.path), 0, 0, f"the key {found}"))
    return faults
