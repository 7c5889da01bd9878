"""Registers the parties we deal with: a role, FLAG ids, and certificates that are pinned one by one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from hsmkm.config import PARTY_NAME, SYSTEM_TITLE
from hsmkm.errors import InputError, RefusedError
from hsmkm.meter_model import FLAG_ID
from hsmkm.pki.certificates import common_name, fingerprint, read_certificates
from hsmkm.pki.slots import SLOTS, slot
from hsmkm.steps.certify import curve_reasons, entry, keep, trust_of
from hsmkm.steps.party import Party, utc_now
from hsmkm.store import parties
from hsmkm.store.certificates import Source
from hsmkm.store.parties import Party as PartyRow


@dataclass(frozen=True, slots=True)
class PartyPlan:
    """A party to be registered; `folder` holds its certificates as PROFILE.pem or PROFILE-p384.pem, the leaf first."""

    name: str
    role: str
    flags: tuple[str, ...]
    kind: str
    address: str
    folder: Path
    replace: bool = False


def register_party(party: Party, plan: PartyPlan) -> PartyRow:
    """Check and pin the certificates and store the party; RefusedError with every reason, InputError for bad words."""
    if not PARTY_NAME.fullmatch(plan.name):
        raise InputError(f"{plan.name!r} is not a party name", hint="letters, digits, space, dot, dash, at most 64")
    wrong = [flag for flag in plan.flags if not FLAG_ID.fullmatch(flag)]
    if wrong:
        raise InputError(f"{wrong[0]!r} is not a FLAG id", hint="three capital letters")
    leaves = _leaves(party, plan)
    titles = {
        common_name(leaf.subject) or "" for name, leaf in leaves.items() if slot(name).profile != "package-signing"
    }
    titles = {title for title in titles if SYSTEM_TITLE.fullmatch(title)}
    if len(titles) > 1:
        raise RefusedError(f"the certificates of {plan.name} name several system titles", sorted(titles))
    if party.settings.party.system_title in titles:
        raise RefusedError(
            f"{plan.name} has our own system title", hint="a system title is half of every IV: each party needs its own"
        )
    row = PartyRow(
        name=plan.name,
        role=plan.role,
        system_title=bytes.fromhex(titles.pop()) if titles else None,
        flags=plan.flags,
        kind=plan.kind,
        address=plan.address or None,
        certificates={name: fingerprint(leaf) for name, leaf in leaves.items()},
    )
    with party.store.begin("party-add", plan.name, {"role": plan.role, "flags": list(plan.flags)}) as tx:
        for name, leaf in leaves.items():
            keep(tx, entry(leaf, slot(name).profile, plan.name, Source.PARTY))
        if plan.replace:
            parties.update(tx, row)
        else:
            parties.add(tx, row)
    return row


def _leaves(party: Party, plan: PartyPlan) -> dict[str, x509.Certificate]:
    trust = trust_of(party)
    found: dict[str, x509.Certificate] = {}
    reasons: list[str] = []
    for one in SLOTS:
        path = plan.folder / f"{one.name}.pem"
        if not path.is_file():
            continue
        leaf, *chain = read_certificates(path)
        found[one.name] = leaf
        try:
            trust.check(leaf, chain, one.profile, utc_now())
        except RefusedError as error:
            reasons += [f"{path.name}: {reason}" for reason in error.reasons]
        reasons += [f"{path.name}: {reason}" for reason in curve_reasons(one, leaf)]
    if not found:
        raise InputError(f"no certificates in {plan.folder}", hint="files are called PROFILE.pem")
    if reasons:
        raise RefusedError(f"the certificates of {plan.name} are not accepted", reasons, hint="nothing was changed")
    return found
