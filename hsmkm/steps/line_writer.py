"""Injection records: what line equipment that opens no packages gets of a meter, one JSON object on a line of a file.

The master key is wrapped under the line key (RFC 3394, AES-256), the other keys under the master key, as key_transfer
takes them: AES keys by RFC 3394, secrets by RFC 5649. A worker imports this and little else of the steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from hsmkm.packages.content import IDENTITY_OCTETS, WRAP_OVERHEAD
from hsmkm.packages.strict_json import canonical
from hsmkm.steps.births import Made, make_under
from hsmkm.steps.hands import Hand
from hsmkm.store.key_set_bulk import Form
from hsmkm.token.line_keys import LineKeys
from hsmkm.token.types import KeyRole

FORMAT = "hsmkm-line-record/1"


class RecordWriter:
    """Writes the records of one form; a record ends with its line."""

    between = ""

    def __init__(self, form: Form, label: str) -> None:
        self._form = form
        self._shared = {
            "format": FORMAT,
            "order": form.order,
            "line_key": label,
            "model": form.model,
            "suite": form.suite,
            "security_setup": form.security_setup,
            "client": form.client,
            "generation": form.generation,
        }

    def write(self, system_title: bytes, serial: str, identities: bytes, travelling: bytes) -> str:
        """Write the record of a meter; its keys as `Births` makes them, in the order of the form."""
        keys, at = {}, 0
        for place, (role, octets) in enumerate(self._form.keys):
            identity = identities[place * IDENTITY_OCTETS : (place + 1) * IDENTITY_OCTETS]
            wrapped = travelling[at : at + octets + WRAP_OVERHEAD]
            under = "line" if role is KeyRole.MASTER else "master"
            keys[role.value] = {"identity": identity.hex(), "wrapped": wrapped.hex(), "under": under}
            at += octets + WRAP_OVERHEAD
        own = {"system_title": system_title.hex().upper(), "serial": serial, "keys": keys}
        return canonical(self._shared | own).decode() + "\n"


def make_records(
    hand: Hand, label: str, order: bytes, forms: tuple[Form, ...], meters: Sequence[tuple[bytes, str]]
) -> tuple[Made, ...]:
    """Make the key sets of meters (system title, serial number), in each form, under the line key of the order."""
    key = LineKeys(hand.vault).find(label, order)
    return tuple(make_under(hand, key, form, meters, RecordWriter(form, label)) for form in forms)
