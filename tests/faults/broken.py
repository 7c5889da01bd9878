"""Variants of hsmkm that are broken on purpose, each in one way that a harness must find out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from signal import SIGKILL
from typing import Any

from hsmkm.link.client import Client
from hsmkm.steps import deliver, exporting, provision, renew
from hsmkm.steps.party import Party
from hsmkm.steps.renew import Work
from hsmkm.steps.results import Sent
from hsmkm.steps.stages import Stage
from hsmkm.store import counters, packages
from hsmkm.store.renewals import RenewalState
from hsmkm.store.store import Transaction


def rename_before_commit() -> None:
    """A package has its name before the transaction that speaks of it."""

    def hand_out(
        party: Party,
        parcel: deliver.Parcel,
        also: Callable[[Transaction], None],
        note_holders: Callable[[Transaction], object],
        approval: str = "",
    ) -> Sent:
        assert not approval
        path = deliver._path(party, parcel.header.id)
        deliver._write_partial(path, parcel.data)
        path.with_name(path.name + deliver.PARTIAL).rename(path)
        made = deliver._record(parcel)
        with party.store.begin("package-send", parcel.header.recipient.name, {}) as tx:
            also(tx)
            packages.add(tx, made)
            note_holders(tx)
        return deliver.sent_of(party, made)

    deliver.hand_out = provision.hand_out = exporting.hand_out = hand_out  # type: ignore[attr-defined]


def counters_without_commit() -> None:
    """A block of counters is handed out and never written, nor counted among the rows and moves that were."""
    counters.reserve = _forgetful(counters.reserve)
    counters.reserve_more = _forgetful(counters.reserve_more)


def _forgetful(reserve: Callable[..., Any]) -> Callable[..., Any]:
    def forgetful(tx: Transaction, *rest: Any, **named: Any) -> Any:  # noqa: ANN401 - passed on as it is
        nested = tx.connection.begin_nested()
        sums, moves = dict(tx.changes.tables), dict(tx.counters)
        given = reserve(tx, *rest, **named)
        nested.rollback()
        tx.changes.tables, tx.counters = sums, moves
        return given

    return forgetful


def _be_killed() -> None:
    os.kill(os.getpid(), SIGKILL)


def sent_after_the_transfer(before: Callable[[], None] | None = None) -> None:
    """A key transfer is recorded when the meter has answered it; something may happen before that."""

    def send(work: Work, client: Client, stage: Stage) -> None:
        renew._request(work, stage)(client)
        if before is not None:
            before()
        with work.party.store.begin("key-transfer", work.title, {}) as tx:
            work.advance(tx, RenewalState.SENT, stage.name)
            work.advance(tx, RenewalState.ACKNOWLEDGED)

    renew._send = send


VARIANTS: Mapping[str, Callable[[], None]] = {
    "rename before commit": rename_before_commit,
    "counters without commit": counters_without_commit,
    "sent after the transfer": sent_after_the_transfer,
    "killed before it is recorded": partial(sent_after_the_transfer, _be_killed),
}
