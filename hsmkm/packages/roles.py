"""Who may send which package to whom."""

from __future__ import annotations

from collections.abc import Iterator

from hsmkm.packages.content import THIRD_PARTY, Peer, Purpose

PURPOSES: dict[Purpose, tuple[str, tuple[str, ...]]] = {
    Purpose.INJECTION: ("factory", ("line",)),
    Purpose.DELIVERY: ("factory", ("utility",)),
    Purpose.DISTRIBUTION: ("utility", ("concentrator", THIRD_PARTY)),
    Purpose.ACTIVATION: ("utility", ("concentrator",)),
    Purpose.TRANSFER: ("utility", ("utility",)),
}
"""The role of the sender and those of recipients; a migration goes from a party to itself, whatever its role."""


def role_reasons(purpose: Purpose, sender: Peer, recipient: Peer) -> Iterator[str]:
    """Say why a party of this role may not send a package of this purpose to the other."""
    if purpose is Purpose.MIGRATION:
        if (sender.role, sender.system_title) != (recipient.role, recipient.system_title):
            yield "a migration goes from a party to itself"
        return
    if purpose is Purpose.TRANSFER and sender.system_title == recipient.system_title:
        yield "a transfer goes to another system title: the invocation counters do not travel with the keys"
    allowed = PURPOSES[purpose]
    if sender.role != allowed[0]:
        yield f"a package for {purpose} comes from a party of role {allowed[0]}, not {sender.role}"
    if recipient.role not in allowed[1]:
        yield f"a package for {purpose} goes to a party of role {' or '.join(allowed[1])}, not {recipient.role}"


def flag_reasons(sender_role: str, flags: tuple[str, ...], titles: Iterator[bytes]) -> Iterator[str]:
    """Say for which manufacturers the sender may not speak.

    A factory speaks for its FLAG ids only; a party of another role speaks for all where none are registered for it.
    """
    if not flags and sender_role != "factory":
        return
    for flag in sorted({title[:3] for title in titles} - {flag.encode("ascii") for flag in flags}):
        yield f"the sender may not speak for meters of {flag.decode('ascii', 'replace')!r}"
