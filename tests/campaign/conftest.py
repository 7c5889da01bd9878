"""Meters of a street, and campaigns over them that run in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from hsmkm.campaign import control, slices
from hsmkm.campaign.create import Asked, create
from hsmkm.campaign.events import Event
from hsmkm.campaign.terms import Terms
from hsmkm.steps.party import Party
from hsmkm.steps.renew import GLOBAL_KEYS
from hsmkm.store import campaigns
from hsmkm.store.campaign import CampaignMeter, CampaignState, Counts, Standing
from tests.field import Field
from tests.street import ONE, OTHER, Street, open_street

NAME = "spring"


@pytest.fixture
def street(field: Field) -> Iterator[Street]:
    with open_street(field.realm) as found:
        yield found
        with found.party.store.read() as tx:
            for campaign in campaigns.listing(tx):
                assert campaigns.counts(tx, campaign.id) == campaigns.tally(tx, campaign.id)


@pytest.fixture
def chosen(tmp_path: Path) -> Path:
    return titles_in(tmp_path / "meters.txt", ONE, OTHER)


def titles_in(path: Path, *titles: str) -> Path:
    path.write_text("".join(f"{title}\n" for title in titles))
    return path


def terms(**changes: object) -> Terms:
    return Terms(**{"roles": GLOBAL_KEYS, "back_off": timedelta(), **changes})  # type: ignore[arg-type] # by name


def made(party: Party, file: Path, **changes: object) -> None:
    create(party, Asked(NAME, terms(**changes), file=file), "file")


def started(party: Party, file: Path, **changes: object) -> None:
    made(party, file, **changes)
    control.start(party, NAME)


def worked(party: Party) -> list[Event]:
    """Work off one slice, or say what comes next."""
    return list(slices.work(party, NAME))


def standing(party: Party) -> tuple[CampaignState, Counts]:
    with party.store.read() as tx:
        found = campaigns.find(tx, NAME)
        counts = campaigns.counts(tx, found.id)
    return found.state, {state: count for state, count in counts.items() if count}


def left(party: Party) -> Sequence[CampaignMeter]:
    with party.store.read() as tx:
        return list(campaigns.not_done(tx, campaigns.find(tx, NAME).id))


DONE, WAITING, CLAIMED = Standing.DONE, Standing.WAITING, Standing.CLAIMED
