"""The desk over a real store: what it offers of packages whose files are being written, left over, altered or lost."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from hsmkm.errors import IntegrityError, TokenUnreachableError
from hsmkm.packages.content import Purpose
from hsmkm.packages.receive import inspect_package
from hsmkm.packages.send import outgoing
from hsmkm.service.desk import ReceiptResult
from hsmkm.service.party_desk import PartyDesk
from hsmkm.steps import tell as telling
from hsmkm.steps.communicate import find_meter
from hsmkm.steps.deliver import send
from hsmkm.steps.party import Party
from hsmkm.steps.receive import receive
from hsmkm.steps.results import Sent
from hsmkm.steps.transfer import transfer
from hsmkm.store import key_sets, meters
from hsmkm.store.key_set import KeyState
from hsmkm.token.standing import StandingWorker
from tests.field import Field
from tests.realm import title_of
from tests.street import add_newcomer


class Here:
    """A worker that works in this process."""

    def __init__(self, party: Party) -> None:
        self.party = party

    def call(self, function: Callable[..., Any], *args: object, deadline: float) -> object:
        del deadline
        return function(self.party, *args)


@pytest.fixture
def party(field: Field) -> Iterator[Party]:
    with field.realm.open("utility") as opened:
        yield opened


@pytest.fixture
def desk(party: Party) -> PartyDesk:
    return at(party)


def give(party: Party, serial: int) -> Sent:
    """Send one meter's keys to the concentrator."""
    meter = find_meter(party, title_of(serial))
    with party.store.read() as tx:
        key_set = key_sets.newest(tx, meter.system_title, 0, 1)
    assert key_set is not None
    return send(party, Purpose.DISTRIBUTION, "concentrator", [outgoing(meter, key_set, KeyState.ACTIVE)])


def at(party: Party) -> PartyDesk:
    return PartyDesk(party.home, cast("StandingWorker[Party]", Here(party)))


def as_before_the_rename(sent: Sent) -> Path:
    return sent.path.rename(sent.path.with_name(sent.path.name + ".partial"))


def listed(desk: PartyDesk) -> list[str]:
    return [item.id for item in desk.packages("concentrator")]


def test_packages_are_listed_in_the_order_of_their_sequence(party: Party, desk: PartyDesk) -> None:
    sent = [give(party, serial) for serial in (1, 2, 3)]
    assert listed(desk) == [item.id for item in sent]
    assert [item.sequence for item in desk.packages("concentrator")] == [1, 2, 3]
    content = desk.package("concentrator", sent[0].id)
    assert hashlib.sha256(content or b"").hexdigest() == desk.packages("concentrator")[0].sha256
    assert desk.packages("other-concentrator") == []


def test_a_package_that_is_just_being_written_is_left_alone_and_holds_back_what_follows(
    party: Party, desk: PartyDesk
) -> None:
    first, second, third = (give(party, serial) for serial in (1, 2, 3))
    partial = as_before_the_rename(second)
    with (party.home / "packages.lock").open("ab") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert listed(desk) == [first.id]
        assert partial.exists()
    assert listed(desk) == [first.id, second.id, third.id]
    assert not partial.exists()


def test_what_a_crash_left_is_finished_or_removed(party: Party, desk: PartyDesk) -> None:
    sent = give(party, 1)
    as_before_the_rename(sent)
    never = sent.path.with_name("00000000-0000-4000-8000-000000000000.p7m.partial")
    never.write_bytes(b"its record was never committed")
    assert listed(desk) == [sent.id]
    assert sent.path.exists()
    assert not never.exists()


def test_an_altered_or_lost_file_is_not_given_out(party: Party, desk: PartyDesk) -> None:
    sent = give(party, 1)
    sent.path.write_bytes(sent.path.read_bytes() + b"\0")
    with pytest.raises(IntegrityError, match="was altered"):
        desk.package("concentrator", sent.id)
    sent.path.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        desk.package("concentrator", sent.id)
    assert listed(desk) == []


@pytest.mark.parametrize("fails_at_first", [False, True])
def test_the_receipt_of_a_transfer_sends_the_former_concentrator_its_notice_at_once(
    field: Field, monkeypatch: pytest.MonkeyPatch, *, fails_at_first: bool
) -> None:
    add_newcomer(field.realm)
    with field.realm.open("utility") as party:
        give(party, 1)
        with party.store.begin("test", "x", {}) as tx:
            meters.update(tx, replace(meters.find(tx, title_of(1)), concentrator="concentrator", address="127.0.0.1:9"))
        transfer(party, [title_of(1)], "newcomer")
        (offered,) = at(party).packages("newcomer")
        content = at(party).package("newcomer", offered.id)
        before = listed(at(party))
    with field.realm.open("newcomer") as party:
        receipt = receive(party, content or b"").receipt
    with field.realm.open("utility") as party:
        if fails_at_first:
            with monkeypatch.context() as patch:
                patch.setattr(telling, "send", unreachable)
                assert at(party).receipt("newcomer", offered.id, receipt).result is ReceiptResult.ACCEPTED
            assert listed(at(party)) == before
            assert at(party).receipt("newcomer", offered.id, receipt).result is ReceiptResult.REPLAYED
        else:
            assert at(party).receipt("newcomer", offered.id, receipt).result is ReceiptResult.ACCEPTED
        told = [item for item in at(party).packages("concentrator") if item.id not in before]
        assert [item.purpose for item in told] == ["activation"]
        said = inspect_package(at(party).package("concentrator", told[0].id) or b"").content
        assert [(entry.system_title.hex().upper(), entry.state) for entry in said.meters] == [
            (title_of(1), "deactivated")
        ]


def unreachable(*_: object) -> None:
    raise TokenUnreachableError("gone", hint="look for it")
