"""What goes wrong in the middle of a campaign: the store, strange workers, killed and interrupted processes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from hsmkm.campaign import control, eligible, slices
from hsmkm.campaign.eligible import StrangeWorkerError
from hsmkm.campaign.events import Claimed, Event, Refused, Worked
from hsmkm.campaign.plan import Finish, Wait
from hsmkm.errors import RefusedError
from hsmkm.store import campaigns, engine
from hsmkm.store.campaign import CampaignState
from hsmkm.store.failures import StoreUnavailableError
from tests.campaign.conftest import CLAIMED, DONE, NAME, WAITING, made, standing, started, titles_in, worked
from tests.field import PATIENCE, Field, key_states, wait_until
from tests.field import started as process
from tests.realm import ACTOR, HSMKM, title_of
from tests.street import Street, open_street

MANY = tuple(range(1, 9))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that waits for no other writer."""
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0)


def database(street: Street) -> Path:
    return street.party.home / "store.db"


@contextmanager
def locked(street: Street) -> Iterator[None]:
    with closing(sqlite3.connect(database(street), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def full(street: Street) -> Iterator[None]:
    """Let the database take no further page."""
    with street.party.store._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    filler = "x" * 100_000
    with pytest.raises(StoreUnavailableError), street.party.store.begin("fill", "", {"with": filler}):
        pass
    yield
    with street.party.store._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000000")


def to_the_end(street: Street) -> None:
    while worked(street.party) != [Finish()]:
        pass


def test_a_locked_database_stops_the_work_between_two_meters(impatient: None, street: Street, chosen: Path) -> None:  # noqa: ARG001 - it makes the store impatient
    started(street.party, chosen)
    running = slices.work(street.party, NAME)
    next(running)
    first = next(running)
    assert isinstance(first, Worked)
    with locked(street), pytest.raises(StoreUnavailableError, match="locked"):
        next(running)
    assert standing(street.party)[1] == {DONE: 1, CLAIMED: 1}
    assert [key_states(street.party, serial) for serial in (1, 2)].count([(1, "active")]) == 1
    claimed, *_ = worked(street.party)
    assert claimed == Claimed(NAME, 1, taken_over=True)
    assert standing(street.party)[1] == {DONE: 2}


def test_a_full_disk_stops_it_with_the_reason_and_it_goes_on_when_there_is_room(street: Street, chosen: Path) -> None:
    started(street.party, chosen)
    with full(street), pytest.raises(StoreUnavailableError, match="full"):
        to_the_end(street)
    to_the_end(street)
    assert standing(street.party) == (CampaignState.FINISHED, {DONE: 2})


def test_a_store_that_is_taken_away_stops_it_before_the_next_meter_and_it_goes_on_in_the_same_one(
    street: Street, chosen: Path
) -> None:
    started(street.party, chosen)
    running = slices.work(street.party, NAME)
    next(running)
    next(running)
    kept = database(street).rename(database(street).with_name("away"))
    with pytest.raises(StoreUnavailableError, match="is gone"):
        next(running)
    assert not database(street).exists()
    kept.rename(database(street))
    assert standing(street.party)[1] == {DONE: 1, CLAIMED: 1}
    to_the_end(street)
    assert standing(street.party) == (CampaignState.FINISHED, {DONE: 2})


def test_a_store_brought_to_another_schema_meanwhile_stops_it(street: Street, chosen: Path) -> None:
    started(street.party, chosen)
    running = slices.work(street.party, NAME)
    next(running)
    next(running)
    with closing(sqlite3.connect(database(street))) as other, other:
        other.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(RefusedError, match="the store has the schema 9999 now"):
        next(running)
    assert standing(street.party)[1] == {DONE: 1, WAITING: 1}


@pytest.mark.parametrize("what", ["version", "party", "token"])
def test_a_strange_worker_takes_no_slice(
    street: Street, chosen: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    started(street.party, chosen)
    strange = eligible.kind_of(street.party) | {what: "another"}
    monkeypatch.setattr(eligible, "kind_of", lambda _: strange)
    with pytest.raises(StrangeWorkerError) as caught:
        worked(street.party)
    assert [reason.partition(":")[0] for reason in caught.value.reasons] == [what]
    refused, waits = slices.work_any(street.party)
    assert isinstance(refused, Refused)
    assert isinstance(waits, Wait)
    assert standing(street.party)[1] == {WAITING: 2}


def test_a_worker_of_all_campaigns_takes_what_runs(street: Street, chosen: Path) -> None:
    (idle,) = slices.work_any(street.party)
    assert isinstance(idle, Wait)
    started(street.party, chosen)
    assert [type(event) for event in slices.work_any(street.party)] == [Claimed, Worked, Worked]


@pytest.fixture
def many(field: Field) -> Iterator[Street]:
    with open_street(field.realm, serials=MANY) as found:
        yield found


@pytest.mark.slow
def test_a_killed_worker_is_taken_over_and_every_meter_is_renewed(many: Street, tmp_path: Path) -> None:
    started(many.party, titles_in(tmp_path / "meters", *map(title_of, MANY)), slice=3)
    with ExitStack() as stack:
        command = [str(HSMKM), "--home", str(many.party.home), "--actor", ACTOR, "worker", "run", "--threads", "2"]
        workers = [stack.enter_context(process(command, tmp_path / f"{number}.log", {})) for number in range(2)]
        wait_until(lambda: DONE in standing(many.party)[1])
        workers[0].kill()
        wait_until(lambda: standing(many.party)[0] is CampaignState.FINISHED, workers[1].log.read_text)
    assert standing(many.party)[1] == {DONE: len(MANY)}
    for serial in MANY:
        assert [state for _, state in key_states(many.party, serial)].count("active") == 1


@pytest.mark.slow
def test_ctrl_c_ends_it_between_two_meters_and_the_same_command_goes_on(many: Street, tmp_path: Path) -> None:
    made(many.party, titles_in(tmp_path / "meters", *map(title_of, MANY)))
    command = [
        str(HSMKM),
        "--home",
        str(many.party.home),
        "--actor",
        ACTOR,
        "campaign",
        "start",
        NAME,
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as run:
        wait_until(lambda: DONE in standing(many.party)[1])
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130, said
    assert f"go on with: hsmkm campaign start {NAME}" in said
    state, counts = standing(many.party)
    assert state is CampaignState.RUNNING
    assert CLAIMED not in counts
    done = many.realm.cli("factory", "campaign", "start", NAME)
    assert done.returncode == 0, done.stderr
    assert standing(many.party) == (CampaignState.FINISHED, {DONE: len(MANY)})


def test_a_pause_from_elsewhere_ends_the_command_with_the_rest_listed(street: Street, chosen: Path) -> None:
    started(street.party, chosen)
    running: Iterator[Event] = slices.work(street.party, NAME)
    next(running)
    next(running)
    control.pause(street.party, NAME, "storm")
    with street.party.store.read() as tx:
        assert campaigns.find(tx, NAME).reason == "storm"
    assert not list(running)
    error = street.realm.cli("factory", "campaign", "start", NAME)
    assert error.returncode == 1
    assert f"hsmkm campaign resume {NAME}" in error.stderr
    assert street.realm.cli("factory", "campaign", "resume", NAME).returncode == 0
    assert standing(street.party) == (CampaignState.FINISHED, {DONE: 2})
