"""Starts, pauses, resumes and cancels campaigns, each an audited change, and tells where they stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from hsmkm.campaign.create import UNFIT_HINT, in_pages
from hsmkm.campaign.eligible import WORKER, kind_of
from hsmkm.campaign.fitness import Faults, Fitness
from hsmkm.campaign.terms import Terms
from hsmkm.errors import RefusedError
from hsmkm.steps.approve import is_required, of_meters, require_approval
from hsmkm.steps.party import Party
from hsmkm.store import campaigns, fleet
from hsmkm.store.campaign import Campaign, CampaignState, Counts, Standing
from hsmkm.store.store import Transaction

START = "campaign-start"
"""The action in the audit log, and what the policy can demand an approval of."""


@dataclass(frozen=True, slots=True)
class Status:
    """A campaign, its meters counted, and who holds slices of it until when."""

    campaign: Campaign
    counts: Counts
    holders: tuple[tuple[str, datetime], ...]


def start(party: Party, name: str, approval: str = "") -> Status:
    """Let a campaign run from its first time on: its workers are of this version, this party and this token.

    One that runs goes on running. Raises InputError with the faults of all its meters, where they are not to be left
    out; ApprovalRequiredError where the policy lists `campaign-start`; RefusedError where it is not to be started.
    """
    with party.store.read() as tx:
        campaign = campaigns.find(tx, name)
        if campaign.state is CampaignState.RUNNING:
            return status(tx, campaign)
    if campaign.state is not CampaignState.CREATED:
        hint = f"hsmkm campaign resume {name}" if campaign.state in _RESUMABLE else f"hsmkm campaign report {name}"
        raise RefusedError(f"campaign {name} is {campaign.state}", hint=hint)
    terms = Terms.of(campaign.settings)
    if not campaign.settings.get("leave_out"):
        with party.store.read() as tx:
            _refuse_unfit(tx, party, campaign, terms)
    request = _request(party, campaign, terms)
    with party.store.begin(START, name, kind_of(party)) as tx:
        require_approval(tx, party, START, name, request, approval or None)
        started = _run(tx, party, campaign)
        return status(tx, started)


def _request(party: Party, campaign: Campaign, terms: Terms) -> dict[str, object]:
    """Say what a second officer approves, where the policy asks for it: the terms, and just which meters."""
    with party.store.read() as tx:
        if not is_required(tx, party.settings, START):
            return {}
        _, meters = of_meters(title.hex().upper() for title in _waiting(tx, campaign))
        return {**terms.settings(), **meters}


_RESUMABLE = (CampaignState.PAUSED, CampaignState.STOPPED)


def resume(party: Party, name: str) -> Status:
    """Let a campaign run again that was paused or stopped by itself; its failures count anew."""
    with party.store.begin("campaign-resume", name, kind_of(party)) as tx:
        campaign = campaigns.find(tx, name)
        if campaign.state not in _RESUMABLE:
            hint = f"hsmkm campaign start {name}" if campaign.state is CampaignState.CREATED else "hsmkm campaign list"
            raise RefusedError(f"campaign {name} is {campaign.state} and cannot be resumed", hint=hint)
        return status(tx, _run(tx, party, campaign))


def _run(tx: Transaction, party: Party, campaign: Campaign) -> Campaign:
    return campaigns.turn(
        tx, campaign.id, CampaignState.RUNNING, settings={**campaign.settings, WORKER: kind_of(party)}
    )


def pause(party: Party, name: str, reason: str) -> Status:
    """Let every worker stop after the meter that it is at."""
    return _turn(party, name, CampaignState.PAUSED, "campaign-pause", reason)


def cancel(party: Party, name: str, reason: str) -> Status:
    """End a campaign for good; workers stop after the meter that they are at, and every other meter stays listed."""
    return _turn(party, name, CampaignState.CANCELLED, "campaign-cancel", reason)


def _turn(party: Party, name: str, to: CampaignState, action: str, reason: str) -> Status:
    with party.store.begin(action, name, {"reason": reason}) as tx:
        return status(tx, campaigns.turn(tx, campaigns.find(tx, name).id, to, reason))


def status(tx: Transaction, campaign: Campaign) -> Status:
    """Say where a campaign stands."""
    holders = campaigns.holders(tx, campaign.id)
    return Status(campaign, campaigns.counts(tx, campaign.id), tuple(holders))


def _refuse_unfit(tx: Transaction, party: Party, campaign: Campaign, terms: Terms) -> None:
    """Raise InputError, with the faults of all meters, where some cannot be worked on any more."""
    faults, fitness = Faults(), Fitness(party.home, terms.association)
    for titles in in_pages(_waiting(tx, campaign)):
        found = fleet.of_titles(tx, titles)
        for title in titles:
            candidate = found.get(title)
            text = "there is no such meter any more" if candidate is None else fitness.fault(candidate)
            if text:
                faults.add(title.hex().upper(), 0, text)
    faults.refuse(f"campaign {campaign.name} was not started", UNFIT_HINT)


def _waiting(tx: Transaction, campaign: Campaign) -> Iterator[bytes]:
    for meter in campaigns.not_done(tx, campaign.id):
        if meter.state is Standing.WAITING:
            yield meter.system_title
