"""Renewal of certificates when two thirds of their life are over: ours, and those of a fleet of meters.

A renewal is a request, an issue at the authority, and an installation or import, like the first time; here is chosen
what is due. Our keys stay, and the names of the TLS service are those of its certificate; meters make new key pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from hsmkm.errors import InputError
from hsmkm.pki.certificates import is_title
from hsmkm.pki.requests import texts_of
from hsmkm.steps.certify import own_chain, own_path, request_slots, requested_slots
from hsmkm.steps.enrol import import_certificates, request_certificates
from hsmkm.steps.expiry import due_certificates, due_state
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.renew import OF_ONE_METER
from hsmkm.steps.results import Enrolled, Made
from hsmkm.store.certificates import Source

FAILED = "failed"


def request_own(party: Party, out: Path, days: int) -> list[Made]:
    """Write requests for our certificates that are due, or end within so many days; none where nothing is due."""
    now, due = utc_now(), []
    names: tuple[str, ...] = ()
    for one in requested_slots(party):
        if own_path(party, one.name).is_file():
            leaf = own_chain(party, one.name)[0]
            if due_state(leaf.not_valid_before_utc, leaf.not_valid_after_utc, now, days):
                due.append(one)
                names = tuple(_names(leaf)) or names
    return request_slots(party, due, names, out) if due else []


def _names(certificate: x509.Certificate) -> Iterator[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return
    yield from filter(None, texts_of(names.value))


def request_meters(party: Party, out: Path, days: int) -> list[Enrolled]:
    """Let every meter with a certificate that is due make a key pair and a request for it, one meter after the other.

    A meter that fails is told of in its state, and keeps nobody else from theirs; a token or a store that is gone does.
    """
    due: dict[str, list[str]] = {}
    with party.store.read() as tx:
        for item in due_certificates(tx, utc_now(), days):
            if item.source == Source.METER.value:
                due.setdefault(item.owner, []).append(item.profile)
    found: list[Enrolled] = []
    for title, profiles in due.items():
        try:
            found += request_certificates(party, title, out, profiles=sorted(profiles))
        except OF_ONE_METER as error:
            found.append(Enrolled(title, ", ".join(sorted(profiles)), f"{FAILED}: {error.message}"))
    return found


def import_meters(party: Party, folder: Path) -> list[Enrolled]:
    """Import what the authority issued for a fleet, from files `TITLE.PROFILE.pem`, each meter by itself."""
    titles = sorted({path.name.partition(".")[0] for path in folder.glob("*.pem")})
    titles = [title for title in titles if is_title(title)]
    if not titles:
        raise InputError(f"no certificates of meters in {folder}", hint="files are called TITLE.PROFILE.pem")
    found: list[Enrolled] = []
    for title in titles:
        try:
            found += import_certificates(party, title, folder)
        except OF_ONE_METER as error:
            found.append(Enrolled(title, "", f"{FAILED}: {error.message}"))
    return found
