"""Which keys of a meter can be replaced over DLMS, and the asking for it."""

from __future__ import annotations

from hsmkm.config import load_model
from hsmkm.errors import InputError, RefusedError
from hsmkm.steps.credentials import secret_roles
from hsmkm.steps.party import Party
from hsmkm.store import urgent
from hsmkm.store.key_set import KeySet
from hsmkm.store.meter import Meter
from hsmkm.store.store import Transaction
from hsmkm.token.types import KeyRole, MeterRole

GLOBAL_KEYS = (KeyRole.GUEK, KeyRole.GAK, KeyRole.GBEK)


def ask(tx: Transaction, party: Party, meter: Meter, key_set: KeySet, reason: str) -> None:
    """Queue the renewal of all keys of a set that can be replaced over DLMS."""
    ref = key_set.ref
    urgent.queue(tx, ref.system_title, ref.security_setup, ref.client, reason, replaceable(party, meter, key_set))


def replaceable(party: Party, meter: Meter, key_set: KeySet) -> tuple[MeterRole, ...]:
    """Name the keys of a set that can be replaced over DLMS; where the model is not known here, the global ones."""
    try:
        model = load_model(meter.model, party.home).at((key_set.ref.security_setup, key_set.ref.client))
    except (InputError, RefusedError):
        return tuple(role for role in GLOBAL_KEYS if key_set.has(role))
    master = (KeyRole.MASTER,) if model.key_transfer.master_changeable else ()
    return tuple(role for role in (*GLOBAL_KEYS, *master, *secret_roles(model)) if key_set.has(role))


def unchangeable(party: Party, meter: Meter, key_set: KeySet) -> list[MeterRole]:
    """Name the keys of a set that somebody knows for good."""
    known = replaceable(party, meter, key_set)
    return [key.role for key in key_set.keys if key.role not in known]
