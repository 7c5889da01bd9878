"""A meter goes from one utility to another: nothing that the former owner knew is in force, and no IV is used twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from hsmkm.errors import RefusedError
from hsmkm.packages.content import Peer, Purpose
from hsmkm.packages.receipt import receipt_for, sign_receipt
from hsmkm.packages.roles import role_reasons
from hsmkm.simulator.meter import Meter
from hsmkm.simulator.server import serving
from hsmkm.simulator.state import load, save_to
from hsmkm.steps.deliver import accept_receipt, signatory
from hsmkm.steps.destroy import destroy_due
from hsmkm.steps.exporting import export
from hsmkm.steps.known_to import known_to
from hsmkm.steps.life import compromise
from hsmkm.steps.party import Party, utc_now
from hsmkm.steps.receive import receive
from hsmkm.steps.recover import open_recovery, recover_store
from hsmkm.steps.renew import GLOBAL_KEYS, renew
from hsmkm.steps.results import Outcome
from hsmkm.steps.setup import set_in_file
from hsmkm.steps.transfer import transfer
from hsmkm.steps.urgent import renew_urgent
from hsmkm.store import check, counters, in_force, key_sets, meters, urgent
from hsmkm.store.key_sets import FURTHEST
from hsmkm.store.meter import MeterState
from hsmkm.token.types import KeyRole
from tests.field import Field, energy, key_states, state_path
from tests.realm import ACTOR, Realm
from tests.street import NEWCOMER, ONE, add_newcomer


@dataclass
class Deal:
    """Two utilities that know each other, and a meter of the first."""

    realm: Realm
    address: str

    @contextmanager
    def open(self, name: str) -> Iterator[Party]:
        with self.realm.open(name) as party:
            with party.store.read() as tx:
                known = meters.get(tx, bytes.fromhex(ONE))
            if known is not None and known.address != self.address and known.state is None:
                with party.store.begin("moved", ONE, {}) as tx:
                    meters.update(tx, replace(known, address=self.address))
            yield party

    def hand_over(self) -> None:
        """Send the meter, take it, and give the receipt back."""
        with self.open("utility") as party:
            transfer(party, [ONE], "newcomer")
        self.taken()

    def sent(self) -> bytes:
        return newest(self, "utility")

    def taken(self) -> None:
        with self.open("newcomer") as party:
            receipt = receive(party, self.sent()).receipt
        with self.open("utility") as party:
            accept_receipt(party, receipt)


@pytest.fixture
def deal(field: Field) -> Iterator[Deal]:
    realm = field.realm
    add_newcomer(realm)
    path = state_path(realm, 1)
    with serving([Meter(load(path), save=save_to(path))]) as (port,):
        yield Deal(realm, f"127.0.0.1:{port}")
    for name in ("utility", "newcomer"):
        with realm.open(name) as party, party.store.read() as tx:
            assert list(check.check(tx)) == []


def state_of(party: Party) -> str | None:
    with party.store.read() as tx:
        return meters.require(tx, bytes.fromhex(ONE)).state


def test_the_new_owner_replaces_all_that_the_former_one_knew(deal: Deal) -> None:
    with deal.open("utility") as party:
        assert energy(party, 1) > 0
        (outcome,) = transfer(party, [ONE], "newcomer")
        assert (outcome.state, outcome.error) == ("transferring", None)
        with pytest.raises(RefusedError, match="is transferring: it is not spoken with"):
            energy(party, 1)
        with party.store.read() as tx:
            held = in_force.in_meter(tx, bytes.fromhex(ONE), 0, 1)
            assert held is not None
            known = {key.identity for key in held.keys}
            spent = counters.current(
                tx, held.key(KeyRole.GUEK).identity, bytes.fromhex(party.settings.party.system_title)
            )
            assert spent is not None
    deal.taken()
    with deal.open("utility") as party:
        assert state_of(party) == MeterState.TRANSFERRED
        assert key_states(party, 1) == [(1, "deactivated")]

    with deal.open("newcomer") as party:
        with party.store.read() as tx:
            (asked,) = urgent.waiting(tx)
            assert {role.value for role in asked.roles} == {"guek", "gak", "gbek", "master"}
            assert {(item.party, item.role) for item in known_to(party.store, ONE)} == {
                ("utility", role) for role in ("guek", "gak", "gbek", "master")
            }
            own = counters.current(tx, held.key(KeyRole.GUEK).identity, bytes.fromhex(NEWCOMER))
            assert own is None
        assert [item.state for item in renew_urgent(party)] == ["active"]
        with party.store.read() as tx:
            assert urgent.waiting(tx) == []
            fresh = in_force.in_meter(tx, bytes.fromhex(ONE), 0, 1)
            assert fresh is not None
            assert known.isdisjoint(key.identity for key in fresh.keys)
        assert energy(party, 1) > 0


def test_the_former_owners_copy_is_destroyed_after_the_retention(deal: Deal) -> None:
    deal.hand_over()
    with deal.open("utility") as party:
        assert destroy_due(party) == []
        with party.store.begin("test", "x", {}) as tx:
            ((key_set, _),) = key_sets.for_meter(tx, bytes.fromhex(ONE))
            assert key_set.destroy_after is not None
            assert key_set.destroy_after > utc_now() + timedelta(days=80)
            key_sets.set_destroy_after(tx, key_set.ref, utc_now() - timedelta(days=1))
        assert [item.state for item in destroy_due(party)] == ["destroyed"]


def test_a_refused_transfer_gives_the_meter_back(deal: Deal) -> None:
    with deal.open("utility") as party:
        transfer(party, [ONE], "newcomer")
    with deal.open("newcomer") as party:
        sender = signatory(party)
        package = max((deal.realm.home("utility") / "packages").glob("*.p7m")).stem
        refusal = receipt_for(package, deal.sent(), ("we did not buy it",), utc_now())
        answer = sign_receipt(refusal, sender.signer, sender.certificate, sender.chain, utc_now())
    with deal.open("utility") as party:
        accept_receipt(party, answer)
        assert state_of(party) is None
        assert energy(party, 1) > 0


def test_it_comes_back_only_with_keys_that_were_renewed(deal: Deal) -> None:
    deal.hand_over()
    with deal.open("newcomer") as party:
        refused = transfer_back(party)
        assert refused.state == "transferring"
    with deal.open("utility") as party, pytest.raises(RefusedError) as caught:
        receive(party, newest(deal, "newcomer"))
    assert "the generation does not rise" in caught.value.reasons[0]


def transfer_back(party: Party) -> Outcome:
    (outcome,) = transfer(party, [ONE], "utility")
    return outcome


def newest(deal: Deal, name: str) -> bytes:
    """The last package that a party made."""
    written = (deal.realm.home(name) / "packages").glob("*.p7m")
    return max(written, key=lambda path: path.stat().st_mtime_ns).read_bytes()


def test_a_renewed_meter_comes_back(deal: Deal) -> None:
    deal.hand_over()
    with deal.open("newcomer") as party:
        renew_urgent(party)
        transfer_back(party)
    with deal.open("utility") as party:
        receipt = receive(party, newest(deal, "newcomer")).receipt
        assert state_of(party) is None
        with party.store.begin("moved", ONE, {}) as tx:
            meters.update(tx, replace(meters.require(tx, bytes.fromhex(ONE)), address=deal.address))
        assert [item.state for item in renew_urgent(party)] == ["active"]
        assert energy(party, 1) > 0
    with deal.open("newcomer") as party:
        accept_receipt(party, receipt)
        assert state_of(party) == MeterState.TRANSFERRED


def test_who_lost_the_anchor_is_believed_by_those_who_knew_the_meter(deal: Deal, tmp_path: Path) -> None:
    deal.hand_over()
    home = deal.realm.home("newcomer")
    for turn in ("one", "two", "three"):
        set_in_file(home / "hsmkm.toml", "store", "anchor", f"file:{tmp_path / turn}")
        with open_recovery(home, ACTOR) as party:
            assert recover_store(party, None).changes is None
    with deal.open("newcomer") as party:
        (renewed,) = renew_urgent(party)
        assert renewed.generation == FURTHEST + 2
        transfer_back(party)
    with deal.open("utility") as party:
        receive(party, newest(deal, "newcomer"))
        assert state_of(party) is None


def test_what_is_compromised_in_doubt_or_half_said_is_not_transferred(deal: Deal) -> None:
    with deal.open("utility") as party:
        with pytest.raises(RefusedError, match="a transfer changes the owner"):
            export(party, "transfer", "newcomer", (ONE,), None)
        with pytest.raises(RefusedError, match="may not receive a package for transfer"):
            transfer(party, [ONE], "concentrator")
        assert state_of(party) is None
        compromise(party, [ONE], "opened")
        with pytest.raises(RefusedError, match="none was"):
            transfer(party, [ONE], "newcomer")
        (outcome,) = renew_urgent(party)
        assert outcome.error is None
        assert [item.error for item in renew(party, [ONE], GLOBAL_KEYS)] == [None]


def test_a_transfer_never_goes_to_the_same_system_title() -> None:
    """Counters of one title under keys that travel would begin anew, and repeat IVs."""
    one, other = (Peer(name, "utility", bytes(8)) for name in ("one", "other"))
    assert any("another system title" in reason for reason in role_reasons(Purpose.TRANSFER, one, other))
