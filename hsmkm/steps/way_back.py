"""Finds out what a meter holds after a key_agreement that did not end, and leads back where nobody can know.

An answer that was lost took the meter's half of the key with it, so that a meter which made the key effective is under
a GUEK that only it has. The way back needs no GUEK: an association of general-ciphering, under a key made in our token
and wrapped under the master key, in which a key_transfer brings a fresh GUEK.
"""

from __future__ import annotations

from hsmkm.steps.agree import (
    agree,
    derived_keys,
    first_that_associates,
    mark_unknown,
    put_in_force,
    verify,
)
from hsmkm.steps.attempts import in_doubt, spend
from hsmkm.steps.renew import Outcome, Work, meter_answers
from hsmkm.store.key_sets import KeySet
from hsmkm.store.renewals import RenewalState


def way_back(title: str) -> str:
    """Say how a meter comes back whose answer to key_agreement was lost."""
    return (
        f"hsmkm resolve {title}: it tries the keys that are known, and else transfers a fresh guek in an association "
        "of general-ciphering under a key wrapped under the master key"
    )


def settle(work: Work, *, go_on: bool, wait: int) -> Outcome:
    """Finish a renewal by key_agreement; PartlyDoneError while the meter does not tell what it holds.

    With `go_on`, a meter that did not take the key is asked to agree on another, and one that holds a key which only it
    knows is led back.
    """
    found: KeySet | None = work.current
    if work.renewal.state is not RenewalState.PREPARED:
        if work.renewal.state is not RenewalState.UNKNOWN:
            mark_unknown(work, "the work was broken off")
        meter_answers(work.speaking)
        found = first_that_associates(work, [*derived_keys(work), work.current], spend)
    if found is work.current:
        return _abandoned(work, go_on=go_on, wait=wait)
    if found is None:
        raise in_doubt(work, "it associates under no key that is known here")
    verify(work, found)
    return put_in_force(work, wait)


def _abandoned(work: Work, *, go_on: bool, wait: int) -> Outcome:
    """Record that the meter still holds what it held before, and go on from there."""
    with work.party.store.begin("renewal-abandon", work.title, {"guek": work.current.ref.generation}) as tx:
        work.advance(tx, RenewalState.ABANDONED)
    if go_on:
        return agree(work.speaking, work.current, wait=wait)
    return Outcome(work.title, "abandoned", work.current.ref.generation, "the meter holds the keys from before")
