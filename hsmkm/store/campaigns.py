"""Campaigns, their meters, and the slices in which workers claim them; every move is checked against its table.

A slice is claimed in one transaction, belongs to its holder until it expires, and carries a fence: who took it over
has a higher one, and whatever a late holder tries then is refused. `campaign_counts` moves with the meters' rows, in
the same transactions, so that nobody counts a million rows.

A campaign is under a MAC: its start may have needed an approval, of just these terms. Its pace is not, which moves with
every slice, nor are meters, counts and slices: they steer work that proves by the keys of each meter what came of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

from sqlalchemy import Select, func, select

from hsmkm.errors import RefusedError
from hsmkm.store import pages
from hsmkm.store.authenticated import AuthenticatedTable, next_number
from hsmkm.store.campaign import (
    EDGES,
    LEFT,
    METER_EDGES,
    Campaign,
    CampaignMeter,
    CampaignState,
    Counts,
    Slice,
    Standing,
)
from hsmkm.store.canonical import Value, canonical_json
from hsmkm.store.schema import campaign_counts as counts_table
from hsmkm.store.schema import campaign_meters as meters_table
from hsmkm.store.schema import campaign_slices as slices_table
from hsmkm.store.schema import campaigns as table
from hsmkm.store.store import Store, StoredRow, Transaction
from hsmkm.store.times import from_seconds, to_seconds

OPEN, CLOSED = "open", "closed"
ROWS = AuthenticatedTable(
    "hsmkm campaign/1",
    table,
    ("id",),
    ("id", "name", "kind", "state", "settings", "reason", "failed_before", "done_before", "created", "updated"),
)
COLUMNS = ("campaign", "system_title", "state", "attempts", "not_before", "above", "slice", "outcome", "updated")
BROKEN_OFF = "a worker ended while it was at this meter"


class SliceLostError(RefusedError):
    """Another worker took the slice over: nothing more may be done in it."""


def create(tx: Transaction, name: str, kind: str, settings: dict[str, object]) -> int:
    """Add a campaign without meters and give its id; raises RefusedError where the name is taken."""
    refuse_known(tx, name)
    now = to_seconds(tx.now)
    campaign = next_number(tx, table.c.id)
    values: dict[str, Value] = {
        "id": campaign,
        "name": name,
        "kind": kind,
        "state": CampaignState.CREATED.value,
        "settings": canonical_json(settings),
        "reason": "",
        "paced": 0,
        "failed_before": 0,
        "done_before": 0,
        "created": now,
        "updated": now,
    }
    ROWS.insert(tx, values)
    for state in Standing:
        tx.insert(counts_table, {"campaign": campaign, "state": state.value, "meters": 0})
    return campaign


def refuse_known(tx: Transaction, name: str) -> None:
    """Raise RefusedError where a campaign has this name."""
    if tx.one(select(table.c.id).where(table.c.name == name)) is not None:
        raise RefusedError(f"there is a campaign {name} already", hint="see: hsmkm campaign list")


def add_meters(tx: Transaction, campaign: int, meters: Sequence[tuple[bytes, int, str]]) -> int:
    """Add meters given as title, generation in force, and why one is skipped (empty: it waits); gives how many.

    None is added twice (RefusedError).
    """
    rows = [_new_row(campaign, to_seconds(tx.now), *item) for item in meters]
    added = tx.insert_rows(meters_table, COLUMNS, rows)
    skipped = sum(row[2] == Standing.SKIPPED.value for row in rows)
    for row in rows:
        tx.effect(row[1] + row[2].encode())
    _count(tx, campaign, Standing.SKIPPED, skipped)
    _count(tx, campaign, Standing.WAITING, added - skipped)
    return added


def _new_row(campaign: int, now: int, title: bytes, above: int, skip: str) -> tuple[Any, ...]:
    state = Standing.SKIPPED if skip else Standing.WAITING
    return (campaign, title, state.value, 0, 0, above, None, skip or None, now)


def find(tx: Transaction, name: str) -> Campaign:
    """Find a campaign by name, or raise RefusedError; IntegrityError if its row was altered."""
    found = ROWS.rows(tx, select(table).where(table.c.name == name))
    if not found:
        raise RefusedError(f"there is no campaign {name}", hint="see: hsmkm campaign list")
    return _campaign(found[0])


def get(tx: Transaction, campaign: int) -> Campaign:
    """Find a campaign by its id, or raise RefusedError; IntegrityError if its row was altered."""
    return _campaign(_stored(tx, campaign))


def listing(tx: Transaction, state: CampaignState | None = None) -> list[Campaign]:
    """List campaigns, oldest first."""
    statement = select(table).order_by(table.c.id)
    if state is not None:
        statement = statement.where(table.c.state == state.value)
    return [_campaign(row) for row in ROWS.rows(tx, statement)]


def turn(
    tx: Transaction,
    campaign: int,
    to: CampaignState,
    reason: str = "",
    settings: Mapping[str, object] | None = None,
) -> Campaign:
    """Bring a campaign into another state; raises RefusedError where the table has no such edge.

    One that is started counts its failures anew. `settings` are its settings from now on, where they change.
    """
    row = _stored(tx, campaign)
    known = _campaign(row)
    if to not in EDGES[known.state]:
        raise RefusedError(f"campaign {known.name} is {known.state} and cannot become {to}")
    changes: dict[str, Value] = {"state": to.value, "reason": reason, "updated": to_seconds(tx.now)}
    if settings is not None:
        changes["settings"] = canonical_json(settings)
    if to is CampaignState.RUNNING:
        found = counts(tx, campaign)
        failed = sum(found[state] for state in (Standing.FAILED, Standing.UNKNOWN, Standing.GAVE_UP))
        changes |= {"failed_before": failed, "done_before": found[Standing.DONE]}
    ROWS.replace(tx, row, changes)
    return _campaign({**row, **changes})


def counts(tx: Transaction, campaign: int) -> Counts:
    """Give how many meters stand where."""
    found = tx.all(select(counts_table).where(counts_table.c.campaign == campaign))
    return dict.fromkeys(Standing, 0) | {Standing(row["state"]): row["meters"] for row in found}


def soonest(tx: Transaction, campaign: int) -> datetime | None:
    """Give when the first of the meters that are left may be tried, or nothing where none is left."""
    found = [tx.one(_left(campaign, state).limit(1)) for state in LEFT]
    return min((from_seconds(row["not_before"]) for row in found if row is not None), default=None)


def claim(tx: Transaction, campaign: int, holder: str, most: int, seconds: int) -> Slice | None:
    """Claim up to so many meters whose time has come, those in doubt first; nothing where there is none."""
    now = to_seconds(tx.now)
    found: list[CampaignMeter] = []
    for state in LEFT:
        ready = _left(campaign, state).where(meters_table.c.not_before <= now).limit(most - len(found))
        found += [_meter(row) for row in tx.all(ready)] if len(found) < most else []
    if not found:
        return None
    values: dict[str, Value] = {"campaign": campaign, "holder": holder, "fence": 1, "state": OPEN}
    number = tx.insert(slices_table, {**values, "expires": _expiry(tx, seconds)})
    taken = Slice(number, campaign, 1, tuple(found))
    for state in LEFT:
        _move(tx, taken, [meter for meter in found if meter.state is state], state, Standing.CLAIMED, {"slice": number})
    return taken


def take_over(
    tx: Transaction, campaign: int, holder: str, seconds: int, is_left: Callable[[int, str], bool]
) -> Slice | None:
    """Take a slice that expired, or is known to be left by its holder, with all that is claimed in it.

    `is_left` is asked with the slice's id and its holder.
    """
    c = slices_table.c
    for row in tx.all(select(slices_table).where(c.campaign == campaign, c.state == OPEN).order_by(c.expires)):
        if row["expires"] > to_seconds(tx.now) and not is_left(row["id"], row["holder"]):
            continue
        fence = row["fence"] + 1
        changes: dict[str, Value] = {"holder": holder, "fence": fence, "expires": _expiry(tx, seconds)}
        tx.update(slices_table, {"id": row["id"]}, changes)
        left = tx.all(select(meters_table).where(meters_table.c.slice == row["id"]))
        return Slice(row["id"], campaign, fence, tuple(_meter(one) for one in left))
    return None


def holders(tx: Transaction, campaign: int) -> list[tuple[str, datetime]]:
    """List who holds slices of a campaign, and until when unless they say more."""
    c = slices_table.c
    rows = tx.all(select(slices_table).where(c.campaign == campaign, c.state == OPEN).order_by(c.id))
    return [(row["holder"], from_seconds(row["expires"])) for row in rows]


def beat(tx: Transaction, held: Slice, seconds: int) -> None:
    """Keep a slice for some seconds from now; raises SliceLostError if another worker took it over."""
    _check_fence(tx, held)
    tx.update(slices_table, {"id": held.id, "fence": held.fence}, {"expires": _expiry(tx, seconds)})


def begin(tx: Transaction, held: Slice, meter: CampaignMeter) -> CampaignMeter:
    """Count an attempt on a meter before it is made; until it is said how that ended, it was broken off."""
    _check(tx, held, meter)
    changes: dict[str, Value] = {"attempts": meter.attempts + 1, "outcome": BROKEN_OFF}
    tx.update(meters_table, _place(held, meter), {**changes, "updated": to_seconds(tx.now)})
    return _meter(tx.all(_row(held, meter))[0])


def settle(
    tx: Transaction, held: Slice, meter: CampaignMeter, to: Standing, not_before: datetime, outcome: str
) -> None:
    """Say how an attempt on a claimed meter ended; raises RefusedError where the table has no such edge."""
    _check(tx, held, meter)
    changes: dict[str, Value] = {
        "slice": None,
        "attempts": meter.attempts,
        "outcome": outcome,
        "not_before": to_seconds(not_before),
    }
    _move(tx, held, [meter], Standing.CLAIMED, to, changes)


def give_back(tx: Transaction, held: Slice, meters: Sequence[CampaignMeter]) -> None:
    """Give claimed meters back as they were before, and close the slice."""
    beat(tx, held, 0)
    backs: dict[Standing, list[CampaignMeter]] = {}
    for meter in meters:
        _check(tx, held, meter)
        backs.setdefault(_was(meter), []).append(meter)
    for was, given in backs.items():
        _move(tx, held, given, Standing.CLAIMED, was, {"slice": None})
    tx.update(slices_table, {"id": held.id, "fence": held.fence}, {"state": CLOSED})


def _was(meter: CampaignMeter) -> Standing:
    """Say how a claimed meter stood before; of a slice taken over only its attempts tell."""
    if meter.state is not Standing.CLAIMED:
        return meter.state
    return Standing.UNKNOWN if meter.attempts else Standing.WAITING


def set_pace(tx: Transaction, campaign: int, paced: datetime) -> None:
    """Say before which moment the rate allows no further meter."""
    tx.update(table, {"id": campaign}, {"paced": _milliseconds(paced)})


def not_done(
    tx: Transaction, campaign: int, *, after: bytes = b"", limit: int | None = None
) -> Iterator[CampaignMeter]:
    """Read the meters that are not done, by title, beginning behind `after`."""
    c = meters_table.c
    chosen = c.campaign == campaign, c.state != Standing.DONE.value, c.system_title > after
    for row in tx.stream(select(meters_table).where(*chosen).order_by(c.system_title).limit(limit)):
        yield _meter(row)


def every_not_done(store: Store, campaign: int) -> Iterator[CampaignMeter]:
    """Read the meters that are not done, by title, in pages."""

    def page(tx: Transaction, behind: bytes) -> list[CampaignMeter]:
        return list(not_done(tx, campaign, after=behind, limit=pages.PAGE))

    return pages.every(store, page, b"", attrgetter("system_title"))


def tally(tx: Transaction, campaign: int) -> Counts:
    """Count the rows themselves, one by one: what `counts` must be equal to."""
    c = meters_table.c
    statement = select(c.state, func.count().label("meters")).where(c.campaign == campaign).group_by(c.state)
    return dict.fromkeys(Standing, 0) | {Standing(row["state"]): row["meters"] for row in tx.all(statement)}


def _check_fence(tx: Transaction, held: Slice) -> None:
    c = slices_table.c
    row = tx.one(select(c.fence, c.state).where(c.id == held.id))
    if row is None or (row["fence"], row["state"]) != (held.fence, OPEN):
        raise SliceLostError(f"slice {held.id} was taken over by another worker", hint="it goes on with the meters")


def _check(tx: Transaction, held: Slice, meter: CampaignMeter) -> None:
    _check_fence(tx, held)
    row = tx.one(_row(held, meter))
    if row is None or row["slice"] != held.id:
        raise SliceLostError(f"meter {meter.title} is not in slice {held.id} any more")


def _move(
    tx: Transaction,
    held: Slice,
    meters: Sequence[CampaignMeter],
    was: Standing,
    to: Standing,
    changes: Mapping[str, Value],
) -> None:
    if to not in METER_EDGES[was]:
        raise RefusedError(f"a meter that is {was} in a campaign cannot become {to}")
    for meter in meters:
        values = {**changes, "state": to.value, "updated": to_seconds(tx.now)}
        tx.update(meters_table, _place(held, meter), values)
    _count(tx, held.campaign, was, -len(meters))
    _count(tx, held.campaign, to, len(meters))


def _count(tx: Transaction, campaign: int, state: Standing, by: int) -> None:
    if not by:
        return
    known = counts(tx, campaign)[state]
    tx.update(counts_table, {"campaign": campaign, "state": state.value}, {"meters": known + by})


def _place(held: Slice, meter: CampaignMeter) -> dict[str, Value]:
    return {"campaign": held.campaign, "system_title": meter.system_title}


def _row(held: Slice, meter: CampaignMeter) -> Select[Any]:
    c = meters_table.c
    return select(meters_table).where(c.campaign == held.campaign, c.system_title == meter.system_title)


def _left(campaign: int, state: Standing) -> Select[Any]:
    c = meters_table.c
    return select(meters_table).where(c.campaign == campaign, c.state == state.value).order_by(c.not_before)


def _stored(tx: Transaction, campaign: int) -> StoredRow:
    row = ROWS.fetch(tx, id=campaign)
    if row is None:
        raise RefusedError(f"there is no campaign {campaign}")
    return row


def _expiry(tx: Transaction, seconds: int) -> int:
    return to_seconds(tx.now + timedelta(seconds=seconds))


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _campaign(row: StoredRow) -> Campaign:
    values = {name: row[name] for name in Campaign.__dataclass_fields__}
    values |= {
        "state": CampaignState(row["state"]),
        "settings": json.loads(row["settings"]),
        "paced": datetime.fromtimestamp(row["paced"] / 1000, UTC),
        "created": from_seconds(row["created"]),
        "updated": from_seconds(row["updated"]),
    }
    return Campaign(**values)


def _meter(row: StoredRow) -> CampaignMeter:
    return CampaignMeter(
        row["system_title"],
        Standing(row["state"]),
        row["attempts"],
        from_seconds(row["not_before"]),
        row["above"],
        row["outcome"] or "",
    )
