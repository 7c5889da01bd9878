"""Line keys come in by command, for one order each, from components that custodians hold, and go by command.

A component is 32 octets, 64 hex digits in a file of its owner alone; two components are combined by XOR, so that
neither custodian knows the key. The check value, by which custodians compare what they have, is the first 3 octets of
AES-CMAC over 16 zero octets (ANSI X9.24-1:2017 annex A). What is done is recorded before it is done.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.cmac import CMAC

from hsmkm.errors import Fault, InputError, PolicyError, RefusedError
from hsmkm.steps.approve import require_approval
from hsmkm.steps.model import from_hex, private_file
from hsmkm.steps.order import order_digest
from hsmkm.steps.party import Party
from hsmkm.store import orders
from hsmkm.token.line_keys import LINE_KEY_OCTETS, LineKeys

IMPORT, DESTROY = "token-import-key", "token-destroy-key"
CHECK_OCTETS = 3
MAX_COMPONENTS = 2
_COMPONENT = re.compile(rb"\s*([0-9A-Fa-f]{64})\s*")


@dataclass(frozen=True, slots=True)
class LineKeyHeld:
    """A line key of the token: its label, the order it is for, by digest as far as that is known, and by name."""

    label: str
    order: str
    name: str = ""
    check: str = ""


def import_line_key(
    party: Party, label: str, order: Path, components: Sequence[Path], check: str = "", approval: str | None = None
) -> LineKeyHeld:
    """Import a line key for an order, from one file or from two components; `check` is the check value expected.

    Raises PolicyError where policy.import_keys, a file's mode or four eyes forbid it, InputError for what is no
    component or has another check value, RefusedError where label or key is there already, or the order is done.
    """
    if not party.settings.policy.import_keys:
        raise PolicyError("the policy forbids to import keys in clear", hint="see policy.import_keys in hsmkm.toml")
    digest = order_digest(order)
    keys = LineKeys(party.vault)
    value = _combined(components)
    try:
        found = check_value(value)
        if check and not hmac.compare_digest(check.upper().encode(), found.encode()):
            raise InputError("the line key has another check value than expected", hint="compare the components")
        _refuse_done(party, digest, order.name)
        keys.refuse_known(label, value)
        request = {"order": digest.hex(), "check": found}
        with party.store.begin(IMPORT, label, request) as tx:
            require_approval(tx, party, IMPORT, label, request, approval)
        keys.create(label, digest, value)
    finally:
        value[:] = bytes(len(value))
    return LineKeyHeld(label, digest.hex(), order.name, found)


def destroy_line_key(party: Party, label: str, approval: str | None = None) -> LineKeyHeld:
    """Destroy a line key in the token; RefusedError if there is none, PolicyError where four eyes are wanted.

    The files that were written under it open for whoever knows it outside the token.
    """
    keys = LineKeys(party.vault)
    request: dict[str, object] = {"order": keys.binding(label).hex()}
    with party.store.begin(DESTROY, label, request) as tx:
        require_approval(tx, party, DESTROY, label, request, approval)
    keys.destroy(label)
    return LineKeyHeld(label, str(request["order"]))


def line_keys(party: Party) -> list[LineKeyHeld]:
    """List the line keys of the token with their orders."""
    with party.store.read() as tx:
        known = {order.id[:32]: order for order in orders.listing(tx)}
    found = []
    for label, binding in LineKeys(party.vault).listing():
        order = known.get(binding.hex())
        found.append(LineKeyHeld(label, order.id if order else binding.hex(), order.name if order else ""))
    return found


def check_value(value: bytearray) -> str:
    """Make the check value of an AES key: 6 hex digits."""
    mac = CMAC(algorithms.AES(value))
    mac.update(bytes(16))
    return mac.finalize()[:CHECK_OCTETS].hex().upper()


def _refuse_done(party: Party, digest: bytes, name: str) -> None:
    with party.store.read() as tx:
        known = orders.get(tx, digest.hex())
    if known is not None and known.state == orders.DONE:
        raise RefusedError(f"order {name} is done", hint="a line key is imported before its order is provisioned")


def _combined(components: Sequence[Path]) -> bytearray:
    """Read the components and combine them by XOR, in memory that is wiped; the caller wipes the key."""
    if not 0 < len(components) <= MAX_COMPONENTS:
        raise InputError("a line key has one component or two", hint="--component FILE, once for each")
    value = bytearray(LINE_KEY_OCTETS)
    try:
        for path in components:
            part = _component(path)
            for place, octet in enumerate(part):
                value[place] ^= octet
            part[:] = bytes(len(part))
    except BaseException:
        value[:] = bytes(len(value))
        raise
    return value


def _component(path: Path) -> bytearray:
    content = private_file(path, "give a file of 64 hex digits")
    try:
        with memoryview(content) as view:
            match = _COMPONENT.fullmatch(view)
            if match is None:
                fault = Fault(str(path), 1, 0, f"must be {2 * LINE_KEY_OCTETS} hex digits ({LINE_KEY_OCTETS} octets)")
                raise InputError(f"{path} holds no component of a line key", [fault], "nothing was imported")
            return from_hex(view, match.start(1), LINE_KEY_OCTETS)
    finally:
        content[:] = bytes(len(content))
