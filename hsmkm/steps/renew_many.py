"""Renews many meters at once: each in a thread of its own, whose changes of the store share commits.

A meter whose concentrator holds keys waits for that one's receipts; such meters go in slices, after the others. What
ends the work early (the caller stops, the token or the store is gone) ends it between two meters: those that are under
way are finished.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from hsmkm.errors import RefusedError
from hsmkm.steps.distribute import CLIENT
from hsmkm.steps.party import Party
from hsmkm.steps.renew import RECEIPT_SECONDS, renew
from hsmkm.steps.results import Outcome
from hsmkm.store import meters, parties
from hsmkm.token.types import MeterRole

THREADS = 16
"""Meters at a time where the settings leave it open: enough to share commits and to wait for several at once."""


def renew_many(
    party: Party,
    names: Sequence[str],
    roles: tuple[MeterRole, ...],
    association: str = "",
    *,
    prove_refusal: bool = False,
    seconds: int = RECEIPT_SECONDS,
    threads: int = 0,
) -> Generator[Outcome, None, None]:
    """Renew keys of meters as `renew` does, and give each outcome as it comes.

    `seconds` is how long a concentrator that holds keys has for each of its receipts; without `threads` the settings
    say how many meters are worked on at a time.
    """

    def one(name: str) -> list[Outcome]:
        if _waits_for_receipts(party, name):
            behind.append(name)
            return []
        return renew(party, [name], roles, association, prove_refusal=prove_refusal, wait=seconds)

    behind: list[str] = []
    at_once = min(threads or party.settings.workers.threads or THREADS, len(names)) or 1
    left = iter(names)
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="renewal")
    try:
        under_way = {pool.submit(one, name) for name in islice(left, at_once)}
        while under_way:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            outcomes = _all_of(done)
            under_way |= {pool.submit(one, name) for name in islice(left, len(done))}
            yield from outcomes
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    yield from renew(party, behind, roles, association, prove_refusal=prove_refusal, wait=seconds)


def _all_of(done: set[Future[list[Outcome]]]) -> list[Outcome]:
    return [outcome for future in done for outcome in future.result()]


def _waits_for_receipts(party: Party, name: str) -> bool:
    """Tell whether a meter's concentrator holds keys; one that cannot be found is for `renew` to say."""
    with party.store.read() as tx:
        try:
            concentrator = meters.find(tx, name).concentrator
        except RefusedError:
            return False
        return concentrator is not None and parties.require(tx, concentrator).kind == CLIENT
