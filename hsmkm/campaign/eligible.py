"""Which worker may take slices of a campaign: one of the version, the party and the token that started it last."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from hsmkm.errors import RefusedError
from hsmkm.steps.party import Party
from hsmkm.store.campaign import Campaign
from hsmkm.store.schema import HEAD

WORKER = "worker"
"""The name in a campaign's settings of what its workers must be."""


class StrangeWorkerError(RefusedError):
    """This worker is not of the kind that a campaign was started with: it takes none of its slices."""


def kind_of(party: Party) -> dict[str, object]:
    """Say what this process is: the program's version with its schema, our system title, and the token in use."""
    token = party.session.uri
    return {
        "version": f"{program_version()}, schema {HEAD}",
        "party": party.settings.party.system_title,
        "token": f"{token.token}, serial {token.serial}",
    }


def program_version() -> str:
    """Give the installed program's version, or say that it runs from its source tree."""
    try:
        return version("hsmkm")
    except PackageNotFoundError:
        return "source tree"


def refuse_stranger(party: Party, campaign: Campaign) -> None:
    """Raise StrangeWorkerError, with every difference, unless this process is what the campaign was started with."""
    wanted, found = campaign.settings.get(WORKER), kind_of(party)
    if not isinstance(wanted, dict):
        raise StrangeWorkerError(
            f"campaign {campaign.name} was never started", hint=f"hsmkm campaign start {campaign.name}"
        )
    reasons = [
        f"{name}: the campaign's is {wanted.get(name)}, this worker's is {found[name]}"
        for name in found
        if wanted.get(name) != found[name]
    ]
    if reasons:
        text = f"this worker takes no slice of campaign {campaign.name}"
        hint = (
            f"run one like it, or start the campaign anew from here: hsmkm campaign pause {campaign.name}, and resume"
        )
        raise StrangeWorkerError(text, reasons, hint=hint)
