"""Says which third party may reach which meter through us.

A meter proves who asks by the certificates that it has (`hsmkm meter introduce`); the head end carries the APDUs of
whom it permits. A permission that is withdrawn stops the carrying at once; the meter goes on knowing the certificates.
"""

from __future__ import annotations

from hsmkm.errors import RefusedError
from hsmkm.packages.content import THIRD_PARTY
from hsmkm.steps.communicate import find_meter
from hsmkm.steps.party import Party
from hsmkm.steps.results import Permission
from hsmkm.store import parties, permissions


def permit(party: Party, name: str, third: str) -> Permission:
    """Let a third party reach a meter; RefusedError for a party of another role."""
    with party.store.read() as tx:
        role = parties.require(tx, third).role
    if role != THIRD_PARTY:
        raise RefusedError(f"{third} is of role {role}", hint=f"permissions are for parties of role {THIRD_PARTY}")
    meter = find_meter(party, name)
    with party.store.begin("meter-permit", meter.title, {"party": third}) as tx:
        permissions.grant(tx, third, meter.system_title)
    return Permission(meter.title, third, permissions.GRANTED)


def withdraw(party: Party, name: str, third: str) -> Permission:
    """Let a party reach a meter no more."""
    meter = find_meter(party, name)
    with party.store.begin("meter-permit-withdraw", meter.title, {"party": third}) as tx:
        parties.require(tx, third)
        permissions.withdraw(tx, third, meter.system_title)
    return Permission(meter.title, third, permissions.WITHDRAWN)
