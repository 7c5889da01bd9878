"""A new LLS or HLS secret for a meter: what is asked of its association object (class 15, IEC 62056-6-2).

An LLS password is written to the attribute `secret`, and so passes through this process, as it does in every AARQ. An
HLS secret goes to change_HLS_secret wrapped under the master key (RFC 5649), and is in clear in both tokens only.
"""

from __future__ import annotations

from collections.abc import Callable

from hsmkm.dlms import axdr
from hsmkm.dlms.types import AttributeRef, LogicalName, MethodRef
from hsmkm.link.client import Client
from hsmkm.steps.credentials import TokenPassword, open_key, sealed_key
from hsmkm.steps.party import Party
from hsmkm.store.key_set import KeySet
from hsmkm.token.types import KeyRole, SecretRole, Use

CLASS_ID = 15
OBJECT = LogicalName.parse("0.0.40.0.0.255")
SECRET = AttributeRef(CLASS_ID, OBJECT, 7)
CHANGE_HLS_SECRET = MethodRef(CLASS_ID, OBJECT, 2)


def secret_request(party: Party, fresh: KeySet, role: SecretRole) -> Callable[[Client], object]:
    """Make what brings a generation's secret into the meter; its master key is the one in force by then."""
    if role is SecretRole.LLS:
        password = TokenPassword(party.vault, sealed_key(fresh, role))
        return lambda client: client.set(SECRET, axdr.octet_string(password.reveal()))
    with (
        open_key(party, fresh, KeyRole.MASTER, Use.IN_USE) as master,
        open_key(party, fresh, role, Use.TRANSPORT) as secret,
    ):
        wrapped = axdr.octet_string(party.vault.wrap(master, secret))
    return lambda client: client.action(CHANGE_HLS_SECRET, wrapped)
