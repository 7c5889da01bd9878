"""Signed records of keys that were destroyed: HOME/records/ID.p7m, the container of packages with JSON in it.

    {"format": "hsmkm-destruction-record/1", "id": UUID, "party": name, "system_title": 16 hex digits in capitals,
     "actor": name, "time": RFC 3339, "reason": text,
     "key_sets": [{"meter", "serial", "security_setup", "client", "generation", "state", "keys": {role: identity}}]}

A record is signed and synced under a temporary name before the transaction that destroys the keys and names its
SHA-256 in the audit log, and renamed after it; the next destruction finishes what a crash left between the two.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cryptography import x509

from hsmkm.durable_file import sync_folder
from hsmkm.errors import InputError, IntegrityError, RefusedError
from hsmkm.packages.container import MAX_CONTAINER, open_container, sign_content
from hsmkm.packages.fields import time_text
from hsmkm.packages.strict_json import canonical
from hsmkm.pki.certificates import fingerprint
from hsmkm.pki.slots import curve_for
from hsmkm.steps.certify import own_chain, trust_of
from hsmkm.steps.deliver import PARTIAL, signatory
from hsmkm.steps.party import Party, utc_now
from hsmkm.store import audit, certificates
from hsmkm.store.certificates import Source
from hsmkm.store.key_set import KeySet, KeyState
from hsmkm.store.meter import Meter
from hsmkm.store.problem import Problem

FORMAT = "hsmkm-destruction-record/1"
DESTROYED = "meter-destroy"
"""The action in the audit log whose detail names a record."""

Doomed = tuple[Meter, KeySet, KeyState]


def folder(party: Party) -> Path:
    """Give the folder of the records, made where it is not there."""
    path = party.home / "records"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def write(party: Party, doomed: Sequence[Doomed], reason: str) -> tuple[str, str, Path]:
    """Sign what is to be destroyed, under a temporary name; give its id, the file's SHA-256 in hex, and its name then.

    The signature is made by our package-signing key, in the token.
    """
    record_id = str(uuid.uuid4())
    content = canonical(_document(party, record_id, doomed, reason))
    signer = signatory(party, curve_for(key_set.suite for _, key_set, _ in doomed))
    data = sign_content(content, signer.signer, signer.certificate, signer.chain, utc_now())
    path = folder(party) / f"{record_id}.p7m"
    with path.with_name(path.name + PARTIAL).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return record_id, hashlib.sha256(data).hexdigest(), path


def _document(party: Party, record_id: str, doomed: Sequence[Doomed], reason: str) -> dict[str, object]:
    settings = party.settings.party
    return {
        "format": FORMAT,
        "id": record_id,
        "party": settings.name,
        "system_title": settings.system_title,
        "actor": party.actor,
        "time": time_text(utc_now()),
        "reason": reason,
        "key_sets": [_said(*item) for item in doomed],
    }


def _said(meter: Meter, key_set: KeySet, state: KeyState) -> dict[str, object]:
    return {
        "meter": meter.title,
        "serial": meter.serial,
        "security_setup": key_set.ref.security_setup,
        "client": key_set.ref.client,
        "generation": key_set.ref.generation,
        "state": state.value,
        "keys": {key.role.value: key.identity.hex() for key in key_set.keys},
    }


def finish(party: Party) -> None:
    """Give the records that the audit log names their name, and drop those of destructions that did not happen."""
    named = _named(party)
    for partial in sorted(folder(party).glob(f"*.p7m{PARTIAL}")):
        path = partial.with_name(partial.name.removesuffix(PARTIAL))
        if named.get(path.stem) == hashlib.sha256(partial.read_bytes()).hexdigest():
            partial.rename(path)
        else:
            partial.unlink()
    sync_folder(folder(party))


def _named(party: Party) -> Mapping[str, str]:
    """Give the SHA-256 of each record that the audit log names, by id."""
    with party.store.read() as tx:
        found = audit.of_action(tx, DESTROYED)
    return {str(item.detail["record"]): str(item.detail["sha256"]) for item in found}


def problems(party: Party) -> Iterator[Problem]:
    """Name every record that is missing, altered, signed by another, or unknown to the audit log."""
    path = party.home / "records"
    named = _named(party)
    for record_id, sha256 in sorted(named.items()):
        text = _fault(party, path / f"{record_id}.p7m", sha256)
        if text:
            yield Problem("records", record_id, text)
    for stray in sorted(path.glob("*.p7m")):
        if stray.stem not in named:
            yield Problem("records", stray.stem, "the audit log does not speak of it")


def _fault(party: Party, path: Path, sha256: str) -> str:
    partial = path.with_name(path.name + PARTIAL)
    try:
        with (path if path.is_file() else partial).open("rb") as file:
            data = file.read(MAX_CONTAINER + 1)
    except FileNotFoundError:
        return "the signed record of a destruction is missing"
    if hashlib.sha256(data).hexdigest() != sha256:
        return "it is not the record that the audit log speaks of"
    try:
        signed = open_container(data)
        trust_of(party).check(signed.signer, signed.chain, "package-signing", utc_now(), signed=signed.signed_at)
    except (InputError, IntegrityError, RefusedError) as error:
        return f"its signature does not hold: {error.message}"
    return "" if is_own(party, signed.signer) else "it was signed by another party"


def is_own(party: Party, signer: x509.Certificate) -> bool:
    """Whether a certificate is the package-signing one of this party, or was before a renewal, as the store has it."""
    if fingerprint(signer) == fingerprint(own_chain(party, "package-signing")[0]):
        return True
    with party.store.read() as tx:
        own = certificates.listing(tx, profile="package-signing", source=Source.OWN)
    return fingerprint(signer) in {record.fingerprint for record in own}
